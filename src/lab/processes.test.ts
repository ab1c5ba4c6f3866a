import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import fc from "fast-check";
import { systemClock } from "#base/clock";
import {
  findMarked,
  findProcess,
  findStat,
  isRunning,
  killAll,
  LAB_VARIABLE,
  memoryBytes,
  processTree,
} from "./processes.ts";

test("a stat line is read by its last bracket, whatever the program calls itself", () => {
  const line = "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 1";
  assert.deepEqual(findStat(line), { pid: 42, parent: 7, state: "S", startTicks: 987654 });
});

test("no text makes the reader of stat lines throw", () => {
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.stringMatching(/^\d{1,5} \(.{0,9}\) [A-Z]( \d{1,8}){0,30}$/)), (text) => {
      const found = findStat(text);
      assert.ok(found === undefined || Number.isInteger(found.startTicks));
    }),
  );
});

test("this process is found, and a pid with another start time is not it", () => {
  const self = findProcess(process.pid);
  assert.ok(self);
  assert.equal(self.parent, process.ppid);
  assert.ok(isRunning(self));
  assert.ok(!isRunning({ ...self, startTicks: self.startTicks + 1 }));
  assert.ok(memoryBytes(process.pid) > 1 << 20);
});

test("a stat line written by a shell before exec names the program that the shell becomes", async () => {
  const child = spawn("/bin/sh", ["-c", 'read -r stat </proc/$$/stat; printf "%s\\n" "$stat"; exec sleep 60']);
  const line = await new Promise<string>((resolve) =>
    child.stdout.once("data", (data: Buffer) => resolve(String(data))),
  );
  const named = findStat(line);
  assert.ok(named);
  for (let i = 0; i < 12_000 && readFileSync(`/proc/${named.pid}/comm`, "utf8") !== "sleep\n"; i++) {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  assert.equal(readFileSync(`/proc/${named.pid}/comm`, "utf8"), "sleep\n");
  assert.ok(isRunning(named));
  child.kill("SIGKILL");
});

test("marked processes are found with their children and killed, others are left alone", async () => {
  const variable = `unit-${process.pid}`;
  const marked = spawn("/bin/sh", ["-c", "sleep 60 & sleep 61 & wait"], {
    env: { ...process.env, [LAB_VARIABLE]: variable },
  });
  const other = spawn("sleep", ["60"]);
  const find = () => findMarked({ variable, mount: "no such mount", netns: new Set() });
  for (let i = 0; i < 12_000 && find().length < 3; i++) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual(processTree(marked.pid ?? 0).length, 3);
  assert.deepEqual(await killAll(find, systemClock(), 5_000), []);
  assert.ok(findProcess(other.pid ?? 0));
  other.kill("SIGKILL");
});

test("descriptors that came from outside are closed, others are left", async () => {
  const script = `
    import { closeInherited } from ${JSON.stringify(new URL("./processes.ts", import.meta.url).href)};
    import { fstatSync, openSync } from "node:fs";
    const own = openSync("/dev/null", "r");
    closeInherited([201]);
    const open = (fd) => { try { fstatSync(fd); return true; } catch { return false; } };
    console.log(JSON.stringify([200, 201, own].map(open)));
  `;
  const inherit = 'exec 200</dev/null 201</dev/null; exec "$@"';
  const node = [process.execPath, "--conditions=veil-source", "--input-type=module", "-e", script];
  const child = spawn("bash", ["-c", inherit, "bash", ...node], { stdio: ["ignore", "pipe", "inherit"] });
  const said = await new Promise<string>((resolve) =>
    child.stdout.once("data", (data: Buffer) => resolve(String(data))),
  );
  assert.deepEqual(JSON.parse(said), [false, true, true]);
});
