import { Backoff } from "#base/backoff";
import type { Clock } from "#base/clock";
import { CodedError } from "#base/errors";
import type { Log } from "#base/log";
import { CellSet } from "#base/metrics";
import type { Random } from "#base/random";
import type { Service } from "#base/service";
import type { SpiffeId } from "#model/spiffe-id";
import type { TlsIdentity } from "#model/tls-identity";
import { createCsr, createKeyPair, formatCertificates, parseCertificates } from "#x509";
import { acceptAnswer, verifiesTo, type AcceptedIdentity } from "./accept.ts";
import { identityError } from "./errors.ts";
import { FetchQueue, type FetchPriority } from "./fetch-queue.ts";
import type { CertificateIssuer } from "./issuer.ts";
import { identityMetrics } from "./metrics.ts";

/** What is known of one identity. `failure` is the last failed attempt since the last success. */
export type CertificateState =
  | { readonly kind: "pending"; readonly failure: CodedError | undefined }
  | {
      readonly kind: "ready";
      readonly identity: TlsIdentity;
      readonly notBeforeMs: number;
      readonly failure: CodedError | undefined;
    };

/** What a certificate manager is made of. */
export interface CertificateManagerOptions {
  readonly issuer: CertificateIssuer;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly cells?: CellSet;
  /** How long an identity that nobody holds is kept, so that a pod's successor and a restarted proxy find it. Default 10 s. */
  readonly lingerMs?: number;
}

const MOST_IN_FLIGHT = 8;
const MOST_IDENTITIES = 4096;
const LINGER_MS = 10_000;
const RETRY = { initialMs: 1000, maxMs: 150_000 };
/** A pod that waits brings a failed attempt forward, but never closer than this to the one before. */
const SOONEST_RETRY_MS = 1000;

interface Entry {
  readonly id: SpiffeId;
  readonly backoff: Backoff;
  readonly abort: AbortController;
  state: CertificateState;
  holds: number;
  lastAttemptMs: number;
  /** Stops the timer of the next attempt. */
  cancelAttempt: () => void;
  /** Stops the timer of the certificate's end, or of the linger. */
  cancelEnd: () => void;
  cancelLinger: () => void;
}

/**
 * The certificates of the pods of one node, in memory only: fetched when held, renewed at half-life, kept to their end when that
 * fails, forgotten some time after nobody holds them. One certificate per identity, shared by all its pods.
 *
 *     hold ──▶ pending ──fetched──▶ ready ──half-life──▶ (fetch; on failure retry 1 s … 150 s, the old one stays) ──▶ ready
 *                 ▲                   └──its end without a new one──▶ pending (failure IDENTITY_EXPIRED): fails closed
 */
export class CertificateManager implements Service {
  readonly name = "certificates";
  readonly #options: CertificateManagerOptions;
  readonly #queue = new FetchQueue(MOST_IN_FLIGHT);
  readonly #entries = new Map<SpiffeId, Entry>();
  readonly #listeners = new Set<(id: SpiffeId) => void>();
  readonly #cells: CellSet;
  #bundle: string | undefined;
  #stopped = false;

  constructor(options: CertificateManagerOptions) {
    this.#options = options;
    this.#cells = options.cells ?? new CellSet(identityMetrics);
  }

  async start(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
  }

