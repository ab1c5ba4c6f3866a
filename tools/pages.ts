import { globSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { errorTables } from "#base/errors";
import { metricTables } from "#base/metrics";
import { renderChart } from "./chart.ts";

const root = resolve(import.meta.dirname, "..");

/** Loads every source file that declares errors or metrics, and renders the pages made from those tables, and the chart. */
export async function renderPages(): Promise<{ path: string; text: string }[]> {
  const declaring = globSync("src/**/*.ts", { cwd: root }).filter(
    (file) => !file.endsWith(".test.ts") && /\bdefine(Errors|Metrics)\(/.test(readFileSync(join(root, file), "utf8")),
  );
  for (const file of declaring) if (!file.startsWith("src/base/")) await import(pathToFileURL(join(root, file)).href);
  return [
    { path: join(root, "docs/errors.md"), text: errorsPage() },
    { path: join(root, "docs/metrics.md"), text: metricsPage() },
    ...renderChart(),
  ];
}

function errorsPage(): string {
  const parts = [
    "# Errors\n\nMade from the tables in the sources by `npm run pages`. Every failure that Veil reports carries one of these codes.\n",
  ];
  for (const [component, table] of [...errorTables].sort(([a], [b]) => a.localeCompare(b))) {
    parts.push(`\n## ${component}\n\n| code | when | what to do |\n|---|---|---|\n`);
    for (const [code, { when, hint }] of Object.entries(table))
      parts.push(`| \`${code}\` | ${cell(when)} | ${cell(hint)} |\n`);
  }
  return parts.join("");
}

function metricsPage(): string {
  const parts = ["# Metrics\n\nMade from the tables in the sources by `npm run pages`.\n"];
  for (const [component, table] of [...metricTables].sort(([a], [b]) => a.localeCompare(b))) {
    parts.push(`\n## ${component}\n\n| metric | kind | labels | meaning |\n|---|---|---|---|\n`);
    for (const [name, { kind, labels, help }] of Object.entries(table)) {
      parts.push(`| \`${name}\` | ${kind} | ${labels.map((label) => `\`${label}\``).join(" ")} | ${cell(help)} |\n`);
    }
  }
  return parts.join("");
}

function cell(text: string): string {
  return text.replaceAll("|", "\\|");
}
