import type { Clock } from "#base/clock";
import type { Random } from "#base/random";
import type { SpiffeId } from "#model/spiffe-id";
import type { TlsIdentity } from "#model/tls-identity";
import { PolicyIndex } from "#policy";
import { ownPorts, type ProxyConfig } from "./config.ts";
import { NameCache, type NameAnswer } from "./names.ts";
import type { View } from "./route.ts";
import { WorkloadTable, type PackedChange } from "./table.ts";
import { Waiting } from "./waiting.ts";

/** What the control plane said about a name: it is (and is in the table now), it is not, or nobody answered. */
export type Answer = "present" | "absent" | "unavailable";

/** Connections of one data thread that may be held at once; one more is refused. */
const MAX_HELD = 4096;
/** Names that were answered with "absent" and are remembered, for {@link ABSENT_MS}. */
const MAX_ABSENT = 4096;
/** How long "absent" is taken for an answer. Short: a workload that comes up now is not to be met in clear. */
export const ABSENT_MS = 1_000;

/** What {@link Knowledge} is made of. Questions go to the main thread; the answers come through `answer` and `putName`. */
interface KnowledgeParts {
  readonly clock: Clock;
  readonly random: Random;
  readonly config: ProxyConfig;
  readonly ask: (name: string) => void;
  readonly resolve: (hostname: string) => void;
}

/** What a data thread knows: who is where, and the certificates of its own pods. Fed by the main thread. */
export class Knowledge {
  readonly table = new WorkloadTable();
  readonly policies = new PolicyIndex();
  readonly #clock: Clock;
  readonly #random: Random;
  readonly #config: ProxyConfig;
  readonly #sendAsk: (name: string) => void;
  readonly #sendResolve: (hostname: string) => void;
  readonly #names = new NameCache();
  readonly #certificates = new Map<SpiffeId, TlsIdentity>();
  /** Names to the monotonic time until which they count as absent. */
  readonly #absent = new Map<string, number>();
  readonly #answers: Waiting<Answer>;
  readonly #changes: Waiting<true>;
  #isSynced = false;

  constructor(parts: KnowledgeParts) {
    this.#clock = parts.clock;
    this.#random = parts.random;
    this.#config = parts.config;
    this.#sendAsk = parts.ask;
    this.#sendResolve = parts.resolve;
    this.#answers = new Waiting(parts.clock, MAX_HELD);
    this.#changes = new Waiting(parts.clock, MAX_HELD);
  }

  /** True once everything has been said once. It stays true when the control plane goes away. */
  get synced(): boolean {
    return this.#isSynced;
  }

  /** Connections that are held now. */
  get held(): number {
    return this.#answers.count + this.#changes.count;
  }

  /** Takes a change of addresses. */
  apply(change: PackedChange): void {
    this.table.apply(change, this.#clock.monotonic());
    this.#changes.settle("addresses", true);
  }

  /** The first snapshot is complete. */
  markSynced(): void {
    this.#isSynced = true;
    this.#changes.settle("synced", true);
  }

  /**
   * What a decision may look at, now. With the same `draws` a later decision about the same connection draws the same lots:
   * what was waited for is then what is decided about.
   */
  view(draws: number[] = []): View {
    let drawn = 0;
    const monotonicMs = this.#clock.monotonic();
    return {
      table: this.table,
      policies: this.policies,
      synced: this.#isSynced,
      network: this.#config.network,
      clusterRanges: this.#config.clusterRanges,
      propagationBoundMs: this.#config.propagationBoundMs,
      originalSource: this.#config.originalSource,
      monotonicMs,
      isAbsent: (name) => (this.#absent.get(name) ?? -Infinity) > monotonicMs,
      ownPorts: ownPorts(this.#config),
      resolved: (hostname) => this.#names.find(hostname, monotonicMs),
      unit: () => (draws[drawn++] ??= this.#random.unit()),
    };
  }

  /** Waits for the first snapshot; false when it does not come in time. */
  async whenSynced(): Promise<boolean> {
    return this.#isSynced || (await this.#changes.wait("synced", this.#config.holdMs)) === true;
  }

  /** Waits for the next change of addresses; false when none comes in time. */
  async whenChanged(timeoutMs: number): Promise<boolean> {
    return (await this.#changes.wait("addresses", timeoutMs)) === true;
  }

  /** Asks the control plane who `name` is (one question for all who ask at once). */
  async ask(name: string): Promise<Answer> {
    const isFirst = !this.#answers.has(name);
    const answer = this.#answers.wait(name, this.#config.holdMs);
    if (isFirst) this.#sendAsk(name);
    return (await answer) ?? "unavailable";
  }

  /** The main thread's answer. What is present has been applied before. */
  answer(name: string, answer: Answer): void {
    if (answer === "absent") {
      if (this.#absent.size >= MAX_ABSENT) this.#absent.clear();
      this.#absent.set(name, this.#clock.monotonic() + ABSENT_MS);
    }
    this.#answers.settle(name, answer);
  }

  /** Has a hostname looked up (once for all who ask at once); false when no answer comes in time. */
  async resolve(hostname: string): Promise<boolean> {
    const key = `name ${hostname}`;
    const isFirst = !this.#changes.has(key);
    const answer = this.#changes.wait(key, this.#config.holdMs);
    if (isFirst) this.#sendResolve(hostname);
    return (await answer) === true;
  }

  /** The main thread's answer about a hostname. */
  putName(hostname: string, answer: NameAnswer): void {
    this.#names.put(hostname, answer, this.#clock.monotonic());
    this.#changes.settle(`name ${hostname}`, true);
  }

  /** The certificate in force for a pod of this thread; undefined when there is none, or its life is over. */
  certificate(id: SpiffeId): TlsIdentity | undefined {
    const identity = this.#certificates.get(id);
    return identity !== undefined && identity.notAfterMs > this.#clock.now() ? identity : undefined;
  }

  /** A new certificate, or a renewed one. Returns what changed against the one before. */
  putCertificate(identity: TlsIdentity): { readonly leaf: boolean; readonly roots: boolean } {
    const before = this.#certificates.get(identity.id);
    this.#certificates.set(identity.id, identity);
    this.#changes.settle(identity.id, true);
    return {
      leaf: before !== undefined && before.chainPem !== identity.chainPem,
      roots: before !== undefined && before.rootsPem !== identity.rootsPem,
    };
  }

  /** No pod of this thread needs it any more. */
  dropCertificate(id: SpiffeId): void {
    this.#certificates.delete(id);
  }

  /** Waits for a certificate; false when it does not come in time. */
  async whenCertificate(id: SpiffeId): Promise<boolean> {
    if (this.certificate(id) !== undefined) return true;
    await this.#changes.wait(id, this.#config.holdMs);
    return this.certificate(id) !== undefined;
  }
}
