import { Backoff } from "#base/backoff";
import { deadline, sleep, type Clock } from "#base/clock";
import { findCodedError, messageOf } from "#base/errors";
import type { Random } from "#base/random";
import type { Container } from "#kube";
import type { ContainerPlan } from "./container-plan.ts";
import {
  adoptProcess,
  isStillRunning,
  killProcess,
  startProcess,
  terminate,
  type ContainerProcess,
  type ProcessEnd,
} from "./container-process.ts";
import { wantsRestart, type ContainerEnd, type ContainerFacts, type ContainerState } from "./container-state.ts";
import { execToEnd } from "./exec.ts";
import { findJsonFile, writeFileWhole, type ContainerFiles } from "./pod-files.ts";
import { runProbe, type ProbeTarget } from "./probes.ts";

/** What a runner needs of its pod. */
export interface RunnerOptions {
  readonly container: Container;
  readonly files: ContainerFiles;
  readonly restartPolicy: string;
  /** Where probes are sent. */
  ip(): string;
  readonly clock: Clock;
  readonly random: Random;
  /** Decides all of a start; may wait for what is missing. */
  plan(attempt: number): Promise<ContainerPlan>;
  /** Called after every change of {@link ContainerRunner.facts}. */
  onChange(): void;
  event(type: "Normal" | "Warning", reason: string, message: string): void;
}

/** What is written down about the latest attempt, for the next kubelet. */
interface RunRecord {
  readonly attempt: number;
  readonly startedMs: number;
  /** Taken over as it was, until a probe says otherwise. */
  readonly ready: boolean;
  readonly last: ContainerEnd | undefined;
}

/** A command that ends this soon after its start is not started again at once a second time. */
const QUICK_END_MS = 1_000;
const RESTART = { initialMs: 1_000, maxMs: 60_000 };
/** A container that cannot be started (a Secret is missing, …) is tried again. */
const RETRY = { initialMs: 200, maxMs: 5_000 };
const LIVENESS_GRACE_MS = 5_000;
const STARTING: ContainerState = { kind: "waiting", reason: "ContainerCreating", message: "" };

/**
 * Keeps one container as its pod wants it: starts it, asks its probes, starts it again when it ends. A command that an
 * earlier kubelet has started is taken over as it runs.
 *
 *     waiting ── start ──▶ running ── end ──▶ ended ── policy, backoff ──▶ waiting
 */
export class ContainerRunner {
  readonly #options: RunnerOptions;
  readonly #stop = new AbortController();
  readonly #restartBackoff: Backoff;
  readonly #retryBackoff: Backoff;
  #quickEnds = 0;
  #state: ContainerState = STARTING;
  #record: RunRecord;
  #process: ContainerProcess | undefined;
  #plan: ContainerPlan | undefined;
  #done: Promise<void> | undefined;

  constructor(options: RunnerOptions) {
    this.#options = options;
    this.#restartBackoff = new Backoff(RESTART, options.random);
    this.#retryBackoff = new Backoff(RETRY, options.random);
    this.#record = readRecord(options.files);
    const { attempt, startedMs, ready, last } = this.#record;
    // What runs is told as running from the first word on: a new kubelet must not make its pods look new.
    const running = attempt > 0 && isStillRunning(options.files, attempt);
    if (running) this.#state = { kind: "running", startedMs, started: ready, ready };
    else if (last !== undefined) this.#state = last;
  }

  get name(): string {
    return this.#options.container.name;
  }

