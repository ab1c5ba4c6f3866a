import { objectKey, type Namespace } from "#kube";
import { PROXY_PORTS } from "#enrolment";
import { count, someOf, voiceOf, type Finding } from "./finding.ts";
import type { ForeignPolicy, NetworkPolicy } from "./kinds.ts";
import type { JudgedPod, Labels } from "./pods.ts";
import {
  admits,
  coversPort,
  coversTcp,
  policyPod,
  rulesFor,
  type Direction,
  type PolicyPod,
  type PolicyRule,
} from "./policy-match.ts";

const HBONE = PROXY_PORTS.inboundHbone;
const DNS = 53;
const voice = voiceOf("network policies");

/** Enrolled pods that all policies treat alike. */
interface Group {
  readonly pod: PolicyPod;
  readonly names: string[];
}

/** A policy that lets a connection through, but not its tunnel. */
interface Cut {
  readonly policy: string;
  readonly direction: Direction;
  readonly about: Set<string>;
  readonly peers: Set<string>;
}

/**
 * Finds policies that let enrolled pods talk on the applications' ports and not on 15008, on which they really do: their
 * connections time out. Also pods whom policies let nobody call at all.
 */
export function checkNetworkPolicies(
  policies: readonly NetworkPolicy[],
  pods: readonly JudgedPod[],
  namespaces: readonly Namespace[],
): readonly Finding[] {
  const groups = groupPods(pods, namespaces, usesBlocks(policies));
  const findings = [...findCuts(groups, policies).values()].map(cutFinding);
  const closed = groups.filter(({ pod }) => rulesFor(pod, policies, "ingress")?.length === 0);
  const names = closed.flatMap((group) => group.names);
  if (names.length > 0) {
    findings.push(
      voice.warning(
        `NetworkPolicies let nobody call ${count(names.length, "enrolled pod")}: ${someOf(names)}`,
        `nothing, if that is meant; otherwise let their callers in on TCP ${HBONE}`,
      ),
    );
  }
  if (findings.length > 0) return findings;
  const enrolled = groups.reduce((sum, group) => sum + group.names.length, 0);
  return [
    voice.ok(
      `none of ${policies.length} NetworkPolicies keeps ${count(enrolled, "enrolled pod")} from TCP ${HBONE} while it lets them talk`,
    ),
  ];
}

function usesBlocks(policies: readonly NetworkPolicy[]): boolean {
  const rules = policies.flatMap(({ spec }) => [...(spec?.ingress ?? []), ...(spec?.egress ?? [])]);
  return JSON.stringify(rules).includes('"ipBlock"');
}

/** With `byAddress`, addresses tell pods apart. */
function groupPods(pods: readonly JudgedPod[], namespaces: readonly Namespace[], byAddress: boolean): Group[] {
  const labelsOf = new Map<string, Labels>(
    namespaces.map(({ metadata }) => [metadata?.name ?? "", metadata?.labels ?? {}]),
  );
  const groups = new Map<string, Group>();
  for (const { pod, name, namespace, eligibility } of pods) {
    if (!eligibility.eligible) continue;
    const seen = policyPod(pod, labelsOf.get(namespace) ?? {});
    const key = JSON.stringify([namespace, seen.labels, [...seen.ports], byAddress ? seen.ips : []]);
    const group = groups.get(key) ?? { pod: seen, names: [] };
    group.names.push(name);
    groups.set(key, group);
  }
  return [...groups.values()];
}

function findCuts(groups: readonly Group[], policies: readonly NetworkPolicy[]): ReadonlyMap<string, Cut> {
  const cuts = new Map<string, Cut>();
  for (const direction of ["ingress", "egress"] as const) {
    for (const group of groups) {
      const rules = rulesFor(group.pod, policies, direction) ?? [];
      for (const rule of rules) {
        const peers = groups.filter((peer) => isCut({ direction, group, peer }, rule, rules));
        if (peers.length > 0) addCut(cuts, objectKey(rule.policy), { direction, group, peers });
      }
    }
  }
  return cuts;
}

function addCut(
  cuts: Map<string, Cut>,
  policy: string,
  found: { readonly direction: Direction; readonly group: Group; readonly peers: readonly Group[] },
): void {
  const { direction, group, peers } = found;
  const key = `${direction} ${policy}`;
  const cut = cuts.get(key) ?? { policy, direction, about: new Set(), peers: new Set() };
  for (const name of group.names) cut.about.add(name);
  for (const name of peers.flatMap(({ names }) => names)) cut.peers.add(name);
  cuts.set(key, cut);
}

/** Names are asked for everywhere: that such a rule is about everybody does not say that everybody may be called. */
function isForDns({ ports }: PolicyRule): boolean {
  return ports?.every(({ port, endPort = DNS }) => port === DNS && endPort === DNS) === true;
}

/** Whether a rule lets the two talk on some port, and none lets them on 15008. */
function isCut(
  { direction, group, peer }: { readonly direction: Direction; readonly group: Group; readonly peer: Group },
  rule: PolicyRule,
  rules: readonly PolicyRule[],
): boolean {
  const server = direction === "ingress" ? group.pod : peer.pod;
  if (direction === "egress" && isForDns(rule)) return false;
  const tunnels = (one: PolicyRule): boolean => coversPort(one, HBONE, server) && admits(one, peer.pod);
  if (!coversTcp(rule, server) || !admits(rule, peer.pod)) return false;
  return !tunnels(rule) && !rules.some(tunnels);
}

function cutFinding({ policy, direction, about, peers }: Cut): Finding {
  const [pods, others] = [someOf([...about]), someOf([...peers])];
  const path = direction === "ingress" ? `${others} call ${pods}` : `${pods} call ${others}`;
  return voice.problem(
    `NetworkPolicy ${policy} lets ${path}, but not on TCP ${HBONE}, on which enrolled pods talk: the connections time out`,
    `add port ${HBONE} to that rule's ${direction} ports; which ports may be called through it, AuthorizationPolicies say (docs/policies.md)`,
  );
}

/** Names other network plugins' policies that name ports and not 15008: what they come to, only their plugin knows. */
export function checkForeignPolicies(kind: string, policies: readonly ForeignPolicy[]): readonly Finding[] {
  const texts = policies.map((policy) => [objectKey(policy), JSON.stringify([policy.spec, policy.specs])] as const);
  const suspects = texts.filter(([, text]) => /"(toPorts|ports)"/.test(text) && !text.includes(String(HBONE)));
  if (suspects.length === 0) return [];
  return [
    voice.warning(
      `${count(suspects.length, kind)} with ports, of which ${HBONE} is none: ${someOf(suspects.map(([name]) => name))}`,
      `look at each that selects enrolled pods: it has to let TCP ${HBONE} through to and from them`,
    ),
  ];
}
