import assert from "node:assert/strict";
import { test } from "node:test";
import { RecentMap } from "./recent.ts";

test("a map of recent values keeps what is used, at most as many as it was told", () => {
  const map = new RecentMap<number, string>(8);
  for (let i = 0; i < 100; i++) {
    map.set(i, `v${i}`);
    assert.equal(map.get(0), "v0", "used all the time");
    assert.equal(map.get(i), `v${i}`);
    assert.ok(map.size <= 8);
  }
  assert.equal(map.get(50), undefined);
  map.delete(0);
  assert.equal(map.get(0), undefined);
  map.clear();
  assert.equal(map.size, 0);
});
