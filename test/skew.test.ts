/** Roles of neighbouring minor versions read each other: what was recorded of one is held against the other. */
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { createFileRegistry, fromBinary, toJson } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { CodedError } from "#base/errors";
import { plain, recordFile, SAMPLES, VERSION, type SkewRecord } from "./skew/messages.ts";

const [MAJOR = 0, MINOR = 0] = VERSION.split(".").map(Number);
const RECORD = "node --conditions=veil-source test/skew/messages.ts";

function readRecord(minor: number): SkewRecord[] {
  const file = recordFile(MAJOR, minor);
  return existsSync(file) ? [JSON.parse(readFileSync(file, "utf8")) as SkewRecord] : []; // our own file
}

/** Of this minor version and the one before. */
const records = [...readRecord(MINOR - 1), ...readRecord(MINOR)];
const base64 = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text, "base64"));

/** A text in field 1000, which no message has. */
const UNKNOWN_FIELD = Uint8Array.of(0xc2, 0x3e, 0x03, 0x6e, 0x65, 0x77);

describe("what roles say to each other", () => {
  it("is recorded as this version says it", () => {
    const own = records.at(-1);
    assert.ok(
      own !== undefined && own.version.startsWith(`${MAJOR}.${MINOR}.`),
      `the messages of ${VERSION} are not recorded: ${RECORD}`,
    );
    for (const [name, { bytes }] of Object.entries(SAMPLES)) {
      const recorded: string = own.messages[name]?.bytes ?? "";
      const hint = `"${name}" has changed: if the tests below pass, record it (${RECORD})`;
      assert.equal(Buffer.from(bytes).toString("base64"), recorded, hint);
    }
  });

  for (const { version, messages, descriptors } of records) {
    for (const [name, { bytes, means }] of Object.entries(messages)) {
      it(`is read when ${version} says it: ${name}`, () => {
        assert.deepEqual(plain(SAMPLES[name]?.read(base64(bytes))), means);
      });
    }

    const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, base64(descriptors)));
    for (const [name, { schema, bytes }] of Object.entries(SAMPLES)) {
      const recorded = messages[name];
      if (schema === undefined || recorded === undefined) continue; // JSON, or new: nobody says it to those who do not know it
      it(`is read by ${version} when this version says it: ${name}`, () => {
        const old = registry.getMessage(schema.typeName);
        assert.ok(old, `${version} knows ${schema.typeName}`);
        const read = (packet: Uint8Array): unknown => toJson(old, fromBinary(old, packet), { registry });
        assert.deepEqual(read(bytes), read(base64(recorded.bytes)));
      });
    }
  }

  for (const [name, { schema, bytes, read }] of Object.entries(SAMPLES)) {
    if (schema === undefined) continue;
    it(`may have a field that is not known yet: ${name}`, () => {
      const newer = Uint8Array.of(...bytes, ...UNKNOWN_FIELD);
      // What a policy says beside may narrow whom it lets in: it is not guessed, its workloads let nobody in until it is read.
      if (name === "policy") {
        const isRefusal = (error: unknown): boolean =>
          error instanceof CodedError && error.code === "AUTHORIZATION_CONDITION";
        assert.throws(() => read(newer), isRefusal);
        return;
      }
      assert.deepEqual(plain(read(newer)), plain(read(bytes)));
    });
  }

  it("may have a field that is not known yet: cni request", () => {
    const { bytes, read } = SAMPLES["cni request"] ?? assert.fail();
    const request = JSON.parse(Buffer.from(bytes).toString()) as { config: string }; // written by messages.ts
    const config = JSON.stringify({ ...(JSON.parse(request.config) as object), later: true });
    const newer = new TextEncoder().encode(JSON.stringify({ ...request, config, later: { a: 1 } }));
    assert.deepEqual(read(newer), read(bytes));
  });
});
