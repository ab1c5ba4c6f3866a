import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeClock } from "#base/clock";
import type { Pod } from "#kube";
import { Discovery } from "#discovery";
import { ResourceCache, TYPE_ADDRESS } from "#xds";
import { PropagationService, type PropagationOptions } from "./propagation.ts";

const UID = "Kubernetes//Pod/shop/cart";
const never = new AbortController().signal;
const turns = async (): Promise<void> => {
  for (let i = 0; i < 10; i++) await new Promise((resolve) => setImmediate(resolve));
};

function pod(resourceVersion: string, hbone: boolean): Pod {
  return {
    metadata: {
      name: "cart",
      namespace: "shop",
      resourceVersion,
      annotations: hbone ? { "ambient.istio.io/redirection": "enabled" } : {},
    },
    spec: { nodeName: "node1", serviceAccountName: "cart", containers: [] },
    status: { podIP: "10.0.0.1" },
  };
}

/** A controller's insides with everything in the test's hands: what the API has, what was seen, who has acknowledged. */
class World {
  readonly clock = new FakeClock();
  readonly cache = new ResourceCache();
  readonly #discovery = new Discovery({ clusterId: "Kubernetes", network: "", trustDomain: "td", clusterDomain: "c" });
  readonly #looks = new Set<() => void>();
  newest: Pod | undefined;
  seen: Pod | undefined;
  reads = 0;
  apiAway = false;
  acknowledge: PropagationOptions["server"]["whenAcknowledged"] = async () => [];

  readonly service = new PropagationService({
    client: {
      find: (async () => {
        this.reads++;
        if (this.apiAway) throw new Error("connection refused");
        return this.newest;
      }) as PropagationOptions["client"]["find"], // the one kind that is asked for
    },
    catalog: {
      pods: { get: () => this.seen } as unknown as PropagationOptions["catalog"]["pods"], // the one method that is used
      until: async (done, signal) => {
        while (!done()) {
          signal.throwIfAborted();
          const { promise, resolve, reject } = Promise.withResolvers<void>();
          this.#looks.add(resolve);
          signal.addEventListener("abort", () => reject(signal.reason), { once: true });
          await promise;
        }
      },
    },
    cache: this.cache,
    server: { nodes: ["node2", "node1"], whenAcknowledged: (target, signal) => this.acknowledge(target, signal) },
    authenticate: async () => "node1",
    clock: this.clock,
  });

  /** The controller sees a state of the pod and publishes it. */
  see(seen: Pod): void {
    this.seen = seen;
    this.#discovery.upsertPod(seen);
    const { upserts, removes } = this.#discovery.flush();
    this.cache.apply({
      typeUrl: TYPE_ADDRESS,
      upserts: upserts.map((each) => ({ typeUrl: TYPE_ADDRESS, ...each })),
      removes,
    });
    for (const look of this.#looks) look();
    this.#looks.clear();
  }
}

test("a state that is older than the API's is no answer, even when it looks right", async () => {
  const world = new World();
  world.see(pod("5", false));
  world.newest = pod("9", false); // between them it was enrolled, and that is still on its way to us
  let answer: readonly string[] | undefined;
  const asked = world.service
    .await({ uid: UID, hbone: false, timeoutMs: 1000 }, never)
    .then((behind) => (answer = behind));
  await turns();
  assert.equal(answer, undefined);
  world.see(pod("7", true));
  await turns();
  assert.equal(answer, undefined);
  world.see(pod("9", false));
  await asked;
  assert.deepEqual(answer, []);
});

test("a state that changes back while the nodes acknowledge is waited for again", async () => {
  const world = new World();
  world.newest = pod("5", false);
  world.see(pod("5", false));
  const revisions: number[] = [];
  world.acknowledge = async ({ revision }) => {
    revisions.push(revision);
    if (revisions.length === 1) {
      world.newest = pod("6", true);
      world.see(pod("6", true));
      queueMicrotask(() => {
        world.newest = pod("7", false);
        setImmediate(() => world.see(pod("7", false)));
      });
    }
    return [];
  };
  assert.deepEqual(await world.service.await({ uid: UID, hbone: false, timeoutMs: 1000 }, never), []);
  assert.deepEqual(revisions, [1, 3], "the first acknowledgement did not count");
});

test("when time is up the answer names the nodes that have not acknowledged", async () => {
  const world = new World();
  world.newest = pod("5", true);
  world.see(pod("5", true));
  world.acknowledge = async (_, signal) => {
    await new Promise((resolve) => {
      signal.addEventListener("abort", resolve, { once: true });
    });
    return ["node2"];
  };
  const asked = world.service.await({ uid: UID, hbone: true, timeoutMs: 1000 }, never);
  await turns();
  await world.clock.advance(1000);
  assert.deepEqual(await asked, ["node2"]);
});

test("what is not even published in time is held by no node", async () => {
  const world = new World();
  world.newest = pod("5", false);
  world.see(pod("5", false));
  const asked = world.service.await({ uid: UID, hbone: true, timeoutMs: 1200 }, never);
  await turns();
  await world.clock.advance(2000);
  assert.deepEqual(await asked, ["node1", "node2"]);
});

test("a pod that goes away while it is waited for is plain for all", async () => {
  const world = new World();
  world.newest = pod("5", false);
  let answer: readonly string[] | undefined;
  const asked = world.service
    .await({ uid: UID, hbone: false, timeoutMs: 5000 }, never)
    .then((behind) => (answer = behind));
  await turns();
  assert.equal(answer, undefined, "the pod has not been seen here yet");
  world.newest = undefined;
  await world.clock.advance(600);
  await asked;
  assert.deepEqual(answer, []);
  assert.equal(world.reads, 2);
});

test("an API that is away is said, not guessed around", async () => {
  const world = new World();
  world.see(pod("5", false));
  world.apiAway = true;
  await assert.rejects(
    world.service.await({ uid: UID, hbone: false, timeoutMs: 1000 }, never),
    /\[unavailable\] the api server does not say what the pod is: connection refused/,
  );
});
