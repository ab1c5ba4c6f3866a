import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate } from "node:timers/promises";
import { FakeClock } from "#base/clock";
import { collectGarbage, keepTidy } from "./tidy.ts";

const MIB = 1 << 20;

test("a process is tidied after its start, and each time that it has grown, until that is over", async () => {
  const clock = new FakeClock();
  let size = 60 * MIB;
  let times = 0;
  const stop = keepTidy({
    clock,
    sizeBytes: () => size,
    heapBytes: () => 20 * MIB,
    collect: () => {
      times++;
    },
  });
  await clock.advance(30_000);
  assert.equal(times, 1, "what loading has left");
  size = 40 * MIB; // a little later
  await clock.advance(600_000);
  assert.equal(times, 1, "it has not grown");
  size += MIB - 1;
  await clock.advance(30_000);
  assert.equal(times, 1, "not enough");
  size += 1;
  await clock.advance(30_000);
  assert.equal(times, 2);
  size += 10 * MIB;
  stop();
  await clock.advance(600_000);
  assert.equal(times, 2);
});

test("a large heap is left alone", async () => {
  const clock = new FakeClock();
  const collect = (): void => assert.fail("it would take long");
  const stop = keepTidy({ clock, heapBytes: () => 129 * MIB, collect });
  await clock.advance(60_000);
  stop();
});

test("garbage is collected", async () => {
  const garbage = new WeakRef({});
  await setImmediate(); // until then whoever made it may use it
  collectGarbage();
  assert.equal(garbage.deref(), undefined);
});

test("what this process has for itself is what counts", async () => {
  const clock = new FakeClock();
  let times = 0;
  const stop = keepTidy({ clock, heapBytes: () => 0, collect: () => times++ }); // other tests of this process have filled its heap
  await clock.advance(30_000);
  assert.equal(times, 1);
  const grown = Buffer.alloc(64 * MIB, 1);
  await clock.advance(30_000);
  stop();
  assert.equal(times, 2);
  assert.equal(grown[0], 1);
});
