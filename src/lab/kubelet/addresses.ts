import { createHash } from "node:crypto";
import { bytesToIp, ipToBytes, parseCidr, type IpAddress } from "#base/ip";
import { kubeletError } from "./errors.ts";

/**
 * The addresses of a node's pod range. The network address, the first (the node itself: the pods' gateway) and the last
 * are never given out. An address that was given back is used again as late as possible.
 */
export class AddressPool {
  readonly gateway: IpAddress;
  readonly prefixLength: number;
  readonly #first: number;
  readonly #size: number;
  readonly #taken = new Set<string>();
  #next = 2;

  constructor(range: string) {
    const cidr = parseCidr(range);
    const base = new DataView(ipToBytes(cidr.address).buffer).getUint32(0);
    this.#size = 2 ** (32 - cidr.length);
    this.#first = base - (base % this.#size);
    this.prefixLength = cidr.length;
    this.gateway = this.#at(1);
  }

  /** Takes a free address. Throws `KUBELET_NO_ADDRESS`. */
  take(): IpAddress {
    for (let tries = 0; tries < this.#size; tries++) {
      const offset = this.#next;
      this.#next = offset + 1 >= this.#size - 1 ? 2 : offset + 1;
      const ip = this.#at(offset);
      if (offset < this.#size - 1 && !this.#taken.has(ip)) {
        this.#taken.add(ip);
        return ip;
      }
    }
    throw kubeletError("KUBELET_NO_ADDRESS", `all ${this.#taken.size} addresses of the pod range are in use`);
  }

  /** Marks an address as taken, that of a pod which was running before. */
  hold(ip: string): void {
    this.#taken.add(ip);
  }

  release(ip: string): void {
    this.#taken.delete(ip);
  }

  #at(offset: number): IpAddress {
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setUint32(0, this.#first + offset);
    return bytesToIp(bytes);
  }
}

/** The name of the node's end of a pod's link: 15 characters, as the kernel allows. */
export function hostInterfaceName(uid: string): string {
  return `veth${createHash("sha256").update(uid).digest("hex").slice(0, 11)}`;
}

/** Hardware addresses made from the pod's address: both ends know the other's, and no ARP is needed. */
export function hardwareAddresses(ip: IpAddress): { pod: string; host: string } {
  const tail = Buffer.from(ipToBytes(ip)).toString("hex").match(/../g)?.join(":") ?? "";
  return { pod: `0a:00:${tail}`, host: `ee:00:${tail}` };
}
