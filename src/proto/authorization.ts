import { create, fromBinary, toBinary, type Message } from "@bufbuild/protobuf";
import { EmptySchema } from "@bufbuild/protobuf/wkt";
import { defineErrors, messageOf } from "#base/errors";
import { bytesToIp, ipToBytes, isV6, type Cidr, type IpAddress } from "#base/ip";
import type {
  Authorization,
  AuthorizationMatch,
  AuthorizationScope,
  ServiceAccountMatch,
  StringMatch,
} from "#model/authorization";
import {
  AddressSchema,
  AuthorizationSchema,
  ClauseSchema,
  MatchSchema,
  RuleSchema,
  ServiceAccountMatchSchema,
  StringMatchSchema,
  type Address as WireAddress,
  type Authorization as WireAuthorization,
  type Match as WireMatch,
  type ServiceAccountMatch as WireServiceAccount,
  type StringMatch as WireString,
} from "./gen/istio/security/authorization_pb.js";

const fail = defineErrors("authorization", {
  AUTHORIZATION_TOO_LARGE: {
    when: "a policy resource is larger than 4 MiB",
    hint: "split the named policy; until then its workloads let nothing in",
  },
  AUTHORIZATION_MALFORMED: {
    when: "a policy resource is no protobuf message",
    hint: "check the version of the controller; until then no workload lets anything in",
  },
  AUTHORIZATION_NAME: {
    when: "a policy has no name or no namespace, or another one than its resource",
    hint: "check the version of the controller; until then the policy's workloads let nothing in",
  },
  AUTHORIZATION_ENUM: {
    when: "scope or action of a policy has a value that this version does not know",
    hint: "update Veil on the node, or use the controller of the same version; until then its workloads let nothing in",
  },
  AUTHORIZATION_IP: {
    when: "an address of a policy has neither 4 nor 16 bytes",
    hint: "check the IP blocks of the named policy; until then its workloads let nothing in",
  },
  AUTHORIZATION_PREFIX: {
    when: "an address prefix of a policy is longer than its address",
    hint: "check the IP blocks of the named policy; until then its workloads let nothing in",
  },
  AUTHORIZATION_PORT: {
    when: "a port of a policy is above 65535",
    hint: "check the ports of the named policy; until then its workloads let nothing in",
  },
  AUTHORIZATION_STRING: {
    when: "a policy compares a text in a way that this version does not know",
    hint: "update Veil on the node, or use the controller of the same version; until then its workloads let nothing in",
  },
  AUTHORIZATION_CONDITION: {
    when: "a policy has a condition that this version does not know",
    hint: "update Veil on the node, or use the controller of the same version; until then its workloads let nothing in",
  },
});

/** Larger policies are not enforced: their workloads let nothing in. */
export const MAX_AUTHORIZATION_BYTES = 4 * 1024 * 1024;

const SCOPES: readonly AuthorizationScope[] = ["global", "namespace", "workload"];
const ACTIONS: readonly Authorization["action"][] = ["allow", "deny"];

/** What could be read of a policy resource: all of it, or to whom it applies and why the rest is unusable. */
export type DecodedAuthorization =
  | { readonly policy: Authorization }
  | {
      readonly error: Error;
      readonly namespace: string;
      /** The widest that it may have. */
      readonly scope: AuthorizationScope;
      readonly dryRun: boolean;
    };

/** The `istio.security.Authorization` message of a policy. Equal values give equal bytes. */
export function encodeAuthorization(policy: Authorization): Uint8Array {
  const { name, namespace, dryRun } = policy;
  const rules = policy.rules.map((clauses) =>
    create(RuleSchema, {
      clauses: clauses.map((matches) => create(ClauseSchema, { matches: matches.map(wireMatch) })),
    }),
  );
  const scope = SCOPES.indexOf(policy.scope);
  const action = ACTIONS.indexOf(policy.action);
  return toBinary(AuthorizationSchema, create(AuthorizationSchema, { name, namespace, scope, action, rules, dryRun }));
}

