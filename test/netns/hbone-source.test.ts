import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { after, before, describe, test } from "node:test";
import { systemClock } from "#base/clock";
import { findHostPort, formatHostPort } from "#base/ip";
import { systemRandom } from "#base/random";
import { HbonePool, HboneServer, type InboundTunnel, type TunnelResult } from "#hbone";
import { connectTcp, listenTcp, openNetns, socketPath, useSocketPath, type Netns, type TcpSocket } from "#linux";
import { identities, testId } from "../../src/hbone/testing.ts";

// Two pods as namespaces, joined by a veth pair. The client's connections are redirected to its proxy; the server's proxy
// connects to the app from the client's address, which is not the server pod's own.

const NAMES = { client: "vt-hbone-client", server: "vt-hbone-server" } as const;
const FAMILIES = [
  { family: "IPv4", client: "10.99.0.1", server: "10.99.0.2", wildcard: "0.0.0.0" },
  { family: "IPv6", client: "fd99::1", server: "fd99::2", wildcard: "::" },
] as const;
const MARK = 0x539;
const clock = systemClock({ unref: true });

/** Runs a program; a failure fails the test and names it: nothing is skipped. */
function run(command: string, args: readonly string[], input = ""): void {
  const { status, stderr, error } = spawnSync(command, args, { input, encoding: "utf8" });
  assert.equal(error, undefined, `${command} is missing: ${error?.message}`);
  assert.equal(status, 0, `${command} ${args.join(" ")}: ${stderr} (are you root?)`);
}

function ip(...args: string[]): void {
  run("ip", args);
}

function remove(): void {
  for (const name of Object.values(NAMES)) spawnSync("ip", ["netns", "delete", name]);
}

function build(): void {
  remove();
  for (const name of Object.values(NAMES)) {
    ip("netns", "add", name);
    ip("-n", name, "link", "set", "lo", "up");
  }
  ip("-n", NAMES.client, "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", NAMES.server);
  for (const side of ["client", "server"] as const) {
    for (const addresses of FAMILIES) {
      const extra = addresses.family === "IPv6" ? ["nodad"] : [];
      const length = addresses.family === "IPv6" ? "64" : "24";
      ip("-n", NAMES[side], "address", "add", `${addresses[side]}/${length}`, "dev", "eth0", ...extra);
    }
    ip("-n", NAMES[side], "link", "set", "eth0", "up");
  }
  for (const family of ["-4", "-6"]) {
    ip("-n", NAMES.server, family, "rule", "add", "fwmark", "0x111", "lookup", "100");
    ip("-n", NAMES.server, family, "route", "add", "local", "default", "dev", "lo", "table", "100");
  }
  const redirect = `table inet veil {
    chain output {
      type nat hook output priority -100;
      meta mark != ${MARK} tcp dport 8080 redirect to :15001
    }
  }`;
  run("ip", ["netns", "exec", NAMES.client, "nft", "-f", "-"], redirect);
  const back = `table inet veil {
    chain output {
      type route hook output priority mangle;
      meta mark ${MARK} ct mark set 0x111
      meta mark != ${MARK} ct mark 0x111 meta mark set ct mark
    }
  }`;
  run("ip", ["netns", "exec", NAMES.server, "nft", "-f", "-"], back);
}

