import { flushCompileCache } from "node:module";
import { parentPort, workerData } from "node:worker_threads";
import { systemClock } from "#base/clock";
import { systemRandom } from "#base/random";
import { DataThread } from "./data-thread.ts";
import type { ThreadStart, ToThread } from "./messages.ts";
import { kernelNetwork } from "./network.ts";

// The entry of a data thread: a DataThread between two ends of a message channel.
const port = parentPort;
if (port === null) throw new Error("this file is run as a worker thread");
const { config } = workerData as ThreadStart; // our own main thread wrote it
const thread = new DataThread({
  config,
  clock: systemClock(),
  random: systemRandom,
  network: kernelNetwork,
  post: (message) => {
    port.postMessage(message, message.type === "records" ? [message.batch.text.buffer] : []);
  },
});
// Who is killed writes no cache at its end: the next process is to find what this one has compiled.
flushCompileCache();
port.on("message", (message: ToThread) => {
  thread.handle(message);
});
