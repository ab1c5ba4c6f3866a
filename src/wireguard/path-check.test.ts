import assert from "node:assert/strict";
import { test } from "node:test";
import { PathCheck } from "./path-check.ts";
import type { ProbeEcho, SlotPeer } from "./slots.ts";

function peer(node: string): SlotPeer {
  return { node, publicKey: node, endpoint: "10.0.0.1", port: 1, allowedIps: [], initiator: true };
}

test("a node where only small packets arrive is found, one that loses some or all is not, and one that heals is forgotten", async () => {
  let narrowCarriesAll = false;
  const asked = new Map<string, number>();
  const probe = ({ node }: SlotPeer, { full = false }: ProbeEcho): Promise<boolean> => {
    const count = (asked.get(node) ?? 0) + 1;
    asked.set(node, count);
    if (node === "silent") return Promise.resolve(false);
    if (node === "gone") return Promise.reject(new Error("no device"));
    if (node === "lossy") return Promise.resolve(count % 3 === 0);
    return Promise.resolve(node !== "narrow" || narrowCarriesAll || !full);
  };
  const paths = new PathCheck({ probe: (_slot, entry, echo) => probe(entry, echo) });
  const pairs = ["well", "narrow", "silent", "gone", "lossy"].map((node) => ({ slot: 0 as const, peer: peer(node) }));
  await paths.look(pairs);
  assert.deepEqual([...paths.narrow], ["narrow"]);
  narrowCarriesAll = true;
  await paths.look(pairs);
  assert.deepEqual([...paths.narrow], []);
});
