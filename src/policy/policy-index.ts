import type { Authorization, AuthorizationScope } from "#model/authorization";
import {
  compilePolicy,
  decide,
  NO_CANDIDATES,
  type Candidates,
  type CompiledPolicy,
  type Decision,
  type UnusablePolicy,
} from "./decide.ts";
import type { PolicyRequest } from "./matcher.ts";

/** A change of the policies in force. Names are `namespace/name`. */
export interface PolicyChange {
  readonly upserts: readonly Authorization[];
  readonly unusable: readonly UnusablePolicy[];
  readonly removes: readonly string[];
}

/** A connection, and whose policies are asked: a namespace's, and those that the workload itself lists. */
export interface PolicyQuestion extends PolicyRequest {
  readonly namespace: string;
  /** The workload's own list when the connection was accepted. */
  readonly policyNames: readonly string[];
}

/** Answers that are remembered; beyond that the memory starts anew. */
const MAX_REMEMBERED = 4096;

type Entry = { readonly scope: AuthorizationScope; readonly namespace: string; readonly name: string } & (
  | { readonly compiled: CompiledPolicy }
  | { readonly compiled: undefined }
);

/** All policies, by whom they apply to. Bounded by what the control plane publishes. */
export class PolicyIndex {
  readonly #entries = new Map<string, Entry>();
  /** Names by namespace; global ones under the empty name. Those of one workload are in no set: its list names them. */
  readonly #byNamespace = new Map<string, Set<string>>();
  /** What applies, by namespace and list, until a policy changes. */
  readonly #remembered = new Map<string, Candidates>();
  #version = 0;

  /** Grows with each change. */
  get version(): number {
    return this.#version;
  }

  get size(): number {
    return this.#entries.size;
  }

  /** True when some policy applies only to workloads that list it. */
  get hasWorkloadScoped(): boolean {
    return [...this.#entries.values()].some(({ scope }) => scope === "workload");
  }

  /** Applies a change: all of it is in force when this returns. */
  apply({ upserts, unusable, removes }: PolicyChange): void {
    for (const name of removes) this.#remove(name);
    for (const policy of upserts) {
      const compiled = compilePolicy(policy);
      this.#put({ scope: policy.scope, namespace: policy.namespace, name: compiled.name, compiled });
    }
    for (const policy of unusable) this.#put({ ...policy, compiled: undefined });
    this.#remembered.clear();
    this.#version++;
  }

  /** Decides about a connection to a workload. */
  decide(question: PolicyQuestion): Decision {
    return decide(question, this.candidates(question.namespace, question.policyNames));
  }

  /** What applies to a workload of `namespace` that lists these policies. A name that is not known is skipped. */
  candidates(namespace: string, listed: readonly string[]): Candidates {
    if (this.#entries.size === 0) return NO_CANDIDATES;
    const key = listed.length === 0 ? namespace : `${namespace}\0${listed.join("\0")}`;
    let candidates = this.#remembered.get(key);
    if (candidates === undefined) {
      candidates = this.#collect(namespace, listed);
      if (this.#remembered.size >= MAX_REMEMBERED) this.#remembered.clear();
      this.#remembered.set(key, candidates);
    }
    return candidates;
  }

  /** Everything, for a dump. */
  all(): { readonly policies: readonly Authorization[]; readonly unusable: readonly UnusablePolicy[] } {
    const entries = [...this.#entries.values()];
    return {
      policies: entries.flatMap(({ compiled }) => (compiled === undefined ? [] : [compiled.policy])),
      unusable: entries.flatMap(({ compiled, ...entry }) => (compiled === undefined ? [entry] : [])),
    };
  }

  #collect(namespace: string, listed: readonly string[]): Candidates {
    const names = new Set([
      ...(this.#byNamespace.get(namespace) ?? []),
      ...(this.#byNamespace.get(GLOBAL) ?? []),
      ...listed,
    ]);
    const entries = [...names].flatMap((name) => this.#entries.get(name) ?? []);
    const compiled = entries.flatMap((entry) => entry.compiled ?? []);
    const pick = (action: Authorization["action"], dryRun: boolean): CompiledPolicy[] =>
      compiled.filter(({ policy }) => policy.action === action && policy.dryRun === dryRun);
    if (entries.length === 0) return NO_CANDIDATES;
    return {
      unusable: entries.flatMap((entry) => (entry.compiled === undefined ? [entry.name] : [])),
      deny: pick("deny", false),
      allow: pick("allow", false),
      dryDeny: pick("deny", true),
      dryAllow: pick("allow", true),
    };
  }

  #put(entry: Entry): void {
    this.#remove(entry.name); // its scope may be another one now
    this.#entries.set(entry.name, entry);
    const key = keyOf(entry);
    if (key === undefined) return;
    const names = this.#byNamespace.get(key) ?? new Set();
    names.add(entry.name);
    this.#byNamespace.set(key, names);
  }

  #remove(name: string): void {
    const entry = this.#entries.get(name);
    if (entry === undefined) return;
    this.#entries.delete(name);
    const key = keyOf(entry);
    const names = key === undefined ? undefined : this.#byNamespace.get(key);
    names?.delete(name);
    if (key !== undefined && names?.size === 0) this.#byNamespace.delete(key);
  }
}

const GLOBAL = "";

/** Where an entry is indexed; undefined: nowhere, because workloads list it. */
function keyOf({ scope, namespace }: Entry): string | undefined {
  if (scope === "global") return GLOBAL;
  return scope === "namespace" ? namespace : undefined;
}
