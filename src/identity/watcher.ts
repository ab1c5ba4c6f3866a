import { create } from "@bufbuild/protobuf";
import { createClient, type Client, type Transport } from "@connectrpc/connect";
import { Backoff } from "#base/backoff";
import { sleep, type Clock } from "#base/clock";
import { CodedError } from "#base/errors";
import type { Log } from "#base/log";
import type { Random } from "#base/random";
import type { Service } from "#base/service";
import type { SpiffeId } from "#model/spiffe-id";
import type { TlsIdentity } from "#model/tls-identity";
import { WatchRequestSchema, WorkloadCertificates, type CertificateUpdate, type WatchRequest } from "#proto";
import { acceptUpdate } from "./accept.ts";
import { identityError } from "./errors.ts";

/** What a certificate watcher is made of. */
export interface CertificateWatcherOptions {
  /** To the agent's Unix socket. */
  readonly transport: Transport;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
}

interface Known {
  identity: TlsIdentity | undefined;
  failure: CodedError | undefined;
}

const RECONNECT = { initialMs: 100, maxMs: 5000 };

/**
 * The proxy's side of `WorkloadCertificates.Watch`: the certificates of the identities that it wants, in memory. Survives the agent:
 * reconnects, and meanwhile keeps what it has to its end. What comes is judged again here, and a bad update leaves the one before.
 */
export class CertificateWatcher implements Service {
  readonly name = "certificate watcher";
  readonly #options: CertificateWatcherOptions;
  readonly #client: Client<typeof WorkloadCertificates>;
  readonly #stop = new AbortController();
  readonly #known = new Map<SpiffeId, Known>();
  readonly #listeners = new Set<(id: SpiffeId) => void>();
  /** Identities that are waited for though nobody wants them otherwise, with the number of waiters. */
  readonly #awaited = new Map<string, { readonly id: SpiffeId; waiters: number }>();
  #wanted: ReadonlyMap<string, SpiffeId> = new Map();
  #wantedChanged = Promise.withResolvers<void>();
  #connected = false;
  #running: Promise<void> | undefined;

  constructor(options: CertificateWatcherOptions) {
    this.#options = options;
    this.#client = createClient(WorkloadCertificates, options.transport);
  }

  /** True while the agent's stream is open and has been answered. */
  get connected(): boolean {
    return this.#connected;
  }

  async start(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    this.#running = this.#run();
  }

  async drain(): Promise<void> {
    this.#stop.abort(identityError("IDENTITY_STOPPED", "the certificate watcher stops"));
    this.#wantedChanged.resolve();
    await this.#running;
  }

  /** Says which identities are needed from now on, all of them. Keys of the others are dropped from memory. */
  want(ids: Iterable<SpiffeId>): void {
    this.#wanted = new Map([...ids].map((id) => [id, id]));
    this.#wantedSetChanged();
  }

  /** The certificate of `id`, when there is one that is valid now. */
  get(id: SpiffeId): TlsIdentity | undefined {
    const identity = this.#known.get(id)?.identity;
    return identity !== undefined && this.#options.clock.now() < identity.notAfterMs ? identity : undefined;
  }

  /** Why there is no (newer) certificate of `id`: the last failure that the agent told, or that its update was. */
  failure(id: SpiffeId): CodedError | undefined {
    return this.#known.get(id)?.failure;
  }

