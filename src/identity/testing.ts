import { createHash } from "node:crypto";
import { systemClock } from "#base/clock";
import type { SpiffeId } from "#model/spiffe-id";
import { createKeyPair, issueCertificate, keyPairSigner, parseCsr, type Certificate, type Signer } from "#x509";
import type { CertificateIssuer } from "./issuer.ts";

/** For tests: an authority of one root that signs what it is asked for, as its clock says, and can be told to fail. */
export class FakeIssuer implements CertificateIssuer {
  /** Identities in the order in which they were asked for. */
  readonly asked: SpiffeId[] = [];
  lifeMs = 86_400_000;
  backdateMs = 120_000;
  /** When set, each request fails with it. */
  failure: Error | undefined;
  /** When set, requests wait for it. */
  gate: Promise<void> | undefined;
  /** Changes the answer before it is given. */
  alter: (chain: string[]) => string[] = (chain) => chain;
  inFlight = 0;
  mostInFlight = 0;
  readonly #now: () => number;
  #root: { certificate: Certificate; signer: Signer } | undefined;

  constructor(now: () => number) {
    this.#now = now;
  }

  async issue(csrPem: string, id: SpiffeId, signal: AbortSignal): Promise<readonly string[]> {
    this.asked.push(id);
    this.inFlight++;
    this.mostInFlight = Math.max(this.mostInFlight, this.inFlight);
    try {
      await this.gate;
      signal.throwIfAborted();
      if (this.failure !== undefined) throw this.failure;
      return this.alter(await this.#sign(csrPem, id));
    } finally {
      this.inFlight--;
    }
  }

  /** The root in PEM. */
  async root(): Promise<string> {
    return (await this.#open()).certificate.pem;
  }

  /** Signs with a new root from now on; gives it in PEM. */
  async replaceRoot(): Promise<string> {
    this.#root = await makeRoot(this.#now());
    return this.#root.certificate.pem;
  }

  async #open(): Promise<{ certificate: Certificate; signer: Signer }> {
    this.#root ??= await makeRoot(this.#now());
    return this.#root;
  }

  async #sign(csrPem: string, id: SpiffeId): Promise<string[]> {
    const root = await this.#open();
    const { publicKeySpki } = parseCsr(csrPem, "test");
    const leaf = await issueCertificate({
      purpose: { kind: "workload", id },
      publicKeySpki,
      issuer: root,
      notBeforeMs: this.#now() - this.backdateMs,
      notAfterMs: this.#now() + this.lifeMs,
    });
    return [leaf.pem, root.certificate.pem];
  }
}

async function makeRoot(nowMs: number): Promise<{ certificate: Certificate; signer: Signer }> {
  const signer = keyPairSigner(await createKeyPair());
  const commonName = `test root ${createHash("sha256").update(signer.publicKeySpki).digest("hex").slice(0, 8)}`;
  const certificate = await issueCertificate({
    purpose: { kind: "root", commonName, trustDomain: "cluster.local" },
    publicKeySpki: signer.publicKeySpki,
    issuer: { signer, certificate: undefined },
    notBeforeMs: nowMs - 86_400_000,
    notAfterMs: nowMs + 365 * 86_400_000,
  });
  return { certificate, signer };
}

/** For tests: gives OpenSSL's threads time until `done`; fails after a minute. */
export async function until(done: () => boolean, what: string): Promise<void> {
  const clock = systemClock();
  const endMs = clock.monotonic() + 60_000;
  for (let turns = 0; !done(); turns++) {
    if (clock.monotonic() > endMs) throw new Error(`it did not happen: ${what}`);
    await new Promise((resolve) => setImmediate(resolve));
    await new Promise((resolve) => setImmediate(resolve));
    if (turns % 4 === 3) await createKeyPair();
  }
}
