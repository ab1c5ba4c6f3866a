import { compileRules, subjectOf, type PolicyRequest, type Subject } from "./matcher.ts";
import { authorizationName, type Authorization, type AuthorizationScope } from "#model/authorization";

/** A policy that could not be understood. What it may apply to lets nothing in. */
export interface UnusablePolicy {
  readonly name: string;
  readonly namespace: string;
  /** The widest that it may have. */
  readonly scope: AuthorizationScope;
}

/** A policy, made ready. */
export interface CompiledPolicy {
  /** `namespace/name`. */
  readonly name: string;
  readonly policy: Authorization;
  matches(subject: Subject): boolean;
}

/** The policies that apply to a workload, sorted by what they do. */
export interface Candidates {
  readonly unusable: readonly string[];
  readonly deny: readonly CompiledPolicy[];
  readonly allow: readonly CompiledPolicy[];
  readonly dryDeny: readonly CompiledPolicy[];
  readonly dryAllow: readonly CompiledPolicy[];
}

/** Whether a connection is let in, and by which policy. */
export interface Decision {
  readonly allowed: boolean;
  /**
   * - `no_policy`: no policy allows anything, so everything is allowed that none denies
   * - `allowed`, `denied`: by `policy`
   * - `not_allowed`: there are policies that allow, and none of them allows this
   * - `unusable`: `policy` applies and could not be understood
   */
  readonly reason: "no_policy" | "allowed" | "denied" | "not_allowed" | "unusable";
  /** `namespace/name` of the policy that decided. */
  readonly policy: string | undefined;
  /** What policies that are only tried out would have done; undefined: the same, or there are none. */
  readonly dryRun: DryRun | undefined;
}

/** What would have happened if the policies in dry run were in force, too, where that is not what happened. */
export interface DryRun {
  readonly allowed: boolean;
  /** The policy that would have decided; undefined: none of those that allow would have. */
  readonly policy: string | undefined;
}

/** Nothing applies. */
export const NO_CANDIDATES: Candidates = { unusable: [], deny: [], allow: [], dryDeny: [], dryAllow: [] };

const FREE: Decision = { allowed: true, reason: "no_policy", policy: undefined, dryRun: undefined };

/** Makes a policy ready to be asked often. */
export function compilePolicy(policy: Authorization): CompiledPolicy {
  return { name: authorizationName(policy), policy, matches: compileRules(policy) };
}

/**
 * Decides about a connection. First match:
 *
 * 1. a policy applies that could not be understood → refused
 * 2. a policy denies                               → refused
 * 3. no policy allows anything                     → allowed
 * 4. a policy allows                               → allowed
 * 5. else                                          → refused
 *
 * Policies in dry run are evaluated, and decide nothing: one that allows does not make "a policy allows something" true.
 */
export function decide(request: PolicyRequest, candidates: Candidates): Decision {
  if (candidates === NO_CANDIDATES) return FREE;
  const subject = subjectOf(request);
  const decision = decideEnforced(subject, candidates);
  if (candidates.dryDeny.length === 0 && candidates.dryAllow.length === 0) return decision;
  return { ...decision, dryRun: decideTried(subject, candidates, decision) };
}

function decideEnforced(subject: Subject, { unusable, deny, allow }: Candidates): Decision {
  const [broken] = unusable;
  if (broken !== undefined) return { allowed: false, reason: "unusable", policy: broken, dryRun: undefined };
  const denying = deny.find((policy) => policy.matches(subject));
  if (denying !== undefined) return { allowed: false, reason: "denied", policy: denying.name, dryRun: undefined };
  if (allow.length === 0) return FREE;
  const allowing = allow.find((policy) => policy.matches(subject));
  if (allowing === undefined) return { allowed: false, reason: "not_allowed", policy: undefined, dryRun: undefined };
  return { allowed: true, reason: "allowed", policy: allowing.name, dryRun: undefined };
}

/** What the policies in dry run would change. */
function decideTried(subject: Subject, { dryDeny, dryAllow }: Candidates, real: Decision): DryRun | undefined {
  const denying = dryDeny.find((policy) => policy.matches(subject));
  if (denying !== undefined) return real.allowed ? { allowed: false, policy: denying.name } : undefined;
  const allowing = dryAllow.find((policy) => policy.matches(subject));
  if (allowing !== undefined) {
    return real.reason === "not_allowed" ? { allowed: true, policy: allowing.name } : undefined;
  }
  const wouldMiss = real.reason === "no_policy" && dryAllow.length > 0;
  return wouldMiss ? { allowed: false, policy: undefined } : undefined;
}

/** One line for records and answers: upstream's words, so that what searches logs for them finds them. */
export function describeDecision({ reason, policy }: Decision): string {
  const texts: Readonly<Record<Decision["reason"], string>> = {
    no_policy: "no policy restricts it",
    allowed: `allowed by: ${policy}`,
    denied: `explicitly denied by: ${policy}`,
    not_allowed: "allow policies exist, but none allowed",
    unusable: `policy ${policy} applies, and this proxy cannot enforce it`,
  };
  return texts[reason];
}
