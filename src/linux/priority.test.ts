import assert from "node:assert/strict";
import { getPriority } from "node:os";
import { test } from "node:test";
import { Worker } from "node:worker_threads";

test("a thread lowers its own priority, never raises it, and leaves the process' other threads alone", async () => {
  const before = getPriority();
  const program = `
    const { lowerPriority } = await import(${JSON.stringify(new URL("./priority.ts", import.meta.url).href)});
    const { getPriority } = await import("node:os");
    const { parentPort } = await import("node:worker_threads");
    const seen = [18, 17, 19].map((niceness) => (lowerPriority(niceness), getPriority()));
    parentPort.postMessage(seen);`;
  const worker = new Worker(`(async () => {${program}})()`, { eval: true });
  const seen: unknown = await new Promise((resolve, reject) => worker.once("message", resolve).once("error", reject));
  assert.deepEqual(seen, [18, 18, 19]);
  assert.equal(getPriority(), before);
});
