import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { resources, type Pod } from "#kube";
import { isPodReady } from "#lab";
import { findAccessRecord } from "#model/access-log";
import { eventually, startLab, type TestLab } from "./harness.ts";
import { buildEnrolled, killFailsClosed, killFailsNothing, underLoad, type EnrolledScene } from "./mesh-bodies.ts";
import { assertFlawless, childrenOf, clearStreams, labMesh, LOAD_PORT, loadServer, pidsOf, runLoad } from "./mesh.ts";

/** It is over when nothing has failed for so long, and new connections were served. */
const SERVED_MS = 1_500;

let lab: TestLab;
let at: EnrolledScene;

before(async () => {
  lab = await startLab("fail");
  at = await buildEnrolled(labMesh(lab), "fail");
});
after(() => lab[Symbol.asyncDispose]());

for (const [role, node] of [
  ["controller", undefined],
  ["agent", "node1"],
  ["agent", "node2"],
  ["apiserver", undefined],
] as const) {
  test(`kill -9 of the ${role}${node === undefined ? "" : ` of ${node}`} fails no connection, old or new`, (t) =>
    killFailsNothing(at, t, { role, node }));
}

/** Ends the process that carries the data of a node, or the supervisor above it, which takes that process along. */
async function killProxy(node: string, part: "data path" | "supervisor"): Promise<void> {
  if (part === "data path") return at.mesh.kill(part, node);
  const [pid] = await pidsOf(lab, "proxy", node);
  assert.ok(pid !== undefined);
  process.kill(pid, "SIGKILL");
}

for (const [part, node] of [
  ["data path", "node1"],
  ["data path", "node2"],
  ["supervisor", "node1"],
  ["supervisor", "node2"],
] as const) {
  test(`kill -9 of the proxy's ${part} on ${node} breaks its connections, refuses new ones, never in clear, and passes`, (t) =>
    killFailsClosed(at, t, () => killProxy(node, part)));
}

async function dialNewServer(name: string): Promise<void> {
  const { scene, enter } = at;
  const [east = ""] = scene.namespaces;
  await lab.apply([loadServer(at.mesh, { namespace: east, name, node: "node2" })]);
  const server = await eventually(`${name} to have an address`, async () => {
    const pods = JSON.parse(await lab.kubectl("get", "pods", "-n", east, "-o", "json")) as { items: Pod[] };
    return pods.items.find((pod) => pod.metadata?.name === name && pod.status?.podIP !== undefined);
  });
  const captures = await Promise.all([lab.captureNode("node1", { filter: "tcp" }), lab.capturePod(scene.far, "tcp")]);
  const result = await runLoad(enter, server, ["--rate", "5", "--seconds", "4"]);
  const packets = (await Promise.all(captures.map((capture) => capture.stop()))).flat();
  assert.equal(result.short.done, 0, `port ${LOAD_PORT} of a server that nobody vouches for was reached`);
  assert.deepEqual(
    clearStreams(packets, scene.far, server),
    [],
    "an enrolled client spoke in clear to an enrolled server",
  );
  const reasons = await eventually(`records of the connections to ${name}`, async () => {
    const found = await reasonsTo(server);
    return found.length > 0 ? found : undefined; // they are held for a while before they are refused
  });
  assert.deepEqual(reasons, ["refused control_plane_unavailable"]);
  const old = await runLoad(enter, scene.server, ["--rate", "20", "--seconds", "1"]);
  assertFlawless(old, 0);
}

/** What the records of the client's proxy say about connections to a pod, each verdict and reason once. */
async function reasonsTo(server: Pod): Promise<string[]> {
  const proxy = await proxyOf("node1");
  const lines = (await lab.kubectl("-n", "veil-system", "logs", proxy)).split("\n");
  const records = lines.flatMap((line) => findAccessRecord(line) ?? []).filter((one) => one.direction === "outbound");
  const own = records.filter(({ destination }) => destination.address === `${server.status?.podIP}:${LOAD_PORT}`);
  return [...new Set(own.map(({ verdict, reason }) => `${verdict} ${reason}`))];
}

