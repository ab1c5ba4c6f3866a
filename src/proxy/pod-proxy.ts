import type { CodedError } from "#base/errors";
import { findCodedError, messageOf } from "#base/errors";
import type { PoolPeer } from "#hbone";
import { parseIp, type IpAddress } from "#base/ip";
import type { Netns, TcpListener } from "#linux";
import { ANY_ADDRESS } from "./any-address.ts";
import { INBOUND_PORT, OUTBOUND_PORT, PACKET_MARK, PLAINTEXT_PORT } from "./config.ts";
import { proxyError } from "./errors.ts";
import { createPodDns } from "./dns.ts";
import { carryPlaintext, carryTunnel, recordRejected } from "./inbound.ts";
import type { PodNames, PodPool, PodServer, PodSocket } from "./network.ts";
import { carryOutbound } from "./outbound.ts";
import { Connections, type PodContext, type ServedPod, type ThreadContext } from "./pod-context.ts";

/**
 * The proxy of one pod: three listeners in its namespace and what runs through them. `start` once, `drain` once.
 * It owns the namespace's descriptor and closes it at the end.
 */
export class PodProxy {
  readonly pod: ServedPod;
  readonly #netns: Netns;
  readonly #context: PodContext;
  readonly #pool: PodPool;
  readonly #connections = new Connections();
  readonly #listeners: TcpListener[] = [];
  #server: PodServer | undefined;
  #dns: PodNames | undefined;

  constructor(thread: ThreadContext, pod: ServedPod, netns: Netns) {
    this.pod = pod;
    this.#netns = netns;
    this.#pool = thread.network.createPool({
      clock: thread.clock,
      random: thread.random,
      certificate: (id) => thread.knowledge.certificate(id),
      revocations: thread.revocations,
      limits: thread.config.poolLimits,
    });
    this.#context = { ...thread, pod, netns, pool: this.#pool, connections: this.#connections };
  }

  /** Two are of the same namespace when this is equal. */
  get netnsKey(): string {
    return this.#netns.key;
  }

  /** Outbound and plaintext connections that are open or held. */
  get connections(): number {
    return this.#connections.count;
  }

  /** Its sessions to other proxies, by peer. */
  peers(): Iterable<PoolPeer> {
    return this.#pool.peers();
  }

  /** Sessions that other proxies have opened. */
  get inboundSessions(): number {
    return this.#server?.sessions ?? 0;
  }

  /** Listens on the three ports; on that of tunnels alone in the proxy's own pod. Throws `PROXY_LISTEN`; then nothing listens, and the descriptor is closed. */
  start(): void {
    const { network, knowledge, revocations, clock, flows } = this.#context;
    try {
      // The proxy's own pod may be in the node's namespace, whose settings are not ours to make.
      const refused = this.pod.serves === undefined ? network.prepareNetns(this.#netns) : [];
      for (const setting of refused) flows.cells.bind("veil_proxy_settings_refused_total", { setting }).value++;
      this.#server = network.createServer({
        netns: this.#netns,
        ip: ANY_ADDRESS,
        port: INBOUND_PORT,
        mark: PACKET_MARK,
        reusePort: true,
        clock,
        certificate: () => knowledge.certificate(this.pod.identity),
        revocations,
        onTunnel: (tunnel) => void carryTunnel(this.#context, tunnel),
        onRejected: ({ remote, error }) => {
          recordRejected(this.#context, remote, error);
        },
      });
      this.#server.start();
      if (this.pod.serves !== undefined) return;
      this.#listen(PLAINTEXT_PORT, (socket) => void carryPlaintext(this.#context, socket));
      this.#dns = createPodDns(this.#context);
      this.#dns?.start();
      this.#listen(OUTBOUND_PORT, (socket) => void carryOutbound(this.#context, socket));
    } catch (cause) {
      this.#abandon();
      throw listenError(this.pod, cause);
    }
  }

  /** The certificate has come, was renewed, or the trusted roots changed. */
  certificateChanged(changed: { readonly leaf: boolean; readonly roots: boolean }): void {
    this.#server?.certificateArrived();
    if (changed.roots) {
      this.#pool.trustChanged();
      this.#server?.trustChanged();
    }
    if (changed.leaf) this.#pool.certificateChanged(this.pod.identity);
  }

  /** The addresses that the pod has sessions to. */
  *peerAddresses(): Generator<IpAddress> {
    for (const { ip } of this.#pool.peers()) yield parseIp(ip);
  }

  /** These addresses are somebody else's now, or nobody's. */
  peersGone(ips: ReadonlySet<string>): void {
    this.#pool.peersGone(ips);
  }

  /** Takes no new connections, waits for those it has, at most `deadlineMs`, breaks the rest, closes everything. */
  async drain(deadlineMs: number): Promise<void> {
    for (const listener of this.#listeners) listener.stop(); // what waits in their queues is still taken
    const endHeld = (): void => {
      this.#connections.endHeld();
    };
    const cancel = this.#context.clock.after(deadlineMs, endHeld); // before sessions end: they are answered
    await Promise.all([this.#server?.drain(deadlineMs), this.#dns?.drain(deadlineMs), this.#drainOutbound(deadlineMs)]);
    cancel();
    endHeld();
    this.#netns[Symbol.dispose]();
  }

  /** Ends a drain that is under way: what is left is broken now. */
  async breakOff(): Promise<void> {
    this.#connections.endHeld();
    await Promise.all([this.#server?.drain(0), this.#dns?.drain(0), this.#drainOutbound(0)]);
  }

  /** Who was let in may still need a session: the pool closes after the last of them. */
  async #drainOutbound(deadlineMs: number): Promise<void> {
    const { clock } = this.#context;
    const endMs = clock.monotonic() + deadlineMs;
    await this.#connections.drain(deadlineMs, clock);
    await this.#pool.drain(Math.max(0, endMs - clock.monotonic()));
  }

  #listen(port: number, onConnection: (socket: PodSocket) => void): void {
    const listener = this.#context.network.listenTcp(
      {
        netns: this.#netns,
        ip: ANY_ADDRESS,
        port,
        mark: PACKET_MARK,
        transparent: true,
        reusePort: true,
        resetOnDeath: true,
        sameHost: port === OUTBOUND_PORT,
      },
      onConnection,
    );
    this.#listeners.push(listener);
  }

  #abandon(): void {
    for (const listener of this.#listeners) listener.stop();
    void this.#server?.drain(0);
    void this.#dns?.drain(0);
    void this.#pool.drain(0);
    this.#netns[Symbol.dispose]();
  }
}

function listenError(pod: ServedPod, cause: unknown): CodedError {
  const message = `cannot listen in the namespace of pod ${pod.namespace}/${pod.name}: ${messageOf(cause)}`;
  return proxyError("PROXY_LISTEN", message, {
    cause,
    details: { code: findCodedError(cause)?.code, pod: pod.podUid },
  });
}
