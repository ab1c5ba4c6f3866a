import { existsSync } from "node:fs";

/** All addresses of both families, or of IPv4 where the kernel was started without IPv6. */
export const ANY_ADDRESS = existsSync("/proc/net/if_inet6") ? "::" : "0.0.0.0";
