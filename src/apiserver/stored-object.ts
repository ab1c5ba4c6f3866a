import type { KubeObject } from "./object.ts";

/** How an object is addressed: `resource` is the plural with its group (`pods`, `deployments.apps`). */
export interface ObjectKey {
  readonly resource: string;
  /** Empty for resources without namespaces. */
  readonly namespace: string;
  readonly name: string;
}

/** One version of an object as it lies in the store: its JSON text, parsed when somebody looks inside. */
export class StoredObject {
  readonly key: ObjectKey;
  /** The revision that wrote it; the same as `metadata.resourceVersion`. */
  readonly revision: number;
  /** The whole object as JSON, without a newline in it. */
  readonly text: string;
  #object: KubeObject | undefined;

  constructor(key: ObjectKey, version: { revision: number; text: string }) {
    this.key = key;
    this.revision = version.revision;
    this.text = version.text;
  }

  /** The object, shared by all readers: never change it. */
  get object(): Readonly<KubeObject> {
    return (this.#object ??= this.copy());
  }

  /** A copy to change. */
  copy(): KubeObject {
    return JSON.parse(this.text) as KubeObject; // only objects of this shape are ever put into the store
  }
}
