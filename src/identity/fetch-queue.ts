/** How urgent a certificate is: a renewal, a pod that may soon need it, a pod that waits for it. */
export type FetchPriority = "background" | "warmup" | "realtime";

const RANK: Record<FetchPriority, number> = { background: 0, warmup: 1, realtime: 2 };

interface Job {
  readonly key: string;
  priority: FetchPriority;
  readonly dueMs: number;
  readonly run: () => Promise<void>;
}

/**
 * Runs at most `most` jobs at a time; of those that wait, the most urgent first, and among these the one that was due earliest.
 * One job per key: adding a key that waits raises its priority, adding one that runs does nothing. Jobs must not reject.
 */
export class FetchQueue {
  readonly #most: number;
  readonly #waiting = new Map<string, Job>();
  readonly #running = new Set<string>();

  constructor(most: number) {
    this.#most = most;
  }

  add(job: Job): void {
    if (this.#running.has(job.key)) return;
    const waiting = this.#waiting.get(job.key);
    if (waiting === undefined) this.#waiting.set(job.key, job);
    else if (RANK[job.priority] > RANK[waiting.priority]) waiting.priority = job.priority;
    this.#next();
  }

  /** Takes a waiting job out; one that runs is not stopped. */
  remove(key: string): void {
    this.#waiting.delete(key);
  }

  #next(): void {
    while (this.#running.size < this.#most) {
      const job = this.#pick();
      if (job === undefined) return;
      this.#waiting.delete(job.key);
      this.#running.add(job.key);
      void job.run().finally(() => {
        this.#running.delete(job.key);
        this.#next();
      });
    }
  }

  #pick(): Job | undefined {
    let best: Job | undefined;
    for (const job of this.#waiting.values()) {
      if (best === undefined || isBefore(job, best)) best = job;
    }
    return best;
  }
}

function isBefore(a: Job, b: Job): boolean {
  const rank = RANK[a.priority] - RANK[b.priority];
  return rank === 0 ? a.dueMs < b.dueMs : rank > 0;
}
