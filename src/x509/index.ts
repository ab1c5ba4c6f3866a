export { decodeCertificate, formatCertificates, parseCertificates, type Certificate } from "./certificate.ts";
export { decodeCrl, MAX_CRL_BYTES, parseCrls, type Crl } from "./crl.ts";
export { createCsr, parseCsr, type CertificateRequest } from "./csr.ts";
export { issueCertificate, type CertificatePurpose, type IssueOptions } from "./issue.ts";
export {
  checkKeyBelongs,
  createKeyPair,
  formatPrivateKey,
  keyPairSigner,
  parsePrivateKey,
  type KeyAlgorithm,
  type KeyPair,
  type Signer,
} from "./keys.ts";
export { checkPeerLeaf, type PeerExpectation } from "./leaf.ts";
export { checkLife, verifyPath } from "./path.ts";
export { findPath, RevocationLists, type VerifiedPath } from "./revocation.ts";
