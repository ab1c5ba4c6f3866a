import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, Socket, type AddressInfo, type Server } from "node:net";
import type { Duplex } from "node:stream";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "#base/clock";
import { systemRandom } from "#base/random";
import { HbonePool, HboneServer, type InboundTunnel, type TunnelResult } from "#hbone";
import { connectTcp, listenTcp, type TcpListener } from "#linux";
import type { SpiffeId } from "#model/spiffe-id";
import type { TlsIdentity } from "#model/tls-identity";
import { identities, testId } from "../../src/hbone/testing.ts";

// What tests of tunnels against other programs share: certificates as files, programs as processes, an app that echoes.

const clock = systemClock({ unref: true });

export function digest(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

export async function until(what: string, condition: () => boolean): Promise<void> {
  for (let i = 0; i < 6000; i++) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assert.fail(`never came: ${what}`);
}

export function portOf(server: Server): number {
  return (server.address() as AddressInfo).port; // it listens on TCP
}

/** A port that is free now, for programs that cannot say which one they took. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const port = portOf(server);
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Everything that a test starts, given back by `stop`. */
export class PeersWorld {
  readonly folder = mkdtempSync(join(tmpdir(), "vt-http2-peers-"));
  /** What tunnels asked our server for. */
  readonly asked: { authority: string; headers: ReadonlyMap<string, string> }[] = [];
  /** How tunnels of our pool, and of our server, ended. */
  readonly ended: TunnelResult[] = [];
  readonly inbound: TunnelResult[] = [];
  readonly rejected: string[] = [];
  readonly app: Server;
  readonly pool: HbonePool;
  readonly server: HboneServer;
  readonly #listeners: TcpListener[] = [];
  readonly #children: ChildProcess[] = [];
  readonly #sockets = new Set<Socket>();

  private constructor(app: Server, { client, server }: { client: TlsIdentity; server: TlsIdentity }) {
    this.app = app;
    app.on("connection", (socket) => {
      this.#keep(socket);
      socket.pipe(socket);
    });
    for (const [name, identity] of Object.entries({ client, server })) {
      writeFileSync(this.file(`${name}.pem`), identity.chainPem);
      writeFileSync(this.file(`${name}.key`), identity.keyPem);
    }
    writeFileSync(this.file("roots.pem"), client.rootsPem);
    this.pool = new HbonePool({ clock, random: systemRandom, certificate: () => client });
    this.server = new HboneServer({
      ip: "127.0.0.1",
      port: 0,
      certificate: () => server,
      clock,
      onTunnel: (tunnel) => void this.#serve(tunnel),
      onRejected: ({ error }) => this.rejected.push(error.code),
    });
    this.server.start();
  }

  static async start(): Promise<PeersWorld> {
    const app = createServer({ allowHalfOpen: true });
    await new Promise<void>((resolve) => app.listen(0, "127.0.0.1", resolve));
    return new PeersWorld(app, await identities());
  }

  async #serve(tunnel: InboundTunnel): Promise<void> {
    this.asked.push(tunnel);
    const socket = await connectTcp({ ip: "127.0.0.1", port: portOf(this.app), timeoutMs: 5000, clock });
    tunnel.accept(socket, { baggage: "service.name=app", onEnd: (result) => this.inbound.push(result) });
  }

  file(name: string): string {
    return join(this.folder, name);
  }

  /** Starts a program and waits until it listens on `port`. */
  async run(command: string, args: readonly string[], port: number): Promise<void> {
    const log = this.file(`${this.#children.length}.log`);
    const output = openSync(log, "a");
    const child = spawn(command, args, { stdio: ["ignore", output, output] });
    this.#children.push(child);
    await until(`${command} listens`, () => {
      assert.equal(child.exitCode, null, `${command} ended: ${readFileSync(log, "utf8").slice(-2000)}`);
      return listens(port);
    });
  }

  /** Sends bytes on a connection, ends it, and gives what came back until the other end. */
  async echoed(bytes: Uint8Array, socket: Socket): Promise<Buffer> {
    this.#keep(socket);
    const chunks: Buffer[] = [];
    socket.on("data", (chunk: Buffer) => chunks.push(chunk));
    socket.end(bytes);
    await once(socket, "end");
    return Buffer.concat(chunks);
  }

  /** As `echoed`, for ways that know no half-closed connections: waits for as many bytes as were sent. */
  async returned(bytes: Uint8Array, socket: Duplex): Promise<Buffer> {
    const chunks: Buffer[] = [];
    socket.on("error", () => {});
    socket.on("data", (chunk: Buffer) => chunks.push(chunk));
    socket.write(bytes);
    await until("as many bytes", () => chunks.reduce((sum, { length }) => sum + length, 0) >= bytes.length);
    socket.destroy();
    return Buffer.concat(chunks);
  }

  dial(port: number): Socket {
    const socket = new Socket({ allowHalfOpen: true });
    socket.connect(port, "127.0.0.1");
    return this.#keep(socket);
  }

  /**
   * Connections to the port that this gives go through tunnels of our pool to the peer on `peerPort`. `inner`: it is the
   * gateway of another network, and this one may answer behind it.
   */
  outbound(peerPort: number, accepted: SpiffeId = testId("server"), inner?: SpiffeId): number {
    const listener = listenTcp({ ip: "127.0.0.1", port: 0 }, (socket) => {
      this.pool.open({
        source: testId("client"),
        accepted: [accepted],
        inner: inner === undefined ? undefined : { accepted: [inner], network: "west" },
        ip: "127.0.0.1",
        port: peerPort,
        authority: `127.0.0.1:${portOf(this.app)}`,
        headers: { baggage: "k8s.namespace.name=test", forwarded: 'for="127.0.0.1:1"' },
        socket,
        onEnd: (result) => this.ended.push(result),
      });
    });
    this.#listeners.push(listener);
    return listener.port;
  }

  #keep(socket: Socket): Socket {
    this.#sockets.add(socket);
    return socket.on("error", () => {});
  }

  async stop(): Promise<void> {
    for (const child of this.#children) {
      child.kill("SIGKILL");
      if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
    }
    for (const socket of this.#sockets) socket.destroy();
    for (const listener of this.#listeners) listener.stop();
    this.app.close();
    await this.pool.drain(0);
    await this.server.drain(0);
    rmSync(this.folder, { recursive: true });
  }
}

/** Whether somebody listens on a port, without a connection, which programs would pass on. */
function listens(port: number): boolean {
  const hex = port.toString(16).toUpperCase().padStart(4, "0");
  return readFileSync("/proc/net/tcp", "utf8").includes(`0100007F:${hex} 00000000:0000 0A`);
}

/** Waits for the end of a connection, however it ends. */
export async function closed(socket: Socket): Promise<void> {
  socket.resume();
  await new Promise((resolve) => {
    socket.once("close", resolve);
  });
}
