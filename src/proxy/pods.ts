import { closeSync, openSync } from "node:fs";
import { deadline, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import { formatSpiffeId, type SpiffeId } from "#model/spiffe-id";
import type { TlsIdentity } from "#model/tls-identity";
import type { ProxyConfig } from "./config.ts";
import { proxyError } from "./errors.ts";
import type { LocalPod } from "./route.ts";
import type { ZdsRequest } from "./zds-messages.ts";

/** What this needs of the certificate watcher. */
export interface Certificates {
  /** Names all identities that are wanted from now on. */
  want(ids: readonly SpiffeId[]): void;
  get(id: SpiffeId): TlsIdentity | undefined;
  /** Resolves when it is there; rejects with the signal's reason. */
  wait(id: SpiffeId, signal: AbortSignal): Promise<TlsIdentity>;
}

/** What this needs of the data threads. */
export interface PodThreads {
  addPod(pod: LocalPod, netns: { readonly fd: number; readonly old: boolean }): Promise<void>;
  dropPod(podUid: string, drainMs: number): Promise<void>;
  certificate(identity: TlsIdentity): Promise<void>;
}

/** What the pods of a node are made of. */
export interface PodsParts {
  readonly config: ProxyConfig;
  readonly threads: PodThreads;
  readonly certificates: Certificates;
  readonly clock: Clock;
  readonly log: Log;
  /** Whether all addresses are known. */
  readonly synced: () => boolean;
  /** Whether another proxy listens in a namespace: the one that this one is to replace. */
  readonly isServedByOther: (netnsFd: number) => boolean;
  /** How long the connections of a pod that is given up may go on. */
  readonly drainMs: number;
  /** The proxy's own identity, when it has one. */
  readonly self?: SpiffeId | undefined;
}

/** How long an `add` waits for the pod's certificate before it is answered with an error. The agent gives up after 5 s. */
const CERTIFICATE_WAIT_MS = 4_000;
/** How long all the `add`s of one snapshot together wait for certificates: some agents hand the next pod over after the answer. */
const SNAPSHOT_WAIT_MS = 2_000;
/** A pod whose listeners could not be opened is tried again this often. */
const RETRY_MS = 5_000;
/** While a pod is not listened for, it is looked whether its time has come this often. */
const LOOK_MS = 100;
/** Pods that one proxy serves. */
const MAX_PODS = 1_024;

interface Pod {
  readonly pod: LocalPod;
  /** A descriptor of our own of its namespace, to try again with; closed with the pod. */
  readonly netnsFd: number;
  readonly old: boolean;
  isListening: boolean;
  /** When its listeners are tried to be opened again. */
  tryAtMs: number;
}

/**
 * The pods of this node that the agent has handed over. A pod is served when its three ports listen and its certificate
 * is there; until then it is pending, and the node is not ready.
 */
export class Pods {
  readonly #parts: PodsParts;
  readonly #pods = new Map<string, Pod>();
  readonly #inSnapshot = new Set<string>();
  #hasSnapshot = false;
  /** The snapshot held something that a newer agent may have meant for a pod. */
  #isSnapshotPartial = false;
  #snapshotEndsMs = 0;
  #cancelLook: (() => void) | undefined;
  /** Counted for metrics. */
  started = 0;
  stopped = 0;

  constructor(parts: PodsParts) {
    this.#parts = parts;
  }

  /** Pods that are handed over. */
  get count(): number {
    return this.#pods.size;
  }

  /** What keeps the node from being ready: pods by name, and the snapshot itself. */
  pending(): readonly string[] {
    const pods = [...this.#pods.values()]
      .filter((pod) => !this.#isServed(pod))
      .map(({ pod }) => `${pod.namespace}/${pod.name}`);
    return this.#hasSnapshot ? pods : ["the agent's list of pods", ...pods];
  }

  /** The pods, for dumps. */
  list(): readonly { readonly pod: LocalPod; readonly served: boolean }[] {
    return [...this.#pods.values()].map((pod) => ({ pod: pod.pod, served: this.#isServed(pod) }));
  }

  /** Finds a pod by `namespace/name`. */
  find(name: string): LocalPod | undefined {
    return [...this.#pods.values()].find(({ pod }) => `${pod.namespace}/${pod.name}` === name)?.pod;
  }

  /** Begins to want the certificates that are needed before any pod is there. */
  start(): void {
    this.#want();
  }

  /** A connection to an agent begins: its snapshot follows. */
  beginSnapshot(): void {
    this.#hasSnapshot = false;
    this.#isSnapshotPartial = false;
    this.#inSnapshot.clear();
    this.#snapshotEndsMs = this.#parts.clock.monotonic() + SNAPSHOT_WAIT_MS;
  }

  /** The connection is gone: pods stay served, the node is not ready until the next snapshot. */
  loseAgent(): void {
    this.#hasSnapshot = false;
  }

  /** Stops trying. */
  stop(): void {
    this.#cancelLook?.();
  }

  /**
   * Does what the agent asks. Owns the descriptor. Rejects with why not: a wrong order is `PROXY_ZDS_MESSAGE`, what only a newer version
   * knows `PROXY_ZDS_UNKNOWN`.
   */
  async handle(request: ZdsRequest, netnsFd: number | undefined): Promise<void> {
    if (request.kind === "unknown") {
      if (netnsFd !== undefined) closeSync(netnsFd);
      this.#isSnapshotPartial ||= !this.#hasSnapshot;
      throw proxyError("PROXY_ZDS_UNKNOWN", `this version knows no request ${request.field}`);
    }
    if (request.kind === "add") {
      await this.#add(request, netnsFd ?? -1);
      return;
    }
    if (request.kind === "del") {
      this.#drop(request.uid);
      return;
    }
    if (this.#hasSnapshot) {
      throw proxyError("PROXY_ZDS_MESSAGE", `"${request.kind}" came after the end of the snapshot`);
    }
    if (request.kind === "keep") this.#inSnapshot.add(request.uid);
    else this.#endSnapshot();
  }

  async #add(request: Extract<ZdsRequest, { kind: "add" }>, netnsFd: number): Promise<void> {
    const old = !this.#hasSnapshot;
    if (old) this.#inSnapshot.add(request.uid);
    const isListening = this.#pods.get(request.uid)?.isListening ?? false;
    const entry: Pod = { pod: this.#podOf(request, netnsFd), netnsFd, old, isListening, tryAtMs: 0 };
    const { podUid, namespace, name } = entry.pod;
    this.#forget(podUid); // the descriptor of an earlier add with it
    this.#pods.set(podUid, entry);
    this.#want();
    if (this.#isLeftToOther(entry)) {
      this.#parts.log.info(
        { pod: `${namespace}/${name}`, uid: podUid },
        "pod left to the other proxy until it can be served",
      );
      this.#lookLater();
      return;
    }
    await this.#listen(entry);
    if (this.#pods.get(podUid) === entry) await this.#certify(entry);
    this.#parts.log.info({ pod: `${namespace}/${name}`, uid: podUid }, "pod served");
  }

  /** Closes the descriptor of a pod that cannot be served. */
  #podOf({ uid, name, namespace, serviceAccount }: Extract<ZdsRequest, { kind: "add" }>, netnsFd: number): LocalPod {
    const { trustDomain, clusterId } = this.#parts.config;
    try {
      if (this.#pods.size >= MAX_PODS && !this.#pods.has(uid)) {
        throw proxyError("PROXY_LIMIT", `${MAX_PODS} pods are served already`);
      }
      const identity = formatSpiffeId({ trustDomain, namespace, serviceAccount });
      const workloadUid = `${clusterId}//Pod/${namespace}/${name}`;
      return { podUid: uid, name, namespace, serviceAccount, identity, workloadUid };
    } catch (error) {
      closeSync(netnsFd);
      throw error;
    }
  }

  /**
   * The kernel deals new connections to all that listen: while another proxy serves the pod, this one listens only once it can
   * carry what it gets. Alone, it listens at once: connections are held rather than refused.
   */
  #isLeftToOther({ pod, netnsFd, isListening }: Pod): boolean {
    const { certificates, synced, isServedByOther } = this.#parts;
    if (isListening || (synced() && certificates.get(pod.identity) !== undefined)) return false;
    return isServedByOther(netnsFd);
  }

  /** Opens the pod's ports. Afterwards, or after a failure, the pod stays in the list: it is tried again. */
  async #listen(entry: Pod): Promise<void> {
    const { threads, certificates, clock } = this.#parts;
    entry.tryAtMs = clock.monotonic() + RETRY_MS;
    const listening = threads.addPod(entry.pod, { fd: reopen(entry.netnsFd), old: entry.old });
    const identity = certificates.get(entry.pod.identity); // follows at once: the thread looks for messages only now and then
    const certified = identity === undefined ? undefined : threads.certificate(identity);
    try {
      await Promise.all([listening, certified]);
    } catch (error) {
      entry.isListening = false;
      this.#lookLater();
      throw error;
    }
    if (!entry.isListening) this.started++;
    entry.isListening = true;
  }

  async #certify({ pod, old }: Pod): Promise<void> {
    const { certificates, clock, threads } = this.#parts;
    if (certificates.get(pod.identity) !== undefined) return;
    const waitMs = old ? Math.max(0, this.#snapshotEndsMs - clock.monotonic()) : CERTIFICATE_WAIT_MS;
    const reason = proxyError("PROXY_NO_CERTIFICATE", `no certificate for ${pod.identity} in ${Math.round(waitMs)} ms`);
    const limit = deadline(clock, waitMs, { reason });
    try {
      await threads.certificate(await certificates.wait(pod.identity, limit.signal));
    } finally {
      limit.clear();
    }
  }

  #endSnapshot(): void {
    this.#hasSnapshot = true;
    if (this.#isSnapshotPartial) return; // pods that it did not name may have been in what could not be read
    for (const uid of this.#pods.keys()) if (!this.#inSnapshot.has(uid)) this.#drop(uid);
  }

  #drop(uid: string): void {
    const entry = this.#pods.get(uid);
    if (entry === undefined) return;
    const { threads, drainMs, log } = this.#parts;
    const { namespace, name } = entry.pod;
    this.#forget(uid);
    this.#want();
    this.stopped++;
    threads.dropPod(uid, drainMs).then(
      () => {
        log.info({ pod: `${namespace}/${name}`, uid }, "pod given up");
      },
      (error: unknown) => {
        log.warn({ pod: `${namespace}/${name}`, uid, error: messageOf(error) }, "pod not given up cleanly");
      },
    );
  }

  #forget(uid: string): void {
    const entry = this.#pods.get(uid);
    this.#pods.delete(uid);
    if (entry !== undefined) closeSync(entry.netnsFd);
  }

  #want(): void {
    const { certificates, self } = this.#parts;
    const wanted = new Set([...this.#pods.values()].map(({ pod }) => pod.identity));
    certificates.want([...(self === undefined ? wanted : wanted.add(self))]);
  }

  #isServed({ pod, isListening }: Pod): boolean {
    return isListening && this.#parts.certificates.get(pod.identity) !== undefined;
  }

  /** Opens the ports of pods whose time has come, as long as there are some without. */
  #lookLater(): void {
    const { clock, log } = this.#parts;
    this.#cancelLook ??= clock.after(LOOK_MS, () => {
      this.#cancelLook = undefined;
      for (const entry of this.#pods.values()) {
        if (entry.isListening) continue;
        this.#lookLater();
        if (entry.tryAtMs > clock.monotonic() || this.#isLeftToOther(entry)) continue;
        this.#listen(entry).then(
          () => {
            log.info({ pod: `${entry.pod.namespace}/${entry.pod.name}` }, "pod served");
          },
          (error: unknown) => {
            log.warn(
              { pod: `${entry.pod.namespace}/${entry.pod.name}`, error: messageOf(error) },
              "pod still not served",
            );
          },
        );
      }
    });
  }
}

/** A second descriptor of the same namespace. */
function reopen(fd: number): number {
  return openSync(`/proc/self/fd/${fd}`, "r");
}
