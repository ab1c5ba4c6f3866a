import type { X509Certificate } from "node:crypto";
import type { Clock } from "#base/clock";
import type { CellSet } from "#base/metrics";
import type { PeerRevocations, PeerWatch, PresentedChain } from "#hbone";
import { findPath, parseCertificates, RevocationLists, type Crl, type VerifiedPath } from "#x509";
import { Passes } from "./passes.ts";

/** Texts of own chains and roots that are kept parsed: those of a thread's certificates, before and after a rotation. */
const MAX_PARSED = 64;
/** Intermediates of peers that are remembered. */
const MAX_ISSUERS = 64;

/** One session. */
class Watch implements PeerWatch {
  readonly leaf: X509Certificate;
  readonly roots: readonly X509Certificate[];
  /** Undefined when the issuers of the leaf are not known. */
  readonly path: VerifiedPath | undefined;
  readonly reporter: PresentedChain["reporter"];
  onRevoked: (() => void) | undefined;
  readonly #all: Set<Watch>;

  constructor(parts: Pick<Watch, "leaf" | "roots" | "path" | "reporter">, all: Set<Watch>) {
    this.leaf = parts.leaf;
    this.roots = parts.roots;
    this.path = parts.path;
    this.reporter = parts.reporter;
    this.#all = all;
  }

  leave(): void {
    this.#all.delete(this);
  }
}

/**
 * The revocation lists of a data thread and the sessions whose peers they may name, in both directions. A peer is judged
 * on its verified path, in its handshake and again whenever the lists change. The path is looked for in what the peer
 * presented, in our own chain and in what other peers have shown.
 */
export class PeerRevocationLists implements PeerRevocations {
  readonly #cells: CellSet;
  readonly #watched = new Set<Watch>();
  readonly #passes: Passes<Watch>;
  readonly #parsed = new Map<string, readonly X509Certificate[]>();
  /** Intermediates of verified paths, by fingerprint. */
  readonly #issuers = new Map<string, X509Certificate>();
  #lists = new RevocationLists([]);

  constructor(clock: Clock, cells: CellSet) {
    this.#cells = cells;
    const judge = (watch: Watch): void => {
      if (!this.#isRevoked(watch)) return;
      this.#reject(watch.reporter);
      watch.leave();
      watch.onRevoked?.();
    };
    this.#passes = new Passes(this.#watched, judge, clock);
  }

  /** Sessions that are judged again when the lists change. */
  get watched(): number {
    return this.#watched.size;
  }

  /** The lists in force from now on. Running sessions are judged soon. */
  apply(crls: readonly Crl[]): void {
    this.#lists = new RevocationLists(crls);
    this.#passes.changed();
  }

  /**
   * Judges a peer. One whose issuers are not known here is counted, and refused when it may have been revoked: when a list
   * in its issuer's name has its number, or one of the roots has revoked anything.
   */
  admit({ certificates, identity, reporter }: PresentedChain): PeerWatch | undefined {
    const [leaf] = certificates;
    if (leaf === undefined) return undefined;
    const roots = this.#parse(identity.rootsPem);
    const candidates = [...certificates, ...this.#parse(identity.chainPem).slice(1), ...this.#issuers.values()];
    const path = findPath(candidates, roots);
    if (path === undefined) this.#cells.bind("istio_crl_untracked_connections_total", { reporter }).value++;
    else this.#remember(path);
    const watch = new Watch({ leaf, roots, path, reporter }, this.#watched);
    if (this.#isRevoked(watch)) {
      this.#reject(reporter);
      return undefined;
    }
    this.#watched.add(watch);
    return watch;
  }

  #isRevoked({ leaf, roots, path }: Watch): boolean {
    if (path === undefined) return this.#lists.mayHaveRevoked(leaf, roots);
    return this.#lists.findRevoked(path) !== undefined;
  }

  #reject(reporter: PresentedChain["reporter"]): void {
    this.#cells.bind("istio_crl_policy_rejections_total", { reporter }).value++;
  }

  #remember(path: VerifiedPath): void {
    for (const issuer of path.slice(1, -1)) {
      if (this.#issuers.size >= MAX_ISSUERS) this.#issuers.clear();
      this.#issuers.set(issuer.fingerprint256, issuer);
    }
  }

  #parse(pem: string): readonly X509Certificate[] {
    let parsed = this.#parsed.get(pem);
    if (parsed === undefined) {
      parsed = parseCertificates(pem, "our own chain or roots").map(({ openssl }) => openssl);
      if (this.#parsed.size >= MAX_PARSED) this.#parsed.clear();
      this.#parsed.set(pem, parsed);
    }
    return parsed;
  }
}
