import { mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "#base/clock";
import { parseCidr, parseIp } from "#base/ip";
import { silentLog } from "#base/log";
import { systemRandom } from "#base/random";
import { openNetns, type Netns } from "#linux";
import { DeviceTunnels, findUserspaceVersion, UserspaceBackend, type Backend, type SlotPeer } from "#wireguard";
import { must, requireRoot, run, type Outcome } from "./harness.ts";

/** One node of a small world: a namespace with an interface on the switch, and an address of a pod. */
export interface WireguardNode {
  readonly name: string;
  readonly index: number;
  readonly netns: Netns;
  readonly netnsName: string;
  readonly addresses: readonly string[];
  readonly podRanges: readonly [string, string];
  /** An address in each range, on the loopback. */
  readonly podAddresses: readonly [string, string];
  readonly socketFolder: string;
  backend(): Backend;
  tunnels(backend?: Backend): DeviceTunnels;
  /** Runs a command in the node's network; `wg` finds the node's devices. */
  exec(...command: string[]): Promise<Outcome>;
}

/** Nodes on one switch. Dispose it, also after a failure. */
export interface WireguardWorld extends AsyncDisposable {
  readonly nodes: readonly WireguardNode[];
}

/** What the devices of a node are called, and where they listen. */
export const DEVICES = { 0: "cilium_wg0", 1: "cilium_wg1" } as const;
const PORTS = { 0: 51871, 1: 51872 } as const;

/** Makes `count` nodes, whose user-space devices `program` runs. */
export async function wireguardWorld(program: string, count: number, mtu = 1500): Promise<WireguardWorld> {
  requireRoot();
  const prefix = `vt-wg-${process.pid}-`;
  const folder = mkdtempSync(join(tmpdir(), "vt-wg-"));
  const version = (await findUserspaceVersion(program)) ?? "unknown";
  const nodes = Array.from({ length: count }, (_, at) => nodeOf({ index: at + 1, prefix, folder, program, version }));
  await must(["ip", "netns", "add", `${prefix}switch`]);
  await must(["ip", "-n", `${prefix}switch`, "link", "add", "br0", "mtu", String(mtu), "up", "type", "bridge"]);
  for (const { index, netnsName } of nodes) {
    await must(["ip", "netns", "add", netnsName]);
    const lines = [
      `link add n${index} mtu ${mtu} netns ${prefix}switch up master br0 type veth peer name eth0 mtu ${mtu} netns ${netnsName}`,
    ];
    await must(["ip", "-n", `${prefix}switch`, "-batch", "-"], { input: lines.join("\n") });
    const own = [
      "link set lo up",
      "link set eth0 up",
      `address add 172.30.0.${index}/24 dev eth0`,
      `address add fd30::${index}/64 dev eth0 nodad`,
      `address add 10.30.${index}.1/32 dev lo`,
      `address add fd10:${index}::1/128 dev lo`,
    ];
    await must(["ip", "-n", netnsName, "-batch", "-"], { input: own.join("\n") });
  }
  const opened = nodes.map((node) => ({ ...node, netns: openNetns(`/run/netns/${node.netnsName}`) }));
  return {
    nodes: opened.map((node) => withActions(node)),
    async [Symbol.asyncDispose]() {
      for (const { netns, netnsName } of opened) {
        for (const pid of processesIn(netns.key)) process.kill(pid, "SIGKILL");
        netns[Symbol.dispose]();
        await run(["ip", "netns", "delete", netnsName]);
      }
      await run(["ip", "netns", "delete", `${prefix}switch`]);
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

interface NodeFacts extends Omit<WireguardNode, "backend" | "tunnels" | "exec" | "netns"> {
  readonly program: string;
  readonly version: string;
}

function nodeOf(parts: { index: number; prefix: string; folder: string; program: string; version: string }): NodeFacts {
  const { index, prefix, folder, program, version } = parts;
  const socketFolder = join(folder, `node${index}`);
  mkdirSync(socketFolder);
  return {
    name: `node${index}`,
    index,
    netnsName: `${prefix}node${index}`,
    addresses: [`172.30.0.${index}`, `fd30::${index}`],
    podRanges: [`10.30.${index}.0/24`, `fd10:${index}::/64`],
    podAddresses: [`10.30.${index}.1`, `fd10:${index}::1`],
    socketFolder,
    program,
    version,
  };
}

function withActions(node: NodeFacts & { netns: Netns }): WireguardNode {
  const { netns, netnsName, program, version, socketFolder, addresses, podRanges } = node;
  const clock = systemClock({ unref: true });
  const backend = (): Backend => new UserspaceBackend({ program, version, netns, socketFolder, clock });
  const inFolder = `mkdir -p /run/wireguard; mount -n --bind ${socketFolder} /run/wireguard; exec ip netns exec ${netnsName} "$@"`;
  return {
    ...node,
    backend,
    tunnels: (own = backend()) =>
      new DeviceTunnels({
        backend: own,
        netns,
        devices: DEVICES,
        ports: PORTS,
        addresses: addresses.map(parseIp),
        podRanges: podRanges.map(parseCidr),
        clock,
        random: systemRandom,
        log: silentLog(),
      }),
    exec: (...command) => run(["unshare", "--mount", "sh", "-ec", inFolder, "sh", ...command]),
  };
}

/** A node as another one's device has it. */
export function peerOf(node: WireguardNode, publicKey: string, slot: 0 | 1 = 0): SlotPeer {
  const [endpoint = ""] = node.addresses;
  const own = node.addresses.map((ip) => `${ip}/${ip.includes(":") ? 128 : 32}`);
  const allowedIps = [...own, ...node.podRanges];
  return { node: node.name, publicKey, endpoint, port: PORTS[slot], allowedIps, initiator: node.index > 1 };
}

/** Process ids of what runs in a network namespace. */
export function processesIn(netnsKey: string): number[] {
  const inode = netnsKey.split(":")[1] ?? "";
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name) && linkOf(`/proc/${name}/ns/net`).includes(`[${inode}]`))
    .map(Number);
}

/** The process that runs a device in user space; undefined when there is none. */
export function processOf(node: Pick<WireguardNode, "netns">, device: string): number | undefined {
  return processesIn(node.netns.key).find((pid) => textOf(`/proc/${pid}/cmdline`).endsWith(`-f\0${device}\0`));
}

function linkOf(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return ""; // it has ended
  }
}

function textOf(path: string): string {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return "";
  }
}
