import { x509Error } from "./errors.ts";

/** One block of PEM text: its label and what is inside. */
export interface PemBlock {
  readonly label: string;
  readonly der: Uint8Array;
}

/** Caps of {@link parsePem}. */
export interface PemLimits {
  readonly mostBytes: number;
  readonly mostBlocks: number;
}

const BEGIN = "-----BEGIN ";
const END = "-----END ";
const DASHES = "-----";
const BASE64 = /^[A-Za-z0-9+/]+={0,2}$/;

/**
 * Reads all blocks of PEM text (RFC 7468); text between blocks is passed over, as OpenSSL does. Linear in the input.
 * Throws `X509_PEM` for no block or a damaged one, `X509_TOO_LARGE` beyond the limits. `place` names where the text came from;
 * the text itself never appears in an error, since it may hold a key.
 */
export function parsePem(text: string, place: string, limits: PemLimits): readonly PemBlock[] {
  if (text.length > limits.mostBytes) {
    throw x509Error("X509_TOO_LARGE", `${place} has ${text.length} bytes, at most ${limits.mostBytes} are read`, {
      details: { place },
    });
  }
  const blocks: PemBlock[] = [];
  for (let at = text.indexOf(BEGIN); at >= 0;) {
    if (blocks.length === limits.mostBlocks) {
      throw x509Error("X509_TOO_LARGE", `${place} has more than ${limits.mostBlocks} blocks`, { details: { place } });
    }
    const { block, next } = readBlock(text, at, `block ${blocks.length + 1} of ${place}`);
    blocks.push(block);
    at = text.indexOf(BEGIN, next);
  }
  if (blocks.length === 0) throw x509Error("X509_PEM", `${place} holds no PEM block`, { details: { place } });
  return blocks;
}

/** Writes one block, lines of 64 characters. */
export function formatPem(label: string, der: Uint8Array): string {
  const base64 = Buffer.from(der.buffer, der.byteOffset, der.byteLength).toString("base64");
  const lines = base64.match(/.{1,64}/g) ?? [];
  return `${BEGIN}${label}${DASHES}\n${lines.join("\n")}\n${END}${label}${DASHES}\n`;
}

function readBlock(text: string, begin: number, place: string): { block: PemBlock; next: number } {
  const labelStart = begin + BEGIN.length;
  const labelEnd = text.indexOf(DASHES, labelStart);
  const label = labelEnd < 0 || labelEnd - labelStart > 64 ? undefined : text.slice(labelStart, labelEnd);
  if (label === undefined) throw damaged(place, "its first line is cut short");
  const bodyStart = labelEnd + DASHES.length;
  const end = text.indexOf(END, bodyStart);
  if (end < 0) throw damaged(place, "its last line is missing");
  if (!text.startsWith(`${label}${DASHES}`, end + END.length)) throw damaged(place, "its two labels differ");
  const body = text.slice(bodyStart, end).replaceAll(/[\r\n\t ]/g, "");
  if (body.length % 4 !== 0 || !BASE64.test(body)) throw damaged(place, "what is inside is no base64");
  return { block: { label, der: new Uint8Array(Buffer.from(body, "base64")) }, next: end + END.length };
}

function damaged(place: string, why: string): Error {
  return x509Error("X509_PEM", `${place} is damaged: ${why}`, { details: { place } });
}
