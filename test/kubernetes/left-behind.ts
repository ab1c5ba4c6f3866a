import assert from "node:assert/strict";
import { readdirSync, statSync } from "node:fs";
import { resources, type Pod } from "#kube";
import { must } from "../netns/harness.ts";
import { clusterProcesses } from "./cgroups.ts";
import type { TestCluster } from "./cluster.ts";
import { accountOf, isEnrolled } from "./mesh.ts";
import { enterPodNetwork } from "./pod-network.ts";
import { VEIL_NAMESPACE } from "./veil.ts";

/** What a proxy's `/config_dump` says, as far as it is looked at. */
interface Dump {
  readonly workloads: readonly { readonly uid: string; readonly name: string; readonly namespace: string }[];
  readonly certificates: readonly { readonly identity: string; readonly state: string }[];
  readonly workloadState: Readonly<Record<string, unknown>>;
}

/**
 * Compares everything that a node has of pods with the pods that the API says are there: network namespaces, addresses, the agent's
 * list, the proxy's pods, certificates and table, descriptors of namespaces, rules for probes. Answers what is too many, and what is
 * missing; empty when all is right. Certificates that the agent keeps for a while: {@link keptCertificates}.
 */
export async function leftBehind(cluster: TestCluster, node: string): Promise<string[]> {
  const { items: all } = await cluster.client.list(resources.pods);
  const items = all.filter(({ status }) => status?.phase === "Running" || status?.phase === "Pending");
  const own = items.filter(({ spec }) => spec?.nodeName === node && spec.hostNetwork !== true);
  const enrolled = own.filter(isEnrolled);
  const uids = (pods: readonly Pod[]): string[] => pods.map(({ metadata }) => metadata?.uid ?? "");
  const ips = (pods: readonly Pod[]): string[] => pods.map(({ status }) => status?.podIP ?? "");
  const identities = [...new Set(enrolled.map(identityOf))];
  const dump = await dumpOf(cluster, node);
  const namespaces = await onNode(cluster, node, "stat -c %i /run/netns/* 2>/dev/null");
  return [
    ...compare("network namespaces", namespaces.length, own.length),
    ...compare("addresses", await onNode(cluster, node, "ls /var/lib/cni/networks/pods | grep '^[0-9]'"), ips(own)),
    ...compare("pods of the agent", await podsOfAgent(cluster, node), uids(enrolled)),
    ...compare("pods of the proxy", Object.keys(dump.workloadState), uids(enrolled)),
    ...compare(
      "certificates of the proxy",
      dump.certificates.map(({ identity }) => identity),
      identities,
    ),
    ...compare(
      "pods in the proxy's table",
      dump.workloads.filter(({ uid }) => uid.includes("//Pod/")).map(nameOf),
      items.flatMap(({ metadata }) => nameOf(metadata)),
    ),
    ...compare(
      "descriptors of other namespaces",
      descriptors(node).filter((inode) => !namespaces.includes(inode)),
      [],
    ),
    ...compare("probes", await onNode(cluster, node, PROBED), ips(enrolled.filter(hasProbes))),
  ];
}

/** How many identities a node's agent has certificates of beyond those of the pods that are there; for 10 s it keeps them. */
export async function keptCertificates(cluster: TestCluster, node: string): Promise<number> {
  const { items } = await cluster.client.list(resources.pods);
  const there = new Set(items.filter((pod) => pod.spec?.nodeName === node && isEnrolled(pod)).map(identityOf));
  const gauges = (await askAgent(cluster, node, "/metrics")).matchAll(/^veil_identity_certificates\{.*\} (\d+)$/gm);
  return [...gauges].reduce((sum, [, count]) => sum + Number(count), 0) - there.size;
}

/** The addresses whose probes have a source of their own. */
const PROBED =
  "nft list set inet veil_probes v4 2>/dev/null | grep -oE '[0-9.]+ \\. ' | tr -d ' ' | sed 's/\\.$//' | sort -u";

function hasProbes({ spec }: Pod): boolean {
  return (
    spec?.containers.some(({ readinessProbe, livenessProbe }) => (readinessProbe ?? livenessProbe) !== undefined) ??
    false
  );
}

function identityOf(pod: Pod): string {
  return `spiffe://cluster.local/ns/${pod.metadata?.namespace}/sa/${accountOf(pod)}`;
}

function nameOf(place: { readonly name?: string; readonly namespace?: string } | undefined): string {
  return `${place?.namespace}/${place?.name}`;
}

function compare(what: string, found: number | readonly string[], expected: number | readonly string[]): string[] {
  if (typeof found === "number" || typeof expected === "number") {
    return found === expected ? [] : [`${what}: ${String(found)} instead of ${String(expected)}`];
  }
  const [extra, missing] = [
    found.filter((one) => !expected.includes(one)),
    expected.filter((one) => !found.includes(one)),
  ];
  if (extra.length + missing.length === 0) return [];
  return [`${what}: too many ${extra.join(" ")}, missing ${missing.join(" ")}`];
}

async function onNode(cluster: TestCluster, node: string, script: string): Promise<string[]> {
  const { stdout } = await cluster.execNode(node, "sh", "-c", script);
  return stdout.split("\n").filter(Boolean);
}

/** The pods that a node's agent has enrolled, or that it has not let go. */
async function podsOfAgent(cluster: TestCluster, node: string): Promise<string[]> {
  const pods = JSON.parse(await askAgent(cluster, node, "/pods")) as { uid: string; state: string }[];
  return pods.filter(({ state }) => state !== "plain" && state !== "closed").map(({ uid }) => uid);
}

function askAgent(cluster: TestCluster, node: string, path: string): Promise<string> {
  return must([...cluster.node(node).enter, "curl", "-sf", `http://127.0.0.1:9965${path}`]);
}

async function dumpOf(cluster: TestCluster, node: string): Promise<Dump> {
  const { items } = await cluster.client.list(resources.pods, {
    namespace: VEIL_NAMESPACE,
    labelSelector: "app=ztunnel",
  });
  const proxy = items.find(({ spec }) => spec?.nodeName === node);
  assert.ok(proxy, `${node} has no proxy`);
  const words = [...(await enterPodNetwork(cluster, proxy)), "curl", "-sf", "http://127.0.0.1:15000/config_dump"];
  return JSON.parse(await must(words)) as Dump;
}

/** Inodes of the network namespaces that Veil's processes on a node hold open, besides those that they run in. */
function descriptors(node: string): string[] {
  const own = statSync("/proc/self/ns/net").dev;
  return clusterProcesses(node).flatMap((pid) => {
    try {
      const runsIn = new Set([`/proc/${pid}/ns/net`, "/proc/1/ns/net"].map((path) => statSync(path).ino));
      const open = readdirSync(`/proc/${pid}/fd`).map((fd) => statSync(`/proc/${pid}/fd/${fd}`));
      return open.filter(({ dev, ino }) => dev === own && !runsIn.has(ino)).map(({ ino }) => String(ino));
    } catch {
      return []; // it has ended meanwhile
    }
  });
}
