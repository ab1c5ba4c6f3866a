import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { WorkloadRequestSchema, WorkloadResponseSchema, ZdsHelloSchema } from "#proto";
import { messageOf } from "#base/errors";
import { proxyError } from "./errors.ts";

/** What the agent asks for. */
export type ZdsRequest =
  | {
      readonly kind: "add";
      readonly uid: string;
      readonly name: string;
      readonly namespace: string;
      readonly serviceAccount: string;
    }
  | { readonly kind: "keep"; readonly uid: string }
  | { readonly kind: "del"; readonly uid: string }
  | { readonly kind: "snapshotSent" }
  /** One that a newer agent makes: the number of its field. */
  | { readonly kind: "unknown"; readonly field: number };

/** The proxy's first message. */
export function encodeHello(): Uint8Array {
  return toBinary(ZdsHelloSchema, create(ZdsHelloSchema, { version: 1 }));
}

/** The answer to one request; an empty error is a yes. */
export function encodeAck(error: string): Uint8Array {
  // The other end reads packets of at most 1,024 bytes.
  const response = create(WorkloadResponseSchema, { payload: { case: "ack", value: { error: error.slice(0, 300) } } });
  return toBinary(WorkloadResponseSchema, response);
}

/** Reads one request that came with `fdCount` descriptors; fields that this version does not know are ignored. Throws `PROXY_ZDS_MESSAGE`. */
export function decodeRequest(data: Uint8Array, fdCount: number): ZdsRequest {
  const request = toRequest(data);
  if (request.kind === "unknown") return request;
  const expected = request.kind === "add" ? 1 : 0;
  if (fdCount !== expected) {
    throw malformed(`"${request.kind}" came with ${fdCount} descriptors, ${expected} expected`);
  }
  return request;
}

function toRequest(data: Uint8Array): ZdsRequest {
  const { payload, $unknown: [unknown] = [] } = decodeMessage(data);
  if (payload.case === "snapshotSent") return { kind: "snapshotSent" };
  if (payload.case === "keep" || payload.case === "del") {
    return { kind: payload.case, uid: nonEmpty(payload.value.uid, `${payload.case}.uid`) };
  }
  if (payload.case === undefined) {
    if (unknown === undefined) throw malformed("no payload");
    return { kind: "unknown", field: unknown.no };
  }
  const { uid, workloadInfo } = payload.value;
  if (workloadInfo === undefined) throw malformed("add.workload_info is missing");
  return {
    kind: "add",
    uid: nonEmpty(uid, "add.uid"),
    name: nonEmpty(workloadInfo.name, "add.workload_info.name"),
    namespace: nonEmpty(workloadInfo.namespace, "add.workload_info.namespace"),
    serviceAccount: nonEmpty(workloadInfo.serviceAccount, "add.workload_info.service_account"),
  };
}

function decodeMessage(data: Uint8Array) {
  try {
    return fromBinary(WorkloadRequestSchema, data);
  } catch (cause) {
    throw malformed(messageOf(cause));
  }
}

function nonEmpty(text: string, field: string): string {
  if (text === "") throw malformed(`${field} is empty`);
  return text;
}

function malformed(what: string): Error {
  return proxyError("PROXY_ZDS_MESSAGE", `cannot read a message of the agent: ${what}`);
}
