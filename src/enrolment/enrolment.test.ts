import assert from "node:assert/strict";
import { mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import fc from "fast-check";
import { FakeClock } from "#base/clock";
import { silentLog } from "#base/log";
import { CellSet } from "#base/metrics";
import { seededRandom } from "#base/random";
import { openNetns, type Netns } from "#linux";
import type { PodFacts } from "./eligibility.ts";
import { CNI_ENROL_MS, CNI_POD_MS, Enrolment } from "./enrolment.ts";
import type { EnrolmentOptions } from "./enrolment.ts";
import { enrolmentMetrics } from "./metrics.ts";
import type { RedirectionState } from "./redirection.ts";

const folder = mkdtempSync(join(tmpdir(), "vt-enrolment-"));
symlinkSync("/proc/self/ns/net", join(folder, "netns"));
symlinkSync("/proc/self/ns/uts", join(folder, "other"));
after(() => rmSync(folder, { recursive: true }));
const forever = new AbortController().signal;
const LABEL = { "io.cilium/mtls-enabled": "true" };

function pod(name: string, changes: Partial<PodFacts> = {}): PodFacts {
  const labels = {};
  const facts = { namespace: "shop", serviceAccount: "cart", hostNetwork: false, phase: "Running", annotations: {} };
  return { uid: `uid-${name}`, name, ...facts, labels, ...changes };
}

/** Proxy, kernel, API and controller of a node, as enrolment sees them: what is there, in which order it came, and what is broken. */
class FakeNode {
  readonly clock = new FakeClock();
  readonly cells = new CellSet(enrolmentMetrics);
  /** Everything that was done, in order. */
  readonly done: string[] = [];
  readonly handed = new Set<string>();
  readonly announced = new Set<string>();
  /** Pods whose probes have a source of their own. */
  readonly probed = new Set<string>();
  rules: RedirectionState = "absent";
  /** Pods that were reported as stuck, with the code. */
  readonly stuck: string[] = [];
  redirected = 0;
  prepared = 0;
  reachable = true;
  behind: string[] = [];
  found = true;
  /** Names of steps that fail while they are in here. */
  readonly broken = new Set<string>();
  /** Things that must never be seen, whatever the order of events. */
  readonly violations: string[] = [];
  readonly enrolment: Enrolment;

  constructor(times: Partial<EnrolmentOptions["times"]> = {}) {
    this.enrolment = new Enrolment(
      this.#tools({ drainMs: 60_000, drainPollMs: 250, behindMs: 30_000, dnsSettleMs: 0, ...times }),
    );
  }

  async settle(ms = 0): Promise<void> {
    for (let i = 0; i < 10; i++) await this.clock.advance(0);
    if (ms > 0) await this.clock.advance(ms);
    for (let i = 0; i < 10; i++) await this.clock.advance(0);
  }

  state(name: string): string | undefined {
    return this.enrolment.list().find((status) => status.name === name)?.state;
  }

  async #do(step: string): Promise<void> {
    await Promise.resolve();
    if (this.broken.has(step.split(" ")[0] ?? "")) throw new Error(`${step} is broken`);
    this.done.push(step);
    if (this.rules === "capturing" && this.handed.size === 0)
      this.violations.push(`${step}: captured, and nobody listens`);
    if (this.announced.size > 0 && this.handed.size === 0)
      this.violations.push(`${step}: announced, and nobody listens`);
    if (this.announced.size > 0 && this.rules === "absent") this.violations.push(`${step}: announced without rules`);
  }

  #tools(times: EnrolmentOptions["times"]): EnrolmentOptions {
    return {
      zds: {
        open: () => this.done.push("open"),
        declare: ({ uid, netns }) => {
          this.handed.add(uid);
          this.done.push(`declare ${uid}${netns === undefined ? " without namespace" : ""}`);
        },
        add: async ({ uid }, signal) => {
          while (this.broken.has("hand-hangs")) await new Promise((resolve) => this.clock.after(10, () => resolve(0)));
          signal.throwIfAborted();
          this.handed.add(uid);
          await this.#do(`hand ${uid}`);
        },
        remove: async (uid) => {
          if (this.rules === "capturing") this.violations.push("taken from the proxy while captured");
          this.handed.delete(uid);
          await this.#do(`take ${uid}`);
        },
      },
      redirector: {
        install: async (_: Netns, { inbound, dns }) => {
          await this.#do(`install${inbound ? "" : " outbound only"}${dns ? " with dns" : ""}`);
          this.rules = "capturing";
        },
        keep: async () => {
          if (this.announced.size > 0) this.violations.push("released while announced");
          await this.#do("keep");
          this.rules = "kept";
        },
        remove: async () => {
          await this.#do("remove");
          this.rules = "absent";
        },
        read: async () => Promise.resolve(this.rules),
        countRedirected: () => this.redirected,
      },
      probes: {
        declare: (uid) => void this.probed.add(uid),
        allow: async (uid) => {
          await Promise.resolve();
          if (this.broken.has("allow")) throw new Error("allow is broken");
          this.probed.add(uid);
        },
        forbid: async (uid) => {
          await Promise.resolve();
          if (this.rules === "capturing" && this.handed.has(uid))
            this.violations.push("probes forbidden while captured");
          this.probed.delete(uid);
        },
        write: () => Promise.reject(new Error("nft is busy")),
      },
      finder: { find: () => (this.found ? openNetns(join(folder, "netns")) : undefined) },
      announcer: {
        announce: async ({ uid }, enrolled) => {
          await this.#do(enrolled ? "announce" : "retract");
          if (enrolled) this.announced.add(uid);
          else this.announced.delete(uid);
        },
        confirmPlain: async () => {
          await this.#do("confirm");
          return this.behind;
        },
      },
      controllerReachable: () => this.reachable,
      onStuck: ({ name }, { code }) => this.stuck.push(`${name} ${code}`),
      prepare: () => {
        this.prepared++;
        return { [Symbol.dispose]: () => void this.prepared-- };
      },
      clock: this.clock,
      random: seededRandom(1),
      log: silentLog(),
      cells: this.cells,
      times,
      dnsCapture: false,
    };
  }
}

