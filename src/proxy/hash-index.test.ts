import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { HashIndex } from "./hash-index.ts";

const sorted = (values: readonly number[]): number[] => values.toSorted((a, b) => a - b);

function valuesOf(index: HashIndex, hash: number): number[] {
  const found: number[] = [];
  for (let entry = index.first(hash); entry >= 0; entry = index.after(entry, hash)) found.push(index.value(entry));
  return found;
}

test("an index finds what a plain list finds, after any additions and removals", () => {
  const step = fc.record({ add: fc.boolean(), hash: fc.constantFrom(0, 1, -1, 1024, 2 ** 31 - 1), value: fc.nat(5) });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const index = new HashIndex();
      const list: { hash: number; value: number }[] = [];
      for (const { add, hash, value } of steps) {
        const at = list.findLastIndex((other) => other.hash === hash && other.value === value);
        if (add) {
          index.add(hash, value);
          list.push({ hash, value });
        } else {
          index.remove(hash, value);
          if (at >= 0) list.splice(at, 1);
        }
      }
      for (const hash of new Set(steps.map((one) => one.hash))) {
        const expected = list.filter((other) => other.hash === hash).map(({ value }) => value);
        assert.deepEqual(sorted(valuesOf(index, hash)), sorted(expected));
      }
    }),
  );
});

test("an index grows, and what was removed leaves its place to others", () => {
  const index = new HashIndex();
  for (let i = 0; i < 5_000; i++) index.add(i * 7, i);
  for (let i = 0; i < 5_000; i += 2) index.remove(i * 7, i);
  for (let i = 0; i < 5_000; i += 2) index.add(i * 7, i + 10_000);
  for (let i = 0; i < 5_000; i++) assert.deepEqual(valuesOf(index, i * 7), [i % 2 === 0 ? i + 10_000 : i]);
});
