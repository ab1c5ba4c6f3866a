import type { Socket } from "node:net";
import { Backoff } from "#base/backoff";
import { sleep } from "#base/clock";
import { findCodedError, messageOf } from "#base/errors";
import { parseIp, type IpAddress } from "#base/ip";
import { isKubeError, resources, type Container, type Pod } from "#kube";
import { hostInterfaceName } from "./addresses.ts";
import type { ContainerPlan } from "./container-plan.ts";
import { ContainerRunner } from "./container-runner.ts";
import type { ContainerFacts, PodFacts } from "./container-state.ts";
import { containerEnvironment, expand, type DownwardFacts } from "./environment.ts";
import { findText, podFiles, removePath, writeFileWhole, type PodFiles } from "./pod-files.ts";
import type { NodeParts } from "./pod-parts.ts";
import { killPodProcesses, POD_VARIABLE, podMark } from "./pod-processes.ts";
import { resolvConf, hostsFile } from "./name-files.ts";
import { dialPort } from "./pod-port.ts";
import { ensureSandbox, removeSandbox } from "./sandbox.ts";
import { StatusWriter } from "./status-writer.ts";
import { containerMounts, fillVolumes } from "./volumes.ts";

const RETRY = { initialMs: 100, maxMs: 5_000 };
const DEFAULT_GRACE_SECONDS = 30;

/**
 * One pod from its binding to the end of its last process. Everything that it makes is found again by its UID: a kubelet
 * that starts anew goes on where the last one was killed.
 *
 *     address ▶ network ▶ volumes ▶ enrolment ▶ init containers ▶ containers ▶ stop ▶ everything removed ▶ object deleted
 */
export class PodWorker {
  readonly uid: string;
  readonly #parts: NodeParts;
  readonly #files: PodFiles;
  readonly #veth: string;
  readonly #status: StatusWriter;
  readonly #stop = new AbortController();
  readonly #startedMs: number;
  #pod: Pod;
  #ip: IpAddress | undefined;
  #graceMs: number | undefined;
  #gone = false;
  #init: ContainerRunner[] = [];
  #main: ContainerRunner[] = [];
  /** False while the pod waits for something that all its containers need. */
  #prepared = false;
  #cancelRefill = (): void => {};
  #waiting = { reason: "ContainerCreating", message: "" };
  readonly done: Promise<void>;

  constructor(pod: Pod, parts: NodeParts, known: { ip: string | undefined }) {
    this.#pod = pod;
    this.#parts = parts;
    this.uid = pod.metadata?.uid ?? "";
    this.#files = podFiles(parts.state, this.uid);
    this.#veth = hostInterfaceName(this.uid);
    this.#ip = known.ip === undefined ? undefined : parseIp(known.ip);
    this.#startedMs = Date.parse(pod.status?.startTime ?? "") || parts.clock.now();
    this.#status = new StatusWriter(parts, () => this.#pod);
    this.update(pod);
    this.done = this.#live();
  }

  get #runners(): ContainerRunner[] {
    return [...this.#init, ...this.#main];
  }

  get pod(): Pod {
    return this.#pod;
  }

  get files(): PodFiles {
    return this.#files;
  }

  /** The logs that are written to now. */
  get logs(): string[] {
    return this.#runners.map((runner) => this.#files.container(runner.name).attempt(runner.facts.attempt).log);
  }

  /** The running container of that name, or the first one. */
  runner(name: string | undefined): ContainerRunner | undefined {
    return name === undefined ? this.#main[0] : this.#runners.find((one) => one.name === name);
  }