async function started(node: FakeNode, ...pods: PodFacts[]): Promise<void> {
  node.enrolment.setNamespace("shop", {});
  for (const facts of pods) node.enrolment.upsertPod(facts);
  await node.enrolment.synced();
  await node.settle();
  node.done.length = 0;
}

test("a label enrols in order, its removal un-enrols backwards", async () => {
  const node = new FakeNode();
  await started(node, pod("a"));
  node.enrolment.setNamespace("shop", LABEL);
  assert.equal(node.prepared, 1, "the certificate is asked for at once");
  await node.settle();
  assert.deepEqual(node.done, ["hand uid-a", "install", "announce"]);
  assert.equal(node.state("a"), "enrolled");
  node.done.length = 0;
  node.redirected = 2;
  node.enrolment.setNamespace("shop", {});
  await node.settle(1000);
  assert.deepEqual(node.done, ["retract", "confirm", "keep"]);
  assert.equal(node.state("a"), "draining");
  assert.equal(node.prepared, 0);
  node.redirected = 0;
  await node.settle(250);
  assert.deepEqual(node.done.slice(3), ["take uid-a", "remove"]);
  assert.equal(node.state("a"), "plain");
  assert.deepEqual(node.violations, []);
});

test("probes have a source of their own from before the pod is announced until its rules are gone, and for a pod that is taken over at once", async () => {
  const node = new FakeNode();
  node.broken.add("allow");
  await started(node, pod("a", { labels: LABEL }));
  assert.deepEqual([node.state("a"), node.announced.size, node.probed.size], ["redirecting", 0, 0]);
  node.broken.delete("allow");
  await node.settle(5000);
  assert.deepEqual([node.state("a"), [...node.probed]], ["enrolled", ["uid-a"]]);
  node.enrolment.setNamespace("shop", {});
  node.enrolment.upsertPod(pod("a"));
  node.redirected = 1;
  await node.settle(1000);
  assert.deepEqual([node.state("a"), node.probed.size], ["draining", 1]);
  node.redirected = 0;
  await node.settle(250);
  assert.deepEqual([node.state("a"), node.probed.size], ["plain", 0]);
  assert.deepEqual(node.violations, []);
  const next = new FakeNode();
  next.rules = "capturing";
  next.broken.add("allow");
  await started(next, pod("a", { labels: LABEL }));
  assert.equal(next.probed.size, 1);
  next.rules = "absent";
  next.enrolment.removePod("uid-a");
  await next.settle(1000);
  assert.equal(next.probed.size, 0);
});

