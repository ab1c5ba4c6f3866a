import type { Clock } from "#base/clock";
import type { Random } from "#base/random";
import type { ServerConfig } from "./config.ts";
import type { FieldValidation } from "./decode.ts";
import { resourceOf, subjectOf, type Kind, type WriteContext } from "./kinds.ts";
import { copyOf, formatTime, isRecord, sameJson, type JsonObject, type KubeObject } from "./object.ts";
import { alreadyExists, badRequest, conflict, forbidden, invalid, invalidValue, notFound } from "./status.ts";
import {
  asVersion,
  isFree,
  keepManagedFields,
  keepMeta,
  placeInNamespace,
  restore,
  setPolicy,
  specChanged,
} from "./metadata.ts";
import type { Store, Transaction } from "./store.ts";
import type { StoredObject, ObjectKey } from "./stored-object.ts";
import type { User } from "./user.ts";
import { validateMeta } from "./validation.ts";

/** What every write is told about its request. */
export interface WriteOptions {
  readonly user: User;
  /** Empty for resources without namespaces. */
  readonly namespace: string;
  readonly subresource: string;
  readonly dryRun: boolean;
  readonly fieldManager: string;
  readonly fieldValidation: FieldValidation;
}

/** How an object is to be deleted. */
export interface DeleteOptions {
  readonly gracePeriodSeconds?: number | undefined;
  readonly propagationPolicy?: "Background" | "Foreground" | "Orphan" | undefined;
  readonly uid?: string | undefined;
  readonly resourceVersion?: string | undefined;
}

/** Called inside the write with what is about to be written; throws to refuse it (node restriction). */
export type Admission = (request: {
  readonly verb: "create" | "update" | "delete";
  readonly kind: Kind;
  readonly object: Readonly<KubeObject>;
  readonly old: Readonly<KubeObject> | undefined;
  readonly context: WriteContext;
}) => void;

/** Characters of generated name endings; without those that spell words or look alike. */
const SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789";

/** Creates, updates and deletes objects of every kind by the same rules. */
export class Engine {
  readonly store: Store;
  readonly config: ServerConfig;
  readonly #clock: Clock;
  readonly #random: Random;
  readonly #admit: Admission;

  constructor(options: { store: Store; config: ServerConfig; clock: Clock; random: Random; admit: Admission }) {
    this.store = options.store;
    this.config = options.config;
    this.#clock = options.clock;
    this.#random = options.random;
    this.#admit = options.admit;
  }

  /** Finds an object. Throws 404. */
  get(kind: Kind, namespace: string, name: string): StoredObject {
    const found = this.store.get({ resource: resourceOf(kind), namespace, name });
    if (found === undefined) throw notFound(subjectOf(kind, name));
    return found;
  }

  /** Creates an object and returns it as it was stored. */
  async create(kind: Kind, given: KubeObject, options: WriteOptions): Promise<StoredObject> {
    return this.store.write((transaction) => this.createIn(transaction, { kind, given, options }), options);
  }

