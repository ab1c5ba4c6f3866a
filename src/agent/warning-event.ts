import type { Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import { resources, warningEvent, type KubeClient } from "#kube";

/** The API takes no longer message. */
const MAX_MESSAGE_CHARACTERS = 1024;

/** What events are written with. */
export interface EventTools {
  readonly client: Pick<KubeClient, "create">;
  readonly node: string;
  readonly clock: Clock;
  readonly log: Log;
}

/** A warning about an object, which `kubectl describe` shows. */
export interface WarningEvent {
  /** Name of the event: one that is there already is not written again. */
  readonly name: string;
  readonly kind: "Namespace" | "Node" | "Pod";
  readonly object: { readonly name?: string; readonly namespace?: string; readonly uid?: string };
  readonly reason: string;
  readonly text: string;
}

/** Writes a Kubernetes event of type Warning. Never rejects: who looks at events finds it, who does not is told by the log. */
export async function writeWarning({ client, node, clock, log }: EventTools, warning: WarningEvent): Promise<void> {
  const { name, kind, object, reason, text } = warning;
  const namespace = object.namespace ?? "default"; // where Kubernetes keeps the events of objects without one
  const involved = { apiVersion: "v1", kind, name: object.name ?? "", uid: object.uid ?? "" };
  const about = { ...involved, ...(kind === "Pod" && { namespace }) };
  const message = text.slice(0, MAX_MESSAGE_CHARACTERS);
  const source = { component: "veil-agent", host: node };
  const event = warningEvent({ name, namespace, about, reason, message, source, timeMs: clock.now() });
  try {
    await client.create(resources.events, event);
  } catch (error) {
    log.debug({ error: messageOf(error) }, "event not written: another agent has, or the api is away");
  }
}
