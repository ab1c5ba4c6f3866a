import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, beforeEach, describe, it } from "node:test";
import { sleep, systemClock } from "#base/clock";
import type { LabStatus } from "#lab";
import { leftoversOf } from "./lab-leftovers.ts";
import { eventually, must, requireRoot, run, VEIL } from "./harness.ts";

const clock = systemClock();
const NAME = "vt-lab-killed";
/** Moments of `up`, in milliseconds from its start: before the folder, in the namespaces, with roles, nearly ready. */
const MOMENTS_MS = [150, 250, 300, 350, 400, 500, 700, 1_000, 1_500, 2_500];

describe("a lab whose making or unmaking is interrupted", () => {
  requireRoot();
  const down = (): Promise<unknown> => must([VEIL, "lab", "down", "--name", NAME]);
  beforeEach(down);
  after(down);

  for (const moment of MOMENTS_MS) {
    it(`leaves nothing after up was killed at ${moment} ms and down was run`, async () => {
      const up = await interrupt("up", "SIGKILL", moment);
      assert.ok(up.code === 137 || up.code === 0, `up ended with ${up.code}: ${up.stderr}`);
      await must([VEIL, "lab", "down", "--name", NAME]);
      assert.deepEqual(leftoversOf(NAME), []);
    });
  }

  for (const moment of MOMENTS_MS) {
    it(`cleans up by itself after Ctrl-C at ${moment} ms`, async () => {
      const up = await interrupt("up", "SIGINT", moment);
      if (up.code === 0) await must([VEIL, "lab", "down", "--name", NAME]); // it was quicker than the key
      else assert.equal(up.code, 130, up.stderr);
      assert.deepEqual(leftoversOf(NAME), []);
    });
  }
});

describe("a lab whose up or down was killed", () => {
  const down = (): Promise<unknown> => must([VEIL, "lab", "down", "--name", NAME]);
  after(down);

  const isBroughtUp = async (): Promise<void> => {
    const status = JSON.parse(await must([VEIL, "lab", "up", "--name", NAME, "-o", "json"])) as LabStatus;
    assert.equal(status.ready, true);
  };

  for (const [upMs, downMs] of [
    [200, 120],
    [300, 160],
    [450, 200],
    [900, 240],
    [1_800, 300],
  ] as const) {
    it(`is brought up by the next up after one was killed at ${upMs} ms, is repaired by up and removed by down after a down was killed at ${downMs} ms`, async () => {
      await down();
      await interrupt("up", "SIGKILL", upMs);
      await isBroughtUp();
      await interrupt("down", "SIGKILL", downMs);
      await isBroughtUp();
      await interrupt("down", "SIGKILL", downMs);
      await down();
      assert.deepEqual(leftoversOf(NAME), []);
    });
  }

  it("gets back the settings of a namespace whose maker was killed before it had made them", async () => {
    await must([VEIL, "lab", "up", "--name", NAME]);
    const forward = ["ip", "netns", "exec", `veil-${NAME}-node1`, "sysctl", "-n", "net.ipv4.ip_forward"];
    await must([...forward.slice(0, -2), "-w", "net.ipv4.ip_forward=0"]);
    assert.equal((await must(forward)).trim(), "0");
    await must([VEIL, "lab", "up", "--name", NAME]);
    assert.equal((await must(forward)).trim(), "1");
    await down();
  });

  it("makes the second of two commands wait for the first", async () => {
    const up = run([VEIL, "lab", "up", "--name", NAME]);
    const lock = `@veil-lab/${NAME}`;
    await eventually("the first one to work", () => readFileSync("/proc/net/unix", "utf8").includes(lock) || undefined);
    await down();
    const { code, stderr } = await up;
    assert.equal(code, 0, stderr);
    assert.deepEqual(leftoversOf(NAME), []);
  });
});

/** Runs a lab command and sends a signal to its process group, as a terminal does, after some time. */
async function interrupt(command: string, signal: NodeJS.Signals, afterMs: number) {
  return run([VEIL, "lab", command, "--name", NAME], {
    started: (child) => {
      void sleep(clock, afterMs).then(() => {
        try {
          process.kill(signal === "SIGINT" ? -(child.pid ?? 0) : (child.pid ?? 0), signal);
        } catch {
          // it has ended
        }
      });
    },
  });
}
