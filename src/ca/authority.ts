import { every, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import { CellSet } from "#base/metrics";
import type { Random } from "#base/random";
import type { Service } from "#base/service";
import { parseSpiffeId, type SpiffeId } from "#model/spiffe-id";
import {
  checkLife,
  checkPeerLeaf,
  createKeyPair,
  formatCertificates,
  formatPrivateKey,
  issueCertificate,
  keyPairSigner,
  verifyPath,
  type Certificate,
  type CertificateRequest,
} from "#x509";
import type { AuthorityBackend, AuthorityKey, AuthorityState } from "./backend.ts";
import { caError } from "./errors.ts";
import { caMetrics } from "./metrics.ts";

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;

/** Lives of certificates. */
export interface AuthorityLives {
  /** Default 365 days. */
  readonly rootMs: number;
  /** Default 90 days; renewed at half of it. */
  readonly intermediateMs: number;
  /** What a workload gets when it does not ask, and the most that it can get. Default 24 hours. */
  readonly workloadMs: number;
}

/** Defaults of {@link AuthorityLives}. */
export const DEFAULT_LIVES: AuthorityLives = {
  rootMs: 365 * DAY_MS,
  intermediateMs: 90 * DAY_MS,
  workloadMs: DAY_MS,
};

/** How far certificates begin in the past, so that a node whose clock is behind by less can use them at once. */
export const LEAF_BACKDATE_MS = 2 * MINUTE_MS;
/** Authorities begin earlier than anything they sign. */
export const AUTHORITY_BACKDATE_MS = 5 * MINUTE_MS;

const MAINTENANCE_MS = HOUR_MS;
const RENEWAL_JITTER_MS = DAY_MS;
const OPEN_TRIES = 5;

/** What an authority is made of. */
export interface AuthorityOptions {
  readonly backend: AuthorityBackend;
  readonly trustDomain: string;
  /** Whether this process may store something now. False: it takes what another stores. Default: always. */
  readonly mayWrite?: () => boolean;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly lives?: Partial<AuthorityLives>;
  readonly cells?: CellSet;
}

/** A certificate for a workload, as the certificate service hands it out. */
export interface IssuedCertificate {
  /** Leaf first, then intermediates, no root; one PEM block each. */
  readonly chain: readonly string[];
  /** All trusted roots; PEM. */
  readonly rootsPem: string;
  readonly notAfterMs: number;
}

/**
 * The certificate authority of a cluster: a root that signs an intermediate that signs leaves. Opened by `start`: made once if
 * nothing is stored, never in place of something unreadable. Renews its intermediate at half its life.
 *
 * Whoever calls `issueWorkload` has authorised the identity: nothing of the request but its public key is used.
 */
export class Authority implements Service {
  readonly name = "authority";
  readonly trustDomain: string;
  readonly #options: AuthorityOptions;
  readonly #lives: AuthorityLives;
  readonly #cells: CellSet;
  readonly #listeners = new Set<() => void>();
  #current: { state: AuthorityState; version: string; renewAtMs: number } | undefined;
  #stop = (): void => {};
  #maintaining = false;

  constructor(options: AuthorityOptions) {
    this.#options = options;
    this.trustDomain = options.trustDomain;
    this.#lives = { ...DEFAULT_LIVES, ...options.lives };
    this.#cells = options.cells ?? new CellSet(caMetrics);
  }

  /** Rejects with `CA_UNREADABLE`, `CA_STORE`, `CA_NOT_MADE`, `CA_CLOCK_BEHIND`, `CA_ROOT_EXPIRED`, `CA_PREFLIGHT`, `X509_EXPIRED`. */
  async start(signal: AbortSignal): Promise<void> {
    await this.#open(signal);
    await this.#maintainQuietly(signal);
    checkLife(this.#ready().intermediate.certificate, this.#options.clock.now());
    this.#stop = every(this.#options.clock, MAINTENANCE_MS, () => void this.#maintainQuietly());
  }

  async drain(): Promise<void> {
    this.#stop();
    this.#current = undefined;
  }

  /** All trusted roots, PEM: the text of the trust bundle ConfigMaps. Throws `CA_NOT_READY`. */
  get trustBundlePem(): string {
    return formatCertificates(this.#ready().roots);
  }

  /** Calls `listener` after each change of the trust bundle; the returned function ends that. */
  onTrustBundle(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /**
   * Issues a workload's certificate for `id`, which the caller of this method has authorised. `lifeMs` undefined or not positive:
   * the default, which is also the most: whoever asks for more gets that. Throws `CA_NOT_READY`, `X509_EXPIRED`.
   */
  async issueWorkload(request: CertificateRequest, id: SpiffeId, lifeMs?: number): Promise<IssuedCertificate> {
    const { intermediate, roots } = this.#ready();
    const most = this.#lives.workloadMs;
    const given = lifeMs === undefined || lifeMs <= 0 ? most : Math.min(lifeMs, most);
    const purpose = { kind: "workload", id } as const;
    const leaf = await this.#issueLeaf(intermediate, { purpose, publicKeySpki: request.publicKeySpki, lifeMs: given });
    this.#count("workload");
    return {
      chain: [leaf.pem, intermediate.certificate.pem],
      rootsPem: formatCertificates(roots),
      notAfterMs: leaf.notAfterMs,
    };
  }

  /** Issues a certificate with a new key for a server of the control plane. Throws `CA_NOT_READY`, `X509_EXPIRED`. */
  async issueServer(dnsNames: readonly string[]): Promise<{ certPem: string; keyPem: string; notAfterMs: number }> {
    const { intermediate } = this.#ready();
    const keyPair = await createKeyPair();
    const { publicKeySpki } = keyPairSigner(keyPair);
    const purpose = { kind: "server", dnsNames } as const;
    const leaf = await this.#issueLeaf(intermediate, { purpose, publicKeySpki, lifeMs: this.#lives.workloadMs });
    this.#count("server");
    const certPem = formatCertificates([leaf, intermediate.certificate]);
    return { certPem, keyPem: formatPrivateKey(keyPair), notAfterMs: leaf.notAfterMs };
  }

  #mayWrite(): boolean {
    return this.#options.mayWrite?.() ?? true;
  }

  #ready(): AuthorityState {
    if (this.#current === undefined) throw caError("CA_NOT_READY", "the authority is not open");
    return this.#current.state;
  }

  #count(kind: string): void {
    this.#cells.bind("veil_ca_certificates_issued_total", { kind }).value++;
  }

  async #issueLeaf(
    issuer: AuthorityKey,
    leaf: {
      purpose: { kind: "workload"; id: SpiffeId } | { kind: "server"; dnsNames: readonly string[] };
      publicKeySpki: Uint8Array;
      lifeMs: number;
    },
  ): Promise<Certificate> {
    const nowMs = this.#options.clock.now();
    return issueCertificate({
      purpose: leaf.purpose,
      publicKeySpki: leaf.publicKeySpki,
      issuer,
      notBeforeMs: nowMs - LEAF_BACKDATE_MS,
      notAfterMs: nowMs + leaf.lifeMs,
    });
  }

  /** Loads what is stored, or makes the first authority; when another controller is first, takes theirs. */
  async #open(signal: AbortSignal): Promise<void> {
    const { backend, log } = this.#options;
    for (let tries = 0; tries < OPEN_TRIES; tries++) {
      const stored = await backend.load(signal);
      if (stored !== undefined) {
        this.#checkRoot(stored.state);
        this.#adopt(stored);
        return;
      }
      if (!this.#mayWrite()) throw caError("CA_NOT_MADE", `there is no authority in ${backend.place} yet`);
      const created = await this.#createState();
      await this.#preflight(created);
      if (await backend.create(created, signal)) log.info({ place: backend.place }, "made a new certificate authority");
    }
    throw caError("CA_CONTENDED", `the authority in ${backend.place} was made and removed again and again`);
  }

  async #createState(): Promise<AuthorityState> {
    const { backend, clock } = this.#options;
    const nowMs = clock.now();
    const signer = await backend.createSigner("root");
    const certificate = await issueCertificate({
      purpose: { kind: "root", commonName: `Veil root ${dateOf(nowMs)}`, trustDomain: this.trustDomain },
      publicKeySpki: signer.publicKeySpki,
      issuer: { signer, certificate: undefined },
      notBeforeMs: nowMs - AUTHORITY_BACKDATE_MS,
      notAfterMs: nowMs + this.#lives.rootMs,
    });
    const root = { certificate, signer };
    return { roots: [certificate], root, intermediate: await this.#createIntermediate(root) };
  }

  async #createIntermediate(root: AuthorityKey): Promise<AuthorityKey> {
    const { backend, clock } = this.#options;
    const nowMs = clock.now();
    const signer = await backend.createSigner("intermediate");
    const certificate = await issueCertificate({
      purpose: {
        kind: "intermediate",
        commonName: `Veil intermediate ${dateOf(nowMs)}`,
        trustDomain: this.trustDomain,
      },
      publicKeySpki: signer.publicKeySpki,
      issuer: root,
      notBeforeMs: nowMs - AUTHORITY_BACKDATE_MS,
      notAfterMs: nowMs + this.#lives.intermediateMs,
    });
    this.#count("intermediate");
    return { certificate, signer };
  }

  /** Signs a throwaway leaf and verifies it as a node would, before anything real is signed. */
  async #preflight(state: AuthorityState): Promise<void> {
    try {
      const id = parseSpiffeId(`spiffe://${this.trustDomain}/veil/preflight`);
      const { publicKeySpki } = keyPairSigner(await createKeyPair());
      const purpose = { kind: "workload", id } as const;
      const leaf = await this.#issueLeaf(state.intermediate, { purpose, publicKeySpki, lifeMs: MINUTE_MS });
      const nowMs = this.#options.clock.now();
      verifyPath([leaf, state.intermediate.certificate], state.roots, { nowMs, place: "the trial chain" });
      checkPeerLeaf(leaf.der, { trustDomain: this.trustDomain, accepted: [id] });
    } catch (cause) {
      throw caError("CA_PREFLIGHT", "the new authority's trial certificate does not verify", { cause });
    }
  }

  #checkRoot({ root }: AuthorityState): void {
    const nowMs = this.#options.clock.now();
    try {
      checkLife(root.certificate, nowMs);
    } catch (cause) {
      const expired = nowMs >= root.certificate.notAfterMs;
      throw caError(expired ? "CA_ROOT_EXPIRED" : "CA_CLOCK_BEHIND", "the authority's root is not valid now", {
        cause,
      });
    }
  }

  #adopt({ state, version }: { state: AuthorityState; version: string }): void {
    const before = this.#current?.state;
    const { notBeforeMs, notAfterMs } = state.intermediate.certificate;
    // Jitter is drawn once per intermediate, to the early side: half-life is the latest moment.
    const jitterMs = Math.min(RENEWAL_JITTER_MS, (notAfterMs - notBeforeMs) / 20) * this.#options.random.unit();
    this.#current = { state, version, renewAtMs: notBeforeMs + (notAfterMs - notBeforeMs) / 2 - jitterMs };
    for (const [certificate, { notAfterMs: end }] of [
      ["root", state.root.certificate],
      ["intermediate", state.intermediate.certificate],
    ] as const) {
      this.#cells.bind("veil_ca_certificate_end_seconds", { certificate }).value = Math.floor(end / 1000);
    }
    if (before !== undefined && formatCertificates(before.roots) !== formatCertificates(state.roots)) {
      for (const listener of this.#listeners) listener();
    }
  }

  async #maintainQuietly(signal?: AbortSignal): Promise<void> {
    if (this.#maintaining) return; // one at a time: an older answer must not overtake a newer one
    this.#maintaining = true;
    try {
      await this.#maintain(signal);
    } catch (error) {
      this.#cells.bind("veil_ca_maintenance_failures_total", {}).value++;
      this.#options.log.error({ err: error, reason: messageOf(error) }, "cannot maintain the certificate authority");
    } finally {
      this.#maintaining = false;
    }
  }

  /** Takes over what another controller stored, and renews the intermediate when its time has come. */
  async #maintain(signal?: AbortSignal): Promise<void> {
    const { backend, clock, log } = this.#options;
    for (let tries = 0; tries < OPEN_TRIES; tries++) {
      const stored = await backend.load(signal);
      if (this.#current === undefined) return; // drained meanwhile
      if (stored === undefined)
        throw caError("CA_STORE", `the authority in ${backend.place} is gone; it goes on from memory`);
      if (stored.version !== this.#current.version) {
        checkNoSwap(this.#current.state.roots, stored.state.roots, backend.place);
        this.#adopt(stored);
      }
      if (clock.now() < this.#current.renewAtMs || !this.#mayWrite()) return;
      const next = { ...stored.state, intermediate: await this.#createIntermediate(stored.state.root) };
      await this.#preflight(next);
      if (await backend.replace(next, stored.version, signal))
        log.info({ place: backend.place }, "renewed the intermediate");
      // Loaded again in the next round: only what is stored is put to use.
    }
    throw caError("CA_CONTENDED", `the authority in ${backend.place} changed again and again`);
  }
}

/** Roots may be added or removed, never exchanged: nodes that still hold the old bundle would refuse everything new. */
function checkNoSwap(before: readonly Certificate[], after: readonly Certificate[], place: string): void {
  const [old, next] = [new Set(before.map(({ pem }) => pem)), new Set(after.map(({ pem }) => pem))];
  if (old.isSubsetOf(next) || next.isSubsetOf(old)) return;
  throw caError("CA_ROOT_SWAPPED", `the roots in ${place} were exchanged; the authority goes on with those it has`);
}

function dateOf(ms: number): string {
  return new Date(ms).toISOString().slice(0, 10);
}
