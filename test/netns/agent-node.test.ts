import assert from "node:assert/strict";
import { statSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { after, before, test } from "node:test";
import { resources, type Pod } from "#kube";
import type { Served } from "./agent-ztunnel.ts";
import { must, startLab, type TestLab } from "./harness.ts";

// The agent on a whole lab: how fast a label takes effect and goes, and what it gives to a proxy that is not Veil's.

const NAMESPACE = "vt-agent";
/** Where the lab's kubelet keeps the pods' namespaces, on the node. */
const NETNS_FOLDER = "/run/kubelet/netns";
/** How long it takes says bench/label-latency.ts, of more. */
const TRIALS = 6;
let lab: TestLab;

before(async () => {
  lab = await startLab("agent");
  await lab.client.create(resources.namespaces, { metadata: { name: NAMESPACE } });
  for (const [name, nodeName] of [
    ["one", "node1"],
    ["two", "node1"],
    ["three", "node2"],
  ] as const)
    await makePod(name, { nodeName });
  await Promise.all(["one", "two", "three"].map((name) => lab.readyPod(NAMESPACE, name)));
});
after(() => lab[Symbol.asyncDispose]());

async function makePod(
  name: string,
  options: { nodeName: string; serviceAccount?: string; namespace?: string },
): Promise<Pod> {
  const { nodeName, serviceAccount = "default", namespace = NAMESPACE } = options;
  const containers = [{ name: "c", image: "none", command: ["sleep", "100000"] }];
  const metadata = { name, namespace };
  return lab.client.create(resources.pods, {
    metadata,
    spec: { nodeName, serviceAccountName: serviceAccount, containers },
  });
}

async function label(value: string | null): Promise<void> {
  const body = { metadata: { labels: { "io.cilium/mtls-enabled": value } } };
  await lab.client.patch(resources.namespaces, { name: NAMESPACE }, { type: "merge", body });
}

interface Status {
  readonly name: string;
  readonly namespace: string;
  readonly state: string;
}

/** Where the agents say that the pods of the namespace stand. */
async function states(): Promise<string[]> {
  const asked = lab.nodes.map(async ({ netns }) => {
    return must(["ip", "netns", "exec", netns, "curl", "-sf", "http://127.0.0.1:9965/pods"]);
  });
  const all = (await Promise.all(asked)).flatMap((text) => JSON.parse(text) as Status[]); // the agent's own format
  return all.filter(({ namespace }) => namespace === NAMESPACE).map(({ state }) => state);
}

/** Waits until new connections of all pods are redirected, or of none. */
async function settled(way: "in" | "out"): Promise<void> {
  const done = way === "in" ? ["enrolled"] : ["draining", "removing", "plain"];
  const endMs = performance.now() + 60_000;
  for (;;) {
    const now = await states();
    if (now.every((state) => done.includes(state))) return;
    assert.ok(performance.now() < endMs, `${way}: ${now.join(" ")} after a minute`);
  }
}

/** The rules in a pod, as nft prints them. */
async function rulesOf(name: string): Promise<string> {
  const { metadata, spec } = await lab.client.get(resources.pods, name, NAMESPACE);
  const netns = `--net=${NETNS_FOLDER}/${metadata?.uid}`;
  const { code, stdout, stderr } = await lab.execNode(spec?.nodeName ?? "", "nsenter", netns, "nft", "list", "ruleset");
  assert.equal(code, 0, stderr);
  return stdout;
}

test("a label takes effect on all running pods, and goes again, over and over", async (context) => {
  const tookMs = { in: [] as number[], out: [] as number[] };
  for (let i = 0; i < TRIALS; i++) {
    for (const way of ["in", "out"] as const) {
      const startMs = performance.now();
      await label(way === "in" ? "true" : null);
      await settled(way);
      tookMs[way].push(performance.now() - startMs);
    }
  }
  assert.doesNotMatch(await rulesOf("one"), /redirect/);
  for (const [way, all] of Object.entries(tookMs)) {
    const figures = all.toSorted((a, b) => a - b).map((ms) => ms.toFixed(0));
    context.diagnostic(`${way}, 3 pods on 2 nodes: ${figures.join(", ")} ms`);
  }
});

test("another ztunnel gets pods with their namespaces, workloads, and its own key signed; refusals come through", async () => {
  await label("true");
  await settled("in");
  await lab.client.create(resources.serviceAccounts, { metadata: { name: "ztunnel", namespace: "veil-system" } });
  await makePod("ztunnel", { nodeName: "node1", serviceAccount: "ztunnel", namespace: "veil-system" });
  const ztunnel = await lab.readyPod("veil-system", "ztunnel");
  const tokenOf = async (pod: Pod, audience: string): Promise<string> => {
    const { namespace = "", name = "", uid = "" } = pod.metadata ?? {};
    const boundObjectRef = { kind: "Pod", apiVersion: "v1", name, uid };
    const account = pod.spec?.serviceAccountName ?? "default";
    return (await lab.client.createToken(namespace, account, { audiences: [audience], boundObjectRef })).token;
  };
  const identity = `spiffe://cluster.local/ns/${NAMESPACE}/sa/default`;
  const input = JSON.stringify({
    token: await tokenOf(ztunnel, "istio-ca"),
    identity,
    refusedToken: await tokenOf(await lab.readyPod(NAMESPACE, "one"), "istio-ca"),
  });
  const script = fileURLToPath(new URL("agent-ztunnel.ts", import.meta.url));
  const node = ["lab", "exec", "--name", lab.name, "node1", "--"];
  const veil = fileURLToPath(new URL("../../bin/veil", import.meta.url));
  const program = [process.execPath, "--conditions=veil-source", "--disable-warning=DEP0111", script];
  const served = JSON.parse(await must([veil, ...node, ...program], { input, timeoutMs: 200_000 })) as Served; // its own format

  assert.deepEqual(served.pods.map(({ name }) => name).toSorted(), ["one", "two"], "those of its node, and no others");
  for (const { name, netnsInode } of served.pods) {
    const { metadata } = await lab.client.get(resources.pods, name, NAMESPACE);
    const inode = await lab.execNode("node1", "stat", "-Lc", "%i", `${NETNS_FOLDER}/${metadata?.uid}`);
    assert.equal(String(netnsInode), inode.stdout.trim());
    assert.notEqual(netnsInode, statSync("/proc/self/ns/net").ino);
  }
  const addresses = served.resources["type.googleapis.com/istio.workload.Address"] ?? [];
  for (const name of ["one", "two", "three"])
    assert.ok(addresses.includes(`Kubernetes//Pod/${NAMESPACE}/${name}`), name);
  assert.deepEqual(served.resources["type.googleapis.com/istio.security.Authorization"], []);
  assert.deepEqual(served.uris, [identity]);
  assert.match(served.refusal, /CA_NOT_NODE_ACCOUNT/);
});

test("a new pod of a labelled namespace is redirected before its first process runs", async () => {
  await label("true");
  await makePod("late", { nodeName: "node2" });
  const pod = await lab.readyPod(NAMESPACE, "late");
  assert.match(await rulesOf("late"), /redirect to :15001/);
  assert.ok(
    (await states()).every((state) => state === "enrolled"),
    pod.metadata?.uid,
  );
});
