import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { after, before, test } from "node:test";
import { resources, type Pod } from "#kube";
import type { Asked } from "./ca-ask.ts";
import { eventually, must, startLab, type TestLab } from "./harness.ts";

// The story of a broken node, on a whole lab: what may be had with a node's credentials, and what not.

const ASK = fileURLToPath(new URL("ca-ask.ts", import.meta.url));
const idOf = (account: string): string => `spiffe://cluster.local/ns/vt-ca/sa/${account}`;
let lab: TestLab;

before(async () => {
  lab = await startLab("ca");
  const { client } = lab;
  await client.create(resources.namespaces, { metadata: { name: "vt-ca" } });
  for (const [name, nodeName] of [
    ["here", "node1"],
    ["there", "node2"],
  ] as const) {
    const metadata = { name, namespace: "vt-ca" };
    await client.create(resources.serviceAccounts, { metadata });
    const containers = [{ name: "c", image: "none", command: ["sleep", "1000"] }];
    await client.create(resources.pods, { metadata, spec: { nodeName, serviceAccountName: name, containers } });
  }
  await Promise.all([lab.readyPod("vt-ca", "here"), lab.readyPod("vt-ca", "there")]);
});
after(() => lab[Symbol.asyncDispose]());

/** A token of a pod's account; with `bound: false` not bound to the pod. */
async function tokenOf(pod: Pod, options: { audience?: string; bound?: boolean } = {}): Promise<string> {
  const { namespace = "", name = "", uid = "" } = pod.metadata ?? {};
  const boundObjectRef = { kind: "Pod", apiVersion: "v1", name, uid };
  const { token } = await lab.client.createToken(namespace, pod.spec?.serviceAccountName ?? "default", {
    audiences: [options.audience ?? "istio-ca"],
    ...(options.bound === false ? {} : { boundObjectRef }),
  });
  return token;
}

async function agentOn(node: string): Promise<Pod> {
  return eventually(`an agent on ${node}`, async () => {
    const { items } = await lab.client.list(resources.pods, {
      namespace: "veil-system",
      labelSelector: "app=veil-agent",
    });
    return items.find(({ spec, metadata, status }) => {
      return spec?.nodeName === node && metadata?.deletionTimestamp === undefined && status?.phase === "Running";
    });
  });
}

interface Request {
  readonly token: string;
  readonly identity: string;
  readonly csrFor?: string;
}

/** Sends requests from within `node`. */
async function ask(node: string, requests: readonly Request[]): Promise<Asked[]> {
  const controller = await lab.readyPodOf("veil-system", "app=veil-controller");
  const { data = {} } = await lab.client.get(resources.configMaps, "istio-ca-root-cert", "veil-system");
  const target = `https://${controller.status?.podIP}:15012`;
  const netns = lab.nodes.find(({ name }) => name === node)?.netns ?? "";
  const command = ["ip", "netns", "exec", netns, process.execPath, "--conditions=veil-source", ASK];
  const input = JSON.stringify({ target, roots: data["root-cert.pem"], requests });
  return JSON.parse(await must(command, { input, timeoutMs: 200_000 })) as Asked[];
}

const outcome = ({ uris, refusal }: Asked): unknown => uris ?? refusal;

test("a node gets the identities of its own pods and of no others, whatever the request names", async () => {
  for (const [node, own, foreign] of [
    ["node1", "here", "there"],
    ["node2", "there", "here"],
  ] as const) {
    const token = await tokenOf(await agentOn(node));
    const answers = await ask(node, [
      { token, identity: idOf(own) },
      { token, identity: idOf(foreign) },
      { token, identity: idOf(foreign), csrFor: idOf(own) },
      { token, identity: idOf(own), csrFor: idOf(foreign) },
      { token, identity: "spiffe://cluster.local/ns/kube-system/sa/admin" },
      { token, identity: "spiffe://cluster.local/ns/veil-system/sa/veil-controller", csrFor: idOf(own) },
      { token, identity: `spiffe://evil.example/ns/vt-ca/sa/${own}` },
    ]);
    const controllerHere = answers[5]?.uris !== undefined; // one of the two nodes runs the controller
    assert.deepEqual(answers.map(outcome), [
      [idOf(own)],
      "CA_NOT_ON_NODE",
      "CA_NOT_ON_NODE",
      [idOf(own)],
      "CA_NOT_ON_NODE",
      controllerHere ? ["spiffe://cluster.local/ns/veil-system/sa/veil-controller"] : "CA_NOT_ON_NODE",
      "CA_WRONG_TRUST_DOMAIN",
    ]);
  }
});

test("a token counts for the node that it names, not for the one that it is sent from", async () => {
  const token = await tokenOf(await agentOn("node1"));
  const answers = await ask("node2", [
    { token, identity: idOf("there") },
    { token, identity: idOf("here") },
  ]);
  assert.deepEqual(answers.map(outcome), ["CA_NOT_ON_NODE", [idOf("here")]]);
});

