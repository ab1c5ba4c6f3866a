import type { Clock } from "#base/clock";
import type { Netns } from "#linux";
import type { Backend } from "./backend.ts";
import { wireguardError } from "./errors.ts";
import { hasKernelWireguard, KernelBackend } from "./kernel.ts";
import { findUserspaceVersion, UserspaceBackend } from "./userspace.ts";

/** The back end that this machine has: tried, not asked for. Throws `WIREGUARD_BACKEND` when there is none. */
export async function chooseBackend(options: {
  readonly netns: Netns;
  /** `wireguard-go`. */
  readonly program: string;
  /** Whether the kernel is left alone. */
  readonly userspace: boolean;
  readonly clock: Clock;
}): Promise<Backend> {
  const { netns, program, userspace } = options;
  if (!userspace && hasKernelWireguard(netns)) return new KernelBackend(options);
  const version = await findUserspaceVersion(program);
  if (version !== undefined) return new UserspaceBackend({ ...options, version });
  throw wireguardError("WIREGUARD_BACKEND", `neither this kernel nor a program ${program} has WireGuard`);
}
