import type { Clock } from "#base/clock";
import type { Netns } from "#linux";
import type { Backend } from "./backend.ts";
import { wireguardError } from "./errors.ts";
import { findUserspaceVersion, UserspaceBackend } from "./userspace.ts";

/** The back end that this machine has: tried, not asked for. Throws `WIREGUARD_BACKEND` when there is none. */
export async function chooseBackend(options: {
  readonly netns: Netns;
  /** `wireguard-go`. */
  readonly program: string;
  readonly clock: Clock;
}): Promise<Backend> {
  const { program } = options;
  const version = await findUserspaceVersion(program);
  if (version !== undefined) return new UserspaceBackend({ ...options, version });
  throw wireguardError("WIREGUARD_BACKEND", `neither this kernel nor a program ${program} has WireGuard`);
}
