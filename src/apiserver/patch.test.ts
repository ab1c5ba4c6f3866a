import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { jsonPatch, mergePatch, strategicPatch } from "./patch.ts";
import { builtinSchema } from "./schema/builtin.ts";
import { StatusError } from "./status.ts";

const POD = builtinSchema("Pod");
const SUBJECT = { resource: "pods", name: "p" };

function pod(containers: unknown, more: Record<string, unknown> = {}): Record<string, unknown> {
  return { metadata: { name: "p" }, spec: { containers, ...more } };
}

function refusal(code: number, pattern: RegExp): (error: unknown) => boolean {
  return (error) => error instanceof StatusError && error.body.code === code && pattern.test(error.message);
}

describe("merge patch", () => {
  // The examples of RFC 7386, appendix A.
  const rows: [target: unknown, patch: unknown, result: unknown][] = [
    [{ a: "b" }, { a: "c" }, { a: "c" }],
    [{ a: "b" }, { b: "c" }, { a: "b", b: "c" }],
    [{ a: "b" }, { a: null }, {}],
    [{ a: ["b"] }, { a: "c" }, { a: "c" }],
    [{ a: { b: "c" } }, { a: { b: "d", c: null } }, { a: { b: "d" } }],
    [
      ["a", "b"],
      ["c", "d"],
      ["c", "d"],
    ],
    [{ e: null }, { a: 1 }, { e: null, a: 1 }],
    [[1, 2], { a: "b", c: null }, { a: "b" }],
    [{}, { a: { bb: { ccc: null } } }, { a: { bb: {} } }],
  ];
  for (const [target, patch, result] of rows) {
    it(`${JSON.stringify(target)} with ${JSON.stringify(patch)}`, () =>
      assert.deepEqual(mergePatch(target, patch), result));
  }

  it("never reaches a prototype", () => {
    mergePatch({}, JSON.parse('{"__proto__":{"polluted":true}}'));
    assert.equal(({} as { polluted?: boolean }).polluted, undefined);
  });
});

describe("JSON patch", () => {
  it("applies operations and leaves the original alone", () => {
    const target = { metadata: { labels: { a: "1" } } };
    const result = jsonPatch(target, [{ op: "add", path: "/metadata/labels/b~1c", value: "2" }], SUBJECT);
    assert.deepEqual(result, { metadata: { labels: { a: "1", "b/c": "2" } } });
    assert.deepEqual(target, { metadata: { labels: { a: "1" } } });
  });

  it("names the operation that does not fit", () => {
    const patch = [
      { op: "test", path: "/a", value: 1 },
      { op: "remove", path: "/nothing" },
    ];
    assert.throws(() => jsonPatch({ a: 1 }, patch, SUBJECT), refusal(422, /operation 1 \(remove \/nothing\)/));
    assert.throws(() => jsonPatch({ a: 2 }, patch, SUBJECT), refusal(422, /operation 0 \(test \/a\)/));
  });

  it("refuses what is no patch", () => {
    assert.throws(() => jsonPatch({}, {}, SUBJECT), refusal(400, /list of operations/));
    assert.throws(
      () => jsonPatch({}, [{ op: "frob", path: "/a" }], SUBJECT),
      refusal(400, /operation 0: unknown op "frob"/),
    );
    assert.throws(
      () => jsonPatch({}, [{ op: "add", path: "a", value: 1 }], SUBJECT),
      refusal(400, /"a" is no JSON pointer/),
    );
    assert.throws(() => jsonPatch({}, [{ op: "add", path: "/a" }], SUBJECT), refusal(400, /needs a value/));
  });
});

describe("strategic merge", () => {
  it("merges containers by name and keeps the others", () => {
    const target = pod([
      { name: "a", image: "1", env: [{ name: "X", value: "1" }] },
      { name: "b", image: "1" },
    ]);
    const patch = { spec: { containers: [{ name: "a", image: "2", env: [{ name: "Y", value: "2" }] }] } };
    assert.deepEqual(
      strategicPatch(POD, target, patch),
      pod([
        {
          name: "a",
          image: "2",
          env: [
            { name: "X", value: "1" },
            { name: "Y", value: "2" },
          ],
        },
        { name: "b", image: "1" },
      ]),
    );
  });

  it("replaces lists without a merge key", () => {
    const target = pod([{ name: "a", command: ["x", "y"] }]);
    assert.deepEqual(
      strategicPatch(POD, target, { spec: { containers: [{ name: "a", command: ["z"] }] } }),
      pod([{ name: "a", command: ["z"] }]),
    );
  });

  it("obeys $patch: delete and replace", () => {
    const target = pod([{ name: "a" }, { name: "b" }], { nodeSelector: { x: "1", y: "2" } });
    assert.deepEqual(
      strategicPatch(POD, target, { spec: { containers: [{ name: "a", $patch: "delete" }] } }),
      pod([{ name: "b" }], { nodeSelector: { x: "1", y: "2" } }),
    );
    assert.deepEqual(
      strategicPatch(POD, target, { spec: { containers: [{ $patch: "replace" }, { name: "c" }] } }),
      pod([{ name: "c" }], { nodeSelector: { x: "1", y: "2" } }),
    );
    assert.deepEqual(
      strategicPatch(POD, target, { spec: { nodeSelector: { $patch: "replace", z: "3" } } }),
      pod([{ name: "a" }, { name: "b" }], { nodeSelector: { z: "3" } }),
    );
  });

  it("obeys $setElementOrder, $deleteFromPrimitiveList and $retainKeys", () => {
    const target = {
      metadata: { finalizers: ["x/a", "x/b"] },
      spec: { containers: [{ name: "a" }, { name: "b" }], securityContext: { runAsUser: 1, fsGroup: 2 } },
    };
    const patch = {
      metadata: { "$deleteFromPrimitiveList/finalizers": ["x/a"] },
      spec: {
        "$setElementOrder/containers": [{ name: "b" }, { name: "a" }],
        securityContext: { $retainKeys: ["runAsUser"], runAsUser: 5 },
      },
    };
    assert.deepEqual(strategicPatch(POD, target, patch), {
      metadata: { finalizers: ["x/b"] },
      spec: { containers: [{ name: "b" }, { name: "a" }], securityContext: { runAsUser: 5 } },
    });
  });

  it("names the field of a mistake", () => {
    assert.throws(
      () => strategicPatch(POD, pod([]), { spec: { containers: [{ image: "x" }] } }),
      refusal(400, /spec\.containers\[0\].*merge key: name/),
    );
    assert.throws(
      () => strategicPatch(POD, pod([]), { spec: { $patch: "frob" } }),
      refusal(400, /spec: unknown \$patch/),
    );
  });

  it("never throws anything but a Status, whatever the patch", () => {
    const key = fc.constantFrom(
      "spec",
      "containers",
      "name",
      "$patch",
      "$retainKeys",
      "$setElementOrder/containers",
      "$deleteFromPrimitiveList/containers",
      "metadata",
      "__proto__",
    );
    const { patch } = fc.letrec<{ patch: unknown }>((tie) => ({
      patch: fc.oneof(
        { depthSize: "small" },
        fc.constantFrom(null, "delete", "replace", 1, "x"),
        fc.array(tie("patch"), { maxLength: 3 }),
        fc.dictionary(key, tie("patch"), { maxKeys: 4, noNullPrototype: false }),
      ),
    }));
    fc.assert(
      fc.property(patch, (value) => {
        try {
          strategicPatch(POD, pod([{ name: "a" }]), value);
        } catch (error) {
          assert.ok(error instanceof StatusError, String(error));
        }
      }),
      { numRuns: 500 },
    );
  });
});
