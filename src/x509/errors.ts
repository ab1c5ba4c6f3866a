import { defineErrors } from "#base/errors";

/** Failures of keys, certificates and certificate requests. */
export const x509Error = defineErrors("x509", {
  X509_DER: {
    when: "a certificate, key or request is not well-formed DER: cut short, too long, or not in the shape of its standard",
    hint: "the message names the field; get the object again from whoever made it",
  },
  X509_PEM: {
    when: "text that should hold certificates or a key in PEM holds none, or a block of it is damaged",
    hint: "the message names the place and the block; PEM blocks begin with -----BEGIN and must be complete",
  },
  X509_TOO_LARGE: {
    when: "a certificate, bundle or request is larger than is accepted",
    hint: "the caps are in docs/limits.md; an object of that size is no workload certificate",
  },
  X509_CRL_UNSUPPORTED: {
    when: "a revocation list has a critical extension (a delta, a part, another's list) or is signed with a weak algorithm",
    hint: "give whole lists of the issuing authorities, signed with ECDSA or RSA and SHA-2; the lists before stay in force",
  },
  X509_DUPLICATE_EXTENSION: {
    when: "a certificate carries the same extension twice, so that readers could disagree about it",
    hint: "the issuer of the certificate is broken or hostile; look at the peer named in the record",
  },
  X509_CA_AS_LEAF: {
    when: "a peer authenticates itself with a certificate of an authority",
    hint: "authorities may only sign; give the peer a workload certificate",
  },
  X509_LEAF_SIGNS_CERTIFICATES: {
    when: "a peer's certificate has the key usage keyCertSign",
    hint: "issue the peer's certificate with digitalSignature only",
  },
  X509_LEAF_SIGNS_CRLS: {
    when: "a peer's certificate has the key usage cRLSign",
    hint: "issue the peer's certificate with digitalSignature only",
  },
  X509_NO_DIGITAL_SIGNATURE: {
    when: "a peer's certificate has no key usage digitalSignature",
    hint: "issue the peer's certificate with a critical key usage digitalSignature",
  },
  X509_EXTENDED_KEY_USAGE: {
    when: "a peer's certificate restricts its extended key usage and lacks serverAuth or clientAuth",
    hint: "a workload is client and server: issue its certificate with both, or without the extension",
  },
  X509_NO_URI_SAN: {
    when: "a peer's certificate names no identity (no URI among its subject alternative names)",
    hint: "the peer does not use a SPIFFE certificate; look at the peer named in the record",
  },
  X509_TWO_URI_SANS: {
    when: "a peer's certificate names more than one URI, so that its identity is ambiguous",
    hint: "a SPIFFE certificate has exactly one URI SAN; issue the peer another one",
  },
  X509_BAD_SPIFFE_ID: {
    when: "the URI in a peer's certificate is no SPIFFE ID of a workload",
    hint: "the cause names the broken rule; issue the peer another certificate",
  },
  X509_WRONG_TRUST_DOMAIN: {
    when: "a peer's identity is of another trust domain than ours",
    hint: "peers of other trust domains are refused; check which authority issued the peer's certificate",
  },
  X509_UNEXPECTED_IDENTITY: {
    when: "a peer proved an identity that is not the one expected at this destination",
    hint: "the address belongs to another workload by now, or someone answers in its place; compare the two identities in the message",
  },
  X509_KEY_ALGORITHM: {
    when: "a key is of a kind, curve or size that is not accepted",
    hint: "use ECDSA on P-256 or P-384, or RSA with 2048 to 4096 bits",
  },
  X509_KEY_MISMATCH: {
    when: "a private key does not belong to the certificate beside it",
    hint: "the two were mixed up or one was replaced alone; restore both from the same source",
  },
  X509_CSR_SIGNATURE_ALGORITHM: {
    when: "a certificate request is signed with an algorithm that is not accepted, or that does not fit its key",
    hint: "sign the request with SHA-256, SHA-384 or SHA-512 and the key that it holds",
  },
  X509_CSR_SIGNATURE: {
    when: "the signature of a certificate request does not verify: whoever sent it does not hold the private key, or it was altered",
    hint: "make a new request with the private key at hand",
  },
  X509_NOT_YET_VALID: {
    when: "a certificate's life has not begun by this machine's clock",
    hint: "certificates are backdated by two minutes, so this machine's clock is behind by more than that: correct it (NTP)",
  },
  X509_EXPIRED: {
    when: "a certificate's life has ended by this machine's clock",
    hint: "if it was issued just now, this machine's clock is ahead: correct it (NTP); else find out why it was not renewed",
  },
  X509_CHAIN_EMPTY: {
    when: "a certificate chain holds no certificate",
    hint: "the authority answered with nothing; look at its log",
  },
  X509_CHAIN_BROKEN: {
    when: "a certificate of a chain was not signed by the next one, or by no trusted root",
    hint: "the message names both; the chain and the trust bundle come from different authorities or generations",
  },
  X509_NOT_A_CA: {
    when: "a certificate that signed another one is not allowed to",
    hint: "an authority's certificate needs the CA flag, the key usage keyCertSign and a sufficient path length",
  },
});
