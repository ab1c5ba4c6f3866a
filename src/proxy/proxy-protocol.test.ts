import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { parseSpiffeId } from "#model/spiffe-id";
import { encodeProxyHeader } from "./proxy-protocol.ts";
import { testAddress } from "./testing.ts";

const peer = parseSpiffeId("spiffe://cluster.local/ns/shop/sa/client");
const header = (source: string, destination: string): string =>
  Buffer.from(encodeProxyHeader({ source: testAddress(source), destination: testAddress(destination), peer })).toString(
    "hex",
  );
const SIGNATURE = "0d0a0d0a000d0a515549540a";
const IDENTITY = `d00028${Buffer.from(peer).toString("hex")}`;

describe("a PROXY protocol header", () => {
  it("holds both addresses and the caller's identity", () => {
    // Signature; version 2, PROXY; TCP over IPv4; 12 + 3 + 40 bytes; the addresses; the ports 4000 and 8080; the identity.
    const expected = `${SIGNATURE}211100370a0100010a6000010fa01f90${IDENTITY}`;
    assert.equal(header("10.1.0.1:4000", "10.96.0.1:8080"), expected);
  });

  it("is of IPv6 when both addresses are", () => {
    const [one, two] = [`fd${"00".repeat(14)}01`, `fd${"00".repeat(14)}02`];
    assert.equal(header("[fd00::1]:4000", "[fd00::2]:8080"), `${SIGNATURE}2121004f${one}${two}0fa01f90${IDENTITY}`);
  });

  it("writes an IPv4 address as a mapped one beside an IPv6 address", () => {
    const [mapped, two] = [`${"00".repeat(10)}ffff0a010001`, `fd${"00".repeat(14)}02`];
    assert.equal(header("10.1.0.1:4000", "[fd00::2]:8080"), `${SIGNATURE}2121004f${mapped}${two}0fa01f90${IDENTITY}`);
  });
});
