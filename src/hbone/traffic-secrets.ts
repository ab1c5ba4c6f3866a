const SPACE = 0x20;

/**
 * The two secrets of a session out of OpenSSL's key log (`LABEL client-random secret`, in hexadecimal). They never become
 * strings, which could not be wiped.
 */
export class TrafficSecrets {
  client: Uint8Array | undefined;
  server: Uint8Array | undefined;

  /** Takes a line, and wipes it. */
  take(line: Uint8Array): void {
    const labelEnd = line.indexOf(SPACE);
    const label = Buffer.from(line.subarray(0, Math.max(labelEnd, 0))).toString("latin1");
    if (label === "CLIENT_TRAFFIC_SECRET_0") this.client = secretOf(line, labelEnd);
    else if (label === "SERVER_TRAFFIC_SECRET_0") this.server = secretOf(line, labelEnd);
    line.fill(0);
  }

  wipe(): void {
    this.client?.fill(0);
    this.server?.fill(0);
    this.client = undefined;
    this.server = undefined;
  }
}

function secretOf(line: Uint8Array, labelEnd: number): Uint8Array {
  const digits: number[] = [];
  for (let at = line.indexOf(SPACE, labelEnd + 1) + 1; at < line.length; at++) {
    const digit = digitOf(line[at] ?? 0);
    if (digit < 0) break; // the end of the line
    digits.push(digit);
  }
  const secret = new Uint8Array(digits.length >> 1);
  for (let i = 0; i < secret.length; i++) secret[i] = ((digits[2 * i] ?? 0) << 4) | (digits[2 * i + 1] ?? 0);
  digits.fill(0);
  return secret;
}

function digitOf(code: number): number {
  if (code >= 0x30 && code <= 0x39) return code - 0x30;
  const lower = code | 0x20;
  return lower >= 0x61 && lower <= 0x66 ? lower - 0x57 : -1;
}
