import type { Column } from "./columns.ts";
import type { ServerConfig } from "./config.ts";
import type { KubeObject } from "./object.ts";
import type { Schema } from "./schema/schema.ts";
import type { Cause, Subject } from "./status.ts";
import type { Transaction } from "./store.ts";
import type { User } from "./user.ts";

/** What a kind's rules may use while an object is written. */
export interface WriteContext {
  readonly transaction: Transaction;
  readonly user: User;
  readonly nowMs: number;
  readonly config: ServerConfig;
  /** The subresource that is written; empty for the object itself. */
  readonly subresource: string;
}

/** What is special about a kind. All of it is synchronous and runs inside the write. */
export interface Rules {
  /** Fills defaults and what only the server may set, before a creation. */
  readonly prepareCreate?: (object: KubeObject, context: WriteContext) => void;
  /** The same before an update; keeps what may not be changed. */
  readonly prepareUpdate?: (object: KubeObject, old: Readonly<KubeObject>, context: WriteContext) => void;
  /** Lists everything that is wrong; `old` is undefined for a creation. */
  readonly validate?: (
    object: KubeObject,
    old: Readonly<KubeObject> | undefined,
    context: WriteContext,
  ) => readonly Cause[];
  /** What the client is to be warned of: it was accepted, and something about it has no effect here. */
  readonly warnings?: (object: Readonly<KubeObject>) => readonly string[];
  /** How long a deletion is to be graceful; undefined when this kind knows no grace. */
  readonly graceSeconds?: (object: Readonly<KubeObject>) => number | undefined;
}

/** The rules of a kind that has none of its own. */
export const NO_RULES: Rules = {};

/** A kind that the API serves, built in or from a CustomResourceDefinition. */
export interface Kind {
  readonly group: string;
  readonly version: string;
  readonly kind: string;
  readonly plural: string;
  readonly singular: string;
  readonly shortNames: readonly string[];
  readonly categories: readonly string[];
  readonly namespaced: boolean;
  readonly verbs: readonly string[];
  readonly subresources: readonly string[];
  readonly schema: Schema;
  readonly columns: readonly Column[];
  /** Fields that field selectors may name. */
  readonly selectableFields: readonly string[];
  readonly rules: Rules;
  /** True for a kind of a CustomResourceDefinition. */
  readonly custom: boolean;
  /** Where `kubectl scale` reads and writes; only with subresource `scale`. */
  readonly scale?: {
    readonly specPath: string;
    readonly statusPath: string;
    readonly selectorPath: string | undefined;
  };
}

/** The name under which a kind's objects are stored and authorised: `pods`, `deployments.apps`. */
export function resourceOf(kind: Pick<Kind, "plural" | "group">): string {
  return kind.group === "" ? kind.plural : `${kind.plural}.${kind.group}`;
}

/** `v1`, `apps/v1`. */
export function apiVersionOf(kind: Pick<Kind, "group" | "version">): string {
  return kind.group === "" ? kind.version : `${kind.group}/${kind.version}`;
}

/** What a failure about an object of this kind says. */
export function subjectOf(kind: Pick<Kind, "plural" | "group" | "kind">, name = ""): Subject {
  return { group: kind.group, resource: kind.plural, kind: kind.kind, name };
}
