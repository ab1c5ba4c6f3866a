import type { CellSet } from "#base/metrics";
import { CniServer } from "#cni";
import type { Enrolment } from "#enrolment";
import type { AgentOptions } from "./options.ts";

/** The socket that the CNI plugin asks. */
export function createCni(
  { sockets, log }: AgentOptions,
  parts: { readonly cells: CellSet; readonly enrolment: Enrolment; readonly pending: () => readonly string[] },
): CniServer {
  const { cells, enrolment, pending } = parts;
  const cniLog = log.child({ component: "cni" });
  return new CniServer({
    path: sockets.cni,
    log: cniLog,
    cells,
    host: {
      add: async (pod, signal) => {
        const outcome = await enrolment.enrolStarting(pod, signal);
        cniLog.info({ pod: pod.name, namespace: pod.namespace, outcome }, "pod may start");
      },
      check: (pod) => enrolment.checkStarted(pod),
      pending,
    },
  });
}
