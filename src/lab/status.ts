import type { Clock } from "#base/clock";
import { loadKubeConfig } from "#kube";
import { labError } from "./errors.ts";
import { API_PORT, CONTROL_ADDRESS, netnsPath, nodeLayouts, UNDERLAY_INTERFACE, type LabLayout } from "./layout.ts";
import { READY_PATH, VEIL_ROLES, type VeilRole } from "./manifests.ts";
import { underlayAddresses } from "./network.ts";
import { findUnreadiness, type ReadyEndpoint } from "./probe.ts";
import { isRunning, memoryBytes, processTree, type ProcessId } from "./processes.ts";
import { findRolePid, findSpec, findState, type LabSpec } from "./state.ts";
import { findVeilProcesses, veilRoles, type VeilProcess } from "./veil-processes.ts";

/** `ready`: it answers that it is. `not ready`: it runs, `reason` says what it answers. `down`: no such process. */
export type Health = "ready" | "not ready" | "down";

/** One role: a process (with its children) of its own. */
export interface RoleStatus {
  readonly role: "supervisor" | "apiserver" | "controllers" | "kubelet" | VeilRole;
  readonly health: Health;
  readonly reason?: string;
  /** On this machine; missing when it is down. */
  readonly pid?: number;
  /** Proportional share of memory (PSS) of the process and its children. */
  readonly memoryBytes: number;
  /** How often the lab's supervisor has started it again; missing for those that a kubelet runs. */
  readonly restarts?: number;
}

/** One node. */
export interface NodeStatus {
  readonly name: string;
  /** For `ip netns exec`. */
  readonly netns: string;
  readonly interface: string;
  /** Of the interface on the underlay, with prefix length; empty when the namespace is gone. */
  readonly addresses: readonly string[];
  readonly podRange: string;
  readonly roles: readonly RoleStatus[];
}

/** A whole lab, as `veil lab status -o json` prints it. */
export interface LabStatus {
  readonly name: string;
  /** True when every role is ready. */
  readonly ready: boolean;
  readonly kubeconfig: string;
  /** The API for this machine. */
  readonly server: string;
  readonly control: { readonly netns: string; readonly address: string; readonly roles: readonly RoleStatus[] };
  readonly nodes: readonly NodeStatus[];
}

const KUBELET_PORT = 10250;

/** Looks at a lab as it is now: processes, namespaces, and what each role answers. Throws `LAB_NOT_UP`. */
export async function labStatus(lab: LabLayout, clock: Clock): Promise<LabStatus> {
  const spec = findSpec(lab);
  if (spec === undefined) throw labError("LAB_NOT_UP", `there is no lab ${lab.name}`);
  const state = findState(lab);
  const role = (name: string): SupervisedRole => ({
    id: findRolePid(lab, name),
    restarts: state?.roles[name]?.restarts ?? 0,
  });
  const controlNetns = netnsPath(lab.controlNetns);
  const [control, nodes] = await Promise.all([
    Promise.all([
      supervised("supervisor", { id: state?.supervisor, restarts: 0 }, { clock }),
      supervised("apiserver", role("apiserver"), {
        clock,
        endpoint: {
          netns: controlNetns,
          ip: CONTROL_ADDRESS,
          port: API_PORT,
          path: "/readyz",
          tls: await adminCredentials(lab),
        },
      }),
      supervised("controllers", role("controllers"), { clock }),
    ]),
    nodeStatuses(lab, spec, { clock, role }),
  ]);
  const all = [...control, ...nodes.flatMap((node) => node.roles)];
  return {
    name: lab.name,
    ready: all.every(({ health }) => health === "ready") && all.some((entry) => entry.role === "controller"),
    kubeconfig: lab.kubeconfig,
    server: `https://127.0.0.1:${spec.port}`,
    control: { netns: lab.controlNetns, address: CONTROL_ADDRESS, roles: control },
    nodes,
  };
}

/** The API answers nobody whom it does not know. */
async function adminCredentials(lab: LabLayout): Promise<{ cert?: string | undefined; key?: string | undefined }> {
  try {
    const config = await loadKubeConfig(lab.kubeconfig);
    const { certPem, keyPem } = await config.credentials();
    return { cert: certPem, key: keyPem };
  } catch {
    return {}; // there is none yet: the API will say what it thinks of that
  }
}

interface SupervisedRole {
  readonly id: ProcessId | undefined;
  readonly restarts: number;
}

async function nodeStatuses(
  lab: LabLayout,
  spec: LabSpec,
  options: { clock: Clock; role: (name: string) => SupervisedRole },
): Promise<NodeStatus[]> {
  const { clock, role } = options;
  const processes = findVeilProcesses(lab);
  return Promise.all(
    nodeLayouts(lab, spec.nodes).map(async (node): Promise<NodeStatus> => {
      const netns = netnsPath(node.netns);
      const endpoint = { netns, ip: node.address, port: KUBELET_PORT, path: "/healthz", tls: {} };
      const [addresses, ...roles] = await Promise.all([
        underlayAddresses(node.netns),
        supervised("kubelet", role(`kubelet-${node.name}`), { clock, endpoint }),
        ...veilRoles(node, processes).map((found) => podRole(found, { netns, clock })),
      ]);
      const { name, podRange } = node;
      return { name, netns: node.netns, interface: UNDERLAY_INTERFACE, addresses, podRange, roles };
    }),
  );
}

async function supervised(
  role: RoleStatus["role"],
  { id, restarts }: SupervisedRole,
  { clock, endpoint }: { clock: Clock; endpoint?: ReadyEndpoint },
): Promise<RoleStatus> {
  if (id === undefined || !isRunning(id)) {
    return { role, health: "down", reason: "no such process: veil lab up repairs it", memoryBytes: 0, restarts };
  }
  // The supervisor's and the kubelets' children are roles and pods of their own.
  const measured = { pid: id.pid, memoryBytes: memoryBytes(id.pid), restarts };
  const reason = endpoint === undefined ? undefined : await findUnreadiness(endpoint, clock);
  return reason === undefined
    ? { role, health: "ready", ...measured }
    : { role, health: "not ready", reason, ...measured };
}

async function podRole(found: VeilProcess, { netns, clock }: { netns: string; clock: Clock }): Promise<RoleStatus> {
  const { role, pid } = found;
  if (pid === undefined)
    return { role, health: "down", reason: "no such process: the kubelet starts it", memoryBytes: 0 };
  const tree = processTree(pid);
  const measured = { pid, memoryBytes: tree.reduce((sum, each) => sum + memoryBytes(each), 0) };
  const place = role === "controller" ? `/proc/${pid}/ns/net` : netns;
  const { readyPort: port } = VEIL_ROLES[role];
  const reason = await findUnreadiness({ netns: place, ip: "127.0.0.1", port, path: READY_PATH }, clock);
  return reason === undefined
    ? { role, health: "ready", ...measured }
    : { role, health: "not ready", reason, ...measured };
}
