import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { decodeAddress, decodeLink, findLink, listAddresses } from "./links.ts";
import { openNetns } from "./netns.ts";
import { listRoutes, listRules, MAIN_TABLE } from "./routes.ts";

test("the loopback, its addresses, and the rules of the kernel are found", () => {
  using netns = openNetns("/proc/self/ns/net");
  const loopback = findLink(netns, "lo");
  assert.equal(loopback?.index, 1);
  assert.equal(findLink(netns, "no-such-link0"), undefined);
  assert.ok(listAddresses(netns).some(({ index, ip }) => index === 1 && ip === "127.0.0.1"));
  assert.deepEqual(listRules(netns, 4, [32_766]), [{ priority: 32_766, family: 4, table: MAIN_TABLE }]);
  assert.ok(listRoutes(netns, 4, MAIN_TABLE).every(({ table }) => table === MAIN_TABLE));
});

test("any bytes are an interface, an address, or nothing", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 80 }), (bytes) => {
      const address = decodeAddress(Buffer.from(bytes));
      if (address !== undefined) assert.ok(address.ip.length > 0);
      const link = decodeLink(Buffer.from(bytes));
      if (link !== undefined) assert.ok(link.mtu >= 0);
    }),
  );
});
