import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { libc } from "./libc.ts";
import { readMemoryUse, trimMemory } from "./memory.ts";

test("memory and its limit are read from either version of control groups, caches apart", () => {
  const root = mkdtempSync(join(tmpdir(), "vt-life-"));
  try {
    assert.equal(readMemoryUse(root), undefined, "no control group");
    mkdirSync(join(root, "memory"));
    const write = (file: string, text: string): void => {
      writeFileSync(join(root, file), text);
    };
    write("memory/memory.limit_in_bytes", "9223372036854771712\n");
    assert.equal(readMemoryUse(root), undefined, "no limit");
    write("memory/memory.limit_in_bytes", "1000\n");
    write("memory/memory.usage_in_bytes", "700\n");
    write("memory/memory.stat", "cache 5\ntotal_inactive_file 100\n");
    assert.deepEqual(readMemoryUse(root), { limitBytes: 1000, usedBytes: 600 });
    write("memory.max", "max\n");
    write("memory.current", "300\n");
    write("memory.stat", "anon 5\ninactive_file 50\n");
    assert.deepEqual(readMemoryUse(root), { limitBytes: 1000, usedBytes: 600 });
    write("memory.max", "500\n");
    assert.deepEqual(readMemoryUse(root), { limitBytes: 500, usedBytes: 250 });
  } finally {
    rmSync(root, { recursive: true });
  }
});

test("memory that was freed between what is used goes back to the kernel", () => {
  const allocate = libc.func("void *calloc(size_t count, size_t size)");
  const write = libc.func("void *memset(void *block, int byte, size_t size)");
  const free = libc.func("void free(void *block)");
  const size = 64 << 10; // below what is mapped on its own
  const blocks = Array.from({ length: 1024 }, () => write(allocate(1, size), 1, size) as unknown);
  for (const block of blocks.slice(0, -1)) free(block);
  const before = process.memoryUsage.rss();
  trimMemory();
  const after = process.memoryUsage.rss();
  free(blocks.at(-1)); // above the hole: without it the C library would have given all back by itself
  assert.ok(before - after > 32 << 20, `${before - after} bytes went back`);
});
