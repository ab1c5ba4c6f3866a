import type { IpAddress } from "#base/ip";
import type {
  Authorization,
  AuthorizationClause,
  AuthorizationMatch,
  AuthorizationRule,
  ServiceAccountMatch,
  StringMatch,
} from "#model/authorization";
import type { SpiffeId } from "#model/spiffe-id";
import { CidrSet } from "./cidr-set.ts";

/** The connection that is judged. */
export interface PolicyRequest {
  /** What TLS has proved; undefined for plaintext. */
  readonly identity: SpiffeId | undefined;
  /** The peer of the TCP connection: the client, or the gateway or waypoint in front of it. */
  readonly sourceIp: IpAddress;
  /** The pod, and the port of its application. */
  readonly destinationIp: IpAddress;
  readonly destinationPort: number;
}

/** A request, taken apart once for all policies. */
export interface Subject extends PolicyRequest {
  /** The SPIFFE ID without `spiffe://`; undefined without an identity. */
  readonly principal: string | undefined;
  /** Empty without the identity of a workload, as the next. */
  readonly namespace: string;
  readonly serviceAccount: string;
}

/** True when the condition holds for the connection. */
type Test = (subject: Subject) => boolean;

/** Takes a request apart. An ID that names no workload has a principal, and neither namespace nor service account. */
export function subjectOf({ identity, sourceIp, destinationIp, destinationPort }: PolicyRequest): Subject {
  const request = { identity, sourceIp, destinationIp, destinationPort };
  if (identity === undefined) return { ...request, principal: undefined, namespace: "", serviceAccount: "" };
  const principal = identity.slice("spiffe://".length);
  const workload = WORKLOAD.exec(principal);
  return { ...request, principal, namespace: workload?.[1] ?? "", serviceAccount: workload?.[2] ?? "" };
}

/** What follows `spiffe://` in the ID of a workload; the rest of the rules has been checked when the ID was parsed. */
const WORKLOAD = /^[^/]+\/ns\/([^/]+)\/sa\/([^/]+)$/;

/** Makes one function of a policy's rules: true when one of them matches. */
export function compileRules({ rules }: Authorization): Test {
  return any(rules.map(compileRule));
}

function compileRule(rule: AuthorizationRule): Test {
  return all(rule.map(compileClause));
}

/** A clause without matches is true, one with nothing but empty matches is false. */
function compileClause(clause: AuthorizationClause): Test {
  return clause.length === 0 ? () => true : any(clause.map(compileMatch));
}

function compileMatch(match: AuthorizationMatch): Test {
  const tests = [
    ...both(ports, match.destinationPorts, match.notDestinationPorts),
    ...both(serviceAccounts, match.serviceAccounts, match.notServiceAccounts),
    ...both(principals, match.principals, match.notPrincipals),
    ...both(namespaces, match.namespaces, match.notNamespaces),
    ...both(sourceIps, match.sourceIps, match.notSourceIps),
    ...both(destinationIps, match.destinationIps, match.notDestinationIps),
  ];
  return tests.length === 0 ? () => false : all(tests);
}

/** Positives: one fits. Negatives: none fits. What is not given is no condition. */
function both<T>(make: (values: readonly T[]) => Test, positives: readonly T[], negatives: readonly T[]): Test[] {
  const tests: Test[] = [];
  if (positives.length > 0) tests.push(make(positives));
  if (negatives.length > 0) {
    const fits = make(negatives);
    tests.push((subject) => !fits(subject));
  }
  return tests;
}

function ports(values: readonly number[]): Test {
  const wanted = new Set(values);
  return ({ destinationPort }) => wanted.has(destinationPort);
}

/** Without an identity none fits: a negative one holds. */
function serviceAccounts(values: readonly ServiceAccountMatch[]): Test {
  const key = ({ namespace, serviceAccount }: ServiceAccountMatch): string => `${namespace}/${serviceAccount}`;
  const wanted = new Set(values.map(key));
  return (subject) => subject.serviceAccount !== "" && wanted.has(key(subject));
}

/** Without an identity none fits, not even `presence`: a negative one holds. */
function principals(values: readonly StringMatch[]): Test {
  const fits = compileStrings(values);
  return ({ principal }) => principal !== undefined && fits(principal);
}

/** Without an identity the empty name is compared. */
function namespaces(values: readonly StringMatch[]): Test {
  const fits = compileStrings(values);
  return ({ namespace }) => fits(namespace);
}

function sourceIps(values: AuthorizationMatch["sourceIps"]): Test {
  const wanted = new CidrSet(values);
  return ({ sourceIp }) => wanted.has(sourceIp);
}

function destinationIps(values: AuthorizationMatch["destinationIps"]): Test {
  const wanted = new CidrSet(values);
  return ({ destinationIp }) => wanted.has(destinationIp);
}

function compileStrings(values: readonly StringMatch[]): (text: string) => boolean {
  const exact = new Set(values.flatMap((match) => (match.kind === "exact" ? [match.value] : [])));
  const others = values.filter(({ kind }) => kind !== "exact");
  if (others.length === 0) return (text) => exact.has(text);
  return (text) => exact.has(text) || others.some((match) => fitsText(match, text));
}

function fitsText(match: StringMatch, text: string): boolean {
  if (match.kind === "presence") return text !== "";
  if (match.kind === "prefix") return text.startsWith(match.value);
  return match.kind === "suffix" ? text.endsWith(match.value) : text === match.value;
}

function all(tests: readonly Test[]): Test {
  const [only, ...more] = tests;
  if (only !== undefined && more.length === 0) return only;
  return (subject) => tests.every((test) => test(subject));
}

function any(tests: readonly Test[]): Test {
  const [only, ...more] = tests;
  if (only !== undefined && more.length === 0) return only;
  return (subject) => tests.some((test) => test(subject));
}
