/** One thing that the demo claims, and whether it was seen. */
export interface DemoCheck {
  /** What was to be seen, one sentence. */
  readonly claim: string;
  readonly seen: boolean;
  /** The figures behind it. */
  readonly detail: string;
}

/** Connections from one pod to another during one phase, as tcpdump saw them. */
export interface DemoPath {
  /** `namespace/pod`. */
  readonly from: string;
  readonly to: string;
  /** TCP connections that carried something on the underlay during the phase (many tunnels share one). */
  readonly connections: number;
  /** Destination port on the wire, for example 8080 or 15008. */
  readonly port: number;
  /** `TLS 1.3` when every connection was, as the server chose it; `clear` otherwise. */
  readonly protocol: string;
  /** The words of this pair that could be read, on the underlay and on both pods' interfaces. */
  readonly readableWords: readonly string[];
}

/** What an access record says about a path. */
export interface DemoIdentities {
  readonly from: string;
  readonly to: string;
  readonly encryption: string;
  readonly sourceIdentity: string | undefined;
  readonly destinationIdentity: string | undefined;
  /** Why it is not encrypted, when it is not. */
  readonly reason: string;
}

/** A pod before and after. */
export interface DemoPod {
  /** `namespace/pod`. */
  readonly name: string;
  readonly node: string;
  readonly uid: string;
  /** When its process was started (RFC 3339). */
  readonly startedAt: string;
  readonly restarts: number;
  /** True when the same process runs after the label as before. */
  readonly unchanged: boolean;
  /** Requests that its client has made since the wire is watched, and how many of them failed. 0 for servers. */
  readonly requests: number;
  readonly failedRequests: number;
}

/** Everything that the demo has seen: the answer of `veil demo -o json`. */
export interface DemoReport {
  readonly lab: { readonly name: string; readonly nodes: readonly string[] };
  /** The one command that switched encryption on. */
  readonly command: string;
  readonly before: readonly DemoPath[];
  readonly after: readonly DemoPath[];
  readonly identities: readonly DemoIdentities[];
  readonly pods: readonly DemoPod[];
  /** From the start of the command to the first encrypted connection of each pair on the wire, milliseconds; the slowest pair. */
  readonly labelToEncryptedMs: number;
  readonly checks: readonly DemoCheck[];
  readonly proven: boolean;
  /** Seconds that the demo took, set-up of the machine excluded. */
  readonly seconds: number;
}

/** The table at the end. */
export function formatReport(report: DemoReport): string {
  const lines = ["", "What tcpdump saw between the two nodes:", ""];
  const header = ["from", "to", "before", "after", "readable words before", "readable words after"];
  const rows = report.before.map((path) => {
    const after = report.after.find((other) => other.from === path.from && other.to === path.to);
    const wire = (at: DemoPath | undefined): string =>
      at === undefined ? "nothing" : `${at.protocol}, port ${at.port}, ${at.connections} conn.`;
    return [path.from, path.to, wire(path), wire(after), words(path), after === undefined ? "none" : words(after)];
  });
  lines.push(
    ...table([header, ...rows]),
    "",
    "Who spoke to whom, from the proxies' access records after the label:",
    "",
  );
  const who = report.identities.map(({ from, to, encryption, sourceIdentity, destinationIdentity, reason }) => [
    `${from} -> ${to}`,
    encryption === "mutual_tls" ? "mutual TLS" : `${encryption} (${reason})`,
    sourceIdentity ?? "-",
    destinationIdentity ?? "-",
  ]);
  lines.push(...table([["path", "encryption", "source identity", "destination identity"], ...who]), "");
  for (const check of report.checks) lines.push(`  ${check.seen ? "ok  " : "FAIL"}  ${check.claim} (${check.detail})`);
  lines.push(
    "",
    report.proven ? `Proven in ${report.seconds.toFixed(1)} s.` : "NOT proven: see the lines marked FAIL.",
    "",
  );
  return lines.join("\n");
}

function words(path: DemoPath): string {
  return path.readableWords.length === 0 ? "none" : path.readableWords.map((word) => `"${word}"`).join(" ");
}

function table(rows: readonly (readonly string[])[]): string[] {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  const line = (row: readonly string[]): string =>
    `  ${row.map((cell, i) => cell.padEnd(widths[i] ?? 0)).join("  ")}`.trimEnd();
  const [header = [], ...body] = rows;
  return [line(header), `  ${widths.map((width) => "-".repeat(width)).join("  ")}`, ...body.map(line)];
}
