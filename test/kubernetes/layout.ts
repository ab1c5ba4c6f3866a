/**
 * Where everything of the test cluster is. There is one at a time on a machine, and nothing of it has a name or a path that is not
 * made here, so that removing it needs no memory of how far making it had come.
 *
 *     vt-kube-switch    bridge br0
 *       ├─ (this machine)   198.18.77.1     vt-kube0: for kubectl and the tests
 *       ├─ vt-kube-control  198.18.77.2     etcd, API server, controller manager, scheduler
 *       ├─ vt-kube-node1    198.18.77.11    containerd, kubelet, kube-proxy, pods
 *       └─ vt-kube-node2    198.18.77.12
 */
export const NETNS_PREFIX = "vt-kube-";
export const SWITCH_NETNS = `${NETNS_PREFIX}switch`;
export const CONTROL_NETNS = `${NETNS_PREFIX}control`;
/** The link of the cluster's network in the namespace where the tests run. */
export const HOST_LINK = "vt-kube0";
export const HOST_ADDRESS = "198.18.77.1";
export const CONTROL_ADDRESS = "198.18.77.2";
export const API_URL = `https://${CONTROL_ADDRESS}:6443`;
export const POD_RANGE = "10.244.0.0/16";
export const SERVICE_RANGE = "10.96.0.0/16";
/** The first address of the services: that of `kubernetes.default`. */
export const API_SERVICE_ADDRESS = "10.96.0.1";

/** A memory file system of the cluster's own: all that it writes is in it, and is gone with it. */
export const FOLDER = "/run/vt-kubernetes";
/** Every process of the cluster, containers included, is in a cgroup of this name or below: of each controller in version 1. */
export const CGROUP = "vt-kubernetes";
/** Held by the process whose cluster it is; abstract, so the kernel gives it up with the process. */
export const LOCK = "\0vt-kubernetes";

/** The cgroup of the daemons beside the API server. */
export const CONTROL_CGROUP = "control";

export const ADMIN_KUBECONFIG = `${FOLDER}/admin.kubeconfig`;
/** Keys and certificates, in the layout of the data directory of `veil apiserver`. */
export const PKI_FOLDER = `${FOLDER}/control`;
export const LOGS = `${FOLDER}/logs`;
export const NETNS_FOLDER = "/run/netns";

/** One node: a network, mount and UTS namespace. */
export interface NodeLayout {
  /** `node1`, …: name of the Node object and hostname. */
  readonly name: string;
  readonly index: number;
  /** Name of the network namespace. */
  readonly netns: string;
  readonly address: string;
  /** Its files, seen at the same path inside and outside of the node. */
  readonly folder: string;
  /** Files that hold its namespaces. */
  readonly mountNamespace: string;
  readonly utsNamespace: string;
  /** Cgroups of its pods, and of its daemons with all that they start beside pods. */
  readonly podsCgroup: string;
  readonly daemonsCgroup: string;
}

/** The `index`th node, counted from 1. */
export function nodeLayout(index: number): NodeLayout {
  const name = `node${index}`;
  const folder = `${FOLDER}/${name}`;
  return {
    name,
    index,
    netns: `${NETNS_PREFIX}${name}`,
    address: `198.18.77.${10 + index}`,
    folder,
    mountNamespace: `${FOLDER}/namespaces/${name}.mnt`,
    utsNamespace: `${FOLDER}/namespaces/${name}.uts`,
    podsCgroup: name,
    daemonsCgroup: `${name}-daemons`,
  };
}

/** The words that run a command on a node: its network, its mounts, its hostname. */
export function enterNode(node: NodeLayout): string[] {
  return [...enterNetns(node.netns), "nsenter", `--mount=${node.mountNamespace}`, `--uts=${node.utsNamespace}`, "--"];
}

/** The words that run a command in a network namespace of the cluster, with the mounts of this machine. */
export function enterNetns(netns: string): string[] {
  return ["nsenter", `--net=${NETNS_FOLDER}/${netns}`, "--"];
}
