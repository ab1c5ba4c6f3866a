import type { Clock } from "#base/clock";
import type { Decision, PolicyIndex, PolicyQuestion } from "#policy";

/** Connections that are judged before the others get their turn. */
const SLICE_CONNECTIONS = 256;
/** Milliseconds after which a slice ends early: closing costs more than judging. */
const SLICE_MS = 2;
/** Judged between two looks at the clock. */
const LOOK_EVERY = 16;

/** What a running connection was let in with, and how it is told that it is not any more. */
class Admission {
  readonly question: PolicyQuestion;
  /** Why it has to end; undefined while it may go on. */
  denied: Decision | undefined;
  /** Called once, when it has to end while it runs. */
  onDenied: ((decision: Decision) => void) | undefined;
  readonly #all: Set<Admission>;

  constructor(question: PolicyQuestion, all: Set<Admission>) {
    this.question = question;
    this.#all = all;
    all.add(this);
  }

  /** The connection has ended, or did not come about. */
  leave(): void {
    this.#all.delete(this);
  }

  deny(decision: Decision): void {
    this.denied = decision;
    this.leave();
    this.onDenied?.(decision);
  }
}

/**
 * The inbound connections of a data thread that were let in. When a policy comes, changes or goes they are judged again,
 * a slice at a time so that the thread's other work goes on; each against the list of policies that its pod had when it
 * was accepted, as upstream does.
 *
 *     idle ── changed ──▶ a pass: slice ▸ turn ▸ slice … ── nothing changed meanwhile ──▶ idle
 *                           ▲──────── changed meanwhile: the next pass ───┘
 */
export class Admissions {
  readonly #policies: PolicyIndex;
  readonly #clock: Clock;
  readonly #admitted = new Set<Admission>();
  #isPassing = false;

  constructor(policies: PolicyIndex, clock: Clock) {
    this.#policies = policies;
    this.#clock = clock;
  }

  /** Connections that are judged again on a change. */
  get count(): number {
    return this.#admitted.size;
  }

  /** A connection was allowed. From here on it is judged again on each change, also while its application is dialled. */
  enter(question: PolicyQuestion): Admission {
    return new Admission(question, this.#admitted);
  }

  /** Policies changed. Returns at once; every connection that is not allowed any more is told soon. */
  changed(): void {
    if (!this.#isPassing && this.#admitted.size > 0) this.#pass();
  }

  #pass(): void {
    this.#isPassing = true;
    const { version } = this.#policies;
    // What is let in meanwhile is met, too: a set's iterator sees it.
    const rest = this.#admitted.values();
    const slice = (): void => {
      if (!this.#judge(rest)) setImmediate(slice);
      else if (this.#policies.version === version) this.#isPassing = false;
      else this.#pass();
    };
    setImmediate(slice);
  }

  /** Judges one slice; true when none is left. */
  #judge(rest: Iterator<Admission>): boolean {
    const endMs = this.#clock.monotonic() + SLICE_MS;
    for (let judged = 1; judged <= SLICE_CONNECTIONS; judged++) {
      const next = rest.next();
      if (next.done === true) return true;
      const decision = this.#policies.decide(next.value.question);
      if (!decision.allowed) next.value.deny(decision);
      if (judged % LOOK_EVERY === 0 && this.#clock.monotonic() >= endMs) return false;
    }
    return false;
  }
}

export type { Admission };