test("who leaves un-enrols every pod as if no label were there, and lets new ones start", async () => {
  const node = new FakeNode();
  await started(node, pod("a", { labels: LABEL }));
  assert.equal(node.state("a"), "enrolled");
  node.enrolment.leave(true);
  await node.settle(1000);
  assert.deepEqual(node.done, ["retract", "confirm", "keep", "take uid-a", "remove"]);
  node.enrolment.upsertPod(pod("b", { labels: LABEL, phase: "Pending" }));
  const starting = { namespace: "shop", name: "b", uid: "uid-b", netnsPath: join(folder, "netns") };
  assert.equal(await node.enrolment.enrolStarting(starting, forever), "not-eligible");
  const standing = node.enrolment.list().map(({ name, state, eligible, reason }) => [name, state, eligible, reason]);
  assert.deepEqual(standing, [
    ["a", "plain", false, "leaving"],
    ["b", "plain", false, "leaving"],
  ]);
  node.enrolment.leave(false);
  await node.settle();
  assert.equal(node.state("a"), "enrolled");
  assert.deepEqual(node.violations, []);
});

test("connections that do not end are cut at the deadline, not before", async () => {
  const node = new FakeNode({ drainMs: 10_000 });
  await started(node, pod("a", { labels: LABEL }));
  node.redirected = 1;
  node.enrolment.upsertPod(pod("a"));
  await node.settle(9_000);
  assert.equal(node.state("a"), "draining");
  await node.settle(2_000);
  assert.equal(node.state("a"), "plain");
});

test("a label that comes back while connections drain enrols again without taking the pod away", async () => {
  const node = new FakeNode();
  await started(node, pod("a", { labels: LABEL }));
  node.redirected = 1;
  node.enrolment.upsertPod(pod("a"));
  await node.settle(1000);
  node.done.length = 0;
  node.enrolment.upsertPod(pod("a", { labels: LABEL }));
  await node.settle();
  assert.deepEqual(node.done, ["hand uid-a", "install", "announce"]);
});

test("running pods wait for the controller and are enrolled as soon as it is there", async () => {
  const node = new FakeNode();
  node.reachable = false;
  await started(node, pod("a", { labels: LABEL }));
  await node.settle(60_000);
  assert.deepEqual([node.state("a"), node.done], ["waiting", []]);
  assert.equal(node.enrolment.list()[0]?.failure?.code, "ENROLMENT_NO_CONTROLLER");
  node.reachable = true;
  node.enrolment.poke();
  await node.settle();
  assert.equal(node.state("a"), "enrolled");
});

test("each step that fails is tried again, and what came before it is not undone", async () => {
  for (const step of ["hand", "install", "announce"]) {
    const node = new FakeNode();
    node.broken.add(step);
    await started(node, pod("a", { labels: LABEL }));
    await node.settle(3_000);
    assert.equal(node.enrolment.list()[0]?.failure?.code, "ENROLMENT_UNEXPECTED");
    node.broken.clear();
    await node.settle(6_000);
    assert.equal(node.state("a"), "enrolled", step);
    assert.deepEqual(node.violations, []);
  }
});

test("un-enrolment waits for nodes that do not know, but not for ever; and for a controller that cannot be asked", async () => {
  const node = new FakeNode();
  await started(node, pod("a", { labels: LABEL }));
  node.behind = ["node7"];
  node.enrolment.upsertPod(pod("a"));
  await node.settle(29_000);
  assert.deepEqual([node.state("a"), node.rules], ["retracting", "capturing"]);
  await node.settle(6_000);
  assert.equal(node.state("a"), "plain");

  const cutOff = new FakeNode();
  await started(cutOff, pod("a", { labels: LABEL }));
  cutOff.broken.add("confirm");
  cutOff.enrolment.upsertPod(pod("a"));
  await cutOff.settle(300_000);
  assert.deepEqual([cutOff.state("a"), cutOff.rules], ["retracting", "capturing"]);
});

