import type { SpiffeId } from "./spiffe-id.ts";

/**
 * What one workload needs to speak mutual TLS: its certificate, its key, and whom it trusts.
 * It holds a private key: it lives in memory only, crosses processes only over a Unix socket of root,
 * and is never logged, dumped or written to a file. Structured-cloneable: it may be posted to a data thread.
 */
export interface TlsIdentity {
  /** The identity in the leaf's only URI SAN. */
  readonly id: SpiffeId;
  /** Leaf first, then intermediates, no root; PEM. */
  readonly chainPem: string;
  /** Unencrypted PKCS#8; PEM. A secret. */
  readonly keyPem: string;
  /** All trusted roots; PEM. */
  readonly rootsPem: string;
  /** End of the leaf's life, milliseconds since the epoch (wall clock). It must not be used from then on. */
  readonly notAfterMs: number;
}