  get facts(): ContainerFacts {
    return {
      container: this.#options.container,
      attempt: this.#record.attempt,
      restarts: Math.max(0, this.#record.attempt - 1),
      state: this.#state,
      last: this.#record.last,
    };
  }

  /** The running command; undefined when none runs. */
  get process(): ContainerProcess | undefined {
    return this.#process;
  }

  get environment(): Readonly<Record<string, string>> {
    return this.#plan?.environment ?? {};
  }

  /** Runs until the container is over by its pod's policy, or {@link stop} is called. Called once. */
  run(): Promise<void> {
    this.#done = this.#run();
    return this.#done;
  }

  /** Ends the command: asks it, and after `graceMs` makes sure. Nothing is started any more. */
  async stop(graceMs: number): Promise<void> {
    this.#stop.abort();
    const { clock } = this.#options;
    const late = deadline(clock, graceMs, { reason: new Error("grace is over") });
    if (this.#process !== undefined && graceMs > 0) terminate(this.#process);
    const done = this.#done?.then(() => true) ?? Promise.resolve(true);
    const over = new Promise<false>((resolve) => late.signal.addEventListener("abort", () => resolve(false)));
    const ended = await Promise.race([done, over]);
    late.clear();
    if (!ended && this.#process !== undefined) await killProcess(this.#process, clock);
    await this.#done;
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop;
    if ((this.#options.container.command ?? []).length === 0) return this.#refuse();
    let running = await this.#adopt();
    let adopted = running !== undefined;
    while (running !== undefined || !signal.aborted) {
      running ??= await this.#start();
      if (running === undefined) {
        await this.#pause(this.#retryBackoff.next());
        continue;
      }
      const end = await this.#follow(running, adopted);
      running = undefined;
      adopted = false;
      if (signal.aborted || !wantsRestart(this.#options.restartPolicy, end.exitCode)) return;
      await this.#beforeRestart(end);
    }
  }

  /** There are no images here from which the command could come. */
  async #refuse(): Promise<void> {
    const { container } = this.#options;
    const message = `image "${container.image ?? ""}" cannot run here: containers of a lab run on the machine's own file system and need a command`;
    this.#setState({ kind: "waiting", reason: "VeilNoCommand", message });
    this.#options.event("Warning", "VeilNoCommand", message);
    await new Promise<void>((resolve) => {
      if (this.#stop.signal.aborted) resolve();
      this.#stop.signal.addEventListener("abort", () => resolve(), { once: true });
    });
  }

  /** Takes over what an earlier kubelet started; its end, if it came meanwhile, is followed as any other. */
  async #adopt(): Promise<ContainerProcess | undefined> {
    const { attempt } = this.#record;
    if (attempt === 0) return undefined;
    const process = await adoptProcess(this.#options.files, attempt, this.#options.clock);
    if (process !== undefined) this.#plan = await this.#options.plan(attempt).catch(() => undefined);
    return process;
  }

  async #start(): Promise<ContainerProcess | undefined> {
    const options = this.#options;
    const attempt = this.#record.attempt + 1;
    try {
      const plan = await options.plan(attempt);
      if (this.#stop.signal.aborted) return undefined;
      this.#setRecord({ ...this.#record, attempt, startedMs: options.clock.now(), ready: false });
      this.#plan = plan;
      const process = await startProcess(plan, options.clock);
      this.#retryBackoff.reset();
      options.event("Normal", "Started", `Started container ${this.name}`);
      return process;
    } catch (error) {
      const reason =
        findCodedError(error)?.code === "KUBELET_START" ? "RunContainerError" : "CreateContainerConfigError";
      this.#setState({ kind: "waiting", reason, message: messageOf(error) });
      options.event("Warning", "Failed", messageOf(error));
      return undefined;
    }
  }

  /** Watches a running command to its end. */
  async #follow(process: ContainerProcess, adopted: boolean): Promise<ContainerEnd> {
    const options = this.#options;
    this.#process = process;
    const { container } = options;
    const wasReady = adopted && this.#record.ready;
    const started = container.startupProbe === undefined || wasReady;
    const ready = started && (container.readinessProbe === undefined || wasReady);
    this.#setState({ kind: "running", startedMs: this.#record.startedMs, started, ready });
    if (this.#stop.signal.aborted) terminate(process); // stop came while it was being started
    const probes = new AbortController();
    void this.#probe(process, probes.signal);
    const end = await process.ended;
    probes.abort();
    this.#process = undefined;
    const told = this.#ended(end);
    this.#setRecord({ ...this.#record, last: told });
    this.#setState(told);
    return told;
  }

  #ended(end: ProcessEnd): ContainerEnd {
    const reason = end.startError === undefined ? (end.exitCode === 0 ? "Completed" : "Error") : "StartError";
    const endedMs = this.#options.clock.now();
    const message = end.startError ?? "";
    return { kind: "ended", exitCode: end.exitCode, reason, message, startedMs: this.#record.startedMs, endedMs };
  }

  /** At once the first time; with a growing delay when it keeps ending soon after its start. */
  async #beforeRestart(end: ContainerEnd): Promise<void> {
    const quick = end.endedMs - end.startedMs < QUICK_END_MS;
    this.#quickEnds = quick ? this.#quickEnds + 1 : 0;
    if (!quick) this.#restartBackoff.reset();
    if (this.#quickEnds < 2) return;
    const delayMs = this.#restartBackoff.next();
    const message = `back-off ${Math.round(delayMs / 100) / 10}s restarting failed container ${this.name}`;
    this.#setState({ kind: "waiting", reason: "CrashLoopBackOff", message });
    this.#options.event("Warning", "BackOff", `Back-off restarting failed container ${this.name}`);
    await this.#pause(delayMs);
  }

  async #probe(process: ContainerProcess, signal: AbortSignal): Promise<void> {
    const { container, clock } = this.#options;
    const target: ProbeTarget = {
      ip: this.#options.ip(),
      container,
      exec: (command, abort) => execToEnd({ process, command, environment: this.environment }, abort),
    };
    const parts = { clock, signal };
    if (container.startupProbe !== undefined) {
      const passed = await this.#startup(container.startupProbe, target, signal);
      if (!passed) return;
    }
    if (container.readinessProbe !== undefined) {
      void runProbe(container.readinessProbe, target, { ...parts, report: (verdict) => this.#setReady(verdict) });
    }
    if (container.livenessProbe !== undefined) {
      const report = (verdict: { ok: boolean; message: string }): void => {
        if (!verdict.ok) void this.#condemn(process, `Liveness probe failed: ${verdict.message}`);
      };
      void runProbe(container.livenessProbe, target, { ...parts, report });
    }
  }

  /** Resolves with true when the container counts as started; false: it was given up, or has ended. */
  async #startup(
    probe: NonNullable<Container["startupProbe"]>,
    target: ProbeTarget,
    signal: AbortSignal,
  ): Promise<boolean> {
    const passed = new AbortController();
    const either = AbortSignal.any([signal, passed.signal]);
    let ok = false;
    await runProbe(probe, target, {
      clock: this.#options.clock,
      signal: either,
      report: (verdict) => {
        ok = verdict.ok;
        if (!ok && this.#process !== undefined) {
          void this.#condemn(this.#process, `Startup probe failed: ${verdict.message}`);
        }
        passed.abort();
      },
    });
    const running = this.#state;
    if (!ok || signal.aborted || running.kind !== "running") return false;
    this.#setState({ ...running, started: true, ready: this.#options.container.readinessProbe === undefined });
    return true;
  }

  #setReady(verdict: { ok: boolean; message: string }): void {
    if (this.#state.kind !== "running") return;
    if (!verdict.ok) this.#options.event("Warning", "Unhealthy", `Readiness probe failed: ${verdict.message}`);
    this.#setState({ ...this.#state, ready: verdict.ok });
  }

  async #condemn(process: ContainerProcess, why: string): Promise<void> {
    this.#options.event("Warning", "Unhealthy", why);
    this.#options.event("Normal", "Killing", `Container ${this.name} will be restarted`);
    const { clock } = this.#options;
    terminate(process);
    await Promise.race([process.ended, sleep(clock, LIVENESS_GRACE_MS)]);
    await killProcess(process, clock);
  }

  async #pause(delayMs: number): Promise<void> {
    await sleep(this.#options.clock, delayMs, this.#stop.signal).catch(() => undefined); // stopped: the loop looks
  }

  #setState(state: ContainerState): void {
    this.#state = state;
    const ready = state.kind === "running" && state.ready;
    if (ready !== this.#record.ready) this.#setRecord({ ...this.#record, ready });
    this.#options.onChange();
  }

  #setRecord(record: RunRecord): void {
    this.#record = record;
    writeFileWhole(this.#options.files.run, JSON.stringify(record));
  }
}

function readRecord(files: ContainerFiles): RunRecord {
  const value = findJsonFile(files.run);
  if (typeof value === "object" && value !== null && "attempt" in value && typeof value.attempt === "number") {
    return value as RunRecord; // written whole, by this file, on this machine
  }
  return { attempt: 0, startedMs: 0, ready: false, last: undefined };
}