describe("tunnels between two namespaces", () => {
  const spaces: { client?: Netns; server?: Netns } = {};

  before(() => {
    build();
    spaces.client = openNetns(`/run/netns/${NAMES.client}`);
    spaces.server = openNetns(`/run/netns/${NAMES.server}`);
  });
  after(() => {
    spaces.client?.[Symbol.dispose]();
    spaces.server?.[Symbol.dispose]();
    remove();
  });

  for (const path of ["handles", "public"] as const) {
    for (const { family, client, server, wildcard } of FAMILIES) {
      test(`the app sees the client's own address (${family}, ${path})`, async () => {
        const before = socketPath();
        useSocketPath(path);
        try {
          await roundTrip({ client, server, wildcard });
        } finally {
          useSocketPath(before);
        }
      });
    }
  }

  async function roundTrip(at: { client: string; server: string; wildcard: string }): Promise<void> {
    const { client: clientNetns, server: serverNetns } = spaces;
    const who = await identities();
    const app = listenTcp({ netns: serverNetns, ip: at.wildcard, port: 8080 }, answerWithAddress);
    const hbone = new HboneServer({
      netns: serverNetns,
      ip: "::",
      port: 15008,
      mark: MARK,
      transparent: true,
      certificate: () => who.server,
      clock,
      onTunnel: (tunnel) => {
        void connectAs(tunnel, serverNetns);
      },
    });
    hbone.start();
    const pool = new HbonePool({ clock, random: systemRandom, certificate: () => who.client });
    const ended = Promise.withResolvers<TunnelResult>();
    const destinations: string[] = [];
    const outbound = listenTcp({ netns: clientNetns, ip: "::", port: 15001, mark: MARK }, (socket) => {
      const original = socket.originalDestination();
      assert.ok(original);
      destinations.push(formatHostPort(original.ip, original.port));
      pool.open({
        netns: clientNetns,
        mark: MARK,
        source: testId("client"),
        accepted: [testId("server")],
        ip: original.ip,
        port: 15008,
        authority: formatHostPort(original.ip, original.port),
        headers: { baggage: "", forwarded: `for="${formatHostPort(socket.remote.ip, socket.remote.port)}"` },
        socket,
        onEnd: ended.resolve,
      });
    });
    try {
      const socket = await connectTcp({ netns: clientNetns, ip: at.server, port: 8080, timeoutMs: 60_000, clock });
      assert.equal(await ask(socket, "who am I?"), `who am I? ${at.client}`);
      assert.deepEqual(destinations, [formatHostPort(at.server, 8080)]);
      assert.equal((await ended.promise).error, undefined);
    } finally {
      outbound.stop();
      app.stop();
      await pool.drain(0);
      await hbone.drain(0);
    }
  }
});

/** The server proxy: connects to the app with the client's address as its own. */
async function connectAs(tunnel: InboundTunnel, netns: Netns | undefined): Promise<void> {
  const { host = "", port = 0 } = findHostPort(tunnel.authority) ?? {};
  const sourceIp = tunnel.remote.ip;
  try {
    const socket = await connectTcp({ netns, mark: MARK, sourceIp, ip: host, port, timeoutMs: 60_000, clock });
    tunnel.accept(socket, { onEnd: () => {} });
  } catch (error) {
    process.stderr.write(`${String(error)}\n`);
    tunnel.refuse(503);
  }
}

/** The app: says what it heard and from whom. */
function answerWithAddress(socket: TcpSocket): void {
  const buffer = Buffer.alloc(1024);
  let text = "";
  socket.stream.start(
    {
      onRead: (count) => {
        text += buffer.toString("utf8", 0, count);
        return undefined;
      },
      onEnd: () => {
        socket.stream.write(Buffer.from(`${text} ${socket.remote.ip}`));
        socket.stream.shutdown();
      },
      onWritten: () => {},
      onBroken: () => {
        socket.close();
      },
    },
    buffer,
  );
}

async function ask(socket: TcpSocket, question: string): Promise<string> {
  const buffer = Buffer.alloc(1024);
  let text = "";
  await new Promise<void>((resolve, reject) => {
    socket.stream.start(
      {
        onRead: (count) => {
          text += buffer.toString("utf8", 0, count);
          return undefined;
        },
        onEnd: resolve,
        onWritten: () => {},
        onBroken: reject,
      },
      buffer,
    );
    socket.stream.write(Buffer.from(question));
    socket.stream.shutdown();
  });
  socket.close();
  return text;
}
