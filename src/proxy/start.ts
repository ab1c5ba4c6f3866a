import type { Service } from "#base/service";
import type { Proxy, ProxyOptions } from "./role.ts";
import { startWorker } from "./worker-port.ts";

/**
 * To load leaves a quarter of the process's memory behind as garbage. By then it is over; on a busy machine, where
 * everything had to be compiled, the second time.
 */
const LOADED_MS = [5_000, 60_000];

/**
 * Niceness of the main thread and of V8's helpers beside the data threads: a push of the whole table and a dump keep a processor busy for
 * seconds, and connections are not to wait for that. It still gets a tenth of what a data thread gets when all are busy.
 */
const NICENESS = 10;
/** From when on after its start: while it takes the pods over, all their connections wait for the main thread. */
const SETTLED_MS = 3_000;

/**
 * Puts a proxy together. The data threads begin to load first, beside the rest: after a crash every part of a second
 * counts. The rest is loaded now and not before, so that the supervisor, which never needs it, stays small.
 */
export async function createProxy(options: ProxyOptions): Promise<Proxy> {
  const ports = Array.from({ length: options.threads }, () => startWorker({ config: options.config }));
  const [{ assembleProxy }, { collectGarbage, lowerHelpers, lowerPriority }] = await Promise.all([
    import("./role.ts"),
    import("#linux"),
  ]);
  const { services, failure } = assembleProxy(options, ports);
  for (const delayMs of LOADED_MS) {
    options.clock.after(delayMs, () => {
      for (const port of ports) port.post({ type: "collect" });
      collectGarbage();
    });
  }
  const settling: Service = {
    name: "priority",
    start: () => {
      options.clock.after(SETTLED_MS, () => {
        lowerPriority(NICENESS); // the data threads run: they keep theirs
        lowerHelpers(NICENESS);
      });
      return Promise.resolve();
    },
    drain: () => Promise.resolve(),
  };
  return { services: [settling, ...services], failure };
}
