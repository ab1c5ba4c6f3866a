import { createServer, Socket, type AddressInfo, type Server } from "node:net";
import { systemClock } from "#base/clock";
import type { CodedError } from "#base/errors";
import { findHostPort } from "#base/ip";
import { systemRandom } from "#base/random";
import { connectTcp, listenTcp, type TcpListener } from "#linux";
import { formatSpiffeId, type SpiffeId } from "#model/spiffe-id";
import type { TlsIdentity } from "#model/tls-identity";
import { TestAuthority } from "../x509/testing.ts";
import type { HboneLimits } from "./limits.ts";
import type { OpenRequest } from "./open-request.ts";
import { HbonePool } from "./pool.ts";
import type { PeerRevocations } from "./revocation.ts";
import { HboneServer } from "./server.ts";
import type { InboundTunnel } from "./server-session.ts";
import type { TunnelResult } from "./tunnel.ts";

/** For tests: the ID of a workload of the test's trust domain. */
export function testId(name: string, trustDomain = "cluster.local"): SpiffeId {
  return formatSpiffeId({ trustDomain, namespace: "test", serviceAccount: name });
}

/** What a {@link TunnelRig} is made of. */
export interface RigOptions {
  /** Gets the far end of each connection. */
  readonly app: (socket: Socket) => void;
  readonly limits?: Partial<HboneLimits>;
  readonly accepted?: readonly SpiffeId[];
  /** Of the two ends. */
  readonly revocations?: { readonly source?: PeerRevocations; readonly destination?: PeerRevocations };
  /** Instead of connecting to the app. */
  readonly onTunnel?: (tunnel: InboundTunnel) => void;
  /** What is different about the next connection's request. */
  readonly request?: () => Partial<OpenRequest>;
}

/** For tests: client ── outbound listener ── pool ══ tunnel ══ server ── app, all on loopback. */
export class TunnelRig {
  readonly pool: HbonePool;
  readonly server: HboneServer;
  readonly results: { outbound: TunnelResult[]; inbound: TunnelResult[] } = { outbound: [], inbound: [] };
  readonly opened: { peer: SpiffeId; responseBaggage: string | undefined }[] = [];
  readonly tunnels: InboundTunnel[] = [];
  readonly rejected: CodedError[] = [];
  /** In force on either side. */
  readonly identities: { client: TlsIdentity; server: TlsIdentity };
  readonly #app: Server;
  readonly #outbound: TcpListener;
  readonly #clients = new Set<Socket>();

  private constructor(options: RigOptions, parts: { app: Server; client: TlsIdentity; server: TlsIdentity }) {
    const clock = systemClock();
    this.#app = parts.app;
    this.identities = { client: parts.client, server: parts.server };
    const limits = options.limits ?? {};
    this.server = new HboneServer({
      ip: "127.0.0.1",
      port: 0,
      certificate: () => this.identities.server,
      clock,
      limits,
      revocations: options.revocations?.destination,
      onTunnel: (tunnel) => {
        this.tunnels.push(tunnel);
        if (options.onTunnel !== undefined) options.onTunnel(tunnel);
        else void this.#serve(tunnel);
      },
      onRejected: ({ error }) => this.rejected.push(error),
    });
    this.server.start();
    const revocations = options.revocations?.source;
    const certificate = (): TlsIdentity => this.identities.client;
    this.pool = new HbonePool({ clock, random: systemRandom, certificate, limits, revocations });
    this.#outbound = listenTcp({ ip: "127.0.0.1", port: 0 }, (socket) => {
      this.open({ socket, accepted: options.accepted ?? [testId("server")], ...options.request?.() });
    });
  }

  static async start(options: RigOptions): Promise<TunnelRig> {
    const { client, server } = await identities();
    const app = createServer({ allowHalfOpen: true }, (socket) => {
      socket.on("error", () => {});
      options.app(socket);
    });
    await new Promise<void>((resolve) => app.listen(0, "127.0.0.1", resolve));
    return new TunnelRig(options, { app, client, server });
  }

  /** Sessions that the server has had so far, as far as tunnels came through them. */
  get sessionsSeen(): number {
    return new Set(this.tunnels.map(({ remote }) => `${remote.ip} ${remote.port}`)).size;
  }

  open(request: Pick<OpenRequest, "socket" | "accepted"> & Partial<OpenRequest>): ReturnType<HbonePool["open"]> {
    return this.pool.open({
      source: testId("client"),
      ip: "127.0.0.1",
      port: this.server.port,
      authority: `127.0.0.1:${this.appPort}`,
      headers: { baggage: "k8s.namespace.name=test", forwarded: 'for="127.0.0.1:1"' },
      onOpen: (info) => this.opened.push(info),
      onEnd: (result) => this.results.outbound.push(result),
      ...request,
    });
  }

  get appPort(): number {
    return (this.#app.address() as AddressInfo).port; // it listens on TCP
  }

  async #serve(tunnel: InboundTunnel): Promise<void> {
    const { host = "", port = 0 } = findHostPort(tunnel.authority) ?? {};
    try {
      const clock = systemClock();
      const socket = await connectTcp({ ip: host, port, timeoutMs: 60_000, clock, signal: tunnel.signal });
      tunnel.accept(socket, {
        baggage: "service.name=app",
        onEnd: (result) => this.results.inbound.push(result),
      });
    } catch {
      tunnel.refuse(503);
    }
  }

  /** A connection of a client, half-open as real ones. */
  dial(): Socket {
    const socket = new Socket({ allowHalfOpen: true });
    socket.on("error", () => {});
    socket.connect(this.#outbound.port, "127.0.0.1");
    this.#clients.add(socket);
    return socket;
  }

  async stop(): Promise<void> {
    this.#outbound.stop();
    for (const socket of this.#clients) socket.destroy();
    await this.pool.drain(0);
    await this.server.drain(0);
    await new Promise((resolve) => {
      this.#app.close(resolve);
    });
  }
}

let made: Promise<{ client: TlsIdentity; server: TlsIdentity; authority: TestAuthority }> | undefined;

/** One authority and two workloads, made once per process. */
export async function identities(): Promise<{ client: TlsIdentity; server: TlsIdentity; authority: TestAuthority }> {
  made ??= (async () => {
    const authority = await TestAuthority.create();
    const [client, server] = await Promise.all([
      authority.identity(testId("client")),
      authority.identity(testId("server")),
    ]);
    return { client, server, authority };
  })();
  return made;
}
