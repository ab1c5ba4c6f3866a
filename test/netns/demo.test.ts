import assert from "node:assert/strict";
import { after, test } from "node:test";
import type { DemoReport } from "#demo";
import { requireRoot, run, VEIL, veil } from "./harness.ts";
import { leftoversOf, linksAndRules } from "./lab-leftovers.ts";

const NAME = "vt-demo";

after(() => veil("lab", "down", "--name", NAME));

function report(text: string): DemoReport {
  return JSON.parse(text) as DemoReport; // printed by the demo under test
}

test("the demo proves what it claims, twice the same, and leaves nothing behind", async (t) => {
  requireRoot();
  const before = linksAndRules();
  for (const turn of ["first", "second"]) {
    const { code, stdout, stderr } = await veil("demo", "--name", NAME, "-o", "json");
    assert.equal(code, 0, stderr);
    const { proven, checks, seconds, labelToEncryptedMs, before: wire, after: labelled, pods } = report(stdout);
    assert.deepEqual(
      checks.filter(({ seen }) => !seen),
      [],
    );
    assert.ok(proven && checks.length >= 7);
    assert.deepEqual(
      wire.map(({ protocol, readableWords }) => [protocol, readableWords.length]),
      [
        ["clear", 2],
        ["clear", 2],
        ["clear", 2],
      ],
    );
    assert.deepEqual(
      labelled.map(({ protocol, readableWords }) => [protocol, readableWords.length]),
      [
        ["TLS 1.3", 0],
        ["TLS 1.3", 0],
        ["clear", 2],
      ],
    );
    assert.ok(pods.every(({ unchanged }) => unchanged));
    t.diagnostic(`${turn} run: ${seconds} s, label to encrypted ${labelToEncryptedMs} ms`);
    assert.deepEqual(leftoversOf(NAME), []);
  }
  assert.equal(linksAndRules(), before);
});

for (const words of ["", "starting two services", "after: watching the wire"]) {
  test(`Ctrl-C ${words === "" ? "while its lab is made" : `after "${words}"`} leaves nothing behind`, async () => {
    const { code, stderr } = await run([VEIL, "demo", "--name", NAME], {
      started: (child) => {
        let said = "";
        for (const output of [child.stdout, child.stderr]) {
          output?.on("data", (text: string) => {
            if (said !== "" && said.includes(words)) return;
            said += text;
            if (said.includes(words)) child.kill("SIGINT");
          });
        }
      },
    });
    assert.equal(code, 130, stderr);
    assert.deepEqual(leftoversOf(NAME), []);
  });
}
