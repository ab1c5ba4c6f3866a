import assert from "node:assert/strict";
import { test } from "node:test";
import type { NodeView } from "#wireguard";
import { formatTunnels } from "./wireguard-status.ts";

const status = {
  backend: "kernel",
  version: "6.8",
  done: 7,
  pairs: 1,
  proven: 0,
  problems: [{ node: "b", reason: "NotProven", message: "no answer" }],
};
const slot = {
  slot: 1,
  generation: 7,
  fingerprint: "85907d42",
  state: "sending",
  keyAgeSeconds: 9,
  receivedBytes: 10,
  sentBytes: 20,
} as const;

test("tunnels are shown by node, and each pair by slot, with what is wrong", () => {
  const text = formatTunnels({
    rotation: {
      status: {
        generation: 8,
        phase: "moving",
        intervalSeconds: 120,
        since: "2026-01-01T00:00:00Z",
        waitingFor: [{ node: "b", reason: "NotDone" }],
      },
    },
    nodes: [{ metadata: { name: "a" }, status }],
    views: new Map<string, NodeView | string>([
      [
        "a",
        {
          node: "a",
          generation: 8,
          done: 7,
          own: [{ slot: 1, generation: 7, fingerprint: "aaaaaaaa", port: 51872 }],
          pairs: [
            {
              node: "b",
              endpoint: "192.168.0.2",
              hasSlots: true,
              reason: "no answer",
              slots: [{ ...slot, handshakeAgeSeconds: 3 }],
            },
            {
              node: "c",
              endpoint: "192.168.0.3",
              hasSlots: false,
              reason: undefined,
              slots: [{ ...slot, slot: 0, handshakeAgeSeconds: undefined }],
            },
          ],
          refused: [{ node: "d", reason: "KeyZero", message: "the key is all zero" }],
        },
      ],
      ["b", "no agent runs there"],
    ]),
  });
  assert.deepEqual(text.split("\n"), [
    "generation 8 of keys since 2026-01-01T00:00:00Z, moving, waiting for b (NotDone); a new one every 120 s",
    "NODE  BACKEND     GENERATION  PEERS  ON IT  PROBLEMS",
    "a     kernel 6.8  7           1      0      1",
    "  a: b: no answer (NotProven)",
    "",
    "a: slot 1 (UDP 51872): generation 7, key aaaaaaaa",
    "PEER  SLOT  GENERATION  KEY       STATE    KEY AGE  HANDSHAKE  RECEIVED  SENT",
    "b     1     7           85907d42  sending  9 s      3 s        10        20",
    "c     0     static      85907d42  sending  9 s      none       10        20",
    "  b: no answer",
    "  d is refused: the key is all zero (KeyZero)",
    "",
    "b: no agent runs there",
    "",
  ]);
});

test("a cluster without tunnels says so", () => {
  assert.equal(
    formatTunnels({ rotation: undefined, nodes: [], views: new Map() }),
    "no node has tunnels: wireguard.mode is off, or no agent has started yet\n",
  );
});
