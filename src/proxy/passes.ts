import type { Clock } from "#base/clock";

/** Members that are looked at before the thread's other work gets its turn. */
const SLICE_MEMBERS = 256;
/** Milliseconds after which a slice ends early: ending a connection costs more than judging it. */
const SLICE_MS = 2;
/** Looked at between two looks at the clock. */
const LOOK_EVERY = 16;

/**
 * Looks at many connections again after a change, a slice at a time, so that ten thousand of them stall nobody:
 *
 *     idle ── changed ──▶ a pass: slice ▸ turn ▸ slice … ── nothing changed meanwhile ──▶ idle
 *                           ▲──────── changed meanwhile: the next pass ───┘
 */
export class Passes<Member> {
  readonly #members: ReadonlySet<Member>;
  readonly #judge: (member: Member) => void;
  readonly #clock: Clock;
  #changes = 0;
  #isPassing = false;

  /** `judge` may take members out of the set. */
  constructor(members: ReadonlySet<Member>, judge: (member: Member) => void, clock: Clock) {
    this.#members = members;
    this.#judge = judge;
    this.#clock = clock;
  }

  /** What the judgement rests on has changed. Returns at once; every member is judged soon. */
  changed(): void {
    this.#changes++;
    if (!this.#isPassing && this.#members.size > 0) this.#pass();
  }

  #pass(): void {
    this.#isPassing = true;
    const changes = this.#changes;
    // What joins meanwhile is met, too: a set's iterator sees it.
    const rest = this.#members.values();
    const slice = (): void => {
      if (!this.#slice(rest)) setImmediate(slice);
      else if (this.#changes === changes) this.#isPassing = false;
      else this.#pass();
    };
    setImmediate(slice);
  }

  /** Judges one slice; true when none is left. */
  #slice(rest: Iterator<Member>): boolean {
    const endMs = this.#clock.monotonic() + SLICE_MS;
    for (let judged = 1; judged <= SLICE_MEMBERS; judged++) {
      const next = rest.next();
      if (next.done === true) return true;
      this.#judge(next.value);
      if (judged % LOOK_EVERY === 0 && this.#clock.monotonic() >= endMs) return false;
    }
    return false;
  }
}
