import type { Proxy, ProxyOptions } from "./role.ts";
import { startWorker } from "./worker-port.ts";

/**
 * Puts a proxy together. The data threads begin to load first, beside the rest: after a crash every part of a second
 * counts. The rest is loaded now and not before, so that the supervisor, which never needs it, stays small.
 */
export async function createProxy(options: ProxyOptions): Promise<Proxy> {
  const ports = Array.from({ length: options.threads }, () => startWorker({ config: options.config }));
  const { assembleProxy } = await import("./role.ts");
  return assembleProxy(options, ports);
}
