import type { Clock } from "#base/clock";
import type { CodedError } from "#base/errors";
import { Occasion } from "#base/occasion";
import type { Random } from "#base/random";
import type { TunnelHandle } from "#hbone";
import type { Netns } from "#linux";
import type { Workload } from "#model/workload";
import type { Admissions } from "./admissions.ts";
import type { ProxyConfig } from "./config.ts";
import { proxyError } from "./errors.ts";
import type { Knowledge } from "./knowledge.ts";
import type { Cause } from "./causes.ts";
import type { Pressure } from "./pressure.ts";
import type { Network, PodPool, PodSocket } from "./network.ts";
import type { Party } from "./pairs.ts";
import type { FlowLog } from "./record.ts";
import type { PeerRevocationLists } from "./peer-revocations.ts";
import type { LocalPod, SocketAddress } from "./route.ts";

/** What all connections of a data thread share. */
export interface ThreadContext {
  readonly config: ProxyConfig;
  readonly clock: Clock;
  readonly random: Random;
  readonly network: Network;
  readonly knowledge: Knowledge;
  readonly flows: FlowLog;
  readonly admissions: Admissions;
  readonly pressure: Pressure;
  /** Undefined without a file of revocation lists. */
  readonly revocations: PeerRevocationLists | undefined;
}

/** A pod, with when the agent handed it over (monotonic; -Infinity when that was before this process began). */
export type ServedPod = LocalPod & { readonly podSinceMs: number };

/** What all connections of one pod share. */
export interface PodContext extends ThreadContext {
  readonly pod: ServedPod;
  readonly netns: Netns;
  readonly pool: PodPool;
  readonly connections: Connections;
}

/** Outbound and plaintext connections that one pod may have at once; one more is refused. */
const MAX_CONNECTIONS_PER_POD = 16_384;

/**
 * The connections of one pod, from accept to end, so that a drain can wait for them, and break what is left. Tunnels in
 * the pool and in the inbound server are drained there; plain copies are broken here.
 */
export class Connections {
  readonly #copies = new Set<TunnelHandle>();
  #count = 0;
  #draining = false;
  /** What ends those that wait for something, tunnels too, each by what says that it waits no more. */
  readonly #held = new Set<() => void>();
  readonly #emptied = new Occasion();

  /** How many there are. */
  get count(): number {
    return this.#count;
  }

  /** Takes part until `leave`; says why not otherwise. */
  enter(context: Pick<ThreadContext, "pressure">, { isLastFile }: Pick<PodSocket, "isLastFile">): Cause | undefined {
    if (this.#draining) return { reason: "draining", detail: "" };
    if (this.#count >= MAX_CONNECTIONS_PER_POD) {
      return { reason: "limit_reached", detail: `PROXY_LIMIT: ${MAX_CONNECTIONS_PER_POD} connections of one pod` };
    }
    if (isLastFile)
      return { reason: "limit_reached", detail: "PROXY_NO_FILES: no descriptor is left for a connection" };
    const refusal = context.pressure.refusal();
    if (refusal === undefined) this.#count++;
    return refusal;
  }

  /** The counterpart of an `enter` that answered undefined. */
  leave(): void {
    this.#count--;
    if (this.#count === 0) this.#emptied.happen();
  }

  /** A plain copy runs; the returned function says that it has ended. */
  track(handle: TunnelHandle): () => void {
    this.#copies.add(handle);
    return () => this.#copies.delete(handle);
  }

  /**
   * A connection waits, before anything can be said of it: `end` is called when a drain has no more time, with why. The returned
   * function says that it waits no more; it answers false when it has been ended.
   */
  hold(end: (cause: Cause) => void): () => boolean {
    let isOver = false;
    const ended = (): void => {
      isOver = true;
      end({ reason: "draining", detail: DRAINED_HELD });
    };
    this.#held.add(ended);
    return () => {
      this.#held.delete(ended);
      return !isOver;
    };
  }

  /** Ends those that wait. */
  endHeld(): void {
    for (const end of this.#held) {
      this.#held.delete(end);
      end();
    }
  }

  /** Lets nobody in any more, and waits until all have left, at most `deadlineMs`; then breaks the plain copies. */
  async drain(deadlineMs: number, clock: Clock): Promise<void> {
    this.#draining = true;
    if (this.#count > 0 && deadlineMs > 0) await this.#emptied.within(clock, deadlineMs);
    const error = drained();
    for (const handle of this.#copies) handle.abort(error);
  }
}

const DRAINED_HELD = "PROXY_DRAINED: the proxy of this pod stops while the connection waits";

/** Why a connection that was still open was ended. */
function drained(): CodedError {
  return proxyError("PROXY_DRAINED", "the proxy of this pod stops");
}

/** The pod's own end of a connection. Its identity is shown only where TLS presents it. */
export function podParty(context: PodContext, address: SocketAddress, presents: boolean): Party {
  const { pod } = context;
  return { address, workload: ownWorkload(context), pod, identity: presents ? pod.identity : undefined };
}

/** The pod's own workload as the control plane describes it, when it does. */
export function ownWorkload({ knowledge, pod }: PodContext): Workload | undefined {
  return knowledge.table.findWorkload(pod.workloadUid);
}
