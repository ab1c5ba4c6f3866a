import { messageOf } from "#base/errors";
import { ISSUER_PART, ROOTS_PART } from "#model/authority-objects";
import {
  checkKeyBelongs,
  createKeyPair,
  formatCertificates,
  formatPrivateKey,
  keyPairSigner,
  parseCertificates,
  parsePrivateKey,
  verifyPath,
  type Certificate,
  type KeyPair,
  type Signer,
} from "#x509";
import { caError } from "./errors.ts";

/** A certificate of the authority and what signs with its key. */
export interface AuthorityKey {
  readonly certificate: Certificate;
  readonly signer: Signer;
}

/** All that an authority is: whom nodes trust, who signs intermediates, who signs leaves. */
export interface AuthorityState {
  /** The trust bundle; holds `root.certificate`. */
  readonly roots: readonly Certificate[];
  readonly root: AuthorityKey;
  readonly intermediate: AuthorityKey;
}

/**
 * Where an authority's keys are kept and who signs with them: a Kubernetes Secret, a directory, later a device or a service.
 * `authorityBackendSuite` (testing.ts) says what each of them must do.
 */
export interface AuthorityBackend {
  /** For messages: `Secret veil-system/veil-ca`. */
  readonly place: string;
  /** Makes a key in the backend's custody. It lasts only when a state that holds it is stored. */
  createSigner(kind: "root" | "intermediate"): Promise<Signer>;
  /**
   * What is stored; undefined only when nothing has ever been. Rejects with `CA_UNREADABLE` when something is there that cannot
   * be used, and with `CA_STORE` when that could not be found out: neither may ever lead to a new authority.
   */
  load(signal?: AbortSignal): Promise<{ readonly state: AuthorityState; readonly version: string } | undefined>;
  /** Stores the first state. False when somebody else did so meanwhile: load theirs. */
  create(state: AuthorityState, signal?: AbortSignal): Promise<boolean>;
  /** Stores the next state. False when what is stored is no longer `version`. */
  replace(state: AuthorityState, version: string, signal?: AbortSignal): Promise<boolean>;
}

/** Names of the parts of a stored authority: Istio's `cacerts` layout, and the root's key beside it. */
const PART = {
  roots: ROOTS_PART,
  rootKey: "root-key.pem",
  intermediate: ISSUER_PART,
  intermediateKey: "ca-key.pem",
} as const;

/** Names of all parts, for backends that store them one by one. */
export const AUTHORITY_PARTS: readonly string[] = Object.values(PART);

/** Keys in this process's memory, for backends that store the keys themselves. */
export class MemoryKeys {
  readonly #pairs = new WeakMap<Signer, KeyPair>();

  /** A new key: P-384 for a root, which lives longest, P-256 for what signs often. */
  async create(kind: "root" | "intermediate"): Promise<Signer> {
    return this.#adopt(await createKeyPair(kind === "root" ? "ecdsa-p384" : "ecdsa-p256"));
  }

  /** The parts to be stored. They hold private keys. Throws `CA_FOREIGN_KEY`. */
  format({ roots, root, intermediate }: AuthorityState): Record<string, string> {
    const others = roots.filter(({ pem }) => pem !== root.certificate.pem);
    return {
      [PART.roots]: formatCertificates([root.certificate, ...others]),
      [PART.rootKey]: formatPrivateKey(this.#pairOf(root.signer)),
      [PART.intermediate]: intermediate.certificate.pem,
      [PART.intermediateKey]: formatPrivateKey(this.#pairOf(intermediate.signer)),
    };
  }

  /** Reads stored parts and checks that they belong together. Throws `CA_UNREADABLE`, which names the part. */
  parse(parts: Readonly<Record<string, string | undefined>>, place: string): AuthorityState {
    try {
      const roots = parseCertificates(partOf(parts, PART.roots), `${place}, ${PART.roots}`);
      const [certificate] = parseCertificates(partOf(parts, PART.intermediate), `${place}, ${PART.intermediate}`);
      const [rootCertificate] = roots;
      if (rootCertificate === undefined || certificate === undefined) throw new Error("it holds no certificate");
      const root = this.#join(rootCertificate, parts, { part: PART.rootKey, place });
      const intermediate = this.#join(certificate, parts, { part: PART.intermediateKey, place });
      // Lives are judged when the authority is opened; here the parts must belong together at some moment.
      const nowMs = Math.max(rootCertificate.notBeforeMs, certificate.notBeforeMs);
      verifyPath([certificate], [rootCertificate], { nowMs, place });
      return { roots, root, intermediate };
    } catch (cause) {
      const message = `the authority in ${place} cannot be used and is left as it is: ${messageOf(cause)}`;
      throw caError("CA_UNREADABLE", message, { cause, details: { place } });
    }
  }

  #join(
    certificate: Certificate,
    parts: Readonly<Record<string, string | undefined>>,
    { part, place }: { part: string; place: string },
  ): AuthorityKey {
    const pair = parsePrivateKey(partOf(parts, part), `${place}, ${part}`);
    checkKeyBelongs(certificate.openssl, pair, `${place}, ${part}`);
    return { certificate, signer: this.#adopt(pair) };
  }

  #adopt(pair: KeyPair): Signer {
    const signer = keyPairSigner(pair);
    this.#pairs.set(signer, pair);
    return signer;
  }

  #pairOf(signer: Signer): KeyPair {
    const pair = this.#pairs.get(signer);
    if (pair === undefined) throw caError("CA_FOREIGN_KEY", "a key that was made elsewhere cannot be stored here");
    return pair;
  }
}

function partOf(parts: Readonly<Record<string, string | undefined>>, name: string): string {
  const text = parts[name];
  if (text === undefined || text === "") throw new Error(`${name} is missing`);
  return text;
}
