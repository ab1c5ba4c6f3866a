import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { closeSync, constants, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { FakeClock } from "#base/clock";
import { LineOutput } from "./line-output.ts";

const WRITER = `
const { LineOutput } = await import(process.env.MODULE);
const after = (ms, callback) => { setTimeout(callback, ms); return () => {}; };
const output = new LineOutput(1, { after });
for (let i = 0; i < 40_000; i++) output.write(Buffer.from(\`line \${i}\\n\`));
console.error(String(output.waitingBytes > 0));
process.stdin.once("data", async () => {
  await output.whenEmpty();
  console.error("empty " + output.waitingBytes);
  process.exit(0);
}).once("end", () => process.exit(3));
`;

/** A program that writes more than a pipe holds; `cat` stands for a pipe instead of Node's socket. */
function startWriter(): ReturnType<typeof spawn> {
  const node = `"${process.execPath}" --conditions=veil-source --input-type=module -e "$WRITER"`;
  return spawn("sh", ["-c", `exec 3<&0; { ${node} <&3; echo "left $?" >&2; } | { read -r go <&4; exec cat; }`], {
    env: { ...process.env, WRITER, MODULE: import.meta.resolve("./line-output.ts") },
    stdio: ["pipe", "pipe", "pipe", "ignore", "pipe"],
  });
}

test("a reader that stalls holds neither the program nor its end, and gets every line once it reads", async () => {
  for (const waits of [true, false]) {
    const child = startWriter();
    let lines = "";
    let notes = "";
    child.stdout?.setEncoding("utf8").on("data", (text: string) => (lines += text));
    child.stderr?.setEncoding("utf8").on("data", (text: string) => (notes += text));
    while (!notes.includes("true")) await once(child.stderr ?? child, "data"); // it is alive, with lines waiting
    if (waits) {
      child.stdin?.write("go\n");
      (child.stdio[4] as NodeJS.WritableStream).write("go\n");
      await once(child, "close");
      assert.match(notes, /empty 0\n[^]*left 0/);
      assert.equal(lines.split("\n").length, 40_001);
      assert.ok(lines.endsWith("line 39999\n"));
    } else {
      child.stdin?.end(); // leaves at once, although nobody has read
      while (!notes.includes("left 3")) await once(child.stderr ?? child, "data");
      (child.stdio[4] as NodeJS.WritableStream).write("go\n");
      await once(child, "close");
    }
  }
});

/** A pipe whose reader has gone. */
function brokenPipe(): { output: LineOutput; clock: FakeClock; close: () => void } {
  const folder = mkdtempSync(join(tmpdir(), "vt-lines-"));
  const pipe = join(folder, "pipe");
  assert.equal(spawnSync("mkfifo", [pipe]).status, 0);
  const reader = openSync(pipe, constants.O_RDONLY | constants.O_NONBLOCK);
  const writer = openSync(pipe, "w");
  const clock = new FakeClock();
  const output = new LineOutput(writer, clock);
  closeSync(reader);
  const close = (): void => {
    closeSync(writer);
    rmSync(folder, { recursive: true });
  };
  return { output, clock, close };
}

test("a reader that has gone is one that stalls, and nobody waits for it at the end", async () => {
  const { output, clock, close } = brokenPipe();
  output.write(Buffer.from("a line\n"));
  for (let tries = 0; tries < 500 && !output.isAbandoned; tries++)
    await new Promise((resolve) => setTimeout(resolve, 10));
  await clock.advance(1000);
  assert.deepEqual([output.waitingBytes, output.isAbandoned], [7, true]);
  close();
});

test("a full disk takes nothing: lines wait, so that whoever gives them can tell", async () => {
  const full = openSync("/dev/full", "w");
  const clock = new FakeClock();
  const output = new LineOutput(full, clock);
  output.write(Buffer.from("a line\n"));
  for (let tries = 0; tries < 5; tries++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    await clock.advance(1000);
    assert.equal(output.waitingBytes, 7);
  }
  closeSync(full);
});
