import type { Beat } from "./beats.ts";

/** What was measured beside one thing, a list of beats for each round. */
export interface Measured {
  readonly name: string;
  readonly requests: (readonly Beat[])[];
  readonly connections: (readonly Beat[])[];
}

/** The same thing, done to the proxies that carry the connections and to others. */
export interface Comparison {
  readonly name: string;
  readonly own: Measured;
  readonly control: Measured;
}

/** The value below which this share of the values lies. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}

/** Medians over all beats, in microseconds. */
export function tableOf(all: readonly Measured[]): readonly string[] {
  const row = ({ name, requests, connections }: Measured): string => {
    const figures = [requests, connections].flatMap((rounds) =>
      (["p50", "p99"] as const).map((key) =>
        quantile(
          rounds.flat().map((beat) => beat[key]),
          0.5,
        ),
      ),
    );
    return `| ${name} | ${figures.map((figure) => Math.round(figure).toLocaleString("en")).join(" | ")} |`;
  };
  return ["| beside | requests p50 | p99 | new connections p50 | p99 |", "|---|---:|---:|---:|---:|", ...all.map(row)];
}

/** Of each round the ratio of both sides' median p99; then median and quartiles over the rounds. */
export function verdicts(comparisons: readonly Comparison[]): readonly string[] {
  const row = ({ name, own, control }: Comparison): string => {
    const cells = (["requests", "connections"] as const).map((kind) => {
      const ratios = own[kind].map((beats, round) => middle(beats) / middle(control[kind][round] ?? []));
      const [low, median, high] = [0.25, 0.5, 0.75].map((share) => quantile(ratios, share).toFixed(2));
      return `${median} (${low}–${high})`;
    });
    return `| ${name} | ${cells.join(" | ")} |`;
  };
  return ["| own / others | requests p99 | new connections p99 |", "|---|---:|---:|", ...comparisons.map(row)];
}

function middle(beats: readonly Beat[]): number {
  return quantile(
    beats.map(({ p99 }) => p99),
    0.5,
  );
}
