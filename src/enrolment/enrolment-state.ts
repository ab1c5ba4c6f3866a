import type { Clock } from "#base/clock";
import type { CodedError } from "#base/errors";
import type { Log } from "#base/log";
import type { CellSet } from "#base/metrics";
import type { Random } from "#base/random";
import type { Netns } from "#linux";
import type { PodFacts } from "./eligibility.ts";
import type { NetnsFinder } from "./pod-netns.ts";
import type { Probes } from "./probes.ts";
import type { Redirector } from "./redirection.ts";
import type { ZdsPod } from "./zds-server.ts";

/**
 * Where a pod is on its way between plain and enrolled.
 *
 *      plain ─▶ waiting ─▶ handing ─▶ redirecting ─▶ announcing ─▶ enrolled          the label is there
 *        ▲         │          ▲  │          │                │          │
 *        │         │          │  ▼          └────────────▶   ▼          ▼
 *        ◀─────────┘  removing ◀─ draining ◀─ releasing ◀─ retracting ◀─┘            the label is gone
 *
 * From `retracting` a label leads back to `redirecting`: it may have gone before the rules had come.
 * Every step is idempotent and may be broken off; the next one is decided by where the pod is and what is wished then. A pod that
 * ends goes from anywhere to `closed`.
 */
export type EnrolmentState =
  /** Nothing of ours is in the pod. */
  | { readonly name: "plain" }
  /** Wished, but not possible yet. */
  | { readonly name: "waiting"; readonly reason: CodedError }
  /** The proxy is asked to listen in the pod. */
  | { readonly name: "handing"; readonly netns: Netns }
  /** The proxy listens; new connections are about to be redirected. */
  | { readonly name: "redirecting"; readonly netns: Netns }
  /** New connections are redirected; the controller is to be told. */
  | { readonly name: "announcing"; readonly netns: Netns }
  | { readonly name: "enrolled"; readonly netns: Netns }
  /** The controller is to publish the pod as plain, and all nodes are to know it. */
  | { readonly name: "retracting"; readonly netns: Netns; readonly sinceMs: number }
  /** Redirection of new connections is to end. */
  | { readonly name: "releasing"; readonly netns: Netns }
  /** Connections that were redirected may end by themselves: until `endMs`, and not before `settledMs` all of them have. */
  | { readonly name: "draining"; readonly netns: Netns; readonly endMs: number; readonly settledMs: number }
  /** What is left of ours is to go. */
  | { readonly name: "removing"; readonly netns: Netns }
  | { readonly name: "closed" };

/** A step on the way; what each does stands in `PodEnrolment`. */
export type EnrolmentStep =
  | "rest"
  | "find"
  | "hand"
  | "install"
  | "announce"
  | "forget"
  | "settle"
  | "retract"
  | "stay"
  | "release"
  | "drain"
  | "remove"
  | "discard"
  | "return"
  | "withdraw";

/** The next step, by where a pod is and what is wished. */
export const STEPS: Readonly<
  Record<EnrolmentState["name"], Readonly<Record<Exclude<EnrolmentWish, "gone">, EnrolmentStep>>>
> = {
  plain: { enrolled: "find", plain: "forget" },
  waiting: { enrolled: "find", plain: "settle" },
  handing: { enrolled: "hand", plain: "discard" },
  redirecting: { enrolled: "install", plain: "withdraw" },
  announcing: { enrolled: "announce", plain: "withdraw" },
  enrolled: { enrolled: "rest", plain: "withdraw" },
  retracting: { enrolled: "stay", plain: "retract" },
  releasing: { enrolled: "return", plain: "release" },
  draining: { enrolled: "return", plain: "drain" },
  removing: { enrolled: "return", plain: "remove" },
  closed: { enrolled: "rest", plain: "rest" },
};

/** What is wished for a pod. `gone`: it has ended, or was deleted. */
export type EnrolmentWish = "enrolled" | "plain" | "gone";

/** Tells the cluster that a pod is enrolled, or is not. */
export interface Announcer {
  /** Sets or removes the pod's annotation. A pod that is gone is no failure. */
  announce(pod: PodFacts, enrolled: boolean, signal: AbortSignal): Promise<void>;
  /** Waits (bounded) until all nodes know that the pod is plain. Resolves with the nodes that do not; rejects when nobody can tell. */
  confirmPlain(pod: PodFacts, signal: AbortSignal): Promise<readonly string[]>;
}

/** Times and bounds of enrolment. */
export interface EnrolmentTimes {
  /** How long connections may go on through the proxy after their pod's label went. Default 1 h. */
  readonly drainMs: number;
  /** How often the end of the last one is looked for. Default 250 ms. */
  readonly drainPollMs: number;
  /** How long nodes that do not confirm hold an un-enrolment. Default 30 s. */
  readonly behindMs: number;
  /** After how long no DNS question of a pod can wait for an answer through the proxy any more. Default 5 s. */
  readonly dnsSettleMs: number;
}

export const DEFAULT_TIMES: EnrolmentTimes = {
  drainMs: 3_600_000,
  drainPollMs: 250,
  behindMs: 30_000,
  dnsSettleMs: 5_000,
};

/** What the enrolment of a pod works with. */
export interface EnrolmentTools {
  readonly zds: {
    add(pod: ZdsPod, signal: AbortSignal): Promise<void>;
    remove(uid: string, signal: AbortSignal): Promise<void>;
  };
  readonly redirector: Redirector;
  readonly probes: Pick<Probes, "declare" | "allow" | "forbid" | "write">;
  readonly finder: NetnsFinder;
  readonly announcer: Announcer;
  /** Called when a pod is to be enrolled, to get ready what it will need (its certificate); disposed when it is not any more. */
  readonly prepare?: (pod: PodFacts) => Disposable;
  /** Called once when a pod that is to be enrolled has not been for 30 s, with what failed last; it is tried on. */
  readonly onStuck?: (pod: PodFacts, failure: CodedError) => void;
  /** Whether the controller answers: running pods are enrolled only then. */
  readonly controllerReachable: () => boolean;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly cells: CellSet;
  readonly times: EnrolmentTimes;
  /** Whether DNS questions are captured of pods that do not say. */
  readonly dnsCapture: boolean;
}
