import assert from "node:assert/strict";
import type { Pod } from "#kube";
import type { TestCluster } from "./cluster.ts";

/**
 * Words that run a program of this machine in a pod's network. It is none of the pod's processes: it has this machine's files, and
 * the share of the processors that the test has. A pod without requests has next to none of them while others work.
 */
export async function enterPodNetwork(cluster: TestCluster, pod: Pod): Promise<string[]> {
  const node = pod.spec?.nodeName ?? "";
  const find = `for netns in /run/netns/*; do nsenter --net=$netns ip -4 -o addr | grep -q ' ${pod.status?.podIP}/' && echo $netns; done`;
  const { stdout } = await cluster.execNode(node, "sh", "-c", find);
  const netns = stdout.trim();
  assert.match(netns, /^\S+$/, `the network of pod ${pod.metadata?.name} on ${node}`);
  return [...cluster.node(node).enter, "nsenter", `--net=${netns}`, "--"];
}
