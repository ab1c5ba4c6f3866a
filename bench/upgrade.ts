/**
 * What an upgrade of the whole chart, and the way back, does to connections under load: the test's body
 * (test/kubernetes/version-changes.ts), with half of what the pair of pods can carry.
 *
 *     node --conditions=veil-source bench/upgrade.ts [--share 0.5] [--from CHECKOUT]     (root; takes about four minutes)
 *
 * With `--from` the older version is another checkout's, with its modules; otherwise this one's under another name.
 * Writes bench/results/upgrade.md.
 */
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { VersionChanges } from "../test/kubernetes/version-changes.ts";

const { values } = parseArgs({ options: { share: { type: "string", default: "0.5" }, from: { type: "string" } } });

await using changes = await VersionChanges.start(Number(values.share), values.from);
const { from } = values;
const commit =
  from === undefined
    ? ""
    : execFileSync("git", ["-C", from, "log", "-1", "--format=%h of %ci"], { encoding: "utf8" }).trim();
const versions =
  from === undefined
    ? "go to the next minor version and back"
    : `go from an older commit (${commit}; its own image and chart, under the minor version before) to this one, and back`;
const lines: string[] = [];
for (const [what, change] of [
  ["the same load, nothing changes", undefined],
  ["`helm upgrade`", await changes.up()],
  ["`helm rollback`", await changes.down()],
] as const) {
  const { short, failures, latencyMs } = change?.load ?? changes.twin;
  const failed = Object.values(failures).reduce((sum, count) => sum + count, 0);
  const tookS = change === undefined ? "" : (change.tookMs / 1000).toFixed(0);
  lines.push(`| ${what} | ${tookS} | ${short.done} | ${failed} | ${latencyMs.p50} | ${latencyMs.p99} |`);
  if (change !== undefined) changes.assertUnnoticed(change);
}
const text = `# An upgrade under load

\`node --conditions=veil-source bench/upgrade.ts --share ${values.share}${from === undefined ? "" : " --from CHECKOUT"}\`: Kubernetes 1.35.4, two kubelets, containerd and real pods on one machine; a controller of two replicas, agent and proxy of each node ${versions}. ${cpus()[0]?.model.trim()}, ${cpus().length} processors for all of it, load ${loadavg()[0]?.toFixed(1)} at the end.
Asked for are ${changes.rate} new connections a second from a pod of one node to a pod of the other, ${values.share} of what eight at a time can; each carries some kilobytes, every byte is checked.

| | s, until all runs and the old proxies are gone | connections | failed | p50, ms | p99, ms |
|---|---:|---:|---:|---:|---:|
${lines.join("\n")}

At the same time four connections talk all the while: they go on under the old proxies and are reset by the first that has waited until its deadline (10 s here), not before. Nothing of the pods is read between the nodes, where a pair without Veil is.
`;
writeFileSync(join(import.meta.dirname, "results/upgrade.md"), text);
process.stdout.write(text);
