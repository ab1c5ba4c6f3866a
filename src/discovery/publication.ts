import { hash } from "node:crypto";
import { addressName, type Address } from "#model/workload";
import { encodeAddress } from "#proto";
import { addressAlias } from "./cluster.ts";

/** An address in the form in which xDS carries it. */
export interface PublishedAddress {
  readonly name: string;
  readonly version: string;
  readonly aliases: readonly string[];
  readonly value: Uint8Array;
}

/** Encodes an address. Its version is a digest of its bytes, so that equal content is never sent twice. */
export function publish(address: Address): PublishedAddress {
  const value = encodeAddress(address);
  return {
    name: addressName(address),
    version: hash("sha256", value, "hex").slice(0, 16),
    aliases: aliases(address),
    value,
  };
}

/** Addresses of host-network workloads are those of nodes, and name nobody. */
function aliases(address: Address): string[] {
  if (address.kind === "workload") {
    return address.hostNetwork ? [] : address.addresses.map((ip) => addressAlias(address.network, ip));
  }
  return address.addresses.map(({ network, address: ip, length }) => {
    const alias = addressAlias(network, ip);
    return length === undefined ? alias : `${alias}/${length}`;
  });
}