  /** The same, as a part of a larger write. */
  createIn(
    transaction: Transaction,
    request: { kind: Kind; given: KubeObject; options: WriteOptions; managedFields?: JsonObject[] },
  ): StoredObject {
    const { kind, options } = request;
    const object = copyOf(request.given);
    const context = this.#context(transaction, options);
    this.#prepareMeta(kind, object, options);
    if (request.managedFields !== undefined) object.metadata.managedFields = request.managedFields;
    const key = this.#keyOf(kind, object);
    if (kind.namespaced) this.#requireNamespace(transaction, object, kind);
    if (transaction.get(key) !== undefined) throw alreadyExists(subjectOf(kind, key.name));
    kind.rules.prepareCreate?.(object, context);
    if (kind.custom && kind.subresources.includes("status")) delete object["status"];
    this.#admit({ verb: "create", kind, object, old: undefined, context });
    this.#validate(kind, object, { old: undefined, context });
    const stored = transaction.put(key, this.#toStorage(object));
    return stored;
  }

  /**
   * Replaces an object by what `change` makes of it. Refuses with 409 when `change` gives a `resourceVersion` that is
   * not the newest one. Writes nothing when nothing changes.
   */
  async update(
    kind: Kind,
    name: string,
    request: { change: (old: KubeObject) => KubeObject; options: WriteOptions },
  ): Promise<StoredObject> {
    return this.store.write((transaction) => this.updateIn(transaction, { kind, name, ...request }), request.options);
  }

  /** The same, as a part of a larger write. */
  updateIn(
    transaction: Transaction,
    request: {
      kind: Kind;
      name: string;
      change: (old: KubeObject) => KubeObject;
      options: WriteOptions;
      /** The change maintains `metadata.managedFields` itself; otherwise they stay as they are. */
      managed?: boolean;
    },
  ): StoredObject {
    const { kind, name, options } = request;
    const key = { resource: resourceOf(kind), namespace: options.namespace, name };
    const found = transaction.get(key);
    if (found === undefined) throw notFound(subjectOf(kind, name));
    const old = found.object;
    const object = request.change(asVersion(found.copy(), kind));
    this.#checkIdentity(kind, object, { old, options });
    this.#checkLife(kind, object, old);
    const context = this.#context(transaction, options);
    keepMeta(object, old);
    if (request.managed !== true) keepManagedFields(object, old);
    this.#separate(kind, object, { old, subresource: options.subresource });
    kind.rules.prepareUpdate?.(object, old, context);
    if (specChanged(object, old)) object.metadata.generation = (old.metadata.generation ?? 0) + 1;
    this.#toStorage(object);
    if (sameJson({ ...object, apiVersion: "" }, { ...old, apiVersion: "" })) return found;
    this.#admit({ verb: "update", kind, object, old, context });
    this.#validate(kind, object, { old, context });
    if (object.metadata.deletionTimestamp !== undefined && isFree(object)) {
      transaction.put(key, object);
      transaction.remove(key);
      return found;
    }
    const stored = transaction.put(key, object);
    return stored;
  }

  /** Deletes an object, or begins to: with grace or finalizers it stays, marked. `gone` tells which. */
  async delete(
    kind: Kind,
    name: string,
    request: { options: WriteOptions; how: DeleteOptions },
  ): Promise<{ object: StoredObject; gone: boolean }> {
    return this.store.write((transaction) => this.deleteIn(transaction, { kind, name, ...request }), request.options);
  }

  /** The same, as a part of a larger write. */
  deleteIn(
    transaction: Transaction,
    request: { kind: Kind; name: string; options: WriteOptions; how: DeleteOptions },
  ): { object: StoredObject; gone: boolean } {
    const { kind, name, options, how } = request;
    const key = { resource: resourceOf(kind), namespace: options.namespace, name };
    const found = transaction.get(key);
    if (found === undefined) throw notFound(subjectOf(kind, name));
    this.#checkPreconditions(kind, found, how);
    const context = this.#context(transaction, options);
    const object = found.copy();
    this.#admit({ verb: "delete", kind, object, old: found.object, context });
    this.#mark(kind, object, how);
    if (isFree(object)) {
      transaction.remove(key);
      return { object: found, gone: true };
    }
    if (sameJson(object, found.object)) return { object: found, gone: false };
    if (object.metadata.deletionTimestamp !== found.object.metadata.deletionTimestamp) {
      object.metadata.generation = (object.metadata.generation ?? 0) + 1;
    }
    return { object: transaction.put(key, object), gone: false };
  }

  #context(transaction: Transaction, options: WriteOptions): WriteContext {
    const { user, subresource } = options;
    return { transaction, user, subresource, nowMs: this.#clock.now(), config: this.config };
  }

  #keyOf(kind: Kind, object: KubeObject): ObjectKey {
    const { name, namespace } = object.metadata;
    return { resource: resourceOf(kind), namespace: kind.namespaced ? (namespace ?? "") : "", name };
  }

  #prepareMeta(kind: Kind, object: KubeObject, options: WriteOptions): void {
    const { metadata } = object;
    placeInNamespace(kind, object, options.namespace);
    if (!["", "0"].includes(metadata.resourceVersion ?? "")) {
      throw badRequest("metadata.resourceVersion should not be set on objects to be created");
    }
    if (!metadata.name && metadata.generateName) metadata.name = this.#generate(metadata.generateName);
    if (!metadata.name) {
      throw invalid(subjectOf(kind), [
        {
          reason: "FieldValueRequired",
          field: "metadata.name",
          message: "Required value: name or generateName is required",
        },
      ]);
    }
    delete metadata.deletionTimestamp;
    delete metadata.deletionGracePeriodSeconds;
    delete metadata.managedFields;
    metadata.uid = this.#uuid();
    metadata.creationTimestamp = formatTime(this.#clock.now());
    if (isRecord(object["spec"]) || kind.custom) metadata.generation = 1;
    else delete metadata.generation;
  }

