import fc from "fast-check";
import type { Cidr } from "#base/ip";
import type { AuthorizationMatch, StringMatch } from "./authorization.ts";

/** For tests: a list of none, one or two. */
export const few = <T>(one: fc.Arbitrary<T>): fc.Arbitrary<T[]> => fc.array(one, { maxLength: 2 });

/** For tests: what a text may be compared with. */
export function anyText(values: fc.Arbitrary<string>): fc.Arbitrary<StringMatch> {
  return fc.oneof(
    fc.record({ kind: fc.constantFrom("exact" as const, "prefix" as const, "suffix" as const), value: values }),
    fc.constant({ kind: "presence" as const }),
  );
}

/** For tests: any match of a policy, of these parts. */
export function anyMatch(parts: {
  readonly text: fc.Arbitrary<string>;
  /** Of namespaces and accounts. */
  readonly name: fc.Arbitrary<string>;
  readonly cidr: fc.Arbitrary<Cidr>;
  readonly port: fc.Arbitrary<number>;
}): fc.Arbitrary<AuthorizationMatch> {
  const texts = few(anyText(parts.text));
  const accounts = few(fc.record({ namespace: parts.name, serviceAccount: parts.name }));
  const [cidrs, ports] = [few(parts.cidr), few(parts.port)];
  return fc.record({
    namespaces: texts,
    notNamespaces: texts,
    principals: texts,
    notPrincipals: texts,
    serviceAccounts: accounts,
    notServiceAccounts: accounts,
    sourceIps: cidrs,
    notSourceIps: cidrs,
    destinationIps: cidrs,
    notDestinationIps: cidrs,
    destinationPorts: ports,
    notDestinationPorts: ports,
  });
}
