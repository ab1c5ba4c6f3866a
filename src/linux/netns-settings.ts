import { writeFileSync } from "node:fs";
import { inNetns, type Netns } from "./netns.ts";

/**
 * What a namespace in which we listen is told (docs/adr/0064-settings-of-a-pods-namespace.md):
 *
 * - `tcp_migrate_req`: when one of two listeners on a port closes, what waits in its queues, half-open or accepted by
 *   the kernel, goes over to the other one instead of being reset (Linux 5.14 and later).
 * - `tcp_mtu_probing`: when large packets vanish without a word (a path of 1,280 bytes, ICMP filtered), TCP finds the
 *   size that passes.
 */
const SETTINGS: Readonly<Record<string, string>> = { tcp_migrate_req: "1", tcp_mtu_probing: "1" };

/**
 * Where the kernel takes settings: `/proc/sys/net` shows the namespace of the thread that opens it, wherever that folder is mounted.
 * A container's own cannot be written; its pod has the node's as well (deploy/chart).
 */
const FOLDERS = ["/proc/sys/net", "/host/proc/sys/net"];

/** Prepares a namespace for our sockets. Answers the settings that the kernel does not have, or does not let us change. */
export function prepareNetns(netns: Netns): readonly string[] {
  return inNetns(netns, () =>
    Object.entries(SETTINGS).flatMap(([name, value]) =>
      FOLDERS.some((folder) => isWritten(`${folder}/ipv4/${name}`, value)) ? [] : [name],
    ),
  );
}

function isWritten(file: string, value: string): boolean {
  try {
    writeFileSync(file, value);
    return true;
  } catch {
    return false;
  }
}
