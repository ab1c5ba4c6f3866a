import { extname } from "node:path";
import { Worker } from "node:worker_threads";
import { MailboxSender, type MailboxStart } from "./mailbox.ts";
import type { ThreadStart } from "./messages.ts";
import type { ThreadPort } from "./threads.ts";

/** What the worker is started with. */
export interface WorkerStart extends ThreadStart {
  readonly mailbox: MailboxStart;
}

/** Starts a data thread as a worker of this process. */
export function startWorker(start: ThreadStart): ThreadPort {
  // The same file beside this one, whether the sources run or what was made of them.
  const entry = new URL(`./data-worker${extname(import.meta.filename)}`, import.meta.url);
  // Descriptors of namespaces are opened on one thread and closed on another: no thread keeps book of them.
  const mailbox = new MailboxSender();
  const workerData: WorkerStart = { ...start, mailbox: mailbox.start };
  const worker = new Worker(entry, { workerData, transferList: [mailbox.start.port], trackUnmanagedFds: false });
  return {
    post: (message) => {
      mailbox.post(message);
    },
    recordsTaken: () => {
      mailbox.recordsTaken();
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
      mailbox.close();
    },
  };
}
