import type { X509Certificate } from "node:crypto";
import type { CodedError } from "#base/errors";
import type { TlsIdentity } from "#model/tls-identity";
import { hboneError } from "./errors.ts";

/** What a peer presented, after OpenSSL has verified it. */
export interface PresentedChain {
  /**
   * The leaf first, then the others in the order in which they came; some may not belong to the path. A server gets the
   * leaf alone from Node 24.21 (and from 26.8: nodejs/node issue 65579).
   */
  readonly certificates: readonly X509Certificate[];
  /** Our own, whose roots it was verified against. */
  readonly identity: TlsIdentity;
  /** `source`: we have called it; `destination`: it has called us. */
  readonly reporter: "source" | "destination";
}

/** Knows which certificates were revoked. */
export interface PeerRevocations {
  /** Asked once for each handshake: undefined refuses the peer, else it is watched for as long as its session lives. */
  admit(chain: PresentedChain): PeerWatch | undefined;
}

/** A peer whose certificates may be revoked while its session lives. */
export interface PeerWatch {
  /** Called at most once, when a certificate of the peer has been revoked: the session has to end. */
  onRevoked: (() => void) | undefined;
  /** The session is over. Twice is harmless. */
  leave(): void;
}

/** What the peer's handshake showed, the leaf first. */
export function presentedCertificates(leaf: X509Certificate): readonly X509Certificate[] {
  const certificates: X509Certificate[] = [];
  for (let next: X509Certificate | undefined = leaf; next !== undefined; next = next.issuerCertificate) {
    if (certificates.push(next) >= MOST_PRESENTED) break;
  }
  return certificates;
}

const MOST_PRESENTED = 32;

/** Why a peer is refused, or its session ends. */
export function peerRevoked(): CodedError {
  return hboneError("HBONE_PEER_REVOKED", "connection closed: peer certificate revoked by CRL");
}
