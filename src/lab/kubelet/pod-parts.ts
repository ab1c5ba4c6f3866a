import type { Clock } from "#base/clock";
import type { Log } from "#base/log";
import type { Random } from "#base/random";
import type { KubeClient, Pod } from "#kube";
import type { AddressPool } from "./addresses.ts";
import type { VolumeSources } from "./volumes.ts";

/** What all pods of a node share. */
export interface NodeParts {
  readonly nodeName: string;
  /** The node's own address. */
  readonly address: string;
  readonly state: string;
  readonly client: KubeClient;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly addresses: AddressPool;
  readonly sources: VolumeSources;
  readonly events: EventSink;
  /** Variables that every container starts with. */
  readonly environment: Readonly<Record<string, string>>;
  /** Address of the cluster's DNS. */
  readonly dns: string;
  /** Where the API is for pods: `KUBERNETES_SERVICE_HOST` and `_PORT`. */
  apiService(): { host: string; port: string };
  /**
   * Finds out whether a pod must be enrolled, and resolves with what does it, once its network is there. Both reject with
   * `KUBELET_ENROLMENT`: the pod must wait.
   */
  enrolment(pod: Pod): Promise<(sandbox: { netns: string; ip: string }) => Promise<void>>;
}

/** Takes events about pods; never fails. */
export interface EventSink {
  emit(pod: Pod, type: "Normal" | "Warning", what: { reason: string; message: string }): void;
}