test("a restarted agent takes over what stands before any proxy gets its snapshot", async () => {
  const node = new FakeNode();
  node.rules = "capturing";
  node.announced.add("uid-a");
  node.enrolment.setNamespace("shop", LABEL);
  node.enrolment.upsertPod(pod("a", { annotations: { "ambient.istio.io/redirection": "enabled" } }));
  node.reachable = false; // it does not matter for a pod that is enrolled
  await node.enrolment.synced();
  await node.settle();
  assert.deepEqual(node.done, ["declare uid-a", "open", "install"]);
  assert.equal(node.state("a"), "enrolled");
  await node.enrolment.drain(0);
  assert.deepEqual([node.rules, node.handed.size], ["capturing", 1], "the end of an agent un-enrols nothing");
});

test("a restarted agent goes on with an un-enrolment, and keeps what it cannot find", async () => {
  const node = new FakeNode();
  node.rules = "kept";
  node.redirected = 1;
  node.enrolment.setNamespace("shop", {});
  node.enrolment.upsertPod(pod("a"));
  await node.enrolment.synced();
  await node.settle(1000);
  assert.equal(node.state("a"), "draining");
  node.redirected = 0;
  await node.settle(1000);
  assert.deepEqual(node.done, ["declare uid-a", "open", "take uid-a", "remove"]);

  const blind = new FakeNode();
  blind.found = false;
  blind.enrolment.setNamespace("shop", LABEL);
  blind.enrolment.upsertPod(pod("a", { annotations: { "ambient.istio.io/redirection": "enabled" } }));
  await blind.enrolment.synced();
  assert.deepEqual(blind.done, ["declare uid-a without namespace", "open"]);
});

test("an annotation that stands for nothing goes; one that somebody removes comes back", async () => {
  const node = new FakeNode();
  const annotations = { "ambient.istio.io/redirection": "enabled" };
  node.enrolment.setNamespace("shop", {});
  node.enrolment.upsertPod(pod("a", { annotations }));
  await node.enrolment.synced();
  await node.settle();
  assert.deepEqual(node.done, ["open", "retract"]);
  node.enrolment.upsertPod(pod("a", { labels: LABEL }));
  await node.settle();
  node.enrolment.upsertPod(pod("a", { labels: LABEL, annotations }));
  node.done.length = 0;
  node.enrolment.upsertPod(pod("a", { labels: LABEL }));
  await node.settle();
  assert.deepEqual(node.done, ["announce"]);
});

test("a pod that ends or is deleted is taken from the proxy, and nothing else is touched", async () => {
  for (const end of ["Succeeded", "deleted"]) {
    const node = new FakeNode();
    await started(node, pod("a", { labels: LABEL }));
    node.done.length = 0;
    node.rules = "absent"; // gone with the namespace
    node.announced.clear();
    if (end === "deleted") node.enrolment.removePod("uid-a");
    else node.enrolment.upsertPod(pod("a", { labels: LABEL, phase: end }));
    await node.settle();
    assert.deepEqual(node.done, ["take uid-a"]);
  }
});

test("the CNI plugin's pod is enrolled before it starts, also while the controller is away", async () => {
  const node = new FakeNode();
  node.reachable = false;
  node.found = false;
  await started(node);
  const event = { namespace: "shop", name: "a", uid: undefined, netnsPath: join(folder, "netns") };
  const asked = node.enrolment.enrolStarting(event, forever);
  await node.settle(500);
  node.enrolment.upsertPod(pod("a", { labels: LABEL, phase: "Pending" }));
  await node.settle();
  assert.equal(await asked, "enrolled");
  assert.deepEqual(node.done, ["hand uid-a", "install", "announce"]);
  node.enrolment.upsertPod(pod("b", { phase: "Pending" }));
  assert.equal(await node.enrolment.enrolStarting({ ...event, name: "b" }, forever), "not-eligible");
});

test("a starting pod is told from its predecessor by its UID; a static pod goes by the hash that the runtime knows", async () => {
  const node = new FakeNode();
  await started(node, pod("a", { phase: "Pending" }));
  const event = { namespace: "shop", name: "a", netnsPath: join(folder, "netns") };
  assert.equal(await node.enrolment.enrolStarting({ ...event, uid: "uid-a" }, forever), "not-eligible");
  const successor = node.enrolment.enrolStarting({ ...event, uid: "uid-next" }, forever);
  await node.settle(500);
  node.enrolment.upsertPod(pod("a", { uid: "uid-next", labels: LABEL, phase: "Pending" }));
  await node.settle();
  assert.equal(await successor, "enrolled");
  node.enrolment.upsertPod(pod("static", { annotations: { "kubernetes.io/config.hash": "hash" } }));
  const hashed = { ...event, name: "static", uid: "hash" };
  assert.equal(await node.enrolment.enrolStarting(hashed, forever), "not-eligible");
});

