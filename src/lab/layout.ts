import { labError } from "./errors.ts";

/**
 * Where everything of a lab is: a pure function of its name. Nothing of a lab has a name or a path that is not made here,
 * so that taking it down needs no memory of how far bringing it up had come.
 *
 *     veil-NAME-switch    bridge br0, MTU 1500
 *       ├─ veil-NAME-control   172.20.0.2       apiserver, controllers
 *       ├─ veil-NAME-node1     172.20.0.11      pods 10.244.1.0/24
 *       └─ veil-NAME-node2     172.20.0.12      pods 10.244.2.0/24
 */
export interface LabLayout {
  readonly name: string;
  /** The lab's own memory file system. */
  readonly folder: string;
  readonly switchNetns: string;
  readonly controlNetns: string;
  /** kubeconfig for the user: the API at 127.0.0.1 of the namespace where the lab was brought up. */
  readonly kubeconfig: string;
  readonly apiserverData: string;
}

/** One node: the same addresses in every lab, as all of them are inside namespaces. */
export interface NodeLayout {
  /** `node1`, … : name of the Node object, hostname, and port of the bridge. */
  readonly name: string;
  readonly index: number;
  readonly netns: string;
  readonly address: string;
  readonly podRange: string;
  /** State of the node's kubelet and files of its own; seen at the same path inside and outside the node. */
  readonly folder: string;
  /** Files that hold the node's mount and UTS namespaces. */
  readonly mountNamespace: string;
  readonly utsNamespace: string;
}

/** The folder of all labs. */
export const LABS_FOLDER = "/run/veil-lab";
/** Where named network namespaces are. */
export const NETNS_FOLDER = "/run/netns";
export const UNDERLAY_INTERFACE = "eth0";
export const UNDERLAY_MTU = 1500;
export const CONTROL_ADDRESS = "172.20.0.2";
export const API_PORT = 6443;
export const POD_RANGE = "10.244.0.0/16";
export const SERVICE_RANGE = "10.96.0.0/16";
export const DNS_ADDRESS = "10.96.0.10";
/**
 * The folder of files, named by pod UID, that hold the network namespaces of a node's pods: a link that every node has at
 * the same path in its own /run, so that one DaemonSet fits all nodes.
 */
export const POD_NETNS_FOLDER = "/run/kubelet/netns";
/** Most nodes of one lab. */
export const MAX_NODES = 40;

const NAME = /^[a-z0-9](?:[a-z0-9-]{0,18}[a-z0-9])?$/;

/** The layout of a lab. Throws `LAB_NAME`. */
export function labLayout(name: string): LabLayout {
  if (!NAME.test(name)) {
    throw labError("LAB_NAME", `cannot name a lab "${name}"`, { details: { name } });
  }
  const folder = `${LABS_FOLDER}/${name}`;
  return {
    name,
    folder,
    switchNetns: `veil-${name}-switch`,
    controlNetns: `veil-${name}-control`,
    kubeconfig: `${folder}/kubeconfig`,
    apiserverData: `${folder}/apiserver`,
  };
}

/** The `index`th node, counted from 1. */
export function nodeLayout(lab: LabLayout, index: number): NodeLayout {
  const name = `node${index}`;
  return {
    name,
    index,
    netns: `veil-${lab.name}-${name}`,
    address: `172.20.0.${10 + index}`,
    podRange: `10.244.${index}.0/24`,
    folder: `${lab.folder}/nodes/${name}`,
    mountNamespace: `${lab.folder}/namespaces/${name}.mnt`,
    utsNamespace: `${lab.folder}/namespaces/${name}.uts`,
  };
}

/** All nodes of a lab with `count` of them. */
export function nodeLayouts(lab: LabLayout, count: number): NodeLayout[] {
  return Array.from({ length: count }, (_, i) => nodeLayout(lab, i + 1));
}

/** True when `netns` is a name that the lab gives to a namespace. */
export function isNetnsOf(lab: LabLayout, netns: string): boolean {
  const prefix = `veil-${lab.name}-`;
  return netns.startsWith(prefix) && /^(?:switch|control|node[1-9]\d?)$/.test(netns.slice(prefix.length));
}

/** The path of a named network namespace. */
export function netnsPath(netns: string): string {
  return `${NETNS_FOLDER}/${netns}`;
}

/** The source that a node's private /run is mounted from: it marks every process of the node, pods included. */
export function mountMark(lab: LabLayout, node?: NodeLayout): string {
  return `veil-lab:${lab.name}:${node?.name ?? ""}`;
}
