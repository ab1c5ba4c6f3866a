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
export interface Waiting {
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
