import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { CLEAR_REASONS, firewallScript, parseCounters } from "./firewall.ts";

const base = { devices: ["cilium_wg0", "cilium_wg1"], clusterRanges: [] };

test("strict mode drops, audit counts, off has no rule about packets that leave in clear", () => {
  const leave = (strict: "off" | "audit" | "on"): string[] =>
    firewallScript({ ...base, strict })
      .split("\n")
      .filter((line) => line.startsWith("add rule inet veil_wireguard leave"));
  assert.deepEqual(leave("off"), []);
  assert.equal(leave("on").filter((rule) => rule.endsWith("counter name no_tunnel drop")).length, 2);
  assert.equal(leave("on").filter((rule) => rule.endsWith("counter name unknown_node drop")).length, 2);
  assert.ok(leave("audit").every((rule) => rule.endsWith("accept")));
  assert.equal(leave("audit").length, leave("on").length);
});

test("what is decided on is decided by a connection's first packet, and kept by its mark", () => {
  const script = firewallScript({ ...base, strict: "off" });
  const decided = script.split("\n").filter((line) => line.startsWith("add rule") && line.includes("ct mark set"));
  assert.equal(decided.length, 4);
  for (const line of decided) assert.match(line, /tcp dport 15008 tcp flags & \(fin \| syn \| rst \| ack\) == syn /);
  assert.match(script, /classify ct mark & 0x8000000 != 0 meta mark set meta mark & 0xfffff0ff \| 0xe00 accept/);
});

test("with double encryption nothing new goes outside of the tunnels, and what has begun there stays", () => {
  const script = firewallScript({ ...base, strict: "off", double: true });
  assert.doesNotMatch(script, /add rule .* ct mark set/);
  assert.match(script, /classify ct mark & 0x8000000 != 0 meta mark set/);
});

test("counters are read as nft prints them, and anything else is no packets", () => {
  const text = `{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"counter": {"family": "inet", "name": "no_tunnel", "table": "veil_wireguard", "handle": 4, "packets": 7, "bytes": 412}}]}`;
  assert.deepEqual(
    [...parseCounters(text)],
    [
      ["no_tunnel", 7],
      ["unknown_node", 0],
    ],
  );
  fc.assert(
    fc.property(fc.string(), (words) => {
      const counted = parseCounters(words);
      assert.deepEqual([...counted.keys()], [...CLEAR_REASONS]);
    }),
  );
});
