import assert from "node:assert/strict";
import { closeSync, openSync, readdirSync, readlinkSync } from "node:fs";
import { describe, it } from "node:test";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { FakeClock } from "#base/clock";
import { CodedError } from "#base/errors";
import { silentLog } from "#base/log";
import { seededRandom } from "#base/random";
import { parseSpiffeId, type SpiffeId } from "#model/spiffe-id";
import type { TlsIdentity } from "#model/tls-identity";
import { proxyConfig } from "./config.ts";
import { WorkloadRequestSchema, WorkloadResponseSchema } from "#proto";
import { Pods, type Certificates, type PodThreads } from "./pods.ts";
import type { LocalPod } from "./route.ts";
import { selfPod, serveSelf } from "./self-pod.ts";
import { ZdsClient, type ZdsConnection } from "./zds-client.ts";
import type { ZdsRequest } from "./zds-messages.ts";

/** Data threads that remember what they were told. */
class FakeThreads implements PodThreads {
  readonly said: string[] = [];
  readonly begun: string[] = [];
  failure: Error | undefined;
  /** Pods are added when this has resolved. */
  ready: Promise<void> = Promise.resolve();

  async addPod(pod: LocalPod, { fd, old }: { fd: number; old: boolean }): Promise<void> {
    closeSync(fd); // the thread owns it
    this.begun.push(pod.name);
    await this.ready;
    if (this.failure !== undefined) throw this.failure;
    this.said.push(`add ${pod.name} ${pod.workloadUid} ${pod.identity}${old ? " old" : ""}`);
  }

  dropPod(podUid: string, drainMs: number): Promise<void> {
    this.said.push(`drop ${podUid} ${drainMs}`);
    return Promise.resolve();
  }

  certificate({ id }: TlsIdentity): Promise<void> {
    this.said.push(`certificate ${id}`);
    return Promise.resolve();
  }
}

class FakeCertificates implements Certificates {
  wanted: readonly SpiffeId[] = [];
  readonly there = new Map<SpiffeId, TlsIdentity>();
  readonly #waiters = new Map<SpiffeId, (identity: TlsIdentity) => void>();

  want(ids: readonly SpiffeId[]): void {
    this.wanted = ids;
  }

  get(id: SpiffeId): TlsIdentity | undefined {
    return this.there.get(id);
  }

  async wait(id: SpiffeId, signal: AbortSignal): Promise<TlsIdentity> {
    return new Promise((resolve, reject) => {
      this.#waiters.set(id, resolve);
      signal.addEventListener("abort", () => {
        reject(signal.reason as Error);
      });
      if (signal.aborted) reject(signal.reason as Error);
    });
  }

  arrive(id: SpiffeId): void {
    const identity = { id, chainPem: "", keyPem: "", rootsPem: "", notAfterMs: 1e12 };
    this.there.set(id, identity);
    this.#waiters.get(id)?.(identity);
  }
}

const idOf = (name: string): SpiffeId => parseSpiffeId(`spiffe://cluster.local/ns/shop/sa/${name}`);

class Rig {
  readonly clock = new FakeClock();
  readonly threads = new FakeThreads();
  readonly certificates = new FakeCertificates();
  readonly pods: Pods;
  /** What the proxy knows of addresses, and whether another one is there. */
  synced = true;
  other = false;

  constructor(...certified: readonly string[]) {
    for (const name of certified) this.certificates.arrive(idOf(name));
    const { threads, certificates, clock } = this;
    const config = proxyConfig({ node: "node1" });
    this.pods = new Pods({
      config,
      threads,
      certificates,
      clock,
      log: silentLog(),
      drainMs: 3_000,
      synced: () => this.synced,
      isServedByOther: () => this.other,
    });
    this.pods.beginSnapshot();
  }

  async add(name: string): Promise<void> {
    const request = { kind: "add", uid: `uid-${name}`, name, namespace: "shop", serviceAccount: name } as const;
    await this.pods.handle(request, openSync("/proc/self/ns/net", "r"));
  }

  async say(kind: "del" | "keep", name: string): Promise<void> {
    await this.pods.handle({ kind, uid: `uid-${name}` }, undefined);
  }

