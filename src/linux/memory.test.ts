import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { readMemoryUse } from "./memory.ts";

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
