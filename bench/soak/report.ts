import type { LoadResult } from "../../test/netns/mesh.ts";
import { trendOf } from "./trend.ts";
import type { Heaps, Sample, Use } from "./watch.ts";

/** How many connections were made, and how many of them a proxy recorded. */
export interface Count {
  readonly where: string;
  readonly expected: number;
  readonly found: number;
}

/** A soak: all that was seen, as far as it has come. */
export interface Soak {
  /** What each client was told, by flag. */
  readonly load: Readonly<Record<string, string>>;
  /** How long the load lasts, and from when on it counts. */
  readonly minutes: number;
  readonly warmUp: number;
  readonly samples: Sample[];
  /** In the warm-up, and near the end. */
  readonly heaps: Heaps[];
  /** Ends other than a plain success, and the minutes in which there were any. */
  readonly reasons: Record<string, { count: number; readonly minutes: number[] }>;
  /** Missing as long as it runs. */
  readonly loads?: readonly LoadResult[];
  readonly counts?: readonly Count[];
}

/** The soak as a page. */
export function formatReport(soak: Soak): string {
  const { load, minutes, warmUp, loads, counts } = soak;
  const flags = Object.entries({ minutes, ...load }).map(([key, value]) => `--${key} ${value}`);
  return [
    "# Soak",
    "",
    `\`node --conditions=veil-source bench/soak.ts ${flags.join(" ")}\`: two clients on two nodes, each ${load["long"]} talking, ${load["bulk"]} bulk and ${load["idle"]} idle connections and ${load["rate"]} new ones a second.`,
    "",
    loads === undefined ? brokenOff(soak) : formatLoads(loads),
    "",
    `Memory is what a process alone has written (MiB, means of a minute). The slope is that of all samples after ${warmUp} minutes of warm-up, until garbage is collected near the end, with half of its 95 % interval.`,
    "",
    "| process | first minute | after warm-up | last minute of these | slope, KiB a minute | descriptors under load | 15 s after it |",
    "|---|---|---|---|---|---|---|",
    ...Object.keys(soak.samples[0]?.uses ?? {}).map((name) => formatProcess(soak, name)),
    ...formatHeaps(soak.heaps),
    ...(counts === undefined ? [] : formatCounts(counts)),
    "",
    ...(loads === undefined ? [] : [formatReasons(soak.reasons), ""]),
  ].join("\n");
}

function brokenOff({ samples }: Soak): string {
  return `Still running, or broken off, after ${samples.at(-1)?.minute.toFixed(1)} minutes.`;
}

function formatLoads(loads: readonly LoadResult[]): string {
  const done = loads.reduce((sum, { short }) => sum + short.done, 0);
  const bytes = loads.reduce((sum, { long }) => sum + long.bytes, 0);
  const failures = JSON.stringify(loads.map((one) => one.failures));
  return `New connections done: ${done}. Bytes back on long ones: ${(bytes / 1e9).toFixed(1)} GB, all checked. Failures: ${failures}, corrupt: ${loads.map(({ corrupt }) => corrupt).join(", ")}.`;
}

function formatProcess({ samples, minutes, warmUp, heaps }: Soak, name: string): string {
  const seen = (from: number, to: number): { minute: number; use: Use }[] =>
    samples.flatMap(({ minute, uses: { [name]: use } }) =>
      use !== undefined && minute >= from && minute < to ? [{ minute, use }] : [],
    );
  const mean = (from: number): string => {
    const part = seen(from, from + 1);
    return (part.reduce((sum, { use }) => sum + use.dirtyKib, 0) / part.length / 1024).toFixed(1);
  };
  const collected = heaps.map(({ minute }) => minute).find((minute) => minute > warmUp);
  const loaded = seen(warmUp, collected ?? minutes);
  const { slope, margin } = trendOf(loaded.map(({ minute, use }) => [minute, use.dirtyKib]));
  const descriptors = loaded.map(({ use }) => use.descriptors);
  const after = samples.at(-1);
  const left = after !== undefined && after.minute > minutes ? after.uses[name]?.descriptors : undefined;
  return `| ${[
    name,
    mean(0),
    mean(warmUp),
    mean((collected ?? minutes) - 1),
    `${slope.toFixed(1)} ± ${margin.toFixed(1)}`,
    `${Math.min(...descriptors)}–${Math.max(...descriptors)}`,
    left ?? "–",
  ].join(" | ")} |`;
}

function formatHeaps([first, last]: readonly Heaps[]): string[] {
  if (first === undefined || last === undefined) return [];
  const [from, to] = [first.minute.toFixed(0), last.minute.toFixed(0)];
  return [
    "",
    `What the heaps of threads hold when all garbage has just been collected, KiB:`,
    "",
    `| thread | minute ${from} | minute ${to} | more each minute |`,
    "|---|---|---|---|",
    ...Object.entries(first.usedKib).map(([thread, before]) => {
      const after = last.usedKib[thread] ?? Number.NaN;
      const each = (after - before) / (last.minute - first.minute);
      return `| ${thread} | ${before} | ${after} | ${each.toFixed(1)} |`;
    }),
  ];
}

function formatCounts(counts: readonly Count[]): string[] {
  return [
    "",
    "| records | connections made | records found |",
    "|---|---|---|",
    ...counts.map(({ where, expected, found }) => `| ${where} | ${expected} | ${found} |`),
  ];
}

function formatReasons(reasons: Soak["reasons"]): string {
  const lines = Object.entries(reasons).map(
    ([reason, { count, minutes }]) => `- ${count} × ${reason} (minutes ${minutes.join(", ")})`,
  );
  if (lines.length === 0) return "Every connection was recorded as a plain success.";
  return `Ends that were recorded as anything but a plain success:\n\n${lines.join("\n")}`;
}
