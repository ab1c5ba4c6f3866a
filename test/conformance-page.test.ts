import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../", import.meta.url));
const rows = readFileSync(`${root}docs/conformance.md`, "utf8")
  .split("\n")
  .filter((line) => line.startsWith("| ") && !line.startsWith("| upstream test |"));

test("docs/conformance.md names test files that exist", () => {
  assert.ok(rows.length > 50, `only ${rows.length} rows`);
  const files = new Set(rows.flatMap((row) => row.match(/[\w./-]+\.test\.ts/g) ?? []));
  assert.ok(files.size > 10, `only ${files.size} files`);
  for (const file of files) {
    const path = file.includes("/") ? file : `src/proxy/${file}`;
    assert.ok(existsSync(root + path), `${file} does not exist`);
  }
});
