import type { PodDirectory } from "#ca";
import { isLive } from "#discovery";
import { objectKey, type Informer, type Pod } from "#kube";

/** Which service accounts have a live pod on which node, from the pods that an informer knows. */
export class LivePods implements PodDirectory {
  readonly #pods = new Map<string, Set<string>>();

  /** Follows `pods` for as long as that runs. */
  constructor(pods: Pick<Informer<Pod>, "on">) {
    pods.on({
      upserted: (pod, old) => {
        if (old !== undefined) this.#remove(old);
        if (isLive(pod)) this.#add(pod);
      },
      deleted: (pod) => this.#remove(pod),
    });
  }

  hasWorkload(node: string, namespace: string, serviceAccount: string): boolean {
    return this.#pods.has(keyOf(node, namespace, serviceAccount));
  }

  #add(pod: Pod): void {
    const key = keyOfPod(pod);
    if (key === undefined) return;
    const names = this.#pods.get(key);
    if (names === undefined) this.#pods.set(key, new Set([objectKey(pod)]));
    else names.add(objectKey(pod));
  }

  #remove(pod: Pod): void {
    const key = keyOfPod(pod) ?? "";
    const names = this.#pods.get(key);
    names?.delete(objectKey(pod));
    if (names?.size === 0) this.#pods.delete(key);
  }
}

function keyOfPod(pod: Pod): string | undefined {
  const { nodeName, serviceAccountName } = pod.spec ?? {};
  if (nodeName === undefined || nodeName === "") return undefined;
  return keyOf(nodeName, pod.metadata?.namespace ?? "", serviceAccountName || "default");
}

function keyOf(node: string, namespace: string, serviceAccount: string): string {
  return `${node}\n${namespace}\n${serviceAccount}`;
}
