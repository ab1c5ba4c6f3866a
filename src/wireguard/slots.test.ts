import assert from "node:assert/strict";
import { test } from "node:test";
import { SLOT_PORTS, slotOf } from "./slots.ts";

test("generations take turns with the two slots, whose ports differ", () => {
  assert.deepEqual([0, 1, 2, 3].map(slotOf), [0, 1, 0, 1]);
  assert.notEqual(SLOT_PORTS[0], SLOT_PORTS[1]);
});
