import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { supervise } from "./supervisor.ts";

const clock = systemClock();

describe("the supervisor", () => {
  const run = (script: string, signal: AbortSignal): Promise<number> =>
    supervise({ command: "/bin/sh", args: ["-c", script], env: process.env, clock, log: silentLog(), signal });

  it("starts a child that died again, until it is told to stop, and passes SIGTERM on", async () => {
    const folder = mkdtempSync(join(tmpdir(), "vt-proxy-supervisor-"));
    const file = join(folder, "starts");
    const starts = (): number => (existsSync(file) ? readFileSync(file, "utf8").length : 0);
    try {
      const stop = new AbortController();
      // The first two lives end at once; the third waits for SIGTERM and says 7.
      const script = `printf x >> ${file}; [ $(wc -c < ${file}) -ge 3 ] || exit 1; trap 'exit 7' TERM; while :; do sleep 0.01; done`;
      const ended = run(script, stop.signal);
      while (starts() < 3) await new Promise((resolve) => setTimeout(resolve, 10));
      await new Promise((resolve) => setTimeout(resolve, 100));
      stop.abort();
      assert.equal(await ended, 7);
      assert.equal(starts(), 3);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });

  it("says when the program is not there", async () => {
    const { signal } = new AbortController();
    const options = { command: "/no/such/program", args: [], env: {}, clock, log: silentLog(), signal };
    await assert.rejects(supervise(options), /ENOENT/);
  });
});
