/**
 * Istio and Cilium are on the cluster already: their kinds, labels, pods and configuration. Veil's controller names them, works, and
 * leaves what is theirs as it is.
 */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { systemRandom } from "#base/random";
import {
  isKubeError,
  KubeClient,
  loadKubeConfig,
  resourceRef,
  resources,
  type KubeObject,
  type ResourceRef,
} from "#kube";
import { freePort, Role, until } from "./role-process.ts";

const shared = { clock: systemClock(), random: systemRandom, log: silentLog() };
const BUNDLE = "istio-ca-root-cert";
const OWN_BUNDLE = "veil-ca-root-cert";

/** One of their kinds, as an installation of theirs has it, and an object of it. */
interface Theirs {
  readonly ref: ResourceRef;
  readonly object: KubeObject & { readonly spec: object };
}

function theirs(apiVersion: string, kind: string, plural: string): Theirs {
  const [group = "", version = ""] = apiVersion.split("/");
  const ref = resourceRef<KubeObject>({ group, version, plural, kind, namespaced: true });
  const metadata = { name: "theirs", namespace: "shop", labels: { "app.kubernetes.io/managed-by": "theirs" } };
  return { ref, object: { metadata, spec: { any: "thing", nested: { list: [1, 2] } } } };
}

const THEIRS: readonly Theirs[] = [
  theirs("security.istio.io/v1", "PeerAuthentication", "peerauthentications"),
  theirs("networking.istio.io/v1", "VirtualService", "virtualservices"),
  theirs("telemetry.istio.io/v1", "Telemetry", "telemetries"),
  theirs("cilium.io/v2", "CiliumNetworkPolicy", "ciliumnetworkpolicies"),
  theirs("cilium.io/v2", "CiliumEndpoint", "ciliumendpoints"),
];

async function define(client: KubeClient, { ref }: Theirs): Promise<void> {
  const { group, version, plural, kind } = ref;
  const definition = {
    metadata: { name: `${plural}.${group}` },
    spec: {
      group,
      scope: "Namespaced",
      names: { plural, kind, singular: kind.toLowerCase() },
      versions: [
        {
          name: version,
          served: true,
          storage: true,
          schema: { openAPIV3Schema: { type: "object", "x-kubernetes-preserve-unknown-fields": true } },
        },
      ],
    },
  };
  await client.create<KubeObject>(resources.customResourceDefinitions, definition);
}

/** Tries until the API serves a kind that was just defined, or a namespace's account is there. */
async function create(client: KubeClient, ref: ResourceRef, object: KubeObject): Promise<void> {
  await until(async () => {
    try {
      await client.create(ref, object);
      return true;
    } catch (error) {
      if (isKubeError(error, "KUBE_NOT_FOUND") || isKubeError(error, "KUBE_FORBIDDEN")) return false;
      throw error;
    }
  });
}

async function createPod(client: KubeClient, metadata: NonNullable<KubeObject["metadata"]>): Promise<void> {
  const pod = { metadata, spec: { nodeName: "node1", containers: [{ name: "c", image: "none" }] } };
  await create(client, resources.pods, pod);
  const at = { name: metadata.name ?? "", namespace: metadata.namespace };
  await client.patch(resources.pods, at, {
    type: "merge",
    subresource: "status",
    body: { status: { phase: "Running" } },
  });
}

