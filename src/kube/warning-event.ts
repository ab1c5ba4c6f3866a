import type { Event } from "./resources.ts";

/** What a warning says, of which object, and who says it. */
export interface Warning {
  /** Name and namespace of the event: one that is there already cannot be written again. */
  readonly name: string;
  readonly namespace: string;
  readonly about: Event["involvedObject"];
  readonly reason: string;
  readonly message: string;
  readonly source: NonNullable<Event["source"]>;
  /** Wall clock, milliseconds since the epoch. */
  readonly timeMs: number;
}

/** The Kubernetes event (`v1`) of a warning that was given once, as it is to be created. */
export function warningEvent({ name, namespace, about, reason, message, source, timeMs }: Warning) {
  const time = new Date(timeMs).toISOString().replace(/\.\d+Z$/, "Z");
  return {
    metadata: { name, namespace },
    involvedObject: about,
    type: "Warning",
    reason,
    message,
    count: 1,
    firstTimestamp: time,
    lastTimestamp: time,
    source,
  };
}
