import type { Cidr } from "#base/ip";

/** How a text is compared, case-sensitively. `presence`: it is not empty. */
export type StringMatch =
  | { readonly kind: "exact" | "prefix" | "suffix"; readonly value: string }
  | { readonly kind: "presence" };

/** A service account of one namespace, whatever its trust domain. */
export interface ServiceAccountMatch {
  readonly namespace: string;
  readonly serviceAccount: string;
}

/**
 * What a connection must be like. Kinds of conditions are ANDed. Of one kind: one of the positives fits (or there is
 * none), and none of the negatives fits. One without any condition matches nothing.
 */
export interface AuthorizationMatch {
  readonly namespaces: readonly StringMatch[];
  readonly notNamespaces: readonly StringMatch[];
  /** Compared with the peer's SPIFFE ID without `spiffe://`. */
  readonly principals: readonly StringMatch[];
  readonly notPrincipals: readonly StringMatch[];
  readonly serviceAccounts: readonly ServiceAccountMatch[];
  readonly notServiceAccounts: readonly ServiceAccountMatch[];
  readonly sourceIps: readonly Cidr[];
  readonly notSourceIps: readonly Cidr[];
  readonly destinationIps: readonly Cidr[];
  readonly notDestinationIps: readonly Cidr[];
  /** Ports of the application, 0 to 65535. */
  readonly destinationPorts: readonly number[];
  readonly notDestinationPorts: readonly number[];
}

/** One of these must match; an empty one is true. */
export type AuthorizationClause = readonly AuthorizationMatch[];

/** All of these must be true; an empty rule matches everything. */
export type AuthorizationRule = readonly AuthorizationClause[];

/** To whom a policy applies: everybody, the workloads of its namespace, or those that name it in their own list. */
export type AuthorizationScope = "global" | "namespace" | "workload";

/** An authorization policy as the data path enforces it (`istio.security.Authorization`). */
export interface Authorization {
  readonly name: string;
  readonly namespace: string;
  readonly scope: AuthorizationScope;
  readonly action: "allow" | "deny";
  /** One of these must match; none matches nothing. */
  readonly rules: readonly AuthorizationRule[];
  /** It is evaluated and shown, and decides nothing. */
  readonly dryRun: boolean;
}

/** The name under which xDS and a workload's own list know a policy. */
export function authorizationName({ namespace, name }: Pick<Authorization, "namespace" | "name">): string {
  return `${namespace}/${name}`;
}

/** A match without any condition, to be filled. */
export const EMPTY_MATCH: AuthorizationMatch = {
  namespaces: [],
  notNamespaces: [],
  principals: [],
  notPrincipals: [],
  serviceAccounts: [],
  notServiceAccounts: [],
  sourceIps: [],
  notSourceIps: [],
  destinationIps: [],
  notDestinationIps: [],
  destinationPorts: [],
  notDestinationPorts: [],
};
