import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { FakeClock } from "#base/clock";
import { CodedError } from "#base/errors";
import { seededRandom } from "#base/random";
import { findAccessRecord } from "#model/access-log";
import type { Authorization } from "#model/authorization";
import type { FlowRecord } from "#model/flow";
import { parseSpiffeId } from "#model/spiffe-id";
import type { TlsIdentity } from "#model/tls-identity";
import type { Address } from "#model/workload";
import { proxyConfig, type ProxyConfig } from "./config.ts";
import { DataThread } from "./data-thread.ts";
import { linesOf } from "./record-queue.ts";
import { FakeNetwork, FakeSocket, FakeTunnel } from "./fake-network.ts";
import type { LookKind, Slice } from "./looks.ts";
import type { FromThread } from "./messages.ts";
import { exactly, testPolicy } from "../policy/testing.ts";
import { testAddress, testPod, testService, testWorkload } from "./testing.ts";

const client = testWorkload("client", "10.1.0.1");
const server = testWorkload("server", "10.1.0.2");
const plain = testWorkload("plain", "10.1.0.3", { tunnelProtocol: "none" });
const web = testService("web", "10.96.0.1");
const everything = [
  client,
  server,
  plain,
  web,
  testWorkload("web-1", "10.1.0.4", { services: { "shop/web.shop.svc.cluster.local": [] } }),
];

function identity(name: string, more: Partial<TlsIdentity> = {}): TlsIdentity {
  const id = parseSpiffeId(`spiffe://cluster.local/ns/shop/sa/${name}`);
  return { id, chainPem: "chain", keyPem: "key", rootsPem: "roots", notAfterMs: 1e9, ...more };
}

/** A data thread that serves one pod, and everything that it does. */
class Rig {
  readonly clock = new FakeClock(1_000);
  readonly network = new FakeNetwork();
  readonly posted: FromThread[] = [];
  readonly thread: DataThread;
  /** False: nobody takes its records. */
  isRead = true;
  #seq = 0;
  #taken = 0;

  constructor(
    options: {
      pod?: string;
      addresses?: readonly Address[] | undefined;
      certificate?: boolean;
      config?: Partial<ProxyConfig>;
    } = {},
  ) {
    this.thread = new DataThread({
      config: proxyConfig({ node: "node1", ...options.config }),
      clock: this.clock,
      random: seededRandom(1),
      network: this.network,
      post: (message) => {
        this.posted.push(message);
        if (message.type === "records" && this.isRead) this.#taken++;
      },
      recordsTaken: () => this.#taken,
    });
    const name = options.pod ?? "client";
    if (options.addresses !== undefined) this.addresses(options.addresses, true);
    this.send({ type: "podAdd", pod: testPod(name), netnsFd: 7, old: true });
    if (options.certificate !== false) this.send({ type: "certificate", identity: identity(name) });
  }

  /** Somebody reads its records from now on. */
  read(): void {
    this.isRead = true;
    this.#taken = this.posted.filter(({ type }) => type === "records").length;
  }

  addresses(upserts: readonly Address[], synced = false): void {
    this.send({ type: "addresses", change: { upserts, removes: [], old: synced }, synced });
  }

  policies(...upserts: readonly Authorization[]): void {
    this.send({ type: "policies", change: { upserts, unusable: [], removes: [] } });
  }

