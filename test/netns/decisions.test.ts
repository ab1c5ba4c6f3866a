import assert from "node:assert/strict";
import { spawn, type ChildProcessByStdio } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, writeFileSync } from "node:fs";
import type { Socket } from "node:net";
import { basename } from "node:path";
import type { Readable } from "node:stream";
import { after, before, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { systemClock } from "#base/clock";
import { formatHostPort, parseIp } from "#base/ip";
import { findWords } from "#capture";
import { HboneServer } from "#hbone";
import { connectTcp, listenTcp, openNetns, type TcpListener } from "#linux";
import type { FlowRecord } from "#model/flow";
import type { Address, GatewayAddress, Service, Workload } from "#model/workload";
import { testService } from "../../src/proxy/testing.ts";
import { connectHbone, onTheWire } from "./proxy-peers.ts";
import { dial, listen, netnsPath, pause, ProxyWorld, readAll, say, until, type Pod } from "./proxy-world.ts";

const clock = systemClock();
const WORDS = "the-words-of-the-client";
const VIP = "10.201.200.1";
const HOST = "web.shop.svc.cluster.local";
const OUT = "outbound forwarded mutual_tls ok";
const IN = "inbound forwarded mutual_tls ok";
const RANGES = ["--cluster-ranges", "10.201.0.0/16,fd00:201::/32"];

let world: ProxyWorld;
let nameServer: ChildProcessByStdio<null, Readable, null> | undefined;

const inService = (name: string, ports: Workload["services"][string] = []): Partial<Workload> => ({
  services: { [`shop/${name}.shop.svc.cluster.local`]: ports },
});

/** The pods as they are, enrolled but for `plain`; what is given counts more. */
function pods(more: Readonly<Record<string, Partial<Workload>>> = {}): Workload[] {
  return world.pods.map((pod) => ({
    ...pod.workload(pod === world.plain ? "none" : "hbone"),
    addresses: [parseIp(pod.ip), parseIp(pod.ip6)],
    ...more[pod.name],
  }));
}

/** Both nodes know this, and nothing else; it is in force. */
async function know(...addresses: readonly Address[]): Promise<void> {
  await Promise.all([world.a, world.b].map(async (node) => node.know(addresses)));
}

/** A server on `port` of a pod: answers with its name, who called, and what was said. */
function serve(pod: Pod, port: number): void {
  listen(pod, port, (socket, from) => {
    let said = "";
    socket.on("data", (part) => (said += part.toString()));
    socket.on("end", () => socket.end(`${pod.name} ${from} ${said}`));
  });
}

/** Waits until a node has such records among those that are newer than `since`, each line once; returns them. */
async function recorded(
  node: { readonly records: readonly FlowRecord[] },
  since: number,
  ...lines: readonly string[]
): Promise<readonly FlowRecord[]> {
  const find = (): (FlowRecord | undefined)[] => {
    const left = node.records.slice(since);
    return lines.map((line) => {
      const at = left.findIndex(
        ({ direction, verdict, encryption, reason }) => [direction, verdict, encryption, reason].join(" ") === line,
      );
      return at < 0 ? undefined : left.splice(at, 1)[0];
    });
  };
  const said = (): string => JSON.stringify(node.records.slice(since));
  await until(lines.join(", "), () => find().every((record) => record !== undefined), 20_000).catch(
    (error: unknown) => {
      throw new Error(`${String(error)}, but ${said()}`);
    },
  );
  return find().filter((record) => record !== undefined);
}

/** `pod` says `WORDS` to an address and hears `answer`; otherwise both nodes tell why not. */
async function hears(pod: Pod, to: { ip: string; port: number }, answer: string): Promise<void> {
  const { a, b } = world;
  const [sinceA, sinceB] = [a.records.length, b.records.length];
  const said = await say(pod, to, WORDS);
  if (said === answer) return;
  await pause(500);
  const records = [...a.records.slice(sinceA), ...b.records.slice(sinceB)].map((record) => JSON.stringify(record));
  assert.fail(`heard "${said}", not "${answer}"\n${records.join("\n")}`);
}

/** What node a looks names up with: its own resolv.conf, and a name server on its loopback. */
async function startNameServer(): Promise<void> {
  const name = basename(netnsPath("a"));
  mkdirSync(`/etc/netns/${name}`, { recursive: true });
  writeFileSync(`/etc/netns/${name}/resolv.conf`, "nameserver 127.0.0.1\n");
  const program = fileURLToPath(new URL("name-server.ts", import.meta.url));
  const names = [`plain.example=${world.plain.ip}`, `server.example=${world.server.ip}`];
  const command = ["netns", "exec", name, process.execPath, "--conditions=veil-source", program, ...names];
  nameServer = spawn("ip", command, { stdio: ["ignore", "pipe", "inherit"] });
  await once(nameServer.stdout, "data");
}

before(async () => {
  world = await ProxyWorld.create();
  const { a, b, client, server, other } = world;
  await startNameServer();
  await know(...pods());
  await a.certify(client);
  await b.certify(server);
  await b.certify(other);
  await Promise.all([a.startAgent(), b.startAgent()]);
  await Promise.all([a.startProxy(...RANGES), b.startProxy(...RANGES)]);
  for (const pod of [client, server, other]) await world.enrol(pod);
  for (const pod of world.pods) serve(pod, 8080);
});

after(async () => {
  nameServer?.kill("SIGKILL");
  await world[Symbol.asyncDispose]();
});

describe("a service", () => {
  const at80 = [{ servicePort: 80, targetPort: 8080 }];

  it("spreads over its healthy endpoints by capacity, in tunnels, and uses no other", async () => {
    const web = inService("web");
    await know(
      ...pods({
        server: web,
        other: { ...web, capacity: 2 },
        client: { ...web, healthy: false },
        plain: { ...web, capacity: 0 },
      }),
      testService("web", VIP),
    );
    const { a, client } = world;
    const since = a.records.length;
    const answers = await Promise.all(
      Array.from({ length: 40 }, async () => say(client, { ip: VIP, port: 80 }, WORDS)),
    );
    const of = (name: string): number => answers.filter((answer) => answer === `${name} ${client.ip} ${WORDS}`).length;
    assert.equal(of("server") + of("other"), 40, answers.join(", "));
    assert.ok(of("server") >= 3 && of("other") >= 8, `${of("server")} and ${of("other")} of 40`);
    await recorded(a, since, ...answers.map(() => OUT));
  });

  it("leads a pod to itself", async () => {
    await know(...pods({ client: inService("web") }), testService("web", VIP));
    const { a, client } = world;
    const since = a.records.length;
    await hears(client, { ip: VIP, port: 80 }, `client ${client.ip} ${WORDS}`);
    await recorded(a, since, OUT, IN);
  });

  it("without a usable endpoint, or without the port, is refused", async () => {
    await know(...pods({ server: { ...inService("web"), healthy: false } }), testService("web", VIP));
    await hears(world.client, { ip: VIP, port: 80 }, "refused");
    await know(...pods({ server: inService("web") }), testService("web", VIP));
    await hears(world.client, { ip: VIP, port: 81 }, "refused");
  });

  it("may be asked for by hostname: its port leads to the pod's, also when that has only a name", async () => {
    const ports = [...at80, { servicePort: 81, targetPort: 0 }, { servicePort: 82, targetPort: 0 }];
    await know(
      ...pods({ server: inService("web", [{ servicePort: 81, targetPort: 8080 }]) }),
      testService("web", VIP, { ports }),
    );
    const { plain, server } = world;
    const answer = `server ${plain.ip} ${WORDS}`;
    assert.deepEqual(await connectHbone(world, server, { authority: `${HOST}:80`, words: WORDS }), {
      status: 200,
      answer,
    });
    assert.deepEqual(await connectHbone(world, server, { authority: `${HOST}:81`, words: WORDS }), {
      status: 200,
      answer,
    });
    assert.equal((await connectHbone(world, server, { authority: `${HOST}:82`, words: WORDS })).status, 503);
    assert.equal((await connectHbone(world, server, { authority: "other.example:80", words: WORDS })).status, 503);
    assert.equal(
      (await connectHbone(world, server, { authority: `${world.other.ip}:8080`, words: WORDS })).status,
      400,
    );
  });
});

describe("a connection on one node", () => {
  it("is mutual TLS, too", async () => {
    await know(...pods());
    const { b, server, other } = world;
    const since = b.records.length;
    const packets = await onTheWire(async () => {
      await hears(server, { ip: other.ip, port: 8080 }, `other ${server.ip} ${WORDS}`);
    });
    assert.deepEqual(findWords(packets, [WORDS]), []);
    await recorded(b, since, OUT, IN);
  });
});

describe("IPv6", () => {
  it("is mutual TLS between enrolled pods from end to end, and keeps the client's address", async () => {
    await know(...pods());
    const { a, client, server } = world;
    const since = a.records.length;
    const packets = await onTheWire(async () => {
      await hears(client, { ip: server.ip6, port: 8080 }, `server ${client.ip6} ${WORDS}`);
    });
    assert.deepEqual(findWords(packets, [WORDS]), []);
    await recorded(a, since, OUT);
  });

  it("is the family of a service's endpoint where the client dials it, or where the service has no other", async () => {
    const { client, server } = world;
    const both = [VIP, "fd00:201:200::1"].map((ip) => ({ network: "", address: parseIp(ip), length: undefined }));
    const service = (more: Partial<Service>): Service => testService("web", undefined, { addresses: both, ...more });
    await know(...pods({ server: inService("web") }), service({}));
    await hears(client, { ip: "fd00:201:200::1", port: 80 }, `server ${client.ip6} ${WORDS}`);
    await hears(client, { ip: VIP, port: 80 }, `server ${client.ip} ${WORDS}`);
    await know(...pods({ server: inService("web") }), service({ ipFamilies: "ipv6" }));
    await hears(client, { ip: VIP, port: 80 }, `server ${client.ip6} ${WORDS}`);
    assert.match(server.ip6, /^fd00:/);
  });

  it("passes in clear from and to pods that are not enrolled, and is seen by the capture", async () => {
    await know(...pods());
    const { client, plain, server } = world;
    const packets = await onTheWire(async () => {
      await hears(plain, { ip: server.ip6, port: 8080 }, `server ${plain.ip6} ${WORDS}`);
    });
    assert.ok(findWords(packets, [WORDS]).length > 0, "the capture finds words where they are in clear");
    await hears(client, { ip: plain.ip6, port: 8080 }, `plain ${client.ip6} ${WORDS}`);
  });
});

describe("what is no pod of the mesh", () => {
  it("passes in clear: a pod on its node's network by the node's address, and what is outside the cluster", async () => {
    const node = openNetns(netnsPath("b"));
    const listener = listenTcp({ netns: node, ip: "0.0.0.0", port: 9000 }, (tcp) => {
      const socket = tcp.toNetSocket().resume();
      socket.on("end", () => socket.end("the node"));
    });
    const { a, client } = world;
    const onHost: Workload = { ...world.other.workload("none"), uid: "Kubernetes//Pod/shop/host", hostNetwork: true };
    await know(...pods(), { ...onHost, addresses: [parseIp("10.201.2.1")] });
    const since = a.records.length;
    await hears(client, { ip: "10.201.2.1", port: 9000 }, "the node");
    await hears(client, { ip: "172.31.0.2", port: 9000 }, "the node");
    const plain = (why: string): string => `outbound forwarded plaintext ${why}`;
    await recorded(a, since, plain("destination_not_enrolled"), plain("destination_outside"));
    listener.stop();
    node[Symbol.dispose]();
  });
});

describe("a workload that has a hostname and no address", () => {
  const named = (hostname: string): Workload => ({
    ...world.plain.workload("none"),
    uid: `Kubernetes/networking.istio.io/ServiceEntry/shop/web/${hostname}`,
    addresses: [],
    hostname,
    ...inService("web"),
  });

  it("is looked up where the node looks names up, and met in clear when nobody is enrolled there", async () => {
    const { a, client } = world;
    await know(...pods(), named("plain.example"), testService("web", VIP));
    const since = a.records.length;
    await hears(client, { ip: VIP, port: 80 }, `plain ${client.ip} ${WORDS}`);
    await recorded(a, since, "outbound forwarded plaintext destination_not_enrolled");
  });

  it("is met in a tunnel when an enrolled pod is behind the name", async () => {
    const { client } = world;
    await know(...pods(), named("server.example"), testService("web", VIP));
    const packets = await onTheWire(async () => {
      await hears(client, { ip: VIP, port: 80 }, `server ${client.ip} ${WORDS}`);
    });
    assert.deepEqual(findWords(packets, [WORDS]), []);
  });

  it("is refused when nobody knows the name", async () => {
    const { a, client } = world;
    await know(...pods(), named("nobody.example"), testService("web", VIP));
    const since = a.records.length;
    await hears(client, { ip: VIP, port: 80 }, "refused");
    await recorded(a, since, "outbound refused none no_healthy_upstream");
  });
});

describe("a call that would make a proxy talk to itself", () => {
  it("is refused however it comes: by loopback, the pod's own address, another pod's, a service; in both families", async () => {
    const { client, server, plain } = world;
    const ports = [15_001, 15_006, 15_008].map((port) => ({ servicePort: port - 15_000, targetPort: port }));
    await know(...pods({ server: inService("web") }), testService("web", VIP, { ports }));
    // On 15008 a connection opens and ends at once: it is no TLS. Nowhere does a word come back.
    const nothing = async (pod: Pod, ip: string, port: number): Promise<void> =>
      assert.match(await say(pod, { ip, port }, WORDS), /^(refused)?$/, `${pod.name} to ${ip} ${port}`);
    for (const port of [15_001, 15_006, 15_008]) {
      for (const ip of ["127.0.0.1", "::1", client.ip, client.ip6]) await nothing(client, ip, port);
      for (const ip of [server.ip, server.ip6]) {
        await nothing(client, ip, port);
        await nothing(plain, ip, port);
        assert.notEqual(
          (await connectHbone(world, server, { authority: formatHostPort(ip, port), words: WORDS })).status,
          200,
        );
      }
      await nothing(client, VIP, port - 15_000);
    }
    await hears(client, { ip: server.ip, port: 8080 }, `server ${client.ip} ${WORDS}`);
  });
});

describe("a waypoint", () => {
  interface Header {
    readonly source: string;
    readonly destination: string;
    readonly peer: string;
  }
  const headers: Header[] = [];

  /** Reads a PROXY protocol header of version 2, IPv4, from the start of `bytes`. */
  function readHeader(bytes: Buffer): Header & { readonly length: number } {
    assert.equal(bytes.subarray(0, 14).toString("hex"), "0d0a0d0a000d0a515549540a2111");
    const address = (at: number, port: number): string =>
      `${bytes.subarray(at, at + 4).join(".")}:${bytes.readUInt16BE(port)}`;
    assert.equal(bytes[28], 0xd0);
    const peer = bytes.subarray(31, 31 + bytes.readUInt16BE(29)).toString();
    return { source: address(16, 24), destination: address(20, 26), peer, length: 16 + bytes.readUInt16BE(14) };
  }

  /** The waypoint's application: notes the header and passes the connection on to where it was going, as itself. */
  async function passOn(socket: Socket): Promise<void> {
    const parts: Buffer[] = [];
    socket.on("data", (part: Buffer) => parts.push(part));
    await once(socket, "end");
    const bytes = Buffer.concat(parts);
    const { length, ...header } = readHeader(bytes);
    headers.push(header);
    const [ip = "", port] = header.destination.split(":");
    const onward = await dial(world.other, ip, Number(port));
    onward.end(bytes.subarray(length));
    socket.end(await readAll(onward));
  }

  let application: TcpListener | undefined;
  after(() => application?.stop());
  before(() => {
    application = listenTcp({ netns: world.other.netns, ip: "127.0.0.1", port: 15_088 }, (tcp) => {
      const socket = tcp.toNetSocket();
      socket.allowHalfOpen = true;
      passOn(socket).catch(() => socket.destroy());
    });
    listen(world.other, 8081, (socket) => {
      let said = "";
      socket.on("data", (part) => (said += part.toString()));
      socket.on("end", () => socket.end(`waypoint ${said}`));
    });
  });

  const proxyTunnel: Partial<Workload> = { applicationTunnel: { protocol: "proxy", port: 15_088 } };
  const gateway = (destination: GatewayAddress["destination"]): GatewayAddress => ({
    destination,
    hboneMtlsPort: 15_008,
  });
  const named = (hostname: string) => gateway({ kind: "hostname", namespace: "shop", hostname });
  const addressed = (ip: string) => gateway({ kind: "address", network: "", address: parseIp(ip) });
  const wp = testService("wp", "10.201.200.9");

  for (const [how, waypoint] of [
    ["its pod's address", () => addressed(world.other.ip)],
    ["its service's address", () => addressed("10.201.200.9")],
    ["its service's hostname", () => named(wp.hostname)],
    ["its workload's hostname", () => named("other.example")],
  ] as const) {
    it(`that a service names by ${how} gets the connection, who called and where to, and passes it on`, async () => {
      const { client, other } = world;
      await know(
        ...pods({ server: inService("web"), other: { ...inService("wp"), ...proxyTunnel, hostname: "other.example" } }),
        testService("web", VIP, { waypoint: waypoint() }),
        wp,
      );
      headers.length = 0;
      const packets = await onTheWire(async () => {
        await hears(client, { ip: VIP, port: 80 }, `server ${other.ip} ${WORDS}`);
      });
      assert.deepEqual(findWords(packets, [WORDS]), []);
      assert.equal(headers.length, 1);
      assert.equal(headers[0]?.source.split(":")[0], client.ip);
      assert.deepEqual([headers[0]?.destination, headers[0]?.peer], [`${VIP}:80`, client.identity]);
    });
  }

  it("that a workload names gets what is for the workload's address, and reaches the workload itself", async () => {
    const { client, server, other } = world;
    await know(...pods({ server: { waypoint: addressed(other.ip) }, other: proxyTunnel }));
    headers.length = 0;
    await hears(client, { ip: server.ip, port: 8080 }, `server ${other.ip} ${WORDS}`);
    assert.deepEqual([headers.length, headers[0]?.destination], [1, `${server.ip}:8080`]);
  });

  it("without an application tunnel gets the connection on the port that was dialled, and no header", async () => {
    const { client, other } = world;
    await know(
      ...pods({ server: inService("web") }),
      testService("web", VIP, {
        waypoint: addressed(other.ip),
        ports: [{ servicePort: 8081, targetPort: 8080 }],
      }),
    );
    await hears(client, { ip: VIP, port: 8081 }, `waypoint ${WORDS}`);
  });

  it("that is not there is not passed by: the connection is refused, and says why", async () => {
    const { a, client } = world;
    await know(...pods({ server: inService("web") }), testService("web", VIP, { waypoint: named("nobody.example") }));
    const since = a.records.length;
    const packets = await onTheWire(async () => {
      await hears(client, { ip: VIP, port: 80 }, "refused");
    });
    assert.deepEqual(findWords(packets, [WORDS]), []);
    await recorded(a, since, "outbound refused none waypoint_unavailable");
  });

  it("gets nothing that is not attached to it", async () => {
    const { other, server } = world;
    await know(...pods({ server: { waypoint: addressed(world.client.ip) } }));
    assert.equal((await connectHbone(world, other, { authority: `${server.ip}:8080`, words: WORDS })).status, 400);
  });
});

describe("a pod's address that is used again", () => {
  it("leads to the next pod from the first connection on, whatever is open to the one before", async () => {
    const { a, client, other } = world;
    await know(...pods());
    const kept = await dial(client, other.ip, 8080);
    kept.resume().write(WORDS);
    await hears(client, { ip: other.ip, port: 8080 }, `other ${client.ip} ${WORDS}`);
    // The pod goes without a word: its session stays open here, with a connection on it.
    const next = await world.replace(other);
    listen(next, 8080, (socket, from) => socket.resume().on("end", () => socket.end(`the next ${from}`)));
    await world.enrol(next);
    await know(...pods({ other: { uid: "Kubernetes//Pod/shop/next" } }));
    const since = a.records.length;
    await hears(client, { ip: other.ip, port: 8080 }, `the next ${client.ip}`);
    await recorded(a, since, OUT);
    kept.destroy();
  });
});

describe("another network", () => {
  /** `plain` is the gateway of the network on which node b is: it hands every tunnel on to `server`, unread. */
  let outer: { readonly authority: string; readonly network: string | undefined }[] = [];
  let gateway: HboneServer | undefined;
  after(async () => gateway?.drain(0));

  before(async () => {
    const { authority, plain, server, b } = world;
    const identity = await authority.identity(plain.identity);
    gateway = new HboneServer({
      netns: plain.netns,
      ip: "0.0.0.0",
      port: 15_009,
      certificate: () => identity,
      clock,
      onTunnel: (tunnel) => {
        outer.push({ authority: tunnel.authority, network: tunnel.headers.get("x-forwarded-network") });
        void connectTcp({ netns: plain.netns, ip: server.ip, port: 15_008, timeoutMs: 5_000, clock }).then(
          (socket) => tunnel.accept(socket, { onEnd: () => undefined }),
          () => {
            tunnel.refuse(503);
          },
        );
      },
    });
    gateway.start();
    await b.stopProxy();
    await b.startProxy(...RANGES, "--network", "east", "--original-source", "off");
  });

  const far = (): Workload => ({
    ...world.server.workload("hbone"),
    uid: "east/SplitHorizonWorkload/gateway/web",
    name: "far",
    addresses: [],
    network: "east",
    networkGateway: {
      destination: { kind: "address", network: "east", address: parseIp(world.plain.ip) },
      hboneMtlsPort: 15_009,
    },
    ...inService("web"),
  });

  /** What the two sides know: the client's side a gateway and who may answer, the other side its pods. */
  async function knowNetworks(more: { names?: readonly string[]; here?: readonly Workload[] } = {}): Promise<void> {
    const { a, b, client, server, plain, other } = world;
    const { names = [server.identity], here = [] } = more;
    const web = testService("web", VIP, { subjectAltNames: names });
    const gateway = { ...plain.workload("none"), network: "east" };
    await a.know([client.workload("hbone"), gateway, far(), web, ...here]);
    const east = [server, other].map((pod) => ({ ...pod.workload("hbone"), network: "east", ...inService("web") }));
    await b.know([...east, web]);
  }

  it("is reached by a tunnel in a tunnel: the gateway learns the service, and no word", async () => {
    await knowNetworks();
    const { a, b, client, server } = world;
    const [sinceA, sinceB] = [a.records.length, b.records.length];
    outer = [];
    const packets = await onTheWire(async () => {
      // Without original sources the application sees its own pod.
      await hears(client, { ip: VIP, port: 80 }, `server ${server.ip} ${WORDS}`);
    });
    assert.deepEqual(findWords(packets, [WORDS]), []);
    assert.deepEqual(outer, [{ authority: `${HOST}:80`, network: undefined }]);
    const [here] = await recorded(a, sinceA, OUT);
    const [there] = await recorded(b, sinceB, IN);
    assert.deepEqual([there?.source.identity, there?.source.workload], [client.identity, "client"]);
    assert.deepEqual([here?.destination.identity, there?.destination.service], [server.identity, HOST]);
  });

  it("is shared with the endpoints that are here", async () => {
    const { client, plain, server } = world;
    const here = { ...plain.workload("none"), uid: "Kubernetes//Pod/shop/here", ...inService("web") };
    await knowNetworks({ here: [here] });
    const answers = await Promise.all(
      Array.from({ length: 30 }, async () => say(client, { ip: VIP, port: 80 }, WORDS)),
    );
    const of = (answer: string): number => answers.filter((given) => given === answer).length;
    const [near, there] = [of(`plain ${client.ip} ${WORDS}`), of(`server ${server.ip} ${WORDS}`)];
    assert.equal(near + there, 30, answers.join(", "));
    assert.ok(near > 3 && there > 3, `${near} here, ${there} there`);
  });

  it("is refused when somebody else answers there than the service names", async () => {
    await knowNetworks({ names: [world.other.identity] });
    const { a, client } = world;
    const since = a.records.length;
    await hears(client, { ip: VIP, port: 80 }, "refused");
    await recorded(a, since, "outbound refused none wrong_identity");
  });
});
