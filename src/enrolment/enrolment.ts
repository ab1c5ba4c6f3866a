import { deadline } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Service } from "#base/service";
import { REDIRECTION_ANNOTATION } from "#model/redirection";
import { decideEligibility, isExcluded, type Eligibility, type PodFacts } from "./eligibility.ts";
import type { EnrolmentState, EnrolmentTools, EnrolmentWish } from "./enrolment-state.ts";
import { enrolmentError } from "./errors.ts";
import { PodEnrolment } from "./pod-enrolment.ts";
import { Slots } from "./slots.ts";
import type { ZdsServer } from "./zds-server.ts";

/** Pods whose rules are read or changed at once; the others wait in order. */
const MAX_RULE_CHANGES = 8;
/** How long the CNI plugin's pod may take to appear in the API. */
export const CNI_POD_MS = 5000;
/** How long the enrolment of a starting pod may take before the plugin is told to try again. */
export const CNI_ENROL_MS = 20_000;

/** Static pods are known to the container runtime by their file's hash, and to the API by a UID of its own with this annotation. */
const STATIC_POD_ANNOTATION = "kubernetes.io/config.hash";

/** One pod as operators see it. */
export interface PodStatus extends Eligibility {
  readonly uid: string;
  readonly name: string;
  readonly namespace: string;
  readonly state: EnrolmentState["name"];
  readonly failure: { readonly code: string; readonly message: string } | undefined;
}

/** A pod as the container runtime names it; some do not tell the UID. */
export interface NamedPod {
  readonly namespace: string;
  readonly name: string;
  readonly uid: string | undefined;
}

/** What {@link Enrolment} works with: the tools of each pod, with a ZDS server that waits for `open`. */
export interface EnrolmentOptions extends EnrolmentTools {
  readonly zds: Pick<ZdsServer, "add" | "remove" | "declare" | "open">;
  /** Where Veil is installed, whose pods are never enrolled. Default: `veil-system`. */
  readonly namespace?: string;
}

/**
 * Enrols the pods of one node, following what its owner reports of pods and namespaces. Nothing happens before `synced`:
 * then each pod that an earlier agent has left rules in is taken over as it stands.
 */
export class Enrolment implements Service {
  readonly name = "enrolment";
  readonly #tools: EnrolmentOptions;
  readonly #pods = new Map<string, PodEnrolment>();
  /** Reported before `synced`. */
  readonly #early = new Map<string, PodFacts>();
  readonly #namespaces = new Map<string, Readonly<Record<string, string>>>();
  #phase: "collecting" | "following" | "stopped" = "collecting";
  #changed = Promise.withResolvers<void>();
  #leaving = false;

