import type { CodedError } from "#base/errors";
import { hboneError } from "./errors.ts";

/** Types of TLS records (RFC 8446 §5.1). */
export const RECORD = { ALERT: 21, HANDSHAKE: 22, DATA: 23 } as const;

/** Alerts that are sent or looked at here (RFC 8446 §6). */
export const ALERT = {
  CLOSE_NOTIFY: 0,
  UNEXPECTED_MESSAGE: 10,
  BAD_RECORD_MAC: 20,
  RECORD_OVERFLOW: 22,
  ILLEGAL_PARAMETER: 47,
  DECODE_ERROR: 50,
  USER_CANCELED: 90,
} as const;

/** Content of one record, at most (RFC 8446 §5.1), and what may be around it once it is protected (§5.2). */
export const MOST_CONTENT_BYTES = 1 << 14;
export const MOST_EXPANSION_BYTES = 256;

/** Records in a row that carry no data, before they count as a flood. As OpenSSL's own bound. */
export const MOST_EMPTY_RECORDS = 32;

/** After so many records under one key the next key is used: AES-GCM is good for 2^24.5 (RFC 8446 §5.5). */
export const RECORDS_PER_KEY = 2 ** 24;

/** What the peer did wrong; `alert` is what it is told. */
export function recordFault(alert: number, what: string): CodedError {
  return hboneError("HBONE_TLS_RECORD", `a TLS record is refused: ${what}`, { details: { alert } });
}
