import type { Clock } from "#base/clock";
import { resources, type KubeClient, type Pod } from "#kube";
import type { ContentKind } from "./environment.ts";
import type { VolumeSources } from "./volumes.ts";

/** Contents are asked for again after this time; pods that start together share one answer. */
const FRESH_MS = 2_000;
/** Answers that are kept. */
const MAX_KEPT = 256;

type Contents = Record<string, Buffer>;

/** Reads ConfigMaps, Secrets and tokens with the node's own credentials. */
export class ApiSources implements VolumeSources {
  readonly #client: KubeClient;
  readonly #clock: Clock;
  readonly #kept = new Map<string, { atMs: number; contents: Promise<Contents | undefined> }>();

  constructor(client: KubeClient, clock: Clock) {
    this.#client = client;
    this.#clock = clock;
  }

  content(kind: ContentKind, namespace: string, name: string): Promise<Contents | undefined> {
    const key = `${kind}/${namespace}/${name}`;
    const nowMs = this.#clock.monotonic();
    const kept = this.#kept.get(key);
    if (kept !== undefined && nowMs - kept.atMs < FRESH_MS) return kept.contents;
    const contents = this.#read(kind, namespace, name);
    this.#kept.delete(key);
    this.#kept.set(key, { atMs: nowMs, contents });
    const oldest = this.#kept.keys().next().value;
    if (this.#kept.size > MAX_KEPT && oldest !== undefined) this.#kept.delete(oldest);
    contents.then(
      // What is not there yet is what somebody waits for.
      (found) => found === undefined && this.#kept.delete(key),
      () => this.#kept.delete(key),
    );
    return contents;
  }

  token(
    pod: Pod,
    request: { audience: string | undefined; expirationSeconds: number },
  ): Promise<{ token: string; expiresMs: number }> {
    const { name = "", namespace = "default", uid = "" } = pod.metadata ?? {};
    const { audience, expirationSeconds } = request;
    return this.#client.createToken(namespace, pod.spec?.serviceAccountName ?? "default", {
      ...(audience === undefined ? {} : { audiences: [audience] }),
      expirationSeconds,
      boundObjectRef: { kind: "Pod", apiVersion: "v1", name, uid },
    });
  }

  async #read(kind: ContentKind, namespace: string, name: string): Promise<Contents | undefined> {
    if (kind === "secret") {
      const secret = await this.#client.find(resources.secrets, { name, namespace });
      return secret && decode(secret.data, "base64");
    }
    const map = await this.#client.find(resources.configMaps, { name, namespace });
    return map && { ...decode(map.data, "utf8"), ...decode(map.binaryData, "base64") };
  }
}

function decode(data: Readonly<Record<string, string>> | undefined, encoding: "base64" | "utf8"): Contents {
  return Object.fromEntries(Object.entries(data ?? {}).map(([key, value]) => [key, Buffer.from(value, encoding)]));
}
