import assert from "node:assert/strict";
import { resources, type Pod } from "#kube";
import { isPodReady } from "#lab";
import { eventually, type TestLab } from "./harness.ts";

const NAMESPACE = "veil-system";
const START_MS = 120_000;

/**
 * Replaces a lab's proxies beside each other, as a surge of their DaemonSet does: another one is made, with ports of the node of its
 * own, and the first deleted. Resolves when the old proxies have gone. Once in a lab's life.
 */
export async function replaceLabProxies(lab: TestLab): Promise<void> {
  await startNext(lab);
  await eventually(
    "the next proxies to be ready",
    async () => {
      const next = await podsOf(lab, "ztunnel-next");
      return (next.length === lab.nodes.length && next.every(isPodReady)) || undefined;
    },
    START_MS,
  );
  await lab.kubectl("-n", NAMESPACE, "delete", "daemonset", "ztunnel", "--wait=false");
  await eventually(
    "the old proxies to be gone",
    async () => (await podsOf(lab, "ztunnel")).length === 0 || undefined,
    START_MS,
  );
}

async function startNext({ client }: TestLab): Promise<void> {
  const { spec } = await client.get(resources.daemonSets, "ztunnel", NAMESPACE);
  assert.ok(spec);
  const labels = { app: "ztunnel-next" };
  const ports = ["--admin-port", "15100", "--metrics-port", "15120", "--ready-port", "15121"];
  const containers = spec.template.spec?.containers.map((container) => ({
    ...container,
    command: [...(container.command ?? []), ...ports],
    readinessProbe: { httpGet: { path: "/healthz/ready", port: 15_121 }, periodSeconds: 1, timeoutSeconds: 10 },
  }));
  assert.ok(containers);
  await client.create(resources.daemonSets, {
    metadata: { name: "ztunnel-next", namespace: NAMESPACE },
    spec: {
      ...spec,
      selector: { matchLabels: labels },
      template: { metadata: { labels }, spec: { ...spec.template.spec, containers } },
    },
  });
}

async function podsOf({ client }: TestLab, app: string): Promise<readonly Pod[]> {
  return (await client.list(resources.pods, { namespace: NAMESPACE, labelSelector: `app=${app}` })).items;
}
