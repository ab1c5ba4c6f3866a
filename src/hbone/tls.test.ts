import assert from "node:assert/strict";
import { once } from "node:events";
import { connect as connectPlain, createServer as createPlain, type AddressInfo, type Server } from "node:net";
import { after, before, describe, test } from "node:test";
import { connect, createServer, type ConnectionOptions, type TLSSocket } from "node:tls";
import { systemClock } from "#base/clock";
import { systemRandom } from "#base/random";
import { connectTcp, type TcpSocket } from "#linux";
import type { TlsIdentity } from "#model/tls-identity";
import { TestAuthority, x509 } from "../x509/testing.ts";
import { HbonePool } from "./pool.ts";
import type { InboundTunnel } from "./server-session.ts";
import type { HboneLimits } from "./limits.ts";
import { HboneServer } from "./server.ts";
import { identities, testId } from "./testing.ts";
import type { TunnelResult } from "./tunnel.ts";

const clock = systemClock({ unref: true });
const digitalSignature = 1;

async function until(what: string, condition: () => boolean): Promise<void> {
  for (let i = 0; i < 6000; i++) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.fail(`never came: ${what}`);
}

function clientOptions(identity: TlsIdentity): ConnectionOptions {
  return {
    key: identity.keyPem,
    cert: identity.chainPem,
    ca: identity.rootsPem,
    minVersion: "TLSv1.3",
    ALPNProtocols: ["h2"],
    checkServerIdentity: () => undefined,
  };
}

/** A connected socket whose other end does not matter. */
async function someSocket(): Promise<TcpSocket> {
  const app = createPlain((socket) => socket.on("error", () => {})).listen(0, "127.0.0.1");
  await once(app, "listening");
  const { port } = app.address() as AddressInfo;
  const accepted = once(app, "connection");
  const socket = await connectTcp({ ip: "127.0.0.1", port, timeoutMs: 60_000, clock });
  await accepted; // else closing the listener resets it
  app.close();
  return socket;
}

/** Crafted identities that break one rule each, and the code that refuses them. */
async function hostiles(): Promise<{ name: string; identity: TlsIdentity; code: string }[]> {
  const { authority } = await identities();
  const id = testId("client");
  const other = await TestAuthority.create();
  const foreign = await authority.identity(testId("client", "elsewhere.org"));
  const { keyCertSign, cRLSign } = x509.KeyUsageFlags;
  const now = new Date().getTime();
  const broken = async (wishes: Parameters<TestAuthority["brokenIdentity"]>[0]): Promise<TlsIdentity> =>
    authority.brokenIdentity(wishes);
  return [
    { name: "of another trust domain", identity: foreign, code: "X509_WRONG_TRUST_DOMAIN" },
    {
      name: "with two URI SANs",
      identity: await broken({ uris: [id, testId("server")] }),
      code: "X509_TWO_URI_SANS",
    },
    { name: "without a URI SAN", identity: await broken({ dnsNames: ["a.b"] }), code: "X509_NO_URI_SAN" },
    {
      name: "with a URI that is no SPIFFE ID",
      identity: await broken({ uris: ["http://a/b"] }),
      code: "X509_BAD_SPIFFE_ID",
    },
    {
      name: "with an authority's certificate",
      identity: await broken({ uris: [id], isCa: true, keyUsage: digitalSignature | keyCertSign }),
      code: "X509_CA_AS_LEAF",
    },
    {
      name: "whose certificate may sign certificates",
      identity: await broken({ uris: [id], keyUsage: digitalSignature | keyCertSign }),
      code: "X509_LEAF_SIGNS_CERTIFICATES",
    },
    {
      name: "whose certificate may sign revocation lists",
      identity: await broken({ uris: [id], keyUsage: digitalSignature | cRLSign }),
      code: "X509_LEAF_SIGNS_CRLS",
    },
    {
      name: "whose certificate has expired",
      identity: await broken({ uris: [id], notBeforeMs: now - 200_000, notAfterMs: now - 100_000 }),
      code: "HBONE_TLS_EXPIRED",
    },
    {
      name: "of another authority",
      identity: { ...(await other.identity(id)), rootsPem: (await identities()).server.rootsPem },
      code: "HBONE_TLS_UNTRUSTED",
    },
  ];
}

