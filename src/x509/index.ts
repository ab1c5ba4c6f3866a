export { checkPeerLeaf, type PeerExpectation } from "./leaf.ts";
export {
  createKeyPair,
  formatPrivateKey,
  keyPairSigner,
  parsePrivateKey,
  type KeyAlgorithm,
  type KeyPair,
  type Signer,
} from "./keys.ts";
