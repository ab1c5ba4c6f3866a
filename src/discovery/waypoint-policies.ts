import type { Pod } from "#kube";
import { EMPTY_MATCH, authorizationName, type Authorization } from "#model/authorization";
import type { Cluster } from "./cluster.ts";
import { isLive } from "./pod.ts";
import type { ServiceFacts } from "./service.ts";
import { Waypoints } from "./waypoints.ts";

/** What a workload is behind: its own waypoints, and the services that it is an endpoint of, with theirs. */
export interface Behind {
  readonly keys: readonly string[];
  readonly services: readonly ServiceFacts[];
}

/**
 * The policies by which workloads behind a waypoint let in nobody but it, unless other policies allow more: one for each
 * waypoint, of its pods' accounts. A waypoint without pods lets in nobody (with istiod, everybody may come then).
 * Nothing at all unless the cluster has `enforceWaypoints`. Source: istio pilot/pkg/serviceregistry/ambient/policies.go.
 */
export class WaypointPolicies {
  readonly #cluster: Cluster;
  readonly #waypoints: Waypoints;
  readonly #publish: (waypoint: string, policy: Authorization | undefined) => void;
  /** Pods of waypoints: of which Gateway, and their account. */
  readonly #instances = new Map<string, { readonly waypoint: string; readonly account: string }>();

  /** `publish` is told the policy of a waypoint whenever it may have changed; undefined: there is none. */
  constructor(
    cluster: Cluster,
    waypoints: Waypoints,
    publish: (waypoint: string, policy: Authorization | undefined) => void,
  ) {
    this.#cluster = cluster;
    this.#waypoints = waypoints;
    this.#publish = publish;
  }

  /** Takes a pod, which may be an instance of a waypoint; undefined: it is gone. */
  setPod(key: string, pod: Pod | undefined): void {
    if (this.#cluster.enforceWaypoints !== true) return;
    const before = this.#instances.get(key)?.waypoint;
    const waypoint = pod !== undefined && isLive(pod) ? Waypoints.instanceOf(pod) : undefined;
    if (waypoint === undefined) this.#instances.delete(key);
    else this.#instances.set(key, { waypoint, account: pod?.spec?.serviceAccountName || "default" });
    for (const one of new Set([before, waypoint])) if (one !== undefined) this.waypointChanged(one);
  }

  /** A waypoint has come, changed or gone. */
  waypointChanged(waypoint: string): void {
    if (this.#cluster.enforceWaypoints !== true) return;
    this.#publish(waypoint, this.#waypoints.has(waypoint) ? this.#policy(waypoint) : undefined);
  }

  /** The names of the policies that a workload lists because of what it is behind. */
  namesFor({ keys, services }: Behind): readonly string[] {
    if (this.#cluster.enforceWaypoints !== true) return [];
    const inFront = services.flatMap(({ namespace, waypointLabels: labels }) => {
      return this.#waypoints.ofService({ metadata: { namespace, labels } }).keys;
    });
    return [...new Set([...keys, ...inFront])].map((waypoint) => authorizationName(nameOf(waypoint)));
  }

  #policy(waypoint: string): Authorization {
    const at = nameOf(waypoint);
    const instances = [...this.#instances.values()].filter((instance) => instance.waypoint === waypoint);
    const accounts = new Set(instances.map(({ account }) => account));
    const principals = [...accounts].toSorted().map((account) => {
      return { kind: "exact" as const, value: `${this.#cluster.trustDomain}/ns/${at.namespace}/sa/${account}` };
    });
    const rules = principals.length === 0 ? [] : [[[{ ...EMPTY_MATCH, principals }]]];
    return { ...at, scope: "workload", action: "allow", rules, dryRun: false };
  }
}

/** No Kubernetes object has an underscore in its name. */
function nameOf(waypoint: string): Pick<Authorization, "namespace" | "name"> {
  const [namespace = "", name = ""] = waypoint.split("/");
  return { namespace, name: `istio_allow_waypoint_${namespace}_${name}` };
}
