import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import fc from "fast-check";
import { FakeClock, systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { seededRandom } from "#base/random";
import { KubeClient, resources, type KubeObject, type Node, type Pod, type ReplicaSet, type Service } from "#kube";
import { FakeApi } from "../../kube/testing.ts";
import { meetsSelector, sameJson } from "./cluster.ts";
import { LabControllers } from "./controllers.ts";
import { planDaemons } from "./daemon-sets.ts";
import { planRollout, podCount, type SetFacts } from "./deployments.ts";
import { planSlices } from "./endpoint-slices.ts";
import { isSilent } from "./node-health.ts";
import { templateHash } from "./pod-control.ts";
import { surplusPods } from "./replica-sets.ts";
import { chooseNode } from "./scheduler.ts";
import { WorkQueue } from "./work-queue.ts";

const READY = [{ type: "Ready", status: "True" }];

function node(name: string, labels: Record<string, string> = {}, ready = true): Node {
  return { metadata: { name, labels }, status: { conditions: ready ? READY : [] } };
}

function pod(
  name: string,
  more: { node?: string; owner?: string; ready?: boolean; labels?: Record<string, string> } = {},
): Pod {
  const { node: nodeName, owner, ready = true, labels = {} } = more;
  const ownerReferences =
    owner === undefined ? [] : [{ apiVersion: "x", kind: "X", name: owner, uid: owner, controller: true }];
  return {
    metadata: { name, namespace: "shop", uid: name, labels, ownerReferences },
    spec: { containers: [], ...(nodeName === undefined ? {} : { nodeName }) },
    status: { phase: "Running", podIP: `10.0.0.${name.charCodeAt(0)}`, conditions: ready ? READY : [] },
  };
}

test("pods of one owner are spread over the nodes that fit", () => {
  const nodes = [node("a"), node("b", { disk: "fast" }), node("c", {}, false)];
  const pods = [pod("1", { node: "a", owner: "x" }), pod("2", { node: "b" }), pod("3", { node: "b" })];
  assert.equal(chooseNode(pod("n", { owner: "x" }), nodes, pods), "b");
  assert.equal(chooseNode(pod("n"), nodes, pods), "a");
  const picky: Pod = { metadata: { name: "n" }, spec: { containers: [], nodeSelector: { disk: "fast" } } };
  assert.equal(chooseNode(picky, nodes, pods), "b");
  assert.equal(
    chooseNode({ ...picky, spec: { containers: [], nodeSelector: { disk: "slow" } } }, nodes, pods),
    undefined,
  );
});

test("pods that are not ready go first", () => {
  const pods = [pod("a"), pod("b", { ready: false, node: "n" }), pod("c", { node: "n" })];
  assert.deepEqual(
    surplusPods(pods, 2).map((one) => one.metadata?.name),
    ["a"],
  );
  assert.deepEqual(
    surplusPods(pods.slice(1), 1).map((one) => one.metadata?.name),
    ["b"],
  );
  assert.deepEqual(surplusPods(pods, 3), []);
});

test("a rollout ends, never has too many pods and never too few that are available", () => {
  const shape = fc.record({
    replicas: fc.integer({ min: 0, max: 8 }),
    maxSurge: fc.integer({ min: 0, max: 3 }),
    maxUnavailable: fc.integer({ min: 0, max: 3 }),
    recreate: fc.boolean(),
    old: fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 3 }),
  });
  fc.assert(
    fc.property(shape, ({ replicas, maxSurge, maxUnavailable, recreate, old }) => {
      fc.pre(maxSurge + maxUnavailable > 0);
      const sets: SetFacts[] = ["new", ...old.map((_, i) => `old${i}`)].map((name, index) => {
        const wanted = index === 0 ? 0 : (old[index - 1] ?? 0);
        return { name, wanted, pods: wanted, available: wanted };
      });
      const started = sets.reduce((sum, set) => sum + set.wanted, 0);
      for (let step = 0; step < 60; step++) {
        const [current, ...others] = sets;
        assert.ok(current);
        const plan = planRollout({ replicas, recreate, maxSurge, maxUnavailable, current, old: others });
        const before = sets.reduce((sum, set) => sum + set.available, 0);
        for (const [index, set] of sets.entries()) {
          const wanted = plan.get(set.name) ?? set.wanted;
          sets[index] = { ...set, wanted, pods: wanted, available: Math.min(set.available, wanted) };
        }
        const total = sets.reduce((sum, set) => sum + set.wanted, 0);
        const available = sets.reduce((sum, set) => sum + set.available, 0);
        assert.ok(total <= Math.max(started, replicas + maxSurge), "too many pods");
        if (!recreate) assert.ok(available >= Math.min(before, replicas - maxUnavailable), "too few available");
        for (const [index, set] of sets.entries()) sets[index] = { ...set, available: set.wanted };
      }
      assert.deepEqual(
        sets.map((set) => set.wanted),
        [replicas, ...old.map(() => 0)],
      );
    }),
  );
});

