import { existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { runCommand, tryCommand } from "./commands.ts";
import { mountMark, netnsPath, type LabLayout, type NodeLayout } from "./layout.ts";
import { holdsNamespace } from "./state.ts";

/**
 * What a node has for itself besides its network: a hostname and a /run of its own, so that the sockets of its roles
 * (/run/veil, /var/run/ztunnel) and what its kubelet mounts are its own. Both namespaces are held by files, not by a
 * process: nothing that is killed takes them away, and they go with the lab's folder.
 */
const SETUP = String.raw`
set -eu
lab=$1 node=$2 mark=$3 name=$4 program=$5
run=$node/run
mkdir -p "$run"
mount -n -t tmpfs -o mode=755,size=512m "$mark" "$run"
mkdir -p "$run/veil" "$run/ztunnel" "$run/netns" "$run/lock" "$run/wireguard" "$run$(echo "$lab" | cut -c5-)"
mount -n --bind "$lab" "$run$(echo "$lab" | cut -c5-)"
ln -s "$node/kubelet" "$run/kubelet"
resolv=$(readlink -f /etc/resolv.conf || true)
case $resolv in /run/*) mkdir -p "$run$(dirname "$resolv" | cut -c5-)"; cp "$resolv" "$run$(echo "$resolv" | cut -c5-)" || : ;; esac
case $program in /run/*) mkdir -p "$run$(echo "$program" | cut -c5-)"; mount -n --rbind "$program" "$run$(echo "$program" | cut -c5-)" ;; esac
[ -L /var/run ] || mount -n --bind "$run" /var/run
mount -n --move "$run" /run
mount -n --make-rshared /
hostname "$name"
: >"$node/ready"
`;

/** Makes a node's mount and UTS namespace. Does nothing when they are there. `program`: the copy of Veil that it runs. */
export async function ensureNodeNamespaces(lab: LabLayout, node: NodeLayout, program: string): Promise<void> {
  const ready = `${node.folder}/ready`;
  if (existsSync(ready) && holdsNamespace(node.mountNamespace) && holdsNamespace(node.utsNamespace)) return;
  rmSync(ready, { force: true });
  mkdirSync(node.folder, { recursive: true, mode: 0o755 });
  for (const file of [node.mountNamespace, node.utsNamespace]) {
    await tryCommand(["umount", "-l", file]); // half made, when the last try was killed
    mkdirSync(file.slice(0, file.lastIndexOf("/")), { recursive: true });
    writeFileSync(file, "");
  }
  await runCommand([
    "unshare",
    `--mount=${node.mountNamespace}`,
    `--uts=${node.utsNamespace}`,
    "--propagation=slave",
    "--",
    "sh",
    "-c",
    SETUP,
    "sh",
    lab.folder,
    node.folder,
    mountMark(lab, node),
    node.name,
    program,
  ]);
}

/** The words that run a command inside a node: its network, its mounts, its hostname. */
export function enterNode(node: NodeLayout): string[] {
  return [
    "nsenter",
    `--net=${netnsPath(node.netns)}`,
    `--mount=${node.mountNamespace}`,
    `--uts=${node.utsNamespace}`,
    "--",
  ];
}
