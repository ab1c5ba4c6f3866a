import assert from "node:assert/strict";
import { test } from "node:test";
import { parseIp } from "#base/ip";
import type { Packet } from "#capture";
import { firstEncryptedUs, observePath, openedInClear, type Pair } from "./evidence.ts";

const pair: Pair = {
  from: "a/client",
  to: "b/server",
  clientIp: "10.0.0.1",
  serverIp: "10.0.1.1",
  words: ["question", "answer"],
};

function packet(
  from: "client" | "server" | "other",
  options: Partial<Packet> & { port?: number; text?: string; vip?: boolean } = {},
): Packet {
  const { port = 8080, text = "", vip = false, ...rest } = options;
  const client = { ip: parseIp(from === "other" ? "10.0.0.9" : pair.clientIp), port: 40_000 };
  const server = { ip: parseIp(vip ? "10.96.0.1" : pair.serverIp), port };
  const [source, destination] = from === "server" ? [server, client] : [client, server];
  return {
    timeUs: 100,
    protocol: "tcp",
    source: source.ip,
    sourcePort: source.port,
    destination: destination.ip,
    destinationPort: destination.port,
    sequence: 1,
    flags: 0x10,
    payload: Buffer.from(text),
    ...rest,
  };
}

/** A TLS 1.3 ServerHello in a record, then one record of application data. */
const serverHello = Buffer.concat([
  Buffer.from([22, 3, 3, 0, 50, 2, 0, 0, 46, 3, 3]),
  Buffer.alloc(32),
  Buffer.from([0, 0x13, 0x01, 0, 0, 6, 0, 43, 0, 2, 3, 4]),
  Buffer.from([23, 3, 3, 0, 2, 1, 2]),
]);
const phase = { fromUs: 0, toUs: 1000 };

test("words in clear are found on the underlay and, to the service's address, on the client's interface", () => {
  const underlay = [
    packet("client", { text: "the question" }),
    packet("server", { text: "no" }),
    packet("other", { text: "answer" }),
  ];
  const pods = [packet("client", { text: "question", vip: true }), packet("other", { text: "answer" })];
  const path = observePath(pair, { underlay, pods }, phase);
  assert.deepEqual(path, {
    from: "a/client",
    to: "b/server",
    connections: 1,
    port: 8080,
    protocol: "clear",
    readableWords: ["question"],
  });
  assert.deepEqual(observePath(pair, { underlay: [], pods }, phase).readableWords, ["question"]);
  assert.deepEqual(observePath(pair, { underlay: [], pods: [] }, phase).protocol, "nothing");
});

test("a tunnel is TLS 1.3 by the server's choice, and one connection in clear beside it is not forgiven", () => {
  const tunnel = [
    packet("client", { port: 15008, text: "\u0016" }),
    packet("server", { port: 15008, payload: serverHello }),
  ];
  assert.equal(observePath(pair, { underlay: tunnel, pods: [] }, phase).protocol, "TLS 1.3");
  const leak = packet("client", { text: "x", sourcePort: 40_001 });
  assert.equal(observePath(pair, { underlay: [...tunnel, leak], pods: [] }, phase).protocol, "clear");
  const noTls = packet("server", { port: 15008, text: "HTTP/1.1 200" });
  assert.equal(
    observePath(pair, { underlay: [packet("client", { port: 15008, text: "GET" }), noTls], pods: [] }, phase).protocol,
    "no TLS",
  );
});

test("the moment of encryption and connections opened in clear after it are told apart", () => {
  const syn = { flags: 0x02, payload: new Uint8Array() };
  const underlay = [
    packet("client", { ...syn, timeUs: 10 }),
    packet("server", { port: 15008, payload: serverHello, timeUs: 50 }),
    packet("client", { ...syn, port: 15008, timeUs: 40 }),
    packet("client", { ...syn, timeUs: 90 }),
  ];
  assert.equal(firstEncryptedUs(pair, underlay), 50);
  assert.deepEqual(openedInClear(pair, underlay, 50), [underlay[3]]);
  assert.equal(firstEncryptedUs(pair, underlay.slice(0, 1)), undefined);
});
