import assert from "node:assert/strict";
import { createServer } from "node:net";
import { test } from "node:test";
import fc from "fast-check";
import { systemClock } from "#base/clock";
import { isWhole, readAnswer, runClient, type ClientOptions } from "./client.ts";
import { httpEcho, takeRequest, tcpEcho } from "./echo-servers.ts";
import { connect } from "node:net";

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise<void>((resolve) => void server.close(() => resolve()));
  assert.ok(typeof address === "object" && address !== null);
  return address.port;
}

async function withServer(serve: typeof tcpEcho, use: (port: number) => Promise<void>): Promise<void> {
  const port = await freePort();
  const stop = new AbortController();
  const ready = Promise.withResolvers<void>();
  const context = { out: () => ready.resolve(), env: { HOSTNAME: "web-1" }, signal: stop.signal };
  const served = serve({ port, address: "127.0.0.1" }, context);
  await Promise.race([ready.promise, served]);
  try {
    await use(port);
  } finally {
    stop.abort();
    await served;
  }
}

async function client(port: number, more: Partial<ClientOptions>): Promise<string[]> {
  const lines: string[] = [];
  const options = {
    targets: [{ host: "127.0.0.1", port }],
    intervalMs: 1,
    timeoutMs: 1_000,
    count: 3,
    keep: false,
    words: "the secret question",
    ...more,
  };
  const context = {
    out: (line: string) => void lines.push(line),
    env: { HOSTNAME: "client-1" },
    signal: new AbortController().signal,
  };
  await runClient(options, systemClock(), context);
  return lines;
}

test("a kept connection that was closed since the last answer fails at once, and the next try opens another", async () => {
  const server = createServer((socket) => {
    socket.on("error", () => {}); // the client may be gone
    socket.once("data", () => socket.end("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  assert.ok(typeof address === "object" && address !== null);
  const lines = await client(address.port, { keep: true, timeoutMs: 600_000, intervalMs: 50 });
  server.close();
  assert.deepEqual(
    lines.map((line) => line.split(" ")[2]),
    ["ok", "failed", "ok"],
  );
});

test("the client prints a line per try, on new or on kept connections", async () => {
  await withServer(
    (options, context) => httpEcho({ ...options, words: "the answer" }, context),
    async (port) => {
      const fresh = await client(port, {});
      assert.equal(fresh.length, 3);
      const line =
        /^\S+Z http:\/\/127\.0\.0\.1:\d+ ok [\d.]+ms new 127\.0\.0\.1:(\d+) hello from web-1: the answer .*the secret question \(client-1, try (\d)\)$/;
      assert.equal(new Set(fresh.map((one) => line.exec(one)?.[1])).size, 3);
      const kept = await client(port, { keep: true });
      assert.deepEqual(
        kept.map((one) => one.split(" ")[4]),
        ["new", "kept", "kept"],
      );
      assert.equal(new Set(kept.map((one) => one.split(" ")[5])).size, 1);
    },
  );
});

test("a try that fails says why, and the next one goes on", async () => {
  const port = await freePort();
  const lines = await client(port, { count: 2 });
  assert.equal(lines.length, 2);
  for (const line of lines) assert.match(line, /failed [\d.]+ms new - ECONNREFUSED$/);
  await withServer(tcpEcho, async (echo) => {
    const [line] = await client(echo, { count: 1 });
    assert.match(line ?? "", /failed .* the answer is no HTTP$/);
  });
});

test("the echo server gives back every byte, also after the other side has ended", async () => {
  await withServer(tcpEcho, async (port) => {
    const sent = Buffer.alloc(300_000, "abc");
    const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
    socket.end(sent);
    const chunks: Buffer[] = [];
    for await (const chunk of socket) chunks.push(chunk as Buffer);
    assert.ok(Buffer.concat(chunks).equals(sent));
  });
});

test("requests are taken one by one, however they arrive", () => {
  const request = fc.record({
    path: fc.constantFrom("/", "/a"),
    body: fc.string({ maxLength: 20 }),
    close: fc.boolean(),
  });
  fc.assert(
    fc.property(fc.array(request, { maxLength: 4 }), fc.nat(30), (requests, cut) => {
      const whole = Buffer.concat(
        requests.map(({ path, body, close }) =>
          Buffer.from(
            `POST ${path} HTTP/1.1\r\nContent-Length: ${Buffer.byteLength(body)}\r\n${close ? "Connection: close\r\n" : ""}\r\n${body}`,
          ),
        ),
      );
      let rest = whole.subarray(0, Math.max(0, whole.length - cut));
      const seen = [];
      for (let taken = takeRequest(rest); taken !== undefined; taken = takeRequest(rest)) {
        assert.ok(taken.size > 0 && taken.size <= rest.length);
        seen.push({ path: taken.line.split(" ")[1], body: taken.body, close: taken.close });
        rest = rest.subarray(taken.size);
      }
      assert.deepEqual(
        seen,
        requests.slice(0, seen.length).map((one) => ({ ...one })),
      );
      if (cut === 0) assert.equal(seen.length, requests.length);
    }),
  );
  fc.assert(fc.property(fc.uint8Array(), (bytes) => void takeRequest(Buffer.from(bytes))));
});

test("an answer is judged by its status, and only when it is whole", () => {
  assert.ok(!isWhole("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"));
  assert.ok(isWhole("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"));
  assert.deepEqual(readAnswer("HTTP/1.1 200 OK\r\n\r\nyes\nmore"), { ok: true, answer: "yes" });
  assert.deepEqual(readAnswer("HTTP/1.1 503 No\r\n\r\nlater"), { ok: false, answer: "status 503 later" });
  fc.assert(
    fc.property(fc.string(), (text) =>
      assert.equal(typeof isWhole(text) + typeof readAnswer(text).ok, "booleanboolean"),
    ),
  );
});
