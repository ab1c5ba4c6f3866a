import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeClock } from "#base/clock";
import { bulkBuffers, giveBlock, releaseSlab, takeBlock, takeLoose } from "./buffers.ts";

const MIB = 1 << 20;

test("blocks are powers of two, and what is given back serves the next who asks, up to a bound", () => {
  const block = takeBlock(40_009);
  assert.equal(block.length, 65_536);
  giveBlock(block);
  assert.equal(takeBlock(65_536), block);
  assert.notEqual(takeBlock(65_536), block, "somebody has it");
  const many = Array.from({ length: 32 }, () => takeBlock(MIB / 8));
  assert.equal(new Set(many).size, 32);
  many.forEach(giveBlock);
  const again = new Set(Array.from({ length: 32 }, () => takeBlock(MIB / 8)));
  const kept = many.filter((one) => again.has(one)).length;
  assert.ok(kept > 0 && kept <= 8, `${kept} were kept`);
});

test("blocks of copied bytes grow with what a tunnel has, and are used again, empty", () => {
  const blocks = [takeLoose(40), takeLoose(600), takeLoose(40, 512), takeLoose(40, 4096), takeLoose(100_000)];
  assert.deepEqual(
    blocks.map(({ bytes }) => bytes.length),
    [512, 4096, 4096, 65_536, 100_000],
  );
  for (const after of [0, 512, 4096]) {
    const block = takeLoose(100, after);
    block.refs++;
    block.used = 100;
    releaseSlab(block);
    const next = takeLoose(100, after);
    assert.equal(next, block);
    assert.equal(next.used, 0);
    assert.notEqual(takeLoose(100, after), block, "somebody has it");
  }
});

test("more than the largest size gets a block that holds it, also while others lie ready", () => {
  const blocks = Array.from({ length: 20 }, () => takeLoose(40, 4096));
  for (const block of blocks) {
    block.refs++;
    releaseSlab(block);
  }
  for (const after of [0, 65_536]) assert.ok(takeLoose(100_000, after).bytes.length >= 100_000);
  assert.equal(takeLoose(40, 65_536).bytes.length, 65_536);
});

test("a socket that moves much in portions finds the buffers that it gave back", () => {
  const clock = new FakeClock();
  const holder = { bulkBusy: true, onBulkIdle: () => {} };
  const pieces = bulkBuffers.take(holder, clock) ?? assert.fail();
  bulkBuffers.release(holder, pieces);
  const again = bulkBuffers.take(holder, clock) ?? assert.fail();
  assert.deepEqual(new Set(again), new Set(pieces));
  bulkBuffers.release(holder, again);
});
