import { create } from "@bufbuild/protobuf";
import { CodedError, messageOf } from "#base/errors";
import type { CellSet } from "#base/metrics";
import { DeltaDiscoveryRequestSchema, type DeltaDiscoveryRequest, type DeltaDiscoveryResponse } from "#proto";
import type { CachedResource } from "./cache.ts";
import type { ClientType } from "./client-type.ts";
import type { XdsClientOptions } from "./client-options.ts";
import type { Outcome } from "./lookups.ts";
import { readResource } from "./resource.ts";
import type { Slots } from "./slots.ts";

/** What a stream needs of its client. */
export interface ClientStreamOptions extends Pick<XdsClientOptions, "node" | "onUpdate"> {
  readonly types: ReadonlyMap<string, ClientType>;
  /** How many updates may be with the receiver at once; shared by a client's streams, one after the other. */
  readonly slots: Slots;
  readonly metrics: CellSet;
  readonly onResponse: (response: { typeUrl: string; outcome: Outcome }) => void;
  /** Names that are asked for at present. */
  readonly pending: (typeUrl: string) => readonly string[];
}

/**
 * The client's side of one stream. Requests are queued here until the transport takes them; the queue is bounded by
 * what may be open: one answer per response in work, and the questions of {@link Lookups}.
 */
export class ClientStream {
  readonly #options: ClientStreamOptions;
  readonly #queue: DeltaDiscoveryRequest[] = [];
  #bell = Promise.withResolvers<void>();
  readonly #closed = new AbortController();
  /** Responses that their receiver has not finished. */
  readonly #inWork = new Map<DeltaDiscoveryResponse, ClientType>();
  /** Settles when the responses taken so far are answered. Never rejects. */
  #tail: Promise<void> = Promise.resolve();

  constructor(options: ClientStreamOptions) {
    this.#options = options;
    for (const type of options.types.values()) this.#begin(type);
  }

  /** The requests, as they come; ends when the stream is closed. */
  async *requests(): AsyncIterable<DeltaDiscoveryRequest> {
    while (!this.#closed.signal.aborted) {
      for (let request = this.#queue.shift(); request; request = this.#queue.shift()) yield request;
      await this.#bell.promise;
      this.#bell = Promise.withResolvers();
    }
  }

  ask(typeUrl: string, name: string): void {
    this.#send({ typeUrl, resourceNamesSubscribe: [name] });
  }

  release(typeUrl: string, name: string): void {
    this.#send({ typeUrl, resourceNamesUnsubscribe: [name] });
  }

  /** Takes a response: hands it over when there is room, and resolves then. It is answered when its receiver is done. */
  async take(response: DeltaDiscoveryResponse): Promise<void> {
    const { types, metrics, slots } = this.#options;
    metrics.bind("istio_xds_message_total", { url: response.typeUrl }).value++;
    const type = types.get(response.typeUrl);
    if (type === undefined) {
      this.#send({ typeUrl: response.typeUrl, responseNonce: response.nonce }); // not ours: confirmed, and ignored
      return;
    }
    if (!(await slots.take(this.#closed.signal))) return;
    this.#inWork.set(response, type);
    const applied = this.#apply(type, response).finally(() => slots.release());
    this.#tail = this.#tail.then(async () => this.#finish(type, response, await applied));
  }

  /** Resolves when every response that was taken is answered, or when the stream is closed. */
  async settled(): Promise<void> {
    const closed = Promise.withResolvers<void>();
    this.#closed.signal.addEventListener("abort", () => closed.resolve(), { once: true });
    await Promise.race([this.#tail, closed.promise]);
  }

  /** Ends the requests. What is still with its receiver is unsure from now on: the next stream asks for it again. */
  close(): void {
    if (this.#closed.signal.aborted) return;
    this.#closed.abort();
    this.#bell.resolve();
    for (const [{ resources, removedResources }, type] of this.#inWork) {
      for (const { name } of resources) type.unsure(name);
      for (const name of removedResources) if (type.holds(name)) type.unsure(name);
    }
    this.#inWork.clear();
  }

  #begin(type: ClientType): void {
    const { node, pending } = this.#options;
    const wildcard = type.mode === "wildcard";
    const versions = type.versions;
    this.#send({
      typeUrl: type.typeUrl,
      node: { id: node.id, metadata: { ...node.metadata } },
      resourceNamesSubscribe: wildcard ? [] : ["*", ...Object.keys(versions)],
      resourceNamesUnsubscribe: wildcard ? [] : ["*"],
      initialResourceVersions: { ...versions },
    });
    for (const name of pending(type.typeUrl)) this.ask(type.typeUrl, name);
  }

  /** Hands a response to the receiver. Never rejects: what the receiver throws refuses everything. */
  async #apply(type: ClientType, response: DeltaDiscoveryResponse): Promise<Outcome> {
    const accepted: CachedResource[] = [];
    const rejected: { name: string; aliases: readonly string[]; reason: string }[] = [];
    for (const wire of response.resources) {
      const resource = readResource(type.typeUrl, wire);
      if (resource instanceof CodedError) rejected.push({ name: wire.name, aliases: [], reason: resource.message });
      else accepted.push(resource);
    }
    const bytes = accepted.reduce((sum, { value }) => sum + value.length, 0);
    this.#options.metrics.bind("istio_xds_message_bytes_total", { url: type.typeUrl }).value += bytes;
    const removes = response.removedResources.filter((name) => type.holds(name));
    const refused = await this.#handOver({ typeUrl: type.typeUrl, upserts: accepted, removes });
    const taken: CachedResource[] = [];
    for (const resource of accepted) {
      const reason = refused.get(resource.name);
      if (reason === undefined) taken.push(resource);
      else rejected.push({ name: resource.name, aliases: resource.aliases, reason });
    }
    return { accepted: taken, rejected, removed: response.removedResources };
  }

  async #handOver(update: Parameters<XdsClientOptions["onUpdate"]>[0]): Promise<ReadonlyMap<string, string>> {
    try {
      const rejections = (await this.#options.onUpdate(update)) ?? [];
      return new Map(rejections.map(({ name, reason }) => [name, reason]));
    } catch (error) {
      const reason = messageOf(error);
      return new Map(update.upserts.map(({ name }) => [name, reason]));
    }
  }

  /** Remembers what is held now, answers the server, and then whoever asked. */
  #finish(type: ClientType, response: DeltaDiscoveryResponse, outcome: Outcome): void {
    if (!this.#inWork.delete(response)) return; // the stream has been closed meanwhile
    for (const { name, version } of outcome.accepted) type.accepted(name, version);
    for (const { name } of outcome.rejected) if (type.holds(name)) type.unsure(name);
    for (const name of outcome.removed) type.removed(name);
    type.answered = true;
    const message = outcome.rejected.map(({ name, reason }) => `${name}: ${reason}`).join("; ");
    this.#send({
      typeUrl: type.typeUrl,
      responseNonce: response.nonce,
      ...(message !== "" && { errorDetail: { code: 0, message } }),
    });
    this.#options.metrics.bind("veil_xds_rejected_resources_total", { url: type.typeUrl }).value +=
      outcome.rejected.length;
    this.#options.onResponse({ typeUrl: type.typeUrl, outcome });
  }

  #send(request: Parameters<typeof create<typeof DeltaDiscoveryRequestSchema>>[1]): void {
    if (this.#closed.signal.aborted) return;
    this.#queue.push(create(DeltaDiscoveryRequestSchema, request));
    this.#bell.resolve();
  }
}
