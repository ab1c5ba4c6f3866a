import { createClient } from "@connectrpc/connect";
import { Backoff } from "#base/backoff";
import { sleep } from "#base/clock";
import { messageOf, type CodedError } from "#base/errors";
import { CellSet } from "#base/metrics";
import type { Service } from "#base/service";
import { AggregatedDiscoveryService } from "#proto";
import type { CachedResource } from "./cache.ts";
import type { XdsClientOptions } from "./client-options.ts";
import { ClientStream } from "./client-stream.ts";
import { ClientType } from "./client-type.ts";
import { fail } from "./errors.ts";
import { Lookups } from "./lookups.ts";
import { xdsMetrics } from "./metrics.ts";
import { Slots } from "./slots.ts";

/**
 * A delta ADS client. It keeps one stream open for all its types, for ever: after a break it connects again and says
 * which versions it holds, so that only differences come. It keeps names and versions, not the resources themselves.
 */
export class XdsClient implements Service {
  readonly name: string;
  readonly #options: XdsClientOptions;
  readonly #metrics: CellSet;
  readonly #types: ReadonlyMap<string, ClientType>;
  readonly #lookups: Lookups;
  readonly #slots: Slots;
  readonly #stop = new AbortController();
  readonly #warm = Promise.withResolvers<void>();
  #isWarm = false;
  #connected = false;
  /** The last try found nobody. */
  #unanswered = false;
  #stream: ClientStream | undefined;
  #running: Promise<void> = Promise.resolve();

  constructor(options: XdsClientOptions) {
    this.name = options.name ?? "xds client";
    this.#options = options;
    this.#metrics = options.metrics ?? new CellSet(xdsMetrics);
    this.#types = new Map(options.types.map(({ typeUrl, mode }) => [typeUrl, new ClientType(typeUrl, mode)]));
    this.#slots = new Slots(options.pipeline ?? 1);
    this.#lookups = new Lookups({
      ask: (typeUrl, name) => this.#stream?.ask(typeUrl, name),
      release: (typeUrl, name) => this.#stream?.release(typeUrl, name),
    });
  }

  /** True while a server answers: from the first response of a stream to its end. */
  get connected(): boolean {
    return this.#connected;
  }

  /** True once the first response of every wildcard type has been taken. Stays true. */
  get warm(): boolean {
    return this.#isWarm;
  }

  /** Begins to connect and resolves at once: a server that is away is no failure. */
  start(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    this.#running = this.#run();
    return Promise.resolve();
  }

  /** Resolves when {@link XdsClient.warm} is true. Rejects when `signal` aborts first. */
  async whenWarm(signal: AbortSignal): Promise<void> {
    await untilAborted(this.#warm.promise, signal);
  }

  /**
   * Asks the server for one resource by name or alias. Resolves with it when it has been taken by `onUpdate`, or with
   * undefined when the server says that there is none. Rejects with `XDS_NO_ANSWER` when `signal` aborts first (while
   * no server is there the question waits), `XDS_REJECTED` when `onUpdate` refused it, `XDS_TOO_MANY_LOOKUPS`.
   * Questions for one name that overlap share one answer.
   */
  async find(typeUrl: string, name: string, signal: AbortSignal): Promise<CachedResource | undefined> {
    if (!this.#types.has(typeUrl)) throw fail("XDS_UNKNOWN_TYPE", `${this.name} does not follow ${typeUrl}`);
    return this.#lookups.find({ typeUrl, name }, signal);
  }

  /** Ends the stream and all questions; updates that are with their receiver may still be finished. */
  async drain(deadlineMs: number): Promise<void> {
    this.#stop.abort(new Error("draining"));
    this.#lookups.close();
    this.#stream?.close();
    await Promise.race([this.#running, sleep(this.#options.clock, deadlineMs)]);
  }

  async #run(): Promise<void> {
    const { clock, random, reconnect = { initialMs: 10, maxMs: 15_000, jitter: 0.2 } } = this.#options;
    const backoff = new Backoff(reconnect, random);
    while (!this.#stop.signal.aborted) {
      const ended = await this.#once();
      if (ended.answered) backoff.reset();
      if (ended.answered && ended.clean) continue;
      await sleep(clock, backoff.next(), this.#stop.signal).catch(() => undefined); // aborted: the loop ends
    }
  }

  /** One stream, from its opening to its end. Never rejects. */
  async #once(): Promise<{ answered: boolean; clean: boolean }> {
    const { onUpdate, node, transport } = this.#options;
    const stream = new ClientStream({
      node,
      types: this.#types,
      slots: this.#slots,
      metrics: this.#metrics,
      onUpdate,
      onResponse: (response) => this.#answered(response.typeUrl, response.outcome),
      pending: (typeUrl) => this.#lookups.names(typeUrl),
    });
    this.#stream = stream;
    let clean = false;
    let reason: string | undefined;
    try {
      const client = createClient(AggregatedDiscoveryService, transport);
      const responses = client.deltaAggregatedResources(stream.requests(), { signal: this.#stop.signal });
      for await (const response of responses) {
        this.#setConnected(true);
        await stream.take(response);
      }
      await stream.settled();
      clean = true;
    } catch (error) {
      reason = messageOf(error);
    }
    stream.close();
    this.#stream = undefined;
    const answered = this.#connected;
    this.#setConnected(false);
    this.#metrics.bind("istio_xds_connection_terminations_total", { reason: terminationReason(answered, clean) })
      .value++;
    this.#report(answered, reason);
    return { answered, clean };
  }

  /** Says once that nobody answers, not with every try. */
  #report(answered: boolean, reason: string | undefined): void {
    if (this.#stop.signal.aborted) return;
    const level = answered || !this.#unanswered ? "info" : "debug";
    this.#unanswered = !answered;
    this.#options.log[level]({ reason, answered }, "xds stream ended");
  }

  #setConnected(connected: boolean): void {
    if (connected === this.#connected) return;
    this.#connected = connected;
    this.#options.onConnection?.(connected);
  }

  #answered(typeUrl: string, outcome: Parameters<Lookups["answer"]>[1]): void {
    this.#lookups.answer(typeUrl, outcome);
    for (const { reason, name } of outcome.rejected) this.#options.log.warn({ name, reason }, "xds resource refused");
    if (this.#isWarm || [...this.#types.values()].some((type) => type.mode === "wildcard" && !type.answered)) return;
    this.#isWarm = true;
    this.#warm.resolve();
  }
}

function terminationReason(answered: boolean, clean: boolean): string {
  if (!answered) return "ConnectionError";
  return clean ? "Complete" : "Error";
}

async function untilAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted();
  const aborted = Promise.withResolvers<never>();
  const onAbort = (): void => aborted.reject(signal.reason as CodedError); // whatever the caller gave as its reason
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    return await Promise.race([promise, aborted.promise]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
