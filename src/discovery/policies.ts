import { hash } from "node:crypto";
import { messageOf } from "#base/errors";
import { objectKey } from "#kube";
import { authorizationName, type Authorization } from "#model/authorization";
import { encodeAuthorization } from "#proto";
import { convertAuthorizationPolicy, type ConvertedPolicy } from "./authorization-policy.ts";
import type { Problem } from "./cluster.ts";
import {
  convertPeerAuthentication,
  inheritedMode,
  isForAll,
  oldest,
  peerPolicies,
  staticStrict,
} from "./peer-authentication.ts";
import type { PublishedAddress } from "./publication.ts";
import type { AuthorizationPolicy, PeerAuthentication } from "./security-kinds.ts";

type Labels = Readonly<Record<string, string>>;

/** What is said about an AuthorizationPolicy on the object itself. */
export interface PolicyVerdict {
  readonly object: AuthorizationPolicy;
  /** True when it is sent to the nodes. */
  readonly sent: boolean;
  /** What is not enforced as it is written. */
  readonly problem: string | undefined;
}

/** What changed since the last time. */
export interface PolicyUpdate {
  readonly upserts: readonly PublishedAddress[];
  readonly removes: readonly string[];
  readonly verdicts: readonly PolicyVerdict[];
  readonly problems: readonly Problem[];
}

/**
 * Turns AuthorizationPolicies and PeerAuthentications into what the nodes enforce, and says which of it each workload
 * lists. Everything is computed anew on a change: these objects are few and change rarely.
 */
export class PolicyDiscovery {
  readonly #rootNamespace: string;
  /** Told when the lists of a namespace's workloads may have changed; of all when undefined. */
  readonly #onLists: (namespace: string | undefined) => void;
  readonly #authorizations = new Map<
    string,
    { readonly object: AuthorizationPolicy; readonly made: ConvertedPolicy }
  >();
  readonly #peers = new Map<string, PeerAuthentication>();
  readonly #waypoints = new Map<string, Authorization>();
  readonly #versions = new Map<string, string>();
  readonly #changed = new Set<string>();
  #isDirty = false;

  constructor(rootNamespace: string, onLists: (namespace: string | undefined) => void) {
    this.#rootNamespace = rootNamespace;
    this.#onLists = onLists;
  }

  /** True when `flush` has something to do. */
  get dirty(): boolean {
    return this.#isDirty;
  }

  upsertAuthorizationPolicy(object: AuthorizationPolicy): void {
    const key = objectKey(object);
    this.#authorizations.set(key, { object, made: convert(object, this.#rootNamespace) });
    this.#changed.add(key);
    this.#touched(object.metadata?.namespace);
  }

  removeAuthorizationPolicy(object: AuthorizationPolicy): void {
    this.#authorizations.delete(objectKey(object));
    this.#touched(object.metadata?.namespace);
  }

  upsertPeerAuthentication(object: PeerAuthentication): void {
    this.#peers.set(objectKey(object), object);
    this.#touched(object.metadata?.namespace);
  }

  removePeerAuthentication(object: PeerAuthentication): void {
    this.#peers.delete(objectKey(object));
    this.#touched(object.metadata?.namespace);
  }

  /** Sets the policy of those who are behind a waypoint; undefined: there is none. */
  setWaypointPolicy(waypoint: string, policy: Authorization | undefined): void {
    if (policy === undefined) this.#waypoints.delete(waypoint);
    else this.#waypoints.set(waypoint, policy);
    this.#isDirty = true;
  }

