import { hash } from "node:crypto";
import type { Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import { resources, warningEvent, type Informer, type KubeClient, type Pod } from "#kube";

/** What an event about the controller itself is written with. */
export interface OwnEventTools {
  readonly pods: Pick<Informer<Pod>, "get">;
  /** Veil's namespace, and the controller's own pod in it: there the event is written. */
  readonly namespace: string;
  readonly podName: string;
  readonly client: Pick<KubeClient, "create">;
  readonly clock: Clock;
  readonly log: Log;
}

/** Warns on the controller's own pod, once for each `key`. Where the controller runs outside of a pod there is no object to tell it on. */
export function warnOnOwnPod(
  { pods, namespace, podName, client, clock, log }: OwnEventTools,
  { key, reason, message }: { readonly key: string; readonly reason: string; readonly message: string },
): void {
  const own = pods.get(podName, namespace);
  if (own === undefined) return;
  const { uid = "" } = own.metadata ?? {};
  const event = warningEvent({
    name: `veil-neighbour.${hash("sha256", `${uid}\0${key}`, "hex").slice(0, 16)}`,
    namespace,
    about: { apiVersion: "v1", kind: "Pod", name: podName, namespace, uid },
    reason,
    message,
    source: { component: "veil-controller" },
    timeMs: clock.now(),
  });
  client
    .create(resources.events, event)
    .catch((error: unknown) =>
      log.debug({ error: messageOf(error) }, "event not written: it is there, or the api is away"),
    );
}
