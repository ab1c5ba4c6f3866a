import { extname } from "node:path";
import { setFlagsFromString } from "node:v8";
import { Worker } from "node:worker_threads";
import type { ThreadStart } from "./messages.ts";
import type { ThreadPort } from "./threads.ts";

/**
 * The young generation of a data thread, where what connections need for a moment lives: three of these. It grows with
 * use up to that.
 */
const SEMI_SPACE_MIB = 4;

/** Starts a data thread as a worker of this process. */
export function startWorker(start: ThreadStart): ThreadPort {
  // The same file beside this one, whether the sources run or what was made of them.
  const entry = new URL(`./data-worker${extname(import.meta.filename)}`, import.meta.url);
  setFlagsFromString(`--max-semi-space-size=${SEMI_SPACE_MIB}`); // for isolates that are made from now on
  // Descriptors of namespaces are opened on one thread and closed on another: no thread keeps book of them.
  const worker = new Worker(entry, { workerData: start, trackUnmanagedFds: false });
  return {
    post: (message) => {
      worker.postMessage(message);
    },
    listen: ({ message, exit }) => {
      worker.on("message", message);
      worker.on("error", exit);
      worker.on("exit", (code) => {
        exit(new Error(`exit code ${code}`));
      });
    },
    terminate: async () => {
      await worker.terminate();
    },
  };
}
