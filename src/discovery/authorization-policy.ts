import { findIp, isV6, parseCidr, type Cidr } from "#base/ip";
import {
  EMPTY_MATCH,
  type Authorization,
  type AuthorizationMatch,
  type AuthorizationRule,
  type ServiceAccountMatch,
  type StringMatch,
} from "#model/authorization";
import type { AuthorizationPolicy, PolicyRule } from "./security-kinds.ts";

/** What becomes of an AuthorizationPolicy at the nodes' proxies. */
export interface ConvertedPolicy {
  /** Undefined: nothing of it is sent to them. */
  readonly policy: Authorization | undefined;
  /** What is not enforced as it is written, for the object's status; undefined: all is, or it is not for them at all. */
  readonly problem: string | undefined;
  /** It names what enforces it (a waypoint): the nodes' proxies say nothing about it. */
  readonly elsewhere: boolean;
}

const DRY_RUN_ANNOTATION = "istio.io/dry-run";

type Action = Authorization["action"];

/** Reads a value of a list; undefined when it cannot be read. */
type Reader<T> = (text: string, namespace: string) => T | undefined;

/** Fields of a source or an operation that a connection alone decides, where they go, and how they are read. */
const FIELDS: ReadonlyMap<string, { readonly to: keyof AuthorizationMatch; readonly read: Reader<unknown> }> = new Map([
  ["principals", { to: "principals", read: readString }],
  ["notPrincipals", { to: "notPrincipals", read: readString }],
  ["namespaces", { to: "namespaces", read: readString }],
  ["notNamespaces", { to: "notNamespaces", read: readString }],
  ["serviceAccounts", { to: "serviceAccounts", read: readAccount }],
  ["notServiceAccounts", { to: "notServiceAccounts", read: readAccount }],
  ["ipBlocks", { to: "sourceIps", read: readBlock }],
  ["notIpBlocks", { to: "notSourceIps", read: readBlock }],
  ["ports", { to: "destinationPorts", read: readPort }],
  ["notPorts", { to: "notDestinationPorts", read: readPort }],
]);

/** The keys of `when` that a connection alone decides, and the field that each stands for. */
const KEYS: ReadonlyMap<
  string,
  { readonly yes: keyof AuthorizationMatch; readonly no: keyof AuthorizationMatch; readonly read: Reader<unknown> }
> = new Map([
  ["source.ip", { yes: "sourceIps", no: "notSourceIps", read: readBlock }],
  ["source.namespace", { yes: "namespaces", no: "notNamespaces", read: readString }],
  ["source.principal", { yes: "principals", no: "notPrincipals", read: readString }],
  ["destination.ip", { yes: "destinationIps", no: "notDestinationIps", read: readBlock }],
  ["destination.port", { yes: "destinationPorts", no: "notDestinationPorts", read: readPort }],
]);

/**
 * Turns an AuthorizationPolicy into what the nodes' proxies enforce, as istiod does: an ALLOW rule with a condition on
 * HTTP is left out, and of a DENY rule only that condition. Where nothing is left of an entry of a DENY rule, an empty
 * match stands for it, which never matches: the whole rule is without effect. The problem says each of these.
 *
 * A value that cannot be read (istiod's webhook refuses it, an API without that webhook does not) makes an ALLOW rule
 * allow nothing, and in a DENY rule its entry match everything.
 */
export function convertAuthorizationPolicy(object: AuthorizationPolicy, rootNamespace: string): ConvertedPolicy {
  const { spec = {}, metadata = {} } = object;
  const { name = "", namespace = "", annotations = {} } = metadata;
  if (spec.targetRef !== undefined || (spec.targetRefs ?? []).length > 0) {
    return { policy: undefined, problem: undefined, elsewhere: true };
  }
  const action = actionOf(spec.action);
  if (action === undefined) {
    return {
      policy: undefined,
      problem: `action ${spec.action} is not enforced by the nodes' proxies`,
      elsewhere: false,
    };
  }
  const rules = (spec.rules ?? []).map((rule) => convertRule(rule, { action, namespace }));
  const policy: Authorization = {
    name,
    namespace,
    scope: scopeOf(object, rootNamespace),
    action,
    rules: rules.flatMap(({ clauses }) => (clauses === undefined ? [] : [clauses])),
    dryRun: annotations[DRY_RUN_ANNOTATION] === "true",
  };
  return { policy, problem: describeProblems(action, rules), elsewhere: false };
}

function scopeOf({ spec, metadata }: AuthorizationPolicy, rootNamespace: string): Authorization["scope"] {
  if (spec?.selector !== undefined) return "workload";
  return metadata?.namespace === rootNamespace ? "global" : "namespace";
}

function actionOf(text: string | undefined): Action | undefined {
  if (text === undefined || text === "ALLOW") return "allow";
  return text === "DENY" ? "deny" : undefined;
}

interface ConvertedRule {
  /** Undefined: the rule is left out. */
  readonly clauses: AuthorizationRule | undefined;
  /** Fields and keys that only something that reads HTTP can decide. */
  readonly http: readonly string[];
  /** Fields with a value that cannot be read. */
  readonly unreadable: readonly string[];
}

