import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { CellSet, renderMetrics, type MetricTable } from "./metrics.ts";

const table: MetricTable = {
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
});