test("pods of Kubernetes' and Veil's own namespaces start before the API has told of them", async () => {
  const node = new FakeNode();
  const event = { name: "dns", uid: "x", netnsPath: join(folder, "netns") };
  for (const namespace of ["kube-system", "veil-system"])
    assert.equal(await node.enrolment.enrolStarting({ ...event, namespace }, forever), "not-eligible");
});

test("a check finds a pod whose rules are gone, or that is not enrolled yet", async () => {
  const node = new FakeNode();
  await started(node, pod("a", { labels: LABEL }), pod("b"));
  const a = { namespace: "shop", name: "a", uid: undefined };
  await node.enrolment.checkStarted(a);
  await node.enrolment.checkStarted({ ...a, name: "b" });
  await node.enrolment.checkStarted({ ...a, name: "nobody" });
  node.rules = "absent";
  await assert.rejects(node.enrolment.checkStarted(a), {
    code: "ENROLMENT_NOT_IN_PLACE",
    message: /rules are absent/,
  });
  node.broken.add("hand");
  node.enrolment.upsertPod(pod("c", { labels: LABEL }));
  await node.settle(100);
  const c = node.enrolment.checkStarted({ ...a, name: "c" });
  await assert.rejects(c, { code: "ENROLMENT_NOT_IN_PLACE", message: /handing/ });
});

test("a running pod that cannot be enrolled for 30 s is reported once, with the reason, and tried on", async () => {
  const node = new FakeNode();
  await started(node, pod("a"));
  node.found = false;
  node.enrolment.setNamespace("shop", LABEL);
  await node.settle(29_000);
  assert.deepEqual(node.stuck, []);
  for (let second = 0; second < 40; second++) await node.settle(1_000);
  assert.deepEqual(node.stuck, ["a ENROLMENT_NO_NETNS"]);
  node.found = true;
  await node.settle(6_000);
  assert.equal(node.state("a"), "enrolled");
});

test("a pod that cannot be enrolled in time must not start, and is told why", async () => {
  const node = new FakeNode();
  await started(node, pod("a", { labels: {}, phase: "Pending" }));
  node.broken.add("hand");
  node.enrolment.upsertPod(pod("a", { labels: LABEL, phase: "Pending" }));
  const event = { namespace: "shop", name: "a", uid: undefined, netnsPath: join(folder, "netns") };
  const late = assert.rejects(node.enrolment.enrolStarting(event, forever), {
    code: "ENROLMENT_CNI_TIMEOUT",
    message: /hand uid-a is broken/,
  });
  await node.settle();
  await node.clock.advance(CNI_ENROL_MS + 1);
  await late;
  const unknown = assert.rejects(node.enrolment.enrolStarting({ ...event, name: "nobody" }, forever), {
    code: "ENROLMENT_CNI_UNKNOWN_POD",
  });
  await node.clock.advance(CNI_POD_MS + 1);
  await unknown;
});

test("a pod that is about to start gets its rules while the proxy is asked, one that runs afterwards", async () => {
  const node = new FakeNode();
  await started(node, pod("a", { labels: LABEL, phase: "Pending" }), pod("b", { phase: "Pending" }));
  await node.settle();
  node.done.length = 0;
  node.broken.add("hand-hangs");
  node.found = false;
  const event = { namespace: "shop", name: "b", uid: undefined, netnsPath: join(folder, "netns") };
  node.enrolment.upsertPod(pod("b", { labels: LABEL, phase: "Pending" }));
  let mayStart = false;
  const asked = node.enrolment.enrolStarting(event, forever).then(() => (mayStart = true));
  await node.settle(100);
  assert.deepEqual(node.done, ["install"]);
  assert.deepEqual([mayStart, node.state("b")], [false, "handing"], "it waits for the proxy all the same");
  node.broken.clear();
  await node.settle(100);
  await asked;
  assert.deepEqual(node.done, ["install", "hand uid-b", "announce"]);
  node.enrolment.upsertPod(pod("b"));
  await node.settle(1_000);
  assert.equal(node.state("b"), "plain");
  node.done.length = 0;
  node.enrolment.upsertPod(pod("b", { labels: LABEL }));
  await node.settle(100);
  assert.deepEqual(node.done, ["hand uid-b", "install", "announce"], "now it runs");
});

