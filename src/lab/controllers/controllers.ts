import type { Clock } from "#base/clock";
import type { Log } from "#base/log";
import type { Random } from "#base/random";
import type { Service } from "#base/service";
import { Informer, KubeClient, resources, type KubeConfig, type KubeObject, type ResourceRef } from "#kube";
import type { Cluster, Controller } from "./cluster.ts";
import { DaemonSets } from "./daemon-sets.ts";
import { Deployments } from "./deployments.ts";
import { EndpointSlices } from "./endpoint-slices.ts";
import { NodeHealth } from "./node-health.ts";
import { ReplicaSets } from "./replica-sets.ts";
import { Scheduler } from "./scheduler.ts";

/**
 * The controllers that a lab needs of those that a cluster has: scheduler, Deployments, ReplicaSets, DaemonSets,
 * EndpointSlices and the health of nodes. They keep nothing: a restart goes on from what the API says.
 */
export class LabControllers implements Service {
  readonly name = "lab-controllers";
  readonly #cluster: Cluster;
  readonly #log: Log;
  #controllers: Controller[] = [];

  constructor(parts: { config: KubeConfig; log: Log; clock: Clock; random: Random }) {
    const client = new KubeClient(parts);
    const informer = <T extends KubeObject>(ref: ResourceRef<T>): Informer<T> =>
      new Informer({ client, ref, ...parts });
    this.#log = parts.log;
    this.#cluster = {
      client,
      clock: parts.clock,
      random: parts.random,
      log: parts.log,
      pods: informer(resources.pods),
      nodes: informer(resources.nodes),
      services: informer(resources.services),
      slices: informer(resources.endpointSlices),
      deployments: informer(resources.deployments),
      replicaSets: informer(resources.replicaSets),
      daemonSets: informer(resources.daemonSets),
      leases: informer(resources.leases),
    };
  }

  async start(signal: AbortSignal): Promise<void> {
    const cluster = this.#cluster;
    try {
      await Promise.all(this.#informers().map((informer) => informer.start(signal)));
    } catch (error) {
      await this.drain(0);
      throw error;
    }
    // Only now: a controller that sees half of the objects would make the other half again.
    this.#controllers = [
      new Scheduler(cluster),
      new ReplicaSets(cluster),
      new Deployments(cluster),
      new DaemonSets(cluster),
      new EndpointSlices(cluster),
      new NodeHealth(cluster),
    ];
    this.#log.info({ pods: cluster.pods.list().length }, "controllers are ready");
  }

  async drain(deadlineMs: number): Promise<void> {
    for (const controller of this.#controllers) controller.stop();
    await Promise.all(this.#informers().map((informer) => informer.drain(deadlineMs)));
    this.#cluster.client.close();
  }

  #informers(): Service[] {
    const { pods, nodes, services, slices, deployments, replicaSets, daemonSets, leases } = this.#cluster;
    return [pods, nodes, services, slices, deployments, replicaSets, daemonSets, leases];
  }
}
