import type { Log } from "#base/log";
import { messageOf } from "#base/errors";
import type { Authorization } from "#model/authorization";
import { PolicyIndex, type PolicyChange, type UnusablePolicy } from "#policy";
import { decodeAuthorization } from "#proto";
import type { Rejection, ResourceUpdate } from "#xds";

/** What the policies of the mesh go through. */
export interface PoliciesParts {
  /** Puts a change in force on all data threads; resolves when it is. */
  readonly spread: (change: PolicyChange) => Promise<void>;
  readonly log: Log;
}

/**
 * Takes the control plane's policies: decodes them and puts them in force on the main thread (for explanations and dumps)
 * and on every data thread, before they are acknowledged. One that is not understood is refused by name, so that its
 * author hears of it, and what it may apply to lets nothing in until it is corrected or removed.
 */
export class Policies {
  readonly index = new PolicyIndex();
  readonly #parts: PoliciesParts;

  constructor(parts: PoliciesParts) {
    this.#parts = parts;
  }

  /** Takes one update. The names that it returns were refused; all is in force, in one way or the other, when it resolves. */
  async take({ upserts, removes }: ResourceUpdate): Promise<readonly Rejection[]> {
    const good: Authorization[] = [];
    const unusable: UnusablePolicy[] = [];
    const untried: string[] = [];
    const rejections: Rejection[] = [];
    for (const { name, value } of upserts) {
      const decoded = decodeAuthorization(name, value);
      if ("policy" in decoded) {
        good.push(decoded.policy);
        continue;
      }
      const { error, namespace, scope, dryRun } = decoded;
      rejections.push({ name, reason: messageOf(error) });
      if (dryRun) untried.push(name);
      else unusable.push({ name, namespace, scope });
      this.#parts.log.warn({ policy: name, error: messageOf(error), scope, dryRun }, "policy cannot be enforced");
    }
    const change = { upserts: good, unusable, removes: [...removes, ...untried] };
    this.index.apply(change);
    await this.#parts.spread(change);
    return rejections;
  }
}
