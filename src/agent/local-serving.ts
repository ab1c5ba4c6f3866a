import { renameSync, mkdirSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import type { Clock } from "#base/clock";
import type { Log } from "#base/log";
import type { Service } from "#base/service";
import { agentError } from "./errors.ts";
import { createKeyPair, formatCertificates, formatPrivateKey, issueCertificate, keyPairSigner } from "#x509";

/** Names under which a proxy of the same node reaches the agent. */
const LOCAL_NAMES: readonly string[] = ["localhost", "veil-agent.veil-system.svc"];

const LIFE_MS = 90 * 86_400_000;
const BACKDATE_MS = 60_000;

/**
 * The certificate of the agent's TLS port on loopback: signed by a root that is made for it alone, whose certificate is written to
 * `rootFile` (the key of the root is thrown away at once). Made anew at each start, and at half of its life.
 */
export class LocalServing implements Service {
  readonly name = "local serving certificate";
  readonly #options: { rootFile: string; clock: Clock; log: Log; onRenewed: () => void };
  #current: { certPem: string; keyPem: string } | undefined;
  #cancel = (): void => {};

  constructor(options: { rootFile: string; clock: Clock; log: Log; onRenewed: () => void }) {
    this.#options = options;
  }

  /** What the server presents. Throws before the start. */
  readonly current = (): { certPem: string; keyPem: string } => {
    if (this.#current === undefined) throw new Error("the local serving certificate has not been made yet");
    return this.#current;
  };

  async start(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    await this.#make();
  }

  drain(_deadlineMs: number): Promise<void> {
    this.#cancel();
    return Promise.resolve();
  }

  async #make(): Promise<void> {
    const { clock, rootFile } = this.#options;
    const [rootKey, key] = await Promise.all([createKeyPair(), createKeyPair()]);
    const notBeforeMs = clock.now() - BACKDATE_MS;
    const life = { notBeforeMs, notAfterMs: notBeforeMs + LIFE_MS };
    const signer = keyPairSigner(rootKey);
    const root = await issueCertificate({
      ...life,
      purpose: { kind: "root", commonName: "veil agent of this node", trustDomain: "veil-agent.local" },
      publicKeySpki: signer.publicKeySpki,
      issuer: { signer, certificate: undefined },
    });
    const leaf = await issueCertificate({
      ...life,
      purpose: { kind: "server", dnsNames: LOCAL_NAMES },
      publicKeySpki: keyPairSigner(key).publicKeySpki,
      issuer: { signer, certificate: root },
    });
    writeWhole(rootFile, formatCertificates([root]));
    this.#current = { certPem: formatCertificates([leaf]), keyPem: formatPrivateKey(key) };
    this.#cancel = clock.after(LIFE_MS / 2, () => void this.#renew());
  }

  async #renew(): Promise<void> {
    try {
      await this.#make();
      this.#options.onRenewed();
    } catch (error) {
      this.#options.log.error({ err: error }, "cannot renew the local serving certificate");
      this.#cancel = this.#options.clock.after(LIFE_MS / 100, () => void this.#renew());
    }
  }
}

/** Replaces a file so that readers see the old or the new text, never a part. */
function writeWhole(path: string, text: string): void {
  try {
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(`${path}.new`, text, { mode: 0o644 });
    renameSync(`${path}.new`, path);
  } catch (cause) {
    throw agentError("AGENT_ROOT_FILE", `cannot write ${path}`, { cause, details: { path } });
  }
}
