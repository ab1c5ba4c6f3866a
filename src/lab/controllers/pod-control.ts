import { createHash } from "node:crypto";
import { isKubeError, resources, type KubeObject, type ObjectMeta, type Pod, type PodTemplateSpec } from "#kube";
import { controllerReference, isOwnedBy, sortedJson, type Cluster } from "./cluster.ts";

/** A suffix for names: without vowels, so that no words come out. */
const ALPHABET = "bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH = 5;
const HASH_LENGTH = 10;

/**
 * Makes and deletes pods for one kind of controller, and knows of them before the informer does: what it has made counts
 * at once, what it has deleted no longer.
 */
export class PodControl {
  readonly #cluster: Cluster;
  readonly #made = new Map<string, Pod>();
  readonly #deleted = new Set<string>();

  constructor(cluster: Cluster) {
    this.#cluster = cluster;
    cluster.pods.on({
      upserted: (pod) => this.#made.delete(pod.metadata?.uid ?? ""),
      deleted: (pod) => {
        this.#made.delete(pod.metadata?.uid ?? "");
        this.#deleted.delete(pod.metadata?.uid ?? "");
      },
    });
  }

  /** The pods that an object controls; those that were deleted show it, also before the informer does. */
  podsOf(owner: KubeObject): Pod[] {
    const { uid } = owner.metadata ?? {};
    const seen = this.#cluster.pods.list();
    const known = new Set(seen.map((pod) => pod.metadata?.uid));
    const made = [...this.#made.values()].filter((pod) => !known.has(pod.metadata?.uid));
    return [...seen, ...made]
      .filter((pod) => isOwnedBy(pod, uid))
      .map((pod) => (this.#deleted.has(pod.metadata?.uid ?? "") ? leaving(pod) : pod));
  }

  async create(
    owner: KubeObject,
    template: PodTemplateSpec,
    extra: { labels?: Record<string, string>; node?: string },
  ): Promise<void> {
    const { client, pods } = this.#cluster;
    const created = await client.create(resources.pods, {
      metadata: this.#metadata(owner, template, extra.labels),
      spec: { containers: [], ...template.spec, ...(extra.node === undefined ? {} : { nodeName: extra.node }) },
    });
    const { uid = "", name = "", namespace } = created.metadata ?? {};
    if (pods.get(name, namespace)?.metadata?.uid !== uid) this.#made.set(uid, created);
  }

  #metadata(owner: KubeObject, template: PodTemplateSpec, labels: Record<string, string> | undefined): ObjectMeta {
    const { name = "", namespace = "" } = owner.metadata ?? {};
    return {
      name: `${name.slice(0, 57)}-${this.#suffix()}`,
      namespace,
      labels: { ...template.metadata?.labels, ...labels },
      annotations: { ...template.metadata?.annotations },
      ownerReferences: controllerReference(owner),
    };
  }

  #suffix(): string {
    return Array.from({ length: SUFFIX_LENGTH }, () => ALPHABET[this.#cluster.random.below(ALPHABET.length)]).join("");
  }

  async delete(pod: Pod): Promise<void> {
    const { name = "", namespace, uid = "" } = pod.metadata ?? {};
    this.#deleted.add(uid);
    try {
      await this.#cluster.client.delete(resources.pods, { name, namespace, uid });
    } catch (error) {
      this.#deleted.delete(uid);
      if (!isKubeError(error, "KUBE_NOT_FOUND") && !isKubeError(error, "KUBE_CONFLICT")) throw error;
    }
  }
}

function leaving(pod: Pod): Pod {
  const { deletionTimestamp = "soon" } = pod.metadata ?? {};
  return { ...pod, metadata: { ...pod.metadata, deletionTimestamp } };
}

/** A short name for the contents of a pod template. */
export function templateHash(template: PodTemplateSpec | undefined): string {
  const digest = createHash("sha256").update(sortedJson(template)).digest();
  return Array.from(digest.subarray(0, HASH_LENGTH), (byte) => ALPHABET[byte % ALPHABET.length]).join("");
}
