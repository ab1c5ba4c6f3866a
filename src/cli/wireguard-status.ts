import type { NodeView, WireGuardNode, WireGuardRotation } from "#wireguard";

/** What is known of the tunnels of a cluster. */
export interface TunnelFacts {
  /** Undefined: no controller has ever rotated keys. */
  readonly rotation: WireGuardRotation | undefined;
  readonly nodes: readonly WireGuardNode[];
  /** By node: what its agent says, or why it could not be asked. */
  readonly views: ReadonlyMap<string, NodeView | string>;
}

/** The answer for people. */
export function formatTunnels({ rotation, nodes, views }: TunnelFacts): string {
  const parts = [formatRotation(rotation, nodes.length)];
  if (nodes.length > 0)
    parts.push(table(["NODE", "BACKEND", "GENERATION", "PEERS", "ON IT", "PROBLEMS"], nodes.map(rowOfNode)));
  for (const { metadata, status } of nodes) {
    for (const { node, reason, message } of status?.problems ?? []) {
      parts.push(`  ${metadata?.name}: ${node === "" ? "" : `${node}: `}${message} (${reason})`);
    }
  }
  for (const [node, view] of views) parts.push("", ...formatView(node, view));
  return `${parts.join("\n")}\n`;
}

function formatRotation(rotation: WireGuardRotation | undefined, nodes: number): string {
  if (nodes === 0) return "no node has tunnels: wireguard.mode is off, or no agent has started yet";
  const { generation, phase = "", intervalSeconds, since, waitingFor = [] } = rotation?.status ?? {};
  if (generation === undefined) return "keys do not rotate: no controller has said a generation yet";
  const waits = waitingFor.map(({ node, reason }) => `${node} (${reason})`).join(", ");
  const why = waits === "" ? "" : `, waiting for ${waits}`;
  return `generation ${generation} of keys since ${since}, ${phase}${why}; a new one every ${intervalSeconds} s`;
}

function rowOfNode({ metadata, status = {} }: WireGuardNode): string[] {
  const { backend = "?", version = "", done = -1, pairs = 0, proven = 0, problems = [] } = status;
  const generation = done < 0 ? "none" : String(done);
  return [
    metadata?.name ?? "",
    `${backend} ${version}`.trim(),
    generation,
    String(pairs),
    String(proven),
    String(problems.length),
  ];
}

function formatView(node: string, view: NodeView | string): string[] {
  if (typeof view === "string") return [`${node}: ${view}`];
  const own = view.own.map(
    ({ slot, generation, fingerprint, port }) =>
      `slot ${slot} (UDP ${port}): generation ${generation}, key ${fingerprint}`,
  );
  const rows = view.pairs.flatMap((pair) =>
    pair.slots.map((one) => [
      pair.node,
      String(one.slot),
      pair.hasSlots ? String(one.generation) : "static",
      one.fingerprint,
      one.state,
      `${one.keyAgeSeconds} s`,
      one.handshakeAgeSeconds === undefined ? "none" : `${one.handshakeAgeSeconds} s`,
      String(one.receivedBytes),
      String(one.sentBytes),
    ]),
  );
  const reasons = view.pairs.flatMap((pair) => (pair.reason === undefined ? [] : [`  ${pair.node}: ${pair.reason}`]));
  const refused = view.refused.map((one) => `  ${one.node} is refused: ${one.message} (${one.reason})`);
  const head = ["PEER", "SLOT", "GENERATION", "KEY", "STATE", "KEY AGE", "HANDSHAKE", "RECEIVED", "SENT"];
  return [`${node}: ${own.join("; ")}`, table(head, rows), ...reasons, ...refused];
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const all = [head, ...rows];
  const widths = head.map((_, at) => Math.max(...all.map((row) => row[at]?.length ?? 0)));
  return all
    .map((row) =>
      row
        .map((cell, at) => cell.padEnd(widths[at] ?? 0))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}