  constructor(options: EnrolmentOptions) {
    const slots = new Slots(MAX_RULE_CHANGES);
    const { redirector } = options;
    this.#tools = {
      ...options,
      redirector: {
        install: (netns, capture) => slots.run(() => redirector.install(netns, capture)),
        keep: (netns) => slots.run(() => redirector.keep(netns)),
        remove: (netns) => slots.run(() => redirector.remove(netns)),
        read: (netns) => slots.run(() => redirector.read(netns)),
        countRedirected: (netns) => redirector.countRedirected(netns),
      },
    };
  }

  start(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    return Promise.resolve();
  }

  /** Stops where it is: pods stay enrolled, and the next agent takes them over. */
  async drain(_deadlineMs: number): Promise<void> {
    this.#phase = "stopped";
    await Promise.all([...this.#pods.values()].map((pod) => pod.stop()));
  }

  /** The pods and namespaces reported so far are all there are: takes over what stands, then opens the ZDS server. */
  async synced(): Promise<void> {
    if (this.#phase !== "collecting") return;
    await Promise.all([...this.#early.values()].map((pod) => this.#adopt(pod)));
    // One that fails is written again with the first pod that is enrolled.
    await this.#tools.probes.write().catch((error: unknown) => {
      this.#tools.log.warn({ reason: messageOf(error) }, "rules for probes cannot be written");
    });
    if (this.#isStopped()) return;
    this.#phase = "following";
    this.#tools.zds.open();
    for (const pod of this.#early.values()) this.#follow(pod);
    this.#early.clear();
    this.#tools.log.info({ pods: this.#pods.size }, "enrolment follows the pods of this node");
  }

  /** A pod of this node is there, or has changed. */
  upsertPod(pod: PodFacts): void {
    if (this.#phase === "collecting") this.#early.set(pod.uid, pod);
    else if (this.#phase === "following") this.#follow(pod);
  }

  /** A pod was deleted. */
  removePod(uid: string): void {
    this.#early.delete(uid);
    const enrolment = this.#pods.get(uid);
    if (enrolment === undefined) return;
    this.#pods.delete(uid);
    enrolment.update(enrolment.pod, "gone");
  }

  /** A namespace is there, or its labels have changed; undefined: it was deleted. */
  setNamespace(name: string, labels: Readonly<Record<string, string>> | undefined): void {
    if (labels === undefined) this.#namespaces.delete(name);
    else this.#namespaces.set(name, labels);
    this.#wishAgain((pod) => pod.namespace === name);
  }

  /** True: no pod is to be enrolled any more, whatever its labels say. False: labels count again. */
  leave(leaving: boolean): void {
    this.#leaving = leaving;
    this.#wishAgain(() => true);
  }

  /** The controller can be reached again: pods that wait for it go on. */
  poke(): void {
    for (const enrolment of this.#pods.values()) enrolment.poke();
  }

  /**
   * Enrols a pod that the container runtime is about to start, and resolves when its connections are redirected; at once when it is
   * not to be enrolled. Rejects with `ENROLMENT_CNI_UNKNOWN_POD` or `ENROLMENT_CNI_TIMEOUT`: the pod must not start then.
   */
  async enrolStarting(
    pod: NamedPod & { readonly netnsPath: string },
    signal: AbortSignal,
  ): Promise<"enrolled" | "not-eligible"> {
    if (isExcluded(pod.namespace, this.#tools.namespace)) return "not-eligible"; // before the API has told of it: what the API itself needs may be there
    const enrolment = await this.#awaitPod(pod, signal);
    if (this.#wishFor(enrolment.pod) !== "enrolled") return "not-eligible";
    enrolment.starting(pod.netnsPath);
    const bound = deadline(this.#tools.clock, CNI_ENROL_MS, { reason: new Error("too late"), parent: signal });
    try {
      await enrolment.whenRedirected(bound.signal);
      return "enrolled";
    } catch (cause) {
      signal.throwIfAborted();
      const last = enrolment.lastFailure;
      const why = last === undefined ? `it is still ${enrolment.state.name}` : messageOf(last);
      throw enrolmentError("ENROLMENT_CNI_TIMEOUT", `the pod was not enrolled in ${CNI_ENROL_MS} ms: ${why}`, {
        cause,
        details: { pod: pod.name, namespace: pod.namespace, state: enrolment.state.name, failure: last?.code },
      });
    } finally {
      bound.clear();
    }
  }

  /** Resolves when a pod that is to be enrolled is. Rejects with `ENROLMENT_NOT_IN_PLACE` when it is not, or its rules are gone. */
  async checkStarted(pod: NamedPod): Promise<void> {
    const enrolment = this.#find(pod);
    if (enrolment === undefined || this.#wishFor(enrolment.pod) !== "enrolled") return;
    const { state } = enrolment;
    const enrolled = state.name === "announcing" || state.name === "enrolled";
    const rules = enrolled ? await this.#tools.redirector.read(state.netns) : "absent";
    if (rules === "capturing") return;
    const message = `pod ${pod.namespace}/${pod.name} is ${state.name}, its rules are ${rules}`;
    throw enrolmentError("ENROLMENT_NOT_IN_PLACE", message, { details: { state: state.name, rules } });
  }

  /** All pods of this node and where they stand. */
  list(): PodStatus[] {
    return [...this.#pods.values()].map(({ pod, state, lastFailure }) => ({
      uid: pod.uid,
      name: pod.name,
      namespace: pod.namespace,
      ...this.#decide(pod),
      state: state.name,
      failure: lastFailure === undefined ? undefined : { code: lastFailure.code, message: messageOf(lastFailure) },
    }));
  }

  /** Takes over what an earlier agent has left in a pod. */
  async #adopt(pod: PodFacts): Promise<void> {
    const { finder, redirector, zds, log } = this.#tools;
    if (this.#wishFor(pod) === "gone" || pod.hostNetwork) return;
    const enrolment = new PodEnrolment(pod, this.#tools);
    const netns = finder.find(pod.uid);
    if (netns === undefined) {
      if (pod.annotations[REDIRECTION_ANNOTATION] === "enabled") zds.declare({ ...pod, netns });
    } else {
      const found = await redirector.read(netns).catch((error: unknown) => {
        log.warn(
          { pod: pod.name, namespace: pod.namespace, reason: messageOf(error) },
          "rules of a pod cannot be read",
        );
        return "absent" as const;
      });
      if (found === "absent" || this.#isStopped()) netns[Symbol.dispose]();
      else {
        zds.declare({ ...pod, netns });
        enrolment.adopt(netns, found);
      }
    }
    this.#pods.set(pod.uid, enrolment);
  }

  #follow(pod: PodFacts): void {
    const wish = this.#wishFor(pod);
    let enrolment = this.#pods.get(pod.uid);
    if (enrolment === undefined) {
      if (wish === "gone") return;
      enrolment = new PodEnrolment(pod, this.#tools);
      this.#pods.set(pod.uid, enrolment);
    }
    enrolment.update(pod, wish);
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }

  #wishAgain(concerns: (pod: PodFacts) => boolean): void {
    if (this.#phase !== "following") return;
    for (const enrolment of this.#pods.values()) {
      if (concerns(enrolment.pod)) enrolment.update(enrolment.pod, this.#wishFor(enrolment.pod));
    }
  }

  #decide(pod: PodFacts): Eligibility {
    const decided = decideEligibility(pod, this.#namespaces.get(pod.namespace) ?? {}, this.#tools.namespace);
    return this.#leaving && decided.eligible ? { eligible: false, reason: "leaving" } : decided;
  }

  #wishFor(pod: PodFacts): EnrolmentWish {
    const { eligible, reason } = this.#decide(pod);
    if (reason === "ended") return "gone";
    return eligible ? "enrolled" : "plain";
  }

  /** The pod of that name, and of that UID where it is given. */
  #find({ namespace, name, uid }: NamedPod): PodEnrolment | undefined {
    return [...this.#pods.values()].find(
      ({ pod }) =>
        pod.name === name &&
        pod.namespace === namespace &&
        (uid === undefined || pod.uid === uid || pod.annotations[STATIC_POD_ANNOTATION] === uid),
    );
  }

  /**
   * The pod, once the API has told of it. Where the UID is not given, a pod that runs already is, at first, taken for its predecessor.
   */
  async #awaitPod(pod: NamedPod, signal: AbortSignal): Promise<PodEnrolment> {
    const bound = deadline(this.#tools.clock, CNI_POD_MS, { reason: new Error("too late"), parent: signal });
    const late = new Promise<void>((resolve) =>
      bound.signal.addEventListener("abort", () => resolve(), { once: true }),
    );
    try {
      for (;;) {
        const found = this.#find(pod);
        const certain = pod.uid !== undefined || found?.pod.phase === "Pending" || bound.signal.aborted;
        if (found !== undefined && certain) return found;
        signal.throwIfAborted();
        if (bound.signal.aborted) {
          throw enrolmentError("ENROLMENT_CNI_UNKNOWN_POD", `the API does not know pod ${pod.namespace}/${pod.name}`);
        }
        await Promise.race([this.#changed.promise, late]);
      }
    } finally {
      bound.clear();
    }
  }

  #isStopped(): boolean {
    return this.#phase === "stopped";
  }
}