test("shares of pods are rounded up for surge, down otherwise", () => {
  assert.equal(podCount(undefined, 2, true), 1);
  assert.equal(podCount(undefined, 2, false), 0);
  assert.equal(podCount("50%", 4, false), 2);
  assert.equal(podCount(3, 10, false), 3);
});

test("every wanted node gets one daemon, and an old one is replaced only when the others are ready", () => {
  const labels = { "controller-revision-hash": "new" };
  const old = [pod("a", { node: "1" }), pod("b", { node: "2" })];
  assert.deepEqual(planDaemons(["1", "2", "3"], old, "new").create, ["3"]);
  assert.deepEqual(planDaemons(["1", "2", "3"], old, "new").delete, []);
  assert.deepEqual(
    planDaemons(["1", "2"], old, "new").delete.map((one) => one.metadata?.name),
    ["a"],
  );
  const half = [pod("a", { node: "1", labels, ready: false }), pod("b", { node: "2" })];
  assert.deepEqual(planDaemons(["1", "2"], half, "new"), { create: [], delete: [] });
  const twice = [pod("a", { node: "1" }), pod("b", { node: "1", labels }), pod("c", { node: "gone", labels })];
  assert.deepEqual(
    planDaemons(["1"], twice, "new").delete.map((one) => one.metadata?.name),
    ["a", "c"],
  );
});

test("endpoints tell readiness, and pods with other port numbers get a slice of their own", () => {
  const service: Service = {
    metadata: { name: "web", namespace: "shop" },
    spec: { selector: { app: "web" }, ports: [{ port: 80, targetPort: "http" }] },
  };
  const labels = { app: "web" };
  const withPort = (one: Pod, containerPort: number): Pod => ({
    ...one,
    spec: { ...one.spec, containers: [{ name: "c", ports: [{ name: "http", containerPort }] }] },
  });
  const leaving = withPort(pod("c", { labels }), 8080);
  const pods = [
    withPort(pod("b", { labels, ready: false }), 8080),
    withPort(pod("a", { labels }), 8080),
    { ...leaving, metadata: { ...leaving.metadata, deletionTimestamp: "2026-01-01T00:00:00Z" } },
    withPort(pod("d", { labels }), 9090),
    pod("e", { labels: { app: "other" } }),
  ];
  const slices = planSlices(service, pods);
  assert.deepEqual(
    slices.map(({ ports }) => ports[0]?.port),
    [8080, 9090],
  );
  assert.deepEqual(
    slices[0]?.endpoints.map(({ targetRef, conditions }) => [
      targetRef?.name,
      conditions?.ready,
      conditions?.terminating,
    ]),
    [
      ["a", true, false],
      ["b", false, false],
      ["c", false, true],
    ],
  );
  assert.deepEqual(planSlices({ ...service, spec: { ...service.spec, selector: {} } }, pods), []);
});

test("selectors select as Kubernetes says", () => {
  const labels = { app: "web", tier: "front" };
  assert.ok(meetsSelector({ matchLabels: { app: "web" } }, labels));
  assert.ok(meetsSelector({ matchExpressions: [{ key: "tier", operator: "In", values: ["front", "x"] }] }, labels));
  assert.ok(!meetsSelector({ matchExpressions: [{ key: "tier", operator: "NotIn", values: ["front"] }] }, labels));
  assert.ok(meetsSelector({ matchExpressions: [{ key: "no", operator: "DoesNotExist" }] }, labels));
  assert.ok(!meetsSelector({ matchExpressions: [{ key: "app", operator: "Gt", values: ["1"] }] }, labels));
  assert.ok(!meetsSelector(undefined, labels));
});

