import { writeFileSync } from "node:fs";
import { ipToBytes, parseIp } from "#base/ip";
import { inNetns, openNetns } from "#linux";
import { runCommand, runIp, tryCommand } from "./commands.ts";
import {
  CONTROL_ADDRESS,
  netnsPath,
  nodeLayouts,
  SERVICE_RANGE,
  UNDERLAY_INTERFACE,
  UNDERLAY_MTU,
  type LabLayout,
  type NodeLayout,
} from "./layout.ts";
import { holdsNamespace } from "./state.ts";

const BRIDGE = "br0";

/** Settings of every namespace of a lab: packets are forwarded, and a source address may be another pod's. */
const SYSCTLS: Readonly<Record<string, string>> = {
  "net/ipv4/ip_forward": "1",
  "net/ipv4/conf/all/rp_filter": "0",
  "net/ipv4/conf/default/rp_filter": "0",
  "net/ipv4/ping_group_range": "0 2147483647",
};

/** Makes the switch: a namespace with nothing but a bridge. Does nothing when it is there. */
export async function ensureSwitch(lab: LabLayout): Promise<void> {
  await ensureNetns(lab.switchNetns);
  if (await hasLink(lab.switchNetns, BRIDGE)) return;
  await runIp(lab.switchNetns, [
    "link set lo up",
    // Without spanning tree and multicast snooping a port forwards from the moment that it is up.
    `link add ${BRIDGE} mtu ${UNDERLAY_MTU} type bridge stp_state 0 mcast_snooping 0`,
    `link set ${BRIDGE} up`,
  ]);
}

/** Makes the control namespace and its place on the switch. */
export async function ensureControl(lab: LabLayout): Promise<void> {
  await ensureNetns(lab.controlNetns);
  await ensurePort(lab, { netns: lab.controlNetns, port: "control", address: CONTROL_ADDRESS });
}

/** Makes a node's network namespace: `eth0` on the switch and the range of services. Routes to pods: {@link routePods}. */
export async function ensureNode(lab: LabLayout, node: NodeLayout): Promise<void> {
  await ensureNetns(node.netns);
  await ensurePort(lab, { netns: node.netns, port: node.name, address: node.address });
  // Service addresses are rewritten on the way out, but the kernel wants a route before it lets a packet be rewritten.
  await runIp(node.netns, [`route replace ${SERVICE_RANGE} dev ${UNDERLAY_INTERFACE} src ${node.address}`]);
}

/** Gives the control namespace and every node the way to the pods of the (other) nodes. */
export async function routePods(lab: LabLayout, count: number): Promise<void> {
  const nodes = nodeLayouts(lab, count);
  const routes = (self: NodeLayout | undefined): string[] =>
    nodes
      .filter((node) => node !== self)
      .map((node) => `route replace ${node.podRange} via ${node.address} dev ${UNDERLAY_INTERFACE}`);
  await Promise.all([
    runIp(lab.controlNetns, routes(undefined)),
    ...nodes.map((node) => runIp(node.netns, routes(node))),
  ]);
}

/** Asks the kernel for what redirection will need, so that its lack is known before pods run into it. */
export async function checkNft(netns: string): Promise<void> {
  const rules = `table ip veil_probe {
  chain output {
    type nat hook output priority -100
    tcp flags & (fin | syn | rst | ack) == syn ct state new redirect to :1
  }
}
delete table ip veil_probe
`;
  await runCommand(["nft", "-f", "-"], rules, netns);
}

/** Removes a named network namespace; what runs in it must have ended. Does nothing when there is none. */
export async function removeNetns(netns: string): Promise<void> {
  await tryCommand(["ip", "netns", "delete", netns]);
}

async function ensureNetns(netns: string): Promise<void> {
  if (!holdsNamespace(netnsPath(netns))) {
    await removeNetns(netns); // a file without a namespace: whoever made it was killed in between
    await runCommand(["ip", "netns", "add", netns]);
  }
  // Also in one that was there: whoever made it may have been killed before it came to this.
  using handle = openNetns(netnsPath(netns));
  inNetns(handle, () => {
    for (const [name, value] of Object.entries(SYSCTLS)) writeFileSync(`/proc/sys/${name}`, value);
  });
}

async function ensurePort(lab: LabLayout, end: { netns: string; port: string; address: string }): Promise<void> {
  const { netns, port, address } = end;
  if (!(await hasAddress(netns, address))) {
    await tryCommand(["ip", "link", "delete", port], "", lab.switchNetns); // half a port, when the last try was killed
    await tryCommand(["ip", "link", "delete", UNDERLAY_INTERFACE], "", netns);
    await runIp(lab.switchNetns, [
      `link add ${port} mtu ${UNDERLAY_MTU} type veth peer name ${UNDERLAY_INTERFACE} mtu ${UNDERLAY_MTU} address ${hardwareAddress(address)} netns ${netns}`,
      `link set ${port} master ${BRIDGE} up`,
    ]);
    await runIp(netns, [
      "link set lo up",
      // Kept there too, the address outlives the link, and with it the routes to the node's pods that name it as source.
      `address replace ${address}/32 dev lo`,
      `link set ${UNDERLAY_INTERFACE} up`,
      `address add ${address}/24 dev ${UNDERLAY_INTERFACE}`,
    ]);
  }
}

/** The same for the same address, so that neighbours find a link that was made again. Locally administered (RFC 9542). */
function hardwareAddress(ip: string): string {
  const tail =
    Buffer.from(ipToBytes(parseIp(ip)))
      .toString("hex")
      .match(/../g) ?? [];
  return ["02", "00", ...tail].join(":");
}

async function hasLink(netns: string, link: string): Promise<boolean> {
  return (await tryCommand(["ip", "link", "show", link, "up"], "", netns)).stdout !== "";
}

async function hasAddress(netns: string, address: string): Promise<boolean> {
  const { stdout } = await tryCommand(["ip", "address", "show", "dev", UNDERLAY_INTERFACE, "up"], "", netns);
  return stdout.includes(` ${address}/`);
}

/** Interface and addresses of a namespace on the underlay, as the kernel tells them. */
export async function underlayAddresses(netns: string): Promise<string[]> {
  const { code, stdout } = await tryCommand(["ip", "-j", "address", "show", "dev", UNDERLAY_INTERFACE], "", netns);
  if (code !== 0) return [];
  const [link] = JSON.parse(stdout) as { addr_info?: { local?: string; prefixlen?: number }[] }[]; // iproute2's own form
  return (link?.addr_info ?? []).map(({ local, prefixlen }) => `${local ?? ""}/${prefixlen ?? ""}`);
}
