import { resourceRef, type KubeObject } from "#kube";
import type { NodeClaim } from "./peers.ts";
import { KEY_ANNOTATION, RECORD_ANNOTATION } from "./record.ts";

/** `cilium.io/v2`: where a node and its pods are, and, in annotations, its keys. Named as its node. */
export interface CiliumNode extends KubeObject {
  spec?: {
    addresses?: { type?: string; ip?: string }[];
    ipam?: { podCIDRs?: string[] };
  };
}

/** Something about a pair that an operator must know. */
interface PairProblem {
  /** The peer; empty: the node itself. */
  node: string;
  reason: string;
  message: string;
}

/** `veil.dev/v1alpha1`: what a node says of its tunnels. Named as its node, written by its agent alone. */
export interface WireGuardNode extends KubeObject {
  status?: {
    /** Every pair of the node sends on this generation of keys or a later one; -1: not yet. */
    done?: number;
    /** The generation that the agent knows of. */
    observedGeneration?: number;
    /** What carries the tunnels, and its version. */
    backend?: string;
    version?: string;
    /** Peers, and how many of them are reached on `observedGeneration`. */
    pairs?: number;
    proven?: number;
    /** Peers with one static key. */
    oneSlot?: string[];
    problems?: PairProblem[];
  };
}

/** `veil.dev/v1alpha1`, of which there is one, `cluster`: the barrier of the rotation. Its status is the controller's. */
export interface WireGuardRotation extends KubeObject {
  /** `120s`, `10m`, `6h`, or `auto`: by the size of the cluster. */
  spec?: { interval?: string };
  status?: {
    generation?: number;
    phase?: string;
    nodes?: number;
    intervalSeconds?: number;
    /** Since when `generation` is the running one, RFC 3339. */
    since?: string;
    waitingFor?: { node: string; reason: string }[];
    refused?: { node: string; reason: string; message: string }[];
  };
}

/** The kinds of the tunnels between nodes. */
export const wireguardResources = {
  ciliumNodes: resourceRef<CiliumNode>({
    group: "cilium.io",
    version: "v2",
    plural: "ciliumnodes",
    kind: "CiliumNode",
    namespaced: false,
  }),
  wireguardNodes: resourceRef<WireGuardNode>({
    group: "veil.dev",
    version: "v1alpha1",
    plural: "wireguardnodes",
    kind: "WireGuardNode",
    namespaced: false,
  }),
  wireguardRotations: resourceRef<WireGuardRotation>({
    group: "veil.dev",
    version: "v1alpha1",
    plural: "wireguardrotations",
    kind: "WireGuardRotation",
    namespaced: false,
  }),
} as const;

/** The name of the one WireGuardRotation. */
export const ROTATION_NAME = "cluster";

/** The first generation of a cluster. */
export const FIRST_GENERATION = 1;

/** What a CiliumNode claims. `foreignKeys`: whether a key without Veil's annotation counts, or is somebody else's business. */
export function claimOf(object: CiliumNode, foreignKeys: boolean): NodeClaim {
  const { name = "", annotations = {} } = object.metadata ?? {};
  const { addresses = [], ipam } = object.spec ?? {};
  return {
    node: name,
    addresses: addresses.flatMap(({ type, ip }) => (type === "InternalIP" && ip !== undefined ? [ip] : [])),
    podCidrs: ipam?.podCIDRs ?? [],
    publicKey: foreignKeys ? annotations[KEY_ANNOTATION] : undefined,
    record: annotations[RECORD_ANNOTATION],
  };
}
