import type { Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { PolicyCondition, PolicyVerdict } from "#discovery";
import { securityKinds } from "#discovery";
import { isKubeError, objectKey, type KubeClient } from "#kube";

/** The condition's type, as istiod names it. */
const CONDITION = "ZtunnelAccepted";
/** Between two tries to write a status while the API is away. */
const RETRY_MS = 1_000;

/**
 * Writes into the status of AuthorizationPolicies what the nodes enforce of them. All replicas of the controller write the
 * same; what is there already is not written again. One write at a time, the newest verdict of an object counts.
 */
export class PolicyStatuses {
  readonly #client: KubeClient;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #waiting = new Map<string, PolicyVerdict>();
  #isWriting = false;
  #isStopped = false;
  #cancel = (): void => {};

  constructor(parts: { client: KubeClient; clock: Clock; log: Log }) {
    this.#client = parts.client;
    this.#clock = parts.clock;
    this.#log = parts.log;
  }

  /** Takes verdicts; they are written soon. */
  take(verdicts: readonly PolicyVerdict[]): void {
    for (const verdict of verdicts) this.#waiting.set(objectKey(verdict.object), verdict);
    void this.#write();
  }

  /** Writes nothing more. */
  stop(): void {
    this.#isStopped = true;
    this.#cancel();
  }

  async #write(): Promise<void> {
    if (this.#isWriting) return;
    this.#isWriting = true;
    for (const [key, verdict] of this.#waiting) {
      if (this.#isStopped) return;
      this.#waiting.delete(key);
      try {
        await this.#writeOne(verdict);
      } catch (error) {
        // Changed or deleted meanwhile: its next state brings its next verdict.
        if (isKubeError(error, "KUBE_CONFLICT") || isKubeError(error, "KUBE_NOT_FOUND")) continue;
        this.#log.warn({ policy: key, error: messageOf(error) }, "status of a policy cannot be written, trying again");
        if (!this.#waiting.has(key)) this.#waiting.set(key, verdict);
        await new Promise<void>((resolve) => {
          this.#cancel = this.#clock.after(RETRY_MS, resolve);
        });
      }
    }
    this.#isWriting = false;
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
