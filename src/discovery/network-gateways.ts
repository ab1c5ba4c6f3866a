import { findIp } from "#base/ip";
import type { Gateway } from "#kube";
import type { GatewayAddress, Workload } from "#model/workload";
import { bareWorkload, targetOf } from "./bare-workload.ts";
import type { Cluster } from "./cluster.ts";
import { Multimap } from "./multimap.ts";

/** The class of Gateways that stand for the gateway of another network; nobody runs them here. */
const REMOTE_CLASS = "istio-remote";
const NETWORK_LABEL = "topology.istio.io/network";
const ACCOUNT_ANNOTATION = "gateway.istio.io/service-account";
type Labels = Readonly<Record<string, string>>;
const NO_LABELS: Labels = {};
const NO_METADATA = { name: "", namespace: "", labels: NO_LABELS, annotations: NO_LABELS };

/** The entrance of a network, of one address of a Gateway. */
interface Entrance {
  readonly network: string;
  /** An IP address or a hostname. */
  readonly address: string;
  readonly port: number;
  readonly namespace: string;
  readonly serviceAccount: string;
}

/**
 * Through which gateway other networks are entered, as ambient multi-network installations say it: a Gateway of class
 * `istio-remote` with the label `topology.istio.io/network` and a listener of protocol `HBONE`. Each of its addresses is a
 * workload, so that proxies know whom to expect there; of several the first by name counts.
 * Source: istio pilot/pkg/serviceregistry/ambient/networks.go.
 */
export class NetworkGateways {
  readonly #cluster: Cluster;
  readonly #entrances = new Map<string, readonly Entrance[]>();
  readonly #gatewaysOf = new Multimap<string, string>();

  constructor(cluster: Cluster) {
    this.#cluster = cluster;
  }

  /** Takes a Gateway by its `namespace/name`; undefined: it is gone. Returns the networks that may be entered differently now. */
  set(key: string, gateway: Gateway | undefined): ReadonlySet<string> {
    const before = this.#entrances.get(key) ?? [];
    const now = gateway === undefined ? [] : readEntrances(gateway);
    if (JSON.stringify(before) === JSON.stringify(now)) return new Set();
    for (const { network } of before) this.#gatewaysOf.delete(network, key);
    for (const { network } of now) this.#gatewaysOf.add(network, key);
    if (now.length === 0) this.#entrances.delete(key);
    else this.#entrances.set(key, now);
    return new Set([...before, ...now].map(({ network }) => network));
  }

  /** Where another network is entered; undefined for the cluster's own (which no name is, too), and for one without a known gateway. */
  entranceOf(network = ""): GatewayAddress | undefined {
    if (network === "" || network === this.#cluster.network) return undefined;
    const [key] = [...this.#gatewaysOf.get(network)].toSorted();
    const entrance = this.#entrances.get(key ?? "")?.find((one) => one.network === network);
    if (entrance === undefined) return undefined;
    const { address, namespace, port: hboneMtlsPort } = entrance;
    const ip = findIp(address);
    return ip === undefined
      ? { destination: { kind: "hostname", namespace, hostname: address }, hboneMtlsPort }
      : { destination: { kind: "address", network, address: ip }, hboneMtlsPort };
  }

  /** The workloads that a Gateway makes: whom proxies meet at its addresses. */
  workloads(key: string): readonly Workload[] {
    return (this.#entrances.get(key) ?? []).map((entrance) => gatewayWorkload(entrance, this.#cluster));
  }
}

function readEntrances(gateway: Gateway): readonly Entrance[] {
  const { name, namespace, labels, annotations } = { ...NO_METADATA, ...gateway.metadata };
  const { gatewayClassName, listeners = [] } = gateway.spec ?? {};
  const network = labels[NETWORK_LABEL] ?? "";
  const listener = listeners.find(({ protocol }) => protocol === "HBONE");
  if (gatewayClassName !== REMOTE_CLASS || network === "" || listener?.port === undefined) return [];
  const serviceAccount = annotations[ACCOUNT_ANNOTATION] || `${name}-${REMOTE_CLASS}`;
  const { port } = listener;
  return addressesOf(gateway).map((address) => ({ network, address, port, namespace, serviceAccount }));
}

/** Those of its status, or else those that its author wrote down: IP addresses and hostnames. */
function addressesOf({ spec, status }: Gateway): readonly string[] {
  const told = status?.addresses ?? [];
  return (told.length > 0 ? told : (spec?.addresses ?? [])).flatMap(({ type = "IPAddress", value = "" }) => {
    const isKnown = type === "Hostname" ? value !== "" : type === "IPAddress" && findIp(value) !== undefined;
    return isKnown ? [value] : [];
  });
}

function gatewayWorkload(entrance: Entrance, cluster: Cluster): Workload {
  const { network, address, port, namespace, serviceAccount } = entrance;
  const uid = `NetworkGateway/${network}/${address}/${port}`;
  // No tunnel, as istiod says it: whoever goes there knows that it is a gateway.
  return { ...bareWorkload(cluster, uid), name: uid, namespace, ...targetOf(address), network, serviceAccount };
}