  async endSnapshot(): Promise<void> {
    await this.pods.handle({ kind: "snapshotSent" }, undefined);
  }
}

const codeOf = async (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => "done",
    (error: unknown) => (error instanceof CodedError ? error.code : String(error)),
  );

const turn = async (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

const openFiles = (): number => readdirSync("/proc/self/fd").length;

describe("the pods of a node", () => {
  it("are served when they listen and have their certificate, and are old when they came in the first list", async () => {
    const rig = new Rig("a", "b");
    await rig.add("a");
    assert.deepEqual(rig.pods.pending(), ["the agent's list of pods"]);
    await rig.endSnapshot();
    await rig.add("b");
    assert.deepEqual(rig.threads.said.toSorted(), [
      `add a Kubernetes//Pod/shop/a ${idOf("a")} old`,
      `add b Kubernetes//Pod/shop/b ${idOf("b")}`,
      `certificate ${idOf("a")}`,
      `certificate ${idOf("b")}`,
    ]);
    assert.deepEqual(rig.pods.pending(), []);
    assert.deepEqual(rig.certificates.wanted, [idOf("a"), idOf("b")]);
    assert.equal(rig.pods.find("shop/b")?.podUid, "uid-b");
  });

  it("are acknowledged only when the certificate is there", async () => {
    const rig = new Rig();
    await rig.endSnapshot();
    const added = codeOf(rig.add("a"));
    await turn();
    await rig.clock.advance(3_999);
    assert.deepEqual(rig.pods.pending(), ["shop/a"]);
    rig.certificates.arrive(idOf("a"));
    assert.equal(await added, "done");
    assert.deepEqual(rig.threads.said.at(-1), `certificate ${idOf("a")}`);
  });

  it("are refused when the certificate does not come in time, and stay pending, listening", async () => {
    const rig = new Rig();
    await rig.endSnapshot();
    const added = codeOf(rig.add("a"));
    await turn();
    await rig.clock.advance(4_000);
    assert.equal(await added, "PROXY_NO_CERTIFICATE");
    assert.deepEqual(rig.pods.pending(), ["shop/a"]);
    assert.equal(rig.threads.said.length, 1);
    rig.certificates.arrive(idOf("a"));
    assert.deepEqual(rig.pods.pending(), []);
  });

  it("of one list wait for certificates for two seconds together, not each", async () => {
    const rig = new Rig();
    const first = codeOf(rig.add("a"));
    await turn();
    await rig.clock.advance(2_000);
    assert.equal(await first, "PROXY_NO_CERTIFICATE");
    const second = codeOf(rig.add("b"));
    await turn();
    await rig.clock.advance(0);
    assert.equal(await second, "PROXY_NO_CERTIFICATE");
    assert.equal(rig.threads.said.length, 2, "both listen all the same");
  });

  it("are tried again when their ports could not be opened", async () => {
    const rig = new Rig("a");
    await rig.endSnapshot();
    rig.threads.failure = new CodedError("PROXY_LISTEN", "port 15001 is taken");
    assert.equal(await codeOf(rig.add("a")), "PROXY_LISTEN");
    assert.deepEqual(rig.pods.pending(), ["shop/a"]);
    rig.threads.failure = undefined;
    await rig.clock.advance(5_000);
    assert.deepEqual(rig.pods.pending(), []);
    await rig.clock.advance(5_000);
    assert.equal(rig.threads.said.filter((said) => said.startsWith("add")).length, 1);
  });

  it("are left to the other proxy until their certificates and all addresses are there", async () => {
    const rig = new Rig("a");
    [rig.synced, rig.other] = [false, true];
    await rig.add("a");
    await rig.add("b");
    await rig.endSnapshot();
    await rig.clock.advance(20_000);
    assert.deepEqual(rig.threads.said, []);
    assert.deepEqual(rig.pods.pending(), ["shop/a", "shop/b"]);
    rig.synced = true;
    await rig.clock.advance(100);
    assert.deepEqual(rig.pods.pending(), ["shop/b"], "this one has no certificate");
    rig.certificates.arrive(idOf("b"));
    await rig.clock.advance(100);
    assert.deepEqual(rig.pods.pending(), []);
    assert.equal(rig.pods.started, 2);
  });

  it("are not left to a proxy that is gone, or given up meanwhile", async () => {
    const rig = new Rig();
    rig.other = true;
    for (const name of ["a", "b"]) await rig.add(name);
    await rig.endSnapshot();
    await rig.say("del", "b");
    await rig.clock.advance(1_000);
    assert.deepEqual(rig.threads.said, ["drop uid-b 3000"]);
    rig.other = false;
    await rig.clock.advance(100);
    assert.deepEqual(rig.threads.said.slice(1), [`add a Kubernetes//Pod/shop/a ${idOf("a")} old`]);
  });

  it("are not tried again once they were given up", async () => {
    const rig = new Rig("a");
    await rig.endSnapshot();
    rig.threads.failure = new CodedError("PROXY_LISTEN", "port 15001 is taken");
    await codeOf(rig.add("a"));
    await rig.say("del", "a");
    rig.threads.failure = undefined;
    await rig.clock.advance(20_000);
    assert.deepEqual(rig.threads.said, [`certificate ${idOf("a")}`, "drop uid-a 3000"]);
    assert.deepEqual([rig.pods.count, rig.pods.pending()], [0, []]);
  });

  it("that a new list does not name are given up; kept and repeated ones stay", async () => {
    const rig = new Rig("a", "b", "c");
    for (const name of ["a", "b", "c"]) await rig.add(name);
    await rig.endSnapshot();
    rig.pods.loseAgent();
    assert.deepEqual(rig.pods.pending(), ["the agent's list of pods"], "all stay served meanwhile");
    rig.pods.beginSnapshot();
    await rig.add("a");
    await rig.say("keep", "b");
    assert.equal(rig.pods.count, 3);
    await rig.endSnapshot();
    assert.deepEqual(rig.threads.said.at(-1), "drop uid-c 3000");
    assert.equal(rig.pods.count, 2);
    assert.deepEqual(rig.pods.pending(), []);
    assert.deepEqual([rig.pods.started, rig.pods.stopped], [3, 1]);
  });

  it("can be given up before the list is complete, and what is not known can be given up", async () => {
    const rig = new Rig("a");
    await rig.add("a");
    await rig.say("del", "a");
    await rig.say("del", "nobody");
    await rig.endSnapshot();
    assert.deepEqual(
      rig.threads.said.filter((said) => said.startsWith("drop")),
      ["drop uid-a 3000"],
    );
  });

  it("refuse keep and a second end after the end of the list", async () => {
    const rig = new Rig();
    await rig.endSnapshot();
    assert.equal(await codeOf(rig.endSnapshot()), "PROXY_ZDS_MESSAGE");
    assert.equal(await codeOf(rig.say("keep", "a")), "PROXY_ZDS_MESSAGE");
  });

  it("refuse a name that makes no identity", async () => {
    const rig = new Rig();
    const request: ZdsRequest = { kind: "add", uid: "u", name: "a", namespace: "sh op", serviceAccount: "a" };
    assert.equal(await codeOf(rig.pods.handle(request, openSync("/proc/self/ns/net", "r"))), "SPIFFE_ID_PATH");
    assert.equal(rig.pods.count, 0);
  });

  it("leave no descriptor open when they are gone", async () => {
    const before = openFiles();
    const rig = new Rig("a", "b");
    await rig.add("a");
    await rig.add("a");
    await rig.endSnapshot();
    const request: ZdsRequest = { kind: "add", uid: "u", name: "a", namespace: "sh op", serviceAccount: "a" };
    await codeOf(rig.pods.handle(request, openSync("/proc/self/ns/net", "r")));
    rig.threads.failure = new CodedError("PROXY_LISTEN", "taken");
    await codeOf(rig.add("b"));
    await rig.say("del", "a");
    await rig.say("del", "b");
    rig.pods.stop();
    assert.equal(openFiles(), before);
  });
});

/** An agent's end of a connection: the test feeds packets. */
class FakeConnection implements ZdsConnection {
  readonly sent: Uint8Array[] = [];
  readonly #packets: ({ data: Uint8Array; fds: readonly number[] } | undefined)[];
  isClosed = false;

  constructor(packets: readonly ({ data: Uint8Array; fds: readonly number[] } | undefined)[]) {
    this.#packets = [...packets];
  }

  send(data: Uint8Array): void {
    this.sent.push(data);
  }

  async receive(signal?: AbortSignal): Promise<{ data: Uint8Array; fds: readonly number[] } | undefined> {
    if (this.#packets.length > 0) return this.#packets.shift();
    return new Promise((_resolve, reject) => {
      signal?.addEventListener("abort", () => {
        reject(signal.reason as Error);
      });
    });
  }

  close(): void {
    this.isClosed = true;
  }
}

function zdsAdd(name: string): { data: Uint8Array; fds: readonly number[] } {
  const value = { uid: `uid-${name}`, workloadInfo: { name, namespace: "shop", serviceAccount: name } };
  const request = create(WorkloadRequestSchema, { payload: { case: "add", value } });
  return { data: toBinary(WorkloadRequestSchema, request), fds: [openSync("/proc/self/ns/net", "r")] };
}

describe("the ZDS client", () => {
  const snapshotSent = { data: Uint8Array.of(0x1a, 0x00), fds: [] };

  async function run(
    rig: Rig,
    connections: readonly (FakeConnection | Error)[],
  ): Promise<{ tries: number; client: ZdsClient }> {
    let tries = 0;
    const { pods, clock } = rig;
    const client = new ZdsClient({
      connect: () => {
        const next = connections[tries++];
        if (next === undefined) throw new Error("nobody listens");
        if (next instanceof Error) throw next;
        return next;
      },
      pods,
      clock,
      random: seededRandom(1),
      log: silentLog(),
    });
    await client.start(new AbortController().signal);
    await turn();
    await clock.advance(200);
    return { tries, client };
  }

  it("says hello, then acknowledges", async () => {
    const connection = new FakeConnection([snapshotSent]);
    const rig = new Rig();
    const { client } = await run(rig, [connection]);
    assert.deepEqual(connection.sent, [Uint8Array.of(0x08, 0x01), Uint8Array.of(0x0a, 0x00)]);
    assert.deepEqual(rig.pods.pending(), []);
    await client.drain(1_000);
    assert.ok(connection.isClosed);
  });

  it("begins with each request when it comes, and answers them in their order", async () => {
    const rig = new Rig("b");
    const { promise, resolve } = Promise.withResolvers<void>();
    rig.threads.ready = promise;
    const connection = new FakeConnection([zdsAdd("a"), zdsAdd("b"), snapshotSent]);
    const { client } = await run(rig, [connection]);
    assert.deepEqual(rig.threads.begun, ["a", "b"]);
    assert.deepEqual(rig.pods.pending(), ["shop/a", "shop/b"], "the end of the list was read, too");
    resolve();
    await turn();
    assert.deepEqual(rig.pods.pending(), ["shop/a"]);
    assert.equal(connection.sent.length, 1, "no answer overtakes that about a, whose certificate is missing");
    rig.certificates.arrive(idOf("a"));
    await turn();
    assert.deepEqual(connection.sent.slice(1), Array(3).fill(Uint8Array.of(0x0a, 0x00)));
    await client.drain(1_000);
  });

  it("does not spend the time of a drain on a pod that waits for its certificate", async () => {
    const rig = new Rig();
    const { client } = await run(rig, [new FakeConnection([zdsAdd("u")])]);
    let isDone = false;
    void client.drain(5_000).then(() => (isDone = true));
    await rig.clock.advance(200);
    assert.ok(isDone);
    await rig.clock.advance(5_000); // the add gives up, and its descriptors
    await rig.say("del", "u");
  });

  it("connects again when the agent is away, or hangs up", async () => {
    const rig = new Rig();
    const last = new FakeConnection([snapshotSent]);
    const { client } = await run(rig, [new Error("refused"), new FakeConnection([undefined]), last]);
    assert.equal(last.sent.length, 2);
    await client.drain(1_000);
  });

  it("ends a connection with a malformed message, closes the descriptors that came with it, and begins anew", async () => {
    const before = openFiles();
    const bad = new FakeConnection([{ data: Uint8Array.of(0xff), fds: [openSync("/proc/self/ns/net", "r")] }]);
    const rig = new Rig();
    const good = new FakeConnection([snapshotSent]);
    const { client } = await run(rig, [bad, good]);
    assert.ok(bad.isClosed);
    assert.equal(good.sent.length, 2);
    assert.equal(openFiles(), before);
    await client.drain(1_000);
  });
});

describe("an agent of a newer version", () => {
  const unknown = Uint8Array.of(0xa2, 0x06, 0x00); // a request of field 100
  const snapshotSent = { data: Uint8Array.of(0x1a, 0x00), fds: [] };

  it("is told what is not known, and the rest is done; no pod is given up that it may have named", async () => {
    const rig = new Rig("a", "b");
    for (const name of ["a", "b"]) await rig.add(name);
    await rig.endSnapshot();
    const before = openFiles();
    const fds = (): number[] => [0, 1].map(() => openSync("/proc/self/ns/net", "r"));
    const connection = new FakeConnection([zdsAdd("a"), { data: unknown, fds: fds() }, snapshotSent]);
    const client = new ZdsClient({
      connect: () => connection,
      pods: rig.pods,
      clock: rig.clock,
      random: seededRandom(1),
      log: silentLog(),
    });
    await client.start(new AbortController().signal);
    await turn();
    await turn();
    const answers = connection.sent.slice(1).map((packet) => fromBinary(WorkloadResponseSchema, packet).payload.value);
    assert.deepEqual(
      answers.map((answer) => answer?.error),
      ["", "this version knows no request 100", ""],
    );
    assert.equal(rig.pods.count, 2);
    assert.deepEqual(rig.pods.pending(), []);
    assert.equal(openFiles(), before);
    await client.drain(1_000);
  });
});

describe("the proxy's own pod", () => {
  const options = {
    config: { trustDomain: "cluster.local", clusterId: "Kubernetes" },
    instance: { pod: "ztunnel-x", namespace: "mesh" },
    ports: { metrics: 15020, ready: 15021 },
  };

  it("is known by its name, namespace and service account, and unknown without one", () => {
    assert.equal(selfPod(options), undefined);
    assert.equal(selfPod({ ...options, serviceAccount: "" }), undefined);
    const self = selfPod({ ...options, serviceAccount: "ztunnel" });
    assert.deepEqual(
      [self?.identity, self?.workloadUid, self?.serves],
      ["spiffe://cluster.local/ns/mesh/sa/ztunnel", "Kubernetes//Pod/mesh/ztunnel-x", [15020, 15021]],
    );
  });

  it("has its certificate kept beside those of the pods, which come and go", async () => {
    const certificates = new FakeCertificates();
    certificates.arrive(idOf("a"));
    const shared = { threads: new FakeThreads(), certificates, clock: new FakeClock(), log: silentLog(), drainMs: 0 };
    const alone = { synced: () => true, isServedByOther: () => false };
    const pods = new Pods({ ...shared, ...alone, config: proxyConfig({ node: "node1" }), self: idOf("self") });
    pods.start();
    assert.deepEqual(certificates.wanted, [idOf("self")]);
    pods.beginSnapshot();
    await pods.handle(
      { kind: "add", uid: "uid-a", name: "a", namespace: "shop", serviceAccount: "a" },
      openSync("/proc/self/ns/net", "r"),
    );
    assert.deepEqual(certificates.wanted, [idOf("a"), idOf("self")]);
    await pods.handle({ kind: "del", uid: "uid-a" }, undefined);
    assert.deepEqual(certificates.wanted, [idOf("self")], "what no pod needs any more is forgotten");
  });

  it("is served in the proxy's own namespace, and when it cannot be, nothing else suffers", async () => {
    const self = selfPod({ ...options, serviceAccount: "ztunnel" });
    assert.ok(self);
    const seen: string[] = [];
    const addPod = async (pod: LocalPod, { fd }: { fd: number }): Promise<void> => {
      seen.push(`${pod.podUid} ${readlinkSync(`/proc/self/fd/${fd}`)}`);
      closeSync(fd);
      throw new Error("taken");
    };
    await serveSelf(self, { addPod }, silentLog());
    assert.deepEqual(seen, [`self ${readlinkSync("/proc/self/ns/net")}`]);
  });
});
