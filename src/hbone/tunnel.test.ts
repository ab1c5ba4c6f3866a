import assert from "node:assert/strict";
import { once } from "node:events";
import type { Socket } from "node:net";
import { after, describe, test } from "node:test";
import { bulkBuffers } from "./buffers.ts";
import { testId, TunnelRig } from "./testing.ts";
import { socketPath, useSocketPath } from "#linux";

async function until(what: string, condition: () => boolean): Promise<void> {
  for (let i = 0; i < 6000; i++) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.fail(`never came: ${what}`);
}

async function readAll(socket: Socket): Promise<string> {
  let text = "";
  socket.setEncoding("utf8").on("data", (chunk: string) => {
    text += chunk;
  });
  await once(socket, "end");
  return text;
}

/** Waits for the end of a connection, which must be a reset. */
async function closed(socket: Socket): Promise<void> {
  let code: string | undefined;
  socket.on("error", (error: NodeJS.ErrnoException) => {
    ({ code } = error);
  });
  await new Promise((resolve) => {
    socket.on("close", resolve);
  });
  assert.equal(code, "ECONNRESET");
}

async function withRig(options: Parameters<typeof TunnelRig.start>[0], body: (rig: TunnelRig) => Promise<void>) {
  const rig = await TunnelRig.start(options);
  try {
    await body(rig);
  } finally {
    await rig.stop();
  }
}

