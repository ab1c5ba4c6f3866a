import { existsSync, readFileSync } from "node:fs";
import { parse, stringify } from "yaml";
import { sleep, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import { silentLog } from "#base/log";
import { systemRandom } from "#base/random";
import { KubeClient, loadKubeConfig, resources, type Node, type Pod } from "#kube";
import type { LabContext } from "./down.ts";
import { labError } from "./errors.ts";
import { nodeLayouts, type LabLayout, type NodeLayout } from "./layout.ts";
import { VEIL_NAMESPACE, veilManifests, type InstallValues } from "./manifests.ts";
import { API_URL, nodeKubeconfig } from "./roles.ts";
import { findState, stateFiles, writeWhole, type LabSpec } from "./state.ts";
import { labStatus } from "./status.ts";

const API_DEADLINE_MS = 120_000;
const READY_DEADLINE_MS = 300_000;
const POLL_MS = 25;
/** A part that ended this often while it was waited for will not come up by waiting. */
const MAX_RESTARTS = 4;
const FIELD_MANAGER = "veil-lab";

/** A client of the lab's API with all rights. The caller closes it. */
export async function labClient(context: Pick<LabContext, "lab" | "clock">): Promise<KubeClient> {
  const config = await loadKubeConfig(context.lab.kubeconfig);
  return new KubeClient({ config, log: silentLog(), clock: context.clock, random: systemRandom });
}

/** Waits until the API server serves, and writes the user's kubeconfig. Throws `LAB_ROLE_FAILED` with its last words. */
export async function waitForApi(context: LabContext, spec: LabSpec): Promise<void> {
  const { lab, clock, signal } = context;
  const endMs = clock.monotonic() + API_DEADLINE_MS;
  const admin = `${lab.apiserverData}/admin.kubeconfig`;
  const watchCrashes = crashWatch(lab, ["apiserver"]);
  const wait = async (why: string): Promise<void> => {
    watchCrashes();
    if (clock.monotonic() > endMs) throw roleFailed(lab, "apiserver", why);
    await sleep(clock, POLL_MS, signal);
  };
  while (!existsSync(admin)) await wait("it has not written its kubeconfig");
  writeWhole(lab.kubeconfig, forUser(readFileSync(admin, "utf8"), `https://127.0.0.1:${spec.port}`, lab.name));
  const client = await labClient(context);
  try {
    for (;;) {
      const failure = await client
        .list(resources.namespaces, { signal, limit: 1 })
        .then(() => undefined)
        .catch(messageOf);
      if (failure === undefined) return;
      await wait(failure);
    }
  } finally {
    client.close();
  }
}

/** The same credentials for another address of the same API; contexts are named after the lab. */
function forUser(text: string, server: string, name: string): string {
  const config = parse(text) as { clusters: { name: string; cluster: { server: string } }[] }; // the API server's own file
  for (const { cluster } of config.clusters) cluster.server = server;
  return `# The API of lab ${name}, for kubectl on this machine.\n${stringify(config)}`;
}

/** Writes the kubeconfig of every node's kubelet that has none yet. */
export async function credentialsOfNodes({ lab }: LabContext, spec: LabSpec): Promise<void> {
  const missing = nodeLayouts(lab, spec.nodes).filter((node) => !existsSync(nodeKubeconfig(node)));
  if (missing.length === 0) return;
  const { createKubeconfig } = await import("#apiserver");
  const options = { dataDir: lab.apiserverData, groups: ["system:nodes"], server: API_URL };
  for (const node of missing) {
    writeWhole(nodeKubeconfig(node), await createKubeconfig({ ...options, user: `system:node:${node.name}` }));
  }
}

/** Installs or updates Veil's objects. */
export async function installVeil(context: LabContext, { wireguard }: LabSpec): Promise<void> {
  const client = await labClient(context);
  const values: InstallValues = {
    program: context.program,
    compileCache: context.env["NODE_COMPILE_CACHE"] ?? "",
    wireguard,
  };
  try {
    for (const { ref, object } of veilManifests(values)) {
      const { name = "", namespace } = object.metadata ?? {};
      await client.patch(
        ref,
        { name, namespace, signal: context.signal },
        { type: "apply", fieldManager: FIELD_MANAGER, force: true, body: withType(ref, object) },
      );
    }
  } finally {
    client.close();
  }
}

function withType(ref: { group: string; version: string; kind: string }, object: object): object {
  const apiVersion = ref.group === "" ? ref.version : `${ref.group}/${ref.version}`;
  return { apiVersion, kind: ref.kind, ...object };
}

/** Deletes the Node objects of nodes that are no more; an API that does not answer is no failure. */
export async function forgetNodes(
  context: Pick<LabContext, "lab" | "clock">,
  nodes: readonly NodeLayout[],
): Promise<void> {
  try {
    const client = await labClient(context);
    for (const { name } of nodes) await client.delete(resources.nodes, { name }).catch(() => {});
    client.close();
  } catch {
    // there is no API yet: nobody knows of the nodes
  }
}

/** Waits until every node says that it is ready. Throws `LAB_ROLE_FAILED`. */
export async function waitForNodes(context: LabContext, spec: LabSpec): Promise<void> {
  const client = await labClient(context);
  const kubelets = nodeLayouts(context.lab, spec.nodes).map((node) => `kubelet-${node.name}`);
  const watchCrashes = crashWatch(context.lab, ["controllers", ...kubelets]);
  try {
    await waitUntil(context, async () => {
      watchCrashes();
      const { items } = await client.list(resources.nodes, { signal: context.signal });
      const missing = nodeLayouts(context.lab, spec.nodes).find(
        ({ name }) => !items.some((node) => node.metadata?.name === name && isNodeReady(node)),
      );
      return missing === undefined ? undefined : { role: `kubelet-${missing.name}`, why: "its node is not ready" };
    });
  } finally {
    client.close();
  }
}

/** Waits until Veil's own pods are ready: one controller, an agent and a proxy on each node. Throws `LAB_ROLE_FAILED`. */
export async function waitForVeil(context: LabContext, spec: LabSpec): Promise<void> {
  const client = await labClient(context);
  const watchCrashes = crashWatch(context.lab, ["controllers"]);
  const restartsBefore = new Map<string, number>();
  try {
    await waitUntil(context, async () => {
      watchCrashes();
      const { items } = await client.list(resources.pods, { namespace: VEIL_NAMESPACE, signal: context.signal });
      const waiting = items.filter((pod) => !isPodReady(pod));
      for (const pod of waiting) {
        const key = pod.metadata?.uid ?? "";
        const before = restartsBefore.get(key) ?? restartsOf(pod);
        restartsBefore.set(key, before);
        if (restartsOf(pod) - before >= MAX_RESTARTS) throw podFailed(context.lab, pod);
      }
      const ready = items.length - waiting.length;
      const wanted = 1 + 2 * spec.nodes;
      if (ready >= wanted) return undefined;
      return { role: "controllers", why: `${ready} of ${wanted} pods of Veil are ready` };
    });
  } finally {
    client.close();
  }
}

/** Waits until every role answers that it is ready. Throws `LAB_ROLE_FAILED`. */
export async function waitForRoles(context: LabContext): Promise<void> {
  const { lab, clock } = context;
  await waitUntil(context, async () => {
    const [ill] = await findIll(lab, clock);
    return ill === undefined ? undefined : { role: ill.log, why: ill.why };
  });
}

/** The roles that are not ready: where their log is, and what they say. */
async function findIll(lab: LabLayout, clock: Clock): Promise<{ log: string; why: string }[]> {
  const { control, nodes, ready } = await labStatus(lab, clock);
  const places = [
    ...control.roles.map((role) => ({ role, log: role.role, where: "" })),
    ...nodes.flatMap(({ name, roles }) =>
      roles.map((role) => ({ role, log: `kubelet-${name}`, where: ` on ${name}` })),
    ),
  ];
  const ill = places.filter(({ role }) => role.health !== "ready");
  if (ill.length === 0 && !ready) return [{ log: "controllers", why: "no controller runs" }];
  return ill.map(({ role, log, where }) => ({ log, why: `${role.role}${where}: ${role.reason ?? role.health}` }));
}

async function waitUntil(
  { lab, clock, signal }: LabContext,
  look: () => Promise<{ role: string; why: string } | undefined>,
): Promise<void> {
  const endMs = clock.monotonic() + READY_DEADLINE_MS;
  for (;;) {
    const missing = await look();
    if (missing === undefined) return;
    if (clock.monotonic() > endMs) {
      const ill = (await findIll(lab, clock)).map(({ why }) => why);
      throw roleFailed(lab, missing.role, [missing.why, ...ill].join("; "));
    }
    await sleep(clock, POLL_MS, signal);
  }
}

function isNodeReady(node: Node): boolean {
  return node.status?.conditions?.some(({ type, status }) => type === "Ready" && status === "True") === true;
}

/** True when the pod's condition Ready holds and it is not on its way out. */
export function isPodReady(pod: Pod): boolean {
  if (pod.metadata?.deletionTimestamp !== undefined) return false;
  return pod.status?.conditions?.some(({ type, status }) => type === "Ready" && status === "True") === true;
}

function restartsOf(pod: Pod): number {
  return Math.max(0, ...(pod.status?.containerStatuses ?? []).map(({ restartCount }) => restartCount));
}

function podFailed(lab: LabLayout, pod: Pod): Error {
  const { name = "", namespace = "" } = pod.metadata ?? {};
  const see = `KUBECONFIG=${lab.kubeconfig} veil kubectl -n ${namespace} logs ${name} --previous`;
  return labError("LAB_ROLE_FAILED", `pod ${namespace}/${name} ended ${restartsOf(pod)} times; its log: ${see}`);
}

/** Counts from now on how often roles end; the function throws `LAB_ROLE_FAILED` once that is too often. */
function crashWatch(lab: LabLayout, roles: readonly string[]): () => void {
  const restarts = (role: string): number => findState(lab)?.roles[role]?.restarts ?? 0;
  const before = new Map(roles.map((role) => [role, restarts(role)]));
  return () => {
    for (const role of roles) {
      const ended = restarts(role) - (before.get(role) ?? 0);
      if (ended >= MAX_RESTARTS) throw roleFailed(lab, role, `it ended ${ended} times`);
    }
  };
}

function roleFailed(lab: LabLayout, role: string, why: string): Error {
  const log = stateFiles(lab).log(role);
  return labError("LAB_ROLE_FAILED", `${role} did not become ready: ${why}; its log is ${log}: ${tail(log)}`);
}

/** The last words of a log, for a message. */
export function tail(file: string, lines = 3): string {
  try {
    return readFileSync(file, "utf8").trimEnd().split("\n").slice(-lines).join(" | ").slice(-600);
  } catch {
    return "(empty)";
  }
}
