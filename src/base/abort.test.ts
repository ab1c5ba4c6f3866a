import assert from "node:assert/strict";
import { test } from "node:test";
import { LightAbort } from "./abort.ts";

test("the listener of an abort is called once, unless it was taken away", () => {
  const abort = new LightAbort();
  let calls = 0;
  const listener = (): void => {
    calls++;
  };
  abort.addEventListener("abort", listener);
  abort.abort("why");
  abort.abort("again");
  assert.equal(calls, 1);
  assert.deepEqual([abort.aborted, abort.reason], [true, "why"]);

  const other = new LightAbort();
  other.addEventListener("abort", listener);
  other.removeEventListener("abort", listener);
  other.abort(undefined);
  assert.equal(calls, 1);
});
