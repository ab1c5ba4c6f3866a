import { deadline, sleep, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import { CellSet } from "#base/metrics";
import type { Random } from "#base/random";
import type { Service } from "#base/service";
import { isKubeError, resources, type KubeClient, type Lease } from "#kube";
import { controllerError } from "./errors.ts";
import { controllerMetrics } from "./metrics.ts";

/** Name of the Lease, in Veil's own namespace. */
const LEASE_NAME = "veil-controller";

/** How long things last, milliseconds. `renewMs` is less than `leaseMs`: what is between them is the margin between two leaders. */
export interface ElectionTimes {
  /** Without a renewal for so long, as a candidate sees it, the lease is free. A whole number of seconds. */
  readonly leaseMs: number;
  /** A leader that could not renew for so long leads no longer. */
  readonly renewMs: number;
  /** Between two renewals; candidates look as often, up to 2.2 times as far apart. */
  readonly retryMs: number;
}

/** client-go's 15 s, 10 s and 2 s, times 0.6: a leader that was killed is followed within 15 s whatever the jitter. */
export const DEFAULT_ELECTION_TIMES: ElectionTimes = { leaseMs: 9_000, renewMs: 6_000, retryMs: 1_200 };

/** As client-go's `JitterFactor`: so that candidates do not ask all at once. */
const JITTER = 1.2;
/** A lease that runs out is taken within so long after its end, at a moment drawn by each candidate. */
const SPREAD_MS = 300;

/** What an election is made of. */
export interface ElectionOptions {
  readonly client: Pick<KubeClient, "find" | "create" | "replace">;
  readonly namespace: string;
  /** Whose lease it is. No two processes may have the same, not even one after the other. */
  readonly identity: string;
  readonly times?: ElectionTimes;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly metrics?: CellSet;
}

/** The lease as it was seen, and since when it has been like that, on this process's own clock. */
interface Seen {
  readonly version: string;
  readonly holder: string;
  readonly durationMs: number;
  readonly sinceMs: number;
}

/** From winning the lease to losing it. */
interface Term {
  readonly over: AbortController;
  readonly underWay: Set<Promise<unknown>>;
  /** Monotonic: the term ends then unless the lease is renewed. */
  untilMs: number;
  cancel: () => void;
}

/**
 * Elects one of several processes by a Lease (`coordination.k8s.io`), with client-go's rules.
 *
 *     candidate ── nobody's, released, or unchanged for leaseMs ──▶ leader ── not renewed for renewMs ──▶ candidate
 *                                                                     └── resign: work ends, lease is released
 *
 * Times that stand in the object are never compared with a clock. A candidate counts from when it saw the lease change; the
 * leader from when it sent the renewal, which is earlier: while the two clocks run at rates that differ by less than
 * leaseMs / renewMs (half as fast again), the leader has ended before anybody else may begin. What it does as leader goes through
 * {@link Election.whileLeading}, which is refused afterwards, and aborted at the end.
 */
export class Election implements Service {
  readonly name = "election";
  readonly #options: ElectionOptions;
  readonly #times: ElectionTimes;
  readonly #leads: { value: number };
  readonly #listeners = new Set<() => void>();
  readonly #stop = new AbortController();
  #seen: Seen | undefined;
  #term: Term | undefined;
  #running: Promise<void> = Promise.resolve();
  #complaint = "";

  constructor(options: ElectionOptions) {
    this.#options = options;
    this.#times = options.times ?? DEFAULT_ELECTION_TIMES;
    this.#leads = (options.metrics ?? new CellSet(controllerMetrics)).bind("veil_controller_leading", {});
  }

  /** True while no other process can lead. */
  get leading(): boolean {
    const term = this.#term;
    return term !== undefined && !this.#stop.signal.aborted && this.#options.clock.monotonic() < term.untilMs;
  }

  /** Calls `listener` whenever this process begins to lead. The returned function ends that. */
  onLeading(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /**
   * Does what only a leader may do; `signal` is aborted when the lease is lost. Rejects with `CONTROLLER_NOT_LEADING`, or as
   * `work` does.
   */
  async whileLeading<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const term = this.#term;
    if (term === undefined || !this.leading) {
      throw controllerError("CONTROLLER_NOT_LEADING", "this replica of the controller does not lead");
    }
    const running = work(term.over.signal);
    term.underWay.add(running);
    try {
      return await running;
    } finally {
      term.underWay.delete(running);
    }
  }

  /** Resolves after the first try for the lease, whatever came of it; goes on trying until it is drained. */
  async start(): Promise<void> {
    await this.#try();
    this.#running = this.#run();
  }

  /** Begins nothing more, waits for what is under way, and lets the lease go, so that another may take it at once. */
  async drain(deadlineMs: number): Promise<void> {
    if (this.#stop.signal.aborted) return;
    const { clock, log } = this.#options;
    this.#stop.abort(new Error("draining"));
    await this.#running;
    const term = this.#term;
    if (term === undefined) return;
    const limit = deadline(clock, Math.min(deadlineMs, term.untilMs - clock.monotonic()), {
      reason: new Error("the lease is left to run out"),
    });
    try {
      await orAborted(Promise.allSettled(term.underWay), limit.signal);
      await this.#release(limit.signal);
    } catch (error) {
      log.warn({ error: messageOf(error) }, "the lease could not be released and runs out by itself");
    } finally {
      limit.clear();
      this.#end(term);
    }
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      await sleep(this.#options.clock, this.#pauseMs(), signal).catch(() => undefined); // aborted: the loop ends
      if (!signal.aborted) await this.#try();
    }
  }

  #pauseMs(): number {
    const { clock, random } = this.#options;
    const { retryMs } = this.#times;
    if (this.leading) return retryMs;
    const look = retryMs * (1 + JITTER * random.unit());
    const seen = this.#seen;
    if (seen === undefined) return look;
    const leftMs = seen.sinceMs + seen.durationMs - clock.monotonic();
    return leftMs <= 0 ? look : Math.min(look, leftMs + SPREAD_MS * random.unit());
  }

  /** One try to win or renew the lease. Never rejects. */
  async #try(): Promise<void> {
    const { client, clock, namespace } = this.#options;
    const reason = new Error("the api did not answer in time");
    // Two tries fit into the time in which a leader has to renew.
    const limit = deadline(clock, this.#times.renewMs / 2, { reason, parent: this.#stop.signal });
    const { signal } = limit;
    try {
      const found = await client.find(resources.leases, { name: LEASE_NAME, namespace, signal });
      if (found !== undefined) this.#see(found);
      if (!this.#mayTake()) return this.#end(this.#term);
      const lease = this.#claim(found);
      const sentMs = clock.monotonic();
      const stored =
        found === undefined
          ? await client.create(resources.leases, lease, { signal })
          : await client.replace(resources.leases, lease, { signal });
      this.#see(stored);
      this.#hold(sentMs + this.#times.renewMs);
      this.#complaint = "";
    } catch (error) {
      this.#complain(error);
    } finally {
      limit.clear();
    }
  }

  /** Any change counts as a renewal: that is never too early. */
  #see({ metadata, spec }: Lease): void {
    const { resourceVersion: version = "" } = metadata ?? {};
    if (this.#seen?.version === version) return;
    const { holderIdentity: holder = "", leaseDurationSeconds } = spec ?? {};
    const durationMs = leaseDurationSeconds === undefined ? this.#times.leaseMs : leaseDurationSeconds * 1000;
    this.#seen = { version, holder, durationMs, sinceMs: this.#options.clock.monotonic() };
  }

  /** A lease that was deleted is still its holder's for as long as that may not have noticed. */
  #mayTake(): boolean {
    const seen = this.#seen;
    if (seen === undefined || seen.holder === "" || seen.holder === this.#options.identity) return true;
    return this.#options.clock.monotonic() - seen.sinceMs >= seen.durationMs;
  }

  /** The lease as ours. The times in it are for readers. */
  #claim(found: Lease | undefined): Lease {
    const { clock, identity, namespace } = this.#options;
    const { spec } = found ?? {};
    const now = microTime(clock.now());
    const isOurs = spec?.holderIdentity === identity;
    return {
      ...found,
      metadata: found?.metadata ?? { name: LEASE_NAME, namespace },
      spec: {
        ...spec,
        holderIdentity: identity,
        leaseDurationSeconds: this.#times.leaseMs / 1000,
        acquireTime: isOurs ? (spec.acquireTime ?? now) : now,
        renewTime: now,
        leaseTransitions: (spec?.leaseTransitions ?? 0) + (isOurs || spec === undefined ? 0 : 1),
      },
    };
  }

  #hold(untilMs: number): void {
    const { clock, identity, log } = this.#options;
    const nowMs = clock.monotonic();
    const before = this.#term;
    if (before !== undefined && !this.leading) this.#end(before); // over before its timer said so
    if (nowMs >= untilMs || this.#stop.signal.aborted) return;
    const isNew = this.#term === undefined;
    const term = this.#term ?? { over: new AbortController(), underWay: new Set(), untilMs, cancel: () => {} };
    this.#term = term;
    term.untilMs = untilMs;
    term.cancel();
    term.cancel = clock.after(untilMs - nowMs, () => this.#end(term));
    if (!isNew) return;
    this.#leads.value = 1;
    log.info({ identity, lease: LEASE_NAME }, "this replica leads");
    for (const listener of this.#listeners) listener();
  }

  #end(term: Term | undefined): void {
    if (term === undefined || term !== this.#term) return;
    this.#term = undefined;
    this.#leads.value = 0;
    term.cancel();
    term.over.abort(controllerError("CONTROLLER_NOT_LEADING", "this replica of the controller leads no longer"));
    this.#options.log.info({ identity: this.#options.identity }, "this replica leads no longer");
  }

  async #release(signal: AbortSignal): Promise<void> {
    const { client, clock, identity, namespace } = this.#options;
    const found = await client.find(resources.leases, { name: LEASE_NAME, namespace, signal });
    if (found?.spec?.holderIdentity !== identity) return;
    const now = microTime(clock.now());
    const spec = { ...found.spec, holderIdentity: "", leaseDurationSeconds: 1, acquireTime: now, renewTime: now };
    await client.replace(resources.leases, { ...found, spec }, { signal });
  }

  /** Losing a race is no failure; a failure is said once, until the lease was ours again or something else fails. */
  #complain(error: unknown): void {
    if (this.#stop.signal.aborted) return;
    if (isKubeError(error, "KUBE_CONFLICT") || isKubeError(error, "KUBE_ALREADY_EXISTS")) return;
    const complaint = messageOf(error);
    if (complaint === this.#complaint) return;
    this.#complaint = complaint;
    this.#options.log.warn({ error: complaint, lease: LEASE_NAME }, "the lease can be neither won nor renewed");
  }
}

/** As Kubernetes writes a MicroTime: six digits behind the second. */
function microTime(ms: number): string {
  return new Date(ms).toISOString().replace("Z", "000Z");
}

/** As `work`; rejects with the signal's reason when that is aborted first. */
async function orAborted(work: Promise<unknown>, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  const { promise, reject } = Promise.withResolvers<never>();
  const onAbort = (): void => reject(signal.reason);
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    await Promise.race([work, promise]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
