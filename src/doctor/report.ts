import { CHECKS, exitCodeOf, type Finding, type Outcome } from "./finding.ts";

const OUTCOMES: readonly Outcome[] = ["problem", "warning", "not checked", "ok"];

/** The findings as a table: by check, what is worst first, with what to do below it; and their numbers in the last line. */
export function formatFindings(findings: readonly Finding[]): string {
  const rows = sortFindings(findings).map(({ outcome, check, node, what, todo }) => ({
    head: [outcome, check, node ?? ""],
    what,
    todo,
  }));
  const widths = [0, 1, 2].map((column) => Math.max(...rows.map(({ head }) => head[column]?.length ?? 0), 0));
  const lines = rows.flatMap(({ head, what, todo }) => {
    const start = head.flatMap((cell, column) => (widths[column] === 0 ? [] : [cell.padEnd(widths[column] ?? 0)]));
    const indent = " ".repeat(start.join("  ").length);
    return [[...start, what].join("  "), ...(todo === undefined ? [] : [`${indent}  do: ${todo}`])];
  });
  const numbers = OUTCOMES.map((outcome) => `${findings.filter((one) => one.outcome === outcome).length} ${outcome}`);
  return `${lines.join("\n")}\n\n${numbers.join(", ")}\n`;
}

/** The findings for programs. */
export function findingsAsJson(findings: readonly Finding[]): string {
  return `${JSON.stringify({ exitCode: exitCodeOf(findings), findings: sortFindings(findings) }, undefined, 2)}\n`;
}

function sortFindings(findings: readonly Finding[]): Finding[] {
  return findings.toSorted(
    (a, b) =>
      CHECKS.indexOf(a.check) - CHECKS.indexOf(b.check) || OUTCOMES.indexOf(a.outcome) - OUTCOMES.indexOf(b.outcome),
  );
}
