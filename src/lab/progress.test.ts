import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeClock } from "#base/clock";
import { lineProgress } from "./progress.ts";

test("without a terminal every step is one plain line, written when it is done", async () => {
  const clock = new FakeClock();
  let text = "";
  const progress = lineProgress({ clock, interactive: false, write: (part) => (text += part) });
  const slow = Promise.withResolvers<number>();
  const running = progress.step("slow", () => slow.promise);
  await progress.step("quick", () => Promise.resolve());
  await clock.advance(1_200);
  slow.resolve(7);
  assert.equal(await running, 7);
  assert.equal(text, "  0.0 s  quick\n  1.2 s  slow\n");
});

test("a step that fails says so and passes the failure on", async () => {
  let text = "";
  const progress = lineProgress({ clock: new FakeClock(), interactive: false, write: (part) => (text += part) });
  await assert.rejects(
    progress.step("broken", () => Promise.reject(new Error("no"))),
    /no/,
  );
  assert.equal(text, "  0.0 s  broken: failed\n");
});

test("on a terminal the last line shows what is being done and is overwritten", async () => {
  let text = "";
  const progress = lineProgress({ clock: new FakeClock(), interactive: true, write: (part) => (text += part) });
  await progress.step("one", () => Promise.resolve());
  assert.match(text, /… one/);
  assert.ok(text.endsWith("\r\u001b[K  0.0 s  one\n"));
});
