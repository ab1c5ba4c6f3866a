import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync } from "node:fs";
import { test } from "node:test";

const PROGRAM = `
const { createLog } = await import(process.env.LOG);
const { writeError } = await import(process.env.ERROR);
const log = createLog("test", writeError);
for (let i = 0; i < 10_000; i++) log.warn({ i }, "nobody can read this, and it takes some room");
process.stdout.write("went on");
process.exit();
`;
const ARGS = ["--conditions=veil-source", "--input-type=module", "-e", PROGRAM];
const env = {
  ...process.env,
  PROGRAM,
  LOG: import.meta.resolve("../base/log.ts"),
  ERROR: import.meta.resolve("./standard-error.ts"),
};

test("a full disk behind standard error fails nobody who logs", () => {
  const full = openSync("/dev/full", "w");
  const { status, stdout } = spawnSync(process.execPath, ARGS, {
    env,
    stdio: ["ignore", "pipe", full],
    encoding: "utf8",
  });
  closeSync(full);
  assert.deepEqual([status, stdout], [0, "went on"]);
});

test("a pipe behind standard error that nobody reads holds nobody who logs", { timeout: 120_000 }, async (t) => {
  const node = `"${process.execPath}" --conditions=veil-source --input-type=module -e "$PROGRAM"`;
  // The reader lives, and reads nothing before the program's end.
  const script = `{ ${node} 2>&1 1>&3; echo "left $?" >&3; exec 3>&-; } | { read -r go <&4; wc -l; }`;
  const child = spawn("sh", ["-c", `exec 5>&1; { ${script}; } 3>&5`], {
    env,
    stdio: ["ignore", "pipe", "inherit", "ignore", "pipe"],
    detached: true, // a group of its own, to end all of it
  });
  t.after(() => {
    if (child.exitCode === null && child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
  });
  const { stdout } = child;
  assert.ok(stdout !== null);
  let said = "";
  stdout.setEncoding("utf8").on("data", (text: string) => (said += text));
  while (!said.includes("left 0")) await once(stdout, "data");
  assert.match(said, /^went on/);
  const [, , , , go] = child.stdio;
  assert.ok(go !== null && go !== undefined && "write" in go);
  go.write("go\n");
  await once(child, "close");
  assert.match(said, /\n[1-9]\d+\n$/, "what a pipe holds was there for its reader");
});
