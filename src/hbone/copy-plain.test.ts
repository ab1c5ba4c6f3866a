import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { createServer, Socket, type AddressInfo } from "node:net";
import { describe, test } from "node:test";
import { systemClock } from "#base/clock";
import { connectTcp, socketPath, useSocketPath, type TcpSocket } from "#linux";
import { copyPlain } from "./copy-plain.ts";
import { hboneError } from "./errors.ts";
import type { TunnelResult } from "./tunnel.ts";

const clock = systemClock({ unref: true });

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

interface Copied {
  readonly a: Socket;
  readonly b: Socket;
  readonly handle: ReturnType<typeof copyPlain>;
  readonly ended: Promise<TunnelResult>;
}

async function copy(): Promise<Copied> {
  const [a, b] = await Promise.all([pair(), pair()]);
  const { promise, resolve } = Promise.withResolvers<TunnelResult>();
  const handle = copyPlain(a.ours, b.ours, { onEnd: resolve });
  return { a: a.other, b: b.other, handle, ended: promise };
}

async function digestOf(socket: Socket): Promise<string> {
  const hash = createHash("sha256");
  socket.on("data", (chunk) => {
    hash.update(chunk);
    socket.pause();
    setImmediate(() => socket.resume());
  });
  await once(socket, "end");
  return hash.digest("hex");
}

for (const path of ["handles", "public"] as const) {
  const scenario = (name: string, body: () => Promise<void>): void => {
    test(name, async () => {
      const before = socketPath();
      useSocketPath(path);
      try {
        await body();
      } finally {
        useSocketPath(before);
      }
    });
  };

  describe(`plain copies (${path})`, () => {
    scenario("every byte arrives, in both directions, small and large, and the ends are passed on", async () => {
      for (const [up, down] of [
        [0, 10],
        [70_000, 1],
        [20_000_000, 5_000_000],
      ] as const) {
        const { a, b, ended } = await copy();
        const [sent, answered] = [randomBytes(up), randomBytes(down)];
        const [upDigest, downDigest] = [digestOf(b), digestOf(a)];
        a.end(sent);
        b.end(answered);
        assert.equal(await upDigest, createHash("sha256").update(sent).digest("hex"));
        assert.equal(await downDigest, createHash("sha256").update(answered).digest("hex"));
        assert.deepEqual(await ended, { bytesSent: up, bytesReceived: down, error: undefined });
      }
    });

    scenario("one side may end long before the other", async () => {
      const { a, b, ended } = await copy();
      a.end("question");
      const question = await digestOf(b);
      assert.equal(question, createHash("sha256").update("question").digest("hex"));
      await new Promise((resolve) => setTimeout(resolve, 20));
      const answer = digestOf(a);
      b.write("answer ");
      b.end("in parts");
      assert.equal(await answer, createHash("sha256").update("answer in parts").digest("hex"));
      assert.equal((await ended).error, undefined);
    });

    scenario("a reader that stalls stops the writer", async () => {
      const { a, b, handle, ended } = await copy();
      const total = 64 << 20;
      a.end(Buffer.alloc(total, 1));
      let last = -1;
      for (let calm = 0; calm < 3;) {
        await new Promise((resolve) => setTimeout(resolve, 30));
        calm = handle.bytes.sent === last ? calm + 1 : 0;
        last = handle.bytes.sent;
      }
      assert.ok(last < total / 2, `${last} bytes are under way`);
      let got = 0;
      b.on("data", (chunk) => {
        got += chunk.length;
      });
      await once(b, "end");
      assert.equal(got, total);
      b.end();
      assert.equal((await ended).bytesSent, total);
    });

    scenario("a reset of either side is a reset of the other", async () => {
      const { a, b, ended } = await copy();
      const codes: (string | undefined)[] = [];
      b.on("error", (error: NodeJS.ErrnoException) => codes.push(error.code));
      a.write("x");
      await once(b, "data");
      a.resetAndDestroy();
      assert.equal((await ended).error?.code, "LINUX_SOCKET");
      if (!b.closed) await new Promise((resolve) => b.once("close", resolve));
      assert.deepEqual(codes, ["ECONNRESET"]);
    });

    scenario("whoever holds the copy can end it", async () => {
      const { b, handle, ended } = await copy();
      const error = hboneError("HBONE_ABORTED", "enough");
      handle.abort(error);
      handle.abort(hboneError("HBONE_ABORTED", "again"));
      assert.equal((await ended).error, error);
      b.destroy();
    });
  });
}
