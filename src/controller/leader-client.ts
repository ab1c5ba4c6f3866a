import type { CallOptions, KubeClient, KubeObject, ObjectAt, PatchOptions, ResourceRef } from "#kube";
import type { Election } from "./election.ts";

/**
 * The Kubernetes API for whoever leads: reads always, writes only while this replica holds the lease, and ends those that are
 * under way when it loses it. Writes reject with `CONTROLLER_NOT_LEADING` then.
 *
 * A request that has left already may still be carried out. So every write is also bound to what it was decided on: an object that
 * is not there yet, or the version that was read.
 */
export class LeaderClient {
  readonly #client: Pick<KubeClient, "find" | "create" | "replace" | "patch">;
  readonly #election: Pick<Election, "leading" | "onLeading" | "whileLeading">;

  constructor(
    client: Pick<KubeClient, "find" | "create" | "replace" | "patch">,
    election: Pick<Election, "leading" | "onLeading" | "whileLeading">,
  ) {
    this.#client = client;
    this.#election = election;
  }

  /** Whether writes are carried out now. */
  get leading(): boolean {
    return this.#election.leading;
  }

  /** As {@link Election.onLeading}. */
  onLeading(listener: () => void): () => void {
    return this.#election.onLeading(listener);
  }

  find<T extends KubeObject>(ref: ResourceRef<T>, at: ObjectAt): Promise<T | undefined> {
    return this.#client.find(ref, at);
  }

  create<T extends KubeObject>(ref: ResourceRef<T>, object: T, options: CallOptions = {}): Promise<T> {
    return this.#election.whileLeading((signal) => this.#client.create(ref, object, bound(options, signal)));
  }

  replace<T extends KubeObject>(ref: ResourceRef<T>, object: T, options: CallOptions = {}): Promise<T> {
    return this.#election.whileLeading((signal) => this.#client.replace(ref, object, bound(options, signal)));
  }

  patch<T extends KubeObject>(ref: ResourceRef<T>, at: ObjectAt, options: PatchOptions): Promise<T> {
    return this.#election.whileLeading((signal) => this.#client.patch(ref, at, bound(options, signal)));
  }
}

function bound<Options extends CallOptions>(options: Options, over: AbortSignal): Options {
  return { ...options, signal: options.signal === undefined ? over : AbortSignal.any([options.signal, over]) };
}
