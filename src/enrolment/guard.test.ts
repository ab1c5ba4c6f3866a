import assert from "node:assert/strict";
import { test } from "node:test";
import { guardScript } from "./guard.ts";

test("the proxy and resets without data pass before anything with port 15008 is dropped, on each interface", () => {
  const lines = guardScript(["eth0", "net1"]).trim().split("\n");
  assert.match(lines[3] ?? "", /hook egress devices = \{ "eth0", "net1" \}/);
  assert.deepEqual(
    lines.slice(4).map((line) => line.replace("add rule netdev veil_guard leaving ", "")),
    [
      "meta mark & 0xfff == 0x539 accept",
      "tcp flags & rst == rst ip length 40 accept",
      "tcp flags & rst == rst ip6 length 20 accept",
      "tcp dport 15008 counter drop",
      "tcp sport 15008 counter drop",
    ],
  );
});
