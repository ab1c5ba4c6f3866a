import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { tailStart } from "./log-session.ts";

test("the last lines of a log are found, whatever its length and end", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "vt-kubelet-"));
  t.after(() => rmSync(folder, { recursive: true }));
  const file = join(folder, "log");
  const line = fc
    .oneof(fc.string({ maxLength: 5 }), fc.constant("x".repeat(70_000)))
    .map((text) => text.replaceAll("\n", ""));
  await fc.assert(
    fc.asyncProperty(fc.array(line, { maxLength: 6 }), fc.nat(8), fc.boolean(), async (lines, wanted, closed) => {
      const text = lines.join("\n") + (closed && lines.length > 0 ? "\n" : "");
      writeFileSync(file, text);
      const start = await tailStart(file, wanted);
      const whole = text.split("\n");
      if (whole.at(-1) === "") whole.pop();
      const tail = wanted === 0 ? [] : whole.slice(-wanted);
      const ending = text.endsWith("\n") && tail.length > 0 ? "\n" : "";
      assert.equal(Buffer.from(text).subarray(start).toString(), tail.join("\n") + ending);
    }),
    { numRuns: 60 },
  );
});