interface Entry {
  readonly match: AuthorizationMatch;
  readonly http: readonly string[];
  readonly unreadable: readonly string[];
}

function convertRule(rule: PolicyRule, { action, namespace }: { action: Action; namespace: string }): ConvertedRule {
  const to = (rule.to ?? []).map(({ operation = {} }) => convertFields(operation, namespace));
  const from = (rule.from ?? []).map(({ source = {} }) => convertFields(source, namespace));
  const when = (rule.when ?? []).map((condition) => [convertCondition(condition, namespace)]);
  const groups = [to, from, ...when].filter((entries) => entries.length > 0);
  const all = groups.flat();
  const http = all.flatMap((entry) => entry.http);
  const unreadable = all.flatMap((entry) => entry.unreadable);
  const isLeftOut = action === "allow" && http.length + unreadable.length > 0;
  // One entry of a DENY that cannot be read is taken for one that everything matches; so the clause is true.
  const clauses = groups.map((entries) =>
    entries.some((entry) => entry.unreadable.length > 0) ? [] : entries.map(({ match }) => match),
  );
  return { clauses: isLeftOut ? undefined : clauses, http, unreadable };
}

function convertFields(fields: Readonly<Record<string, readonly string[]>>, namespace: string): Entry {
  const match: Record<string, unknown> = {};
  const http: string[] = [];
  const unreadable: string[] = [];
  for (const [field, values] of Object.entries(fields)) {
    if (values.length === 0) continue;
    const known = FIELDS.get(field);
    if (known === undefined) {
      http.push(field);
      continue;
    }
    const read = values.map((value) => known.read(value, namespace));
    if (read.includes(undefined)) unreadable.push(field);
    match[known.to] = read;
  }
  return { match: { ...EMPTY_MATCH, ...match }, http, unreadable };
}

function convertCondition(condition: NonNullable<PolicyRule["when"]>[number], namespace: string): Entry {
  const { key = "", values = [], notValues = [] } = condition;
  const known = KEYS.get(key);
  if (known === undefined) return { match: EMPTY_MATCH, http: [key], unreadable: [] };
  const [yes, no] = [values, notValues].map((list) => list.map((value) => known.read(value, namespace)));
  const unreadable = [...(yes ?? []), ...(no ?? [])].includes(undefined) ? [key] : [];
  return { match: { ...EMPTY_MATCH, [known.yes]: yes, [known.no]: no }, http: [], unreadable };
}

/** What is said in the status; undefined when everything is enforced as it is written. */
function describeProblems(action: Action, rules: readonly ConvertedRule[]): string | undefined {
  const http = [...new Set(rules.flatMap((rule) => rule.http))].toSorted();
  const unreadable = [...new Set(rules.flatMap((rule) => rule.unreadable))].toSorted();
  const sentences: string[] = [];
  if (http.length > 0) {
    sentences.push(`the nodes' proxies cannot enforce conditions on HTTP (${http.join(", ")}); that takes a waypoint`);
    if (action === "allow") sentences.push("rules with such conditions are left out: less is allowed than is written");
    else sentences.push(...denyProblems(rules));
  }
  if (unreadable.length > 0) {
    const effect = action === "allow" ? "rules with them are left out" : "they are taken to match everything";
    sentences.push(`values of ${unreadable.join(", ")} cannot be read: ${effect}`);
  }
  return sentences.length === 0 ? undefined : sentences.join("; ");
}

function denyProblems(rules: readonly ConvertedRule[]): string[] {
  const withHttp = rules.filter(({ http }) => http.length > 0);
  const dead = withHttp.filter(({ clauses }) => clauses !== undefined && !canMatch(clauses));
  const sentences: string[] = [];
  if (dead.length > 0) {
    sentences.push(
      `${dead.length} of ${rules.length} rules have NO EFFECT: nothing is left of one of their entries, and they deny nothing`,
    );
  }
  if (dead.length < withHttp.length)
    sentences.push("other rules are enforced without these conditions: more is denied than is written");
  return sentences;
}

/** False when some clause has nothing but empty matches, which never match. */
function canMatch(rule: AuthorizationRule): boolean {
  return rule.every(
    (clause) => clause.length === 0 || clause.some((match) => Object.values(match).some((list) => list.length > 0)),
  );
}

function readString(text: string): StringMatch {
  if (text === "*") return { kind: "presence" };
  if (text.startsWith("*")) return { kind: "suffix", value: text.slice(1) };
  if (text.endsWith("*")) return { kind: "prefix", value: text.slice(0, -1) };
  return { kind: "exact", value: text };
}

function readAccount(text: string, namespace: string): ServiceAccountMatch {
  const at = text.indexOf("/");
  if (at < 0) return { namespace, serviceAccount: text };
  return { namespace: text.slice(0, at), serviceAccount: text.slice(at + 1) };
}

function readBlock(text: string): Cidr | undefined {
  try {
    if (text.includes("/")) return parseCidr(text);
  } catch {
    return undefined;
  }
  const address = findIp(text);
  return address === undefined ? undefined : { address, length: isV6(address) ? 128 : 32 };
}

function readPort(text: string): number | undefined {
  return /^\d{1,5}$/.test(text) && Number(text) <= 65535 ? Number(text) : undefined;
}