  /** Connects to a port on the pod's loopback, in its own network. Rejects when nobody listens there. */
  async dial(port: number): Promise<Socket> {
    return dialPort({ netns: this.#ip === undefined ? undefined : this.#files.netns, port, clock: this.#parts.clock });
  }

  /** Takes a newer object. What a pod runs never changes; labels and the wish to end it do. */
  update(pod: Pod): void {
    this.#pod = pod;
    if (pod.metadata?.deletionTimestamp === undefined) return;
    this.#askStop((pod.metadata.deletionGracePeriodSeconds ?? DEFAULT_GRACE_SECONDS) * 1000);
  }

  /** The object is gone: ends everything at once. */
  remove(): void {
    this.#gone = true;
    this.#status.stop();
    this.#askStop(0);
  }

  #askStop(graceMs: number): void {
    if (this.#graceMs !== undefined && graceMs >= this.#graceMs) return;
    this.#graceMs = graceMs;
    this.#stop.abort();
    this.#cancelRefill();
    if (graceMs === 0) for (const runner of this.#runners) void runner.stop(0);
  }

  async #live(): Promise<void> {
    const { log } = this.#parts;
    const { namespace, name } = this.#pod.metadata ?? {};
    try {
      await this.#run();
      await this.#end();
    } catch (error) {
      log.error({ namespace, pod: name, error: messageOf(error) }, "pod has failed in an unforeseen way");
    }
  }

  async #run(): Promise<void> {
    this.#makeRunners();
    const phase = this.#pod.status?.phase;
    if (phase !== "Succeeded" && phase !== "Failed") {
      const prepared = await this.#prepare();
      // Also to stop gently what an earlier kubelet has started.
      if (prepared || this.#runners.some(({ facts }) => facts.state.kind === "running")) await this.#runContainers();
      if (!this.#stop.signal.aborted) await this.#removeProcesses();
      if (!this.#stop.signal.aborted) await this.#releaseNetwork();
    }
    await aborted(this.#stop.signal);
  }

  /** Makes all that containers need, again and again until it is there. False: the pod is to be stopped. */
  async #prepare(): Promise<boolean> {
    const backoff = new Backoff(RETRY, this.#parts.random);
    this.#report();
    while (!this.#stop.signal.aborted) {
      try {
        await this.#prepareOnce();
        return true;
      } catch (error) {
        const reason = REASONS[findCodedError(error)?.code ?? ""] ?? "FailedCreatePodSandBox";
        this.#waiting = { reason: "ContainerCreating", message: messageOf(error) };
        this.#parts.events.emit(this.#pod, "Warning", { reason, message: messageOf(error) });
        this.#report();
        await sleep(this.#parts.clock, backoff.next(), this.#stop.signal).catch(() => undefined);
      }
    }
    return false;
  }

  async #prepareOnce(): Promise<void> {
    const parts = this.#parts;
    this.#ip ??= this.#isHostNetwork() ? undefined : parts.addresses.take();
    writeFileWhole(this.#files.manifest, JSON.stringify({ pod: this.#pod, ip: this.#ip }), 0o600);
    writeFileWhole(this.#files.resolvConf, resolvConf(this.#pod, parts.dns));
    writeFileWhole(this.#files.hosts, hostsFile(this.#pod, this.#ip));
    await Promise.all([this.#makeNetwork(), this.#makeVolumes()]);
  }

  /** A pod that has run before has its volumes: it must not wait for the API to be looked after. */
  async #makeVolumes(): Promise<void> {
    if (findText(this.#files.filled) !== undefined) return this.#refillAfter(0);
    await this.#fillVolumes();
    writeFileWhole(this.#files.filled, "");
  }

  /** Makes the pod's network and has it enrolled: no process runs in it before both are done. */
  async #makeNetwork(): Promise<void> {
    if (this.#ip === undefined) return;
    const { addresses, address } = this.#parts;
    const plan = {
      files: this.#files,
      hostname: this.#hostname(),
      ip: this.#ip,
      prefixLength: addresses.prefixLength,
      gateway: addresses.gateway,
      nodeIp: address,
      veth: this.#veth,
    };
    const wasEnrolled = findText(this.#files.enrolled) !== undefined;
    const gate = wasEnrolled ? undefined : this.#parts.enrolment(this.#pod); // asked while the network is made
    gate?.catch(() => undefined); // told below, where it is waited for
    const made = await ensureSandbox(plan, () => this.#removeProcesses());
    if (wasEnrolled && !made) return;
    removePath(this.#files.enrolled);
    const enrol = await (gate ?? this.#parts.enrolment(this.#pod));
    await enrol({ netns: this.#files.netns, ip: this.#ip });
    writeFileWhole(this.#files.enrolled, "");
  }

  /** Fills the volumes, now and whenever something of them expires or may have changed. */
  async #fillVolumes(): Promise<void> {
    const { clock, sources } = this.#parts;
    const againMs = await fillVolumes(this.#facts(), this.#files, { sources, clock });
    if (againMs !== undefined) this.#refillAfter(Math.max(1_000, againMs - clock.now()));
  }

  #refillAfter(delayMs: number): void {
    this.#cancelRefill();
    if (this.#stop.signal.aborted) return;
    this.#cancelRefill = this.#parts.clock.after(delayMs, () => {
      this.#fillVolumes().catch((error: unknown) => {
        const { namespace, name } = this.#pod.metadata ?? {};
        this.#parts.log.warn(
          { namespace, pod: name, error: messageOf(error) },
          "volumes cannot be renewed, trying again",
        );
        this.#refillAfter(RETRY.maxMs);
      });
    });
  }

  #makeRunners(): void {
    const { spec } = this.#pod;
    const policy = spec?.restartPolicy ?? "Always";
    const initPolicy = policy === "Never" ? "Never" : "OnFailure";
    this.#init = (spec?.initContainers ?? []).map((one) => this.#runner(one, initPolicy));
    this.#main = (spec?.containers ?? []).map((one) => this.#runner(one, policy));
  }

  async #runContainers(): Promise<void> {
    this.#prepared = true;
    const stopAll = this.#stopAll();
    for (const runner of this.#init) {
      await runner.run();
      const { state } = runner.facts;
      if (this.#stop.signal.aborted || state.kind !== "ended" || state.exitCode !== 0) return this.#report();
    }
    await Promise.all(this.#main.map((runner) => runner.run()));
    if (this.#stop.signal.aborted) await stopAll;
  }

  /** When the pod is to be stopped, stops its containers with the time that they are given. */
  async #stopAll(): Promise<void> {
    await aborted(this.#stop.signal);
    const { events } = this.#parts;
    for (const runner of this.#runners) {
      if (runner.process === undefined) continue;
      events.emit(this.#pod, "Normal", { reason: "Killing", message: `Stopping container ${runner.name}` });
    }
    await Promise.all(this.#runners.map((runner) => runner.stop(this.#graceMs ?? 0)));
  }

  #runner(container: Container, restartPolicy: string): ContainerRunner {
    const { clock, random, events, address } = this.#parts;
    return new ContainerRunner({
      container,
      files: this.#files.container(container.name),
      restartPolicy,
      ip: () => this.#ip ?? address,
      clock,
      random,
      plan: (attempt) => this.#plan(container, attempt),
      onChange: () => this.#report(),
      event: (type, reason, message) => events.emit(this.#pod, type, { reason, message }),
    });
  }

  async #plan(container: Container, attempt: number): Promise<ContainerPlan> {
    const parts = this.#parts;
    const marks = { [POD_VARIABLE]: podMark(parts.state, this.uid), ...pick(parts.environment, "VEIL_LAB") };
    const api = parts.apiService();
    const base = {
      ...parts.environment,
      HOSTNAME: this.#hostname(),
      KUBERNETES_SERVICE_HOST: api.host,
      KUBERNETES_SERVICE_PORT: api.port,
    };
    const environment = await containerEnvironment(container, this.#facts(), { base, reader: parts.sources });
    const words = [...(container.command ?? []), ...(container.args ?? [])];
    return {
      files: this.#files.container(container.name),
      attempt,
      sandbox: this.#ip === undefined ? undefined : { netns: this.#files.netns, uts: this.#files.uts },
      hostPid: this.#pod.spec?.hostPID === true,
      command: words.map((word) => expand(word, environment)),
      environment: { ...environment, ...marks },
      marks,
      workingDir: container.workingDir ?? "/",
      mounts: containerMounts(this.#pod, container, this.#files),
    };
  }

  /** Everything ends: processes, network, files, and last the object. */
  async #end(): Promise<void> {
    await Promise.all(this.#runners.map((runner) => runner.stop(this.#graceMs ?? 0)));
    await this.#removeProcesses();
    this.#report();
    await this.#status.flush();
    await this.#releaseNetwork();
    await this.#deleteObject();
    this.#status.stop();
    removePath(this.#files.folder);
  }

  async #releaseNetwork(): Promise<void> {
    await removeSandbox(this.#files, this.#veth);
    if (this.#ip !== undefined) this.#parts.addresses.release(this.#ip);
  }

  async #deleteObject(): Promise<void> {
    const { clock, client, random } = this.#parts;
    const { name = "", namespace } = this.#pod.metadata ?? {};
    const backoff = new Backoff(RETRY, random);
    while (!this.#gone) {
      try {
        await client.delete(resources.pods, { name, namespace, uid: this.uid, gracePeriodSeconds: 0 });
        return;
      } catch (error) {
        // A node is not even told whether a pod is there that is not its own.
        const codes = ["KUBE_NOT_FOUND", "KUBE_CONFLICT", "KUBE_FORBIDDEN"] as const;
        if (codes.some((code) => isKubeError(error, code))) return;
        await sleep(clock, backoff.next());
      }
    }
  }

  async #removeProcesses(): Promise<void> {
    await killPodProcesses(this.#parts.state, (uid) => uid === this.uid, this.#parts.clock);
  }

  #report(): void {
    this.#status.set(this.#podFacts());
  }

  #podFacts(): PodFacts {
    const { spec } = this.#pod;
    const { address } = this.#parts;
    return {
      uid: this.uid,
      startedMs: this.#startedMs,
      podIp: this.#isHostNetwork() ? address : this.#ip,
      hostIp: address,
      veth: this.#ip === undefined ? undefined : this.#veth,
      init: this.#init.map((runner) => this.#containerFacts(runner)),
      containers: this.#main.map((runner) => this.#containerFacts(runner)),
      restartPolicy: spec?.restartPolicy ?? "Always",
      stopping: this.#stop.signal.aborted,
    };
  }

  #containerFacts(runner: ContainerRunner): ContainerFacts {
    const { facts } = runner;
    if (this.#prepared || facts.attempt > 0) return facts;
    return { ...facts, state: { kind: "waiting", ...this.#waiting } };
  }

  #facts(): DownwardFacts {
    return { pod: this.#pod, podIp: this.#ip ?? this.#parts.address, hostIp: this.#parts.address };
  }

  #isHostNetwork(): boolean {
    return this.#pod.spec?.hostNetwork === true;
  }

  #hostname(): string {
    if (this.#isHostNetwork()) return this.#parts.nodeName;
    return (this.#pod.spec?.hostname ?? this.#pod.metadata?.name ?? "pod").slice(0, 63);
  }
}

const REASONS: Readonly<Record<string, string>> = {
  KUBELET_VOLUME: "FailedMount",
  KUBELET_ENROLMENT: "FailedEnrolment",
};

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });
}

function pick(from: Readonly<Record<string, string>>, name: string): Record<string, string> {
  const value = from[name];
  return value === undefined ? {} : { [name]: value };
}
