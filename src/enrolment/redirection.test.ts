import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { parseIp } from "#base/ip";
import { captureScript, countProxied, keepScript, parseSockets } from "./redirection.ts";

const TABLE = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0100007F:3A99 0201F40A:9C40 01 00000000:00000000 00:00000000 00000000     0        0 2 1
   2: 0201F40A:9C40 0202F40A:2328 01 00000000:00000000 00:00000000 00000000     0        0 3 1
   3: 0201F40A:9C41 0202F40A:3AA0 01 00000000:00000000 00:00000000 00000000     0        0 4 1
   4: 0100007F:3A99 0201F40A:9C44 06 00000000:00000000 00:00000000 00000000     0        0 0 1
   5: 0201F40A:3A9E 0202F40A:9C45 01 00000000:00000000 00:00000000 00000000     0        0 5 1
   6: 0202F40A:9C46 0201F40A:2328 01 00000000:00000000 00:00000000 00000000     0        0 6 1
   7: 0302F40A:9C47 0201F40A:2328 08 00000000:00000000 00:00000000 00000000     0        0 7 1
   8: 0201F40A:3AA0 0202F40A:9C48 01 00000000:00000000 00:00000000 00000000     0        0 8 1
`;
const own = ["10.244.1.2", "127.0.0.1", "::1"].map(parseIp);

test("the sockets of proxied connections are counted: not listeners, not what has ended, not idle sessions", () => {
  const sockets = parseSockets(TABLE);
  assert.equal(sockets.length, 9);
  assert.equal(sockets[2]?.ip, "10.244.1.2");
  assert.equal(countProxied(sockets, own), 3, "one outbound; two inbound under their clients' addresses");
  assert.equal(countProxied([], own), 0);
});

test("sockets of IPv6 are read, and IPv4 within IPv6 is IPv4", () => {
  const line = (address: string): string => `   0: ${address}:3A99 ${"0".repeat(32)}:0000 01 0`;
  const mapped = parseSockets(line("0000000000000000FFFF00000201F40A"));
  assert.deepEqual(mapped, [{ ip: "10.244.1.2", port: 15001, state: 1 }]);
  assert.equal(parseSockets(line("B80D0120000000000000000001000000"))[0]?.ip, "2001:db8::1");
});

test("whatever stands in the file is read without a failure", () => {
  const hex = fc.string({ unit: fc.constantFrom(..."0123456789ABCDEF:. \n".split("")), maxLength: 200 });
  fc.assert(
    fc.property(fc.oneof(hex, fc.string()), (text) => {
      assert.ok(countProxied(parseSockets(text), own) >= 0);
    }),
  );
});

test("what comes in from a virtual machine counts as outbound, before any rule for inbound connections", () => {
  const script = captureScript({ inbound: true, dns: false, virtualInterfaces: ["k6t-eth0"] });
  const rules = script.split("\n").filter((line) => line.includes("nat_prerouting") && line.startsWith("add rule"));
  assert.match(rules[0] ?? "", /iifname "k6t-eth0" .*redirect to :15001$/);
  assert.match(rules[1] ?? "", /iifname "k6t-eth0" meta l4proto tcp counter return$/);
  assert.equal(rules.length, 5);
  assert.equal(
    captureScript({ inbound: false, dns: false, virtualInterfaces: ["vm0"] }).match(/redirect to :15001/g)?.length,
    2,
  );
});

test("ingress mode leaves inbound connections alone, and nothing captures once kept", () => {
  assert.match(captureScript({ inbound: true, dns: false }), /redirect to :15006/);
  assert.doesNotMatch(captureScript({ inbound: false, dns: false }), /redirect to :15006/);
  assert.match(captureScript({ inbound: false, dns: false }), /redirect to :15001/);
  assert.doesNotMatch(keepScript(), /redirect/);
});

test("DNS is captured where it is wished, over UDP and TCP, before the rule for all TCP", () => {
  const rules = captureScript({ inbound: true, dns: true });
  assert.equal(rules.match(/redirect to :15053/g)?.length, 2);
  assert.ok(rules.indexOf("redirect to :15053") < rules.indexOf("redirect to :15001"));
  assert.doesNotMatch(captureScript({ inbound: true, dns: false }), /15053|udp/);
});
