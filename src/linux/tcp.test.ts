import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { createServer, Socket, type AddressInfo } from "node:net";
import { describe, test } from "node:test";
import { Worker } from "node:worker_threads";
import { systemClock } from "#base/clock";
import { CodedError } from "#base/errors";
import { parseIp } from "#base/ip";
import type { StreamOwner } from "./byte-stream.ts";
import { isPortShared } from "./listener.ts";
import { findWrongShape } from "./raw-stream.ts";
import { connectTcp, listenTcp, socketPath, useSocketPath, type TcpSocket } from "./tcp.ts";

const clock = systemClock({ unref: true });

async function until(what: string, condition: () => boolean): Promise<void> {
  for (let i = 0; i < 12_000; i++) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  assert.fail(`never came: ${what}`);
}

/** Writes down what happens; the buffer and what is done in `onRead` can be chosen. */
class Recorder implements StreamOwner {
  text = "";
  ends = 0;
  writes = 0;
  broken: CodedError | undefined;
  buffer: Uint8Array;
  onReadToo: ((count: number) => Uint8Array | undefined) | undefined;

  constructor(size = 1024) {
    this.buffer = new Uint8Array(size);
  }
  onRead(count: number): Uint8Array | undefined {
    this.text += Buffer.from(this.buffer.subarray(0, count)).toString();
    return this.onReadToo?.(count);
  }
  onEnd(): void {
    this.ends++;
  }
  onWritten(): void {
    this.writes++;
  }
  onBroken(error: CodedError): void {
    this.broken = error;
  }
}

