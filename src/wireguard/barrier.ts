/** What the barrier knows of a node that takes part. */
export interface Participant {
  readonly node: string;
  /** The generation that it has reported; -1: none. */
  readonly done: number;
  /** Whether its keys of the running generation are published. */
  readonly hasPublished: boolean;
  /** Peers that it names as not proven. */
  readonly missing: readonly string[];
}

/** What the barrier decides on. */
export interface BarrierView {
  readonly generation: number;
  /** How long that generation has been the running one, as the leader has seen it. */
  readonly forMs: number;
  readonly intervalMs: number;
  readonly participants: readonly Participant[];
  /** Nodes of other software, whose one key cannot rotate with the others. */
  readonly oneSlot: readonly string[];
}

/** Why the next generation has not begun. */
interface Waiting {
  readonly node: string;
  readonly reason: "NotPublished" | "NotDone" | "OneSlot";
}

/** What the barrier says. */
export interface BarrierVerdict {
  readonly generation: number;
  /** `running`: all are on this generation, the next comes in its time; `moving`: they come to it; `held`: it stays, as there are nodes with one slot. */
  readonly phase: "running" | "moving" | "held";
  readonly waitingFor: readonly Waiting[];
}

/**
 * The barrier of a rotation. The next generation begins when the interval is over and every node that takes part has reported the
 * running one: only then does nobody send over the slot that everybody is about to make anew. Nobody is left behind: who does not
 * answer is named, and traffic goes on.
 */
export function decide({ generation, forMs, intervalMs, participants, oneSlot }: BarrierView): BarrierVerdict {
  const behind = participants.filter(({ done }) => done < generation);
  if (behind.length > 0) return { generation, phase: "moving", waitingFor: culprits(behind) };
  if (oneSlot.length > 0) {
    return { generation, phase: "held", waitingFor: oneSlot.map((node) => ({ node, reason: "OneSlot" })) };
  }
  if (participants.length === 0 || forMs < intervalMs) return { generation, phase: "running", waitingFor: [] };
  return { generation: generation + 1, phase: "moving", waitingFor: [] };
}

/** Who holds it: who has not published; else who is named by others; else who is not done. One node that is dead makes all others wait, and is the one to name. */
function culprits(behind: readonly Participant[]): Waiting[] {
  const silent = behind.filter(({ hasPublished }) => !hasPublished);
  if (silent.length > 0) return silent.map(({ node }) => ({ node, reason: "NotPublished" }));
  const named = new Map<string, number>();
  for (const { missing } of behind) for (const node of missing) named.set(node, (named.get(node) ?? 0) + 1);
  const most = Math.max(1, ...named.values());
  const worst = behind.filter(({ node }) => (named.get(node) ?? 0) >= most);
  return (worst.length > 0 ? worst : behind).map(({ node }) => ({ node, reason: "NotDone" }));
}

const SECOND_MS = 1_000;
/** Veil's documented interval, and the shortest that `auto` gives. */
const BASE_INTERVAL_MS = 120 * SECOND_MS;
/**
 * Every node hears of every node's new key: a rotation of n nodes is n² deliveries, which the API server's watches share among them.
 * So many a second are left to it at most (bench/wireguard-cost.ts shows what they weigh).
 */
const DELIVERIES_PER_SECOND = 10_000;

/** The interval where none is set: 120 s up to about 1,000 nodes, then as long as the API server needs. Milliseconds. */
export function defaultIntervalMs(nodes: number): number {
  const seconds = Math.ceil((nodes * nodes) / DELIVERIES_PER_SECOND / 10) * 10;
  return Math.max(BASE_INTERVAL_MS, seconds * SECOND_MS);
}

/** Reads `90s`, `10m` or `6h`; undefined for `auto`, for what is neither, and for less than a second. Milliseconds. */
export function findIntervalMs(text: string): number | undefined {
  const [, count = "", unit = ""] = /^([1-9]\d{0,6})([smh])$/.exec(text) ?? [];
  const factor = { s: SECOND_MS, m: 60 * SECOND_MS, h: 3_600 * SECOND_MS }[unit];
  return factor === undefined ? undefined : Number(count) * factor;
}