  /** The names of the policies that a workload with these labels lists, sorted. */
  listOf(namespace: string, labels: Labels): readonly string[] {
    const names: string[] = [];
    for (const { object, made } of this.#authorizations.values()) {
      const { policy } = made;
      if (policy?.scope !== "workload") continue;
      if (policy.namespace !== namespace && policy.namespace !== this.#rootNamespace) continue;
      if (selects(object, labels)) names.push(authorizationName(policy));
    }
    const { mesh, namespace: ofNamespace } = this.#levels(namespace);
    const own = [...this.#peers.values()].filter(
      (peer) =>
        peer.metadata?.namespace === namespace &&
        namespace !== this.#rootNamespace &&
        !isForAll(peer) &&
        selects(peer, labels),
    );
    const peers = { mesh, namespace: ofNamespace, workload: oldest(own) };
    return [...names, ...peerPolicies(peers, this.#rootNamespace)].toSorted();
  }

  /** Computes what the objects given since the last time change. */
  flush(): PolicyUpdate {
    this.#isDirty = false;
    const upserts: PublishedAddress[] = [];
    const policies = this.#policies();
    const removes = [...this.#versions.keys()].filter((name) => !policies.has(name));
    for (const name of removes) this.#versions.delete(name);
    for (const [name, policy] of policies) {
      const value = encodeAuthorization(policy);
      const version = hash("sha256", value, "hex").slice(0, 16);
      if (this.#versions.get(name) === version) continue;
      this.#versions.set(name, version);
      upserts.push({ name, version, aliases: [], value });
    }
    const verdicts = this.#verdicts();
    const problems = verdicts.flatMap(({ object, problem }) =>
      problem === undefined
        ? []
        : [{ object: `AuthorizationPolicy ${objectKey(object)}`, field: "spec", message: problem }],
    );
    return { upserts, removes, verdicts, problems };
  }

  #policies(): Map<string, Authorization> {
    const found = [...this.#authorizations.values()].flatMap(({ made }) => made.policy ?? []);
    found.push(...this.#waypoints.values());
    if (this.#peers.size > 0) found.push(staticStrict(this.#rootNamespace));
    for (const peer of this.#peers.values()) {
      const namespace = peer.metadata?.namespace ?? "";
      if (namespace === this.#rootNamespace) continue;
      const converted = convertPeerAuthentication(peer, inheritedMode(this.#levels(namespace)));
      if (converted !== undefined) found.push(converted);
    }
    return new Map(found.map((policy) => [authorizationName(policy), policy]));
  }

  #levels(namespace: string): { mesh: PeerAuthentication | undefined; namespace: PeerAuthentication | undefined } {
    const of = (wanted: string): PeerAuthentication | undefined =>
      oldest([...this.#peers.values()].filter((peer) => peer.metadata?.namespace === wanted && isForAll(peer)));
    return {
      mesh: of(this.#rootNamespace),
      namespace: namespace === this.#rootNamespace ? undefined : of(namespace),
    };
  }

  #verdicts(): PolicyVerdict[] {
    const verdicts = [...this.#changed].flatMap((key): PolicyVerdict[] => {
      const entry = this.#authorizations.get(key);
      if (entry === undefined || entry.made.elsewhere) return [];
      return [{ object: entry.object, sent: entry.made.policy !== undefined, problem: entry.made.problem }];
    });
    this.#changed.clear();
    return verdicts;
  }

  #touched(namespace: string | undefined): void {
    this.#isDirty = true;
    this.#onLists(namespace === this.#rootNamespace ? undefined : namespace);
  }
}

/** An object that cannot be read at all denies everything that it may be about. */
function convert(object: AuthorizationPolicy, rootNamespace: string): ConvertedPolicy {
  try {
    return convertAuthorizationPolicy(object, rootNamespace);
  } catch (error) {
    const spec = { ...(object.spec?.selector && { selector: object.spec.selector }), action: "DENY", rules: [{}] };
    const { metadata = {} } = object;
    const problem = `it cannot be read (${messageOf(error)}), and denies everything`;
    return { ...convertAuthorizationPolicy({ metadata, spec }, rootNamespace), problem };
  }
}

function selects({ spec }: AuthorizationPolicy | PeerAuthentication, labels: Labels): boolean {
  return Object.entries(spec?.selector?.matchLabels ?? {}).every(([name, value]) => labels[name] === value);
}
