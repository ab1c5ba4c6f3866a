import { Backoff } from "#base/backoff";
import { sleep } from "#base/clock";
import { CodedError, messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { Cell } from "#base/metrics";
import type { Netns } from "#linux";
import { REDIRECTION_ANNOTATION } from "#model/redirection";
import { captureOptions, type PodFacts } from "./eligibility.ts";
import {
  STEPS,
  type EnrolmentState,
  type EnrolmentStep,
  type EnrolmentTools,
  type EnrolmentWish,
} from "./enrolment-state.ts";
import { enrolmentError } from "./errors.ts";
import { openIfNetns } from "./pod-netns.ts";
import { probeTargets } from "./probes.ts";

type Act = EnrolmentState | undefined | Promise<EnrolmentState | undefined>;

const RETRY = { initialMs: 50, maxMs: 5000 };
/** A pod that is not enrolled for so long is reported where its owner looks. */
const STUCK_MS = 30_000;

/** One pod's way. Its owner calls `update` whenever the pod or the wish changes. */
export class PodEnrolment {
  readonly #tools: EnrolmentTools;
  readonly #log: Log;
  readonly #backoff: Backoff;
  readonly #listeners = new Set<() => void>();
  #pod: PodFacts;
  #wish: EnrolmentWish = "plain";
  #state: EnrolmentState = { name: "plain" };
  /** Given by the CNI plugin for a pod that is about to start. */
  #startingNetns: string | undefined;
  /** True from then until the pod is redirected, or is not to be: nothing runs in it. */
  #isEmpty = false;
  #announced: boolean;
  #wishedAtMs: number;
  #interrupt = new AbortController();
  #running: Promise<void> | undefined;
  #prepared: Disposable | undefined;
  #resting = false;
  /** Whether it was reported as stuck since the wish came. */
  #reported = false;
  /** True from `adopt` until the pod is enrolled again: that was somebody else's work. */
  #takenOver = false;
  /** Counts what might change the next step, so that nothing that comes while a step ends is missed. */
  #asked = 0;
  #stopped = false;
  #lastFailure: CodedError | undefined;

  constructor(pod: PodFacts, tools: EnrolmentTools) {
    this.#pod = pod;
    this.#tools = tools;
    this.#log = tools.log.child({ pod: pod.name, namespace: pod.namespace });
    this.#backoff = new Backoff(RETRY, tools.random);
    this.#announced = isAnnounced(pod);
    this.#wishedAtMs = tools.clock.monotonic();
    this.#gauge("plain").value++;
  }

  get pod(): PodFacts {
    return this.#pod;
  }

  get state(): EnrolmentState {
    return this.#state;
  }

  /** Why the last step failed; undefined when none did since the last progress. */
  get lastFailure(): CodedError | undefined {
    return this.#lastFailure;
  }

  /**
   * Begins with a pod that an earlier agent has enrolled, or had begun to un-enrol: its rules stand in `netns`, which is taken over.
   * To be called before the first `update`; the owner has declared the pod to the proxy.
   */
  adopt(netns: Netns, redirection: "capturing" | "kept"): void {
    this.#takenOver = redirection === "capturing";
    this.#tools.probes.declare(this.#pod.uid, probeTargets(netns, this.#pod.probePorts ?? []));
    if (redirection === "capturing") this.#setState({ name: "redirecting", netns });
    else this.#setState(this.#draining(netns));
  }

  /** Takes what is known and wished now, and goes on from there. Never throws. */
  update(pod: PodFacts, wish: EnrolmentWish): void {
    const withdrawn = isAnnounced(this.#pod) && !isAnnounced(pod);
    this.#pod = pod;
    if (wish !== this.#wish) {
      this.#wish = wish;
      this.#isEmpty &&= wish === "enrolled";
      this.#takenOver &&= wish === "enrolled";
      this.#prepared?.[Symbol.dispose]();
      this.#prepared = wish === "enrolled" ? this.#tools.prepare?.(pod) : undefined;
      this.#wishedAtMs = this.#tools.clock.monotonic();
      this.#reported = false;
      this.#backoff.reset();
      this.#interrupt.abort(new Error("the wish has changed"));
    }
    if (withdrawn && this.#state.name === "enrolled") {
      this.#announced = false;
      this.#setState({ name: "announcing", netns: this.#state.netns });
    }
    this.#go();
  }

  /** Something that a step waits for may be there now (the controller): does not wait out the backoff. */
  poke(): void {
    if (this.#resting) this.#interrupt.abort(new Error("try again"));
    this.#go();
  }

  /** The CNI plugin says where the pod's namespace is, before its first process runs. Another one than before replaces it. */
  starting(netnsPath: string): void {
    this.#startingNetns = netnsPath;
    const held = "netns" in this.#state ? this.#state.netns : undefined;
    const netns = held === undefined ? undefined : openIfNetns(netnsPath);
    this.#isEmpty = held === undefined || (netns !== undefined && netns.key !== held.key);
    if (netns === undefined || netns.key === held?.key) {
      netns?.[Symbol.dispose]();
    } else {
      this.#setState({ name: "handing", netns });
      this.#interrupt.abort(new Error("the pod has another network namespace"));
    }
    this.poke();
  }

  /** Resolves when new connections of the pod are redirected. Rejects with the signal's reason. */
  async whenRedirected(signal: AbortSignal): Promise<void> {
    while (this.#state.name !== "announcing" && this.#state.name !== "enrolled") {
      signal.throwIfAborted();
      await new Promise<void>((resolve) => {
        const done = (): void => {
          this.#listeners.delete(done);
          signal.removeEventListener("abort", done);
          resolve();
        };
        this.#listeners.add(done);
        signal.addEventListener("abort", done, { once: true });
      });
    }
  }

  /** Breaks the current step off and takes no further one. What is in the pod stays as it is. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#interrupt.abort(new Error("the agent stops"));
    await this.#running;
    this.#prepared?.[Symbol.dispose]();
    if ("netns" in this.#state) this.#state.netns[Symbol.dispose]();
  }

  #go(): void {
    this.#asked++;
    if (this.#stopped || this.#running !== undefined) return;
    this.#running = this.#run();
  }

  /** Steps until nothing is left to be done. Never rejects. */
  async #run(): Promise<void> {
    await Promise.resolve(); // so that `#running` is set before anything happens
    while (!this.#stopped) {
      this.#interrupt = new AbortController();
      const { signal } = this.#interrupt;
      const before = this.#state;
      const asked = this.#asked;
      try {
        const next = await this.#step(signal);
        if (next === undefined && this.#asked === asked) break;
        if (next === undefined) continue;
        if (this.#state === before) this.#setState(next); // otherwise somebody has moved on meanwhile
        this.#backoff.reset();
        this.#lastFailure = undefined;
      } catch (error) {
        if (!signal.aborted) await this.#failed(error, signal);
      }
    }
    this.#running = undefined;
  }

  /** One step from where the pod is towards what is wished; undefined when it is there. */
  async #step(signal: AbortSignal): Promise<EnrolmentState | undefined> {
    if (this.#wish === "gone") return this.#close(signal);
    return this.#acts[STEPS[this.#state.name][this.#wish]](signal);
  }

  readonly #acts: Readonly<Record<EnrolmentStep, (signal: AbortSignal) => Act>> = {
    rest: () => undefined,
    find: () => this.#find(),
    hand: async (signal) => {
      const handed = this.#tools.zds.add({ ...this.#pod, netns: this.#netns }, signal);
      // Nobody can meet a port where nobody listens yet before the pod's first process runs, which waits for both.
      const installed = this.#isEmpty ? this.#install() : undefined;
      installed?.catch(() => undefined); // waited for below: no step begins before this one has ended
      try {
        await handed;
      } finally {
        await installed;
      }
      return { name: installed === undefined ? "redirecting" : "announcing", netns: this.#netns };
    },
    install: async () => {
      await this.#install();
      return { name: "announcing", netns: this.#netns };
    },
    announce: async (signal) => {
      await this.#announce(true, signal);
      return { name: "enrolled", netns: this.#netns };
    },
    /** An annotation that stands for nothing: the pod's namespace is another one than when it was enrolled. */
    forget: async (signal) => {
      await this.#announce(false, signal);
      return undefined;
    },
    settle: () => ({ name: "plain" }),
    withdraw: () => ({ name: "retracting", netns: this.#netns, sinceMs: this.#tools.clock.monotonic() }),
    retract: (signal) => this.#retract(signal),
    stay: () => ({ name: "redirecting", netns: this.#netns }),
    release: async () => {
      await this.#tools.redirector.keep(this.#netns);
      return this.#draining(this.#netns);
    },
    drain: (signal) => this.#drain(signal),
    discard: () => ({ name: "removing", netns: this.#netns }),
    remove: async (signal) => {
      await this.#tools.zds.remove(this.#pod.uid, signal);
      await this.#tools.redirector.remove(this.#netns);
      await this.#tools.probes.forbid(this.#pod.uid);
      return { name: "plain" };
    },
    return: () => ({ name: "handing", netns: this.#netns }),
  };

  async #install(): Promise<void> {
    const { redirector, probes, dnsCapture } = this.#tools;
    await Promise.all([
      probes.allow(this.#pod.uid, probeTargets(this.#netns, this.#pod.probePorts ?? [])),
      redirector.install(this.#netns, captureOptions(this.#pod, dnsCapture)),
    ]);
  }

  /** The namespace that the state holds. */
  get #netns(): Netns {
    if ("netns" in this.#state) return this.#state.netns;
    throw new Error(`a pod that is ${this.#state.name} holds no namespace`);
  }

  /** The pod has ended: the proxy lets it go, and so do we. Its rules went with its namespace. */
  async #close(signal: AbortSignal): Promise<EnrolmentState | undefined> {
    if (this.#state.name === "closed") return undefined;
    const { zds, probes } = this.#tools;
    if ("netns" in this.#state) await Promise.all([zds.remove(this.#pod.uid, signal), probes.forbid(this.#pod.uid)]);
    return { name: "closed" };
  }

  #find(): EnrolmentState {
    const { finder, controllerReachable } = this.#tools;
    const isStarting = this.#startingNetns !== undefined;
    if (!isStarting && !controllerReachable()) {
      throw this.#wait(enrolmentError("ENROLMENT_NO_CONTROLLER", "the controller cannot be reached"));
    }
    // The plugin's path is one of the node's, which need not be in sight here.
    const netns = openIfNetns(this.#startingNetns ?? "") ?? finder.find(this.#pod.uid);
    if (netns !== undefined) return { name: "handing", netns };
    throw this.#wait(enrolmentError("ENROLMENT_NO_NETNS", "the pod's network namespace cannot be found"));
  }

  #wait(reason: CodedError): CodedError {
    this.#setState({ name: "waiting", reason });
    return reason;
  }

  async #announce(enrolled: boolean, signal: AbortSignal): Promise<void> {
    if (this.#announced === enrolled) return;
    await this.#tools.announcer.announce(this.#pod, enrolled, signal);
    this.#announced = enrolled;
  }

  async #retract(signal: AbortSignal): Promise<EnrolmentState> {
    const { announcer, clock, times } = this.#tools;
    const state = this.#state;
    const sinceMs = state.name === "retracting" ? state.sinceMs : clock.monotonic();
    await this.#announce(false, signal);
    const behind = await announcer.confirmPlain(this.#pod, signal);
    if (behind.length > 0) {
      const message = `nodes do not know yet that the pod is plain: ${behind.slice(0, 8).join(", ")}`;
      if (clock.monotonic() - sinceMs < times.behindMs) {
        throw enrolmentError("ENROLMENT_BEHIND", message, { details: { nodes: behind.slice(0, 100) } });
      }
      this.#log.warn({ nodes: behind.slice(0, 100) }, "pod un-enrolled although nodes have not confirmed it");
    }
    return { name: "releasing", netns: this.#netns };
  }

  #draining(netns: Netns): EnrolmentState {
    const { clock, times, dnsCapture } = this.#tools;
    const nowMs = clock.monotonic();
    const settledMs = nowMs + (captureOptions(this.#pod, dnsCapture).dns ? times.dnsSettleMs : 0);
    return { name: "draining", netns, endMs: nowMs + times.drainMs, settledMs };
  }

  async #drain(signal: AbortSignal): Promise<EnrolmentState> {
    const { redirector, clock, times } = this.#tools;
    const state = this.#state;
    const left = redirector.countRedirected(this.#netns);
    const nowMs = clock.monotonic();
    const overdue = state.name !== "draining" || nowMs >= state.endMs;
    if (left > 0 && overdue)
      this.#log.warn({ connections: left }, "connections cut: their pod is not enrolled any more");
    if (overdue || (left === 0 && nowMs >= state.settledMs)) return { name: "removing", netns: this.#netns };
    await sleep(clock, times.drainPollMs, signal);
    return state;
  }

  async #failed(error: unknown, signal: AbortSignal): Promise<void> {
    const { clock, cells } = this.#tools;
    const failure =
      error instanceof CodedError
        ? error
        : enrolmentError("ENROLMENT_UNEXPECTED", `a step of enrolment failed: ${messageOf(error)}`, { cause: error });
    if (failure.code !== this.#lastFailure?.code) {
      this.#log.warn({ state: this.#state.name, code: failure.code, reason: messageOf(failure) }, "pod waits");
    }
    cells.bind("veil_enrolment_failures_total", { code: failure.code }).value++;
    this.#lastFailure = failure;
    if (this.#wish === "enrolled" && !this.#reported && this.#tookMs() >= STUCK_MS) {
      this.#reported = true;
      this.#tools.onStuck?.(this.#pod, failure);
    }
    this.#resting = true;
    try {
      await sleep(clock, this.#backoff.next(), signal);
    } catch {
      // interrupted: goes on at once
    }
    this.#resting = false;
  }

  /** The one place where the state changes. A namespace that the new state does not hold is closed. */
  #setState(state: EnrolmentState): void {
    const before = this.#state;
    if (before === state) return;
    this.#state = state;
    this.#gauge(before.name).value--;
    if (state.name !== "closed") this.#gauge(state.name).value++;
    const kept = "netns" in state ? state.netns : undefined;
    if ("netns" in before && before.netns !== kept) before.netns[Symbol.dispose]();
    if (state.name === "announcing") this.#isEmpty = false;
    if (state.name === "enrolled") this.#countEnrolled();
    if (state.name === "draining" && before.name === "releasing")
      this.#log.info({ tookMs: this.#tookMs() }, "pod un-enrolled");
    if (state.name !== before.name) this.#log.debug({ from: before.name, to: state.name }, "pod moved");
    for (const listener of this.#listeners) listener();
  }

  #countEnrolled(): void {
    const { cells } = this.#tools;
    const tookMs = this.#tookMs();
    if (this.#takenOver) {
      this.#takenOver = false;
      return this.#log.info({ tookMs }, "enrolled pod taken over");
    }
    cells.bind("veil_enrolment_enrolled_total", {}).value++;
    cells.bind("veil_enrolment_seconds_total", {}).value += tookMs / 1000;
    this.#log.info({ tookMs }, "pod enrolled");
  }

  /** How long ago the wish came. */
  #tookMs(): number {
    return Math.round(this.#tools.clock.monotonic() - this.#wishedAtMs);
  }

  #gauge(state: EnrolmentState["name"]): Cell {
    return this.#tools.cells.bind("veil_enrolment_pods", { state });
  }
}

function isAnnounced(pod: PodFacts): boolean {
  return pod.annotations[REDIRECTION_ANNOTATION] === "enabled";
}
