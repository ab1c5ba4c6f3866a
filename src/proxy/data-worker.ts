import { flushCompileCache } from "node:module";
import { parentPort, workerData } from "node:worker_threads";
import { systemClock } from "#base/clock";
import { systemRandom } from "#base/random";
import { DataThread } from "./data-thread.ts";
import { MailboxReader } from "./mailbox.ts";
import { kernelNetwork } from "./network.ts";
import type { WorkerStart } from "./worker-port.ts";

// The entry of a data thread: a DataThread between two ends of a message channel.
const port = parentPort;
if (port === null) throw new Error("this file is run as a worker thread");
const { config, mailbox } = workerData as WorkerStart; // our own main thread wrote it
const clock = systemClock();
const reader = new MailboxReader(mailbox, clock, (message) => {
  thread.handle(message);
});
const thread = new DataThread({
  config,
  clock,
  random: systemRandom,
  network: kernelNetwork,
  post: (message) => {
    port.postMessage(message, message.type === "records" ? [message.batch.text.buffer] : []);
  },
  recordsTaken: () => reader.recordsTaken,
});
// Who is killed writes no cache at its end: the next process is to find what this one has compiled.
flushCompileCache();
