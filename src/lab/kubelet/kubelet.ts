import { messageOf } from "#base/errors";
import { every, type Clock } from "#base/clock";
import type { Log } from "#base/log";
import type { Random } from "#base/random";
import type { Service } from "#base/service";
import { Informer, KubeClient, resources, type KubeConfig, type Pod } from "#kube";
import { runCommand } from "../commands.ts";
import { AddressPool, hostInterfaceName } from "./addresses.ts";
import { EnrolmentGate } from "./enrolment-gate.ts";
import { EventRecorder } from "./events.ts";
import { NodeReporter } from "./node-status.ts";
import { findJsonFile, knownPods, podFiles, removePath } from "./pod-files.ts";
import type { NodeParts } from "./pod-parts.ts";
import { trimLog } from "./log-session.ts";
import { killPodProcesses } from "./pod-processes.ts";
import { ApiSources } from "./pod-sources.ts";
import { PodWorker } from "./pod-worker.ts";
import { removeSandbox, shareMounts } from "./sandbox.ts";
import { KubeletServer } from "./server.ts";

/** What a node's kubelet is given. It must run inside the node's network, mount and UTS namespaces. */
export interface KubeletOptions {
  readonly node: string;
  readonly config: KubeConfig;
  /** Folder of its state, on a file system of this machine; the same for every start. */
  readonly state: string;
  /** The node's own address. */
  readonly address: string;
  readonly podCidr: string;
  readonly dns: string;
  /** Port of the kubelet's own API. */
  readonly port: number;
  readonly cniSocket: string;
  readonly version: string;
  /** Variables that every container starts with; `VEIL_LAB` marks the lab's processes. */
  readonly environment: Readonly<Record<string, string>>;
  readonly log: Log;
  readonly clock: Clock;
  readonly random: Random;
}

const TRIM_MS = 10_000;

/**
 * The kubelet of a lab's node: runs the pods that are bound to the node, on the machine's own file system. Pods outlive it:
 * the next one takes them over.
 */
export class Kubelet implements Service {
  readonly name = "kubelet";
  readonly #options: KubeletOptions;
  readonly #client: KubeClient;
  readonly #parts: NodeParts;
  readonly #workers = new Map<string, PodWorker>();
  readonly #pods: Informer<Pod>;
  readonly #reporter: NodeReporter;
  readonly #server: KubeletServer;
  #stopTrimming = (): void => {};

  constructor(options: KubeletOptions) {
    this.#options = options;
    const { config, log, clock, random, node, state, address } = options;
    this.#client = new KubeClient({ config, log, clock, random });
    const gate = new EnrolmentGate(this.#client, options.cniSocket, clock);
    this.#parts = {
      nodeName: node,
      address,
      state,
      client: this.#client,
      clock,
      random,
      log,
      addresses: new AddressPool(options.podCidr),
      sources: new ApiSources(this.#client, clock),
      events: new EventRecorder(this.#client, node, { clock, random, log }),
      environment: options.environment,
      dns: options.dns,
      apiService: () => ({ host: "10.96.0.1", port: "443" }),
      enrolment: (pod) => gate.prepare(pod),
    };
    const fieldSelector = `spec.nodeName=${node}`;
    this.#pods = new Informer({ client: this.#client, ref: resources.pods, fieldSelector, log, clock, random });
    const identity = { name: node, address, podCidr: options.podCidr, port: options.port, version: options.version };
    this.#reporter = new NodeReporter(this.#client, identity, { clock, random, log });
    this.#server = new KubeletServer({ config, address, port: options.port, log, find: (at) => this.#find(at) });
  }

  /** Takes over the pods that an earlier kubelet has started; needs no API. Called once, before {@link start}. */
  async resume(): Promise<void> {
    const { state, clock } = this.#options;
    await shareMounts(`${state}/netns`);
    await shareMounts(`${state}/uts`);
    await runCommand(["ip", "address", "replace", `${this.#parts.addresses.gateway}/32`, "dev", "lo"]);
    // Pods without a manifest: an earlier kubelet was killed while it made them, or cleaned up after them.
    const known = new Set(knownPods(state).filter((uid) => readManifest(state, uid) !== undefined));
    await killPodProcesses(state, (uid) => !known.has(uid), clock);
    for (const uid of knownPods(state)) this.#resume(uid);
  }

  async start(signal: AbortSignal): Promise<void> {
    try {
      await this.#server.start();
      await this.#reporter.start(signal);
      await this.#pods.start(signal);
    } catch (error) {
      await this.drain(0);
      throw error;
    }
    this.#pods.on({
      upserted: (pod) => this.#take(pod),
      deleted: (pod) => this.#workers.get(pod.metadata?.uid ?? "")?.remove(),
      synced: () => this.#dropUnknown(),
    });
    this.#stopTrimming = every(this.#options.clock, TRIM_MS, () => {
      for (const worker of this.#workers.values()) for (const file of worker.logs) trimLog(file);
    });
    const { address, podCidr, log } = this.#options;
    log.info({ address, podCidr, pods: this.#workers.size }, "kubelet is ready");
  }

  /** Leaves the pods running. */
  async drain(deadlineMs: number): Promise<void> {
    this.#stopTrimming();
    await this.#pods.drain(deadlineMs);
    this.#reporter.stop();
    await this.#server.drain(deadlineMs);
    this.#client.close();
  }

  /** Takes over a pod that an earlier kubelet has started, even while the API is away. */
  #resume(uid: string): void {
    const known = readManifest(this.#options.state, uid);
    if (known === undefined) {
      void this.#removeRemains(uid);
      return;
    }
    if (known.ip !== undefined) this.#parts.addresses.hold(known.ip);
    this.#add(known.pod, known.ip);
  }

  #take(pod: Pod): void {
    const worker = this.#workers.get(pod.metadata?.uid ?? "");
    if (worker === undefined) this.#add(pod, undefined);
    else worker.update(pod);
  }

  #add(pod: Pod, ip: string | undefined): void {
    const uid = pod.metadata?.uid ?? "";
    const worker = new PodWorker(pod, this.#parts, { ip });
    this.#workers.set(uid, worker);
    void worker.done.then(() => this.#workers.delete(uid));
  }

  /** Ends pods that the API no longer knows: they were deleted while the kubelet, or the API, was away. */
  #dropUnknown(): void {
    const wanted = new Set(this.#pods.list().map((pod) => pod.metadata?.uid));
    for (const [uid, worker] of this.#workers) if (!wanted.has(uid)) worker.remove();
  }

  async #removeRemains(uid: string): Promise<void> {
    const files = podFiles(this.#options.state, uid);
    await removeSandbox(files, hostInterfaceName(uid)).catch((error: unknown) =>
      this.#options.log.warn({ uid, error: messageOf(error) }, "remains of a pod cannot be removed"),
    );
    removePath(files.folder);
  }

  #find(at: { namespace: string; pod: string }): PodWorker | undefined {
    return [...this.#workers.values()].find(
      ({ pod }) => pod.metadata?.name === at.pod && pod.metadata.namespace === at.namespace,
    );
  }
}

function readManifest(state: string, uid: string): { pod: Pod; ip: string | undefined } | undefined {
  const value = findJsonFile(podFiles(state, uid).manifest);
  if (typeof value !== "object" || value === null || !("pod" in value)) return undefined;
  const pod = value.pod as Pod; // written whole, by this program
  const ip = "ip" in value && typeof value.ip === "string" ? value.ip : undefined;
  return pod.metadata?.uid === uid ? { pod, ip } : undefined;
}
