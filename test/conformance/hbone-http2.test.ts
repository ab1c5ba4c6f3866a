import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import http2 from "node:http2";
import { createServer, type AddressInfo } from "node:net";
import { after, before, describe, test } from "node:test";
import { connect as connectTls } from "node:tls";
import { systemClock } from "#base/clock";
import { systemRandom } from "#base/random";
import { HbonePool, HboneServer, type InboundTunnel, type TunnelResult } from "#hbone";
import { connectTcp } from "#linux";
import { identities, testId } from "../../src/hbone/testing.ts";

// Node's HTTP/2 is nghttp2: an independent implementation, as client and as server.

const clock = systemClock({ unref: true });

function digest(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

async function until(what: string, condition: () => boolean): Promise<void> {
  for (let i = 0; i < 6000; i++) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.fail(`never came: ${what}`);
}

/** An app that echoes; a connection whose first byte is `!` is reset. */
const app = createServer({ allowHalfOpen: true }, (socket) => {
  socket.on("error", () => {});
  socket.once("readable", () => {
    const first: unknown = socket.read(1);
    if (String(first) === "!") socket.resetAndDestroy();
    else socket.pipe(socket);
  });
});

before(async () => {
  await new Promise<void>((resolve) => app.listen(0, "127.0.0.1", resolve));
});
after(() => {
  app.close();
});

const appPort = (): number => (app.address() as AddressInfo).port;

describe("nghttp2 as the client", () => {
  let server: HboneServer;
  let client: http2.ClientHttp2Session;
  const results: TunnelResult[] = [];
  const rejected: string[] = [];

  const serve = async (tunnel: InboundTunnel): Promise<void> => {
    if (tunnel.authority.startsWith("10.")) {
      tunnel.refuse(401);
      return;
    }
    const socket = await connectTcp({ ip: "127.0.0.1", port: appPort(), timeoutMs: 60_000, clock });
    tunnel.accept(socket, { baggage: "service.name=app", onEnd: (result) => results.push(result) });
  };

  async function connect(options: http2.ClientSessionOptions = {}): Promise<http2.ClientHttp2Session> {
    const { client: identity } = await identities();
    const session = http2.connect("https://127.0.0.1", {
      ...options,
      createConnection: () =>
        connectTls({
          host: "127.0.0.1",
          port: server.port,
          key: identity.keyPem,
          cert: identity.chainPem,
          ca: identity.rootsPem,
          checkServerIdentity: () => undefined,
          ALPNProtocols: ["h2"],
        }),
    });
    session.on("error", () => {});
    await once(session, "connect");
    return session;
  }

  before(async () => {
    const { server: identity } = await identities();
    server = new HboneServer({
      ip: "127.0.0.1",
      port: 0,
      certificate: () => identity,
      clock,
      onTunnel: (tunnel) => {
        void serve(tunnel);
      },
      onRejected: ({ error }) => rejected.push(error.code),
    });
    server.start();
    client = await connect();
  });
  after(async () => {
    client.destroy();
    await server.drain(0);
  });

  async function request(
    headers: http2.OutgoingHttpHeaders,
    session = client,
  ): Promise<{ stream: http2.ClientHttp2Stream; headers: http2.IncomingHttpHeaders }> {
    const stream = session.request(headers, { endStream: false });
    stream.on("error", () => {});
    const [answer] = await once(stream, "response");
    return { stream, headers: answer };
  }

  async function echo(bytes: Uint8Array, session = client): Promise<string> {
    const { stream, headers } = await request({ ":method": "CONNECT", ":authority": "127.0.0.1:1" }, session);
    assert.equal(headers[":status"], 200);
    assert.equal(headers["baggage"], "service.name=app");
    stream.end(bytes);
    const chunks: Buffer[] = [];
    stream.on("data", (chunk: Buffer) => chunks.push(chunk));
    await once(stream, "end");
    return digest(Buffer.concat(chunks));
  }

  test("bytes of all sizes come back, END_STREAM is FIN and FIN is END_STREAM", async () => {
    for (const size of [1, 16_384, 70_000, 9_000_000]) {
      const bytes = randomBytes(size);
      bytes[0] = 1;
      // The app does not send back the byte that it looks at.
      assert.equal(await echo(bytes), digest(bytes.subarray(1)), `${size} bytes`);
    }
    await until("the results", () => results.length === 4);
    assert.deepEqual(
      results.map(({ error }) => error),
      [undefined, undefined, undefined, undefined],
    );
  });

  test("padded frames, small windows and small frames make no difference", async () => {
    const session = await connect({
      paddingStrategy: http2.constants.PADDING_STRATEGY_MAX,
      settings: { initialWindowSize: 1000, maxFrameSize: 16_384, headerTableSize: 0 },
    });
    const bytes = randomBytes(300_000);
    bytes[0] = 1;
    const all = await Promise.all([echo(bytes, session), echo(bytes, session), echo(bytes, session)]);
    assert.deepEqual(new Set(all), new Set([digest(bytes.subarray(1))]));
    session.close();
  });

  test("more streams than the server takes at a time all get their turn", async () => {
    const bytes = Buffer.from("xyz");
    const all = await Promise.all(Array.from({ length: 300 }, async () => echo(bytes)));
    assert.deepEqual(new Set(all), new Set([digest(Buffer.from("yz"))]));
    assert.equal(client.remoteSettings.maxConcurrentStreams, 200);
  });

  test("headers that use Huffman, the dynamic table and CONTINUATION are read", async () => {
    for (let i = 0; i < 3; i++) {
      const extra = Object.fromEntries(Array.from({ length: 40 }, (_, n) => [`x-${n}`, "v".repeat(900)]));
      const { stream, headers } = await request({ ":method": "CONNECT", ":authority": "127.0.0.1:1", ...extra });
      assert.equal(headers[":status"], 200);
      stream.close();
    }
  });

  test("what is no CONNECT to an address is refused with 400, a policy's refusal with 401", async () => {
    for (const headers of [
      { ":method": "GET", ":path": "/", ":authority": "127.0.0.1:1", ":scheme": "https" },
      { ":method": "CONNECT", ":authority": "127.0.0.1" },
      { ":method": "CONNECT", ":authority": "127.0.0.1:99999" },
    ]) {
      const answer = await request(headers);
      assert.equal(answer.headers[":status"], 400);
    }
    assert.deepEqual(rejected.splice(0), ["HBONE_MALFORMED", "HBONE_MALFORMED", "HBONE_MALFORMED"]);
    const answer = await request({ ":method": "CONNECT", ":authority": "10.0.0.1:80" });
    assert.equal(answer.headers[":status"], 401);
  });

  test("a reset of the app is RST_STREAM CANCEL, and RST_STREAM is a reset of the app's side", async () => {
    const { stream } = await request({ ":method": "CONNECT", ":authority": "127.0.0.1:1" });
    stream.write("!");
    await once(stream, "close");
    assert.equal(stream.rstCode, http2.constants.NGHTTP2_CANCEL);
    results.length = 0;
    const second = await request({ ":method": "CONNECT", ":authority": "127.0.0.1:1" });
    second.stream.write("ab");
    await once(second.stream, "data");
    second.stream.close(http2.constants.NGHTTP2_CANCEL);
    await until("the result", () => results.some(({ error }) => error?.code === "HBONE_STREAM_RESET"));
  });

  test("pings are answered", async () => {
    const payload = Buffer.from("12345678");
    const answer = await new Promise<Buffer>((resolve, reject) => {
      client.ping(payload, (error, _duration, echoed) => (error === null ? resolve(echoed) : reject(error)));
    });
    assert.deepEqual(Buffer.from(answer), payload);
  });

  test("draining is a GOAWAY in two steps; the running stream ends in peace", async () => {
    const goaways: number[] = [];
    client.on("goaway", (code: number, lastStreamId: number) => {
      assert.equal(code, 0);
      goaways.push(lastStreamId);
    });
    const { stream } = await request({ ":method": "CONNECT", ":authority": "127.0.0.1:1" });
    stream.write("a");
    const drained = server.drain(5000);
    await until("both", () => goaways.length === 2);
    assert.equal(goaways[0], 2 ** 31 - 1);
    assert.ok((goaways[1] ?? 0) >= (stream.id ?? 0) && goaways[1] !== goaways[0]);
    stream.end("bc");
    let text = "";
    stream.setEncoding("utf8").on("data", (chunk: string) => {
      text += chunk;
    });
    await once(stream, "end");
    assert.equal(text, "bc");
    await drained;
    assert.deepEqual(rejected, []);
  });
});

describe("nghttp2 as the server", () => {
  let server: http2.Http2SecureServer;
  const sessions: http2.ServerHttp2Session[] = [];
  let respond: (stream: http2.ServerHttp2Stream) => void;

  const echoing = (stream: http2.ServerHttp2Stream): void => {
    stream.respond({ ":status": 200, baggage: "service.name=other" });
    stream.pipe(stream);
  };

  async function startServer(options: http2.SecureServerOptions): Promise<void> {
    const { server: identity } = await identities();
    server = http2.createSecureServer({
      key: identity.keyPem,
      cert: identity.chainPem,
      ca: identity.rootsPem,
      requestCert: true,
      ...options,
    });
    server.on("session", (session) => {
      sessions.push(session);
      session.on("error", () => {});
    });
    server.on("stream", (stream, headers) => {
      stream.on("error", () => {});
      assert.equal(headers[":method"], "CONNECT");
      assert.equal(headers[":authority"], "10.1.2.3:80");
      assert.match(String(headers["forwarded"]), /^for=/);
      respond(stream);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  }

  interface Ended extends TunnelResult {
    readonly opened: string | undefined;
    readonly echoed: string | undefined;
  }

  async function open(pool: HbonePool, bytes: Uint8Array): Promise<Ended> {
    const plain = createServer({ allowHalfOpen: true }).listen(0, "127.0.0.1");
    await once(plain, "listening");
    const accepted = once(plain, "connection");
    const socket = await connectTcp({
      ip: "127.0.0.1",
      port: (plain.address() as AddressInfo).port,
      timeoutMs: 60_000,
      clock,
    });
    const [client] = await accepted;
    plain.close();
    const chunks: Buffer[] = [];
    client.on("error", () => {});
    client.on("data", (chunk: Buffer) => chunks.push(chunk));
    client.end(bytes);
    let opened: string | undefined;
    const result = await new Promise<TunnelResult>((resolve) => {
      pool.open({
        source: testId("client"),
        accepted: [testId("server")],
        ip: "127.0.0.1",
        port: (server.address() as AddressInfo).port,
        authority: "10.1.2.3:80",
        headers: { baggage: "k=v", forwarded: 'for="10.9.9.9:1";host=a.b' },
        socket,
        onOpen: ({ responseBaggage }) => {
          opened = responseBaggage;
        },
        onEnd: resolve,
      });
    });
    if (result.error === undefined && !client.readableEnded) await once(client, "end");
    return { ...result, opened, echoed: digest(Buffer.concat(chunks)) };
  }

  async function withPool(options: http2.SecureServerOptions, body: (pool: HbonePool) => Promise<void>): Promise<void> {
    const { client } = await identities();
    await startServer(options);
    respond = echoing;
    const pool = new HbonePool({ clock, random: systemRandom, certificate: () => client });
    try {
      await body(pool);
    } finally {
      await pool.drain(0);
      for (const session of sessions) session.destroy();
      sessions.length = 0;
      server.close();
    }
  }

  test("bytes of all sizes come back, with default settings", async () => {
    await withPool({}, async (pool) => {
      for (const size of [0, 1, 70_000, 9_000_000]) {
        const bytes = randomBytes(size);
        const result = await open(pool, bytes);
        assert.equal(result.error, undefined);
        assert.equal(result.opened, "service.name=other");
        assert.equal(result.echoed, digest(bytes), `${size} bytes`);
        assert.equal(result.bytesSent, size);
        assert.equal(result.bytesReceived, size);
      }
      assert.equal(pool.sessions, 1);
    });
  });

  test("bytes come back through small windows, padding and frames of one MiB", async () => {
    for (const settings of [
      { initialWindowSize: 500, headerTableSize: 0 },
      { maxFrameSize: 1 << 20, initialWindowSize: 4 << 20 },
      { maxConcurrentStreams: 3 },
    ]) {
      const options = { settings, paddingStrategy: http2.constants.PADDING_STRATEGY_MAX };
      await withPool(options, async (pool) => {
        const bytes = randomBytes(500_000);
        const all = await Promise.all([open(pool, bytes), open(pool, bytes)]);
        for (const { echoed, error } of all) {
          assert.equal(error, undefined, JSON.stringify(settings));
          assert.equal(echoed, digest(bytes), JSON.stringify(settings));
        }
      });
    }
  });

  test("a peer that takes fewer tunnels than we think gets the rest on other sessions: none fails", async () => {
    await withPool({ settings: { maxConcurrentStreams: 3 } }, async (pool) => {
      const bytes = randomBytes(50_000);
      const all = await Promise.all(Array.from({ length: 20 }, async () => open(pool, bytes)));
      assert.deepEqual(new Set(all.map(({ error }) => error)), new Set([undefined]));
      assert.deepEqual(new Set(all.map(({ echoed }) => echoed)), new Set([digest(bytes)]));
      assert.ok(sessions.length >= 2, `${sessions.length} sessions`);
    });
  });

  test("answers other than 200, resets and refusals have their codes", async () => {
    await withPool({}, async (pool) => {
      respond = (stream) => {
        stream.respond({ ":status": 401 }, { endStream: true });
      };
      const refused = await open(pool, Buffer.from("x"));
      assert.equal(refused.error?.code, "HBONE_PEER_STATUS");
      assert.equal(refused.error.details["status"], 401);
      respond = (stream) => {
        stream.close(http2.constants.NGHTTP2_REFUSED_STREAM);
      };
      assert.equal((await open(pool, Buffer.from("x"))).error?.code, "HBONE_STREAM_REFUSED");
      respond = (stream) => {
        stream.respond({ ":status": 200 });
        stream.close(http2.constants.NGHTTP2_CANCEL);
      };
      assert.equal((await open(pool, Buffer.from("x"))).error?.code, "HBONE_STREAM_RESET");
      respond = echoing;
      assert.equal((await open(pool, Buffer.from("x"))).error, undefined);
      assert.equal(pool.sessions, 1);
    });
  });

  test("after a GOAWAY new tunnels use a new session, and the old one ends in peace", async () => {
    await withPool({}, async (pool) => {
      assert.equal((await open(pool, Buffer.from("x"))).error, undefined);
      sessions[0]?.close();
      await until("the session is gone", () => pool.sessions === 0);
      assert.equal((await open(pool, Buffer.from("y"))).error, undefined);
      assert.equal(sessions.length, 2);
    });
  });

  test("a session that died unseen while nobody used it costs a connection nothing", async () => {
    const { client } = await identities();
    await startServer({});
    respond = echoing;
    let laterMs = 0;
    const late = { ...clock, monotonic: () => clock.monotonic() + laterMs };
    const pool = new HbonePool({ clock: late, random: systemRandom, certificate: () => client });
    assert.equal((await open(pool, Buffer.from("x"))).error, undefined);
    laterMs = 60_000;
    let deaths = 0;
    respond = (stream) => {
      deaths++;
      if (deaths === 1) stream.session?.destroy();
      else echoing(stream);
    };
    const bytes = randomBytes(100_000);
    const result = await open(pool, bytes);
    assert.equal(result.error, undefined);
    assert.equal(result.echoed, digest(bytes));
    assert.equal(deaths, 2);
    await pool.drain(0);
    server.close();
  });

  test("our keep-alive is answered by the peer", async () => {
    const { client } = await identities();
    await startServer({});
    const pings: Buffer[] = [];
    server.on("session", (session) => session.on("ping", (payload: Buffer) => pings.push(payload)));
    respond = (stream) => {
      stream.respond({ ":status": 200 });
      setTimeout(() => stream.end("late"), 400);
      stream.resume();
    };
    const limits = { pingIntervalMs: 50, pingTimeoutMs: 100 };
    const pool = new HbonePool({ clock, random: systemRandom, certificate: () => client, limits });
    const result = await open(pool, Buffer.from("x"));
    assert.equal(result.error, undefined);
    assert.equal(result.echoed, digest(Buffer.from("late")));
    assert.ok(pings.length >= 2, `${pings.length} pings`);
    await pool.drain(0);
    server.close();
  });
});