test("a node is silent after its lease and its word have grown old", () => {
  const ready: Node = {
    status: { conditions: [{ type: "Ready", status: "True", lastHeartbeatTime: "1970-01-01T00:00:10Z" }] },
  };
  assert.ok(!isSilent(ready, undefined, 49_000));
  assert.ok(isSilent(ready, undefined, 51_000));
  assert.ok(!isSilent(ready, { spec: { renewTime: "1970-01-01T00:00:40.000000Z" } }, 51_000));
  assert.ok(!isSilent({ status: { conditions: [] } }, undefined, 99_000));
});

test("equal templates have one hash, whatever the order of their fields", () => {
  const spec = { containers: [], hostNetwork: true };
  assert.equal(
    templateHash({ metadata: {}, spec }),
    templateHash({ spec: { hostNetwork: true, containers: [] }, metadata: {} }),
  );
  assert.notEqual(templateHash({ spec }), templateHash({ spec: { containers: [] } }));
  assert.ok(sameJson({ a: [{ b: 1, c: 2 }] }, { a: [{ c: 2, b: 1 }] }));
  assert.ok(!sameJson([1, 2], [2, 1]));
});

test("a queue works on one key at a time, again for what came meanwhile, and again after a failure", async () => {
  const clock = new FakeClock();
  const seen: string[] = [];
  let fail = true;
  const queue = new WorkQueue(
    async (key) => {
      seen.push(key);
      if (key === "a" && seen.length === 1) queue.add("a");
      if (key === "bad" && fail) throw new Error("no");
    },
    { name: "test", clock, random: seededRandom(1), log: silentLog() },
  );
  queue.add("a");
  queue.add("a");
  await clock.advance(0);
  assert.deepEqual(seen, ["a", "a"]);
  queue.add("bad");
  await clock.advance(0);
  fail = false;
  await clock.advance(1_000);
  assert.deepEqual(seen.slice(2), ["bad", "bad"]);
});

test("a deployment becomes pods, a lost pod comes back, and what is scaled down goes", async (t: TestContext) => {
  const api = await FakeApi.start();
  const clock = systemClock();
  const parts = { config: api.config, log: silentLog(), clock, random: seededRandom(7) };
  const client = new KubeClient(parts);
  const controllers = new LabControllers(parts);
  t.after(async () => {
    await controllers.drain(0);
    client.close();
    await api.stop();
  });
  await controllers.start(new AbortController().signal);
  const deployment = {
    apiVersion: "apps/v1",
    kind: "Deployment",
    metadata: { name: "web", namespace: "shop", uid: "d" },
    spec: {
      replicas: 2,
      selector: { matchLabels: { app: "web" } },
      template: { metadata: { labels: { app: "web" } }, spec: { containers: [{ name: "c" }] } },
    },
  };
  const path = "/apis/apps/v1/namespaces/shop/deployments";
  api.put(path, deployment);
  const pods = async (): Promise<Pod[]> => (await client.list(resources.pods)).items;
  const count = async (wanted: number): Promise<Pod[]> => {
    for (let tries = 0; tries < 6000; tries++) {
      const found = await pods();
      if (found.length === wanted) return found;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    throw new Error(`there are ${(await pods()).length} pods, not ${wanted}`);
  };
  const [first] = await count(2);
  const sets: ReplicaSet[] = (await client.list(resources.replicaSets)).items;
  assert.equal(sets.length, 1);
  assert.ok(sets.every((set: KubeObject) => set.metadata?.ownerReferences?.[0]?.uid === "d"));
  api.remove(`/api/v1/namespaces/shop/pods/${first?.metadata?.name}`);
  await count(1);
  await count(2);
  api.put(path, { ...deployment, spec: { ...deployment.spec, replicas: 1 } });
  await count(1);
  await new Promise((resolve) => setTimeout(resolve, 100));
  assert.equal((await pods()).length, 1, "and it stays so");
});
