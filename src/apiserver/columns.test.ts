import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { BUILTIN_COLUMNS, ageSince } from "./columns.ts";
import type { KubeObject } from "./object.ts";

const NOW_MS = Date.UTC(2026, 0, 1);

describe("ages", () => {
  // As k8s.io/apimachinery/pkg/util/duration prints them.
  const rows: [seconds: number, text: string][] = [
    [0, "0s"],
    [119, "119s"],
    [120, "2m"],
    [185, "3m5s"],
    [600, "10m"],
    [10_799, "179m"],
    [10_800, "3h"],
    [12_000, "3h20m"],
    [28_800, "8h"],
    [172_799, "47h"],
    [172_800, "2d"],
    [180_000, "2d2h"],
    [691_200, "8d"],
    [63_071_999, "729d"],
    [63_072_000, "2y"],
    [94_694_400, "3y1d"],
    [252_288_000, "8y"],
  ];
  for (const [seconds, text] of rows) {
    it(`${seconds} s are ${text}`, () =>
      assert.equal(ageSince(new Date(NOW_MS - seconds * 1000).toISOString(), NOW_MS), text));
  }

  it("without a time are unknown", () => assert.equal(ageSince(undefined, NOW_MS), "<unknown>"));
});

describe("the status of a pod", () => {
  const column = BUILTIN_COLUMNS["pods"]?.find(({ name }) => name === "Status");
  const show = (status: Record<string, unknown>, metadata: Record<string, unknown> = {}): unknown => {
    const pod: KubeObject = { apiVersion: "v1", kind: "Pod", metadata: { name: "p", uid: "u", ...metadata }, status };
    return column?.value(pod, NOW_MS);
  };
  const waiting = (reason: string): Record<string, unknown> => ({ state: { waiting: { reason } } });
  const rows: [what: string, status: Record<string, unknown>, text: string][] = [
    ["pending", { phase: "Pending" }, "Pending"],
    ["running", { phase: "Running", containerStatuses: [{ ready: true, state: { running: {} } }] }, "Running"],
    ["waiting", { phase: "Pending", containerStatuses: [waiting("VeilNoCommand")] }, "VeilNoCommand"],
    [
      "ended",
      { phase: "Succeeded", containerStatuses: [{ state: { terminated: { exitCode: 0, reason: "Completed" } } }] },
      "Completed",
    ],
    ["failed", { phase: "Failed", containerStatuses: [{ state: { terminated: { exitCode: 3 } } }] }, "ExitCode:3"],
    ["evicted", { phase: "Failed", reason: "Evicted" }, "Evicted"],
    [
      "initialising",
      { phase: "Pending", initContainerStatuses: [{ state: { terminated: { exitCode: 1, reason: "Error" } } }] },
      "Init:Error",
    ],
  ];
  for (const [what, status, text] of rows) it(what, () => assert.equal(show(status), text));

  it("being deleted", () =>
    assert.equal(show({ phase: "Running" }, { deletionTimestamp: "2026-01-01T00:00:00Z" }), "Terminating"));
});