/** A socket of ours and the plain Node socket at its other end. */
async function pair(): Promise<{ ours: TcpSocket; other: Socket }> {
  const server = createServer({ allowHalfOpen: true }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const accepted = once(server, "connection");
  const { port } = server.address() as AddressInfo;
  const ours = await connectTcp({ ip: "127.0.0.1", port, timeoutMs: 60_000, clock });
  const [other] = await accepted;
  assert.ok(other instanceof Socket);
  other.on("error", () => {});
  server.close();
  return { ours, other };
}

test("the socket internals of the Node that the project ships have the expected shape", () => {
  assert.equal(findWrongShape(), undefined);
  assert.equal(socketPath(), "handles");
});

test("sockets work in a worker thread", async () => {
  const source = `
    const { listenTcp, connectTcp } = await import(${JSON.stringify(import.meta.resolve("./tcp.ts"))});
    const { systemClock } = await import(${JSON.stringify(import.meta.resolve("../base/clock.ts"))});
    const { parentPort } = await import("node:worker_threads");
    const listener = listenTcp({ ip: "127.0.0.1", port: 0 }, (socket) => {
      parentPort.postMessage(socket.local.port === listener.port);
      socket.close();
      listener.stop();
    });
    const socket = await connectTcp({ ip: "127.0.0.1", port: listener.port, timeoutMs: 60_000, clock: systemClock() });
    socket.close();
  `;
  const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`), {
    execArgv: ["--conditions=veil-source"],
  });
  assert.deepEqual(await once(worker, "message"), [true]);
  await worker.terminate();
});

for (const path of ["handles", "public"] as const) {
  const within = (body: () => Promise<void>) => async (): Promise<void> => {
    const before = socketPath();
    useSocketPath(path);
    try {
      await body();
    } finally {
      useSocketPath(before);
    }
  };

  describe(`byte streams (${path})`, () => {
    const scenario = (name: string, body: () => Promise<void>): void => {
      test(name, within(body));
    };

    scenario(
      "what is sent first comes before what the stream writes; nothing is sent to an end that is gone",
      async () => {
        const { ours, other } = await pair();
        let text = "";
        other.on("data", (part: Buffer) => (text += part.toString()));
        ours.sendFirst(Buffer.from("first "));
        const owner = new Recorder();
        ours.stream.start(owner, owner.buffer);
        ours.stream.write(Buffer.from("then"));
        await until("both", () => text === "first then");
        ours.close();
        const gone = await pair();
        gone.other.resetAndDestroy();
        await until("the reset", () => {
          try {
            gone.ours.sendFirst(Buffer.from("words"));
            return false;
          } catch (error) {
            return error instanceof CodedError && error.code === "LINUX_SOCKET";
          }
        });
        gone.ours.close();
      },
    );

    scenario("bytes arrive in the owner's buffer, the end is said once", async () => {
      const { ours, other } = await pair();
      const owner = new Recorder(4);
      ours.stream.start(owner, owner.buffer);
      other.end("longer than the buffer");
      await until("the end", () => owner.ends === 1);
      assert.equal(owner.text, "longer than the buffer");
      ours.close();
      await once(other.resume(), "end");
      assert.equal(owner.ends, 1);
      assert.equal(owner.broken, undefined);
    });

    scenario("the owner chooses the buffer of each read", async () => {
      const { ours, other } = await pair();
      const owner = new Recorder();
      const second = new Uint8Array(1024);
      owner.onReadToo = () => {
        owner.buffer = second;
        return second;
      };
      ours.stream.start(owner, owner.buffer);
      other.write("one ");
      await until("the first", () => owner.text === "one ");
      other.write("two");
      await until("the second", () => owner.text === "one two");
      assert.equal(Buffer.from(second.subarray(0, 3)).toString(), "two");
      const third = new Uint8Array(64);
      ours.stream.replaceBuffer(third);
      owner.buffer = third;
      owner.onReadToo = undefined;
      other.write(" three");
      await until("the third", () => owner.text === "one two three");
      ours.close();
      other.destroy();
    });

    scenario("a pause inside a read holds, and resume goes on where it was, through the end", async () => {
      const { ours, other } = await pair();
      const owner = new Recorder(3);
      owner.onReadToo = () => {
        ours.stream.pause();
        return undefined;
      };
      ours.stream.start(owner, owner.buffer);
      other.end("abcdefgh");
      await until("the first part", () => owner.text === "abc");
      await new Promise((resolve) => setTimeout(resolve, 30));
      assert.equal(owner.text, "abc");
      ours.stream.resume();
      await until("the second part", () => owner.text === "abcdef");
      await new Promise((resolve) => setTimeout(resolve, 30));
      assert.equal(owner.ends, 0);
      ours.stream.resume();
      await until("the third part", () => owner.text === "abcdefgh");
      ours.stream.resume();
      await until("the end", () => owner.ends === 1);
      ours.close();
      other.destroy();
    });

    scenario("a write that the reader does not take is pending, and its bytes arrive in the end", async () => {
      const { ours, other } = await pair();
      const owner = new Recorder();
      ours.stream.start(owner, owner.buffer);
      other.pause();
      const block = new Uint8Array(16 << 20).fill(7);
      assert.equal(ours.stream.write(block), "pending");
      await new Promise((resolve) => setTimeout(resolve, 20));
      assert.equal(owner.writes, 0);
      let got = 0;
      other.on("data", (chunk) => {
        got += chunk.length;
      });
      other.resume();
      await until("it is out", () => owner.writes === 1);
      const outcome = ours.stream.writeAll([Buffer.from("tail"), new Uint8Array(0), Buffer.from("s")]);
      assert.notEqual(outcome, "failed");
      await until("all of it", () => got === block.length + 5);
      ours.stream.shutdown();
      await once(other, "end");
      other.end("answer");
      await until("the answer", () => owner.text === "answer" && owner.ends === 1);
      ours.close();
    });

    scenario("a reset of the peer is said once, with the kernel's word; writes fail then", async () => {
      const { ours, other } = await pair();
      const owner = new Recorder();
      ours.stream.start(owner, owner.buffer);
      other.resetAndDestroy();
      await until("the error", () => owner.broken !== undefined);
      assert.equal(owner.broken?.code, "LINUX_SOCKET");
      assert.match(owner.broken.message, /ECONNRESET/);
      assert.equal(ours.stream.write(Buffer.from("x")), "failed");
      assert.equal(ours.stream.error?.code, "LINUX_SOCKET");
      ours.close();
      ours.close();
    });

    scenario("a socket that is closed already is said to be broken, not left waiting", async () => {
      const { ours, other } = await pair();
      const owner = new Recorder();
      const { stream } = ours;
      other.resetAndDestroy();
      await new Promise((resolve) => setTimeout(resolve, 20));
      stream.start(owner, owner.buffer);
      await until("the error", () => owner.broken !== undefined);
      assert.equal(owner.broken?.code, "LINUX_SOCKET");
      ours.close();
    });

    scenario("close is an end for the peer, reset an error; the owner hears nothing after either", async () => {
      for (const call of ["close", "reset"] as const) {
        const { ours, other } = await pair();
        const owner = new Recorder();
        ours.stream.start(owner, owner.buffer);
        const codes: (string | undefined)[] = [];
        other.on("error", (error: NodeJS.ErrnoException) => codes.push(error.code));
        other.write("unread");
        await until("it is read", () => owner.text === "unread");
        ours[call]();
        other.resume();
        await once(other, call === "close" ? "end" : "close").catch(() => {});
        assert.deepEqual(codes, call === "close" ? [] : ["ECONNRESET"]);
        other.destroy();
        await new Promise((resolve) => setTimeout(resolve, 20));
        assert.deepEqual([owner.ends, owner.broken, owner.writes], [0, undefined, 0]);
        assert.equal(ours.remote.ip, "127.0.0.1");
      }
    });
  });

  describe(`listening and connecting (${path})`, () => {
    test(
      "accepted sockets know both ends, were not redirected, and carry the options of the data path",
      within(async () => {
        const sockets: TcpSocket[] = [];
        const listener = listenTcp({ ip: "::", port: 0, mark: 0x539, transparent: true }, (socket) =>
          sockets.push(socket),
        );
        const socket = await connectTcp({ ip: "127.0.0.1", port: listener.port, timeoutMs: 60_000, clock });
        await until("the other side", () => sockets.length === 1);
        const [accepted] = sockets;
        assert.equal(accepted?.remote.ip, "127.0.0.1", "a mapped address is shown as IPv4");
        assert.equal(accepted.local.port, listener.port);
        assert.deepEqual(accepted.remote, socket.local);
        assert.equal(accepted.originalDestination(), undefined);
        socket.close();
        accepted.close();
        assert.equal(accepted.originalDestination(), undefined);
        listener.stop();
        listener.stop();
      }),
    );

    test(
      "stopping takes what waits in the queue",
      within(async () => {
        const sockets: TcpSocket[] = [];
        const listener = listenTcp({ ip: "127.0.0.1", port: 0 }, (socket) => sockets.push(socket));
        const { port } = listener;
        const clients = Array.from({ length: 20 }, () => new Socket().connect(port, "127.0.0.1"));
        for (const client of clients) client.on("error", () => {});
        await Promise.all(clients.map(async (client) => once(client, "connect")));
        listener.stop();
        assert.equal(sockets.length, 20);
        for (const socket of sockets) socket.close();
        for (const client of clients) client.destroy();
        await assert.rejects(connectTcp({ ip: "127.0.0.1", port, timeoutMs: 60_000, clock }), {
          code: "LINUX_CONNECT_REFUSED",
        });
      }),
    );

    test(
      "each way of failing has its code",
      within(async () => {
        const options = { ip: "127.0.0.1", timeoutMs: 60_000, clock };
        await assert.rejects(connectTcp({ ...options, port: 1 }), { code: "LINUX_CONNECT_REFUSED" });
        await assert.rejects(connectTcp({ ...options, ip: "nonsense", port: 1 }), { code: "LINUX_SYSCALL" });
        const gone = AbortSignal.abort();
        await assert.rejects(connectTcp({ ...options, port: 1, signal: gone }), { code: "LINUX_CONNECT_ABORTED" });
        const listener = listenTcp({ ip: "127.0.0.1", port: 0 }, () => {});
        const again = { ip: "127.0.0.1", port: listener.port };
        assert.throws(() => listenTcp(again, () => {}), { code: "LINUX_PORT_IN_USE" });
        listener.stop();
      }),
    );

    test(
      "two listeners share a port when both ask for it",
      within(async () => {
        const count = [0, 0];
        const first = listenTcp({ ip: "127.0.0.1", port: 0, reusePort: true }, (socket) => {
          count[0] = (count[0] ?? 0) + 1;
          socket.close();
        });
        const second = listenTcp({ ip: "127.0.0.1", port: first.port, reusePort: true }, (socket) => {
          count[1] = (count[1] ?? 0) + 1;
          socket.close();
        });
        const at = { ip: parseIp("127.0.0.1"), port: first.port };
        assert.equal(isPortShared(undefined, at), true);
        first.stop();
        assert.equal(isPortShared(undefined, at), true, "the second is there");
        const socket = await connectTcp({ ip: "127.0.0.1", port: second.port, timeoutMs: 60_000, clock });
        await until("the second has it", () => count[1] === 1);
        socket.close();
        second.stop();
        await until("nobody listens", () => !isPortShared(undefined, at));
        const alone = listenTcp({ ip: "127.0.0.1", port: first.port }, () => {});
        assert.equal(isPortShared(undefined, at), false, "it shares nothing");
        alone.stop();
      }),
    );
  });
}

test("sockets whose other end is on the same host pace nothing, those that were accepted neither", async () => {
  const accepted: TcpSocket[] = [];
  const listener = listenTcp({ ip: "127.0.0.1", port: 0, sameHost: true }, (socket) => accepted.push(socket));
  const dialled = await connectTcp({ ip: "127.0.0.1", port: listener.port, timeoutMs: 60_000, clock, sameHost: true });
  await until("a connection", () => accepted.length === 1);
  const { stdout } = spawnSync("ss", ["-Htin", `( sport = :${listener.port} or dport = :${listener.port} )`], {
    encoding: "utf8",
  });
  assert.equal(stdout.match(/^\s+reno /gm)?.length, 2, stdout);
  dialled.close();
  for (const socket of accepted) socket.close();
  listener.stop();
});

test("connections that say nothing are asked for a sign of life after 180 s, dialled and accepted ones", async () => {
  const accepted: TcpSocket[] = [];
  const listener = listenTcp({ ip: "127.0.0.1", port: 0 }, (socket) => accepted.push(socket));
  const dialled = await connectTcp({ ip: "127.0.0.1", port: listener.port, timeoutMs: 60_000, clock });
  await until("a connection", () => accepted.length === 1);
  const filter = `( sport = :${listener.port} or dport = :${listener.port} )`;
  const { stdout } = spawnSync("ss", ["-Hton", "state", "established", filter], { encoding: "utf8" });
  assert.equal(stdout.match(/timer:\(keepalive,(?:2min5\d|3min)/g)?.length, 2, stdout);
  dialled.close();
  for (const socket of accepted) socket.close();
  listener.stop();
});

test("what listens on the same host is connected to within the turn, refuses likewise, and when it is busy has time", async () => {
  const code = `require("node:net").createServer((socket) => socket.resume()).listen({ port: 0, host: "127.0.0.1", backlog: 1 },
    function () { console.log(this.address().port) })`;
  const server = spawn(process.execPath, ["-e", code], { stdio: ["ignore", "pipe", "inherit"] });
  try {
    const [line] = await once(server.stdout, "data");
    const options = { ip: "127.0.0.1", port: Number(String(line)), timeoutMs: 60_000, clock, sameHost: true };
    let turnOver = false;
    setImmediate(() => (turnOver = true));
    const first = await connectTcp(options);
    await assert.rejects(connectTcp({ ...options, port: 1 }), { code: "LINUX_CONNECT_REFUSED" });
    assert.equal(turnOver, false);
    server.kill("SIGSTOP");
    const more = Array.from({ length: 4 }, async () => connectTcp(options)); // its queue takes two at most
    const soon = new Promise((resolve) => setTimeout(resolve, 100, "not all"));
    assert.equal(await Promise.race([Promise.all(more), soon]), "not all");
    server.kill("SIGCONT");
    for (const socket of [first, ...(await Promise.all(more))]) socket.close();
  } finally {
    server.kill("SIGKILL");
  }
});
