import { Counter, Gauge, Registry, type OpenMetricsContentType } from "prom-client";

/** What kind of metric: a counter only grows, a gauge is set. */
export interface MetricSpec {
  readonly kind: "counter" | "gauge";
  readonly help: string;
  readonly labels: readonly string[];
}

/** One component's metrics; keys are the full names. */
export type MetricTable = Readonly<Record<string, MetricSpec>>;

/** All the tables of the program, by component, for `docs/metrics.md` and the uniqueness check. */
export const metricTables = new Map<string, MetricTable>();

/** Declares a component's metrics. Throws when a component or a name is declared twice. */
export function defineMetrics<const Table extends MetricTable>(component: string, table: Table): Table {
  if (metricTables.has(component)) throw new Error(`metrics of ${component} are declared twice`);
  const names = new Set([...metricTables.values()].flatMap((other) => Object.keys(other)));
  for (const name of Object.keys(table)) if (names.has(name)) throw new Error(`metric ${name} is declared twice`);
  metricTables.set(component, table);
  return table;
}

/** A number that the data path adds to: a plain field, read at scrape time. */
export interface Cell {
  value: number;
}

/**
 * The cells of one metric table. The data path binds a cell once per connection and adds plain numbers to it
 * (about 1 ns); `collect` copies them into prom-client at scrape time. Bounded by `maxSeries`: further label sets share
 * one overflow cell per metric, with every label `overflow`.
 */
export class CellSet {
  readonly #table: MetricTable;
  readonly #maxSeries: number;
  readonly #cells = new Map<string, { name: string; labels: Record<string, string>; cell: Cell }>();

  constructor(table: MetricTable, maxSeries = 20_000) {
    this.#table = table;
    this.#maxSeries = maxSeries;
  }

  /** The cell of a metric and its label values; missing labels read `unknown`. */
  bind(name: string, labels: Readonly<Record<string, string>>): Cell {
    const spec = this.#table[name];
    if (spec === undefined) throw new Error(`metric ${name} is not declared`);
    const full = this.#cells.size >= this.#maxSeries;
    const values = Object.fromEntries(spec.labels.map((label) => [label, labels[label] ?? "unknown"]));
    const key = `${name}\0${Object.values(values).join("\0")}`;
    const known = this.#cells.get(key);
    if (known !== undefined) return known.cell;
    if (full) return this.#overflow(name, spec);
    const cell = { value: 0 };
    this.#cells.set(key, { name, labels: values, cell });
    return cell;
  }

  /** The label sets from the `from`th on, at most `most`, in the order in which they were first used. They never go away. */
  series(from: number, most: number): { name: string; labels: Record<string, string> }[] {
    const all = [...this.#cells.values()].slice(from, from + most);
    return all.map(({ name, labels }) => ({ name, labels }));
  }

  /** What was counted, in the order of {@link series}. */
  values(): Float64Array {
    return Float64Array.from([...this.#cells.values()], ({ cell }) => cell.value);
  }

  /** Everything that was counted, for another thread or for a scrape. */
  snapshot(): { name: string; labels: Record<string, string>; value: number }[] {
    return [...this.#cells.values()].map(({ name, labels, cell }) => ({ name, labels, value: cell.value }));
  }

  #overflow(name: string, spec: MetricSpec): Cell {
    const key = `${name}\0overflow`;
    let entry = this.#cells.get(key);
    if (entry === undefined) {
      entry = { name, labels: Object.fromEntries(spec.labels.map((label) => [label, "overflow"])), cell: { value: 0 } };
      this.#cells.set(key, entry);
    }
    return entry.cell;
  }
}

/**
 * Renders samples in Prometheus' text format, or as OpenMetrics where the `Accept` header of whoever asks names it. Samples
 * of the same name and labels are added up.
 */
export async function renderMetrics(
  table: MetricTable,
  samples: readonly { name: string; labels: Record<string, string>; value: number }[],
  accept = "",
): Promise<{ contentType: string; body: string }> {
  const registry = wantsOpenMetrics(accept) ? openMetricsRegistry() : new Registry();
  const metrics = new Map<string, Counter | Gauge>();
  for (const [name, spec] of Object.entries(table)) {
    const config = { name, help: spec.help, labelNames: [...spec.labels], registers: [registry] };
    metrics.set(name, spec.kind === "counter" ? new Counter(config) : new Gauge(config));
  }
  for (const { name, labels, value } of samples) metrics.get(name)?.inc(labels, value);
  return { contentType: registry.contentType, body: await registry.metrics() };
}

function openMetricsRegistry(): Registry<OpenMetricsContentType> {
  const registry = new Registry<OpenMetricsContentType>();
  registry.setContentType(Registry.OPENMETRICS_CONTENT_TYPE);
  return registry;
}

function wantsOpenMetrics(accept: string): boolean {
  return accept.split(",").some((one) => one.split(";")[0]?.trim().toLowerCase() === "application/openmetrics-text");
}