test("every other token gets nothing, each with its own code", async () => {
  const agent = await agentOn("node1");
  const pod = await lab.readyPod("vt-ca", "here");
  const good = await tokenOf(agent);
  const [head, , signature] = good.split(".");
  const claims = JSON.parse(Buffer.from(good.split(".")[1] ?? "", "base64url").toString()) as Record<string, unknown>; // ours
  claims["kubernetes.io"] = { ...(claims["kubernetes.io"] as object), node: { name: "node2", uid: "x" } };
  const forged = [head, Buffer.from(JSON.stringify(claims)).toString("base64url"), signature].join(".");
  const identity = idOf("here");
  const answers = await ask("node1", [
    { token: await tokenOf(pod), identity },
    { token: await tokenOf(agent, { audience: "other" }), identity },
    { token: await tokenOf(agent, { bound: false }), identity },
    { token: forged, identity },
    { token: "nonsense", identity },
    { token: good, identity },
  ]);
  assert.deepEqual(answers.map(outcome), [
    "CA_NOT_NODE_ACCOUNT",
    "CA_TOKEN_AUDIENCE",
    "CA_TOKEN_NOT_BOUND",
    "CA_TOKEN_REJECTED",
    "CA_TOKEN_MALFORMED",
    [identity],
  ]);
});

test("an identity leaves a node with its last pod, and an agent's token dies with its pod", async () => {
  const agent = await agentOn("node2");
  const token = await tokenOf(agent);
  await lab.kubectl("-n", "vt-ca", "delete", "pod", "there", "--grace-period=0", "--force");
  await eventually("the node to lose the identity", async () => {
    const [answer] = await ask("node2", [{ token, identity: idOf("there") }]);
    return answer?.refusal === "CA_NOT_ON_NODE" ? true : undefined;
  });
  await lab.kubectl("-n", "veil-system", "delete", "pod", agent.metadata?.name ?? "", "--grace-period=0", "--force");
  await eventually("the token to be refused", async () => {
    const [answer] = await ask("node2", [{ token, identity: idOf("there") }]);
    return answer?.refusal === "CA_TOKEN_REJECTED" ? true : undefined;
  });
});

test("a damaged authority is never replaced: the controller says what is wrong, and serves again once it is restored", async () => {
  const at = { namespace: "veil-system", name: "veil-ca" };
  const before = await lab.client.get(resources.secrets, at.name, at.namespace);
  const body = { data: { "ca-key.pem": Buffer.from("damaged").toString("base64") } };
  const damaged = await lab.client.patch(resources.secrets, at, { type: "merge", body });
  const old = await lab.readyPodOf("veil-system", "app=veil-controller");
  await lab.kubectl("-n", at.namespace, "delete", "pod", old.metadata?.name ?? "", "--grace-period=0", "--force");
  await eventually("the new controller to say why it does not start", async () => {
    const { items } = await lab.client.list(resources.pods, {
      namespace: at.namespace,
      labelSelector: "app=veil-controller",
    });
    const successor = items.find(({ metadata }) => metadata?.uid !== old.metadata?.uid);
    const name = successor?.metadata?.name ?? "";
    const logs = await Promise.all(
      [true, false].map((previous) => lab.client.logs({ name, namespace: at.namespace, previous }).catch(() => "")),
    );
    return /CA_UNREADABLE|ca-key\.pem/.test(logs.join("")) ? true : undefined;
  });
  const kept = await lab.client.get(resources.secrets, at.name, at.namespace);
  assert.equal(kept.metadata?.resourceVersion, damaged.metadata?.resourceVersion, "nobody wrote to the Secret");
  await lab.client.patch(resources.secrets, at, { type: "merge", body: { data: before.data ?? {} } });
  const token = await tokenOf(await agentOn("node1"));
  await eventually(
    "certificates under the same root",
    async () => {
      const [answer] = await ask("node1", [{ token, identity: idOf("here") }]);
      return answer?.uris?.[0] === idOf("here") ? true : undefined;
    },
    120_000,
  );
  const restored = await lab.client.get(resources.secrets, at.name, at.namespace);
  assert.equal(restored.data?.["root-cert.pem"], before.data?.["root-cert.pem"]);
});

test("an authority that is lost for good is made anew, and every workload gets a certificate under the new root", async () => {
  const identity = idOf("here");
  await lab.kubectl("label", "namespace", "vt-ca", "io.cilium/mtls-enabled=true");
  const agent = await agentOn("node1");
  const certificates = async (): Promise<number> => {
    const log = await lab.client.logs({ name: agent.metadata?.name ?? "", namespace: "veil-system" });
    return log.split("\n").filter((line) => line.includes("got a certificate") && line.includes(identity)).length;
  };
  await eventually("a certificate of the enrolled pod", async () => ((await certificates()) > 0 ? true : undefined));
  const count = await certificates();
  const before = await lab.client.get(resources.configMaps, "istio-ca-root-cert", "vt-ca");
  await lab.kubectl("-n", "veil-system", "delete", "secret", "veil-ca");
  const old = await lab.readyPodOf("veil-system", "app=veil-controller");
  await lab.kubectl("-n", "veil-system", "delete", "pod", old.metadata?.name ?? "", "--grace-period=0", "--force");
  const bundle = await eventually("a new trust bundle", async () => {
    const { data } = await lab.client.get(resources.configMaps, "istio-ca-root-cert", "vt-ca");
    return data?.["root-cert.pem"] === before.data?.["root-cert.pem"] ? undefined : data?.["root-cert.pem"];
  });
  assert.equal(bundle.split("BEGIN CERTIFICATE").length - 1, 1, "the lost root is not trusted any more");
  await eventually("a certificate under the new root", async () => ((await certificates()) > count ? true : undefined));
});