  /**
   * The certificate of `id`, waited for if need be; it is asked for even when `want` did not name it. When `signal` aborts first,
   * rejects with `IDENTITY_NOT_READY`, whose cause is the last failure.
   */
  async wait(id: SpiffeId, signal: AbortSignal): Promise<TlsIdentity> {
    const done = Promise.withResolvers<void>();
    const onAbort = (): void => done.resolve();
    const either = AbortSignal.any([signal, this.#stop.signal]);
    either.addEventListener("abort", onAbort, { once: true });
    const unlisten = this.onChange((changed) => {
      if (changed === id && this.get(id) !== undefined) done.resolve();
    });
    using _ = this.#await(id);
    try {
      if (this.get(id) === undefined && !either.aborted) await done.promise;
      const identity = this.get(id);
      if (identity !== undefined) return identity;
      const cause = this.failure(id) ?? either.reason;
      throw identityError("IDENTITY_NOT_READY", `there is no certificate for ${id} in time`, { cause });
    } finally {
      unlisten();
      either.removeEventListener("abort", onAbort);
    }
  }

  /** Calls `listener` after each change (new certificate, new roots, failure); the returned function ends that. */
  onChange(listener: (id: SpiffeId) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #await(id: SpiffeId): Disposable {
    const awaited = this.#awaited.get(id) ?? { id, waiters: 0 };
    awaited.waiters++;
    this.#awaited.set(id, awaited);
    if (!this.#wanted.has(id)) this.#wantedSetChanged();
    return {
      [Symbol.dispose]: () => {
        awaited.waiters--;
        if (awaited.waiters > 0) return;
        this.#awaited.delete(id);
        if (!this.#wanted.has(id)) this.#wantedSetChanged();
      },
    };
  }

  #isWanted(id: SpiffeId): boolean {
    return this.#wanted.has(id) || this.#awaited.has(id);
  }

  #wantedSetChanged(): void {
    for (const id of this.#known.keys()) if (!this.#isWanted(id)) this.#known.delete(id);
    this.#wantedChanged.resolve();
  }

  async #run(): Promise<void> {
    const { clock, random, log } = this.#options;
    const { signal } = this.#stop;
    const backoff = new Backoff(RECONNECT, random);
    while (!signal.aborted) {
      try {
        await this.#stream(backoff);
      } catch (error) {
        if (!signal.aborted) log.warn({ err: error }, "the stream of certificates from the agent broke");
      }
      this.#connected = false;
      await sleep(clock, backoff.next(), signal).catch(() => {}); // the loop's condition sees the abort
    }
  }

  async #stream(backoff: Backoff): Promise<void> {
    const ended = new AbortController();
    const signal = AbortSignal.any([this.#stop.signal, ended.signal]);
    try {
      for await (const update of this.#client.watch(this.#requests(signal), { signal })) {
        this.#connected = true;
        backoff.reset();
        this.#apply(update);
      }
    } finally {
      ended.abort();
      this.#wantedChanged.resolve(); // lets the requests of this stream end
    }
  }

  /** The wanted set at once, and again after each change; changes in between are merged. */
  async *#requests(signal: AbortSignal): AsyncGenerator<WatchRequest> {
    while (!signal.aborted) {
      const changed = Promise.withResolvers<void>();
      this.#wantedChanged = changed;
      yield create(WatchRequestSchema, { identities: [...new Set([...this.#wanted.keys(), ...this.#awaited.keys()])] });
      await changed.promise;
    }
  }

  #apply({ identity: text, state }: CertificateUpdate): void {
    const id = this.#wanted.get(text) ?? this.#awaited.get(text)?.id;
    if (id === undefined) return; // no longer wanted: its key is not kept
    const known = this.#known.get(id) ?? { identity: undefined, failure: undefined };
    this.#known.set(id, known);
    if (state.case === "certificate") this.#take(id, known, state.value);
    if (state.case === "failure") {
      const { code, message } = state.value;
      known.failure = new CodedError(code, message, { details: { identity: id } });
    }
    for (const listener of this.#listeners) listener(id);
  }

  #take(id: SpiffeId, known: Known, update: { chainPem: string; keyPem: string; rootsPem: string }): void {
    try {
      known.identity = acceptUpdate(update, { id, nowMs: this.#options.clock.now() }).identity;
      known.failure = undefined;
    } catch (error) {
      this.#options.log.error({ err: error, identity: id }, "refused a certificate from the agent");
      known.failure = error instanceof CodedError ? error : undefined;
    }
  }
}
