/**
 * The controller in the pods of the agents (`controller.mode: agents`): started with the arguments and the account that the rendered
 * DaemonSet gives it, on an API that enforces the rendered rules of access.
 */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { once } from "node:events";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { connect } from "node:tls";
import { createClient } from "@connectrpc/connect";
import { parse, stringify } from "yaml";
import { systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { systemRandom } from "#base/random";
import { readValues, renderInstallation, type GivenValues } from "#install";
import { isKubeError, KubeClient, loadKubeConfig, resources, type DaemonSet, type KubeObject } from "#kube";
import { Propagation } from "#proto";
import { rpcTransport } from "#rpc";
import { freePort, Role, until } from "./role-process.ts";

const shared = { clock: systemClock(), random: systemRandom, log: silentLog() };
const VEIL = "veil-system";
/** In the order in which they have to be made. */
const ACCESS = {
  ServiceAccount: resources.serviceAccounts,
  ClusterRole: resources.clusterRoles,
  ClusterRoleBinding: resources.clusterRoleBindings,
  Role: resources.roles,
  RoleBinding: resources.roleBindings,
} as const;

const rendered = (values: GivenValues): KubeObject[] => renderInstallation(readValues(values), "1.0.0") as KubeObject[];

/** Makes the rules of access what an installation with these values has. */
async function grant(client: KubeClient, values: GivenValues): Promise<void> {
  const objects = rendered(values);
  for (const [kind, ref] of Object.entries(ACCESS)) {
    for (const object of objects.filter((one) => one.kind === kind)) {
      const { name = "", namespace } = object.metadata ?? {};
      if ((await client.find(ref, { name, namespace })) === undefined) await client.create<KubeObject>(ref, object);
      else await client.patch<KubeObject>(ref, { name, namespace }, { type: "merge", body: object });
    }
  }
}

/** A node's agent pod, and what a container of it asks the API with. */
async function agentPod(
  client: KubeClient,
  { admin, name, ip }: { admin: string; name: string; ip: string },
): Promise<{ kubeconfig: string; nodeToken: string }> {
  const metadata = { name, namespace: VEIL, labels: { app: "veil-agent" } };
  await client.create(resources.nodes, { metadata: { name: `node-of-${name}` } });
  const spec = {
    nodeName: `node-of-${name}`,
    serviceAccountName: "veil-agent",
    containers: [{ name: "c", image: "none" }],
  };
  const pod = await client.create(resources.pods, { metadata, spec });
  const status = { phase: "Running", podIP: ip, podIPs: [{ ip }], conditions: [{ type: "Ready", status: "True" }] };
  const at = { name, namespace: VEIL };
  await client.patch(resources.pods, at, { type: "merge", body: { status }, subresource: "status" });
  const boundObjectRef = { kind: "Pod", apiVersion: "v1", name, uid: pod.metadata?.uid ?? "" };
  const { token } = await client.createToken(VEIL, "veil-agent", { boundObjectRef });
  const config = parse(readFileSync(admin, "utf8")) as { users: { user: object }[] };
  for (const one of config.users) one.user = { token };
  const kubeconfig = `${admin}.${name}`;
  writeFileSync(kubeconfig, stringify(config));
  const forController = await client.createToken(VEIL, "veil-agent", { audiences: ["istio-ca"], boundObjectRef });
  return { kubeconfig, nodeToken: forController.token };
}

/** The arguments of the controller's container, at another place than a node's own. */
function argsOf(values: GivenValues, podName: string, more: readonly string[]): string[] {
  const agents = rendered(values).find(({ kind, metadata }) => kind === "DaemonSet" && metadata?.name === "veil-agent");
  const containers = (agents as DaemonSet).spec?.template.spec?.containers ?? []; // found by its kind
  const args = containers.find(({ name }) => name === "controller")?.args ?? [];
  assert.equal(args[0], "controller");
  return [...args.map((word) => word.replace("$(POD_NAME)", podName)), ...more];
}

/** Of the certificate of a server on loopback. */
async function lifeHours(port: number): Promise<number> {
  const socket = connect({ host: "127.0.0.1", port, rejectUnauthorized: false });
  await once(socket, "secureConnect");
  const { valid_from: from, valid_to: to } = socket.getPeerCertificate();
  socket.destroy();
  return (Date.parse(to) - Date.parse(from)) / 3_600_000;
}

test(
  "in the agents' pods: with their account each node is served by its own, one writes, and the others know each other",
  { timeout: 300_000 },
  async () => {
    const data = mkdtempSync(join(tmpdir(), "vt-agents-"));
    using _ = { [Symbol.dispose]: () => rmSync(data, { recursive: true, force: true }) };
    const admin = join(data, "admin.kubeconfig");
    const apiListen = `127.0.0.1:${await freePort()}`;
    await using api = new Role("apiserver", "--data", data, "--listen", apiListen, "--log-level", "warn");
    const clientOf = async (kubeconfig: string): Promise<KubeClient> =>
      new KubeClient({ config: await loadKubeConfig(kubeconfig), ...shared });
    await api.start(async () => (await (await clientOf(admin)).list(resources.namespaces)).items.length >= 0);
    const client = await clientOf(admin);
    for (const name of [VEIL, "shop"]) await client.create(resources.namespaces, { metadata: { name } });

    // With a Deployment, an agent's account can neither read the authority's keys nor take the lease.
    const agents = { controller: { mode: "agents" }, ca: { workloadLifeHours: 2 } };
    await grant(client, {});
    const nodes = [
      { name: "agent-1", ip: "127.0.0.1" },
      { name: "agent-2", ip: "127.0.0.2" },
    ] as const;
    const [first, second] = [
      await agentPod(client, { admin, ...nodes[0] }),
      await agentPod(client, { admin, ...nodes[1] }),
    ];
    const asAgent = await clientOf(first.kubeconfig);
    for (const [ref, name] of [
      [resources.secrets, "veil-ca"],
      [resources.leases, "veil-controller"],
    ] as const) {
      const read = asAgent.find<KubeObject>(ref, { name, namespace: VEIL });
      await assert.rejects(read, (error) => isKubeError(error, "KUBE_FORBIDDEN"));
    }
    await grant(client, agents);

    const [port, statusPort] = [await freePort(), await freePort()];
    const roleOf = ({ name, ip }: (typeof nodes)[number], kubeconfig: string): Role => {
      const listens = ["--listen", `${ip}:${port}`, "--metrics-listen", `${ip}:${statusPort}`];
      return new Role(...argsOf(agents, name, ["--kubeconfig", kubeconfig, ...listens]));
    };
    const page = async (ip: string, path: string): Promise<string> => {
      const answer = await fetch(`http://${ip}:${statusPort}${path}`);
      return answer.ok ? answer.text() : "";
    };
    const leads = async (ip: string): Promise<boolean> =>
      /^veil_controller_leading 1$/m.test(await page(ip, "/metrics"));
    await using one = roleOf(nodes[0], first.kubeconfig);
    await using two = roleOf(nodes[1], second.kubeconfig);
    await one.start(async () => (await page("127.0.0.1", "/healthz/ready")) !== "");
    await two.start(async () => (await page("127.0.0.2", "/healthz/ready")) !== "");
    await until(() => leads("127.0.0.1"));
    assert.equal(await leads("127.0.0.2"), false);

    const bundleIn = async (namespace: string): Promise<string | undefined> =>
      (await client.find(resources.configMaps, { name: "istio-ca-root-cert", namespace }))?.data?.["root-cert.pem"];
    await until(async () => (await bundleIn("shop")) !== undefined);
    const roots = (await bundleIn("shop")) ?? "";
    assert.equal(Math.round(await lifeHours(port)), 2, "as the value says");
    const propagation = createClient(
      Propagation,
      rpcTransport({
        target: `https://127.0.0.2:${port}`,
        serverName: `veil-controller.${VEIL}.svc`,
        roots: () => roots,
        token: async () => second.nodeToken,
      }),
    );
    const behind = async (): Promise<string> =>
      (
        await propagation.await({ uid: "Kubernetes//Pod/shop/none", hbone: false, timeoutMs: 1_000 })
      ).nodesBehind.join();
    await until(async () => (await behind()) === "");

    await one.kill("SIGTERM");
    await until(async () => leads("127.0.0.2"));
    await client.create(resources.namespaces, { metadata: { name: "later" } });
    await until(async () => (await bundleIn("later")) === roots);
    assert.equal(await behind(), "agent-1", "found by the agents' label, and not to be reached");
  },
);
