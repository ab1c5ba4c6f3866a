import { findWords, readTls, tcpStreams, type Packet, type Stream } from "#capture";
import { findHostPort } from "#base/ip";
import type { DemoPath } from "./report.ts";

/** One client and the server that it calls, with what is needed to find them on the wire. */
export interface Pair {
  readonly from: string;
  readonly to: string;
  readonly clientIp: string;
  readonly serverIp: string;
  /** Words that travel between them. */
  readonly words: readonly string[];
}

/** Captures of one phase: `underlay` between the nodes, `pods` on the interfaces of all pods. */
export interface Captures {
  readonly underlay: readonly Packet[];
  readonly pods: readonly Packet[];
}

/** Port on which a proxy accepts tunnels. */
const TUNNEL_PORT = 15008;

/** What the wire showed of a pair between two moments (microseconds since the epoch). */
export function observePath(pair: Pair, captures: Captures, phase: { fromUs: number; toUs: number }): DemoPath {
  const within = (packet: Packet): boolean => packet.timeUs >= phase.fromUs && packet.timeUs < phase.toUs;
  const underlay = captures.underlay.filter((packet) => isOf(pair, packet) && within(packet));
  // On the client's own interface the server may still have its service's address.
  const pods = captures.pods.filter((packet) => involves(packet, pair.clientIp) && within(packet));
  const carried = underlay.filter((packet) => packet.payload.length > 0);
  const serverPort = (packet: Packet): number =>
    packet.source === pair.serverIp ? packet.sourcePort : packet.destinationPort;
  const clientPort = (packet: Packet): number =>
    packet.source === pair.clientIp ? packet.sourcePort : packet.destinationPort;
  const ports = [...new Set(carried.map(serverPort))];
  const readable = findWords([...underlay, ...pods], pair.words).flatMap(({ words }) => words);
  return {
    from: pair.from,
    to: pair.to,
    connections: new Set(carried.map(clientPort)).size,
    port: ports.find((port) => port !== TUNNEL_PORT) ?? ports[0] ?? 0,
    protocol: carried.length === 0 ? "nothing" : protocolOf(pair, captures.underlay, ports),
    readableWords: [...new Set(readable)],
  };
}

/** When the pair's first TLS handshake was answered on the underlay, microseconds since the epoch; undefined when never. */
export function firstEncryptedUs(pair: Pair, underlay: readonly Packet[]): number | undefined {
  const answers = tunnelAnswers(pair, underlay).filter((stream) => readTls(stream).version !== undefined);
  return answers.length === 0 ? undefined : Math.min(...answers.map(({ firstUs }) => firstUs));
}

/** Connections of the pair opened in clear at or after `fromUs`. */
export function openedInClear(pair: Pair, underlay: readonly Packet[], fromUs: number): Packet[] {
  return underlay.filter(
    (packet) =>
      isOf(pair, packet) && isOpening(packet) && packet.destinationPort !== TUNNEL_PORT && packet.timeUs >= fromUs,
  );
}

function protocolOf(pair: Pair, underlay: readonly Packet[], ports: readonly number[]): string {
  if (ports.some((port) => port !== TUNNEL_PORT)) return "clear";
  const views = tunnelAnswers(pair, underlay).map(readTls);
  const versions = new Set(
    views.map(({ version, wellFormed }) => (wellFormed ? (version ?? "unknown TLS") : "no TLS")),
  );
  return [...versions].join(", ");
}

/** What the server's proxy sent to the client's on tunnel connections. */
function tunnelAnswers(pair: Pair, underlay: readonly Packet[]): Stream[] {
  const answers = underlay.filter((packet) => isOf(pair, packet) && packet.source === pair.serverIp);
  return tcpStreams(answers).filter(({ from, bytes }) => bytes.length > 0 && findHostPort(from)?.port === TUNNEL_PORT);
}

function isOf(pair: Pair, packet: Packet): boolean {
  const forward = packet.source === pair.clientIp && packet.destination === pair.serverIp;
  return forward || (packet.source === pair.serverIp && packet.destination === pair.clientIp);
}

function involves(packet: Packet, ip: string): boolean {
  return packet.source === ip || packet.destination === ip;
}

function isOpening(packet: Packet): boolean {
  return (packet.flags & 0x12) === 0x02;
}
