import { AUTHORITATIVE_ANSWER, decode, encode, RECURSION_AVAILABLE, RECURSION_DESIRED, type Answer } from "dns-packet";
import type { ClusterNames } from "./names.ts";

const TTL_SECONDS = 5;
/** A UDP answer that is longer is cut, and the client asks again over TCP. */
const MAX_UDP_BYTES = 1232;
/** No record set is longer; a headless service with more endpoints is cut here. */
const MAX_ANSWERS = 200;
const TRUNCATED = 1 << 9;
const FORMAT_ERROR = 1;
const NAME_ERROR = 3;
const NOT_IMPLEMENTED = 4;
const OPCODE_MASK = 0x78_00;
const RESPONSE_BIT = 0x80_00;

/**
 * Answers one DNS question from the cluster's names; names outside do not exist here. Returns the answer's bytes, or
 * undefined for what deserves none (no header, or itself an answer). Never throws.
 */
export function answerQuery(query: Uint8Array, names: ClusterNames, transport: "udp" | "tcp"): Buffer | undefined {
  const bytes = Buffer.from(query);
  if (bytes.length < 12 || (bytes.readUInt16BE(2) & RESPONSE_BIT) !== 0) return undefined;
  if ((bytes.readUInt16BE(2) & OPCODE_MASK) !== 0) return failure(bytes, NOT_IMPLEMENTED);
  let question: { name: string; type: string } | undefined;
  try {
    const decoded = decode(bytes);
    question = decoded.questions?.length === 1 ? decoded.questions[0] : undefined;
  } catch {
    return failure(bytes, FORMAT_ERROR);
  }
  if (question === undefined) return failure(bytes, FORMAT_ERROR);
  try {
    return encodeAnswer({ bytes, question, names, transport });
  } catch {
    return failure(bytes, FORMAT_ERROR); // a question with a name that cannot be written again
  }
}

function encodeAnswer(request: {
  bytes: Buffer;
  question: { name: string; type: string };
  names: ClusterNames;
  transport: "udp" | "tcp";
}): Buffer {
  const { bytes, question, names, transport } = request;
  const { known, answers } = answersFor(question, names);
  const flags = AUTHORITATIVE_ANSWER | RECURSION_AVAILABLE | (bytes.readUInt16BE(2) & RECURSION_DESIRED);
  const head = {
    type: "response" as const,
    id: bytes.readUInt16BE(0),
    flags: flags | (known ? 0 : NAME_ERROR),
    questions: [{ name: question.name, type: question.type as "A" }], // only written back as it came
  };
  const whole = encode({ ...head, answers });
  if (transport === "tcp" || whole.length <= MAX_UDP_BYTES) return whole;
  return encode({ ...head, flags: head.flags | TRUNCATED, answers: [] });
}

function answersFor(
  question: { name: string; type: string },
  names: ClusterNames,
): { known: boolean; answers: Answer[] } {
  const { name, type } = question;
  const found = names.find(name, type);
  switch (found.kind) {
    case "addresses": {
      const addresses = found.addresses.slice(0, MAX_ANSWERS);
      return { known: true, answers: addresses.map((data) => ({ type: "A", name, ttl: TTL_SECONDS, data })) };
    }
    case "alias":
      return { known: true, answers: [{ type: "CNAME", name, ttl: TTL_SECONDS, data: found.target }] };
    case "services": {
      const targets = found.targets.slice(0, MAX_ANSWERS);
      return {
        known: true,
        answers: targets.map(({ name: target, port }) => ({
          type: "SRV",
          name,
          ttl: TTL_SECONDS,
          data: { target, port, priority: 0, weight: 100 },
        })),
      };
    }
    case "empty":
      return { known: true, answers: [] };
    case "unknown":
      return { known: false, answers: [] };
    default:
      return found satisfies never;
  }
}

function failure(query: Buffer, code: number): Buffer {
  const answer = Buffer.alloc(12);
  query.copy(answer, 0, 0, 2);
  answer.writeUInt16BE(RESPONSE_BIT | (query.readUInt16BE(2) & (OPCODE_MASK | RECURSION_DESIRED)) | code, 2);
  return answer;
}
