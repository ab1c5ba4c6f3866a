import type { DaemonSet } from "#kube";
import { DEFAULT_TRUST_BUNDLE } from "#model/authority-objects";
import { ENROL_LABELS } from "#model/enrol-labels";
import { AGENTS } from "#model/leaving";
import type { Known } from "./finding.ts";

/** What of an installation's values decides what the doctor looks at. */
export interface Settings {
  /** Name of the ConfigMap with the roots. */
  readonly trustBundle: string;
  /** The labels that enrol. */
  readonly enrolLabels: readonly string[];
}

/** Settings as the agents are started with them; the chart's own where that cannot be seen. */
export function readSettings(daemonSets: Known<readonly DaemonSet[]>, namespace: string): Settings {
  const all = "value" in daemonSets ? daemonSets.value : [];
  const agents = all.find(({ metadata }) => metadata?.name === AGENTS && metadata.namespace === namespace);
  const words = (agents?.spec?.template.spec?.containers ?? []).flatMap(({ command = [], args = [] }) => [
    ...command,
    ...args,
  ]);
  const flag = (name: string): string | undefined => {
    const at = words.indexOf(name);
    return at < 0 ? undefined : words[at + 1];
  };
  return {
    trustBundle: flag("--trust-bundle") ?? DEFAULT_TRUST_BUNDLE,
    enrolLabels: flag("--enrol-labels")?.split(",") ?? ENROL_LABELS,
  };
}
