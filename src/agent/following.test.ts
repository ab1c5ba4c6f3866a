import assert from "node:assert/strict";
import { test } from "node:test";
import type { PodFacts } from "#enrolment";
import type { InformerListener, KubeObject, ObjectMeta } from "#kube";
import { ENROL_LABELS } from "#model/enrol-labels";
import { Following } from "./following.ts";

/** An informer that knows some objects. */
function informer<T extends KubeObject>(...objects: readonly T[]) {
  let listener: InformerListener<T> = {};
  return {
    on: (one: InformerListener<T>) => {
      listener = one;
      return () => {};
    },
    start: async () => objects.forEach((object) => listener.upserted?.(object, undefined)),
    drain: async () => {},
  };
}

const both = { "istio.io/dataplane-mode": "ambient", "io.cilium/mtls-enabled": "nonsense", app: "cart" };

/** The labels that enrolment and the warnings get to see of a namespace and of a pod that have both labels. */
async function seen(enrolLabels: readonly string[]): Promise<unknown[]> {
  const labels: unknown[] = [];
  const following = new Following({
    pods: informer({ metadata: { name: "cart", namespace: "shop", labels: both } }),
    namespaces: informer({ metadata: { name: "shop", labels: both } }),
    enrolment: {
      setNamespace: (_: string, given: unknown) => void labels.push(given),
      upsertPod: (pod: PodFacts) => void labels.push(pod.labels),
      removePod: () => {},
      synced: async () => {},
    },
    warnings: { look: (_: string, metadata: ObjectMeta | undefined) => void labels.push(metadata?.labels) },
    enrolLabels,
  });
  await following.start(new AbortController().signal);
  return labels;
}

test("all labels are seen when all enrol, and one that is somebody else's is not there for anybody", async () => {
  assert.deepEqual(await seen(ENROL_LABELS), [both, both, both, both]);
  const { "istio.io/dataplane-mode": _, ...rest } = both;
  assert.deepEqual(await seen(["io.cilium/mtls-enabled"]), [rest, rest, rest, rest]);
});
