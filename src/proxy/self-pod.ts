import { openSync } from "node:fs";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import { formatSpiffeId } from "#model/spiffe-id";
import type { ProxyConfig } from "./config.ts";
import type { PodThreads } from "./pods.ts";
import type { LocalPod } from "./route.ts";

/** What a proxy has to know of its own pod to be reached through tunnels. */
export interface SelfOptions {
  readonly config: Pick<ProxyConfig, "trustDomain" | "clusterId">;
  readonly instance: { readonly pod: string; readonly namespace: string };
  /** Undefined when it is no pod with an identity of its own. */
  readonly serviceAccount?: string | undefined;
  readonly ports: { readonly metrics: number; readonly ready: number };
}

/** The proxy's own pod, whose metrics and readiness others may ask for through a tunnel. Undefined without a service account. */
export function selfPod({ config, instance, serviceAccount, ports }: SelfOptions): LocalPod | undefined {
  if (serviceAccount === undefined || serviceAccount === "") return undefined;
  const { pod: name, namespace } = instance;
  return {
    podUid: "self",
    name,
    namespace,
    serviceAccount,
    identity: formatSpiffeId({ trustDomain: config.trustDomain, namespace, serviceAccount }),
    workloadUid: `${config.clusterId}//Pod/${namespace}/${name}`,
    serves: [ports.metrics, ports.ready],
  };
}

/** Serves it from now on. That this fails is said and stops nothing: the node's pods do not depend on it. */
export async function serveSelf(pod: LocalPod, threads: Pick<PodThreads, "addPod">, log: Log): Promise<void> {
  try {
    await threads.addPod(pod, { fd: openSync("/proc/self/ns/net", "r"), old: true });
  } catch (error) {
    log.warn({ error: messageOf(error) }, "own metrics cannot be reached through tunnels");
  }
}
