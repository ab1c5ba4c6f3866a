import assert from "node:assert/strict";
import { test } from "node:test";
import { runCommand } from "./nft.ts";

test("a program's output, errors and exit status are answered", async () => {
  const outcome = await runCommand({ program: "sh", args: ["-c", "cat; echo bad >&2; exit 3"], input: "in" });
  assert.deepEqual(outcome, { status: 3, stdout: "in", stderr: "bad\n" });
});

test("a program that is missing is named", async () => {
  await assert.rejects(runCommand({ program: "vt-no-such-program", args: [] }), {
    code: "LINUX_COMMAND",
    message: /vt-no-such-program/,
  });
});

test("an aborted program is killed, and the signal's reason is thrown", async () => {
  const stop = new AbortController();
  const running = runCommand({ program: "sleep", args: ["60"], signal: stop.signal });
  stop.abort(new Error("enough"));
  await assert.rejects(running, /enough/);
});

test("a program that does not read its input is no failure of ours", async () => {
  const outcome = await runCommand({ program: "true", args: [], input: "x".repeat(1 << 20) });
  assert.equal(outcome.status, 0);
});
