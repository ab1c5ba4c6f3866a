import assert from "node:assert/strict";
import { isReadyPod, resources } from "#kube";
import { eventually, must } from "../netns/harness.ts";
import type { TestCluster } from "./cluster.ts";
import { leftBehind } from "./left-behind.ts";
import { accessRecords, enrolledPod, podOf, serve, WEB_PORT } from "./mesh.ts";
import { enterPodNetwork } from "./pod-network.ts";

/** The service accounts among which the pods of a full node are shared. */
export const FULL_NODE_ACCOUNTS = 10;
const DEADLINE_MS = 900_000;

/** How long a node took, in seconds: until all pods were ready and enrolled, and until nothing of them was left. */
export interface FullNodeTimes {
  readonly filledS: number;
  readonly emptiedS: number;
}

/** What {@link fillAndEmpty} wants to be there in a namespace. */
export function fullNodeAccounts(namespace: string): object[] {
  return Array.from({ length: FULL_NODE_ACCOUNTS }, (_, i) => {
    return { apiVersion: "v1", kind: "ServiceAccount", metadata: { namespace, name: accountOf(i) } };
  });
}

function accountOf(pod: number): string {
  return `account${pod % FULL_NODE_ACCOUNTS}`;
}

/**
 * Creates many pods at once on a node, has each of them asked by `asker` (`namespace/name`), and deletes all at once. Fails when one
 * does not answer, has another identity than its own at either proxy, or leaves something behind. `onFull` is called in between.
 */
export async function fillAndEmpty(
  cluster: TestCluster,
  place: {
    readonly namespace: string;
    readonly node: string;
    readonly count: number;
    readonly asker: string;
    readonly isEnrolled: boolean;
  },
  onFull: () => void = () => {},
): Promise<FullNodeTimes> {
  const { namespace, node, count, asker, isEnrolled } = place;
  const pods = Array.from({ length: count }, (_, i) =>
    podOf(
      { namespace, name: `pod${i}`, node, account: accountOf(i) },
      { command: ["sh", "-c", serve(`echo pod${i} >/www/name;`)] },
    ),
  );
  const startMs = performance.now();
  await cluster.apply(pods);
  const ready = await eventually(
    "all pods to be ready",
    async () => {
      const { items } = await cluster.client.list(resources.pods, { namespace });
      return items.length === count && items.every(isReadyPod) ? items : undefined;
    },
    DEADLINE_MS,
  );
  if (isEnrolled) for (const { metadata } of ready) await enrolledPod(cluster, `${namespace}/${metadata?.name}`);
  const fullMs = performance.now();
  onFull();
  const [askerNamespace = "", askerName = ""] = asker.split("/");
  const enter = await enterPodNetwork(cluster, await cluster.readyPod(askerNamespace, askerName));
  for (const { status, metadata } of ready) {
    const url = `http://${status?.podIP}:${WEB_PORT}/name`;
    assert.equal((await must([...enter, "curl", "-sf", "-m", "20", url])).trim(), metadata?.name);
  }
  if (isEnrolled) await checkIdentities(cluster, namespace, count);
  const endMs = performance.now();
  await cluster.kubectl("-n", namespace, "delete", "pods", "--all", "--wait=false");
  await eventually(
    "the node to be empty",
    async () => {
      assert.deepEqual(await leftBehind(cluster, node), []);
      return (await cluster.client.list(resources.pods, { namespace })).items.length === 0 || undefined;
    },
    DEADLINE_MS,
  );
  return { filledS: (fullMs - startMs) / 1000, emptiedS: (performance.now() - endMs) / 1000 };
}

/** Each pod was reached with its own account's identity, as both proxies say. */
async function checkIdentities(cluster: TestCluster, namespace: string, count: number): Promise<void> {
  await eventually("a record of each pod at each proxy", async () => {
    const records = (await accessRecords(cluster)).filter(({ destination }) => destination.namespace === namespace);
    const wrong = records.filter(({ destination: { workload, identity }, encryption }) => {
      const account = accountOf(Number(workload?.replace("pod", "")));
      return encryption !== "mutual_tls" || identity !== `spiffe://cluster.local/ns/${namespace}/sa/${account}`;
    });
    assert.deepEqual(wrong, []);
    const named = (direction: "inbound" | "outbound"): number =>
      new Set(records.filter((one) => one.direction === direction).map(({ destination }) => destination.workload)).size;
    return (named("inbound") === count && named("outbound") === count) || undefined;
  });
}
