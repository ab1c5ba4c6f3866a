import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeClock } from "./clock.ts";
import { Occasion } from "./occasion.ts";

test("all who wait go on when it happens, and each at its deadline otherwise", async () => {
  const clock = new FakeClock();
  const occasion = new Occasion();
  const gone: string[] = [];
  const wait = (name: string, ms: number): void => void occasion.within(clock, ms).then(() => gone.push(name));
  wait("a", 10);
  wait("b", 20);
  await clock.advance(10);
  assert.deepEqual(gone, ["a"]);
  wait("c", 1000);
  occasion.happen();
  await clock.advance(0);
  assert.deepEqual(gone, ["a", "b", "c"]);
  wait("d", 5);
  await clock.advance(5);
  assert.deepEqual(gone, ["a", "b", "c", "d"]);
});
