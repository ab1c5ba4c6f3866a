import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { relative, resolve } from "node:path";
import { test } from "node:test";
import { errorTables } from "#base/errors";
import { renderPages } from "../tools/pages.ts";

const pages = await renderPages();

for (const { path, text } of pages) {
  const name = relative(resolve(import.meta.dirname, ".."), path);
  test(`${name} says what the sources say (npm run pages)`, () => {
    assert.ok(existsSync(path), `${name} is missing`);
    assert.equal(readFileSync(path, "utf8"), text);
  });
}

test("codes are unique, in capitals, and begin with their component", () => {
  const seen = new Set<string>();
  assert.ok(errorTables.size > 5);
  for (const [component, table] of errorTables) {
    for (const code of Object.keys(table)) {
      assert.ok(!seen.has(code), `${code} is declared twice`);
      seen.add(code);
      assert.match(code, /^[A-Z][A-Z0-9]*(_[A-Z0-9]+)+$/);
      assert.ok(
        code.startsWith(component.toUpperCase().replaceAll("-", "_")),
        `${code} does not begin with ${component}`,
      );
    }
  }
});
