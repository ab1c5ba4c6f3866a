import {
  authorizationName,
  EMPTY_MATCH,
  type Authorization,
  type AuthorizationMatch,
  type AuthorizationRule,
} from "#model/authorization";
import type { PeerAuthentication } from "./security-kinds.ts";

/** Whether plaintext is let in. `DISABLE` counts as permissive: it is about what is let in only. */
export type PeerMode = "strict" | "permissive";

/** Denies everything that proves no identity. One for the whole mesh; workloads that are strict list it. */
const STATIC_STRICT = "istio_converted_static_strict";
const CONVERTED_PREFIX = "converted_peer_authentication_";

const NO_IDENTITY: AuthorizationMatch = { ...EMPTY_MATCH, notPrincipals: [{ kind: "presence" }] };

/** The policy that strict workloads list. */
export function staticStrict(rootNamespace: string): Authorization {
  return denial({ name: STATIC_STRICT, namespace: rootNamespace }, [[[NO_IDENTITY]]]);
}

/** The PeerAuthentications that are about a workload, of each level the one that counts (the oldest). */
export interface EffectivePeers {
  readonly mesh: PeerAuthentication | undefined;
  readonly namespace: PeerAuthentication | undefined;
  readonly workload: PeerAuthentication | undefined;
}

/** True when the object is about all workloads of its namespace (or, in the root namespace, of the mesh). */
export function isForAll({ spec }: PeerAuthentication): boolean {
  return Object.keys(spec?.selector?.matchLabels ?? {}).length === 0;
}

/** The oldest of some; of several of one age the first by name, so that all replicas agree. */
export function oldest(objects: Iterable<PeerAuthentication>): PeerAuthentication | undefined {
  const age = ({ metadata }: PeerAuthentication): string =>
    `${metadata?.creationTimestamp ?? ""} ${metadata?.name ?? ""}`;
  let best: PeerAuthentication | undefined;
  for (const object of objects) if (best === undefined || age(object) < age(best)) best = object;
  return best;
}

/** The mode of a namespace's workloads that have none of their own: what is unset is inherited; nothing is permissive. */
export function inheritedMode({ mesh, namespace }: Omit<EffectivePeers, "workload">): PeerMode {
  return modeOf(namespace?.spec?.mtls) ?? modeOf(mesh?.spec?.mtls) ?? "permissive";
}

/**
 * The policy for a workload's PeerAuthentication whose ports differ from the rest; undefined when none does.
 *
 * - strict with permissive ports: one rule, not these ports and no identity
 * - permissive with strict ports: one rule for each, this port and no identity
 */
export function convertPeerAuthentication(object: PeerAuthentication, inherited: PeerMode): Authorization | undefined {
  const own = modeOf(object.spec?.mtls);
  const mode = own ?? inherited;
  const ports = Object.entries(object.spec?.portLevelMtls ?? {})
    .map(([port, mtls]) => ({ port: Number(port), mode: modeOf(mtls) ?? mode }))
    .filter((port) => port.mode !== mode)
    .map(({ port }) => port)
    .toSorted((a, b) => a - b);
  if (isForAll(object) || ports.length === 0) return undefined;
  const { name = "", namespace = "" } = object.metadata ?? {};
  const at = { name: `${CONVERTED_PREFIX}${name}`, namespace };
  if (mode === "permissive")
    return denial(
      at,
      ports.map((port) => [[{ ...NO_IDENTITY, destinationPorts: [port] }]]),
    );
  const except = ports.map((port) => [{ ...EMPTY_MATCH, notDestinationPorts: [port] }]);
  // istiod's order: what is inherited comes last.
  return denial(at, [own === undefined ? [...except, [NO_IDENTITY]] : [[NO_IDENTITY], ...except]]);
}

/** The names of the policies that a workload lists because of its PeerAuthentications. */
export function peerPolicies(peers: EffectivePeers, rootNamespace: string): readonly string[] {
  const inherited = inheritedMode(peers);
  const converted = peers.workload && convertPeerAuthentication(peers.workload, inherited);
  const mode = modeOf(peers.workload?.spec?.mtls) ?? inherited;
  // The converted form of a strict one holds the strictness of the other ports, too.
  if (converted !== undefined) return [authorizationName(converted)];
  return mode === "strict" ? [authorizationName(staticStrict(rootNamespace))] : [];
}

/** Undefined: not set, it is inherited. A mode that is not known lets no plaintext in. */
function modeOf(mtls: { mode?: string } | undefined): PeerMode | undefined {
  const mode = mtls?.mode ?? "UNSET";
  if (mode === "UNSET") return undefined;
  return mode === "PERMISSIVE" || mode === "DISABLE" ? "permissive" : "strict";
}

function denial(at: { name: string; namespace: string }, rules: readonly AuthorizationRule[]): Authorization {
  return { ...at, scope: "workload", action: "deny", rules, dryRun: false };
}
