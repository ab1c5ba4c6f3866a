import { Backoff } from "#base/backoff";
import { every, sleep } from "#base/clock";
import { messageOf } from "#base/errors";
import { findIp, isV6, parseCidr, type Cidr, type IpAddress } from "#base/ip";
import { CellSet } from "#base/metrics";
import type { Service } from "#base/service";
import { nftRedirector, type Redirector } from "#enrolment";
import { Informer, resources, type Node } from "#kube";
import { openNetns, type Netns } from "#linux";
import type { StatusPages } from "#rpc";
import {
  chooseBackend,
  DeviceTunnels,
  Firewall,
  NodeRotation,
  removeTunnels,
  SLOT_PORTS,
  wireguardMetrics,
  wireguardPeerMetrics,
  type NodeView,
} from "#wireguard";
import type { UpdateGate } from "./controller-link.ts";
import { GuardedRedirector } from "./guarded-redirector.ts";
import type { AgentOptions, WireguardAgentOptions } from "./options.ts";
import { ProtectedAddresses } from "./protected-addresses.ts";

/** The tunnels' devices. Where Cilium is, its own are called so. */
const DEVICES = { 0: "cilium_wg0", 1: "cilium_wg1" } as const;
/** How often packets in clear are counted. */
const COUNT_MS = 5_000;
const RETRY = { initialMs: 100, maxMs: 10_000 };

/** An agent's part in tunnels between nodes. */
export interface WireguardParts {
  /** In the order of their start: rules before anybody tells the proxy of enrolled pods. */
  readonly services: readonly Service[];
  readonly redirector: Redirector;
  readonly gate: UpdateGate;
  /** What the page of metrics shows of them. */
  readonly sources: StatusPages["sources"];
  /** Every pair and slot, once the devices are there. */
  readonly pages: { readonly "/wireguard": () => Promise<NodeView | undefined> };
  /** The pods that were found redirected are all there are. */
  readonly synced: () => Promise<void>;
}

/** Puts tunnels, their rules, and what tells mTLS apart together. Undefined when there are to be none. */
export function createWireguard(options: AgentOptions): WireguardParts | undefined {
  const { wireguard, client, clock, random, log: root } = options;
  if (wireguard === undefined) return undefined;
  const log = root.child({ component: "wireguard" });
  const netns = openNetns("/proc/self/ns/net");
  const { strict, double, clusterRanges } = wireguard;
  const firewall = new Firewall({ netns, devices: Object.values(DEVICES), strict, double, clusterRanges });
  const redirector = new GuardedRedirector(nftRedirector, { set: firewall, node: netns });
  const nodes = new Informer({ client, clock, random, log, ref: resources.nodes });
  const cells = new CellSet(wireguardMetrics);
  const tunnels = new NodeTunnels({ options, wireguard, netns, firewall, nodes, cells });
  return {
    services: [rules(firewall), tunnels],
    redirector,
    sources: [
      { table: wireguardMetrics, cells },
      { table: wireguardPeerMetrics, cells: { snapshot: () => tunnels.samples } },
    ],
    pages: { "/wireguard": () => tunnels.view() },
    gate: new ProtectedAddresses(firewall, log),
    synced: () => redirector.synced(),
  };
}

/** Where there are to be no tunnels: those that an earlier agent has left would lead packets to peers that know nothing of them. */
export function withoutTunnels({ log }: Pick<AgentOptions, "log">): Service {
  const start = async (): Promise<void> => {
    using netns = openNetns("/proc/self/ns/net");
    const found = await removeTunnels(netns, Object.values(DEVICES)).catch((error: unknown) => {
      log.warn({ reason: messageOf(error) }, "tunnels of an earlier agent cannot be removed");
    });
    if (found === true) log.info({}, "tunnels of an earlier agent are removed");
  };
  return { name: "without tunnels", start, drain: () => Promise.resolve() };
}

function rules(firewall: Firewall): Service {
  return { name: "wireguard rules", start: () => firewall.open(), drain: () => Promise.resolve() };
}

interface NodeTunnelsParts {
  readonly options: AgentOptions;
  readonly wireguard: WireguardAgentOptions;
  readonly netns: Netns;
  readonly firewall: Firewall;
  readonly nodes: Informer<Node>;
  readonly cells: CellSet;
}

/** Opens this node's devices once the API has told its addresses and ranges, and tells the rules where pods are. Devices outlive it. */
class NodeTunnels implements Service {
  readonly name = "wireguard";
  readonly #parts: NodeTunnelsParts;
  readonly #stop = new AbortController();
  #running: Promise<void> = Promise.resolve();
  #tunnels: DeviceTunnels | undefined;
  #rotation: NodeRotation | undefined;
  #stopCounting = (): void => {};

