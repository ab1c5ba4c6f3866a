import type { Clock } from "#base/clock";
import type { KubeClient, KubeCredentials } from "#kube";

/** For so long pods that are not enrolled may start although the agent is away. */
const LIFE_SECONDS = 86_400;

/** With what the CNI plugin asks the API while the agent is away. */
export class PluginCredentials {
  readonly #parts: PluginCredentialsParts;
  #token: { readonly text: string; readonly expiresMs: number; readonly renewMs: number } | undefined;

  constructor(parts: PluginCredentialsParts) {
    this.#parts = parts;
  }

  /** As `credentials` in deploy/cni/labels.go reads it. Rejects with what the API said while there is no token. */
  async text(): Promise<string> {
    const { config } = this.#parts.client;
    const { server, caPem, tlsServerName } = config;
    const { account } = this.#parts;
    const credentials: KubeCredentials =
      account === undefined ? await config.credentials() : { token: await this.#tokenOf(account) };
    const { token, certPem, keyPem } = credentials;
    return JSON.stringify({ server, ca: caPem, serverName: tlsServerName, token, cert: certPem, key: keyPem });
  }

  /** A token that no pod's end makes worthless; another one at half of its life. */
  async #tokenOf(account: string): Promise<string> {
    const { client, namespace, clock } = this.#parts;
    const nowMs = clock.now();
    const kept = this.#token;
    if (kept !== undefined && nowMs < kept.renewMs) return kept.text;
    try {
      const { token, expiresMs } = await client.createToken(namespace, account, { expirationSeconds: LIFE_SECONDS });
      this.#token = { text: token, expiresMs, renewMs: nowMs + (expiresMs - nowMs) / 2 };
      return token;
    } catch (error) {
      if (kept !== undefined && nowMs < kept.expiresMs) return kept.text;
      throw error;
    }
  }
}

interface PluginCredentialsParts {
  readonly client: Pick<KubeClient, "config" | "createToken">;
  /** Where Veil is installed. */
  readonly namespace: string;
  /** Service account whose token it is; undefined: the agent's own credentials. */
  readonly account: string | undefined;
  readonly clock: Clock;
}
