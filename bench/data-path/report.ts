import { execFileSync } from "node:child_process";
import { cpus, loadavg } from "node:os";
import { median, rows, type Figures } from "./rows.ts";

/** All measurements of one row with one variant. */
export interface Outcome {
  readonly row: string;
  readonly variant: string;
  readonly runs: readonly Figures[];
}

/** One run of the benchmark. */
export interface Report {
  readonly command: string;
  readonly minutes: number;
  readonly outcomes: readonly Outcome[];
}

/** What ratios are to, the first of these that was measured. */
const REFERENCES = ["ztunnel", "ztunnel1", "haproxy", "nothing"];

function medianOf({ runs }: Outcome, figure: string): number {
  return median(runs.map((run) => run[figure] ?? Number.NaN));
}

function format(value: number): string {
  if (!Number.isFinite(value)) return "–";
  if (value >= 1000) return Math.round(value).toLocaleString("en");
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

function referenceOf(outcomes: readonly Outcome[]): string {
  return REFERENCES.find((name) => outcomes.some(({ variant }) => variant === name)) ?? "";
}

function machine(): string {
  const kernel = execFileSync("uname", ["-r"], { encoding: "utf8" }).trim();
  return `${cpus().length} cores (${cpus()[0]?.model.trim()}), kernel ${kernel}, Node ${process.version}, ${new Date().toISOString().slice(0, 10)}`;
}

/** A table for each row: medians, and ratios of the first figure and of CPU to the reference. */
export function formatTable({ command, minutes, outcomes }: Report): string {
  const reference = referenceOf(outcomes);
  const lines = [
    "# The data path against its peers",
    "",
    `\`${command.trim()}\` on ${machine()}; ${minutes.toFixed(0)} minutes, load average at their end ${loadavg()[1]?.toFixed(1)}.`,
    `Medians; variants interleaved.${reference === "" ? "" : ` Ratios are to ${reference} in the same run: of the first figure, and of CPU of both sides.`}`,
    "`veil` has one data thread, `veil2` two and two pods on each node; `ztunnel` two workers; `envoy` two; `haproxy` one.",
    "",
  ];
  for (const name of new Set(outcomes.map(({ row }) => row))) {
    const row = rows[name];
    if (row === undefined) continue;
    const own = outcomes.filter((outcome) => outcome.row === name);
    const base = own.find(({ variant }) => variant === reference);
    const [main = ""] = Object.keys(row.figures);
    const hasCpu = "cpu" in row.figures;
    lines.push(`## ${row.title}`, "");
    lines.push(
      `| through | ${Object.values(row.figures).join(" | ")} | ratio |${hasCpu ? " CPU ratio |" : ""} first figures of all runs |`,
    );
    lines.push(`|---|${"---:|".repeat(Object.keys(row.figures).length + (hasCpu ? 2 : 1))}---|`);
    for (const outcome of own) {
      const ratio = (figure: string): string =>
        base === undefined || medianOf(base, figure) === 0
          ? "–"
          : format(medianOf(outcome, figure) / medianOf(base, figure));
      const figures = Object.keys(row.figures).map((figure) => format(medianOf(outcome, figure)));
      const all = outcome.runs.map((run) => format(run[main] ?? Number.NaN)).join(" ");
      const cells = [outcome.variant, ...figures, ratio(main), ...(hasCpu ? [ratio("cpu")] : []), all];
      lines.push(`| ${cells.join(" | ")} |`);
    }
    lines.push("");
  }
  return lines.join("\n");
}

const PLOT = { left: 330, width: 560, bar: 13, gap: 22, top: 70 } as const;
const COLOURS: Readonly<Record<string, string>> = {
  nothing: "#b0b0b0",
  veil: "#0b6e4f",
  veil2: "#2fa37a",
  ztunnel: "#3f51b5",
  ztunnel1: "#7986cb",
  haproxy: "#e08e0b",
  stunnel: "#b5651d",
  envoy: "#c2185b",
  "node-http2": "#8d6e63",
};

/** Bars for each row: how many times better than the reference, on a logarithmic axis from 1/8 to 8. */
export function drawPlot({ outcomes }: Report): string {
  const reference = referenceOf(outcomes);
  const x = (ratio: number): number =>
    PLOT.left + (PLOT.width * (Math.log2(Math.min(8, Math.max(1 / 8, ratio))) + 3)) / 6;
  const parts: string[] = [];
  let y = PLOT.top;
  for (const name of new Set(outcomes.map(({ row }) => row))) {
    const row = rows[name];
    const [main = ""] = Object.keys(row?.figures ?? {});
    const own = outcomes.filter((outcome) => outcome.row === name);
    const base = own.find(({ variant }) => variant === reference);
    if (row === undefined || base === undefined) continue;
    parts.push(`<text x="8" y="${y + 10}" font-weight="bold">${row.title}</text>`);
    y += 16;
    for (const outcome of own) {
      const quotient = medianOf(outcome, main) / medianOf(base, main);
      const ratio = row.moreIsBetter ? quotient : 1 / quotient;
      if (!Number.isFinite(ratio) || ratio <= 0) continue;
      const [from, to] = [Math.min(x(1), x(ratio)), Math.max(x(1), x(ratio))];
      const colour = COLOURS[outcome.variant] ?? "#444";
      const said = `${format(medianOf(outcome, main))} ${Object.values(row.figures)[0]}`;
      parts.push(`<text x="${PLOT.left - 8}" y="${y + 10}" text-anchor="end">${outcome.variant}: ${said}</text>`);
      parts.push(
        `<rect x="${from.toFixed(1)}" y="${y}" width="${Math.max(1, to - from).toFixed(1)}" height="${PLOT.bar - 3}" fill="${colour}"/>`,
      );
      parts.push(`<text x="${to + 4}" y="${y + 10}">×${format(ratio)}</text>`);
      y += PLOT.bar;
    }
    y += PLOT.gap - PLOT.bar;
  }
  const axis = [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8].map((ratio) => {
    const at = x(ratio).toFixed(1);
    return `<line x1="${at}" y1="${PLOT.top - 12}" x2="${at}" y2="${y}" stroke="${ratio === 1 ? "#000" : "#ddd"}"/><text x="${at}" y="${PLOT.top - 16}" text-anchor="middle">×${ratio}</text>`;
  });
  const width = PLOT.left + PLOT.width + 60;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${y + 20}" font-family="sans-serif" font-size="10">`,
    `<rect width="100%" height="100%" fill="#fff"/>`,
    `<text x="8" y="20" font-size="15" font-weight="bold">How many times better than ${reference}</text>`,
    `<text x="8" y="36">right of the line is better: more per second, or fewer microseconds and bytes; medians of one run</text>`,
    ...axis,
    ...parts,
    "</svg>",
    "",
  ].join("\n");
}
