import assert from "node:assert/strict";
import { test } from "node:test";
import { CellSet } from "#base/metrics";
import { wireguardMetrics, wireguardPeerMetrics } from "./metrics.ts";
import { advance, newNode } from "./node.ts";
import type { NodeState } from "./node-state.ts";
import { countNode, describeNode, reportOf, samplesOf } from "./view.ts";

const key = (number: number): string => Buffer.alloc(32, number).toString("base64");
const facts = { backend: { kind: "kernel", version: "6.8" }, refusals: [], narrow: new Set<string>() };

/** A node on generation 2, and a peer that has published `generation`. */
function nodeWith(generation: number): NodeState {
  const state = newNode("a", [51_871, 51_872]);
  const own = { generation: 2, publicKey: key(1), port: 51_871 };
  advance(state, { kind: "started", own: [own, undefined], found: [new Set(), new Set()], done: 1 }, 0);
  advance(state, { kind: "target", generation: 2 }, 0);
  const theirs = { generation, publicKey: key(2), port: 51_871 };
  const peer = {
    node: "b",
    endpoint: "192.168.0.2",
    allowedIps: ["10.2.0.0/24"],
    keys: { 0: theirs, 1: undefined },
    sending: 1,
    hasSlots: true,
  };
  advance(state, { kind: "peer", node: "b", peer }, 0);
  return state;
}

test("a pair that is not proven is a problem after its deadline, with what is missing", () => {
  assert.deepEqual(reportOf(nodeWith(2), { ...facts, nowMs: 9_000 }).problems, []);
  const reasons = [2, 0].map((generation) => reportOf(nodeWith(generation), { ...facts, nowMs: 10_000 }).problems);
  assert.deepEqual(
    reasons.map(([problem]) => problem?.reason),
    ["NotProven", "PeerBehind"],
  );
  assert.match(reasons[0]?.[0]?.message ?? "", /192\.168\.0\.2 on UDP 51871/);
});

test("metrics name each peer in each slot, and every one of them is declared", () => {
  const lastHandshakeMs = 5_000;
  const devices = [
    { publicKey: key(1), peers: new Map([[key(2), { lastHandshakeMs, receivedBytes: 7, sentBytes: 8 }]]) },
  ];
  const samples = samplesOf(describeNode(nodeWith(2), { ...facts, devices, nowMs: 9_000, monotonicMs: 1_000 }));
  assert.deepEqual(
    samples.map(({ name, value }) => [name.replace("veil_wireguard_peer_", ""), value]),
    [
      ["generation", 2],
      ["sending", 0],
      ["handshake_age_seconds", 4],
      ["received_bytes_total", 7],
      ["sent_bytes_total", 8],
    ],
  );
  for (const { name, labels } of samples) new CellSet(wireguardPeerMetrics).bind(name, labels);
});

test("refused nodes are counted by reason, and no longer when they are gone", () => {
  const cells = new CellSet(wireguardMetrics);
  const count = (): number => cells.bind("veil_wireguard_refused_peers", { reason: "KeyZero" }).value;
  countNode(nodeWith(2), [{ node: "x", reason: "KeyZero", message: "zero" }], cells);
  assert.equal(count(), 1);
  assert.equal(cells.bind("veil_wireguard_pairs", { state: "none" }).value, 1);
  countNode(nodeWith(2), [], cells);
  assert.equal(count(), 0);
});
