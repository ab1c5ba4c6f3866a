import { create, fromBinary, toBinary, type MessageInitShape } from "@bufbuild/protobuf";
import { WorkloadRequestSchema, WorkloadResponseSchema, ZdsHelloSchema } from "#proto";
import { enrolmentError } from "./errors.ts";

/** What the agent asks of the proxy. Only `add` travels with a descriptor: the pod's network namespace. */
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
  | { readonly kind: "snapshot-sent" };

const VERSION_1 = 1;

/** One packet of the agent. */
export function encodeZdsRequest(request: ZdsRequest): Uint8Array {
  return toBinary(WorkloadRequestSchema, create(WorkloadRequestSchema, initOf(request)));
}

function initOf(request: ZdsRequest): MessageInitShape<typeof WorkloadRequestSchema> {
  if (request.kind === "snapshot-sent") return { payload: { case: "snapshotSent", value: {} } };
  if (request.kind !== "add") return { payload: { case: request.kind, value: { uid: request.uid } } };
  const { uid, name, namespace, serviceAccount } = request;
  return { payload: { case: "add", value: { uid, workloadInfo: { name, namespace, serviceAccount } } } };
}

/** Reads the proxy's first packet. Throws `ENROLMENT_ZDS_MESSAGE` for another version, or when it is no hello. */
export function decodeZdsHello(packet: Uint8Array): void {
  const version: number = decode(() => fromBinary(ZdsHelloSchema, packet), "hello").version;
  if (version === VERSION_1) return;
  throw enrolmentError("ENROLMENT_ZDS_MESSAGE", `the proxy speaks ZDS version ${version}, not 1`, {
    details: { version },
  });
}

/** Reads an answer of the proxy: empty when it is done, otherwise its objection. Throws `ENROLMENT_ZDS_MESSAGE`. */
export function decodeZdsAck(packet: Uint8Array): string {
  const { payload } = decode(() => fromBinary(WorkloadResponseSchema, packet), "answer");
  if (payload.case === "ack") return payload.value.error;
  throw enrolmentError("ENROLMENT_ZDS_MESSAGE", "the proxy sent an answer that is no acknowledgement");
}

function decode<T>(read: () => T, what: string): T {
  try {
    return read();
  } catch (cause) {
    throw enrolmentError("ENROLMENT_ZDS_MESSAGE", `the proxy's ${what} cannot be read as protobuf`, { cause });
  }
}
