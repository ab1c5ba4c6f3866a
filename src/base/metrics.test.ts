import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { CellSet, renderMetrics, type MetricTable } from "./metrics.ts";

const table: MetricTable = {
  vt_seconds: { kind: "histogram", help: "How long.", labels: ["who"], buckets: [0.1, 1] },
  vt_seen_total: { kind: "counter", help: "Seen.", labels: ["who"] },
  vt_open: { kind: "gauge", help: "Open.", labels: [] },
};

describe("the cells of a metric table", () => {
  it("are bounded: label sets beyond the limit share one cell, whose labels say so", async () => {
    const cells = new CellSet(table, 2);
    for (const who of ["a", "b", "c", "d", "a"]) cells.bind("vt_seen_total", { who }).value++;
    const counted = cells.snapshot().map(({ labels, value }) => `${labels["who"]} ${value}`);
    assert.deepEqual(counted, ["a 2", "b 1", "overflow 2"]);
    const { body } = await renderMetrics(table, cells.snapshot());
    assert.match(body, /vt_seen_total\{who="overflow"\} 2/);
  });

  it("name a label that is missing unknown, and refuse a metric that is not declared", () => {
    const cells = new CellSet(table);
    cells.bind("vt_seen_total", {}).value = 1;
    assert.deepEqual(cells.snapshot()[0]?.labels, { who: "unknown" });
    assert.throws(() => cells.bind("vt_unknown", {}), /is not declared/);
  });

  it("tell label sets once and values always, in the same order", () => {
    const cells = new CellSet(table);
    cells.bind("vt_seen_total", { who: "a" }).value = 1;
    assert.deepEqual(cells.series(0, 10), [{ name: "vt_seen_total", labels: { who: "a" } }]);
    cells.bind("vt_open", {}).value = 7;
    cells.bind("vt_seen_total", { who: "a" }).value = 2;
    assert.deepEqual(cells.series(1, 10), [{ name: "vt_open", labels: {} }]);
    assert.deepEqual([...cells.values()], [2, 7]);
  });

  it("of several threads are added up", async () => {
    const [one, two] = [new CellSet(table), new CellSet(table)];
    one.bind("vt_seen_total", { who: "a" }).value = 1;
    two.bind("vt_seen_total", { who: "a" }).value = 2;
    const { body } = await renderMetrics(table, [...one.snapshot(), ...two.snapshot()]);
    assert.match(body, /vt_seen_total\{who="a"\} 3/);
  });

  it("of a histogram count each value in all buckets that it fits into", async () => {
    const threads = [new CellSet(table), new CellSet(table)];
    for (const cells of threads)
      for (const value of [0.05, 0.1, 0.5, 7]) cells.observe("vt_seconds", { who: "a" }, value);
    const { body } = await renderMetrics(
      table,
      threads.flatMap((cells) => cells.snapshot()),
    );
    assert.match(body, /# TYPE vt_seconds histogram/);
    assert.match(body, /vt_seconds_bucket\{who="a",le="0.1"\} 4/);
    assert.match(body, /vt_seconds_bucket\{who="a",le="1"\} 6/);
    assert.match(body, /vt_seconds_bucket\{who="a",le="\+Inf"\} 8/);
    assert.match(body, /vt_seconds_sum\{who="a"\} 15.3/);
    assert.match(body, /vt_seconds_count\{who="a"\} 8/);
  });

  it("of a histogram keep its buckets apart beyond the limit", () => {
    const cells = new CellSet(table, 1);
    for (const who of ["a", "b", "c"]) cells.observe("vt_seconds", { who }, 0.5);
    const buckets = cells
      .snapshot()
      .filter(({ name, labels }) => name === "vt_seconds_bucket" && labels["who"] === "overflow");
    const counts = Object.fromEntries(buckets.map(({ labels, value }) => [labels["le"], value]));
    assert.deepEqual(counts, { "0.1": 0, "1": 3, "+Inf": 3 }, "the one series of its own is the first bucket of a");
    assert.throws(() => cells.observe("vt_open", {}, 1), /no histogram/);
  });
});
