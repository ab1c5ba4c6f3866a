import type { Proxy, ProxyOptions } from "./role.ts";

/** Puts a proxy together. Its code is loaded now and not before: the supervisor, which never needs it, stays small. */
export async function createProxy(options: ProxyOptions): Promise<Proxy> {
  const { assembleProxy } = await import("./role.ts");
  return assembleProxy(options);
}
