import {
  API_PORT,
  CONTROL_ADDRESS,
  DNS_ADDRESS,
  netnsPath,
  nodeLayouts,
  SERVICE_RANGE,
  type LabLayout,
  type NodeLayout,
} from "./layout.ts";
import { enterNode } from "./node-namespaces.ts";
import type { LabSpec, RoleSpec } from "./state.ts";

/** The API as the nodes see it. */
export const API_URL = `https://${CONTROL_ADDRESS}:${API_PORT}`;

/** The descriptor on which the API server finds its listening socket of the user's namespace. */
const LISTENER_FD = 3;

/** The kubeconfig of a node's kubelet. */
export function nodeKubeconfig(node: NodeLayout): string {
  return `${node.folder}/kubeconfig`;
}

/** Where a node's kubelet keeps its state. Its pods' processes are marked with this path: no two kubelets may share it. */
function kubeletState(node: NodeLayout): string {
  return `${node.folder}/kubelet`;
}

/** The API server: the only role that runs before anything else can be set up. */
export function apiserverRole(lab: LabLayout, spec: LabSpec): RoleSpec {
  return {
    name: "apiserver",
    node: undefined,
    inheritsListener: true,
    command: [
      "nsenter",
      `--net=${netnsPath(lab.controlNetns)}`,
      "--",
      spec.program,
      "apiserver",
      "--data",
      lab.apiserverData,
      "--listen",
      `${CONTROL_ADDRESS}:${API_PORT}`,
      "--listen",
      `fd:${LISTENER_FD}`,
      "--advertise",
      `${CONTROL_ADDRESS}:${API_PORT}`,
      "--service-cidr",
      SERVICE_RANGE,
    ],
  };
}

/** All roles of a lab that are not pods. */
export function allRoles(lab: LabLayout, spec: LabSpec): RoleSpec[] {
  return [
    apiserverRole(lab, spec),
    controllersRole(lab, spec),
    ...nodeLayouts(lab, spec.nodes).map((node) => kubeletRole(spec, node)),
  ];
}

function controllersRole(lab: LabLayout, spec: LabSpec): RoleSpec {
  return {
    name: "controllers",
    node: undefined,
    inheritsListener: false,
    command: [
      "nsenter",
      `--net=${netnsPath(lab.controlNetns)}`,
      "--",
      spec.program,
      "lab",
      "controllers",
      "--kubeconfig",
      `${lab.apiserverData}/admin.kubeconfig`,
    ],
  };
}

function kubeletRole(spec: LabSpec, node: NodeLayout): RoleSpec {
  return {
    name: `kubelet-${node.name}`,
    node: node.name,
    inheritsListener: false,
    command: [
      ...enterNode(node),
      spec.program,
      "lab",
      "kubelet",
      "--node",
      node.name,
      "--kubeconfig",
      nodeKubeconfig(node),
      "--state",
      kubeletState(node),
      "--address",
      node.address,
      "--pod-cidr",
      node.podRange,
      "--dns",
      DNS_ADDRESS,
    ],
  };
}
