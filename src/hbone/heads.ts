import type { CodedError } from "#base/errors";
import { hboneError } from "./errors.ts";
import type { HeaderList } from "./hpack.ts";

/** The header of a request, as far as CONNECT has one. */
export interface RequestHead {
  readonly method: string;
  /** Undefined when missing. */
  readonly authority: string | undefined;
  /** Regular fields; repeated ones are joined by `, `. */
  readonly headers: ReadonlyMap<string, string>;
}

/** The header of an answer. */
export interface ResponseHead {
  readonly status: number;
  readonly headers: ReadonlyMap<string, string>;
}

const FORBIDDEN = new Set(["connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"]);
const NAME = /^[!#$%&'*+.^_`|~0-9a-z-]+$/;
// eslint-disable-next-line no-control-regex -- these are the characters that RFC 9113 §8.2.1 forbids in values
const BAD_VALUE = /[\0\r\n]|^[ \t]|[ \t]$/;

/** Reads a request's header by the rules of RFC 9113 §8. The result is an error (`HBONE_MALFORMED`) when one is broken. */
export function readRequestHead(list: HeaderList): RequestHead | CodedError {
  const fields = splitFields(list, [":method", ":authority", ":scheme", ":path"]);
  if (fields instanceof Error) return fields;
  const method = fields.pseudo.get(":method");
  if (method === undefined) return hboneError("HBONE_MALFORMED", "a request has no :method");
  if (method === "CONNECT" && (fields.pseudo.has(":scheme") || fields.pseudo.has(":path"))) {
    return hboneError("HBONE_MALFORMED", "a CONNECT request has :scheme or :path");
  }
  if (method !== "CONNECT" && !(fields.pseudo.get(":scheme") && fields.pseudo.get(":path"))) {
    return hboneError("HBONE_MALFORMED", `a ${method} request has no :scheme or no :path`);
  }
  return { method, authority: fields.pseudo.get(":authority"), headers: fields.regular };
}

/** Reads an answer's header, likewise. */
export function readResponseHead(list: HeaderList): ResponseHead | CodedError {
  const fields = splitFields(list, [":status"]);
  if (fields instanceof Error) return fields;
  const status = fields.pseudo.get(":status") ?? "";
  if (!/^[1-9]\d\d$/.test(status)) return hboneError("HBONE_MALFORMED", `an answer has the status "${status}"`);
  return { status: Number(status), headers: fields.regular };
}

interface Fields {
  readonly pseudo: Map<string, string>;
  readonly regular: Map<string, string>;
}

function splitFields(list: HeaderList, allowed: readonly string[]): Fields | CodedError {
  const pseudo = new Map<string, string>();
  const regular = new Map<string, string>();
  for (let at = 0; at + 1 < list.length; at += 2) {
    const name = list[at] ?? "";
    const value = list[at + 1] ?? "";
    const wrong = name.startsWith(":")
      ? wrongPseudo(name, { repeated: pseudo.has(name), late: regular.size > 0, allowed })
      : wrongField(name, value);
    if (wrong !== undefined) return hboneError("HBONE_MALFORMED", `${wrong} in a header block`, { details: { name } });
    if (BAD_VALUE.test(value)) return hboneError("HBONE_MALFORMED", `the field ${name} has a forbidden character`);
    if (name.startsWith(":")) pseudo.set(name, value);
    else regular.set(name, regular.has(name) ? `${regular.get(name)}, ${value}` : value);
  }
  return { pseudo, regular };
}

function wrongPseudo(
  name: string,
  context: { repeated: boolean; late: boolean; allowed: readonly string[] },
): string | undefined {
  if (!context.allowed.includes(name)) return `the pseudo-field ${name} is not allowed`;
  if (context.repeated) return `the pseudo-field ${name} is repeated`;
  return context.late ? `the pseudo-field ${name} follows a regular field` : undefined;
}

function wrongField(name: string, value: string): string | undefined {
  if (!NAME.test(name)) return "a field name has a forbidden character";
  if (FORBIDDEN.has(name)) return `the field ${name} belongs to HTTP/1`;
  return name === "te" && value !== "trailers" ? "the field te is not allowed" : undefined;
}
