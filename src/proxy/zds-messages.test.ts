import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import fc from "fast-check";
import { CodedError } from "#base/errors";
import { WorkloadRequestSchema, WorkloadResponseSchema } from "#proto";
import { decodeRequest, encodeAck } from "./zds-messages.ts";

const encode = (payload: unknown): Uint8Array =>
  toBinary(WorkloadRequestSchema, create(WorkloadRequestSchema, { payload } as never));
const info = { name: "a", namespace: "shop", serviceAccount: "default" };

describe("ZDS messages", () => {
  it("are read", () => {
    assert.deepEqual(decodeRequest(encode({ case: "add", value: { uid: "u", workloadInfo: info } }), 1), {
      kind: "add",
      uid: "u",
      ...info,
    });
    assert.deepEqual(decodeRequest(encode({ case: "del", value: { uid: "u" } }), 0), { kind: "del", uid: "u" });
    assert.deepEqual(decodeRequest(encode({ case: "keep", value: { uid: "u" } }), 0), { kind: "keep", uid: "u" });
    assert.deepEqual(decodeRequest(encode({ case: "snapshotSent", value: {} }), 0), { kind: "snapshotSent" });
  });

  for (const [name, payload, fds, said] of [
    [
      "an add without a descriptor",
      { case: "add", value: { uid: "u", workloadInfo: info } },
      0,
      /"add" came with 0 desc/,
    ],
    [
      "an add with two descriptors",
      { case: "add", value: { uid: "u", workloadInfo: info } },
      2,
      /"add" came with 2 desc/,
    ],
    ["a del with a descriptor", { case: "del", value: { uid: "u" } }, 1, /"del" came with 1 descriptors, 0 expected/],
    ["an add without workload_info", { case: "add", value: { uid: "u" } }, 1, /add.workload_info is missing/],
    ["an add without uid", { case: "add", value: { workloadInfo: info } }, 1, /add.uid is empty/],
    [
      "an add without a name",
      { case: "add", value: { uid: "u", workloadInfo: { ...info, name: "" } } },
      1,
      /workload_info.name is empty/,
    ],
    [
      "an add without a namespace",
      { case: "add", value: { uid: "u", workloadInfo: { ...info, namespace: "" } } },
      1,
      /workload_info.namespace/,
    ],
    [
      "an add without an account",
      { case: "add", value: { uid: "u", workloadInfo: { ...info, serviceAccount: "" } } },
      1,
      /service_account/,
    ],
    ["a del without uid", { case: "del", value: {} }, 0, /del.uid is empty/],
    ["no payload", { case: undefined }, 0, /no payload/],
  ] as const) {
    it(`refuse ${name}, and name the field`, () => {
      assert.throws(() => decodeRequest(encode(payload), fds), said);
    });
  }

  it("of a newer agent are read as far as they are known, and named where they are not", () => {
    const added = Uint8Array.of(...encode({ case: "del", value: { uid: "u" } }), 0xa2, 0x06, 0x01, 0x78); // field 100
    assert.deepEqual(decodeRequest(added, 0), { kind: "del", uid: "u" });
    assert.deepEqual(decodeRequest(Uint8Array.of(0xa2, 0x06, 0x00), 1), { kind: "unknown", field: 100 });
  });

  it("throw only their own code on any bytes", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 1024 }), fc.integer({ min: 0, max: 3 }), (bytes, fds) => {
        try {
          decodeRequest(bytes, fds);
        } catch (error) {
          assert.ok(error instanceof CodedError && error.code === "PROXY_ZDS_MESSAGE", String(error));
        }
      }),
    );
  });

  it("answer in packets that the agent can read, however long the reason", () => {
    const packet = encodeAck("é".repeat(5_000));
    assert.ok(packet.length <= 1024);
    assert.match(fromBinary(WorkloadResponseSchema, packet).payload.value?.error ?? "", /^é+$/);
  });
});
