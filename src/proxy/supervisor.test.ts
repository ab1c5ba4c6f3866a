import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { describe, it } from "node:test";
import { FakeClock, systemClock, type Clock } from "#base/clock";
import { silentLog } from "#base/log";
import { supervise, UNUSABLE_EXIT, whenTold } from "./supervisor.ts";

/** A child that writes `+` when it is loaded, waits for the word, writes `!`, then does `work`. It ends with 7 on SIGTERM. */
const child = (file: string, work: string): string =>
  `trap 'exit 7' TERM; printf + >> ${file}; read word || exit 9; printf ! >> ${file}; ${work}`;
const UNTIL_TERM = "while :; do sleep 0.01; done";

async function withFile(body: (file: string, said: () => string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "vt-proxy-supervisor-"));
  const file = join(folder, "said");
  try {
    await body(file, () => (existsSync(file) ? readFileSync(file, "utf8") : ""));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function until(what: () => boolean): Promise<void> {
  const end = performance.now() + 60_000;
  while (!what()) {
    assert.ok(performance.now() < end, `not in time: ${what.toString()}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

const never = new AbortController().signal;
/** `signals`: stop, and hurry. */
const run = (script: string, clock: Clock, ...signals: readonly [AbortSignal, AbortSignal?]): Promise<number> => {
  const [signal, hurry = never] = signals;
  const program = { command: "/bin/sh", args: ["-c", script], env: process.env };
  return supervise({ ...program, clock, log: silentLog(), signal, hurry });
};

describe("the supervisor", () => {
  it("replaces a child that died young, until it is told to stop, and passes SIGTERM on", async () => {
    await withFile(async (file, said) => {
      const stop = new AbortController();
      const thirdStays = `[ $(wc -c < ${file}) -ge 6 ] || exit 1; ${UNTIL_TERM}`;
      const ended = run(child(file, thirdStays), systemClock(), stop.signal);
      await until(() => said() === "+!+!+!");
      await new Promise((resolve) => setTimeout(resolve, 50));
      stop.abort();
      assert.equal(await ended, 7);
    });
  });

  it("has the next child loaded and waiting, and lets it go when the one at work dies", async () => {
    await withFile(async (file, said) => {
      const stop = new AbortController();
      const clock = new FakeClock();
      const firstEnds = `[ $(wc -c < ${file}) -gt 2 ] && { ${UNTIL_TERM}; }; while [ $(wc -c < ${file}) -lt 3 ]; do sleep 0.01; done; exit 1`;
      const ended = run(child(file, firstEnds), clock, stop.signal);
      await until(() => said() === "+!");
      await clock.advance(3_000);
      await until(() => said().startsWith("+!+"));
      // The first has seen that the next is loaded, and ends: the next goes on without being started.
      await until(() => said() === "+!+!");
      await new Promise((resolve) => setTimeout(resolve, 50));
      stop.abort();
      assert.equal(await ended, 7);
      assert.equal(said(), "+!+!", "nothing was started twice");
    });
  });

  it("ends the child that waits when it is told to stop", async () => {
    await withFile(async (file, said) => {
      const stop = new AbortController();
      const clock = new FakeClock();
      const ended = run(child(file, UNTIL_TERM), clock, stop.signal);
      await until(() => said() === "+!");
      await clock.advance(3_000);
      await until(() => said() === "+!+");
      stop.abort();
      assert.equal(await ended, 7);
      assert.equal(said(), "+!+", "the one that waited was never told to go");
    });
  });

  it("passes a second SIGTERM on, for a child that takes its time", async () => {
    await withFile(async (file, said) => {
      const [stop, hurry] = [new AbortController(), new AbortController()];
      const patient = `n=0; trap 'n=$((n+1)); printf t >> ${file}; [ $n -lt 2 ] || exit 130' TERM; printf r >> ${file}; while :; do sleep 0.01; done`;
      const ended = run(child(file, patient), systemClock(), stop.signal, hurry.signal);
      await until(() => said() === "+!r");
      stop.abort();
      await until(() => said() === "+!rt");
      hurry.abort();
      assert.equal(await ended, 130);
      assert.equal(said(), "+!rtt");
    });
  });

  it("ends with a child that was asked to quit", async () => {
    await withFile(async (file, said) => {
      assert.equal(await run(child(file, "exit 0"), systemClock(), never), 0);
      assert.equal(said(), "+!");
    });
  });

  it("ends when the first child cannot serve, and goes on trying when a later one cannot", async () => {
    await withFile(async (file, said) => {
      assert.equal(await run(child(file, `exit ${UNUSABLE_EXIT}`), systemClock(), never), UNUSABLE_EXIT);
      assert.equal(said(), "+!");
    });
    await withFile(async (file) => {
      assert.equal(await run(child(file, "exit 2"), systemClock(), never), 2, "its flags are wrong");
    });
    await withFile(async (file, said) => {
      const stop = new AbortController();
      const work = `case $(wc -c < ${file}) in 2) exit 1;; 4) exit ${UNUSABLE_EXIT};; esac; ${UNTIL_TERM}`;
      const ended = run(child(file, work), systemClock(), stop.signal);
      await until(() => said() === "+!+!+!");
      await new Promise((resolve) => setTimeout(resolve, 50));
      stop.abort();
      assert.equal(await ended, 7);
    });
  });

  it("says when the program is not there", async () => {
    const options = { command: "/no/such/program", args: [], env: {}, clock: systemClock(), log: silentLog() };
    await assert.rejects(supervise({ ...options, signal: never, hurry: never }), /ENOENT/);
  });
});

describe("a child that waits", () => {
  it("goes when it is told, and leaves when its supervisor is gone or it is stopped", async () => {
    const told = new PassThrough();
    told.write("go\n");
    assert.equal(await whenTold(told, new AbortController().signal), true);
    const gone = new PassThrough();
    gone.end();
    assert.equal(await whenTold(gone.resume(), new AbortController().signal), false);
    const stop = new AbortController();
    const waiting = whenTold(new PassThrough(), stop.signal);
    stop.abort();
    assert.equal(await waiting, false);
  });
});
