import { sleep, type Clock } from "#base/clock";
import { resources, type KubeClient } from "#kube";
import { AGENTS, LEAVE_ANNOTATION, LEFT_ANNOTATION } from "#model/leaving";

/** How often the agents are looked at. */
const LOOK_MS = 1000;

/**
 * Has Veil leave all nodes, and resolves when it has: no pod is redirected, and the CNI plugin is gone. Connections that are carried
 * may end by themselves first; the agents say how long. To be called before an installation is deleted. `note` is told what is
 * waited for. Rejects with `KUBE_NOT_FOUND` where there are no agents, and when the signal is aborted.
 */
export async function leave(options: {
  readonly client: Pick<KubeClient, "patch" | "list">;
  /** Where Veil is installed. */
  readonly namespace: string;
  readonly note: (line: string) => void;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}): Promise<void> {
  const { client, namespace, note, clock, signal } = options;
  const body = { metadata: { annotations: { [LEAVE_ANNOTATION]: "true" } } };
  await client.patch(resources.daemonSets, { name: AGENTS, namespace, signal }, { type: "merge", body });
  for (let said = ""; ;) {
    const { items } = await client.list(resources.pods, { namespace, labelSelector: `app=${AGENTS}`, signal });
    const left = items.filter(({ metadata }) => metadata?.annotations?.[LEFT_ANNOTATION] === "true");
    const waiting = items.filter((pod) => !left.includes(pod)).map(({ spec }) => spec?.nodeName ?? "(no node yet)");
    if (waiting.length === 0) return note(`Veil has left ${left.length} nodes`);
    const line = `waiting for the connections of ${waiting.toSorted().join(", ")}`;
    if (line !== said) note(line);
    said = line;
    await sleep(clock, LOOK_MS, signal);
  }
}
