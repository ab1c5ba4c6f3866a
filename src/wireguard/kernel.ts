import { release } from "node:os";
import { every, type Clock } from "#base/clock";
import { askNetlink, deleteLink, findLink, makeLink, NETLINK, NLM_F, type Netns } from "#linux";
import type { Backend, DeviceChange, DeviceState } from "./backend.ts";
import { wireguardError } from "./errors.ts";
import { CONTROLLER, decodeDevice, decodeFamily, encodeChange, encodeFamilyQuestion, encodeGet } from "./genetlink.ts";

/** How often it is looked whether a device is still there: somebody may remove its link. */
const LOOK_MS = 1_000;
const PROBE = "veil_probe0";

/** True when this kernel has WireGuard: a device is made in the namespace, and removed at once. */
export function hasKernelWireguard(netns: Netns): boolean {
  const made = makeLink(netns, PROBE, "wireguard");
  if (made) deleteLink(netns, PROBE);
  return made;
}

/**
 * The kernel's own devices. They have no process: keys and sessions stay whatever ends, until the link is removed. Its messages are
 * tested byte by byte; no machine of this project's tests has a kernel with WireGuard: not measured here.
 */
export class KernelBackend implements Backend {
  readonly kind = "kernel";
  readonly version = release();
  readonly #netns: Netns;
  readonly #clock: Clock;
  readonly #looks = new Map<string, () => void>();
  #family: number | undefined;

  constructor({ netns, clock }: { readonly netns: Netns; readonly clock: Clock }) {
    this.#netns = netns;
    this.#clock = clock;
  }

  open(device: string, onGone: () => void): Promise<"made" | "found"> {
    this.#looks.get(device)?.();
    const found = findLink(this.#netns, device) !== undefined;
    if (!found && !makeLink(this.#netns, device, "wireguard")) {
      throw wireguardError("WIREGUARD_BACKEND", "this kernel has no WireGuard");
    }
    const stop = every(this.#clock, LOOK_MS, () => {
      if (findLink(this.#netns, device) !== undefined) return;
      stop();
      onGone();
    });
    this.#looks.set(device, stop);
    return Promise.resolve(found ? "found" : "made");
  }

  configure(device: string, change: DeviceChange): Promise<void> {
    const messages = encodeChange(device, change);
    try {
      for (const body of messages) {
        const { errno } = askNetlink(this.#netns, NETLINK.generic, { type: this.#type(), flags: NLM_F.ack, body });
        if (errno !== 0) throw refused(device, errno);
      }
    } finally {
      for (const message of messages) message.fill(0);
    }
    return Promise.resolve();
  }

  read(device: string): Promise<DeviceState> {
    const request = { type: this.#type(), flags: NLM_F.dump, body: encodeGet(device) };
    const { errno, parts } = askNetlink(this.#netns, NETLINK.generic, request);
    if (errno !== 0) throw refused(device, errno);
    return Promise.resolve(decodeDevice(parts));
  }

  remove(device: string): Promise<void> {
    this.#looks.get(device)?.();
    deleteLink(this.#netns, device);
    return Promise.resolve();
  }

  close(): void {
    for (const stop of this.#looks.values()) stop();
  }

  /** The number that the kernel has given to the family; it is loaded with the first device. */
  #type(): number {
    if (this.#family !== undefined) return this.#family;
    const request = { type: CONTROLLER.type, flags: NLM_F.ack, body: encodeFamilyQuestion() };
    const { parts } = askNetlink(this.#netns, NETLINK.generic, request);
    this.#family = parts.map(decodeFamily).find((type) => type !== undefined);
    if (this.#family === undefined) throw wireguardError("WIREGUARD_BACKEND", "this kernel has no WireGuard");
    return this.#family;
  }
}

function refused(device: string, errno: number): Error {
  return wireguardError("WIREGUARD_DEVICE", `the kernel refused a request for ${device}: errno ${errno}`, {
    details: { device, errno },
  });
}