  async drain(): Promise<void> {
    this.#stopped = true;
    for (const id of this.#entries.keys()) this.#remove(id);
  }

  /**
   * Makes sure of a certificate for `id` until the answer is disposed: fetches it at `priority` if it is not there, and renews it.
   * A hold more raises the priority of what waits. Throws `IDENTITY_TOO_MANY`, `IDENTITY_STOPPED`.
   */
  hold(id: SpiffeId, priority: FetchPriority): Disposable {
    const entry = this.#entries.get(id) ?? this.#create(id);
    entry.holds++;
    entry.cancelLinger();
    if (entry.state.kind === "pending") this.#attemptSoon(entry, priority);
    let held = true;
    return {
      [Symbol.dispose]: () => {
        if (!held) return;
        held = false;
        this.#release(entry);
      },
    };
  }

  /** What is known of `id`; undefined when nobody asked for it. */
  state(id: SpiffeId): CertificateState | undefined {
    return this.#entries.get(id)?.state;
  }

  /** The certificate of `id`, when there is one that is valid. */
  find(id: SpiffeId): TlsIdentity | undefined {
    const state = this.#entries.get(id)?.state;
    return state?.kind === "ready" && this.#options.clock.now() < state.identity.notAfterMs
      ? state.identity
      : undefined;
  }

  /**
   * The certificate of `id`, waited for if need be, at the highest priority. Hold the identity as well to have it renewed. When
   * `signal` aborts first, rejects with `IDENTITY_NOT_READY`, whose cause is the last failed attempt.
   */
  async fetch(id: SpiffeId, signal: AbortSignal): Promise<TlsIdentity> {
    using _ = this.hold(id, "realtime");
    const done = Promise.withResolvers<void>();
    const onAbort = (): void => done.resolve();
    const forget = this.onChange((changed) => {
      if (changed === id && (this.find(id) !== undefined || this.#stopped)) done.resolve();
    });
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      if (this.find(id) === undefined && !signal.aborted) await done.promise;
      const identity = this.find(id);
      if (identity !== undefined) return identity;
      const cause = this.state(id)?.failure ?? signal.reason;
      throw identityError("IDENTITY_NOT_READY", `there is no certificate for ${id} in time`, { cause });
    } finally {
      forget();
      signal.removeEventListener("abort", onAbort);
    }
  }

  /** Drops an identity and its key at once, unless somebody holds it: the last pod that has it left the node. */
  forget(id: SpiffeId): void {
    if (this.#entries.get(id)?.holds === 0) this.#remove(id);
  }

  /** Tries everything that failed again at once: the authority has come back. */
  retryNow(): void {
    for (const entry of this.#entries.values()) {
      if (entry.state.failure === undefined) continue;
      entry.backoff.reset();
      this.#attemptSoon(entry, "warmup");
    }
  }

  /**
   * Takes the published trust bundle: the trusted roots of all certificates, also of those to come, which themselves stay as they
   * are. Until it is called, the roots of the authority's newest answer count. Throws `X509_*` for a text without roots.
   */
  updateTrustBundle(rootsPem: string): void {
    const roots = formatCertificates(parseCertificates(rootsPem, "the trust bundle"));
    this.#bundle = roots;
    for (const entry of this.#entries.values()) this.#replaceRoots(entry, roots);
  }

  /** Calls `listener` after each change of an identity's state; the returned function ends that. */
  onChange(listener: (id: SpiffeId) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #create(id: SpiffeId): Entry {
    if (this.#stopped) throw identityError("IDENTITY_STOPPED", "the certificate manager stops");
    if (this.#entries.size >= MOST_IDENTITIES) {
      throw identityError("IDENTITY_TOO_MANY", `this node holds ${MOST_IDENTITIES} identities already, not also ${id}`);
    }
    const entry: Entry = {
      id,
      backoff: new Backoff(RETRY, this.#options.random),
      abort: new AbortController(),
      state: { kind: "pending", failure: undefined },
      holds: 0,
      lastAttemptMs: -Infinity,
      cancelAttempt: () => {},
      cancelEnd: () => {},
      cancelLinger: () => {},
    };
    this.#entries.set(id, entry);
    return entry;
  }

  #release(entry: Entry): void {
    entry.holds--;
    if (entry.holds > 0 || this.#entries.get(entry.id) !== entry) return;
    const { clock, lingerMs = LINGER_MS } = this.#options;
    entry.cancelLinger = clock.after(lingerMs, () => this.forget(entry.id));
  }

  #remove(id: SpiffeId): void {
    const entry = this.#entries.get(id);
    if (entry === undefined) return;
    entry.cancelAttempt();
    entry.cancelEnd();
    entry.cancelLinger();
    entry.abort.abort(identityError("IDENTITY_STOPPED", `${id} is not needed any more`));
    this.#queue.remove(id);
    this.#entries.delete(id);
    this.#changed(id);
  }

  #attemptSoon(entry: Entry, priority: FetchPriority): void {
    const waitMs = entry.lastAttemptMs + SOONEST_RETRY_MS - this.#options.clock.monotonic();
    this.#attemptAfter(entry, waitMs, priority);
  }

  #attemptAfter(entry: Entry, delayMs: number, priority: FetchPriority): void {
    entry.cancelAttempt();
    const { clock } = this.#options;
    const enqueue = (): void => {
      const run = (): Promise<void> => this.#attempt(entry);
      this.#queue.add({ key: entry.id, priority, dueMs: clock.monotonic(), run });
    };
    if (delayMs <= 0) {
      entry.cancelAttempt = () => {};
      enqueue();
    } else entry.cancelAttempt = clock.after(delayMs, enqueue);
  }

  async #attempt(entry: Entry): Promise<void> {
    const { issuer, clock } = this.#options;
    entry.lastAttemptMs = clock.monotonic();
    try {
      const keyPair = await createKeyPair();
      const answer = await issuer.issue(await createCsr(keyPair, entry.id), entry.id, entry.abort.signal);
      if (this.#entries.get(entry.id) !== entry) return;
      this.#succeeded(entry, acceptAnswer(answer, { id: entry.id, keyPair, nowMs: clock.now() }));
    } catch (error) {
      if (this.#entries.get(entry.id) === entry) this.#failed(entry, error);
    }
  }

  #succeeded(entry: Entry, accepted: AcceptedIdentity): void {
    const { clock, random, log } = this.#options;
    const { notBeforeMs } = accepted;
    // One replica of the authority may know fewer roots than were published: what was published counts, once it is known.
    const rootsPem = this.#bundle ?? accepted.identity.rootsPem;
    const identity = { ...accepted.identity, rootsPem };
    entry.backoff.reset();
    this.#cells.bind("veil_identity_fetches_total", { result: "ok" }).value++;
    log.info({ identity: entry.id, notAfterMs: identity.notAfterMs }, "got a certificate");
    this.#setState(entry, { kind: "ready", identity, notBeforeMs, failure: undefined });
    const leftMs = identity.notAfterMs - clock.now();
    // Drawn once per certificate, to the early side: half of what is left is the latest moment.
    this.#attemptAfter(entry, leftMs * (0.5 - 0.05 * random.unit()), "background");
    this.#armEnd(entry);
    for (const other of this.#entries.values()) this.#replaceRoots(other, rootsPem);
  }

  #failed(entry: Entry, error: unknown): void {
    const { clock, log } = this.#options;
    const failure =
      error instanceof CodedError
        ? error
        : identityError("IDENTITY_AUTHORITY_UNREACHABLE", `no certificate for ${entry.id}`, { cause: error });
    this.#cells.bind("veil_identity_fetches_total", { result: failure.code }).value++;
    const waitMs = entry.backoff.next();
    const ready = entry.state.kind === "ready";
    log.warn({ identity: entry.id, err: failure, waitMs, ready }, "could not get a certificate");
    this.#setState(entry, { ...entry.state, failure });
    const leftMs = entry.state.kind === "ready" ? entry.state.identity.notAfterMs - clock.now() : waitMs;
    this.#attemptAfter(entry, Math.max(SOONEST_RETRY_MS, Math.min(waitMs, leftMs)), ready ? "background" : "warmup");
  }

  #armEnd(entry: Entry): void {
    entry.cancelEnd();
    if (entry.state.kind !== "ready") return;
    const { clock } = this.#options;
    entry.cancelEnd = clock.after(entry.state.identity.notAfterMs - clock.now(), () => {
      if (entry.state.kind !== "ready") return;
      if (clock.now() < entry.state.identity.notAfterMs) return this.#armEnd(entry); // long lives need several timers
      const cause = entry.state.failure;
      const failure = identityError("IDENTITY_EXPIRED", `the certificate of ${entry.id} has ended`, { cause });
      this.#setState(entry, { kind: "pending", failure });
    });
  }

  #replaceRoots(entry: Entry, rootsPem: string): void {
    if (entry.state.kind !== "ready" || entry.state.identity.rootsPem === rootsPem) return;
    const identity = { ...entry.state.identity, rootsPem };
    entry.state = { ...entry.state, identity };
    for (const listener of this.#listeners) listener(entry.id);
    // Its own root is no longer trusted: peers refuse it from now on, so it needs another one at once.
    if (!verifiesTo(identity, rootsPem, this.#options.clock.now())) this.#attemptSoon(entry, "warmup");
  }

  #setState(entry: Entry, state: CertificateState): void {
    entry.state = state;
    this.#changed(entry.id);
  }

  #changed(id: SpiffeId): void {
    this.#measure();
    for (const listener of this.#listeners) listener(id);
  }

  #measure(): void {
    const counts = { ready: 0, pending: 0, failed: 0 };
    let earliestMs = Number.POSITIVE_INFINITY;
    for (const { state } of this.#entries.values()) {
      if (state.kind === "ready") earliestMs = Math.min(earliestMs, state.identity.notAfterMs);
      counts[state.kind === "ready" ? "ready" : state.failure === undefined ? "pending" : "failed"]++;
    }
    for (const [state, count] of Object.entries(counts)) {
      this.#cells.bind("veil_identity_certificates", { state }).value = count;
    }
    const seconds = Number.isFinite(earliestMs) ? Math.floor(earliestMs / 1000) : 0;
    this.#cells.bind("veil_identity_earliest_end_seconds", {}).value = seconds;
  }
}
