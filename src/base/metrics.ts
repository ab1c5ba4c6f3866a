import type { Counter, Metric, OpenMetricsContentType, PrometheusContentType } from "prom-client";

/** What kind of metric: a counter only grows, a gauge is set, a histogram counts values up to each of its buckets' bounds. */
export type MetricSpec = { readonly help: string; readonly labels: readonly string[] } & (
  | { readonly kind: "counter" | "gauge" }
  | { readonly kind: "histogram"; readonly buckets: readonly number[] }
);

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
    return this.#cell(name, this.#spec(name).labels, labels);
  }

  /** Counts one value of a histogram. */
  observe(name: string, labels: Readonly<Record<string, string>>, value: number): void {
    const spec = this.#spec(name);
    if (spec.kind !== "histogram") throw new Error(`metric ${name} is no histogram`);
    for (const bound of [...spec.buckets, Infinity]) {
      const le = bound === Infinity ? "+Inf" : String(bound);
      this.#cell(`${name}_bucket`, [...spec.labels, "le"], { ...labels, le }).value += value <= bound ? 1 : 0;
    }
    this.#cell(`${name}_sum`, spec.labels, labels).value += value;
    this.#cell(`${name}_count`, spec.labels, labels).value++;
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

  #spec(name: string): MetricSpec {
    const spec = this.#table[name];
    if (spec === undefined) throw new Error(`metric ${name} is not declared`);
    return spec;
  }

  #cell(name: string, names: readonly string[], labels: Readonly<Record<string, string>>): Cell {
    const full = this.#cells.size >= this.#maxSeries;
    const values = Object.fromEntries(names.map((label) => [label, labels[label] ?? "unknown"]));
    const key = `${name}\0${Object.values(values).join("\0")}`;
    const known = this.#cells.get(key);
    if (known !== undefined) return known.cell;
    if (full) return this.#overflow(name, values);
    const cell = { value: 0 };
    this.#cells.set(key, { name, labels: values, cell });
    return cell;
  }

  #overflow(name: string, values: Readonly<Record<string, string>>): Cell {
    const labels = Object.fromEntries(
      Object.entries(values).map(([label, value]) => [label, label === "le" ? value : "overflow"]),
    );
    const key = `${name}\0overflow\0${labels["le"] ?? ""}`;
    let entry = this.#cells.get(key);
    if (entry === undefined) {
      entry = { name, labels, cell: { value: 0 } };
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
  const prom = await import("prom-client"); // loaded by whoever is scraped: data threads count, too, and never are
  const registry = new prom.Registry<PrometheusContentType | OpenMetricsContentType>();
  if (wantsOpenMetrics(accept)) registry.setContentType(prom.Registry.OPENMETRICS_CONTENT_TYPE);
  const metrics = new Map<string, Pick<Counter, "inc">>();
  for (const [name, spec] of Object.entries(table)) {
    const config = { name, help: spec.help, labelNames: [...spec.labels], registers: [registry] };
    if (spec.kind === "histogram") {
      const parts = new HistogramSamples(name, spec.help);
      registry.registerMetric(parts as unknown as Metric); // what the registry uses of a metric, without counting of its own
      for (const part of ["bucket", "sum", "count"]) metrics.set(`${name}_${part}`, parts.part(part));
    } else metrics.set(name, spec.kind === "counter" ? new prom.Counter(config) : new prom.Gauge(config));
  }
  for (const { name, labels, value } of samples) metrics.get(name)?.inc(labels, value);
  return { contentType: registry.contentType, body: await registry.metrics() };
}

function wantsOpenMetrics(accept: string): boolean {
  return accept.split(",").some((one) => one.split(";")[0]?.trim().toLowerCase() === "application/openmetrics-text");
}

/** A histogram whose buckets were counted elsewhere, as prom-client's registry prints it. */
class HistogramSamples {
  readonly name: string;
  readonly #help: string;
  readonly #values = new Map<string, { metricName: string; labels: object; value: number }>();

  constructor(name: string, help: string) {
    this.name = name;
    this.#help = help;
  }

  /** Takes the samples of `bucket`, `sum` or `count`. */
  part(part: string): Pick<Counter, "inc"> {
    const metricName = `${this.name}_${part}`;
    const inc = (labels: number | object = {}, value = 1): void => {
      const key = `${metricName}\0${JSON.stringify(labels)}`;
      const known = this.#values.get(key);
      if (known === undefined) this.#values.set(key, { metricName, labels: Object(labels), value });
      else known.value += value;
    };
    return { inc };
  }

  get(): Promise<object> {
    return Promise.resolve({
      name: this.name,
      help: this.#help,
      type: "histogram",
      values: [...this.#values.values()],
    });
  }
}
