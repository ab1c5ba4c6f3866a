import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { once } from "node:events";
import { connect as connectTls } from "node:tls";
import { findWords, readTls, tcpStreams } from "#capture";
import type { FlowRecord } from "#model/flow";
import { parseSpiffeId } from "#model/spiffe-id";
import { testWorkload } from "../../src/proxy/testing.ts";
import { TestAuthority } from "../../src/x509/testing.ts";
import { connectHbone, onTheWire } from "./proxy-peers.ts";
import { dial, listen, pause, ProxyWorld, readAll, say, until, type Pod } from "./proxy-world.ts";

const WORDS = "the-words-of-the-client";
const ANSWER = "the-answer-of-the-server";

/** The proxy of node b as a pod of its own: its metrics can be asked for through a tunnel. */
const SCRAPED = parseSpiffeId("spiffe://cluster.local/ns/mesh/sa/veil-proxy");
const scraped = testWorkload("veil-proxy-b", "10.201.2.1", { namespace: "mesh", serviceAccount: "veil-proxy" });

let world: ProxyWorld;

/** Serves on port 8080 of a pod: answers with who called, and what was said. */
function serve(pod: Pod): void {
  listen(pod, 8080, (socket, from) => {
    let said = "";
    socket.on("data", (part) => (said += part.toString()));
    socket.on("end", () => socket.end(`${ANSWER} ${from} ${said}`));
  });
}

/** The record of a connection that ended after `since` records, and went as `expected` says. A late one of an earlier test is passed over. */
async function recordOf(records: readonly FlowRecord[], since: number, expected: string): Promise<FlowRecord> {
  const words = ({ direction, verdict, encryption, reason }: FlowRecord): string =>
    `${direction} ${verdict} ${encryption} ${reason}`;
  const find = (): FlowRecord | undefined =>
    records.slice(since).find((record) => new RegExp(`^${expected}$`).test(words(record)));
  await until("a record", () => find() !== undefined).catch(() => undefined);
  const found = find();
  assert.ok(found, `no record "${expected}" among: ${records.slice(since).map(words).join(", ")}`);
  return found;
}

before(async () => {
  world = await ProxyWorld.create();
  const { a, b, client, server, other, plain } = world;
  world.publish(client, server);
  a.publish([scraped]);
  await b.certify({ identity: SCRAPED });
  b.env = { POD_NAME: "veil-proxy-b", POD_NAMESPACE: "mesh", SERVICE_ACCOUNT: "veil-proxy" };
  for (const [node, pods] of [
    [a, [client]],
    [b, [server]],
  ] as const) {
    for (const pod of pods) await node.certify(pod);
    await node.startAgent();
  }
  await Promise.all([a.startProxy(), b.startProxy()]);
  await Promise.all([world.enrol(client), world.enrol(server)]);
  for (const pod of [server, other, plain]) serve(pod);
});

after(async () => {
  await world[Symbol.asyncDispose]();
});

