import type { Clock } from "#base/clock";
import type { Log } from "#base/log";
import type { PolicyCondition, PolicyVerdict } from "#discovery";
import { securityKinds } from "#discovery";
import { objectKey, type KubeObject } from "#kube";
import type { LeaderClient } from "./leader-client.ts";
import { StatusWrites } from "./status-writes.ts";

/** The condition's type, as istiod names it. */
const CONDITION = "ZtunnelAccepted";

/**
 * Writes into the status of AuthorizationPolicies what the nodes enforce of them; what is there already is not written again.
 */
export class PolicyStatuses {
  readonly #client: Pick<LeaderClient, "patch">;
  readonly #clock: Clock;
  readonly #writes: StatusWrites<PolicyVerdict>;

  constructor(parts: { leader: Pick<LeaderClient, "leading" | "onLeading" | "patch">; clock: Clock; log: Log }) {
    this.#client = parts.leader;
    this.#clock = parts.clock;
    this.#writes = new StatusWrites({ ...parts, write: (verdict) => this.#writeOne(verdict) });
  }

  /** Takes verdicts; they are written soon. */
  take(verdicts: readonly PolicyVerdict[]): void {
    for (const verdict of verdicts) this.#writes.take(`AuthorizationPolicy ${objectKey(verdict.object)}`, verdict);
  }

  /** A policy is gone. */
  forget(policy: KubeObject): void {
    this.#writes.forget(`AuthorizationPolicy ${objectKey(policy)}`);
  }

  /** Writes nothing more. */
  stop(): void {
    this.#writes.stop();
  }

  async #writeOne(verdict: PolicyVerdict): Promise<void> {
    const { metadata = {}, status } = verdict.object;
    const before = status?.conditions ?? [];
    const old = before.find(({ type }) => type === CONDITION);
    const wanted = conditionOf(verdict);
    if (old !== undefined && isSame(old, wanted)) return;
    const lastTransitionTime = new Date(this.#clock.now()).toISOString();
    const since = old?.status === wanted.status ? old?.lastTransitionTime : lastTransitionTime;
    const conditions = [
      ...before.filter(({ type }) => type !== CONDITION),
      { ...wanted, lastTransitionTime: since ?? lastTransitionTime },
    ];
    const { name = "", namespace, resourceVersion } = metadata;
    await this.#client.patch(
      securityKinds.authorizationPolicies,
      { name, namespace },
      // The list is replaced as a whole: nobody else's condition may have come meanwhile.
      { type: "merge", subresource: "status", body: { metadata: { resourceVersion }, status: { conditions } } },
    );
  }
}

function conditionOf({ object, sent, problem }: PolicyVerdict): PolicyCondition {
  return {
    type: CONDITION,
    status: sent ? "True" : "False",
    reason: problem === undefined ? "Accepted" : "UnsupportedValue",
    message: problem ?? "enforced by the nodes' proxies as it is written",
    observedGeneration: object.metadata?.generation ?? 0,
  };
}

function isSame(a: PolicyCondition, b: PolicyCondition): boolean {
  const text = ({ status, reason, message, observedGeneration }: PolicyCondition): string =>
    JSON.stringify([status, reason, message, String(observedGeneration)]);
  return text(a) === text(b);
}
