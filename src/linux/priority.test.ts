import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { getPriority } from "node:os";
import { promisify } from "node:util";
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

test("the helpers of a process' V8 are lowered, and nothing else", async () => {
  const program = `
    const { lowerHelpers } = await import(${JSON.stringify(new URL("./priority.ts", import.meta.url).href)});
    const { getPriority } = await import("node:os");
    const { readdirSync } = await import("node:fs");
    const count = lowerHelpers(19);
    const lowered = readdirSync("/proc/self/task").filter((thread) => getPriority(Number(thread)) === 19);
    console.log(JSON.stringify({ count, lowered: lowered.length, own: getPriority() }));`;
  const args = ["--conditions=veil-source", "--input-type=module", "--eval", program];
  const { stdout } = await promisify(execFile)(process.execPath, args);
  const { count, lowered, own } = JSON.parse(stdout) as { count: number; lowered: number; own: number }; // of the program
  assert.ok(count > 0);
  assert.deepEqual([lowered, own], [count, getPriority()]);
});
