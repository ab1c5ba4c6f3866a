import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { CodedError } from "#base/errors";
import { decodeMessages, encodeAttribute, encodeNumber, findAttribute } from "./netlink.ts";

test("attributes are found again among others, padded as the kernel wants them", () => {
  const name = Buffer.from("veil\0");
  const attributes = Buffer.concat([encodeNumber(3, 7), encodeAttribute(1, name), encodeNumber(2, 0xffff_ffff)]);
  assert.equal(attributes.toString("hex"), "0800030007000000090001007665696c0000000008000200ffffffff");
  assert.deepEqual(findAttribute(attributes, 1), name);
  assert.equal(findAttribute(attributes, 2)?.readUInt32LE(0), 0xffff_ffff);
  assert.equal(findAttribute(attributes, 4), undefined);
});

test("any packet is read, or refused with the one code", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), fc.nat(20), (bytes, length) => {
      const packet = Buffer.from(bytes);
      if (packet.length >= 4) packet.writeUInt32LE(length, 0);
      try {
        const messages = decodeMessages(packet);
        assert.ok(messages.reduce((sum, { body }) => sum + body.length, 0) <= packet.length);
      } catch (error) {
        assert.ok(error instanceof CodedError && error.code === "LINUX_SYSCALL", String(error));
      }
      findAttribute(packet, length);
    }),
  );
});
