import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createServer, Socket, type AddressInfo, type Server } from "node:net";
import { describe, it } from "node:test";
import { systemClock } from "#base/clock";
import { systemRandom } from "#base/random";
import { connectTcp, listenTcp, type TcpListener } from "#linux";
import type { SpiffeId } from "#model/spiffe-id";
import type { TestAuthority } from "../x509/testing.ts";
import { HbonePool } from "./pool.ts";
import type { InboundTunnel } from "./server-session.ts";
import { HboneServer } from "./server.ts";
import { identities, testId } from "./testing.ts";
import type { TunnelResult } from "./tunnel.ts";

const clock = systemClock();
const HOST = "web.shop.svc.cluster.local:80";

interface Options {
  readonly app: (socket: Socket) => void;
  /** Who may answer behind the gateway. Default: the server. */
  readonly accepted?: readonly SpiffeId[];
  /** What the gateway does with a tunnel, instead of handing it on. */
  readonly gateway?: (tunnel: InboundTunnel) => void;
  readonly far?: (tunnel: InboundTunnel) => void;
}

/** client ── pool ══ outer tunnel ══ gateway ── TCP ── inner tunnel ══ server ── app, all on loopback. */
class GatewayRig {
  readonly results: TunnelResult[] = [];
  readonly peers: SpiffeId[] = [];
  readonly outer: InboundTunnel[] = [];
  readonly inner: InboundTunnel[] = [];
  readonly gateway: HboneServer;
  readonly server: HboneServer;
  readonly pool: HbonePool;
  readonly #app: Server;
  readonly #outbound: TcpListener;
  readonly #sockets: Socket[] = [];

  static async start(options: Options): Promise<GatewayRig> {
    const { client, server, authority } = await identities();
    const gateway = await authority.identity(testId("gateway"));
    const app = createServer({ allowHalfOpen: true }, (socket) => {
      socket.on("error", () => undefined);
      options.app(socket);
    });
    app.listen(0, "127.0.0.1");
    await once(app, "listening");
    return new GatewayRig(options, app, { client, server, gateway });
  }