  #generate(prefix: string): string {
    const suffix = Array.from({ length: 5 }, () => SUFFIX_ALPHABET[this.#random.below(SUFFIX_ALPHABET.length)]);
    return `${prefix.slice(0, 58)}${suffix.join("")}`;
  }

  #uuid(): string {
    const hex = this.#random.hex(16);
    const variant = ((Number.parseInt(hex[16] ?? "0", 16) & 3) | 8).toString(16);
    return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-${variant}${hex.slice(17, 20)}-${hex.slice(20)}`;
  }

  #requireNamespace(transaction: Transaction, object: KubeObject, kind: Kind): void {
    const name = object.metadata.namespace ?? "";
    const namespace = transaction.get({ resource: "namespaces", namespace: "", name });
    if (namespace === undefined) throw notFound({ resource: "namespaces", kind: "namespaces", name });
    if (namespace.object.metadata.deletionTimestamp === undefined) return;
    throw forbidden(
      subjectOf(kind, object.metadata.name),
      `unable to create new content in namespace ${name} because it is being terminated`,
    );
  }

  #checkIdentity(kind: Kind, object: KubeObject, request: { old: Readonly<KubeObject>; options: WriteOptions }): void {
    const { old, options } = request;
    const { name, namespace, uid, resourceVersion } = object.metadata;
    if (name !== undefined && name !== "" && name !== old.metadata.name) {
      throw badRequest(`the name of the object (${name}) does not match the name on the URL (${old.metadata.name})`);
    }
    if (namespace !== undefined && namespace !== options.namespace) {
      throw badRequest(
        `the namespace of the object (${namespace}) does not match the namespace on the URL (${options.namespace})`,
      );
    }
    if (uid !== undefined && uid !== "" && uid !== old.metadata.uid) {
      throw conflict(
        subjectOf(kind, old.metadata.name),
        `Precondition failed: UID in precondition: ${uid}, UID in object meta: ${old.metadata.uid}`,
      );
    }
    if (resourceVersion !== undefined && resourceVersion !== "" && resourceVersion !== old.metadata.resourceVersion) {
      throw conflict(subjectOf(kind, old.metadata.name));
    }
  }

  /** Only a deletion begins an object's end. */
  #checkLife(kind: Kind, object: KubeObject, old: Readonly<KubeObject>): void {
    const { deletionTimestamp } = object.metadata;
    if (deletionTimestamp === undefined || old.metadata.deletionTimestamp !== undefined) return;
    const cause = invalidValue("metadata.deletionTimestamp", deletionTimestamp, "field is immutable");
    throw invalid(subjectOf(kind, old.metadata.name), [cause]);
  }

  /** The object and its status are written apart: each write keeps the other part as it was. */
  #separate(kind: Kind, object: KubeObject, request: { old: Readonly<KubeObject>; subresource: string }): void {
    const { old, subresource } = request;
    if (subresource === "status") {
      for (const field of new Set([...Object.keys(object), ...Object.keys(old)])) {
        if (field !== "status" && field !== "metadata") restore(object, old, field);
      }
      const { resourceVersion, managedFields, annotations } = object.metadata;
      object.metadata = {
        ...copyOf(old.metadata),
        // As on a real cluster, a kubelet annotates its pods when it writes their status.
        ...(resourceOf(kind) === "pods" && annotations && { annotations }),
        ...(resourceVersion && { resourceVersion }),
        ...(managedFields && { managedFields }),
      };
    } else if (kind.subresources.includes("status")) restore(object, old, "status");
  }

  #validate(
    kind: Kind,
    object: KubeObject,
    request: { old: Readonly<KubeObject> | undefined; context: WriteContext },
  ): void {
    const causes = [
      ...validateMeta(object, resourceOf(kind)),
      ...(kind.rules.validate?.(object, request.old, request.context) ?? []),
    ];
    if (causes.length > 0) throw invalid(subjectOf(kind, object.metadata.name), causes);
  }

  #toStorage(object: KubeObject): KubeObject {
    if (object.metadata.managedFields?.length === 0) delete object.metadata.managedFields;
    return object;
  }

  #checkPreconditions(kind: Kind, found: StoredObject, how: DeleteOptions): void {
    const { uid, resourceVersion, name } = found.object.metadata;
    if (how.uid !== undefined && how.uid !== uid) {
      throw conflict(
        subjectOf(kind, name),
        `Precondition failed: UID in precondition: ${how.uid}, UID in object meta: ${uid}`,
      );
    }
    if (how.resourceVersion !== undefined && how.resourceVersion !== resourceVersion) {
      throw conflict(
        subjectOf(kind, name),
        `Precondition failed: ResourceVersion in precondition: ${how.resourceVersion}, ResourceVersion in object meta: ${resourceVersion ?? ""}`,
      );
    }
  }

  /** Marks an object for deletion: finalizers by the policy, the time, and the grace that is left. */
  #mark(kind: Kind, object: KubeObject, how: DeleteOptions): void {
    const { metadata } = object;
    if (how.propagationPolicy !== undefined) setPolicy(object, how.propagationPolicy);
    const own = kind.rules.graceSeconds?.(object) ?? 0;
    const left = metadata.deletionTimestamp === undefined ? undefined : (metadata.deletionGracePeriodSeconds ?? 0);
    const asked = how.gracePeriodSeconds ?? left ?? own;
    const grace = left === undefined ? (own === 0 ? 0 : asked) : Math.min(left, asked);
    if (grace === left) return;
    metadata.deletionTimestamp = formatTime(this.#clock.now() + grace * 1000);
    metadata.deletionGracePeriodSeconds = grace;
  }
}
