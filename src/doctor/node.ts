import type { Clock } from "#base/clock";
import type { KubeConfig } from "#kube";
import { examineClock } from "./api-clock.ts";
import { voiceOf, type Finding, type Known } from "./finding.ts";
import { examineKernel } from "./kernel.ts";
import { examineCni } from "./node-cni.ts";

/** What a node is examined with. */
export interface NodeOptions {
  readonly confDir: string;
  readonly binDir: string;
  /** Where the API is, or why that is not known. */
  readonly config: Known<KubeConfig>;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

/** Looks at the node that this runs on. What it makes for that, nobody else sees, and it is gone afterwards. Never rejects. */
export async function examineNode({
  confDir,
  binDir,
  config,
  clock,
  signal,
}: NodeOptions): Promise<readonly Finding[]> {
  const time =
    "unknown" in config ? [voiceOf("clock").notChecked(config.unknown)] : examineClock(config.value, clock, signal);
  return (await Promise.all([examineKernel(clock), time, examineCni({ confDir, binDir }, clock, signal)])).flat();
}
