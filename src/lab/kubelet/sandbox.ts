import { existsSync, mkdirSync, readFileSync, statfsSync, writeFileSync } from "node:fs";
import type { IpAddress } from "#base/ip";
import { tryCommand } from "../commands.ts";
import { hardwareAddresses } from "./addresses.ts";
import { kubeletError } from "./errors.ts";
import { removePath, type PodFiles } from "./pod-files.ts";

const NSFS_MAGIC = 0x6e73_6673;
const MTU = 1500;

/** What a pod's network is made of. */
export interface SandboxPlan {
  readonly files: PodFiles;
  readonly hostname: string;
  readonly ip: IpAddress;
  readonly prefixLength: number;
  readonly gateway: IpAddress;
  /** The node's own address: what the node says when it talks to its pods. */
  readonly nodeIp: string;
  /** Name of the node's end of the link. */
  readonly veth: string;
}

/**
 * Makes a pod's network and UTS namespaces, held by files, and the link to the node: the pod has its address of the
 * node's range on `eth0` and one route, via the node; the node has a route to the one address. Nothing rewrites
 * addresses. Resolves with true when it was made, with false when it was all there. `clear` is called before anything is
 * made, and must end what runs in the remains of an older one. Throws `KUBELET_NETWORK`, and leaves nothing behind then.
 */
export async function ensureSandbox(plan: SandboxPlan, clear: () => Promise<void>): Promise<boolean> {
  const { files, veth } = plan;
  if (holdsNamespace(files.netns) && holdsNamespace(files.uts) && (await hasLink(veth))) return false;
  if (existsSync(files.netns) || existsSync(files.uts)) {
    await clear();
    await removeSandbox(files, veth);
  }
  for (const file of [files.netns, files.uts]) {
    mkdirSync(file.slice(0, file.lastIndexOf("/")), { recursive: true });
    writeFileSync(file, "");
  }
  // One program makes the namespaces, a second one inside them all of the pod's side, and the far end of its link.
  const inside = ["sh", "-c", INSIDE, "sh", plan.hostname];
  const make = ["unshare", `--net=${files.netns}`, `--uts=${files.uts}`, "--", ...inside];
  const steps: [string[], string][] = [
    [make, podSide(plan).join("\n")],
    [["ip", "-batch", "-"], nodeSide(plan).join("\n")],
  ];
  for (const [command, input] of steps) {
    const { code, stderr } = await tryCommand(command, `${input}\n`);
    if (code === 0) continue;
    await removeSandbox(files, veth);
    throw kubeletError("KUBELET_NETWORK", `cannot make the network of pod ${files.uid}: ${stderr.trim()}`);
  }
  return true;
}

/** Removes a pod's namespaces and link; what is not there is no failure. Processes inside must have ended. */
export async function removeSandbox(files: PodFiles, veth: string): Promise<void> {
  await tryCommand(["ip", "link", "delete", veth]);
  for (const file of [files.netns, files.uts]) {
    while (holdsNamespace(file)) {
      const { code } = await tryCommand(["umount", "-n", "-l", file]);
      if (code !== 0) break;
    }
    removePath(file);
  }
}

/** Makes `folder` a mount of its own that passes later mounts on: containers see (and let go of) other pods' namespaces. */
export async function shareMounts(folder: string): Promise<void> {
  mkdirSync(folder, { recursive: true });
  const mounted = readFileSync("/proc/self/mountinfo", "utf8").includes(` ${folder} `);
  if (!mounted) await tryCommand(["mount", "-n", "--bind", folder, folder]);
  await tryCommand(["mount", "-n", "--make-shared", folder]);
}

/** True when the file holds a namespace. */
function holdsNamespace(path: string): boolean {
  try {
    return statfsSync(path).type === NSFS_MAGIC;
  } catch {
    return false;
  }
}

/** Return path checks off: a source address may be another pod's, as transparent proxies use it. */
const INSIDE = `
set -eu
hostname "$1"
cd /proc/sys/net/ipv4
for name in all default; do echo 0 >conf/$name/rp_filter; done
echo 0 >ip_unprivileged_port_start
echo "0 2147483647" >ping_group_range
exec ip -batch -
`;

function podSide({ ip, prefixLength, gateway, veth }: SandboxPlan): string[] {
  const hardware = hardwareAddresses(ip);
  return [
    "link set lo up",
    `link add eth0 mtu ${MTU} address ${hardware.pod} type veth peer name ${veth} mtu ${MTU} address ${hardware.host} netns ${process.pid}`,
    `address add ${ip}/${prefixLength} dev eth0 noprefixroute`,
    "link set eth0 up",
    `route add ${gateway} dev eth0 scope link src ${ip}`,
    `neigh replace ${gateway} lladdr ${hardware.host} dev eth0 nud permanent`,
    `route add default via ${gateway} dev eth0 src ${ip}`,
  ];
}

function nodeSide({ ip, nodeIp, veth }: SandboxPlan): string[] {
  return [
    `link set ${veth} up`,
    `neigh replace ${ip} lladdr ${hardwareAddresses(ip).pod} dev ${veth} nud permanent`,
    `route replace ${ip}/32 dev ${veth} scope link src ${nodeIp}`,
  ];
}

async function hasLink(name: string): Promise<boolean> {
  return (await tryCommand(["ip", "-br", "link", "show", name, "up"])).stdout !== "";
}
