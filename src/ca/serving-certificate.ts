import type { Clock } from "#base/clock";
import type { Log } from "#base/log";
import type { Random } from "#base/random";
import type { Service } from "#base/service";
import type { Authority } from "./authority.ts";
import { caError } from "./errors.ts";

/** What a serving certificate is made of. */
export interface ServingCertificateOptions {
  readonly authority: Pick<Authority, "issueServer">;
  /** The names under which clients reach the server. */
  readonly dnsNames: readonly string[];
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  /** Called after each renewal: `() => rpcServer.reload()`. */
  readonly onRenewed?: () => void;
}

const RETRY_MS = 60_000;

/** The certificate of a server of the control plane, renewed at half its life. The key stays in memory. */
export class ServingCertificate implements Service {
  readonly name = "serving certificate";
  readonly #options: ServingCertificateOptions;
  #current: { certPem: string; keyPem: string; notAfterMs: number } | undefined;
  #cancel = (): void => {};
  #stopped = false;

  constructor(options: ServingCertificateOptions) {
    this.#options = options;
  }

  /** What the server presents; pass it as `tls` to the RPC server. Throws `CA_NOT_READY` before the start. */
  readonly current = (): { certPem: string; keyPem: string; notAfterMs: number } => {
    if (this.#current === undefined) throw caError("CA_NOT_READY", "the serving certificate has not been issued yet");
    return this.#current;
  };

  async start(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    await this.#renew();
  }

  async drain(): Promise<void> {
    this.#stopped = true;
    this.#cancel();
  }

  async #renew(): Promise<void> {
    const { authority, dnsNames, clock, random } = this.#options;
    this.#current = await authority.issueServer(dnsNames);
    const leftMs = this.#current.notAfterMs - clock.now();
    this.#arm(leftMs * (0.5 - 0.05 * random.unit()));
  }

  #arm(delayMs: number): void {
    if (this.#stopped) return;
    this.#cancel = this.#options.clock.after(delayMs, () => void this.#renewLater());
  }

  async #renewLater(): Promise<void> {
    try {
      await this.#renew();
      this.#options.onRenewed?.();
      this.#options.log.info({ notAfterMs: this.#current?.notAfterMs }, "renewed the serving certificate");
    } catch (error) {
      this.#options.log.error({ err: error }, "cannot renew the serving certificate");
      this.#arm(RETRY_MS);
    }
  }
}
