import { INSTALLED, type InstalledRole } from "#install";
import { isReadyPod, type DaemonSet, type Deployment, type Node } from "#kube";
import { count, someOf, voiceOf, type Finding } from "./finding.ts";
import type { JudgedPod } from "./pods.ts";

const voice = voiceOf("readiness");

/** What there is of an installation. */
export interface InstallationParts {
  /** Where it is. */
  readonly namespace: string;
  readonly daemonSets: readonly DaemonSet[];
  readonly deployments: readonly Deployment[];
  readonly nodes: readonly Node[];
  readonly pods: readonly JudgedPod[];
}

/** Whether each role runs where it has to. */
export function checkReadiness(parts: InstallationParts): readonly Finding[] {
  return [...checkController(parts), ...checkNodes(parts, "agent"), ...checkNodes(parts, "proxy")];
}

/** The controller is a Deployment, or in the agents' pods. */
function checkController({ namespace, deployments, daemonSets }: InstallationParts): readonly Finding[] {
  const { app } = INSTALLED.controller;
  const agents = daemonSets.find(({ metadata }) => isAt(metadata, namespace, INSTALLED.agent.app));
  const inAgents = agents?.spec?.template.spec?.containers.some(({ name }) => name === "controller") === true;
  if (inAgents) return [voice.ok("the controller runs in the agents' pods")];
  const found = deployments.find(({ metadata }) => isAt(metadata, namespace, app));
  const look = `kubectl -n ${namespace} get pods -l app=${app}, then describe and logs of one that is not ready`;
  if (found === undefined) {
    return [
      voice.problem(
        `there is no Deployment ${app} in namespace ${namespace}`,
        "install Veil, or name where it is by --namespace",
      ),
    ];
  }
  const wanted = found.spec?.replicas ?? 1;
  const ready = found.status?.readyReplicas ?? 0;
  if (ready >= wanted) return [voice.ok(`${count(ready, "replica")} of the controller ready`)];
  const what = `${ready} of ${wanted} replicas of the controller are ready`;
  return [ready === 0 ? voice.problem(what, look) : voice.warning(what, look)];
}

/** One ready pod of the role on each node that its DaemonSet is for, and on each with enrolled pods. */
function checkNodes(parts: InstallationParts, role: "agent" | "proxy"): readonly Finding[] {
  const { namespace, daemonSets, nodes, pods } = parts;
  const { app } = INSTALLED[role];
  if (!daemonSets.some(({ metadata }) => isAt(metadata, namespace, app))) {
    const what = `there is no DaemonSet ${app} in namespace ${namespace}`;
    return role === "agent"
      ? [voice.problem(what, "install Veil, or name where it is by --namespace")]
      : [voice.warning(what, "nothing, if another ztunnel runs on the nodes (proxy.enabled=false)")];
  }
  const own = pods.filter((one) => one.namespace === namespace && one.labels["app"] === app && one.node !== "");
  const serving = new Set(own.filter(({ pod }) => isReadyPod(pod)).map(({ node }) => node));
  const enrolling = new Set(pods.filter(({ eligibility }) => eligibility.eligible).map(({ node }) => node));
  const meant = new Set([...own.map(({ node }) => node), ...enrolling]);
  const without = nodes.map(({ metadata }) => metadata?.name ?? "").filter((node) => !serving.has(node));
  const missing = without.filter((node) => meant.has(node));
  const findings = missing.length === 0 ? [] : [unready({ role, namespace, app }, missing)];
  const uncovered = without.filter((node) => !meant.has(node));
  if (uncovered.length > 0) {
    findings.push(
      voice.warning(
        `the ${role} does not run on ${count(uncovered.length, "node")}, where nothing is enrolled now: ${someOf(uncovered)}`,
        "nothing, if they are left out on purpose; otherwise look at agent.nodeSelector and agent.tolerations",
      ),
    );
  }
  return findings.length > 0 ? findings : [voice.ok(`the ${role} is ready on all of ${count(serving.size, "node")}`)];
}

function unready(
  { role, namespace, app }: { readonly role: InstalledRole; readonly namespace: string; readonly app: string },
  nodes: readonly string[],
): Finding {
  const consequence = role === "agent" ? "no pod is enrolled there" : "enrolled pods there cannot connect";
  return voice.problem(
    `the ${role} is not ready on ${someOf(nodes)}: ${consequence}`,
    `kubectl -n ${namespace} describe pods -l app=${app}, and its logs; on the node veil doctor --node`,
  );
}

function isAt(metadata: { name?: string; namespace?: string } | undefined, namespace: string, name: string): boolean {
  return metadata?.namespace === namespace && metadata.name === name;
}