describe("hostile TLS clients", () => {
  let server: HboneServer;
  const rejected: string[] = [];
  const tunnels: InboundTunnel[] = [];

  async function startServer(handshakeTimeoutMs: number): Promise<HboneServer> {
    const { server: identity } = await identities();
    const started = new HboneServer({
      ip: "127.0.0.1",
      port: 0,
      certificate: () => identity,
      clock,
      limits: { handshakeTimeoutMs },
      onTunnel: (tunnel) => tunnels.push(tunnel),
      onRejected: ({ error }) => rejected.push(error.code),
    });
    started.start();
    return started;
  }

  before(async () => {
    server = await startServer(60_000);
  });
  after(async () => {
    await server.drain(0);
  });

  /** Shakes hands, sends a request at once, and reads to the end; the server's verdict is what counts. */
  async function attack(options: ConnectionOptions): Promise<string> {
    rejected.length = 0;
    const socket: TLSSocket = connect({ port: server.port, host: "127.0.0.1", ...options });
    const closed = new Promise<void>((resolve) => {
      socket.on("close", () => {
        resolve();
      });
    });
    let bytes = 0;
    socket.on("error", () => {});
    socket.on("data", (chunk) => {
      bytes += chunk.length;
    });
    socket.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    await closed;
    await until("a verdict", () => rejected.length > 0);
    assert.equal(bytes, 0, "the server says nothing to a stranger");
    assert.equal(tunnels.length, 0);
    return rejected.join();
  }

  test("each broken certificate is refused with a code of its own", async () => {
    for (const { name, identity, code } of await hostiles()) {
      assert.equal(await attack(clientOptions(identity)), code, `a client ${name}`);
    }
  });

  test("no certificate, no ALPN, another ALPN, an old version, no TLS: each has its code", async () => {
    const { client } = await identities();
    const { key: _key, cert: _cert, ...anonymous } = clientOptions(client);
    assert.equal(await attack(anonymous), "HBONE_TLS_NO_CERTIFICATE");
    const { ALPNProtocols: _alpn, ...withoutAlpn } = clientOptions(client);
    assert.equal(await attack(withoutAlpn), "HBONE_TLS_NO_ALPN");
    assert.equal(await attack({ ...clientOptions(client), ALPNProtocols: ["http/1.1"] }), "HBONE_TLS_NO_ALPN");
    const old = { ...clientOptions(client), minVersion: "TLSv1.2", maxVersion: "TLSv1.2" } as const;
    assert.equal(await attack(old), "HBONE_TLS_HANDSHAKE");

    rejected.length = 0;
    const plain = connectPlain(server.port, "127.0.0.1");
    plain.on("error", () => {});
    plain.write("GET / HTTP/1.1\r\n\r\n");
    await until("plaintext is refused", () => rejected.length > 0);
    assert.deepEqual(rejected, ["HBONE_TLS_HANDSHAKE"]);

    rejected.length = 0;
    const impatient = await startServer(200);
    const idle = connectPlain(impatient.port, "127.0.0.1");
    idle.on("error", () => {});
    await until("silence is refused", () => rejected.length > 0);
    assert.deepEqual(rejected, ["HBONE_TLS_TIMEOUT"]);
    idle.destroy();
    await impatient.drain(0);

    rejected.length = 0;
    const gone = connectPlain(server.port, "127.0.0.1");
    await once(gone, "connect");
    gone.destroy();
    await until("a client that leaves is noted", () => rejected.length > 0);
    assert.deepEqual(rejected, ["HBONE_TLS_HANDSHAKE"]);
    assert.equal(server.sessions, 0);
  });

  test("a proper client that does not speak HTTP/2 is named, too", async () => {
    const { client } = await identities();
    rejected.length = 0;
    const socket = connect({ port: server.port, host: "127.0.0.1", ...clientOptions(client) });
    socket.on("error", () => {}).on("data", () => {});
    socket.write("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    await until("a verdict", () => rejected.length > 0);
    assert.deepEqual(rejected, ["HBONE_PREFACE"]);
    socket.destroy();
  });
});

describe("hostile TLS servers", () => {
  async function dial(port: number, limits: Partial<HboneLimits>): Promise<TunnelResult> {
    const { client } = await identities();
    const pool = new HbonePool({
      clock,
      random: systemRandom,
      certificate: () => client,
      limits: { handshakeTimeoutMs: 60_000, ...limits },
    });
    const socket = await someSocket();
    const result = await new Promise<TunnelResult>((resolve) => {
      pool.open({
        source: client.id,
        accepted: [testId("server"), testId("client")],
        ip: "127.0.0.1",
        port,
        authority: "10.0.0.1:80",
        headers: { baggage: "", forwarded: "" },
        socket,
        onEnd: resolve,
      });
    });
    assert.equal(pool.sessions, 0);
    return result;
  }

  // eslint-disable-next-line max-params -- a row of a table reads best so
  async function against(server: Server, code: string, what: string, limits: Partial<HboneLimits> = {}): Promise<void> {
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    try {
      const result = await dial((server.address() as AddressInfo).port, limits);
      assert.equal(result.error?.code, code, `${what}: ${result.error?.message}`);
      assert.equal(result.bytesReceived, 0);
    } finally {
      server.close();
    }
  }

  function tlsServer(identity: TlsIdentity, onConnection: (socket: TLSSocket) => void = () => {}): Server {
    const { keyPem: key, chainPem: cert, rootsPem: ca } = identity;
    const server = createServer({ key, cert, ca, requestCert: true, ALPNProtocols: ["h2"] }, (socket) => {
      socket.on("error", () => {});
      onConnection(socket);
    });
    return server.on("tlsClientError", () => {});
  }

  test("each broken certificate is refused with a code of its own", async () => {
    for (const { name, identity, code } of await hostiles()) {
      await against(tlsServer(identity), code, `a server ${name}`);
    }
  });

  test("no ALPN, no TLS, silence, a refusal: each has its code", async () => {
    const { server: identity, authority } = await identities();
    const { keyPem: key, chainPem: cert } = identity;
    await against(
      createServer({ key, cert }).on("tlsClientError", () => {}),
      "HBONE_TLS_NO_ALPN",
      "no ALPN",
    );
    const greeter = createPlain((socket) => socket.on("error", () => {}).end("220 hello\r\n"));
    await against(greeter, "HBONE_TLS_HANDSHAKE", "no TLS");
    const mute = createPlain((socket) => {
      socket.on("error", () => {});
      setTimeout(() => socket.destroy(), 60_000).unref();
    });
    await against(mute, "HBONE_TLS_TIMEOUT", "silence", { handshakeTimeoutMs: 200 });
    await against(
      tlsServer(identity, (socket) => socket.destroy()),
      "HBONE_SESSION_REFUSED",
      "closed at once",
    );
    await against(
      tlsServer(identity, (socket) => setTimeout(() => socket.destroy(), 60_000).unref()),
      "HBONE_PING_TIMEOUT",
      "silent after the handshake",
      { pingIntervalMs: 200, pingTimeoutMs: 300 },
    );
    await against(tlsServer(await authority.identity(testId("other"))), "X509_UNEXPECTED_IDENTITY", "another identity");
  });
});

test("without a certificate of our own nothing is dialled and nobody is let in", async () => {
  const rejected: string[] = [];
  const server = new HboneServer({
    ip: "127.0.0.1",
    port: 0,
    certificate: () => undefined,
    clock,
    limits: { certificateWaitMs: 20 },
    onTunnel: () => {},
    onRejected: ({ error }) => rejected.push(error.code),
  });
  server.start();
  const pool = new HbonePool({ clock, random: systemRandom, certificate: () => undefined });
  const socket = await someSocket();
  const result = await new Promise<TunnelResult>((resolve) => {
    pool.open({
      source: testId("client"),
      accepted: [testId("server")],
      ip: "127.0.0.1",
      port: server.port,
      authority: "10.0.0.1:80",
      headers: { baggage: "", forwarded: "" },
      socket,
      onEnd: resolve,
    });
  });
  assert.equal(result.error?.code, "HBONE_NO_CERTIFICATE");
  const stranger = connectPlain(server.port, "127.0.0.1");
  stranger.on("error", () => {});
  await until("the server's verdict", () => rejected.length > 0);
  assert.deepEqual(rejected, ["HBONE_NO_CERTIFICATE"]);
  await server.drain(0);
});

test("a peer that comes before our certificate waits for it, at most as many as may shake hands", async () => {
  const { client, server: identity } = await identities();
  let ours: TlsIdentity | undefined;
  const rejected: string[] = [];
  const server = new HboneServer({
    ip: "127.0.0.1",
    port: 0,
    certificate: () => ours,
    clock,
    limits: { handshakesPerListener: 2 },
    onTunnel: () => {},
    onRejected: ({ error }) => rejected.push(error.code),
  });
  server.start();
  const dial = (): TLSSocket => {
    const credentials = { key: client.keyPem, cert: client.chainPem, ca: client.rootsPem };
    const where = { host: "127.0.0.1", port: server.port, ALPNProtocols: ["h2"] };
    return connect({ ...credentials, ...where, checkServerIdentity: () => undefined }).on("error", () => {});
  };
  const first = dial();
  const second = dial();
  const ready = Promise.all([once(first, "secureConnect"), once(second, "secureConnect")]);
  await Promise.all([once(first, "connect"), once(second, "connect")]);
  const third = dial();
  await until("the third is one too many", () => rejected.length === 1);
  assert.deepEqual(rejected, ["HBONE_LIMIT"]);
  server.certificateArrived();
  assert.equal(server.sessions, 0, "it has not come yet");
  ours = identity;
  server.certificateArrived();
  await ready;
  await until("both are let in", () => server.sessions === 2);
  for (const socket of [first, second, third]) socket.destroy();
  await server.drain(0);
});

/** Extensions of a ClientHello (RFC 8446 §4.1.2), by number. */
function extensionsOf(record: Buffer): Map<number, Buffer> {
  let at = 5 + 4 + 2 + 32; // record and handshake headers, version, random
  at += 1 + record.readUInt8(at); // session ID
  at += 2 + record.readUInt16BE(at); // suites
  at += 1 + record.readUInt8(at); // compression
  const end = at + 2 + record.readUInt16BE(at);
  at += 2;
  const found = new Map<number, Buffer>();
  while (at < end) {
    const length = record.readUInt16BE(at + 2);
    found.set(record.readUInt16BE(at), record.subarray(at + 4, at + 4 + length));
    at += 4 + length;
  }
  return found;
}

test("what the client offers: TLS 1.3 alone, AES-128 first, hybrid key exchange first, ALPN h2, no name, no resumption", async () => {
  const { client } = await identities();
  const { promise: hello, resolve } = Promise.withResolvers<Buffer>();
  const server = createPlain((socket) => {
    socket
      .on("error", () => {})
      .once("data", (data: Buffer) => {
        resolve(data);
        socket.destroy();
      });
  });
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  const pool = new HbonePool({ clock, random: systemRandom, certificate: () => client });
  pool.open({
    source: client.id,
    accepted: [testId("server")],
    ip: "127.0.0.1",
    port: (server.address() as AddressInfo).port,
    authority: "10.0.0.1:80",
    headers: { baggage: "", forwarded: "" },
    socket: await someSocket(),
    onEnd: () => {},
  });
  const record = await hello;
  server.close();
  const extensions = extensionsOf(record);
  assert.equal(extensions.has(0), false, "a server name");
  assert.equal(extensions.has(41), false, "a pre-shared key");
  assert.equal(extensions.get(16)?.toString("latin1"), "\0\x03\x02h2");
  assert.equal(extensions.get(43)?.toString("hex"), "020304", "versions");
  const groups = extensions.get(10)?.subarray(2).toString("hex") ?? "";
  assert.ok(groups.startsWith("11ec001d"), groups);
  const suites = record.subarray(5 + 4 + 2 + 32 + 1 + record.readUInt8(5 + 4 + 2 + 32));
  assert.equal(suites.subarray(2, 6).toString("hex"), "13011302");
  const shares = extensions.get(51) ?? Buffer.alloc(0);
  assert.ok(shares.includes(Buffer.from("11ec04c0", "hex")) && shares.includes(Buffer.from("001d0020", "hex")));
});