const echo = (socket: Socket): void => {
  socket.pipe(socket);
};
const silent = (): void => {};
for (const path of ["handles", "public"] as const) {
  describe(`tunnels (${path})`, () => {
    const before = socketPath();
    useSocketPath(path);
    after(() => {
      useSocketPath(before);
    });

    test("the client ends first, and the app still answers", async () => {
      useSocketPath(path);
      const app = (socket: Socket): void => {
        void readAll(socket).then((text) => setTimeout(() => socket.end(`got ${text}`), 20));
      };
      await withRig({ app }, async (rig) => {
        const socket = rig.dial();
        socket.end("question");
        assert.equal(await readAll(socket), "got question");
        await until("both results", () => rig.results.outbound.length + rig.results.inbound.length === 2);
        assert.deepEqual(rig.results.outbound, [{ bytesSent: 8, bytesReceived: 12, error: undefined }]);
        assert.deepEqual(rig.results.inbound, [{ bytesSent: 12, bytesReceived: 8, error: undefined }]);
        assert.deepEqual(rig.opened, [{ peer: testId("server"), responseBaggage: "service.name=app" }]);
        const [tunnel] = rig.tunnels;
        assert.equal(tunnel?.peer, testId("client"));
        assert.equal(tunnel?.headers.get("baggage"), "k8s.namespace.name=test");
        assert.match(tunnel?.headers.get("traceparent") ?? "", /^00-[0-9a-f]{32}-[0-9a-f]{16}-00$/);
      });
    });

    test("the app ends first, and still hears the client", async () => {
      useSocketPath(path);
      let heard: Promise<string> | undefined;
      const app = (socket: Socket): void => {
        heard = readAll(socket);
        socket.end("bye");
      };
      await withRig({ app }, async (rig) => {
        const socket = rig.dial();
        assert.equal(await readAll(socket), "bye");
        socket.end("late words");
        await until("the app is there", () => heard !== undefined);
        assert.equal(await heard, "late words");
        await until("both results", () => rig.results.outbound.length + rig.results.inbound.length === 2);
        assert.equal(rig.results.outbound[0]?.error, undefined);
      });
    });

    test("a reset of the client resets the app's side", async () => {
      useSocketPath(path);
      const app = (socket: Socket): void => {
        socket.on("error", (error: NodeJS.ErrnoException) => codes.push(error.code ?? "")).resume();
        socket.write("x");
      };
      const codes: string[] = [];
      await withRig({ app }, async (rig) => {
        const socket = rig.dial();
        await once(socket, "data");
        socket.resetAndDestroy();
        await until("the app's error", () => codes.length > 0);
        assert.deepEqual(codes, ["ECONNRESET"]);
        assert.equal(rig.results.outbound[0]?.error?.code, "LINUX_SOCKET");
        assert.equal(rig.results.inbound[0]?.error?.code, "HBONE_STREAM_RESET");
        assert.equal(rig.pool.sessions, 1, "the session stays");
      });
    });

    test("a reset of the app resets the client's side", async () => {
      useSocketPath(path);
      const app = (socket: Socket): void => {
        socket.once("data", () => socket.resetAndDestroy());
      };
      await withRig({ app }, async (rig) => {
        const socket = rig.dial();
        const codes: string[] = [];
        socket.on("error", (error: NodeJS.ErrnoException) => codes.push(error.code ?? ""));
        socket.write("x");
        await until("the client's error", () => codes.length > 0);
        assert.deepEqual(codes, ["ECONNRESET"]);
        await until("both results", () => rig.results.outbound.length + rig.results.inbound.length === 2);
        assert.equal(rig.results.outbound[0]?.error?.code, "HBONE_STREAM_RESET");
        assert.equal(rig.results.inbound[0]?.error?.code, "LINUX_SOCKET");
      });
    });

    test("a reader that stalls stops its writer, and nobody else on the session", async () => {
      useSocketPath(path);
      const stalled: Socket[] = [];
      const app = (socket: Socket): void => {
        socket.once("readable", () => {
          const first: unknown = socket.read(1);
          if (String(first) === "s") stalled.push(socket);
          else echo(socket);
        });
      };
      await withRig({ app }, async (rig) => {
        const slow = rig.dial();
        slow.write("s");
        const total = 64 << 20;
        slow.write(Buffer.alloc(total, 1));
        let last = -1;
        await until("the writer stops", () => {
          const sent = slow.bytesWritten - slow.writableLength;
          const same = sent === last && sent > 0;
          last = sent;
          return same;
        });
        const quick = rig.dial();
        quick.write("q");
        quick.end("hello");
        assert.equal(await readAll(quick), "hello");
        assert.equal(rig.pool.sessions, 1);
        const [app1] = stalled;
        assert.ok(app1);
        let got = 0;
        app1.on("data", (chunk) => {
          got += chunk.length;
        });
        await until("all of it", () => got === total);
        slow.end();
        app1.end();
        await until("four results", () => rig.results.outbound.length + rig.results.inbound.length === 4);
        assert.deepEqual(
          rig.results.outbound.map(({ error }) => error),
          [undefined, undefined],
        );
      });
    });

    test("many stalled readers beside a fast one: all hold what they may, and it loses nothing of its speed", async () => {
      useSocketPath(path);
      const stalledCount = 30;
      const stalled: Socket[] = [];
      const app = (socket: Socket): void => {
        socket.on("end", () => socket.end("done"));
        socket.once("data", (chunk) => {
          if (chunk[0] !== "s".charCodeAt(0)) return;
          socket.pause();
          stalled.push(socket);
        });
      };
      await withRig({ app }, async (rig) => {
        const chunk = Buffer.alloc(1 << 20, 1);
        const fast = async (): Promise<number> => {
          const socket = rig.dial();
          const beganMs = performance.now();
          for (let i = 0; i < 48; i++) socket.write(chunk);
          socket.end();
          assert.equal(await readAll(socket), "done");
          return performance.now() - beganMs;
        };
        await fast();
        const aloneMs = await fast();
        const writers = Array.from({ length: stalledCount }, () => {
          const socket = rig.dial();
          socket.write("s");
          socket.write(Buffer.alloc(8 << 20, 1));
          return socket;
        });
        await until("all are stalled", () => stalled.length === stalledCount);
        const sent = (): number => writers.reduce((sum, one) => sum + one.bytesWritten - one.writableLength, 0);
        let last = -1;
        await until("their writers stop", () => {
          const now = sent();
          const same = now === last;
          last = now;
          return same && now > stalledCount * (256 << 10);
        });
        assert.ok(last < stalledCount * (8 << 20), "the twin: they do not get on");
        assert.equal(rig.pool.sessions, 1);
        const besideMs = await fast();
        for (const socket of stalled) socket.destroy();
        assert.ok(besideMs < 20 * aloneMs + 5000, `${besideMs} ms beside them, ${aloneMs} ms alone`);
      });
    });

    test("a busy socket gets large buffers, and gives them back when it is quiet or its reads are small", async () => {
      useSocketPath(path);
      await withRig({ app: echo }, async (rig) => {
        const socket = rig.dial();
        const total = 24 << 20;
        const sent = Buffer.alloc(total);
        for (let at = 0; at < total; at += 4) sent.writeUInt32BE(at, at);
        let got = 0;
        let wrong = 0;
        socket.on("data", (chunk) => {
          if (chunk.compare(sent, got, got + chunk.length) !== 0) wrong++;
          got += chunk.length;
        });
        let most = 0;
        const watch = setInterval(() => {
          most = Math.max(most, bulkBuffers.holders);
        }, 1);
        socket.write(sent);
        await until("all of it", () => got === total);
        clearInterval(watch);
        assert.ok(most > 0, "no socket was busy");
        await until("the buffers are back", () => bulkBuffers.holders === 0);
        got = 0;
        for (let i = 0; i < 100; i++) {
          socket.write(sent.subarray(i * 40, i * 40 + 40));
          await until("the echo", () => got === i * 40 + 40);
        }
        assert.equal(wrong, 0);
        socket.end();
        await until("both results", () => rig.results.outbound.length + rig.results.inbound.length === 2);
        assert.equal(rig.results.outbound[0]?.error, undefined);
      });
    });

    test("a refused tunnel resets the client, and says with which status", async () => {
      useSocketPath(path);
      for (const status of [401, 503, 400]) {
        const onTunnel = (tunnel: { refuse: (status: number) => void }): void => {
          tunnel.refuse(status);
        };
        await withRig({ app: silent, onTunnel }, async (rig) => {
          const socket = rig.dial();
          socket.write("words that nobody reads");
          await closed(socket);
          await until("a result", () => rig.results.outbound.length === 1);
          const { error } = rig.results.outbound[0] ?? {};
          assert.equal(error?.code, "HBONE_PEER_STATUS");
          assert.equal(error.details["status"], status);
          assert.equal(rig.pool.sessions, 1, "the session stays");
        });
      }
    });

    test("another identity than expected gets no tunnel and not one byte", async () => {
      useSocketPath(path);
      await withRig({ app: silent, accepted: [testId("somebody")] }, async (rig) => {
        const socket = rig.dial();
        socket.write("secret");
        await closed(socket);
        await until("a result", () => rig.results.outbound.length === 1);
        assert.equal(rig.results.outbound[0]?.error?.code, "X509_UNEXPECTED_IDENTITY");
        assert.equal(rig.results.outbound[0]?.bytesSent, 0);
        assert.equal(rig.tunnels.length, 0);
      });
    });

    test("many first connections share one handshake", async () => {
      useSocketPath(path);
      await withRig({ app: echo }, async (rig) => {
        const sockets = Array.from({ length: 50 }, () => rig.dial());
        const texts = sockets.map(async (socket, index) => {
          socket.end(`number ${index}`);
          return readAll(socket);
        });
        assert.deepEqual(
          await Promise.all(texts),
          sockets.map((_, index) => `number ${index}`),
        );
        assert.equal(rig.pool.sessions, 1);
      });
    });

    test("a renewed certificate moves new tunnels to a new session and keeps the old ones", async () => {
      useSocketPath(path);
      await withRig({ app: echo }, async (rig) => {
        const first = rig.dial();
        first.write("a");
        await once(first, "data");
        rig.pool.certificateChanged(testId("client"));
        const second = rig.dial();
        second.write("b");
        await once(second, "data");
        assert.equal(rig.server.sessions, 2);
        first.end("c");
        assert.equal(await readAll(first), "c");
        await until("the old session ends", () => rig.server.sessions === 1 && rig.pool.sessions === 1);
        second.destroy();
      });
    });

    test("an address that is another's now gets new tunnels on a new session, and no other address does", async () => {
      useSocketPath(path);
      await withRig({ app: echo }, async (rig) => {
        const first = rig.dial();
        first.write("a");
        await once(first, "data");
        rig.pool.peersGone(new Set(["127.0.0.2"]));
        const second = rig.dial();
        second.write("b");
        await once(second, "data");
        assert.equal(rig.server.sessions, 1);
        rig.pool.peersGone(new Set(["127.0.0.1"]));
        const third = rig.dial();
        third.write("c");
        await once(third, "data");
        assert.equal(rig.server.sessions, 2);
        first.end("d");
        assert.equal(await readAll(first), "d");
        for (const socket of [second, third]) socket.destroy();
      });
    });

    test("a draining server serves what it has and takes no more", async () => {
      useSocketPath(path);
      await withRig({ app: echo }, async (rig) => {
        const first = rig.dial();
        first.write("a");
        await once(first, "data");
        const drained = rig.server.drain(5000);
        await new Promise((resolve) => setTimeout(resolve, 50));
        const second = rig.dial();
        await closed(second);
        await until("the second's result", () => rig.results.outbound.length === 1);
        assert.equal(rig.results.outbound[0]?.error?.code, "LINUX_CONNECT_REFUSED");
        first.end("rest");
        assert.equal(await readAll(first), "rest");
        await drained;
        assert.equal(rig.server.sessions, 0);
        await until("the first's result", () => rig.results.outbound.length === 2);
        assert.equal(rig.results.outbound[1]?.error, undefined);
        assert.deepEqual(rig.rejected, []);
      });
    });

    test("at the deadline of a drain what is left is reset, with that reason", async () => {
      useSocketPath(path);
      await withRig({ app: echo }, async (rig) => {
        const socket = rig.dial();
        socket.write("a");
        await once(socket, "data");
        const broken = closed(socket);
        await rig.server.drain(50);
        await broken;
        await until("both results", () => rig.results.outbound.length + rig.results.inbound.length === 2);
        assert.equal(rig.results.inbound[0]?.error?.code, "HBONE_DRAINING");
        assert.match(rig.results.outbound[0]?.error?.code ?? "", /^HBONE_(SESSION_LOST|STREAM_REFUSED)$/);
      });
    });

    test("an unused session is closed after a while", async () => {
      useSocketPath(path);
      await withRig({ app: echo, limits: { idleMs: 100 } }, async (rig) => {
        const socket = rig.dial();
        socket.end("x");
        assert.equal(await readAll(socket), "x");
        await until("no session", () => rig.pool.sessions === 0 && rig.server.sessions === 0);
        const again = rig.dial();
        again.end("y");
        assert.equal(await readAll(again), "y");
        assert.equal(rig.sessionsSeen, 2);
      });
    });

    test("whoever holds a tunnel can end it", async () => {
      useSocketPath(path);
      const onTunnel = (): void => {}; // never answered
      await withRig({ app: silent, onTunnel }, async (rig) => {
        const socket = rig.dial();
        await until("the tunnel", () => rig.tunnels.length === 1);
        const { signal } = rig.tunnels[0] ?? {};
        assert.equal(signal?.aborted, false);
        socket.resetAndDestroy();
        await until("the end is seen", () => signal.aborted);
        assert.equal(rig.tunnels[0]?.closed, true);
        rig.tunnels[0].refuse(503);
      });
      await withRig({ app: echo }, async (rig) => {
        const socket = rig.dial();
        socket.write("a");
        await once(socket, "data");
        const broken = closed(socket);
        await rig.pool.drain(0);
        await broken;
        assert.equal(rig.results.outbound[0]?.error?.code, "HBONE_DRAINING");
      });
    });
  });
}
