import type { CustomResourceDefinition } from "#kube";
import { DEFAULT_TRUST_BUNDLE } from "#model/authority-objects";
import {
  CLUSTER_RULES,
  INSIDE_RULES,
  PLUGIN_ACCOUNT,
  PLUGIN_RULES,
  WIREGUARD_RULES,
  type AccessRule,
  type InstalledRole,
} from "./access.ts";
import { admissionPolicies } from "./admission.ts";
import { NETWORKING_KINDS, POLICY_KINDS, WIREGUARD_KINDS } from "./kinds.ts";
import { resolveTree, value, when, type Tree, type Values } from "./template.ts";
import {
  agentObjects,
  asDeployment,
  controllerObjects,
  inAgents,
  INSTALLED,
  proxyObjects,
  withCni,
  withTunnels,
} from "./workloads.ts";

const RBAC = "rbac.authorization.k8s.io";
const ROLES: readonly InstalledRole[] = ["controller", "agent", "proxy"];

/** The objects of an installation, in files as the chart has them, in the order in which they have to be made. */
export function installationTrees(): ReadonlyMap<string, readonly Tree[]> {
  return new Map([
    ["namespace", [namespace()]],
    ["quota", [criticalQuota()]],
    ["access", [...ROLES.flatMap(accessOfRole), ...accessOfPlugin(), ...accessToTunnels()]],
    ["admission", admissionPolicies()],
    ["controller", controllerObjects()],
    ["agent", agentObjects()],
    ["proxy", proxyObjects()],
    ["mode", [strictMode()]],
    ["wireguard", [rotation()]],
  ]);
}

/** The kinds that users write policies and entries in, as they are installed where nobody has them. */
export function installedKinds(): readonly CustomResourceDefinition[] {
  return [...POLICY_KINDS, ...NETWORKING_KINDS, ...WIREGUARD_KINDS].map((kind) => ({
    apiVersion: "apiextensions.k8s.io/v1",
    kind: "CustomResourceDefinition",
    ...kind,
  }));
}

/** All objects, with the values put in; `version` is that of the image, unless a value says otherwise. */
export function renderInstallation(values: Values, version: string): unknown[] {
  const named = new Map([...values, ["image.tag", values.get("image.tag") || version]]);
  return [...installationTrees().values()].flat().flatMap((tree) => resolveTree(tree, named) ?? []);
}

/** Its pods see their nodes' processes, network and folders: the strictest level of Pod Security that lets them is this. */
function namespace(): Tree {
  const labels = ["enforce", "audit", "warn"].map((name) => [`pod-security.kubernetes.io/${name}`, "privileged"]);
  return {
    apiVersion: "v1",
    kind: "Namespace",
    metadata: {
      name: value("namespace"),
      labels: Object.fromEntries(labels) as { readonly [key: string]: string },
      // The authority's keys are in it: who installs again goes on with the same identities.
      annotations: { "helm.sh/resource-policy": "keep" },
    },
  };
}

/** GKE lets pods of these classes into other namespaces than kube-system only where a quota speaks of them. */
function criticalQuota(): Tree {
  const values = ["system-node-critical", "system-cluster-critical"];
  return when(
    { path: "platform", equals: "gke" },
    {
      apiVersion: "v1",
      kind: "ResourceQuota",
      metadata: { name: "veil-critical-pods", namespace: value("namespace") },
      spec: {
        hard: { pods: "20000" }, // agent, proxy and the next proxy of 5,000 nodes, and some
        scopeSelector: { matchExpressions: [{ operator: "In", scopeName: "PriorityClass", values }] },
      },
    },
  );
}

function accessOfRole(role: InstalledRole): Tree[] {
  const account = accountOf(INSTALLED[role].account);
  return [role === "controller" ? when(asDeployment, account) : account, ...grants(role, holdersOf(role))];
}

function holdersOf(role: InstalledRole): Tree[] {
  const own = subjectOf(INSTALLED[role].account);
  if (role !== "controller") return [own];
  // What runs in the agents' pods has their account.
  return [when(asDeployment, own), when(inAgents, subjectOf(INSTALLED.agent.account))];
}

function accessOfPlugin(): Tree[] {
  const name = PLUGIN_ACCOUNT;
  const access = granted(PLUGIN_RULES, { kind: "ClusterRole", metadata: { name }, subjects: [subjectOf(name)] });
  return [accountOf(name), ...access].map((tree) => when(withCni, tree));
}

/** What agents and the controller may do besides, where there are tunnels. */
function accessToTunnels(): Tree[] {
  return (["controller", "agent"] as const).flatMap((role) => {
    const metadata = { name: `${INSTALLED[role].account}-wireguard` };
    const kind = "ClusterRole";
    const access = granted(WIREGUARD_RULES[role], { kind, metadata, subjects: holdersOf(role) });
    return access.map((tree) => when(withTunnels, tree));
  });
}

function accountOf(name: string): Tree {
  return { apiVersion: "v1", kind: "ServiceAccount", metadata: { name, namespace: value("namespace") } };
}

function subjectOf(name: string): Tree {
  return { kind: "ServiceAccount", name, namespace: value("namespace") };
}

function grants(role: InstalledRole, subjects: Tree): Tree[] {
  const name = INSTALLED[role].account;
  const inside = { name, namespace: value("namespace") };
  return [
    ...granted(CLUSTER_RULES[role], { kind: "ClusterRole", metadata: { name }, subjects }),
    ...granted(INSIDE_RULES[role], { kind: "Role", metadata: inside, subjects }),
  ];
}

function granted(
  rules: readonly AccessRule[],
  {
    kind,
    metadata,
    subjects,
  }: { kind: string; metadata: { readonly name: string; readonly [key: string]: Tree }; subjects: Tree },
): Tree[] {
  if (rules.length === 0) return [];
  const roleRef = { apiGroup: RBAC, kind, name: metadata.name };
  return [
    { apiVersion: `${RBAC}/v1`, kind, metadata, rules: rules.map(ruleOf) },
    { apiVersion: `${RBAC}/v1`, kind: `${kind}Binding`, metadata, roleRef, subjects },
  ];
}

function ruleOf({ resourceNames, ...rule }: AccessRule): Tree {
  if (resourceNames === undefined) return { ...rule };
  return {
    ...rule,
    resourceNames: resourceNames.map((name) => (name === DEFAULT_TRUST_BUNDLE ? value("trustBundle") : name)),
  };
}

/** Strict everywhere: users make exceptions by PeerAuthentications of their own. */
function strictMode(): Tree {
  return when(
    { path: "mode", equals: "strict" },
    {
      apiVersion: "security.istio.io/v1",
      kind: "PeerAuthentication",
      metadata: { name: "veil-mode", namespace: value("rootNamespace", value("namespace")) },
      spec: { mtls: { mode: "STRICT" } },
    },
  );
}

/** The barrier of the rotation of keys; its status is the controller's. */
function rotation(): Tree {
  return when(withTunnels, {
    apiVersion: "veil.dev/v1alpha1",
    kind: "WireGuardRotation",
    metadata: { name: "cluster" },
    spec: { interval: value("wireguard.interval") },
  });
}
