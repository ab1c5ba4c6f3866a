import { messageOf } from "#base/errors";
import {
  isKubeError,
  type CallOptions,
  type KubeClient,
  type KubeObject,
  type ListOptions,
  type ResourceRef,
} from "#kube";
import type { Known } from "./finding.ts";

/** What is used of the Kubernetes client. */
export type DoctorClient = Pick<KubeClient, "list" | "find" | "request">;

/**
 * Looks at a cluster, and remembers what could not be looked at and why: no right, no answer in time. Nothing here rejects, unless
 * the signal says that nobody wants to know any more.
 */
export class ApiFacts {
  readonly #client: DoctorClient;
  readonly #signal: AbortSignal;
  readonly #groups: Promise<Known<ReadonlySet<string>>>;

  /** `signal` ends what is still asked; it is a fact then that there was no answer. */
  constructor(client: DoctorClient, signal: AbortSignal) {
    this.#client = client;
    this.#signal = signal;
    this.#groups = this.look(() => this.#readGroups());
  }

  /** All objects of a kind; none where the API does not have the kind. */
  async list<T extends KubeObject>(
    ref: ResourceRef<T>,
    options: Omit<ListOptions, "signal"> = {},
  ): Promise<Known<readonly T[]>> {
    const served = await this.listIfServed(ref, options);
    return "unknown" in served ? served : { value: served.value ?? [] };
  }

  /** As {@link list}; undefined where the API does not have the kind. */
  async listIfServed<T extends KubeObject>(
    ref: ResourceRef<T>,
    options: Omit<ListOptions, "signal"> = {},
  ): Promise<Known<readonly T[] | undefined>> {
    const groups = await this.#groups;
    if (ref.group !== "") {
      if ("unknown" in groups) return groups;
      if (!groups.value.has(ref.group)) return { value: undefined };
    }
    return this.look(async (call) => {
      try {
        return (await this.#client.list(ref, { ...options, ...call })).items;
      } catch (error) {
        if (isKubeError(error, "KUBE_NOT_FOUND")) return undefined; // the group without this kind
        throw error;
      }
    });
  }

  /** One object; undefined where there is none. */
  async find<T extends KubeObject>(
    ref: ResourceRef<T>,
    name: string,
    namespace: string,
  ): Promise<Known<T | undefined>> {
    return this.look((call) => this.#client.find(ref, { name, namespace, ...call }));
  }

  /** Creates an object that is a question (a review), and answers its status. */
  async ask(path: string, body: object): Promise<Readonly<Record<string, unknown>>> {
    const answer = await this.#client.request({ method: "POST", path, body, signal: this.#signal });
    const status: unknown = typeof answer === "object" && answer !== null && "status" in answer ? answer.status : {};
    return typeof status === "object" && status !== null ? { ...status } : {};
  }

  /** Does something that may fail; the failure is what is known then. */
  async look<T>(what: (call: CallOptions) => Promise<T>): Promise<Known<T>> {
    try {
      return { value: await what({ signal: this.#signal }) };
    } catch (error) {
      return { unknown: messageOf(error) };
    }
  }

  async #readGroups(): Promise<ReadonlySet<string>> {
    const answer = await this.#client.request({ method: "GET", path: "/apis", signal: this.#signal });
    const groups: unknown =
      typeof answer === "object" && answer !== null && "groups" in answer ? answer.groups : undefined;
    if (!Array.isArray(groups)) throw new Error("the API names no groups");
    return new Set(
      groups.flatMap((group: unknown) =>
        typeof group === "object" && group !== null && "name" in group && typeof group.name === "string"
          ? [group.name]
          : [],
      ),
    );
  }
}

/** Several facts as one: unknown as soon as one of them is. */
export async function allKnown<T, U>(
  items: readonly T[],
  ask: (item: T) => Promise<Known<U>>,
): Promise<Known<readonly U[]>> {
  const values: U[] = [];
  for (const answer of await Promise.all(items.map(ask))) {
    if ("unknown" in answer) return answer;
    values.push(answer.value);
  }
  return { value: values };
}
