import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { seededRandom } from "#base/random";
import { RotationWorld, type Choice } from "./rotation-world.ts";

/** Runs what is possible in an order drawn by `seed` until nothing is; with some chance something goes wrong instead. */
function wander(
  world: RotationWorld,
  options: { readonly seed: number; readonly mishaps: number; readonly kinds: readonly string[] },
): void {
  const random = seededRandom(options.seed);
  let left = options.mishaps;
  for (let step = 0; step < 20_000; step++) {
    const choices = world.choices();
    const mishaps =
      left > 0 && random.below(12) === 0 ? world.mishaps().filter(({ kind }) => options.kinds.includes(kind)) : [];
    if (mishaps.length > 0) left--;
    const from: readonly Choice[] = mishaps.length > 0 ? mishaps : choices;
    const choice = from[random.below(Math.max(1, from.length))];
    if (choice === undefined) return;
    world.step(choice);
    assert.deepEqual(world.violations, []);
  }
  assert.fail("it does not come to rest");
}

test("in whatever order things happen: nobody sends where it does not work, no slot is made anew that somebody sends on, and all come to the last generation", () => {
  fc.assert(
    fc.property(fc.nat(), fc.integer({ min: 2, max: 4 }), (seed, nodes) => {
      const world = new RotationWorld(["a", "b", "c", "d"].slice(0, nodes), { last: 6 });
      wander(world, { seed, mishaps: 0, kinds: [] });
      assert.deepEqual(world.unfinished(), []);
    }),
    { numRuns: 60 },
  );
});

test("agents that are killed at any step, and start again, change nothing of it", () => {
  fc.assert(
    fc.property(fc.nat(), fc.integer({ min: 2, max: 4 }), (seed, nodes) => {
      const world = new RotationWorld(["a", "b", "c", "d"].slice(0, nodes), { last: 6 });
      wander(world, { seed, mishaps: 8, kinds: ["crash"] });
      assert.deepEqual(world.unfinished(), []);
    }),
    { numRuns: 100 },
  );
});

test("devices that are lost at any step come back with fresh keys, and everybody comes to the last generation", () => {
  fc.assert(
    fc.property(fc.nat(), fc.integer({ min: 2, max: 4 }), (seed, nodes) => {
      const world = new RotationWorld(["a", "b", "c", "d"].slice(0, nodes), { last: 6 });
      wander(world, { seed, mishaps: 8, kinds: ["crash", "lose"] });
      assert.deepEqual(world.unfinished(), []);
    }),
    { numRuns: 100 },
  );
});

/** All orders of one rotation, each world once, up to `most` worlds; `kills` agents die, at every possible place. */
function explore(options: { readonly nodes: readonly string[]; readonly kills: number; readonly most: number }): {
  worlds: number;
  ends: number;
} {
  const start = new RotationWorld(options.nodes, { last: 2 });
  wander(start, { seed: 1, mishaps: 0, kinds: [] });
  start.goOnTo(3);
  const open: { world: RotationWorld; kills: number }[] = [{ world: start, kills: 0 }];
  const seen = new Set<string>();
  let ends = 0;
  for (let at = open.pop(); at !== undefined && seen.size < options.most; at = open.pop()) {
    const { world, kills } = at;
    const choices = world.choices();
    if (choices.length === 0) {
      ends++;
      assert.deepEqual(world.unfinished(), []);
    }
    const crashes = kills < options.kills ? world.mishaps().filter(({ kind }) => kind === "crash") : [];
    for (const choice of [...choices, ...crashes]) {
      const copy = world.clone();
      copy.step(choice);
      assert.deepEqual(copy.violations, [], JSON.stringify(choice));
      const entry = { world: copy, kills: kills + (choice.kind === "crash" ? 1 : 0) };
      const print = `${entry.kills} ${copy.fingerprint()}`;
      if (seen.has(print)) continue;
      seen.add(print);
      open.push(entry);
    }
  }
  return { worlds: seen.size, ends };
}

test("two nodes, one rotation, an agent killed at any step: every order there is ends well", () => {
  const { worlds, ends } = explore({ nodes: ["a", "b"], kills: 1, most: 50_000 });
  assert.ok(ends > 0 && worlds > 1000 && worlds < 50_000, `${worlds} worlds, ${ends} ends`);
});

test("three nodes, one rotation: every order up to a bound ends well", () => {
  const { worlds, ends } = explore({ nodes: ["a", "b", "c"], kills: 0, most: 2_000 });
  assert.ok(worlds >= 2_000, `${worlds} worlds, ${ends} ends`);
});

test("twin: a barrier that does not wait for reports is caught", () => {
  const caught = Array.from({ length: 40 }, (_, seed) => seed).filter((seed) => {
    const world = new RotationWorld(["a", "b", "c"], { last: 9, wrong: "impatient barrier" });
    try {
      wander(world, { seed, mishaps: 0, kinds: [] });
      return world.unfinished().length > 0;
    } catch {
      return true;
    }
  });
  assert.ok(caught.length >= 4, `${caught.length} of 40`);
});

test("twin: a key that is replaced in place, on the slot on which all send, is caught", () => {
  const world = new RotationWorld(["a", "b"], { last: 2 });
  wander(world, { seed: 1, mishaps: 0, kinds: [] });
  world.replaceInPlace("a");
  assert.match(world.violations.join(), /a makes slot 0 anew while b sends to it there/);
  assert.match(world.violations.join(), /b sends to a on slot 0, which does not work/);
});
