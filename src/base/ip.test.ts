import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { bytesToIp, cidrContains, findHostPort, findIp, formatHostPort, ipToBytes, parseCidr, parseIp } from "./ip.ts";

test("addresses are printed as RFC 5952 asks", () => {
  for (const [text, canonical] of [
    ["2001:DB8::1", "2001:db8::1"],
    ["2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"],
    ["::ffff:10.1.2.3", "10.1.2.3"],
    ["0:0:0:0:0:0:0:0", "::"],
    ["1:0:2:3:4:5:6:7", "1:0:2:3:4:5:6:7"],
    ["10.0.0.1", "10.0.0.1"],
  ] as const) {
    assert.equal(parseIp(text), canonical);
  }
});

test("what is no address is refused", () => {
  for (const text of ["", "10.0.0", "10.0.0.256", "fe80::1%eth0", "::g", "a.b.c.d"])
    assert.equal(findIp(text), undefined);
  assert.throws(() => parseIp("nonsense"), { code: "IP_INVALID" });
  assert.throws(() => bytesToIp(new Uint8Array(5)), { code: "IP_INVALID" });
});

test("bytes and text are two forms of one address", () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 16, maxLength: 16 }), (bytes) => {
      const ip = bytesToIp(bytes);
      assert.equal(parseIp(ip), ip);
      if (ip.includes(":")) assert.deepEqual(ipToBytes(ip), bytes);
    }),
  );
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 4, maxLength: 4 }), (b) => assert.deepEqual(ipToBytes(bytesToIp(b)), b)),
  );
});

test("a prefix holds exactly the addresses that share its bits", () => {
  const cidr = parseCidr("10.244.128.0/17");
  assert.ok(cidrContains(cidr, parseIp("10.244.255.1")));
  assert.ok(!cidrContains(cidr, parseIp("10.244.127.255")));
  assert.ok(!cidrContains(cidr, parseIp("::1")));
  assert.ok(cidrContains(parseCidr("0.0.0.0/0"), parseIp("1.2.3.4")));
  assert.throws(() => parseCidr("10.0.0.0/33"), { code: "CIDR_INVALID" });
});

test("host and port are read in both families and refused otherwise", () => {
  assert.deepEqual(findHostPort("[::1]:80"), { host: "::1", port: 80 });
  assert.deepEqual(findHostPort("a.b:65535"), { host: "a.b", port: 65535 });
  for (const text of ["a", "a:", "a:65536", "::1:80x", "a:b:1"]) assert.equal(findHostPort(text), undefined);
  assert.equal(formatHostPort("::1", 1), "[::1]:1");
});