  constructor(parts: NodeTunnelsParts) {
    this.#parts = parts;
  }

  /** Does not wait: tunnels are not needed for enrolment. */
  start(signal: AbortSignal): Promise<void> {
    const { nodes } = this.#parts;
    const following = AbortSignal.any([signal, this.#stop.signal]);
    this.#running = this.#run(following).catch(() => undefined); // ended by the signal
    nodes.on({ upserted: () => this.#tellRanges(), deleted: () => this.#tellRanges() });
    if (this.#parts.wireguard.strict !== "off") {
      this.#stopCounting = every(this.#parts.options.clock, COUNT_MS, () => void this.#count());
    }
    return Promise.resolve();
  }

  async drain(deadlineMs: number): Promise<void> {
    this.#stop.abort();
    this.#stopCounting();
    await this.#parts.nodes.drain(deadlineMs);
    await this.#running;
    await this.#rotation?.drain(deadlineMs);
    this.#tunnels?.close();
  }

  get samples(): NodeRotation["samples"] {
    return this.#rotation?.samples ?? [];
  }

  async view(): Promise<NodeView | undefined> {
    return this.#rotation?.view();
  }

  async #run(signal: AbortSignal): Promise<void> {
    const { options, nodes } = this.#parts;
    const { clock, random, log } = options;
    await nodes.start(signal);
    const backoff = new Backoff(RETRY, random);
    while (!signal.aborted) {
      try {
        await this.#open();
        return;
      } catch (error) {
        log.error({ reason: messageOf(error) }, "tunnels cannot be opened");
      }
      await sleep(clock, backoff.next(), signal);
    }
  }

  async #open(): Promise<void> {
    const { options, wireguard, netns, nodes, cells } = this.#parts;
    const { client, clock, random, log, node } = options;
    const place = placeOf(nodes.get(options.node));
    const backend = await chooseBackend({ ...wireguard, netns, clock });
    const devices = { backend, devices: DEVICES, ports: SLOT_PORTS, ...place };
    const tunnels = new DeviceTunnels({ ...devices, netns, clock, random, log: log.child({ component: "wireguard" }) });
    try {
      await tunnels.open();
    } catch (error) {
      tunnels.close();
      throw error;
    }
    this.#tunnels = tunnels;
    this.#tellRanges();
    const shared = { client, node, tunnels, clock, random, log: log.child({ component: "wireguard" }) };
    this.#rotation = new NodeRotation({ ...shared, backend, foreignKeys: true, metrics: cells });
    await this.#rotation.start();
  }

  /** Brings the metrics of packets in clear up to date; rules that cannot be read now are read next time. */
  async #count(): Promise<void> {
    const { firewall, cells } = this.#parts;
    const counted = await firewall.countClear().catch(() => undefined);
    for (const [reason, packets] of counted ?? []) {
      cells.bind("veil_wireguard_clear_packets_total", { reason }).value = packets;
    }
  }

  /** Where this node's pods are, and those of all others. */
  #tellRanges(): void {
    const { options, firewall, nodes } = this.#parts;
    const own = rangesOf(nodes.get(options.node));
    const others = nodes.list().filter(({ metadata }) => metadata?.name !== options.node);
    const told = firewall.setRanges({ own, known: others.flatMap(rangesOf) });
    told.catch((error: unknown) =>
      options.log.error({ reason: messageOf(error) }, "ranges of pods cannot be told to the kernel"),
    );
  }
}

function rangesOf(node: Node | undefined): Cidr[] {
  const { podCIDRs = [], podCIDR } = node?.spec ?? {};
  const ranges = podCIDRs.length > 0 || podCIDR === undefined ? podCIDRs : [podCIDR];
  return ranges.flatMap((range) => findCidr(range) ?? []);
}

function findCidr(text: string): Cidr | undefined {
  try {
    return parseCidr(text);
  } catch {
    return undefined; // the API checks them: it is none of ours
  }
}

/** A node's addresses in the underlay, one of each family, and its pods' ranges. */
function placeOf(node: Node | undefined): { addresses: readonly IpAddress[]; podRanges: readonly Cidr[] } {
  const internal = (node?.status?.addresses ?? [])
    .filter(({ type }) => type === "InternalIP")
    .flatMap(({ address }) => findIp(address) ?? []);
  const addresses = [internal.find((ip) => !isV6(ip)), internal.find(isV6)].filter((ip) => ip !== undefined);
  return { addresses, podRanges: rangesOf(node) };
}
