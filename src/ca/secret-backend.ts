import { isKubeError, resources, type KubeClient, type Secret } from "#kube";
import { AUTHORITY_SECRET } from "#model/authority-objects";
import type { Signer } from "#x509";
import { MemoryKeys, type AuthorityBackend, type AuthorityState } from "./backend.ts";
import { caError } from "./errors.ts";

/** What is used of the Kubernetes client. */
export type SecretClient = Pick<KubeClient, "find" | "create" | "replace">;

/** Which Secret. */
export interface SecretBackendOptions {
  readonly client: SecretClient;
  /** Default `veil-system`. */
  readonly namespace?: string;
  /** Default `veil-ca`. */
  readonly name?: string;
}

/** An authority in a Kubernetes Secret. Writers are kept apart by create-if-absent and by the Secret's resourceVersion. */
export class SecretBackend implements AuthorityBackend {
  readonly place: string;
  readonly #client: SecretClient;
  readonly #at: { readonly namespace: string; readonly name: string };
  readonly #keys = new MemoryKeys();

  constructor({ client, namespace = "veil-system", name = AUTHORITY_SECRET }: SecretBackendOptions) {
    this.#client = client;
    this.#at = { namespace, name };
    this.place = `Secret ${namespace}/${name}`;
  }

  createSigner(kind: "root" | "intermediate"): Promise<Signer> {
    return this.#keys.create(kind);
  }

  async load(signal?: AbortSignal): Promise<{ state: AuthorityState; version: string } | undefined> {
    const secret = await this.#find(signal);
    if (secret === undefined) return undefined;
    const parts = Object.entries(secret.data ?? {}).map(([name, base64]) => [
      name,
      Buffer.from(base64, "base64").toString("utf8"),
    ]);
    const state = this.#keys.parse(Object.fromEntries(parts), this.place);
    return { state, version: secret.metadata?.resourceVersion ?? "" };
  }

  async create(state: AuthorityState, signal?: AbortSignal): Promise<boolean> {
    const secret = { metadata: { ...this.#at, labels: LABELS }, type: "Opaque", data: this.#dataOf(state) };
    try {
      await this.#client.create(resources.secrets, secret, { signal });
      return true;
    } catch (cause) {
      if (isKubeError(cause, "KUBE_ALREADY_EXISTS")) return false;
      throw this.#storeError("write", cause);
    }
  }

  async replace(state: AuthorityState, version: string, signal?: AbortSignal): Promise<boolean> {
    const secret = await this.#find(signal);
    if (secret === undefined || secret.metadata?.resourceVersion !== version) return false;
    try {
      // What others keep in the same Secret stays.
      const next = { ...secret, data: { ...secret.data, ...this.#dataOf(state) } };
      await this.#client.replace(resources.secrets, next, { signal });
      return true;
    } catch (cause) {
      if (isKubeError(cause, "KUBE_CONFLICT") || isKubeError(cause, "KUBE_NOT_FOUND")) return false;
      throw this.#storeError("write", cause);
    }
  }

  async #find(signal: AbortSignal | undefined): Promise<Secret | undefined> {
    try {
      return await this.#client.find(resources.secrets, { ...this.#at, signal });
    } catch (cause) {
      throw this.#storeError("read", cause);
    }
  }

  #dataOf(state: AuthorityState): Record<string, string> {
    const parts = Object.entries(this.#keys.format(state));
    return Object.fromEntries(parts.map(([name, text]) => [name, Buffer.from(text).toString("base64")]));
  }

  #storeError(verb: string, cause: unknown): Error {
    return caError("CA_STORE", `cannot ${verb} the authority in ${this.place}`, {
      cause,
      details: { place: this.place },
    });
  }
}

const LABELS = { "app.kubernetes.io/managed-by": "veil", "app.kubernetes.io/component": "authority" };
