import type { Clock } from "#base/clock";
import type { Decision, PolicyIndex, PolicyQuestion } from "#policy";
import { Passes } from "./passes.ts";

/** What a running connection was let in with, and how it is told that it is not any more. */
export class Admission {
  readonly question: PolicyQuestion;
  /** Why it has to end; undefined while it may go on. */
  denied: Decision | undefined;
  /** Called once, when it has to end while it runs. */
  onDenied: ((decision: Decision) => void) | undefined;
  readonly #all: Set<Admission>;

  /** Made by {@link Admissions.enter}. */
  constructor(question: PolicyQuestion, all: Set<Admission>) {
    this.question = question;
    this.#all = all;
    all.add(this);
  }

  /** The connection has ended, or did not come about. */
  leave(): void {
    this.#all.delete(this);
  }

  /** For {@link Admissions} only. */
  deny(decision: Decision): void {
    this.denied = decision;
    this.leave();
    this.onDenied?.(decision);
  }
}

/**
 * The inbound connections of a data thread that were let in. When a policy comes, changes or goes they are judged again,
 * each against the list of policies that its pod had when it was accepted, as upstream does.
 */
export class Admissions {
  readonly #admitted = new Set<Admission>();
  readonly #passes: Passes<Admission>;

  constructor(policies: PolicyIndex, clock: Clock) {
    const judge = (admission: Admission): void => {
      const decision = policies.decide(admission.question);
      if (!decision.allowed) admission.deny(decision);
    };
    this.#passes = new Passes(this.#admitted, judge, clock);
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
    this.#passes.changed();
  }
}
