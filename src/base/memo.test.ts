import assert from "node:assert/strict";
import { test } from "node:test";
import { memoByObject } from "./memo.ts";

test("a memo asks once for each object, also when the answer is undefined", () => {
  let asked = 0;
  const find = memoByObject(({ name }: { name: string }) => {
    asked++;
    return name === "" ? undefined : name.length;
  });
  const [some, none] = [{ name: "abc" }, { name: "" }];
  assert.deepEqual([find(some), find(some), find(none), find(none)], [3, 3, undefined, undefined]);
  assert.equal(asked, 2);
});
