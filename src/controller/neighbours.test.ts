import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeClock } from "#base/clock";
import { silentLog } from "#base/log";
import { CellSet } from "#base/metrics";
import type { InformerListener, KubeClient, KubeObject, Pod } from "#kube";
import { controllerMetrics } from "./metrics.ts";
import { Neighbours } from "./neighbours.ts";

function pod(namespace: string, name: string, labels: Record<string, string> = {}): Pod {
  return { metadata: { namespace, name, uid: `uid-${name}`, labels }, status: { phase: "Running" } };
}

/** Pods that a test adds and takes away. */
function setUp() {
  const listeners: InformerListener<Pod>[] = [];
  const known = new Map<string, Pod>();
  const events: string[] = [];
  const metrics = new CellSet(controllerMetrics);
  const create = async (_: unknown, event: KubeObject): Promise<KubeObject> => {
    events.push(String(Reflect.get(event, "message")));
    return event;
  };
  const neighbours = new Neighbours({
    pods: {
      on: (listener) => {
        listeners.push(listener);
        return () => {};
      },
      get: (name) => known.get(name),
    },
    namespace: "veil-system",
    podName: "veil-controller-1",
    client: { create } as unknown as Pick<KubeClient, "create">,
    metrics,
    clock: new FakeClock(),
    log: silentLog(),
  });
  const add = (one: Pod): void => {
    const name = one.metadata?.name ?? "";
    const old = known.get(name);
    known.set(name, one);
    for (const listener of listeners) listener.upserted?.(one, old);
  };
  const remove = (one: Pod): void => {
    known.delete(one.metadata?.name ?? "");
    for (const listener of listeners) listener.deleted?.(one);
  };
  return { neighbours, events, metrics, add, remove };
}

const own = pod("veil-system", "veil-controller-1", { app: "veil-controller" });
const FOUND: readonly (readonly [string, Pod])[] = [
  ["Istio", pod("istio-system", "istiod-5d", { app: "istiod" })],
  ["Istio's ambient mode", pod("istio-system", "istio-cni-node-x", { "k8s-app": "istio-cni-node" })],
  ["Cilium", pod("kube-system", "cilium-7k", { "k8s-app": "cilium" })],
  ["Cilium's mutual TLS", pod("kube-system", "ztunnel-cilium-z", {})],
  ["another Veil", pod("veil-two", "veil-agent-q", { app: "veil-agent" })],
];

for (const [name, theirs] of FOUND) {
  test(`${name} is found by its pods, told once on the controller's own pod, and forgotten when it is gone`, () => {
    const { neighbours, events, metrics, add, remove } = setUp();
    add(own);
    add(theirs);
    add({ ...theirs, metadata: { ...theirs.metadata, annotations: { changed: "yes" } } });
    assert.deepEqual(
      neighbours.list().map((one) => [one.name, one.pods]),
      [[name, [`${theirs.metadata?.namespace}/${theirs.metadata?.name}`]]],
    );
    assert.equal(events.length, 1);
    assert.ok(events[0]?.startsWith(`${name} is on this cluster: `));
    assert.equal(metrics.bind("veil_controller_neighbours", { name }).value, 1);
    remove(theirs);
    assert.deepEqual(neighbours.list(), []);
    assert.equal(metrics.bind("veil_controller_neighbours", { name }).value, 0);
  });
}

test("who is found before the controller's own pod is known is told when it is", () => {
  const { events, add } = setUp();
  add(FOUND[0]?.[1] ?? assert.fail());
  assert.deepEqual(events, []);
  add(own);
  assert.equal(events.length, 1);
});

test("Veil's own pods, and pods that have ended, are nobody's", () => {
  const { neighbours, add } = setUp();
  add(own);
  add(pod("veil-system", "veil-agent-1", { app: "veil-agent" }));
  add(pod("shop", "ztunnel-cilium-like"));
  add({ ...pod("istio-system", "istiod-0", { app: "istiod" }), status: { phase: "Succeeded" } });
  assert.deepEqual(neighbours.list(), []);
});
