export { decodeCertificate, formatCertificates, parseCertificates, type Certificate } from "./certificate.ts";
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
