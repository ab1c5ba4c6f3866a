import { rmSync } from "node:fs";
import { deleteLink, type Netns } from "#linux";
import { Firewall } from "./firewall.ts";
import { SOCKET_FOLDER } from "./userspace.ts";
import { hasWays, removeWays } from "./ways.ts";

/**
 * Removes what an agent has left that made tunnels: rules, routes, devices (their processes end with them), and the table of nft. Devices
 * of those names that are somebody else's stay: only where Veil's own rules lead to them are they Veil's. True when there was something.
 */
export async function removeTunnels(
  netns: Netns,
  devices: readonly string[],
  socketFolder = SOCKET_FOLDER,
): Promise<boolean> {
  if (!hasWays(netns, devices)) return false;
  for (const device of devices) {
    deleteLink(netns, device);
    rmSync(`${socketFolder}/${device}.sock`, { force: true });
  }
  await new Firewall({ netns, devices, strict: "off", clusterRanges: [] }).remove();
  removeWays(netns); // last: while they are there, a removal that was broken off is begun again
  return true;
}
