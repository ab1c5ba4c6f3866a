import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeClock } from "#base/clock";
import { memoryReader, Pressure } from "./pressure.ts";

test("nothing new is taken from nine tenths of the memory on, until it is below eight; garbage is collected meanwhile", async () => {
  const clock = new FakeClock();
  let usedBytes = 89 << 20;
  let collected = 0;
  const pressure = new Pressure({
    clock,
    memory: () => ({ usedBytes, limitBytes: 100 << 20 }),
    collect: () => collected++,
    isLogStalled: () => false,
  });
  await clock.advance(1_000);
  assert.equal(pressure.refusal(), undefined);
  usedBytes = 90 << 20;
  await clock.advance(1_000);
  assert.deepEqual(pressure.refusal(), {
    reason: "limit_reached",
    detail: "PROXY_MEMORY: 90 of 100 MiB of memory are in use",
  });
  usedBytes = 81 << 20;
  await clock.advance(9_000);
  assert.notEqual(pressure.refusal(), undefined, "not yet");
  assert.equal(collected, 1);
  await clock.advance(1_000);
  assert.equal(collected, 2);
  usedBytes = 79 << 20;
  await clock.advance(1_000);
  assert.equal(pressure.refusal(), undefined);
});

test("without a limit everything is taken", async () => {
  const clock = new FakeClock();
  const pressure = new Pressure({
    clock,
    memory: () => undefined,
    collect: () => assert.fail("nothing to collect"),
    isLogStalled: () => false,
  });
  await clock.advance(5_000);
  assert.equal(pressure.refusal(), undefined);
});

test("a limit of its own is held against the process", () => {
  const use = memoryReader(5)();
  assert.equal(use?.limitBytes, 5);
  assert.ok(use.usedBytes > 1 << 20);
});
