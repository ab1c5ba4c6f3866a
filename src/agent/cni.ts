import { CellSet } from "#base/metrics";
import type { Service } from "#base/service";
import { CniInstaller, cniMetrics, CniServer, type InstallStatus } from "#cni";
import type { Enrolment } from "#enrolment";
import type { AgentOptions } from "./options.ts";
import { chainWarning } from "./chain-warning.ts";
import { PluginCredentials } from "./plugin-credentials.ts";

/** The agent's part of the CNI plugin: its socket, and its place on the node where the agent keeps that. */
export interface Cni {
  readonly server: Service;
  /** Undefined where the agent does not install the plugin. */
  readonly installer: CniInstaller | undefined;
  readonly cells: CellSet;
  /** Null where the agent does not install the plugin. */
  readonly status: () => InstallStatus | null;
}

/** `pending` is what the agent waits for before it can enrol pods. */
export function createCni(
  options: AgentOptions,
  { enrolment, pending }: { readonly enrolment: Enrolment; readonly pending: () => readonly string[] },
): Cni {
  const cells = new CellSet(cniMetrics);
  const log = options.log.child({ component: "cni" });
  const server = new CniServer({
    path: options.sockets.cni,
    log,
    cells,
    host: {
      add: async (pod, signal) => {
        const outcome = await enrolment.enrolStarting(pod, signal);
        log.info({ pod: pod.name, namespace: pod.namespace, outcome }, "pod may start");
      },
      check: (pod) => enrolment.checkStarted(pod),
      pending,
    },
  });
  const { cniInstall, sockets, namespace, client, clock } = options;
  if (cniInstall === undefined) return { server, installer: undefined, cells, status: () => null };
  const { strict, credentials, account, ...places } = cniInstall;
  const api = new PluginCredentials({ client, namespace, account, clock });
  const installer = new CniInstaller({
    ...places,
    entry: { socket: sockets.cni, namespace, strict, credentials },
    credentials: () => api.text(),
    clock,
    log,
    cells,
    onProblem: chainWarning(options),
  });
  return { server, installer, cells, status: () => installer.status };
}
