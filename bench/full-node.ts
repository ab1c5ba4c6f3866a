/**
 * A node as full as a kubelet takes it: how long it takes to fill and to empty, what Veil's processes need, and whether anybody has a
 * wrong identity or leaves something behind.
 *
 *     node --conditions=veil-source bench/full-node.ts [--pods 110]     (root; takes about five minutes)
 *
 * `--pods` counts Veil's own, as a kubelet does. Brings up the test cluster (test/kubernetes) in strict mode. Fails when an identity is
 * wrong, a pod does not answer, or something is left. Writes bench/results/full-node.md.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { resources } from "#kube";
import { clusterProcesses } from "../test/kubernetes/cgroups.ts";
import { startCluster, type TestCluster } from "../test/kubernetes/cluster.ts";
import {
  FULL_NODE_ACCOUNTS,
  fillAndEmpty,
  fullNodeAccounts,
  type FullNodeTimes,
} from "../test/kubernetes/full-node.ts";
import { addressOf, applySoon, namespaceOf, podOf } from "../test/kubernetes/mesh.ts";
import { installVeil } from "../test/kubernetes/veil.ts";

const { values } = parseArgs({ options: { pods: { type: "string", default: "110" } } });
const NODE = "node1";
/** Kernel ticks of processor time in a second. */
const TICKS = 100;

interface Use {
  readonly cpuS: number;
  readonly rssMb: number;
}

/** What the processes of a role on the node have used, and hold. */
function useOf(role: string): Use {
  const used = clusterProcesses(NODE).map((pid): Use => {
    try {
      if (!readFileSync(`/proc/${pid}/cmdline`, "utf8").includes(`/veil.js\0${role}\0`)) return { cpuS: 0, rssMb: 0 };
      const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? [];
      const rss = /^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
      return { cpuS: (Number(fields[11]) + Number(fields[12])) / TICKS, rssMb: Number(rss) / 1024 };
    } catch {
      return { cpuS: 0, rssMb: 0 }; // it has ended meanwhile
    }
  });
  return {
    cpuS: used.reduce((sum, { cpuS }) => sum + cpuS, 0),
    rssMb: used.reduce((sum, { rssMb }) => sum + rssMb, 0),
  };
}

interface Round {
  readonly times: FullNodeTimes;
  readonly agent: Use;
  readonly proxy: Use;
}

async function measure(cluster: TestCluster, namespace: "full" | "plain", count: number): Promise<Round> {
  const read = (): Record<"agent" | "proxy", Use> => ({ agent: useOf("agent"), proxy: useOf("proxy") });
  const before = read();
  let full = before;
  const place = { namespace, node: NODE, count, asker: "asker/client", isEnrolled: namespace === "full" };
  const times = await fillAndEmpty(cluster, place, () => void (full = read()));
  const used = (role: "agent" | "proxy"): Use => ({
    cpuS: full[role].cpuS - before[role].cpuS,
    rssMb: full[role].rssMb,
  });
  return { times, agent: used("agent"), proxy: used("proxy") };
}

await using cluster = await startCluster();
await installVeil(cluster, { mode: "strict" });
await applySoon(cluster, [
  namespaceOf("asker", true),
  namespaceOf("full", true),
  namespaceOf("plain", false),
  podOf({ namespace: "asker", name: "client", node: "node2" }),
  ...["full", "plain"].flatMap(fullNodeAccounts),
]);
await addressOf(cluster, "asker/client");
const { items: own } = await cluster.client.list(resources.pods, { fieldSelector: `spec.nodeName=${NODE}` });
const count = Number(values.pods) - own.length;
const plain = await measure(cluster, "plain", count);
const full = await measure(cluster, "full", count);
const row = (what: string, { times, agent, proxy }: Round): string =>
  `| ${what} | ${[times.filledS, times.emptiedS, agent.cpuS, proxy.cpuS].map((s) => s.toFixed(1)).join(" | ")} | ${agent.rssMb.toFixed(0)} | ${proxy.rssMb.toFixed(0)} |`;
const text = `# A full node

\`node --conditions=veil-source bench/full-node.ts --pods ${values.pods}\`: Kubernetes 1.35.4, two kubelets, containerd and real pods on one machine. ${cpus()[0]?.model.trim()}, ${cpus().length} processors, load ${loadavg()[0]?.toFixed(1)} at the end.

${count} pods of ${FULL_NODE_ACCOUNTS} service accounts are created at once on a node that has ${own.length} of Veil's already, one is asked after the other from the other node, then all are deleted at once. Strict mode.

| pods | until all are ready and enrolled, s | until nothing is left, s | agent's processor time to fill, s | proxy's, s | agent's memory, MB | proxy's, MB |
|---|---|---|---|---|---|---|
${row("not enrolled", plain)}
${row("enrolled", full)}

Every enrolled pod answered through a tunnel, and in the records of both proxies each has the identity of its own account. "Nothing is left" is what test/kubernetes/left-behind.ts looks at:
network namespaces, addresses, the agent's and the proxy's pods, the proxy's certificates and table, descriptors of namespaces, rules for probes.
`;
writeFileSync(join(import.meta.dirname, "results/full-node.md"), text);
process.stdout.write(text);