test("a new network namespace of a pod replaces the old one", async () => {
  const node = new FakeNode();
  await started(node, pod("a", { labels: LABEL, phase: "Pending" }));
  assert.equal(node.state("a"), "enrolled");
  node.done.length = 0;
  const event = { namespace: "shop", name: "a", uid: undefined, netnsPath: join(folder, "other") };
  await node.settle();
  const asked = node.enrolment.enrolStarting(event, forever);
  await node.settle();
  await asked;
  assert.deepEqual(node.done.toSorted(), ["hand uid-a", "install"]);
});

test("a label that goes before the rules have come, and comes back, does not leave a pod that is called enrolled without rules", async () => {
  const node = new FakeNode();
  await started(node, pod("a"));
  node.broken.add("install").add("confirm");
  node.enrolment.setNamespace("shop", LABEL);
  await node.settle(100);
  node.enrolment.setNamespace("shop", {});
  await node.settle(100);
  node.broken.clear();
  node.enrolment.setNamespace("shop", LABEL);
  await node.settle(10_000);
  assert.deepEqual([node.state("a"), node.rules, node.violations], ["enrolled", "capturing", []]);
});

test("whatever happens in whatever order, the pod ends as wished and no forbidden state is passed", async () => {
  const event = fc.oneof(
    fc.constant({ kind: "label" as const }),
    fc.constant({ kind: "unlabel" as const }),
    fc.record({
      kind: fc.constant("break" as const),
      step: fc.constantFrom("hand", "install", "announce", "retract", "confirm", "keep", "take", "remove"),
    }),
    fc.constant({ kind: "repair" as const }),
    fc.record({ kind: fc.constant("redirected" as const), count: fc.nat(2) }),
    fc.record({ kind: fc.constant("controller" as const), reachable: fc.boolean() }),
    fc.record({ kind: fc.constant("wait" as const), ms: fc.nat(3000) }),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(event, { maxLength: 25 }), fc.boolean(), async (events, enrolled) => {
      const node = new FakeNode();
      await started(node, pod("a"));
      for (const happening of events) await happen(node, happening);
      node.broken.clear();
      node.reachable = true;
      node.redirected = 0;
      node.enrolment.setNamespace("shop", enrolled ? LABEL : {});
      node.enrolment.poke();
      await node.settle(40_000);
      assert.equal(node.state("a"), enrolled ? "enrolled" : "plain");
      assert.deepEqual(
        [node.rules, node.announced.size, node.handed.size, node.prepared],
        enrolled ? ["capturing", 1, 1, 1] : ["absent", 0, 0, 0],
      );
      assert.deepEqual(node.violations, []);
    }),
    { numRuns: 300 },
  );
});

async function happen(
  node: FakeNode,
  event: { kind: string; step?: string; count?: number; reachable?: boolean; ms?: number },
): Promise<void> {
  if (event.kind === "label") node.enrolment.setNamespace("shop", LABEL);
  if (event.kind === "unlabel") node.enrolment.setNamespace("shop", {});
  if (event.kind === "break") node.broken.add(event.step ?? "");
  if (event.kind === "repair") node.broken.clear();
  if (event.kind === "redirected") node.redirected = event.count ?? 0;
  if (event.kind === "controller") node.reachable = event.reachable ?? true;
  await node.clock.advance(event.ms ?? 0);
}

test("a pod that wants its DNS captured gets the rules for it, and is let go when no question can wait any more", async () => {
  const node = new FakeNode({ dnsSettleMs: 5_000 });
  const asking = pod("a", { annotations: { "ambient.istio.io/dns-capture": "true" } });
  await started(node, asking);
  node.enrolment.setNamespace("shop", LABEL);
  await node.settle();
  assert.ok(node.done.some((step) => step.endsWith("with dns")));
  node.enrolment.setNamespace("shop", {});
  await node.settle(4_000);
  assert.equal(node.rules, "kept");
  await node.settle(1_500);
  assert.equal(node.rules, "absent");
});