  send(message: Record<string, unknown>): number {
    this.thread.handle({ ...message, seq: ++this.#seq } as unknown as Parameters<DataThread["handle"]>[0]);
    return this.#seq;
  }

  /** A connection of the pod to `to`, after the thread has done what it can. */
  async dial(to: string): Promise<FakeSocket> {
    const socket = new FakeSocket("10.1.0.1:4000", "10.1.0.1:15001", to);
    this.network.listeners.find(({ port }) => port === 15001)?.onConnection(socket);
    await this.settle();
    return socket;
  }

  async plaintext(from: string, to = "10.1.0.2:8080"): Promise<FakeSocket> {
    const socket = new FakeSocket(from, "10.1.0.2:15006", to);
    this.network.listeners.find(({ port }) => port === 15006)?.onConnection(socket);
    await this.settle();
    return socket;
  }

  async tunnel(tunnel: FakeTunnel): Promise<FakeTunnel> {
    this.network.servers[0]?.onTunnel(tunnel);
    await this.settle();
    return tunnel;
  }

  async settle(): Promise<void> {
    await this.clock.advance(0);
    await this.clock.advance(10); // records are gathered for so long
  }

  records(): FlowRecord[] {
    return this.posted
      .flatMap((message) => (message.type === "records" ? linesOf(message.batch) : []))
      .flatMap((line) => findAccessRecord(line) ?? []);
  }

  asked(): string[] {
    return this.posted.flatMap((message) => (message.type === "ask" ? [message.name] : []));
  }

  done(seq: number): Extract<FromThread, { type: "done" }> | undefined {
    return this.posted.find((message) => message.type === "done" && message.seq === seq) as never;
  }

  /** All slices of a look as one. */
  look(kind: LookKind, known: number): Slice {
    const slices: Slice[] = [];
    for (let first: number | undefined = known; ; first = undefined) {
      const slice = this.done(this.send({ type: "look", kind, known: first }))?.slice;
      if (slice === undefined) break;
      slices.push(slice);
    }
    return {
      series: slices.flatMap(({ series = [] }) => series),
      values: slices.at(-1)?.values ?? new Float64Array(),
      connections: slices.flatMap(({ connections = [] }) => connections),
      pool: slices.flatMap(({ pool = [] }) => pool),
    };
  }

  samples(name: string): number {
    const { series = [], values = [] } = this.look("samples", 0);
    return series.reduce((sum, one, i) => sum + (one.name === name ? (values[i] ?? 0) : 0), 0);
  }
}

/** Verdict and reason of the only record. */
function outcome(rig: Rig): string {
  const records = rig.records();
  assert.equal(records.length, 1, "one record per connection");
  return `${records[0]?.verdict} ${records[0]?.encryption} ${records[0]?.reason}`;
}

describe("an outbound connection", () => {
  it("goes through a tunnel to an enrolled pod", async () => {
    const rig = new Rig({ addresses: everything });
    const socket = await rig.dial("10.96.0.1:80");
    const [open] = rig.network.opened;
    assert.equal(open?.socket, socket);
    assert.deepEqual(
      [open?.ip, open?.port, open?.authority, open?.source, open?.accepted, open?.mark],
      ["10.1.0.4", 15008, "10.1.0.4:8080", identity("client").id, [identity("web-1").id], 0x539],
    );
    assert.equal(open?.headers.forwarded, 'for="10.1.0.1:4000";host=web.shop.svc.cluster.local');
    assert.match(open?.headers.baggage ?? "", /k8s.namespace.name=shop/);
    open?.onOpen?.({ peer: identity("web-1").id, responseBaggage: undefined });
    Object.assign(open?.carry.bytes ?? {}, { sent: 5, received: 9 });
    open?.carry.end();
    await rig.settle();
    assert.equal(outcome(rig), "forwarded mutual_tls ok");
    const [record] = rig.records();
    assert.deepEqual([record?.bytesSent, record?.bytesReceived], [5, 9]);
    assert.equal(record?.destination.identity, identity("web-1").id);
    assert.equal(record?.destination.hboneTarget, "10.1.0.4:8080");
    assert.deepEqual(rig.network.dialled, [], "nothing was dialled in clear");
  });

  for (const [code, reason] of [
    ["X509_WRONG_IDENTITY", "wrong_identity"],
    ["HBONE_TLS_UNTRUSTED", "wrong_identity"],
    ["HBONE_PEER_STATUS", "peer_refused"],
    ["HBONE_SESSION_LOST", "peer_unreachable"],
    ["LINUX_CONNECT_REFUSED", "peer_unreachable"],
    ["LINUX_CONNECT_TIMEOUT", "peer_unreachable"],
    ["HBONE_NO_CERTIFICATE", "no_certificate"],
  ] as const) {
    it(`is refused as ${reason} when its tunnel fails with ${code}, and nothing goes in clear`, async () => {
      const rig = new Rig({ addresses: everything });
      await rig.dial("10.1.0.2:80");
      rig.network.opened[0]?.carry.end(new CodedError(code, "why"));
      await rig.settle();
      assert.equal(outcome(rig), `refused none ${reason}`);
      assert.match(rig.records()[0]?.detail ?? "", new RegExp(`^${code}: why`));
      assert.deepEqual(rig.network.dialled, []);
    });
  }

  it("would be reset, not ended, if the process died", async () => {
    const rig = new Rig({ addresses: everything });
    const dialled: FakeSocket[] = [];
    const { dial } = rig.network;
    rig.network.dial = async (options) => {
      const socket = await dial(options);
      if (socket instanceof FakeSocket) dialled.push(socket);
      return socket;
    };
    const sockets = [await rig.dial("10.1.0.2:80"), await rig.dial("10.1.0.3:80")];
    assert.deepEqual(
      sockets.map(({ resetsOnDeath }) => resetsOnDeath),
      [true, true],
    );
    assert.deepEqual(
      dialled.map(({ resetsOnDeath }) => resetsOnDeath),
      [true],
    );
  });

  it("says reset when it breaks on the way", async () => {
    const rig = new Rig({ addresses: everything });
    await rig.dial("10.1.0.2:80");
    rig.network.opened[0]?.onOpen?.({ peer: identity("server").id, responseBaggage: undefined });
    rig.network.opened[0]?.carry.end(new CodedError("HBONE_STREAM_RESET", "the application crashed"));
    await rig.settle();
    assert.equal(outcome(rig), "forwarded mutual_tls reset");
  });

  it("goes in clear to a pod that is not enrolled, and says so", async () => {
    const rig = new Rig({ addresses: everything });
    await rig.dial("10.1.0.3:80");
    const [dial] = rig.network.dialled;
    assert.deepEqual([dial?.ip, dial?.port, dial?.mark, dial?.sourceIp], ["10.1.0.3", 80, 0x539, undefined]);
    rig.network.copies[0]?.end();
    await rig.settle();
    assert.equal(outcome(rig), "forwarded plaintext destination_not_enrolled");
    assert.equal(rig.records()[0]?.source.identity, undefined, "no identity where none was proved");
  });

  it("is reset when the plain destination does not listen", async () => {
    const rig = new Rig({ addresses: everything });
    rig.network.dial = async () => Promise.reject(new CodedError("LINUX_CONNECT_REFUSED", "refused"));
    const socket = await rig.dial("10.1.0.3:80");
    assert.equal(socket.state, "reset");
    assert.equal(outcome(rig), "refused none destination_unreachable");
  });

  it("is held while the control plane is asked, and follows the answer", async () => {
    const rig = new Rig({ addresses: everything });
    const socket = await rig.dial("10.1.9.9:80");
    await rig.dial("10.1.9.9:80");
    assert.deepEqual(rig.asked(), ["/10.1.9.9"], "asked once for both");
    assert.equal(rig.samples("veil_proxy_held_connections"), 2);
    assert.equal(socket.state, "open");
    rig.addresses([testWorkload("late", "10.1.9.9")]);
    rig.thread.handle({ type: "answer", name: "/10.1.9.9", answer: "present" });
    await rig.settle();
    assert.deepEqual(
      rig.network.opened.map(({ ip }) => ip),
      ["10.1.9.9", "10.1.9.9"],
    );
    assert.equal(rig.samples("veil_proxy_held_connections"), 0);
  });

  it("passes in clear when the control plane knows nobody there, and asks again later", async () => {
    const rig = new Rig({ addresses: everything });
    await rig.dial("10.1.9.9:80");
    rig.thread.handle({ type: "answer", name: "/10.1.9.9", answer: "absent" });
    await rig.settle();
    assert.equal(rig.network.dialled.length, 1);
    await rig.dial("10.1.9.9:80");
    assert.equal(rig.asked().length, 1, "the answer holds for a moment");
    await rig.clock.advance(1_001);
    await rig.dial("10.1.9.9:80");
    assert.equal(rig.asked().length, 2);
  });

  it("is refused, not passed, when nobody answers", async () => {
    for (const silent of [false, true]) {
      const rig = new Rig({ addresses: everything });
      const socket = await rig.dial("10.1.9.9:80");
      if (!silent) rig.thread.handle({ type: "answer", name: "/10.1.9.9", answer: "unavailable" });
      await rig.clock.advance(silent ? 5_000 : 0);
      await rig.settle();
      assert.equal(socket.state, "reset");
      assert.equal(outcome(rig), "refused none control_plane_unavailable");
      assert.deepEqual(rig.network.dialled, []);
    }
  });

  it("does not pass when the answer says that somebody is there and nothing comes", async () => {
    const rig = new Rig({ addresses: everything });
    const socket = await rig.dial("10.1.9.9:80");
    for (let i = 0; i < 6; i++) {
      rig.thread.handle({ type: "answer", name: "/10.1.9.9", answer: "present" });
      await rig.settle();
    }
    assert.equal(socket.state, "reset");
    assert.equal(outcome(rig), "refused none control_plane_unavailable");
  });

  it("waits for the first snapshot, then decides", async () => {
    const rig = new Rig({});
    await rig.dial("10.1.0.2:80");
    assert.deepEqual([rig.network.opened.length, rig.network.dialled.length], [0, 0]);
    rig.addresses(everything, true);
    await rig.settle();
    assert.equal(rig.network.opened.length, 1);
  });

  it("is refused when no snapshot comes", async () => {
    const rig = new Rig({});
    const socket = await rig.dial("10.1.0.3:80");
    await rig.clock.advance(5_000);
    await rig.settle();
    assert.equal(socket.state, "reset");
    assert.equal(outcome(rig), "refused none control_plane_unavailable");
  });

  it("waits for the pod's certificate", async () => {
    const rig = new Rig({ addresses: everything, certificate: false });
    await rig.dial("10.1.0.2:80");
    assert.equal(rig.network.opened.length, 0);
    rig.send({ type: "certificate", identity: identity("client") });
    await rig.settle();
    assert.equal(rig.network.opened.length, 1);
  });

  it("decides again after the certificate came: the destination may be another by then", async () => {
    const rig = new Rig({ addresses: everything, certificate: false });
    await rig.dial("10.1.0.2:80");
    rig.addresses([{ ...server, tunnelProtocol: "none" }]);
    rig.send({ type: "certificate", identity: identity("client") });
    await rig.settle();
    assert.deepEqual([rig.network.opened.length, rig.network.dialled.length], [0, 1]);
  });

  it("is refused without a certificate, and with one whose life is over", async () => {
    for (const expired of [false, true]) {
      const rig = new Rig({ addresses: everything, certificate: false });
      if (expired) rig.send({ type: "certificate", identity: identity("client", { notAfterMs: 500 }) });
      const socket = await rig.dial("10.1.0.2:80");
      await rig.clock.advance(5_000);
      await rig.settle();
      assert.equal(socket.state, "reset");
      assert.equal(outcome(rig), "refused none no_certificate");
      assert.deepEqual([rig.network.opened.length, rig.network.dialled.length], [0, 0]);
    }
  });

  it("is refused when it was not redirected but dialled the proxy's port itself", async () => {
    const rig = new Rig({ addresses: everything });
    const socket = new FakeSocket("10.1.0.1:4000", "10.1.0.1:15001");
    rig.network.listeners.find(({ port }) => port === 15001)?.onConnection(socket);
    await rig.settle();
    assert.equal(socket.state, "reset");
    assert.equal(outcome(rig), "refused none self_call");
  });
});

describe("an inbound tunnel", () => {
  const inWeb = { ...server, services: { "shop/web.shop.svc.cluster.local": [] } };
  const rigOfServer = (): Rig => new Rig({ pod: "server", addresses: [...everything, inWeb] });

  it("reaches the application from the client's address, answered only then", async () => {
    const rig = rigOfServer();
    const connected = Promise.withResolvers<FakeSocket>();
    rig.network.dial = async () => connected.promise;
    const tunnel = await rig.tunnel(
      new FakeTunnel("10.1.0.2:8080", { headers: { forwarded: "host=web.shop.svc.cluster.local" } }),
    );
    assert.equal(tunnel.status, undefined);
    const [dial] = rig.network.dialled;
    assert.deepEqual([dial?.ip, dial?.port, dial?.sourceIp, dial?.mark], ["10.1.0.2", 8080, "10.1.0.1", 0x539]);
    connected.resolve(new FakeSocket("10.1.0.2:8080", "10.1.0.1:50000"));
    await rig.settle();
    assert.equal(tunnel.status, 200);
    assert.match(tunnel.baggage ?? "", /k8s.pod.name=server/);
    tunnel.carry?.end();
    await rig.settle();
    assert.equal(outcome(rig), "forwarded mutual_tls ok");
    const [record] = rig.records();
    assert.equal(record?.direction, "inbound");
    assert.equal(record?.source.identity, "spiffe://cluster.local/ns/shop/sa/client");
    assert.equal(record?.destination.service, "web.shop.svc.cluster.local");
  });

  it("has a PROXY protocol header in front where the pod asks for one, and none otherwise", async () => {
    const applicationTunnel = { protocol: "proxy", port: 15_088 } as const;
    const rig = new Rig({ pod: "server", addresses: [client, { ...server, applicationTunnel }] });
    const application = new FakeSocket("127.0.0.1:15088", "127.0.0.1:50000");
    rig.network.dial = async () => Promise.resolve(application);
    const tunnel = await rig.tunnel(new FakeTunnel("10.96.0.1:80"));
    assert.equal(tunnel.status, 200);
    assert.deepEqual([rig.network.dialled[0]?.ip, rig.network.dialled[0]?.port], ["127.0.0.1", 15_088]);
    const [header] = application.sent;
    assert.equal(
      Buffer.from(header ?? [])
        .subarray(-41)
        .toString(),
      "(spiffe://cluster.local/ns/shop/sa/client",
    );
    const plainRig = rigOfServer();
    plainRig.network.dial = async () => Promise.resolve(application);
    await plainRig.tunnel(new FakeTunnel("10.1.0.2:8080"));
    assert.equal(application.sent.length, 1);
  });

  it("is described by its baggage when it came through a gateway, and not otherwise", async () => {
    const headers = { baggage: "k8s.cluster.name=far,k8s.namespace.name=ns,k8s.deployment.name=web,service.name=web" };
    const sourceOf = async (
      more: Record<string, string>,
      config?: Partial<ProxyConfig>,
    ): Promise<FlowRecord["source"] | undefined> => {
      const rig = new Rig({ pod: "server", addresses: [server], ...(config && { config }) });
      const tunnel = await rig.tunnel(new FakeTunnel("10.1.0.2:8080", { headers: { ...headers, ...more } }));
      tunnel.carry?.end();
      await rig.settle();
      return rig.records()[0]?.source;
    };
    const far = await sourceOf({ "x-forwarded-network": "east" });
    assert.deepEqual([far?.cluster, far?.namespace, far?.workload], ["far", "ns", "web"]);
    assert.equal((await sourceOf({}))?.workload, undefined);
    assert.equal((await sourceOf({ "x-forwarded-network": "" }))?.workload, undefined);
    const off = await sourceOf({ "x-forwarded-network": "east" }, { baggage: false });
    assert.equal(off?.workload, undefined);
  });

  it("is answered without baggage where baggage is off", async () => {
    const rig = new Rig({ pod: "server", addresses: everything, config: { baggage: false } });
    assert.equal((await rig.tunnel(new FakeTunnel("10.1.0.2:8080"))).baggage, undefined);
  });

  it("is answered 503 when the application does not listen", async () => {
    const rig = rigOfServer();
    rig.network.dial = async () => Promise.reject(new CodedError("LINUX_CONNECT_REFUSED", "refused"));
    assert.equal((await rig.tunnel(new FakeTunnel("10.1.0.2:8080"))).status, 503);
    assert.equal(outcome(rig), "refused none destination_unreachable");
  });

  it("is answered 400 for another pod's address", async () => {
    const rig = rigOfServer();
    assert.equal((await rig.tunnel(new FakeTunnel("10.1.0.3:8080"))).status, 400);
    assert.equal(outcome(rig), "refused none bad_request");
    assert.deepEqual(rig.network.dialled, []);
  });

  it("is held until the first snapshot is there, and answered 503 when it does not come", async () => {
    const held = new Rig({ pod: "server" });
    const tunnel = await held.tunnel(new FakeTunnel("10.1.0.2:8080"));
    assert.equal(tunnel.status, undefined);
    held.addresses(everything, true);
    await held.settle();
    assert.equal(tunnel.status, 200);
    const never = new Rig({ pod: "server" });
    const refused = await never.tunnel(new FakeTunnel("10.1.0.2:8080"));
    await never.clock.advance(5_000);
    await never.settle();
    assert.equal(refused.status, 503);
    assert.equal(outcome(never), "refused none control_plane_unavailable");
  });

  it("leaves nothing behind when the peer gives up while the application is dialled", async () => {
    const rig = rigOfServer();
    const application = new FakeSocket("10.1.0.2:8080", "10.1.0.1:50000");
    const tunnel = new FakeTunnel("10.1.0.2:8080");
    rig.network.dial = async () => {
      tunnel.giveUp();
      return Promise.resolve(application);
    };
    await rig.tunnel(tunnel);
    assert.equal(application.state, "reset");
    assert.equal(outcome(rig), "refused none reset");
  });
});

describe("an authorization policy", () => {
  const nobody = testPolicy("nobody");
  const byClient = { principals: [exactly("cluster.local/ns/shop/sa/client")] };
  const denied = testPolicy("no-client", [byClient], { action: "deny" });
  const details = (rig: Rig): string[] => rig.records().map(({ reason, detail }) => `${reason} ${detail}`);

  it("answers a tunnel with 401 and resets plaintext, before the application is dialled", async () => {
    const rig = new Rig({ pod: "server", addresses: everything });
    rig.policies(denied);
    assert.equal((await rig.tunnel(new FakeTunnel("10.1.0.2:8080"))).status, 401);
    rig.policies(nobody);
    assert.equal((await rig.plaintext("10.1.0.3:4000")).state, "reset");
    assert.deepEqual(rig.network.dialled, []);
    assert.deepEqual(details(rig), [
      "policy_denied explicitly denied by: shop/no-client",
      "policy_denied allow policies exist, but none allowed",
    ]);
  });

  it("ends a running tunnel and a running copy that it does not allow", async () => {
    const rig = new Rig({ pod: "server", addresses: everything });
    const tunnel = await rig.tunnel(new FakeTunnel("10.1.0.2:8080"));
    await rig.plaintext("10.1.0.3:4000");
    rig.policies(denied);
    await rig.settle();
    assert.equal(tunnel.carry?.aborted?.code, "PROXY_POLICY_CHANGED");
    const copyEnd = (): string | undefined => rig.network.copies[0]?.aborted?.code;
    assert.equal(copyEnd(), undefined, "plaintext is not this client");
    rig.policies(nobody);
    await rig.settle();
    assert.equal(copyEnd(), "PROXY_POLICY_CHANGED");
    const [first] = details(rig);
    assert.match(
      first ?? "",
      /^policy_changed .*connection closed due to policy change: explicitly denied by: shop\/no-client$/,
    );
  });

  it("that comes while the application is dialled counts", async () => {
    const rig = new Rig({ pod: "server", addresses: everything });
    const application = new FakeSocket("10.1.0.2:8080", "10.1.0.1:50000");
    const connected = Promise.withResolvers<FakeSocket>();
    rig.network.dial = async () => connected.promise;
    const tunnel = await rig.tunnel(new FakeTunnel("10.1.0.2:8080"));
    rig.policies(denied);
    await rig.settle();
    connected.resolve(application);
    await rig.settle();
    assert.deepEqual([tunnel.status, application.state], [401, "reset"]);
    assert.equal(outcome(rig), "refused none policy_changed");
  });

  it("in dry run decides nothing; the record and a counter tell what it would have done", async () => {
    const rig = new Rig({ pod: "server", addresses: everything });
    rig.policies({ ...denied, dryRun: true });
    const tunnel = await rig.tunnel(new FakeTunnel("10.1.0.2:8080"));
    assert.equal(tunnel.status, 200);
    tunnel.carry?.end();
    await rig.settle();
    assert.deepEqual(details(rig), ["ok "]);
    assert.equal(rig.records()[0]?.dryRun, "would be denied, by shop/no-client");
    assert.equal(rig.samples("veil_proxy_dry_run_total"), 1);
  });

  it("of single workloads is waited for: the pod itself is asked for, and refused when nobody answers", async () => {
    const rig = new Rig({ pod: "server", addresses: [client, plain] });
    rig.policies({ ...denied, scope: "workload" });
    const tunnel = await rig.tunnel(new FakeTunnel("10.1.0.2:8080"));
    assert.deepEqual([tunnel.status, rig.asked()], [undefined, [testPod("server").workloadUid]]);
    rig.addresses([{ ...server, authorizationPolicies: ["shop/no-client"] }]);
    rig.thread.handle({ type: "answer", name: testPod("server").workloadUid, answer: "present" });
    await rig.settle();
    assert.equal(tunnel.status, 401);
    const never = new Rig({ pod: "server", addresses: [client, plain] });
    never.policies({ ...denied, scope: "workload" });
    const refused = await never.tunnel(new FakeTunnel("10.1.0.2:8080"));
    await never.clock.advance(5_000);
    await never.settle();
    assert.equal(refused.status, 503);
    assert.match(details(never)[0] ?? "", /control_plane_unavailable .*which policies apply/);
  });
});

describe("a plaintext connection", () => {
  it("reaches the application from the client's address and says that it is plaintext", async () => {
    const rig = new Rig({ pod: "server", addresses: everything });
    await rig.plaintext("10.1.0.3:4000");
    assert.equal(rig.network.dialled[0]?.sourceIp, "10.1.0.3");
    const [copy] = rig.network.copies;
    Object.assign(copy?.bytes ?? {}, { sent: 7, received: 3 });
    copy?.end();
    await rig.settle();
    assert.equal(outcome(rig), "forwarded plaintext source_not_enrolled");
    assert.equal(rig.records()[0]?.bytesSent, 7, "what the application sent");
  });

  it("is reset when both ends have been enrolled from the start", async () => {
    const rig = new Rig({ pod: "server", addresses: everything });
    const socket = await rig.plaintext("10.1.0.1:4000");
    await rig.clock.advance(2_000);
    await rig.settle();
    assert.equal(socket.state, "reset");
    assert.equal(outcome(rig), "refused none plaintext_refused");
    assert.deepEqual(rig.network.dialled, []);
  });

  it("waits a moment for what its client's node knows already: that one of the two is plain again", async () => {
    for (const news of [
      { ...server, tunnelProtocol: "none" },
      { ...client, tunnelProtocol: "none" },
    ] as const) {
      const rig = new Rig({ pod: "server", addresses: everything });
      const socket = await rig.plaintext("10.1.0.1:4000");
      rig.addresses([plain]); // of somebody else
      await rig.settle();
      await rig.clock.advance(1_900);
      assert.deepEqual([socket.state === "reset", rig.network.dialled.length], [false, 0]);
      rig.addresses([news]);
      await rig.settle();
      assert.equal(rig.network.dialled.length, 1);
      rig.network.copies[0]?.end();
      await rig.settle();
      assert.equal(outcome(rig), "forwarded plaintext source_not_enrolled");
    }
  });

  it("passes as enrolling for ten seconds after the client was enrolled", async () => {
    const rig = new Rig({ pod: "server", addresses: [server, { ...client, tunnelProtocol: "none" }] });
    rig.addresses([client]);
    await rig.clock.advance(10_000);
    await rig.plaintext("10.1.0.1:4000");
    rig.network.copies[0]?.end();
    await rig.settle();
    assert.equal(outcome(rig), "forwarded plaintext enrolling");
    await rig.clock.advance(1);
    const late = await rig.plaintext("10.1.0.1:4001");
    await rig.clock.advance(2_000);
    await rig.settle();
    assert.equal(late.state, "reset");
  });

  it("is refused before any snapshot has come, when the client is inside the cluster", async () => {
    const rig = new Rig({ pod: "server" });
    const socket = await rig.plaintext("10.1.0.3:4000");
    assert.equal(socket.state, "open");
    await rig.clock.advance(5_000);
    await rig.settle();
    assert.equal(socket.state, "reset");
    assert.equal(outcome(rig), "refused none control_plane_unavailable");
  });
});

describe("a data thread", () => {
  it("answers an add only after all three ports listen", () => {
    const rig = new Rig({ addresses: everything });
    assert.deepEqual(
      rig.network.listeners.map(({ port, transparent, reusePort, mark }) => [port, transparent, reusePort, mark]),
      [
        [15006, true, true, 0x539],
        [15001, true, true, 0x539],
      ],
    );
    assert.equal(rig.network.servers[0]?.port, 15008);
    assert.equal(rig.network.servers[0].reusePort, true, "the next proxy listens before this one stops");
    assert.deepEqual(rig.network.prepared, ["netns:7"]);
  });

  it("writes as much to the access log as its level says, from the next line on", async () => {
    const rig = new Rig({ pod: "server", addresses: everything });
    const lines = (): string[] =>
      rig.posted
        .flatMap((message) => (message.type === "records" ? linesOf(message.batch) : []))
        .map((line) => line.split("\t")[3] ?? "");
    const carry = async (): Promise<void> => {
      const tunnel = await rig.tunnel(new FakeTunnel("10.1.0.2:8080"));
      tunnel.carry?.end();
      await rig.settle();
    };
    await carry();
    rig.thread.handle({ type: "accessLevel", level: "debug" });
    await carry();
    rig.thread.handle({ type: "accessLevel", level: "error" });
    await carry();
    assert.deepEqual(lines(), ["connection complete", "connection opened", "connection complete"]);
  });

  it("holds nothing of connections that have ended, once it is told to collect its garbage", async () => {
    const [callee, caller] = [new Rig({ pod: "server", addresses: everything }), new Rig({ addresses: everything })];
    const remains: WeakRef<object>[] = [];
    const carry = async (remote: string): Promise<void> => {
      const tunnel = await callee.tunnel(new FakeTunnel("10.1.0.2:8080", { remote }));
      remains.push(new WeakRef(tunnel), new WeakRef(tunnel.carry ?? assert.fail()));
      tunnel.carry?.end();
    };
    const dial = async (to: string): Promise<void> => {
      remains.push(new WeakRef(await caller.dial(to)));
    };
    for (let i = 0; i < 10; i++) {
      await carry(`10.1.0.1:${4_000 + i}`);
      await dial("10.1.0.2:8080");
      await dial("10.1.0.3:80");
    }
    const endAll = ({ opened, copies, dialled }: FakeNetwork): void => {
      for (const ended of [...opened.splice(0).map(({ carry }) => carry), ...copies.splice(0)]) {
        remains.push(new WeakRef(ended));
        ended.end();
      }
      dialled.length = 0;
    };
    endAll(caller.network);
    assert.equal(remains.length, 60);
    await Promise.all([callee.settle(), caller.settle()]);
    caller.thread.handle({ type: "collect" });
    assert.deepEqual(
      remains.flatMap((one) => one.deref() ?? []),
      [],
    );
  });

  it("shows its connections, its pools and what it counted in slices, and label sets once", async () => {
    const rig = new Rig({ pod: "server", addresses: everything });
    for (let i = 0; i < 1_001; i++)
      await rig.tunnel(new FakeTunnel("10.1.0.2:8080", { remote: `10.1.0.1:${4_000 + i}` }));
    const sizes: number[] = [];
    for (let first: number | undefined = 0; ; first = undefined) {
      const slice = rig.done(rig.send({ type: "look", kind: "connections", known: first }))?.slice;
      if (slice === undefined) break;
      sizes.push(slice.connections?.length ?? 0);
    }
    assert.deepEqual(sizes, [500, 500, 1]);
    const [one] = rig.look("connections", 0).connections ?? [];
    assert.deepEqual(
      [one?.podUid, one?.direction, one?.source, one?.actual, one?.encryption],
      ["uid-server", "inbound", "10.1.0.1:4000", "10.1.0.2:8080", "mutual_tls"],
    );
    const { series = [], values = [] } = rig.look("samples", 0);
    assert.ok(series.length > 0 && series.length === values.length);
    const later = rig.look("samples", series.length);
    assert.deepEqual([later.series?.length, later.values?.length], [0, series.length]);
    rig.network.peers = [
      {
        source: testPod("server").identity,
        accepted: [],
        ip: "10.1.0.3",
        port: 15008,
        sessions: [],
        waiting: 0,
        dialling: true,
      },
    ];
    assert.deepEqual(
      rig.look("pool", 0).pool?.map(({ podUid, inboundSessions, peer }) => [podUid, inboundSessions, peer?.ip]),
      [
        ["uid-server", 2, undefined],
        ["uid-server", 2, "10.1.0.3"],
      ],
    );
  });

  it("serves the proxy's own pod by tunnels alone, and dials its metrics from its own address", async () => {
    const rig = new Rig({ pod: "server", addresses: everything });
    const own = testPod("server", { podUid: "self", serves: [15020] });
    rig.send({ type: "podAdd", pod: own, netnsFd: 8, old: true });
    assert.equal(rig.network.listeners.length, 2, "those of the pod that was there");
    assert.equal(rig.network.servers.length, 2);
    const tunnel = new FakeTunnel("10.1.0.2:15020");
    rig.network.servers[1]?.onTunnel(tunnel);
    await rig.settle();
    assert.equal(tunnel.status, 200);
    const [dial] = rig.network.dialled;
    assert.deepEqual([dial?.ip, dial?.port, dial?.sourceIp], ["10.1.0.2", 15020, undefined]);
  });

  for (const port of [15001, 15006, 15008]) {
    it(`gives everything back when port ${port} is taken`, () => {
      const rig = new Rig({ addresses: everything });
      rig.network.takenPorts.add(port);
      const seq = rig.send({ type: "podAdd", pod: testPod("server"), netnsFd: 8, old: false });
      assert.equal(rig.done(seq)?.error?.code, "PROXY_LISTEN");
      assert.ok(rig.network.listeners.slice(2).every(({ stopped }) => stopped));
      assert.ok(rig.network.servers[1]?.drained);
      assert.deepEqual(rig.network.closedNetns, [8]);
    });
  }

  it("takes the same pod twice as once, and another namespace of it as a new pod", async () => {
    const rig = new Rig({ addresses: everything });
    rig.network.adoptNetns = (fd) => ({
      fd,
      key: fd < 9 ? "same" : "other",
      [Symbol.dispose]: () => rig.network.closedNetns.push(fd),
    });
    rig.send({ type: "podAdd", pod: testPod("server"), netnsFd: 7, old: false });
    rig.send({ type: "podAdd", pod: testPod("server"), netnsFd: 8, old: false });
    assert.equal(rig.network.servers.length, 2);
    assert.deepEqual(rig.network.closedNetns, [8], "the second descriptor of the same namespace");
    rig.send({ type: "podAdd", pod: testPod("server"), netnsFd: 9, old: false });
    await rig.settle();
    assert.equal(rig.network.servers.length, 3);
    assert.ok(rig.network.servers[1]?.drained);
    assert.deepEqual(rig.network.closedNetns, [8, 7]);
  });

  it("ends a pod: no new connections, running ones until the deadline, then they are broken and say so", async () => {
    const rig = new Rig({ addresses: everything });
    await rig.dial("10.1.0.3:80");
    const seq = rig.send({ type: "podDrop", podUid: "uid-client", drainMs: 3_000 });
    assert.ok(rig.network.listeners.every(({ stopped }) => stopped));
    assert.equal((await rig.dial("10.1.0.3:80")).state, "reset");
    await rig.clock.advance(2_989); // the refused connection took ten
    assert.equal(rig.done(seq), undefined);
    await rig.clock.advance(1);
    await rig.settle();
    assert.equal(rig.done(seq)?.error, undefined);
    assert.deepEqual(
      rig
        .records()
        .map(({ verdict, reason }) => `${verdict} ${reason}`)
        .toSorted(),
      ["forwarded drained", "refused draining"],
    );
    assert.deepEqual(rig.network.closedNetns, [7]);
    assert.equal(rig.samples("istio_tcp_sockets_open"), 0);
  });

  describe("records that nobody reads", () => {
    /** A thread of one open connection, and as many lines waiting as may. */
    async function stalled(config: Partial<ProxyConfig>): Promise<Rig> {
      const rig = new Rig({ addresses: everything, config });
      await rig.dial("10.1.0.3:80");
      rig.isRead = false;
      await rig.dial("10.1.0.1:15001"); // refused; its line is on its way
      const listener = rig.network.listeners.find(({ port }) => port === 15001);
      for (let i = 0; i < 10_000; i++) {
        listener?.onConnection(new FakeSocket("10.1.0.1:4000", "10.1.0.1:15001", "10.1.0.1:15001"));
      }
      await rig.settle();
      return rig;
    }

    /** What was said of forwarded connections, and how many lines are missing, once somebody reads. */
    async function read(rig: Rig): Promise<{ forwarded: number; missing: number }> {
      rig.read();
      await rig.settle();
      const lines = rig.posted.flatMap((message) => (message.type === "records" ? linesOf(message.batch) : []));
      const told = lines.flatMap((line) => /access records dropped\s.*?count=(\d+)/.exec(line)?.[1] ?? []);
      const forwarded = rig.records().filter(({ verdict }) => verdict === "forwarded").length;
      return { forwarded, missing: told.reduce((sum, count) => sum + Number(count), 0) };
    }

    it("are dropped, with their number, and connections go on", async () => {
      const rig = await stalled({});
      await rig.dial("10.1.0.3:81");
      assert.equal(rig.network.copies.length, 2);
      for (const copy of rig.network.copies) copy.end();
      assert.deepEqual(await read(rig), { forwarded: 0, missing: 2 });
      assert.equal(rig.samples("veil_proxy_records_dropped_total"), 2);
    });

    it("stop what is new when they are required: nothing was forwarded that has no record", async () => {
      const rig = await stalled({ recordsRequired: true });
      const refused = await rig.dial("10.1.0.3:81");
      assert.deepEqual([refused.state, rig.network.copies.length], ["reset", 1]);
      const refusals = (): unknown =>
        rig.look("samples", 0).series?.find(({ labels }) => labels["reason"] === "log_stalled")?.name;
      assert.equal(refusals(), "veil_proxy_refused_total");
      rig.network.copies[0]?.end();
      assert.deepEqual(await read(rig), { forwarded: 1, missing: 1 });
      await rig.dial("10.1.0.3:81");
      assert.equal(rig.network.copies.length, 2, "it is read again");
    });

    it("stop new tunnels to a pod, too", async () => {
      const rig = await stalled({ recordsRequired: true });
      rig.send({ type: "podAdd", pod: testPod("server"), netnsFd: 8, old: true });
      const tunnel = new FakeTunnel("10.1.0.2:8080");
      rig.network.servers[1]?.onTunnel(tunnel);
      await rig.settle();
      assert.deepEqual([tunnel.status, rig.network.dialled.length], [503, 1]);
    });
  });

  describe("a connection that still waits when a drain has no more time", () => {
    const ways: readonly (readonly [string, string, (rig: Rig) => Promise<FakeSocket | FakeTunnel>])[] = [
      ["who it goes to", "client", async (rig) => rig.dial("10.1.0.77:80")],
      ["a plain destination", "client", async (rig) => rig.dial("10.1.0.3:80")],
      ["the application, in clear", "server", async (rig) => rig.plaintext("10.1.0.3:4000")],
      ["the application, in a tunnel", "server", async (rig) => rig.tunnel(new FakeTunnel("10.1.0.2:8080"))],
    ];
    for (const [what, pod, arrive] of ways) {
      it(`(for ${what}) is refused with a record, and what it waited for is given back`, async () => {
        const rig = new Rig({ pod, addresses: everything });
        const dialled = Promise.withResolvers<FakeSocket>();
        rig.network.dial = () => dialled.promise;
        const connection = await arrive(rig);
        const seq = rig.send({ type: "drain", drainMs: 3_000 });
        await rig.clock.advance(3_000);
        await rig.settle();
        assert.notEqual(rig.done(seq), undefined);
        const [record, ...others] = rig.records();
        assert.deepEqual([record?.verdict, record?.reason, others.length], ["refused", "draining", 0]);
        assert.match(record?.detail ?? "", /^PROXY_DRAINED/);
        if (connection instanceof FakeTunnel) assert.equal(connection.status, 503);
        else assert.equal(connection.state, "reset");
        const late = new FakeSocket("10.1.0.3:80", "10.1.0.1:50000");
        dialled.resolve(late);
        for (const name of rig.asked()) rig.thread.handle({ type: "answer", name, answer: "absent" });
        await rig.settle();
        assert.equal(late.state, rig.network.dialled.length === 0 ? "open" : "reset");
        assert.deepEqual([rig.records().length, rig.network.copies.length], [1, 0]);
      });
    }
  });

  it("has handed over every record when it says that it has drained", async () => {
    const rig = new Rig({ addresses: everything });
    await rig.dial("10.1.0.3:80");
    const seq = rig.send({ type: "drain", drainMs: 0 });
    await rig.settle();
    const types = rig.posted.map((message) => (message.type === "done" && message.seq !== seq ? "" : message.type));
    assert.deepEqual(types.filter((type) => type !== "").slice(-2), ["records", "done"]);
    assert.equal(outcome(rig), "forwarded plaintext drained");
  });

  it("opens no further tunnels to an address whose owner has changed, and keeps all others", () => {
    const rig = new Rig({ addresses: everything });
    const peer = {
      source: identity("client").id,
      accepted: [],
      port: 15_008,
      sessions: [],
      waiting: 0,
      dialling: false,
    };
    rig.network.peers = ["10.1.0.2", "10.1.0.4", "198.51.100.1"].map((ip) => ({ ...peer, ip }));
    const change = (upserts: readonly Address[], removes: readonly string[]): void => {
      rig.send({ type: "addresses", change: { upserts, removes, old: false }, synced: false });
    };
    change([{ ...server, healthy: false }], [plain.uid]);
    assert.deepEqual(rig.network.changed, []);
    change([testWorkload("next", "10.1.0.2")], [server.uid]);
    assert.deepEqual(rig.network.changed, ["gone 10.1.0.2"]);
    change([], ["Kubernetes//Pod/shop/web-1"]);
    assert.deepEqual(rig.network.changed, ["gone 10.1.0.2", "gone 10.1.0.4"]);
  });

  it("ends a pod at once when nothing runs", async () => {
    const rig = new Rig({ addresses: everything });
    await rig.dial("10.1.0.3:80");
    rig.network.copies[0]?.end();
    const seq = rig.send({ type: "podDrop", podUid: "uid-client", drainMs: 3_000 });
    await rig.settle();
    assert.notEqual(rig.done(seq), undefined);
  });

  it("tells the pool of a renewed certificate and of new roots", () => {
    const rig = new Rig({ addresses: everything });
    rig.send({ type: "certificate", identity: identity("client") });
    assert.deepEqual(rig.network.changed, []);
    rig.send({ type: "certificate", identity: identity("client", { chainPem: "new" }) });
    rig.send({ type: "certificate", identity: identity("client", { chainPem: "new", rootsPem: "new" }) });
    rig.send({ type: "certificate", identity: identity("server", { rootsPem: "new" }) });
    assert.deepEqual(rig.network.changed, [`leaf ${identity("client").id}`, "roots", "roots of peers"]);
  });

  it("lets peers in that came before the pod's certificate", () => {
    const rig = new Rig({ addresses: everything });
    const arrivals = (): number => rig.network.servers.reduce((sum, server) => sum + server.arrivals, 0);
    const before = arrivals();
    rig.send({ type: "certificate", identity: identity("client") });
    assert.equal(arrivals(), before + 1);
  });

  it("records and counts sessions that were refused before they asked for anything", async () => {
    const rig = new Rig({ addresses: everything });
    const { remote } = new FakeSocket("10.1.0.9:1", "10.1.0.1:15008");
    rig.network.servers[0]?.onRejected?.({ remote, error: new CodedError("X509_TWO_URI_SANS", "two") });
    await rig.settle();
    assert.equal(outcome(rig), "refused none wrong_identity");
    const [record] = rig.records();
    assert.deepEqual([record?.source.address, record?.destination.address], ["10.1.0.9:1", "10.1.0.1:15008"]);
    assert.equal(record?.detail, "X509_TWO_URI_SANS: two");
    assert.equal(rig.samples("veil_proxy_tunnels_rejected_total"), 1);
  });
});

describe("a connection to a workload that is known by its hostname only", () => {
  const named = (services: Record<string, []>): readonly Address[] => [
    client,
    web,
    testWorkload("api", "10.1.0.9", { addresses: [], hostname: "api.example.com", tunnelProtocol: "none", services }),
  ];
  const world = named({ "shop/web.shop.svc.cluster.local": [] });
  const resolves = (rig: Rig): string[] =>
    rig.posted.flatMap((message) => (message.type === "resolve" ? [message.hostname] : []));

  it("is held, looked up once for all, and dialled", async () => {
    const rig = new Rig({ addresses: world });
    await rig.dial("10.96.0.1:80");
    await rig.dial("10.96.0.1:80");
    assert.deepEqual(resolves(rig), ["api.example.com"]);
    assert.equal(rig.network.dialled.length, 0);
    const answer = { addresses: [testAddress("192.0.2.7:0").ip], ttlMs: 30_000 };
    rig.thread.handle({ type: "resolved", hostname: "api.example.com", answer });
    await rig.settle();
    assert.deepEqual(
      rig.network.dialled.map(({ ip, port }) => `${ip}:${port}`),
      ["192.0.2.7:8080", "192.0.2.7:8080"],
    );
    await rig.dial("10.96.0.1:80");
    assert.deepEqual(resolves(rig), ["api.example.com"], "the answer is remembered");
    assert.equal(rig.samples("istio_on_demand_dns_total"), 1);
  });

  it("is refused when nobody answers in time, and when the name has no address", async () => {
    const silent = new Rig({ addresses: world });
    const socket = await silent.dial("10.96.0.1:80");
    await silent.clock.advance(5_000);
    assert.equal(outcome(silent), "refused none no_healthy_upstream");
    assert.equal(socket.state, "reset");
    const empty = new Rig({ addresses: world });
    await empty.dial("10.96.0.1:80");
    empty.thread.handle({ type: "resolved", hostname: "api.example.com", answer: { addresses: [], ttlMs: 1_000 } });
    await empty.settle();
    assert.equal(outcome(empty), "refused none no_healthy_upstream");
  });
});

describe("an outbound connection to another network", () => {
  it("is asked for as a tunnel in a tunnel, by the service's name", async () => {
    const gateway = { kind: "address", network: "east", address: testAddress("198.51.100.1:0").ip } as const;
    const rig = new Rig({
      addresses: [
        client,
        { ...web, subjectAltNames: [identity("far").id] },
        testWorkload("gateway", "198.51.100.1", { network: "east" }),
        testWorkload("far", "10.1.0.9", {
          addresses: [],
          network: "east",
          networkGateway: { destination: gateway, hboneMtlsPort: 15_009 },
          services: { "shop/web.shop.svc.cluster.local": [] },
        }),
      ],
    });
    await rig.dial("10.96.0.1:80");
    const [open] = rig.network.opened;
    assert.deepEqual(
      [open?.ip, open?.port, open?.authority, open?.accepted, open?.inner],
      [
        "198.51.100.1",
        15_009,
        "web.shop.svc.cluster.local:80",
        [identity("gateway").id],
        { accepted: [identity("far").id], network: "" },
      ],
    );
    open?.onOpen?.({
      peer: identity("far").id,
      responseBaggage: "k8s.cluster.name=east,k8s.namespace.name=shop,k8s.deployment.name=web-v2,service.name=web",
    });
    open?.carry.end();
    await rig.settle();
    const [record] = rig.records();
    assert.deepEqual(
      [record?.destination.cluster, record?.destination.workload, record?.destination.identity],
      ["east", "web-v2", identity("far").id],
      "who answered behind the gateway, as it says itself",
    );
  });
});
