import koffi from "koffi";
import { linuxError } from "./libc.ts";

/** TLS 1.3 cipher suites whose records can be protected here, by their IANA names. */
export type RecordSuite = keyof typeof SUITES;

const SUITES = {
  TLS_AES_128_GCM_SHA256: { hash: "sha256", keyBytes: 16, cipher: "EVP_aes_128_gcm" },
  TLS_AES_256_GCM_SHA384: { hash: "sha384", keyBytes: 32, cipher: "EVP_aes_256_gcm" },
} as const;

/** What the protection adds to the content of a record: header, type, tag. */
export const RECORD_OVERHEAD_BYTES = 22;
export const RECORD_HEADER_BYTES = 5;
const TAG_BYTES = 16;
const NONCE_BYTES = 12;
const [CTRL_GET_TAG, CTRL_SET_TAG] = [0x10, 0x11];

/** Node's own OpenSSL: its program exports it. Pointers go as numbers, which is koffi's fastest way. */
function loadCrypto() {
  const program = koffi.load(null);
  const contextMade = ["uintptr_t", "uintptr_t", "uintptr_t", "uintptr_t", "uintptr_t"];
  const updated = ["uintptr_t", "uintptr_t", "uintptr_t", "uintptr_t", "int"];
  const finished = ["uintptr_t", "uintptr_t", "uintptr_t"];
  // Signatures of <openssl/evp.h>; koffi's functions have no types.
  const load = (name: string, result: string, args: string[]) =>
    program.func(name, result, args) as unknown as (...words: number[]) => number;
  return {
    make: load("EVP_CIPHER_CTX_new", "uintptr_t", []),
    free: load("EVP_CIPHER_CTX_free", "void", ["uintptr_t"]),
    control: load("EVP_CIPHER_CTX_ctrl", "int", ["uintptr_t", "int", "int", "uintptr_t"]),
    hmac: load("HMAC", "uintptr_t", ["uintptr_t", "uintptr_t", "int", "uintptr_t", "size_t", "uintptr_t", "uintptr_t"]),
    digests: {
      sha256: load("EVP_sha256", "uintptr_t", [])(),
      sha384: load("EVP_sha384", "uintptr_t", [])(),
    },
    ciphers: {
      EVP_aes_128_gcm: load("EVP_aes_128_gcm", "uintptr_t", [])(),
      EVP_aes_256_gcm: load("EVP_aes_256_gcm", "uintptr_t", [])(),
    },
    seal: {
      init: load("EVP_EncryptInit_ex", "int", contextMade),
      update: load("EVP_EncryptUpdate", "int", updated),
      final: load("EVP_EncryptFinal_ex", "int", finished),
    },
    open: {
      init: load("EVP_DecryptInit_ex", "int", contextMade),
      update: load("EVP_DecryptUpdate", "int", updated),
      final: load("EVP_DecryptFinal_ex", "int", finished),
    },
  };
}

type Crypto = ReturnType<typeof loadCrypto>;

let crypto: Crypto | undefined;

/** What the running Node lacks to protect records; undefined: nothing. */
export function describeMissingCrypto(): string | undefined {
  try {
    crypto ??= loadCrypto();
    return undefined;
  } catch (error) {
    return `its OpenSSL cannot be called: ${String(error)}`;
  }
}

/** Off V8's heap, where nothing moves it. */
function fixed(byteCount: number): Uint8Array {
  return new Uint8Array(new ArrayBuffer(byteCount));
}

const addresses = new WeakMap<ArrayBufferLike, number>();

/** Where a view's first byte is. Only buffers that are not resizable, detached or shared: the project makes no others. */
function addressOf(view: Uint8Array): number {
  const { buffer } = view;
  let address = addresses.get(buffer);
  if (address === undefined) {
    address = Number(koffi.address(buffer));
    addresses.set(buffer, address);
  }
  return address + view.byteOffset;
}

/**
 * What OpenSSL is given the address of. A number keeps nothing alive: whoever uses an address holds its buffer, in here, for as
 * long as OpenSSL may use it (each call ends before it returns).
 */