/**
 * Reads the `istio.security.Authorization` message that xDS calls `resourceName`. Never throws: a policy that is not
 * understood to the last field is told with one of the `AUTHORIZATION_*` codes, and whom it may apply to. (Upstream drops
 * an address that it cannot read, and with the last one the condition: an ALLOW would widen.) Extensions of the whole
 * policy say nothing about who is let in, and are ignored.
 */
export function decodeAuthorization(resourceName: string, bytes: Uint8Array): DecodedAuthorization {
  const [namespace = ""] = resourceName.split("/", 1);
  let wire: WireAuthorization;
  try {
    wire = fromBinary(AuthorizationSchema, bytes);
  } catch (cause) {
    const error = fail("AUTHORIZATION_MALFORMED", `policy "${resourceName}" cannot be read: ${messageOf(cause)}`);
    return { error, namespace, scope: "global", dryRun: false };
  }
  // A scope that is not known might be anything: it is taken for the widest.
  const known = { namespace: wire.namespace || namespace, scope: SCOPES[wire.scope] ?? "global", dryRun: wire.dryRun };
  try {
    if (bytes.length > MAX_AUTHORIZATION_BYTES) {
      const message = `policy "${resourceName}" has ${bytes.length} bytes, at most ${MAX_AUTHORIZATION_BYTES} are allowed`;
      throw fail("AUTHORIZATION_TOO_LARGE", message);
    }
    return { policy: modelPolicy(wire, resourceName) };
  } catch (error) {
    return { error: error instanceof Error ? error : new Error(messageOf(error)), ...known };
  }
}

function wireMatch(match: AuthorizationMatch): WireMatch {
  return create(MatchSchema, {
    namespaces: match.namespaces.map(wireString),
    notNamespaces: match.notNamespaces.map(wireString),
    principals: match.principals.map(wireString),
    notPrincipals: match.notPrincipals.map(wireString),
    serviceAccounts: match.serviceAccounts.map((account) => create(ServiceAccountMatchSchema, account)),
    notServiceAccounts: match.notServiceAccounts.map((account) => create(ServiceAccountMatchSchema, account)),
    sourceIps: match.sourceIps.map(wireCidr),
    notSourceIps: match.notSourceIps.map(wireCidr),
    destinationIps: match.destinationIps.map(wireCidr),
    notDestinationIps: match.notDestinationIps.map(wireCidr),
    destinationPorts: [...match.destinationPorts],
    notDestinationPorts: [...match.notDestinationPorts],
  });
}

function wireString(match: StringMatch): WireString {
  const matchType =
    match.kind === "presence"
      ? { case: match.kind, value: create(EmptySchema) }
      : { case: match.kind, value: match.value };
  return create(StringMatchSchema, { matchType });
}

function wireCidr({ address, length }: Cidr): WireAddress {
  return create(AddressSchema, { address: ipToBytes(address), length });
}

function modelPolicy(wire: WireAuthorization, resourceName: string): Authorization {
  const { name, namespace, dryRun } = wire;
  if (name === "" || namespace === "" || `${namespace}/${name}` !== resourceName) {
    throw fail("AUTHORIZATION_NAME", `the policy "${resourceName}" calls itself "${namespace}/${name}"`);
  }
  const at = `policy "${resourceName}"`;
  refuseUnknown(wire, at);
  const scope = pick(SCOPES, wire.scope, `${at}: scope`);
  const action = pick(ACTIONS, wire.action, `${at}: action`);
  const rules = wire.rules.map((rule, i) => {
    refuseUnknown(rule, `${at}: rules[${i}]`);
    return rule.clauses.map((clause, j) => {
      refuseUnknown(clause, `${at}: rules[${i}].clauses[${j}]`);
      return clause.matches.map((match, k) => modelMatch(match, `${at}: rules[${i}].clauses[${j}].matches[${k}]`));
    });
  });
  return { name, namespace, scope, action, rules, dryRun };
}

