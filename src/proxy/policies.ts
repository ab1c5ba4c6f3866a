import { fromBinary } from "@bufbuild/protobuf";
import type { Workload } from "#model/workload";
import { AuthorizationSchema } from "#proto";

/** What has to be known of a policy that cannot be enforced: to whom it applies. */
export interface UnenforcedPolicy {
  /** `namespace/name`. */
  readonly name: string;
  readonly namespace: string;
  readonly scope: "global" | "namespace" | "workload";
}

const SCOPES = ["global", "namespace", "workload"] as const;

/** Reads an `istio.security.Authorization`; undefined for one that is only tried out (dry run). Throws when it is malformed. */
export function decodePolicy(name: string, value: Uint8Array): UnenforcedPolicy | undefined {
  const { namespace, scope, dryRun } = fromBinary(AuthorizationSchema, value);
  const known = SCOPES[scope];
  // A scope that is not known might be anything: it is taken for the widest.
  return dryRun ? undefined : { name, namespace, scope: known ?? "global" };
}

/** The policy that applies to a pod, if any. The workload is what the control plane says of the pod. */
export function findPolicy(
  policies: Iterable<UnenforcedPolicy>,
  namespace: string,
  workload: Workload | undefined,
): UnenforcedPolicy | undefined {
  for (const policy of policies) {
    if (policy.scope === "global") return policy;
    if (policy.scope === "namespace" && policy.namespace === namespace) return policy;
    if (policy.scope === "workload" && workload?.authorizationPolicies.includes(policy.name) === true) return policy;
  }
  return undefined;
}