const held = {
  /** Written by every call, read by none. */
  produced: fixed(8),
  type: fixed(1),
  nonce: fixed(NONCE_BYTES),
  /** A key on its way: wiped after use. */
  block: fixed(64),
  info: fixed(64),
  source: fixed(1),
  target: fixed(1),
};
const address = {
  produced: addressOf(held.produced),
  type: addressOf(held.type),
  nonce: addressOf(held.nonce),
  block: addressOf(held.block),
  info: addressOf(held.info),
};

/** Bytes of a view: `count` from `at`. */
export interface Span {
  readonly bytes: Uint8Array;
  readonly at: number;
  readonly count: number;
}

let inUse = 0;

/** How many {@link RecordProtection}s of this thread hold memory of OpenSSL's, which no collection would free. */
export function protectionsInUse(): number {
  return inUse;
}

/**
 * One direction's protection of TLS 1.3 records (RFC 8446 §5.2, §5.3, §7.2, §7.3): key and sequence number of a traffic secret,
 * and AEAD by Node's own OpenSSL. `dispose` wipes it; it is of no use then.
 */
export class RecordProtection {
  readonly #suite: (typeof SUITES)[RecordSuite];
  readonly #calls: Crypto["seal"];
  readonly #crypto: Crypto;
  readonly #secret: Uint8Array;
  readonly #iv = fixed(NONCE_BYTES);
  #context: number;
  /** The sequence number, in two halves. */
  #low = 0;
  #high = 0;

