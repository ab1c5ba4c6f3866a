import type { KubeClient } from "#kube";
import { LeaderClient } from "./leader-client.ts";

/** A client of the only replica there is: it leads all the time. */
export function aloneInLead(client: KubeClient): LeaderClient {
  const { signal } = new AbortController();
  return new LeaderClient(client, {
    leading: true,
    onLeading: () => () => {},
    whileLeading: (work) => work(signal),
  });
}