function modelMatch(wire: WireMatch, at: string): AuthorizationMatch {
  refuseUnknown(wire, at);
  if (wire.extensions.length > 0) throw fail("AUTHORIZATION_CONDITION", `${at} has an extension`);
  const strings = (list: readonly WireString[], field: string): StringMatch[] =>
    list.map((match, i) => modelString(match, `${at}.${field}[${i}]`));
  const cidrs = (list: readonly WireAddress[], field: string): Cidr[] =>
    list.map((address, i) => modelCidr(address, `${at}.${field}[${i}]`));
  const ports = (list: readonly number[], field: string): readonly number[] =>
    list.map((port, i) => modelPort(port, `${at}.${field}[${i}]`));
  return {
    namespaces: strings(wire.namespaces, "namespaces"),
    notNamespaces: strings(wire.notNamespaces, "not_namespaces"),
    principals: strings(wire.principals, "principals"),
    notPrincipals: strings(wire.notPrincipals, "not_principals"),
    serviceAccounts: wire.serviceAccounts.map((account) => modelAccount(account, `${at}.service_accounts`)),
    notServiceAccounts: wire.notServiceAccounts.map((account) => modelAccount(account, `${at}.not_service_accounts`)),
    sourceIps: cidrs(wire.sourceIps, "source_ips"),
    notSourceIps: cidrs(wire.notSourceIps, "not_source_ips"),
    destinationIps: cidrs(wire.destinationIps, "destination_ips"),
    notDestinationIps: cidrs(wire.notDestinationIps, "not_destination_ips"),
    destinationPorts: ports(wire.destinationPorts, "destination_ports"),
    notDestinationPorts: ports(wire.notDestinationPorts, "not_destination_ports"),
  };
}

function modelString(wire: WireString, at: string): StringMatch {
  refuseUnknown(wire, at);
  const { matchType } = wire;
  if (matchType.case === undefined) throw fail("AUTHORIZATION_STRING", `${at} does not say how it compares`);
  return matchType.case === "presence" ? { kind: "presence" } : { kind: matchType.case, value: matchType.value };
}

function modelAccount(wire: WireServiceAccount, at: string): ServiceAccountMatch {
  refuseUnknown(wire, at);
  return { namespace: wire.namespace, serviceAccount: wire.serviceAccount };
}

function modelCidr(wire: WireAddress, at: string): Cidr {
  refuseUnknown(wire, at);
  const { length } = wire;
  const wrong = (): Error => fail("AUTHORIZATION_PREFIX", `${at} has the prefix length ${length}`);
  if (length > wire.address.length * 8) throw wrong();
  const address = modelIp(wire.address, at);
  const mapped = wire.address.length === 16 && !isV6(address);
  if (mapped && length < 96) throw wrong(); // wider than all of IPv4: it has no form in one family
  return { address, length: mapped ? length - 96 : length };
}

function modelIp(bytes: Uint8Array, at: string): IpAddress {
  try {
    return bytesToIp(bytes);
  } catch (error) {
    throw fail("AUTHORIZATION_IP", `${at}: ${messageOf(error)}`, { cause: error });
  }
}

function modelPort(port: number, at: string): number {
  if (port > 65535) throw fail("AUTHORIZATION_PORT", `${at} is ${port}`);
  return port;
}

/** A field that this version does not know may narrow what the rest allows. */
function refuseUnknown({ $unknown }: Pick<Message, "$unknown">, at: string): void {
  const [field] = $unknown ?? [];
  if (field !== undefined) throw fail("AUTHORIZATION_CONDITION", `${at} has the unknown field ${field.no}`);
}

function pick<T>(values: readonly T[], index: number, at: string): T {
  const value = values[index];
  if (value === undefined) throw fail("AUTHORIZATION_ENUM", `${at} has the value ${index}`);
  return value;
}