describe("traffic between pods with real redirection", () => {
  it("is mutual TLS between enrolled pods, keeps the client's address, and shows no word on any wire", async () => {
    const { a, b, client, server } = world;
    const [sinceA, sinceB] = [a.records.length, b.records.length];
    const packets = await onTheWire(async () => {
      assert.equal(await say(client, { ip: server.ip, port: 8080 }, WORDS), `${ANSWER} ${client.ip} ${WORDS}`);
    });
    assert.deepEqual(findWords(packets, [WORDS, ANSWER]), []);
    const toServer = tcpStreams(packets).filter(
      ({ from, bytes }) => from.startsWith(`${server.ip}:15008`) && bytes.length > 0,
    );
    assert.ok(toServer.length > 0, "a session on 15008 was seen");
    for (const stream of toServer)
      assert.deepEqual([readTls(stream).wellFormed, readTls(stream).version], [true, "TLS 1.3"]);
    const sent = await recordOf(a.records, sinceA, "outbound forwarded mutual_tls ok");
    const received = await recordOf(b.records, sinceB, "inbound forwarded mutual_tls ok");
    assert.deepEqual([received.source.identity, sent.destination.identity], [client.identity, server.identity]);
    assert.deepEqual([sent.bytesSent, received.bytesReceived], [WORDS.length, WORDS.length]);
  });

  it("is plaintext from a pod that is not enrolled, keeps its address, and says so", async () => {
    const { b, plain, server } = world;
    const since = b.records.length;
    const packets = await onTheWire(async () => {
      assert.equal(await say(plain, { ip: server.ip, port: 8080 }, WORDS), `${ANSWER} ${plain.ip} ${WORDS}`);
    });
    assert.ok(findWords(packets, [WORDS]).length > 0, "the capture finds words where they are in clear");
    await recordOf(b.records, since, "inbound forwarded plaintext source_not_enrolled");
  });

  it("is plaintext to a pod that is not enrolled, and says so", async () => {
    const { a, client, other } = world;
    const since = a.records.length;
    assert.equal(await say(client, { ip: other.ip, port: 8080 }, WORDS), `${ANSWER} ${client.ip} ${WORDS}`);
    await recordOf(a.records, since, "outbound forwarded plaintext destination_not_enrolled");
  });

  it("is refused when the application does not listen, at both ends with a record", async () => {
    const { a, b, client, server } = world;
    const [sinceA, sinceB] = [a.records.length, b.records.length];
    assert.equal(await say(client, { ip: server.ip, port: 8081 }, WORDS), "refused");
    await recordOf(a.records, sinceA, "outbound refused none peer_refused");
    await recordOf(b.records, sinceB, "inbound refused none destination_unreachable");
  });

  it("is refused by a destination that knows both ends as enrolled, although the source's node does not", async () => {
    const { a, b, client, server } = world;
    await a.impose([server.workload("none")]); // a stale view
    const [sinceA, sinceB] = [a.records.length, b.records.length];
    const packets = await onTheWire(async () => {
      assert.equal(await say(client, { ip: server.ip, port: 8080 }, ""), "refused");
    });
    assert.deepEqual(findWords(packets, [ANSWER]), []);
    await recordOf(b.records, sinceB, "inbound refused none plaintext_refused");
    // The reset may come while the client's proxy still connects, or after.
    await recordOf(a.records, sinceA, "outbound (forwarded plaintext reset|refused none destination_unreachable)");
    await a.impose([server.workload("hbone")]);
    assert.match(await say(client, { ip: server.ip, port: 8080 }, WORDS), new RegExp(ANSWER));
  });

  it("is refused when the destination presents another identity than expected, and nothing goes in clear", async () => {
    const { a, client, server } = world;
    await a.impose([{ ...server.workload("hbone"), serviceAccount: "somebody-else" }]);
    const since = a.records.length;
    const packets = await onTheWire(async () => {
      assert.equal(await say(client, { ip: server.ip, port: 8080 }, WORDS), "refused");
    });
    assert.deepEqual(findWords(packets, [WORDS]), []);
    const { detail } = await recordOf(a.records, since, "outbound refused none wrong_identity");
    assert.match(detail, /expected was .*somebody-else/);
    await a.impose([server.workload("hbone")]);
    assert.match(await say(client, { ip: server.ip, port: 8080 }, WORDS), new RegExp(ANSWER));
  });

  it("is refused when the destination's certificate leads to another root, and nothing goes in clear", async () => {
    const { a, b, client, server } = world;
    const rogue = await TestAuthority.create();
    await b.certify(server, await rogue.identity(server.identity));
    await b.restartDataPath(); // sessions that were opened before would go on
    const since = a.records.length;
    const packets = await onTheWire(async () => {
      assert.equal(await say(client, { ip: server.ip, port: 8080 }, WORDS), "refused");
    });
    assert.deepEqual(findWords(packets, [WORDS]), []);
    await recordOf(a.records, since, "outbound refused none wrong_identity");
    await b.certify(server);
    const isServed = async (): Promise<boolean> =>
      (await say(client, { ip: server.ip, port: 8080 }, WORDS)).includes(ANSWER);
    await until("served again", isServed);
  });

  it("holds a connection to an address that it does not know, and asks", async () => {
    const { a, client, plain } = world;
    await a.impose([], [plain.workload("none").uid]);
    let asked = 0;
    a.onDemand = async () => {
      asked++;
      await pause(300);
    };
    const since = a.records.length;
    assert.match(await say(client, { ip: plain.ip, port: 8080 }, WORDS), new RegExp(ANSWER));
    assert.equal(asked, 1);
    await recordOf(a.records, since, "outbound forwarded plaintext destination_not_enrolled");
  });

  it("refuses when nobody answers who an address is", async () => {
    const { a, client, plain } = world;
    a.onDemand = () => Promise.reject(new Error("no control plane"));
    await pause(1_100); // what was answered before holds for a second
    const since = a.records.length;
    const packets = await onTheWire(async () => {
      assert.equal(await say(client, { ip: plain.ip, port: 8080 }, WORDS), "refused");
    });
    assert.deepEqual(findWords(packets, [WORDS]), []);
    await recordOf(a.records, since, "outbound refused none control_plane_unavailable");
    a.onDemand = () => Promise.resolve();
    a.publish([plain.workload("none")]);
  });

  it("refuses a call to the proxy's own ports, from inside the pod and from another", async () => {
    const { b, client, server, plain } = world;
    const since = b.records.length;
    for (const port of [15_001, 15_006]) {
      assert.equal(await say(client, { ip: "127.0.0.1", port }, WORDS), "refused", `loopback ${port}`);
      assert.equal(await say(client, { ip: client.ip, port }, WORDS), "refused", `own address ${port}`);
      assert.equal(await say(plain, { ip: server.ip, port }, WORDS), "refused", `from another pod ${port}`);
      assert.equal(await say(client, { ip: server.ip, port }, WORDS), "refused", `through a tunnel ${port}`);
    }
    await until("the records of the other node", () => b.records.length >= since + 4);
  });

  it("is refused to whoever dials 15008 without a certificate, with a record", async () => {
    const { b, plain, server } = world;
    const since = b.records.length;
    const socket = connectTls({
      socket: await dial(plain, server.ip, 15_008),
      rejectUnauthorized: false,
      ALPNProtocols: ["h2"],
    });
    const ended = new Promise<void>((resolve) => {
      socket.on("error", () => resolve());
      socket.on("close", () => resolve());
    });
    socket.on("secureConnect", () => socket.write("PRI * HTTP/2.0"));
    await ended;
    const { detail, source } = await recordOf(b.records, since, "inbound refused none wrong_identity");
    assert.match(detail, /^HBONE_TLS_NO_CERTIFICATE/);
    assert.match(source.address, new RegExp(`^${plain.ip}:`));
  });

  it("is refused to a peer with a good certificate that asks for another pod, or for the proxy itself", async () => {
    const { b, server, other } = world;
    for (const [authority, status, reason] of [
      [`${other.ip}:8080`, 400, "bad_request"],
      [`${server.ip}:15001`, 503, "self_call"],
      ["unknown.example:80", 503, "no_healthy_upstream"],
      [`${server.ip}:8080`, 200, ""],
    ] as const) {
      const since = b.records.length;
      const got = await connectHbone(world, server, { authority, words: WORDS });
      assert.equal(got.status, status, authority);
      if (reason !== "") await recordOf(b.records, since, `inbound refused none ${reason}`);
    }
  });

  it("explains itself on the admin port", async () => {
    const { a, client, server, other } = world;
    const ask = async (pod: Pod): Promise<Record<string, unknown>> =>
      JSON.parse(await a.get(15_000, `/why?source=shop/${client.name}&destination=${pod.ip}:8080`));
    const enrolled = await ask(server);
    assert.deepEqual(
      [enrolled["encrypted"], enrolled["reason"], enrolled["acceptedIdentities"]],
      [true, "ok", [server.identity]],
    );
    assert.ok(Array.isArray(enrolled["connections"]) && enrolled["connections"].length > 0);
    assert.deepEqual(
      [(await ask(other))["encrypted"], (await ask(other))["reason"]],
      [false, "destination_not_enrolled"],
    );
  });

  it("shows what runs through it on the admin port, and no private key", async () => {
    const { a, b, client, server } = world;
    listen(server, 8081, (accepted) => {
      accepted.write(ANSWER);
      accepted.resume().on("end", () => accepted.end());
    });
    for (const node of [a, b]) {
      const areOver = async (): Promise<boolean> => (await node.get(15_000, "/debug/connections")) === "[]\n";
      await until("the end of earlier connections", areOver);
    }
    const socket = await dial(client, server.ip, 8081);
    await once(socket, "data", { signal: AbortSignal.timeout(60_000) });
    const local = `${client.ip}:${socket.localPort}`;
    const text = await a.get(15_000, "/config_dump");
    const key = a.certificates.get(client.identity)?.keyPem.split("\n")[1] ?? "no key";
    assert.ok(!text.includes(key) && !/PRIVATE KEY/.test(text));
    const dump: { workloadState: Record<string, { connections: Record<string, { src: string }[]> }> } =
      JSON.parse(text);
    assert.deepEqual(
      Object.values(dump.workloadState).flatMap(({ connections }) => connections["outbound"]),
      [{ src: local, originalDst: `${server.ip}:8081`, actualDst: `${server.ip}:15008`, protocol: "HBONE" }],
    );
    const [here, there] = await Promise.all(
      [a, b].map(async (node): Promise<Record<string, unknown>[]> =>
        JSON.parse(await node.get(15_000, "/debug/connections")),
      ),
    );
    assert.equal(there?.[0]?.["actual"], `${server.ip}:8081`);
    assert.equal(here?.[0]?.["traceId"], there?.[0]?.["traceId"], "both ends tell of the same trace");
    assert.match(await a.get(15_000, "/debug/pool"), new RegExp(`"ip": "${server.ip}"[^]*"tunnels": 1`));
    const profile = "/debug/pprof/profile?seconds=1&format=v8";
    assert.match(await a.get(15_000, `${profile}&thread=data-1`), /^\{"nodes":\[/);
    assert.equal(await a.get(15_000, `${profile}&thread=nobody`), "there is main, data-1\n");
    assert.equal(await a.get(15_000, "/logging"), "current log level is info\n");
    socket.destroy();
    await until("its end", async () => (await a.get(15_000, "/debug/connections")) === "[]\n");
  });

  it("reaches the other node's metrics through a tunnel to its proxy itself, and no other port of it", async () => {
    const { client, b } = world;
    let metrics = "";
    const packets = await onTheWire(async () => {
      const socket = await dial(client, "10.201.2.1", 15_020);
      socket.write("GET /metrics HTTP/1.0\r\n\r\n");
      metrics = await readAll(socket);
    });
    assert.match(metrics, /^workload_manager_active_proxy_count 1$/m);
    const underlay = packets.filter(
      ({ source, destination }) => source === "10.201.2.1" || destination === "10.201.2.1",
    );
    const ports = new Set(underlay.flatMap((packet) => [packet.sourcePort, packet.destinationPort]));
    assert.ok(ports.has(15_008) && !ports.has(15_020), "through the tunnel alone");
    const since = b.records.length;
    assert.equal(await say(client, { ip: "10.201.2.1", port: 15_000 }, WORDS), "refused");
    await recordOf(b.records, since, "inbound refused none no_healthy_upstream");
  });

  it("counts connections and bytes under upstream's names", async () => {
    const metrics = await world.a.get(15_020, "/metrics");
    const line = metrics
      .split("\n")
      .find((text) => text.startsWith("istio_tcp_connections_opened_total") && text.includes("mutual_tls"));
    assert.match(
      line ?? "",
      /reporter="source".*source_principal="spiffe:.*client".*destination_principal="spiffe:.*server"/,
    );
    assert.match(metrics, /veil_proxy_refused_total\{direction="outbound",reason="control_plane_unavailable"\} 1/);
    const openNone = /istio_tcp_sockets_open\{reporter="source"\} 0/;
    await until("no open sockets", async () => openNone.test(await world.a.get(15_020, "/metrics")));
  });
});