  private constructor(
    { gateway, far, accepted = [testId("server")] }: Options,
    app: Server,
    identity: Record<"client" | "server" | "gateway", Awaited<ReturnType<TestAuthority["identity"]>>>,
  ) {
    this.#app = app;
    const appPort = (app.address() as AddressInfo).port; // it listens on TCP
    const handOn = (port: () => number) => (tunnel: InboundTunnel) => void this.#handOn(tunnel, port());
    const listen = (id: "server" | "gateway", seen: InboundTunnel[], onTunnel: (tunnel: InboundTunnel) => void) => {
      const certificate = () => identity[id];
      const take = (tunnel: InboundTunnel): void => {
        seen.push(tunnel);
        onTunnel(tunnel);
      };
      const listener = new HboneServer({ ip: "127.0.0.1", port: 0, certificate, clock, onTunnel: take });
      listener.start();
      return listener;
    };
    this.server = listen("server", this.inner, far ?? handOn(() => appPort));
    this.gateway = listen("gateway", this.outer, gateway ?? handOn(() => this.server.port));
    this.pool = new HbonePool({ clock, random: systemRandom, certificate: () => identity.client });
    this.#outbound = listenTcp({ ip: "127.0.0.1", port: 0 }, (socket) => {
      this.pool.open({
        socket,
        source: testId("client"),
        accepted: [testId("gateway")],
        inner: { accepted, network: "west" },
        ip: "127.0.0.1",
        port: this.gateway.port,
        authority: HOST,
        headers: { baggage: "k8s.namespace.name=test", forwarded: 'for="127.0.0.1:1"' },
        onOpen: ({ peer }) => this.peers.push(peer),
        onEnd: (result) => this.results.push(result),
      });
    });
  }

  async #handOn(tunnel: InboundTunnel, port: number): Promise<void> {
    const socket = await connectTcp({ ip: "127.0.0.1", port, timeoutMs: 60_000, clock });
    tunnel.accept(socket, { onEnd: () => undefined });
  }

  dial(): Socket {
    const socket = new Socket({ allowHalfOpen: true });
    socket.on("error", () => undefined);
    socket.connect(this.#outbound.port, "127.0.0.1");
    this.#sockets.push(socket);
    return socket;
  }

  /** Sends `bytes` and hears what comes back until the end; undefined when the connection is reset. */
  async exchange(bytes: Uint8Array): Promise<Buffer | undefined> {
    const socket = this.dial();
    const parts: Buffer[] = [];
    socket.on("data", (part) => parts.push(part));
    socket.end(bytes);
    const failed = once(socket, "close").then(() => undefined);
    return Promise.race([once(socket, "end").then(() => Buffer.concat(parts)), failed]).catch(() => undefined);
  }

  /** Bytes that clients could not hand over yet. */
  get unsent(): number {
    return this.#sockets.reduce((sum, { writableLength }) => sum + writableLength, 0);
  }

  async until(what: () => boolean): Promise<void> {
    while (!what()) await new Promise((resolve) => setTimeout(resolve, 2));
  }

  async stop(): Promise<void> {
    this.#outbound.stop();
    for (const socket of this.#sockets) socket.destroy();
    await Promise.all([this.pool.drain(0), this.gateway.drain(0), this.server.drain(0)]);
    this.#app.close();
    await once(this.#app, "close");
  }
}

async function closed(socket: Socket | undefined): Promise<void> {
  await new Promise((resolve) => socket?.once("close", resolve));
}

/** Answers with what it got. */
const echo = (socket: Socket): void => void socket.pipe(socket);

async function withRig(options: Options, body: (rig: GatewayRig) => Promise<void>): Promise<void> {
  const rig = await GatewayRig.start(options);
  try {
    await body(rig);
  } finally {
    await rig.stop();
  }
}

describe("a tunnel in a tunnel", () => {
  it("carries bytes both ways to whom the gateway hands it, and says where it comes from at the far end only", async () => {
    await withRig({ app: echo }, async (rig) => {
      const words = randomBytes(3_000_000);
      assert.ok((await rig.exchange(words))?.equals(words));
      await rig.until(() => rig.results.length === 1);
      assert.deepEqual(rig.results, [{ bytesSent: words.length, bytesReceived: words.length, error: undefined }]);
      assert.deepEqual(rig.peers, [testId("server")]);
      const [outer, inner] = [rig.outer[0], rig.inner[0]];
      assert.deepEqual([outer?.authority, inner?.authority, inner?.peer], [HOST, HOST, testId("client")]);
      assert.deepEqual(
        [outer?.headers.get("x-forwarded-network"), inner?.headers.get("x-forwarded-network")],
        [undefined, "west"],
      );
    });
  });

  it("shares the session to the gateway, and has one of its own to each far end", async () => {
    await withRig({ app: echo }, async (rig) => {
      const words = ["one", "two", "three"].map((word) => Buffer.from(word));
      const answers = await Promise.all(words.map(async (word) => rig.exchange(word)));
      assert.deepEqual(answers.map(String), ["one", "two", "three"]);
      assert.equal(rig.pool.sessions, 1);
      assert.equal(new Set(rig.inner.map(({ remote }) => remote.port)).size, 3);
      await rig.until(() => rig.server.sessions === 0); // they end with their tunnels
    });
  });

  it("is refused when another than the expected answers behind the gateway", async () => {
    await withRig({ app: echo, accepted: [testId("somebody-else")] }, async (rig) => {
      assert.equal(await rig.exchange(Buffer.from("words")), undefined);
      assert.match(rig.results[0]?.error?.code ?? "", /^X509_/);
      assert.equal(rig.inner.length, 0);
    });
  });

  it("is refused when the gateway refuses, or hands on to nobody who speaks TLS", async () => {
    await withRig({ app: echo, gateway: (tunnel) => tunnel.refuse(503) }, async (rig) => {
      assert.equal(await rig.exchange(Buffer.from("words")), undefined);
      assert.equal(rig.results[0]?.error?.code, "HBONE_PEER_STATUS");
    });
    const rude = createServer((socket) => {
      socket.on("error", () => undefined);
      socket.on("data", () => socket.end("no"));
    }).listen(0, "127.0.0.1");
    await once(rude, "listening");
    const { port } = rude.address() as AddressInfo; // it listens on TCP
    const gateway = (tunnel: InboundTunnel): void => {
      void connectTcp({ ip: "127.0.0.1", port, timeoutMs: 60_000, clock }).then((socket) =>
        tunnel.accept(socket, { onEnd: () => undefined }),
      );
    };
    await withRig({ app: echo, gateway }, async (rig) => {
      assert.equal(await rig.exchange(Buffer.from("words")), undefined);
      assert.equal(rig.results[0]?.error?.code, "HBONE_TLS_HANDSHAKE");
    });
    rude.close();
  });

  it("is refused when the far end answers with an error status", async () => {
    await withRig({ app: echo, far: (tunnel) => tunnel.refuse(401) }, async (rig) => {
      assert.equal(await rig.exchange(Buffer.from("words")), undefined);
      assert.equal(rig.results[0]?.error?.details["status"], 401);
    });
  });

  it("passes resets on in both directions", async () => {
    const sockets: Socket[] = [];
    await withRig({ app: (socket) => void sockets.push(socket) }, async (rig) => {
      const mine = rig.dial();
      mine.write("words");
      await rig.until(() => sockets.length === 1);
      mine.resetAndDestroy();
      await closed(sockets[0]);
      const other = rig.dial();
      other.write("words");
      await rig.until(() => sockets.length === 2);
      const gone = closed(other);
      sockets[1]?.resetAndDestroy();
      await gone;
      await rig.until(() => rig.results.length === 2);
      assert.ok(rig.results.every(({ error }) => error !== undefined));
    });
  });

  it("stops its sender while the far application does not read, and loses nothing", async () => {
    const sockets: Socket[] = [];
    await withRig({ app: (socket) => void sockets.push(socket.pause()) }, async (rig) => {
      const words = randomBytes(40 << 20);
      const answer = rig.exchange(words);
      await rig.until(() => sockets.length === 1);
      await new Promise((resolve) => setTimeout(resolve, 200));
      const hash: Buffer[] = [];
      const [socket] = sockets;
      assert.ok(rig.unsent > 0);
      socket?.on("data", (part: Buffer) => hash.push(part));
      socket?.on("end", () => socket.end("done"));
      socket?.resume();
      assert.equal(String(await answer), "done");
      assert.ok(Buffer.concat(hash).equals(words));
    });
  });

  it("breaks with the gateway's session, with a reason", async () => {
    const sockets: Socket[] = [];
    await withRig({ app: (socket) => void sockets.push(socket) }, async (rig) => {
      const mine = rig.dial();
      mine.write("words");
      await rig.until(() => sockets.length === 1);
      const gone = closed(mine);
      await rig.gateway.drain(0);
      await gone;
      await rig.until(() => rig.results.length === 1);
      assert.match(rig.results[0]?.error?.code ?? "", /^HBONE_/);
    });
  });

  it("ends with a drain of the pool, at once where it has not opened yet", async () => {
    await withRig({ app: echo, gateway: () => undefined }, async (rig) => {
      const answer = rig.exchange(Buffer.from("words"));
      await rig.until(() => rig.outer.length === 1);
      await rig.pool.drain(0);
      assert.equal(await answer, undefined);
      assert.equal(rig.results[0]?.error?.code, "HBONE_DRAINING");
    });
  });
});
