import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { drainMsWithin, parseDurationMs, parseThreads } from "./proxy-settings.ts";

test("threads are a number, a share of the processors, or all of them", () => {
  const given = ["3", "0", "50%", "25%", "1%", "12.5%", "100%"].map((text) => parseThreads(text, 5));
  assert.deepEqual(given, [3, 5, 3, 2, 1, 1, 5]);
  for (const text of ["", "-1", "1.5", "0%", "101%", "50 %", "many"]) assert.throws(() => parseThreads(text, 5), text);
});

test("durations are parts with units; a number alone is seconds", () => {
  const given = ["5", "5s", "300ms", "1m30s", "2h", "0s"].map(parseDurationMs);
  assert.deepEqual(given, [5_000, 5_000, 300, 90_000, 7_200_000, 0]);
  for (const text of ["", "s", "5 s", "1d", "-5s", "5s!", "1.5s"]) assert.throws(() => parseDurationMs(text), text);
});

test("any text is a number of milliseconds, or refused", () => {
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.stringMatching(/^(\d{1,3}(ms|s|m|h)?){0,3}$/)), (text) => {
      try {
        assert.ok(Number.isSafeInteger(parseDurationMs(text)));
      } catch (error) {
        assert.match(String(error), /It is no duration/);
      }
    }),
  );
});

test("the end of connections comes before that of the pod's grace period", () => {
  const given = [undefined, "30", "10", "1", "0", "soon"].map(drainMsWithin);
  assert.deepEqual(given, [5_000, 25_000, 9_000, 1_000, 1_000, 5_000]);
});
