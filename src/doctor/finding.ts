/** What a check came to. What could not be looked at is never `ok`. */
export type Outcome = "ok" | "warning" | "problem" | "not checked";

/** The checks, in the order in which they are shown. docs/doctor.md has a section for each. */
export const CHECKS = [
  "readiness",
  "versions",
  "enrolment",
  "network policies",
  "certificates",
  "admission",
  "access",
  "neighbours",
  "wireguard",
  "kernel",
  "clock",
  "cni",
] as const;
export type CheckName = (typeof CHECKS)[number];

/** One thing that a check says. */
export interface Finding {
  readonly check: CheckName;
  readonly outcome: Outcome;
  /** One sentence, naming the object that it is about. For `not checked`: the reason. */
  readonly what: string;
  /** What to do about it. There is one for each warning and problem. */
  readonly todo?: string;
  /** The node on which it was found, where that was asked for several. */
  readonly node?: string;
}

/** Something that was looked for: what was found, or why nothing could be. */
export type Known<T> = { readonly value: T } | { readonly unknown: string };

type Values<Facts> = { readonly [Name in keyof Facts]: Facts[Name] extends Known<infer T> ? T : never };

/** What the checks of one name say. */
export interface Voice {
  ok(what: string): Finding;
  warning(what: string, todo: string): Finding;
  problem(what: string, todo: string): Finding;
  notChecked(reason: string): Finding;
}

/** Makes the findings of a check. */
export function voiceOf(check: CheckName): Voice {
  return {
    ok: (what) => ({ check, outcome: "ok", what }),
    warning: (what, todo) => ({ check, outcome: "warning", what, todo }),
    problem: (what, todo) => ({ check, outcome: "problem", what, todo }),
    notChecked: (what) => ({ check, outcome: "not checked", what }),
  };
}

/** Runs a check on facts that are all known; where one is not, says why nothing was checked. `what` names what was to be looked at. */
export function withFacts<Facts extends Readonly<Record<string, Known<unknown>>>>(
  { voice, what }: { readonly voice: Voice; readonly what: string },
  facts: Facts,
  check: (values: Values<Facts>) => readonly Finding[],
): readonly Finding[] {
  const values: Record<string, unknown> = {};
  for (const [name, fact] of Object.entries(facts)) {
    if ("unknown" in fact) return [voice.notChecked(`${what}: ${fact.unknown}`)];
    values[name] = fact.value;
  }
  return check(values as Values<Facts>); // filled from all of them just above
}

/** 0: nothing is wrong, warnings apart; 1: something is; 2: something could not be looked at, and what could be is not wrong. */
export function exitCodeOf(findings: readonly Finding[]): 0 | 1 | 2 {
  if (findings.some(({ outcome }) => outcome === "problem")) return 1;
  return findings.some(({ outcome }) => outcome === "not checked") ? 2 : 0;
}

/** Up to `most` names, and how many more there are. */
export function someOf(names: readonly string[], most = 3): string {
  const shown = names.slice(0, most).join(", ");
  return names.length > most ? `${shown} and ${names.length - most} more` : shown;
}

/** `1 pod`, `2 pods`. */
export function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}