test("Istio and Cilium are named, and nothing of theirs is changed", { timeout: 200_000 }, async () => {
  const data = mkdtempSync(join(tmpdir(), "vt-neighbours-"));
  using _ = { [Symbol.dispose]: () => rmSync(data, { recursive: true, force: true }) };
  const kubeconfig = join(data, "admin.kubeconfig");
  const [apiPort, rpcPort, statusPort] = [await freePort(), await freePort(), await freePort()];
  await using api = new Role("apiserver", "--data", data, "--listen", `127.0.0.1:${apiPort}`, "--log-level", "warn");
  const connect = async (): Promise<KubeClient> =>
    new KubeClient({ config: await loadKubeConfig(kubeconfig), ...shared });
  await api.start(async () => (await (await connect()).list(resources.namespaces)).items.length >= 0);
  const client = await connect();

  await client.create(resources.nodes, { metadata: { name: "node1" } });
  const labels = { "istio-injection": "enabled", "istio.io/rev": "default" };
  for (const metadata of [{ name: "veil-system" }, { name: "istio-system" }, { name: "shop", labels }]) {
    await client.create(resources.namespaces, { metadata });
  }
  for (const one of THEIRS) {
    await define(client, one);
    await create(client, one.ref, one.object);
  }
  for (const namespace of ["shop", "veil-system"]) {
    await client.create(resources.configMaps, {
      metadata: { name: BUNDLE, namespace, labels: { "istio.io/config": "true" } },
      data: { "root-cert.pem": "Istio's own" },
    });
  }
  await client.create(resources.configMaps, {
    metadata: { name: "cilium-config", namespace: "kube-system" },
    data: { "enable-wireguard": "true", "cni-exclusive": "true" },
  });
  await createPod(client, { name: "istiod-1", namespace: "istio-system", labels: { app: "istiod" } });
  await createPod(client, { name: "cilium-1", namespace: "kube-system", labels: { "k8s-app": "cilium" } });
  await createPod(client, { name: "own", namespace: "veil-system", labels: { app: "veil-controller" } });

  const look = async (): Promise<string> => {
    const all: KubeObject[] = [];
    for (const { ref } of THEIRS) all.push(...(await client.list(ref)).items);
    for (const [ref, name, namespace] of [
      [resources.configMaps, BUNDLE, "shop"],
      [resources.configMaps, BUNDLE, "veil-system"],
      [resources.configMaps, "cilium-config", "kube-system"],
      [resources.namespaces, "shop", undefined],
      [resources.pods, "istiod-1", "istio-system"],
      [resources.pods, "cilium-1", "kube-system"],
    ] as const) {
      all.push((await client.find<KubeObject>(ref, { name, namespace })) ?? assert.fail(name));
    }
    return JSON.stringify(all.map(({ metadata }) => [metadata?.name, metadata?.uid, metadata?.resourceVersion]));
  };
  const before = await look();

  const listens = ["--listen", `127.0.0.1:${rpcPort}`, "--metrics-listen", `127.0.0.1:${statusPort}`];
  await using controller = new Role("controller", "--kubeconfig", kubeconfig, "--pod-name", "own", ...listens);
  const page = (path: string): Promise<Response> => fetch(`http://127.0.0.1:${statusPort}${path}`);
  await controller.start(async () => (await page("/healthz/ready")).ok);

  const named = (await (await page("/neighbours")).json()) as { name: string; pods: string[] }[];
  const found = named.map(({ name, pods }) => `${name}: ${pods.join()}`);
  assert.deepEqual(found.toSorted(), ["Cilium: kube-system/cilium-1", "Istio: istio-system/istiod-1"]);
  const warnings = async (reason: string): Promise<string[]> =>
    (await client.list(resources.events, { namespace: "veil-system" })).items
      .filter((event) => event.reason === reason && event.involvedObject.name === "own")
      .map(({ message = "" }) => message);
  const told = async (): Promise<string[]> =>
    (await warnings("VeilNotAlone")).map((message) => message.split(" is on ")[0] ?? "").toSorted();
  await until(async () => (await told()).length === 2);
  assert.deepEqual(await told(), ["Cilium", "Istio"]);
  // It has done its work: the roots that its agents ask for are beside theirs.
  const bundle = async (name: string, namespace: string): Promise<string | undefined> =>
    (await client.find(resources.configMaps, { name, namespace }))?.data?.["root-cert.pem"];
  await until(async () => (await bundle(OWN_BUNDLE, "veil-system"))?.includes("BEGIN CERTIFICATE") === true);
  await until(async () => (await bundle(BUNDLE, "istio-system")) !== undefined);
  await until(async () => (await warnings("VeilTrustBundle")).length === 1);
  assert.match(
    (await warnings("VeilTrustBundle"))[0] ?? "",
    /istio-ca-root-cert is somebody else's.*veil-ca-root-cert/,
  );
  assert.equal(await look(), before, "what is theirs is as it was");
  assert.equal(await bundle(OWN_BUNDLE, "shop"), undefined, "who needs it there is told the other name");
});
