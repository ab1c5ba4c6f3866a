import assert from "node:assert/strict";
import { test } from "node:test";
import type { WireGuardNode, WireGuardRotation } from "#wireguard";
import { said } from "./testing.ts";
import { checkWireguard } from "./wireguard.ts";

const SINCE = "2026-01-01T00:00:00Z";
const nowMs = Date.parse(SINCE) + 100_000;
const nodes = ["a", "b", "c"].map((name) => ({ metadata: { name } }));

function report(name: string, status: WireGuardNode["status"] = {}): WireGuardNode {
  return { metadata: { name }, status: { backend: "kernel", version: "1", pairs: 2, proven: 2, ...status } };
}

function rotation(status: WireGuardRotation["status"] = {}): WireGuardRotation {
  return { metadata: { name: "cluster" }, status: { generation: 7, intervalSeconds: 120, since: SINCE, ...status } };
}

const well = { nodes, reports: nodes.map(({ metadata }) => report(metadata.name)), rotations: [rotation()], nowMs };

test("tunnels that are off, well, or without reports are told apart", () => {
  assert.match(said(checkWireguard({ ...well, reports: [], rotations: [] })).join(), /^ok: tunnels .* are off/);
  assert.deepEqual(said(checkWireguard(well)), [
    "ok: 3 nodes with tunnels (kernel 1), keys of generation 7, a new one each 120 s",
  ]);
  assert.match(said(checkWireguard({ ...well, reports: [] })).join(), /^problem: no node reports/);
  assert.match(said(checkWireguard({ ...well, reports: well.reports.slice(1) })).join(), /^problem: 1 node .*: a$/);
  assert.match(
    said(checkWireguard({ ...well, rotations: [{ metadata: { name: "cluster" } }] })).join(),
    /^problem: no controller/,
  );
});

test("a node of which several complain is named once, with what to do", () => {
  const problem = { node: "c", reason: "NotProven", message: "no answer from 10.0.0.3 on UDP 51871" };
  const reports = [report("a", { problems: [problem] }), report("b", { problems: [problem] }), report("c")];
  const findings = checkWireguard({ ...well, reports });
  assert.deepEqual(said(findings), [`problem: node c: ${problem.message} (NotProven, says a, b)`]);
  assert.match(findings[0]?.todo ?? "", /open UDP 51871 and 51872/);
  const own = [
    report("a", { problems: [{ node: "", reason: "DeviceFailed", message: "slot 0: no" }] }),
    ...reports.slice(2),
    report("b"),
  ];
  assert.match(
    said(checkWireguard({ ...well, reports: own })).join(),
    /^problem: node a: slot 0: no \(DeviceFailed, says a\)$/,
  );
});

test("a refused node, one with one key, and a late rotation are named", () => {
  const refused = [{ node: "b", reason: "KeyDuplicate", message: "its key of slot 0 is that of node a" }];
  assert.match(
    said(checkWireguard({ ...well, rotations: [rotation({ refused })] })).join(),
    /node b: its key .* says the controller/,
  );
  const oneSlot = [report("a", { oneSlot: ["c"] }), ...well.reports.slice(1)];
  assert.match(said(checkWireguard({ ...well, reports: oneSlot })).join(), /^warning: 1 node with one key .*: c,ok/);
  const waiting = [rotation({ waitingFor: [{ node: "b", reason: "NotDone" }] })];
  assert.match(said(checkWireguard({ ...well, rotations: waiting })).join(), /^ok/);
  const late = said(checkWireguard({ ...well, rotations: waiting, nowMs: nowMs + 200_000 }));
  assert.deepEqual(late, [
    "problem: keys stay at generation 7, 3 minutes late, and wait for b (NotDone); traffic goes on",
  ]);
});