async function proxyOf(node: string): Promise<string> {
  const { items } = await lab.client.list(resources.pods, {
    namespace: "veil-system",
    labelSelector: "app=ztunnel",
  });
  return items.find(({ spec }) => spec?.nodeName === node)?.metadata?.name ?? "";
}

test("with the controller stopped, an old enrolled client does not reach a new enrolled server, and never in clear; also with a restarted proxy", async () => {
  const { scene, enter } = at;
  await lab.kubectl("-n", "veil-system", "scale", "deployment", "veil-controller", "--replicas=0");
  await eventually("the controller to be gone", async () => {
    const { items } = await lab.client.list(resources.pods, {
      namespace: "veil-system",
      labelSelector: "app=veil-controller",
    });
    return items.length === 0 ? true : undefined;
  });
  await dialNewServer("late-one");
  const [pid] = await pidsOf(lab, "proxy", "node1");
  assert.ok(pid !== undefined);
  for (const child of childrenOf(pid)) process.kill(child, "SIGKILL");
  await eventually("the old pair to work again without a controller", async () => {
    assertFlawless(await runLoad(enter, scene.server, ["--rate", "20", "--seconds", "1"]), 0);
    return true;
  });
  await dialNewServer("late-two");
  await lab.kubectl("-n", "veil-system", "scale", "deployment", "veil-controller", "--replicas=1");
  const [east = ""] = scene.namespaces;
  const late = await lab.readyPod(east, "late-two");
  await eventually("the new server to be reached once the controller is back", async () => {
    assertFlawless(await runLoad(enter, late, ["--rate", "20", "--seconds", "1"]), 0);
    return true;
  });
});

/** The node's proxies as another DaemonSet, with ports of the node of its own: what a surge of the first would start. */
async function startNext(): Promise<void> {
  const { spec } = await lab.client.get(resources.daemonSets, "ztunnel", "veil-system");
  assert.ok(spec);
  const labels = { app: "ztunnel-next" };
  const ports = ["--admin-port", "15100", "--metrics-port", "15120", "--ready-port", "15121"];
  const containers = spec.template.spec?.containers.map((container) => ({
    ...container,
    command: [...(container.command ?? []), ...ports],
    readinessProbe: { httpGet: { path: "/healthz/ready", port: 15_121 }, periodSeconds: 1, timeoutSeconds: 10 },
  }));
  assert.ok(containers);
  await lab.client.create(resources.daemonSets, {
    metadata: { name: "ztunnel-next", namespace: "veil-system" },
    spec: {
      ...spec,
      selector: { matchLabels: labels },
      template: { metadata: { labels }, spec: { ...spec.template.spec, containers } },
    },
  });
}

async function podsOf(app: string): Promise<readonly Pod[]> {
  return (await lab.client.list(resources.pods, { namespace: "veil-system", labelSelector: `app=${app}` })).items;
}

test("proxies that are replaced beside each other fail no new connection, and reset those that outlast the drain", async (t) => {
  const result = await underLoad(
    at,
    async () => {
      await startNext();
      await eventually(
        "the next proxies to be ready",
        async () => {
          const next = await podsOf("ztunnel-next");
          return next.length === lab.nodes.length && next.every(isPodReady) ? true : undefined;
        },
        120_000,
      );
      await lab.kubectl("-n", "veil-system", "delete", "daemonset", "ztunnel", "--wait=false");
      await eventually(
        "the old proxies to be gone",
        async () => (await podsOf("ztunnel")).length === 0 || undefined,
        120_000,
      );
    },
    ({ long, lastDoneMs, failedToMs }) => long.alive === 0 && lastDoneMs > failedToMs + SERVED_MS,
  );
  assert.deepEqual(
    Object.keys(result.failures).filter((key) => !key.startsWith("long:")),
    [],
    result.firstFailures.join("; "),
  );
  assert.equal(result.corrupt, 0);
  t.diagnostic(`${result.short.done} new connections, none failed; ${JSON.stringify(result.failures)}`);
});