  /** `secret` is the traffic secret; it is copied. `sequence`: records that were protected with it already. */
  constructor(options: { suite: RecordSuite; secret: Uint8Array; use: "seal" | "open"; sequence?: number }) {
    crypto ??= loadCrypto();
    this.#crypto = crypto;
    this.#calls = crypto[options.use];
    this.#suite = SUITES[options.suite];
    this.#secret = fixed(options.secret.length);
    this.#secret.set(options.secret);
    this.#context = crypto.make();
    if (this.#context === 0) throw failed("EVP_CIPHER_CTX_new");
    inUse++;
    this.#setKey();
    this.#low = options.sequence ?? 0;
  }

  /** How many records there were under the key in force, up to 2^32. */
  get records(): number {
    return this.#high > 0 ? 2 ** 32 : this.#low;
  }

  /** Writes one record of type `type` with `content` to `out` at `at`; the result is its length. Throws `LINUX_CRYPTO`. */
  seal(content: Span, type: number, out: { bytes: Uint8Array; at: number }): number {
    const { count } = content;
    const length = count + RECORD_OVERHEAD_BYTES;
    checkSpan(content.bytes, content.at, count);
    checkSpan(out.bytes, out.at, length);
    putHeader(out.bytes, out.at, length - RECORD_HEADER_BYTES);
    held.type[0] = type;
    const { init, update, final } = this.#calls;
    const context = this.#begin(init);
    held.source = content.bytes;
    held.target = out.bytes;
    const from = addressOf(content.bytes) + content.at;
    const to = addressOf(out.bytes) + out.at;
    const body = to + RECORD_HEADER_BYTES;
    let good = update(context, 0, address.produced, to, RECORD_HEADER_BYTES);
    if (count > 0) good &= update(context, body, address.produced, from, count);
    good &= update(context, body + count, address.produced, address.type, 1);
    good &= final(context, body + count + 1, address.produced);
    good &= this.#crypto.control(context, CTRL_GET_TAG, TAG_BYTES, body + count + 1);
    if (good !== 1) throw failed("sealing a record");
    return length;
  }

  /**
   * Writes the inner plaintext (content, type, padding) of a whole record to `out` at `at`: 21 bytes less than the record.
   * False when the record is not authentic; what is in `out` then must not be used.
   */
  open(record: Span, out: { bytes: Uint8Array; at: number }): boolean {
    const count = record.count - RECORD_HEADER_BYTES - TAG_BYTES;
    if (count < 1) return false;
    checkSpan(record.bytes, record.at, record.count);
    checkSpan(out.bytes, out.at, count);
    const { init, update, final } = this.#calls;
    const context = this.#begin(init);
    held.source = record.bytes;
    held.target = out.bytes;
    const from = addressOf(record.bytes) + record.at;
    const to = addressOf(out.bytes) + out.at;
    const body = from + RECORD_HEADER_BYTES;
    let good = update(context, 0, address.produced, from, RECORD_HEADER_BYTES);
    good &= update(context, to, address.produced, body, count);
    good &= this.#crypto.control(context, CTRL_SET_TAG, TAG_BYTES, body + count);
    return good === 1 && final(context, to + count, address.produced) === 1;
  }

  /** The next generation of the traffic secret (RFC 8446 §7.2). */
  update(): void {
    if (this.#context === 0) throw failed("using keys that were wiped");
    const secret = this.#secret;
    secret.set(this.#expand("traffic upd", secret.length));
    this.#setKey();
  }

  dispose(): void {
    if (this.#context === 0) return;
    this.#crypto.free(this.#context); // OpenSSL wipes it
    this.#context = 0;
    inUse--;
    for (const bytes of [this.#secret, this.#iv, held.nonce]) bytes.fill(0);
  }

  #setKey(): void {
    const { keyBytes, cipher } = this.#suite;
    this.#iv.set(this.#expand("iv", NONCE_BYTES));
    this.#expand("key", keyBytes);
    const { ciphers } = this.#crypto;
    const good = this.#calls.init(this.#context, ciphers[cipher], 0, address.block, 0);
    held.block.fill(0);
    if (good !== 1) throw failed("setting a key");
    this.#low = 0;
    this.#high = 0;
  }

  /** HKDF-Expand-Label without context (RFC 8446 §7.1), for what fits one block of the hash, into `held.block`. */
  #expand(name: string, byteCount: number): Uint8Array {
    const { hmac, digests } = this.#crypto;
    const { info, block } = held;
    const secret = this.#secret;
    const label = `tls13 ${name}`;
    info.set([byteCount >>> 8, byteCount & 0xff, label.length]);
    for (let i = 0; i < label.length; i++) info[3 + i] = label.charCodeAt(i);
    info.set([0, 1], 3 + label.length);
    const words = [addressOf(secret), secret.length, address.info, label.length + 5, address.block, 0] as const;
    if (hmac(digests[this.#suite.hash], ...words) === 0) throw failed("deriving a key");
    return block.subarray(0, byteCount);
  }

  /** Sets the nonce of the next record. */
  #begin(init: (...words: number[]) => number): number {
    const context = this.#context;
    if (context === 0) throw failed("using keys that were wiped");
    const { nonce } = held;
    const iv = this.#iv;
    const low = this.#low;
    const high = this.#high;
    for (let i = 0, shift = 0; i < 4; i++, shift += 8) {
      nonce[11 - i] = (iv[11 - i] ?? 0) ^ (low >>> shift);
      nonce[7 - i] = (iv[7 - i] ?? 0) ^ (high >>> shift);
      nonce[i] = iv[i] ?? 0;
    }
    this.#low = low + 1;
    if (this.#low > 0xffffffff) {
      this.#low = 0;
      this.#high++;
    }
    if (init(context, 0, 0, 0, address.nonce) !== 1) throw failed("setting a nonce");
    return context;
  }
}

/** Opaque bytes follow: every protected record looks like TLS 1.2's application data. */
function putHeader(bytes: Uint8Array, at: number, length: number): void {
  bytes[at] = 23;
  bytes[at + 1] = 3;
  bytes[at + 2] = 3;
  bytes[at + 3] = length >>> 8;
  bytes[at + 4] = length;
}

/** OpenSSL gets addresses: nothing goes there that is not ours. */
function checkSpan(bytes: Uint8Array, at: number, count: number): void {
  if (!(at >= 0 && count >= 0 && at + count <= bytes.length)) throw failed("a record outside of its buffer");
}

function failed(what: string): Error {
  return linuxError("LINUX_CRYPTO", `OpenSSL failed: ${what}`);
}
