import { create } from "@bufbuild/protobuf";
import { Code, ConnectError, type ConnectRouter, type ServiceImpl } from "@connectrpc/connect";
import { CodedError } from "#base/errors";
import { parseSpiffeId, type SpiffeId } from "#model/spiffe-id";
import { CertificateUpdateSchema, WorkloadCertificates, type CertificateUpdate, type WatchRequest } from "#proto";
import { identityError } from "./errors.ts";
import type { CertificateManager } from "./manager.ts";

const MOST_WATCHED = 4096;
/** The longest SPIFFE IDs, as many as may be watched, and some room. */
const LARGEST_REQUEST_BYTES = 16 * 1024 * 1024;

/**
 * `WorkloadCertificates.Watch`: streams the certificates of the wanted identities to the proxy of the same node. It sends private
 * keys: serve it on a Unix socket that only root can open, and nowhere else.
 */
export function workloadCertificatesRoutes(manager: CertificateManager): (router: ConnectRouter) => void {
  return (router) => {
    const serve: ServiceImpl<typeof WorkloadCertificates>["watch"] = (requests, context) =>
      watch(manager, requests, context.signal);
    router.service(WorkloadCertificates, { watch: serve }, { readMaxBytes: LARGEST_REQUEST_BYTES });
  };
}

async function* watch(
  manager: CertificateManager,
  requests: AsyncIterable<WatchRequest>,
  signal: AbortSignal,
): AsyncGenerator<CertificateUpdate> {
  using session = new WatchSession(manager);
  const onAbort = (): void => session.end();
  signal.addEventListener("abort", onAbort, { once: true });
  void follow(session, requests);
  try {
    yield* session.updates();
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}

async function follow(session: WatchSession, requests: AsyncIterable<WatchRequest>): Promise<void> {
  try {
    for await (const { identities } of requests) session.want(identities);
    session.end();
  } catch (error) {
    session.end(error);
  }
}

/** One proxy's stream. What waits to be sent is a set of identities, so that a slow reader costs no memory. */
class WatchSession implements Disposable {
  readonly #manager: CertificateManager;
  readonly #holds = new Map<string, { readonly id: SpiffeId; readonly hold: Disposable }>();
  /** Identities that cannot be read, with the reason; answered once each. */
  readonly #refused = new Map<string, CodedError>();
  readonly #dirty = new Set<string>();
  readonly #unlisten: () => void;
  #wake = Promise.withResolvers<void>();
  #ended: { readonly error: unknown } | undefined;

  constructor(manager: CertificateManager) {
    this.#manager = manager;
    this.#unlisten = manager.onChange((id) => {
      if (this.#holds.has(id)) this.#mark(id);
    });
  }

  [Symbol.dispose](): void {
    this.#unlisten();
    for (const { hold } of this.#holds.values()) hold[Symbol.dispose]();
    this.#holds.clear();
    this.end();
  }

  /** Takes the whole new set. What cannot be read is answered with a failure; the rest goes on. */
  want(identities: readonly string[]): void {
    if (this.#ended !== undefined) return;
    if (identities.length > MOST_WATCHED) {
      throw identityError(
        "IDENTITY_TOO_MANY",
        `${identities.length} identities were asked for, at most ${MOST_WATCHED} are`,
      );
    }
    const wanted = new Set(identities);
    for (const text of wanted) this.#add(text);
    for (const [text, { hold }] of this.#holds) {
      if (wanted.has(text)) continue;
      hold[Symbol.dispose]();
      this.#holds.delete(text);
      this.#dirty.delete(text);
    }
    for (const text of this.#refused.keys()) if (!wanted.has(text)) this.#refused.delete(text);
  }

  /** Ends the stream: with an error status, or in good order. */
  end(error?: unknown): void {
    this.#ended ??= { error };
    this.#wake.resolve();
  }

  /** What is to be sent, until the stream ends. */
  async *updates(): AsyncGenerator<CertificateUpdate> {
    for (;;) {
      for (const text of this.#dirty) {
        if (this.#ended !== undefined) break;
        this.#dirty.delete(text);
        yield* this.#stateOf(text);
      }
      if (this.#ended !== undefined) {
        if (this.#ended.error !== undefined) throw toConnectError(this.#ended.error);
        return;
      }
      await this.#wake.promise;
      this.#wake = Promise.withResolvers<void>();
    }
  }

  #add(text: string): void {
    if (this.#refused.has(text) || this.#holds.has(text)) return;
    try {
      const id = parseSpiffeId(text);
      this.#holds.set(id, { id, hold: this.#manager.hold(id, "realtime") });
    } catch (error) {
      if (!(error instanceof CodedError)) throw error;
      this.#refused.set(text, error);
    }
    this.#mark(text);
  }

  #mark(text: string): void {
    this.#dirty.add(text);
    this.#wake.resolve();
  }

  *#stateOf(text: string): Generator<CertificateUpdate> {
    const refused = this.#refused.get(text);
    if (refused !== undefined) yield failureUpdate(text, refused);
    const id = this.#holds.get(text)?.id;
    const state = id === undefined ? undefined : this.#manager.state(id);
    if (state?.kind === "ready") {
      const { chainPem, keyPem, rootsPem, notAfterMs } = state.identity;
      const times = { notBeforeMs: BigInt(state.notBeforeMs), notAfterMs: BigInt(notAfterMs) };
      const value = { chainPem, keyPem, rootsPem, ...times };
      yield create(CertificateUpdateSchema, { identity: text, state: { case: "certificate", value } });
    }
    if (state?.failure !== undefined) yield failureUpdate(text, state.failure);
  }
}

function failureUpdate(identity: string, { code, message }: CodedError): CertificateUpdate {
  return create(CertificateUpdateSchema, { identity, state: { case: "failure", value: { code, message } } });
}

function toConnectError(error: unknown): ConnectError {
  if (!(error instanceof CodedError)) return ConnectError.from(error);
  return new ConnectError(`${error.code}: ${error.message}`, Code.InvalidArgument);
}
