import { must, run } from "../netns/harness.ts";
import {
  CONTROL_ADDRESS,
  CONTROL_NETNS,
  enterNetns,
  HOST_ADDRESS,
  HOST_LINK,
  SWITCH_NETNS,
  type NodeLayout,
} from "./layout.ts";

const BRIDGE = "br0";

/** Makes the switch, and the places of the API server and of the tests on it. */
export async function makeNetwork(): Promise<void> {
  await must(["ip", "netns", "add", SWITCH_NETNS]);
  await ip(SWITCH_NETNS, [
    "link set lo up",
    `link add ${BRIDGE} type bridge stp_state 0 mcast_snooping 0`,
    `link set ${BRIDGE} up`,
  ]);
  await attach({ netns: CONTROL_NETNS, address: CONTROL_ADDRESS, port: "control" });
  await ip(undefined, [`link add ${HOST_LINK} type veth peer name host netns ${SWITCH_NETNS}`]);
  await ip(SWITCH_NETNS, [`link set host master ${BRIDGE} up`]);
  await ip(undefined, [`link set ${HOST_LINK} up`, `address add ${HOST_ADDRESS}/24 dev ${HOST_LINK}`]);
}

/** Makes a node's network namespace and its place on the switch. */
export async function makeNodeNetwork({ netns, address, name }: NodeLayout): Promise<void> {
  await attach({ netns, address, port: name });
  // What has no better way goes to the control namespace, and no further: nothing leaves this machine.
  await ip(netns, [`route add default via ${CONTROL_ADDRESS}`]);
}

/**
 * Removes a node's network namespace, and its link at once: the kernel would remove that with the namespace, which processes that
 * are still ending hold for a while.
 */
export async function unplugNode({ netns, name }: NodeLayout): Promise<void> {
  await run(["ip", "-netns", SWITCH_NETNS, "link", "delete", name]);
  await run(["ip", "netns", "delete", netns]);
}

async function attach({ netns, address, port }: { netns: string; address: string; port: string }): Promise<void> {
  await must(["ip", "netns", "add", netns]);
  await ip(SWITCH_NETNS, [
    `link add ${port} type veth peer name eth0 netns ${netns}`,
    `link set ${port} master ${BRIDGE} up`,
  ]);
  await ip(netns, ["link set lo up", "link set eth0 up", `address add ${address}/24 dev eth0`]);
  await must([...enterNetns(netns), "sysctl", "-q", "-w", "net.ipv4.ip_forward=1"]);
}

/** Gives the API server and every node the way to the pods of the (other) nodes. */
export async function routePods(nodes: readonly { layout: NodeLayout; podRange: string }[]): Promise<void> {
  for (const netns of [CONTROL_NETNS, ...nodes.map(({ layout }) => layout.netns)]) {
    const others = nodes.filter(({ layout }) => layout.netns !== netns);
    await ip(
      netns,
      others.map(({ layout, podRange }) => `route replace ${podRange} via ${layout.address}`),
    );
  }
}

/** Runs lines of `ip` in a namespace, or in that of the tests. */
async function ip(netns: string | undefined, lines: readonly string[]): Promise<void> {
  const place = netns === undefined ? [] : ["-netns", netns];
  await must(["ip", ...place, "-batch", "-"], { input: lines.map((line) => `${line}\n`).join("") });
}
