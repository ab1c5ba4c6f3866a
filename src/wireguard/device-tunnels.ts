import { Backoff } from "#base/backoff";
import { every, sleep, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import { parseCidr, parseIp, isV6, type Cidr, type IpAddress } from "#base/ip";
import type { Log } from "#base/log";
import type { Random } from "#base/random";
import { deleteRoute, findLink, listRoutes, replaceRoute, setLink, type Netns } from "#linux";
import type { Backend, PeerChange } from "./backend.ts";
import { Echo } from "./echo.ts";
import { wireguardError } from "./errors.ts";
import { generateKeyPair } from "./keys.ts";
import type { ProbeEcho, Slot, SlotPeer, SlotStatus, Tunnels } from "./slots.ts";
import { ENCRYPTED_MARK, installRules, relaxReversePath, removeWays, routeEchoes, TABLES, tunnelMtu } from "./ways.ts";

/** Keepalive of the side that starts handshakes, seconds. */
const KEEPALIVE_SECONDS = 25;
/** How often the underlay's MTU is looked at. */
const MTU_POLL_MS = 2_000;
const RESTART = { initialMs: 20, maxMs: 5_000 };
const SLOTS = [0, 1] as const;

/** What a node's two devices are made of. */
export interface DeviceTunnelsOptions {
  readonly backend: Backend;
  readonly netns: Netns;
  readonly devices: Readonly<Record<Slot, string>>;
  readonly ports: Readonly<Record<Slot, number>>;
  /** The node's addresses in the underlay: one of each family at most. */
  readonly addresses: readonly IpAddress[];
  /** Ranges of this node's own pods. */
  readonly podRanges: readonly Cidr[];
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
}

/**
 * A node's two devices, their routes and echoes. Devices, rules and routes outlive it; {@link DeviceTunnels.removeAll} takes them away.
 *
 *     closed ── open ──▶ open ── device lost ──▶ made anew without key and peers, listeners told ──▶ open
 */
export class DeviceTunnels implements Tunnels {
  readonly #options: DeviceTunnelsOptions;
  readonly #echoes = new Map<Slot, Echo>();
  readonly #lost = new Set<(slot: Slot) => void>();
  readonly #stop = new AbortController();
  /** Slots that are being made anew, and how often they were lost meanwhile. */
  readonly #restarting = new Map<Slot, number>();
  #stopPolling = (): void => {};

  constructor(options: DeviceTunnelsOptions) {
    this.#options = options;
  }

  /** Makes the devices, or finds those of an earlier agent as they are. Throws `WIREGUARD_BACKEND`, `WIREGUARD_UNDERLAY`, `LINUX_SYSCALL`. */
  async open(): Promise<void> {
    const { netns, devices, clock, log } = this.#options;
    this.#mtu(); // an address that nobody has is told before anything is made
    for (const slot of SLOTS) await this.#openSlot(slot);
    installRules(this.#options);
    const refused = relaxReversePath(netns, [devices[0], devices[1]]);
    if (refused.length > 0)
      log.warn({ settings: refused }, "settings cannot be written: packets may be dropped on their way back");
    this.#stopPolling = every(clock, MTU_POLL_MS, () => this.#followMtu());
  }

  /** Lets go; devices, rules and routes stay as they are. */
  close(): void {
    this.#stop.abort(new Error("closed"));
    this.#stopPolling();
    this.#options.backend.close();
    for (const echo of this.#echoes.values()) echo[Symbol.dispose]();
  }

  /** Takes devices, rules and routes away. Packets go their plain way from then on. */
  async removeAll(): Promise<void> {
    const { netns, backend, devices } = this.#options;
    this.close();
    removeWays(netns);
    for (const slot of SLOTS) await backend.remove(devices[slot]);
  }

  async rekey(slot: Slot, peers: readonly SlotPeer[]): Promise<string> {
    const { backend, devices } = this.#options;
    using pair = generateKeyPair();
    const { privateKey, publicKey } = pair;
    const change = { replacePeers: true, privateKey, peers: peers.map((peer) => changeOf(peer)) };
    await backend.configure(devices[slot], change);
    return publicKey;
  }

  async install(slot: Slot, peer: SlotPeer, replacing?: string): Promise<void> {
    const { backend, devices } = this.#options;
    // Also when the key stays: an entry that is made anew begins a handshake at once.
    const before = replacing === undefined ? [] : [{ publicKey: replacing, remove: true }];
    await backend.configure(devices[slot], { peers: [...before, changeOf(peer)] });
  }

  async remove(slot: Slot, publicKey: string): Promise<void> {
    const { backend, devices } = this.#options;
    await backend.configure(devices[slot], { peers: [{ publicKey, remove: true }] });
  }

  async status(slot: Slot): Promise<SlotStatus> {
    const { backend, devices } = this.#options;
    const { publicKey, peers } = await backend.read(devices[slot]);
    return { publicKey, peers: new Map(peers.map((peer) => [peer.publicKey, peer])) };
  }

  async probe(slot: Slot, peer: SlotPeer, { deadlineMs, full = false }: ProbeEcho): Promise<boolean> {
    const packetBytes = full ? this.#link(this.#options.devices[slot]).mtu : 0;
    return (await this.#echoes.get(slot)?.ask(parseIp(peer.endpoint), { deadlineMs, packetBytes })) ?? false;
  }

  route(peer: SlotPeer, slot: Slot | undefined): Promise<void> {
    const { netns, devices } = this.#options;
    const link = slot === undefined ? undefined : this.#link(devices[slot]).index;
    for (const destination of podRangesOf(peer)) {
      if (link !== undefined) {
        replaceRoute(netns, { table: TABLES.pods, destination, link });
        continue;
      }
      for (const route of listRoutes(netns, isV6(destination.address) ? 6 : 4, TABLES.pods)) {
        if (isEqual(route.destination, destination)) deleteRoute(netns, route);
      }
    }
    return Promise.resolve();
  }

  onLost(listener: (slot: Slot) => void): () => void {
    this.#lost.add(listener);
    return () => {
      this.#lost.delete(listener);
    };
  }

  async #openSlot(slot: Slot): Promise<void> {
    const { backend, netns, devices, ports, addresses, clock, random } = this.#options;
    const device = devices[slot];
    const how = await backend.open(device, () => void this.#restart(slot));
    const { listenPort, mark } = await backend.read(device);
    // The same port again would lose what arrives meanwhile: only what differs is set.
    if (listenPort !== ports[slot] || mark !== ENCRYPTED_MARK.value) {
      await backend.configure(device, { listenPort: ports[slot], mark: ENCRYPTED_MARK.value });
    }
    const link = this.#link(device);
    const mtu = this.#mtu();
    if (link.mtu !== mtu || !link.up) setLink(netns, link.index, { mtu, up: true });
    routeEchoes(netns, slot, link.index);
    this.#echoes.get(slot)?.[Symbol.dispose]();
    this.#echoes.set(slot, new Echo({ netns, device, addresses, clock, random }));
    this.#options.log.info(
      { device, how, backend: backend.kind, version: backend.version, mtu },
      "tunnel device is there",
    );
  }

  /** Makes a device anew whose process has ended. Its interface, and the routes to it, have stayed: nothing went another way. */
  async #restart(slot: Slot): Promise<void> {
    const { clock, random, log, devices } = this.#options;
    const losses = (this.#restarting.get(slot) ?? 0) + 1;
    this.#restarting.set(slot, losses);
    if (losses > 1) return; // whoever makes it anew begins again
    const backoff = new Backoff(RESTART, random);
    log.warn({ device: devices[slot] }, "tunnel device is lost");
    while (!this.#stop.signal.aborted) {
      const before = this.#restarting.get(slot);
      try {
        await this.#openSlot(slot);
        if (this.#restarting.get(slot) === before) {
          this.#restarting.delete(slot);
          for (const listener of this.#lost) listener(slot);
          return;
        }
      } catch (error) {
        log.error({ device: devices[slot], reason: messageOf(error) }, "tunnel device cannot be made anew");
      }
      await sleep(clock, backoff.next(), this.#stop.signal).catch(() => undefined); // closed: the loop looks
    }
  }

  #followMtu(): void {
    const { netns, devices, log } = this.#options;
    try {
      const mtu = this.#mtu();
      for (const slot of SLOTS) {
        const link = findLink(netns, devices[slot]);
        if (link === undefined || link.mtu === mtu) continue;
        setLink(netns, link.index, { mtu });
        log.info({ device: link.name, mtu }, "tunnel follows the size of the underlay");
      }
    } catch (error) {
      log.warn({ reason: messageOf(error) }, "size of the underlay cannot be read");
    }
  }

  #mtu(): number {
    return tunnelMtu(this.#options.netns, this.#options.addresses);
  }

  #link(device: string): { readonly index: number; readonly mtu: number; readonly up: boolean } {
    const link = findLink(this.#options.netns, device);
    if (link === undefined)
      throw wireguardError("WIREGUARD_DEVICE", `there is no interface ${device}`, { details: { device } });
    return link;
  }
}

function changeOf({ publicKey, endpoint, port, allowedIps, initiator }: SlotPeer): PeerChange {
  return {
    publicKey,
    endpoint: { ip: parseIp(endpoint), port },
    keepaliveSeconds: initiator ? KEEPALIVE_SECONDS : 0,
    allowedIps,
  };
}

/** Where a node's pods are: what it may speak for, but for its own addresses. */
function podRangesOf({ allowedIps }: SlotPeer): Cidr[] {
  return allowedIps.map(parseCidr).filter(({ address, length }) => length < (isV6(address) ? 128 : 32));
}

function isEqual(a: Cidr, b: Cidr): boolean {
  return a.address === b.address && a.length === b.length;
}
