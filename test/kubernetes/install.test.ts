import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, describe, it } from "node:test";
import { findWords, readTls, tcpStreams } from "#capture";
import { readValues, renderInstallation } from "#install";
import { resources, type Pod } from "#kube";
import { DATAPLANE_MODE_LABEL } from "#model/enrol-labels";
import { RawClient } from "../conformance/apiserver-world.ts";
import { eventually, run, VEIL } from "../netns/harness.ts";
import { startCluster, type TestCluster } from "./cluster.ts";
import { BUSYBOX_IMAGE } from "./images.ts";
import { assertRights } from "./role-rights.ts";
import { CHART, helm, readmeLines, rolledOut, VEIL_NAMESPACE, type ReadmeLines } from "./veil.ts";

/** Words that only the test's own pods say. */
const QUESTION = "a-question-about-green-umbrellas";
const ANSWER = "an-answer-about-green-umbrellas";
const REDIRECTION = "ambient.istio.io/redirection";
const TUNNEL = 15_008;

interface Named {
  readonly metadata: { readonly name: string };
}

interface Place {
  readonly namespace: string;
  readonly name: string;
  readonly node: string;
}

/** A pod that answers HTTP; with `first` its first process asks that URL before anything else, and keeps what it got in /www/first. */
function podOf({ namespace, name, node }: Place, first?: string, annotations: Record<string, string> = {}): object {
  const ask = first === undefined ? "" : `timeout 20 wget -q -O /www/first '${first}' || echo refused >/www/first;`;
  const command = ["sh", "-c", `mkdir /www; echo ${ANSWER} >/www/index.html; ${ask} exec httpd -f -p 8080 -h /www`];
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { namespace, name, labels: { app: name }, annotations },
    spec: {
      nodeName: node,
      terminationGracePeriodSeconds: 0,
      containers: [
        {
          name: "main",
          image: BUSYBOX_IMAGE,
          command,
          readinessProbe: { httpGet: { path: "/", port: 8080 }, periodSeconds: 1 },
        },
      ],
    },
  };
}

function namespaceOf(name: string, labels: Record<string, string> = {}): object {
  return { apiVersion: "v1", kind: "Namespace", metadata: { name, labels } };
}

describe("Veil on a cluster", () => {
  let cluster: TestCluster;
  let readme: ReadmeLines;
  before(async () => {
    cluster = await startCluster();
    readme = await readmeLines(cluster);
    await cluster.apply([
      namespaceOf("shop"),
      namespaceOf("plain"),
      namespaceOf("older", { [DATAPLANE_MODE_LABEL]: "ambient" }),
      podOf({ namespace: "shop", name: "ledger", node: "node1" }),
      podOf({ namespace: "shop", name: "customer", node: "node2" }),
      podOf({ namespace: "plain", name: "board", node: "node1" }),
      podOf({ namespace: "plain", name: "reader", node: "node2" }),
      podOf({ namespace: "older", name: "than-veil", node: "node2" }),
    ]);
    for (const name of ["ledger", "customer"]) await cluster.readyPod("shop", name);
    for (const name of ["board", "reader"]) await cluster.readyPod("plain", name);
    await cluster.readyPod("older", "than-veil");
    const notes = await readme.run("helm install");
    assert.match(
      notes,
      /kubectl -n veil-system rollout status [^]*helm -n default test veil\n[^]*kubectl label namespace/,
    );
    await readme.run("kubectl -n veil-system rollout status");
  });
  after(() => cluster?.[Symbol.asyncDispose]());

  const addressOf = async (namespace: string, name: string): Promise<string> =>
    (await cluster.readyPod(namespace, name)).status?.podIP ?? "";
  const urlOf = async (namespace: string, name: string): Promise<string> =>
    `http://${await addressOf(namespace, name)}:8080/?${QUESTION}`;
  const ask = async (namespace: string, name: string, url: string): Promise<string> => {
    const { code, stdout, stderr } = await cluster.execPod(namespace, name, "timeout", "20", "wget", "-qO-", url);
    assert.equal(code, 0, `${namespace}/${name} got nothing from ${url}: ${stderr}`);
    return stdout.trim();
  };
  const enrolled = (namespace: string, name: string): Promise<Pod> =>
    eventually(`${namespace}/${name} to be enrolled`, async () => {
      const pod = await cluster.readyPod(namespace, name);
      return pod.metadata?.annotations?.[REDIRECTION] === "enabled" ? pod : undefined;
    });

  it("passes its own test, and its policies of admission are understood", async () => {
    const said = await helm(cluster, "test", "veil");
    assert.match(said, /Phase: +Succeeded/);
    const { items } = JSON.parse(await cluster.kubectl("get", "validatingadmissionpolicies", "-o", "json")) as {
      items: { metadata: { name: string }; status?: { typeChecking?: { expressionWarnings?: unknown } } }[];
    };
    const warnings = items.map(({ metadata, status }) => [metadata.name, status?.typeChecking?.expressionWarnings]);
    assert.deepEqual(warnings, [
      ["veil-agent-own-node", undefined],
      ["veil-redirection", undefined],
    ]);
  });

  it("enrols pods that were there before it, and whose labels ask for it", async () => {
    await enrolled("older", "than-veil");
  });

  it("enrols by a label pods that run, and what they say is read by nobody between the nodes", async () => {
    await readme.run("kubectl label namespace");
    for (const name of ["ledger", "customer"]) await enrolled("shop", name);
    assert.match(await readme.run("kubectl get pods"), /^customer +enabled\nledger +enabled$/m);
    await using capture = await cluster.captureNode("node1", { filter: "tcp" });
    for (let round = 0; round < 5; round++) {
      assert.equal(await ask("shop", "customer", await urlOf("shop", "ledger")), ANSWER);
      assert.equal(await ask("plain", "reader", await urlOf("plain", "board")), ANSWER);
    }
    const packets = await capture.stop();
    const [ledger, board] = [await addressOf("shop", "ledger"), await addressOf("plain", "board")];
    const shown = (ip: string) =>
      findWords(packets, [QUESTION, ANSWER]).filter(({ packet }) =>
        [packet.source, packet.destination].map(String).includes(ip),
      );
    assert.ok(shown(board).length > 0, "the capture finds the words of the pair that is in clear");
    assert.deepEqual(shown(ledger), []);
    const streams = tcpStreams(packets);
    const tunnels = streams.filter(({ from }) => from === `${ledger}:${TUNNEL}`);
    assert.ok(tunnels.some((stream) => readTls(stream).version === "TLS 1.3"));
    const others = streams.filter(({ to }) => to.startsWith(`${ledger}:`) && to !== `${ledger}:${TUNNEL}`);
    assert.deepEqual(
      others.map(({ to }) => to),
      [],
    );
  });

  it("lets the first process of a pod start when its first packet is protected", async () => {
    await using capture = await cluster.captureNode("node1", { filter: "tcp" });
    const names = ["early1", "early2", "early3"];
    const places = names.map((name) => ({ namespace: "shop", name, node: "node2" }));
    const url = await urlOf("shop", "ledger");
    const twin = { namespace: "plain", name: "early", node: "node2" };
    await cluster.apply([...places.map((place) => podOf(place, url)), podOf(twin, await urlOf("plain", "board"))]);
    for (const { namespace, name } of [...places, twin]) {
      await cluster.readyPod(namespace, name);
      const { stdout } = await cluster.execPod(namespace, name, "cat", "/www/first");
      assert.equal(stdout.trim(), ANSWER, `${namespace}/${name}`);
    }
    const packets = await capture.stop();
    const plain = await addressOf(twin.namespace, twin.name);
    const sources = new Set(findWords(packets, [QUESTION]).map(({ packet }) => String(packet.source)));
    assert.deepEqual([...sources], [plain], "the capture finds the twin's question, and no other");
  });

  it("leaves pods enrolled when somebody deletes the agents' DaemonSet, holds new enrolled ones, and no others", async () => {
    await cluster.kubectl("-n", VEIL_NAMESPACE, "delete", "daemonset", "veil-agent");
    await cluster.readyPods(VEIL_NAMESPACE, "app=veil-agent", 0);
    await cluster.apply([
      podOf({ namespace: "shop", name: "held", node: "node2" }),
      podOf({ namespace: "plain", name: "free", node: "node2" }),
    ]);
    await cluster.readyPod("plain", "free");
    const reason = await eventually("the reason why the pod is held", async () => {
      const { items } = await cluster.client.list(resources.events, { namespace: "shop" });
      return items.find((event) => event.involvedObject.name === "held" && event.reason === "FailedCreatePodSandBox")
        ?.message;
    });
    assert.match(reason, /type="veil-cni" failed \(add\)/);
    const held = await cluster.client.find(resources.pods, { namespace: "shop", name: "held" });
    assert.equal(held?.status?.phase, "Pending");
    await using capture = await cluster.captureNode("node1", { filter: "tcp" });
    for (const name of ["ledger", "customer"]) await enrolled("shop", name);
    assert.equal(await ask("shop", "customer", await urlOf("shop", "ledger")), ANSWER);
    assert.equal(await ask("plain", "free", await urlOf("plain", "board")), ANSWER);
    const sources = new Set(findWords(await capture.stop(), [QUESTION]).map(({ packet }) => String(packet.source)));
    assert.deepEqual([...sources], [await addressOf("plain", "free")], "the capture finds the twin's question alone");
    await helm(cluster, "upgrade", "veil", CHART, "--reuse-values");
    await rolledOut(cluster);
    await enrolled("shop", "held");
    assert.equal(await ask("shop", "held", await urlOf("shop", "ledger")), ANSWER);
  });

  it("has nothing that the doctor finds wrong, in the cluster or on its nodes, and a policy against tunnels is found", async () => {
    const clusterSays = async (): Promise<string> =>
      wrongOf((await run([VEIL, "doctor", "--kubeconfig", cluster.kubeconfig, "-o", "json"])).stdout);
    const until = (expected: RegExp, say = clusterSays): Promise<boolean> =>
      eventually(`the doctor to say ${expected.source}`, async () => {
        const said = await say();
        if (!expected.test(said)) throw new Error(said);
        return true;
      });
    await until(/^$/);
    const node = ["node", "/opt/veil/dist/main/veil.js", "doctor", "--node", "-o", "json"];
    for (const agent of await cluster.readyPods(VEIL_NAMESPACE, "app=veil-agent", 2)) {
      const name = agent.metadata?.name ?? "";
      await until(/^$/, async () => wrongOf((await cluster.execPod(VEIL_NAMESPACE, name, ...node)).stdout));
    }
    const ingress = [{ from: [{ podSelector: { matchLabels: { app: "customer" } } }], ports: [{ port: 8080 }] }];
    const spec = { podSelector: { matchLabels: { app: "ledger" } }, ingress };
    const metadata = { namespace: "shop", name: "ledger" };
    await cluster.apply([{ apiVersion: "networking.k8s.io/v1", kind: "NetworkPolicy", metadata, spec }]);
    await until(
      /^problem: NetworkPolicy shop\/ledger lets shop\/customer call shop\/ledger, but not on TCP 15008[^\n]*$/,
    );
    await cluster.kubectl("-n", "shop", "delete", "networkpolicy", "ledger");
    await until(/^$/);
  });

  it("gives each role the rights of the chart's list, and no other, as the API tells it", () => assertRights(cluster));

  it("lets an agent mark pods of its own node alone, and nobody else mark any", async () => {
    const agents = await cluster.readyPods(VEIL_NAMESPACE, "app=veil-agent", 2);
    const agent = agents.find((pod) => pod.spec?.nodeName === "node2");
    const bound = ["--bound-object-kind=Pod", `--bound-object-name=${agent?.metadata?.name}`];
    const account = ["-n", VEIL_NAMESPACE, "create", "token", "veil-agent", ...bound];
    const token = (await cluster.kubectl(...account, `--bound-object-uid=${agent?.metadata?.uid}`)).trim();
    const kubeconfig = readFileSync(cluster.kubeconfig, "utf8");
    const asAgent = new RawClient(kubeconfig, { token });
    const unbound = (await cluster.kubectl("-n", VEIL_NAMESPACE, "create", "token", "veil-agent")).trim();
    const asNoNode = new RawClient(kubeconfig, { token: unbound });
    const asAdministrator = new RawClient(kubeconfig);
    const marked = (value: string | null): object => ({ annotations: { [REDIRECTION]: value } });
    const change = async (as: RawClient, pod: string, metadata: object): Promise<unknown[]> => {
      const request = { type: "application/merge-patch+json", body: { metadata } };
      const { code, body } = await as.call("PATCH", `/api/v1/namespaces/shop/pods/${pod}`, request);
      return [code, /ValidatingAdmissionPolicy '([a-z-]+)'/.exec(body.message)?.[1]];
    };
    assert.deepEqual(await change(asAgent, "customer", marked("seen")), [200, undefined]);
    assert.deepEqual(await change(asAgent, "customer", marked("enabled")), [200, undefined]);
    const refused = [403, "veil-agent-own-node"];
    assert.deepEqual(await change(asAgent, "ledger", marked(null)), refused);
    assert.deepEqual(await change(asAgent, "customer", { annotations: { other: "1" } }), refused);
    assert.deepEqual(await change(asAgent, "customer", { labels: { "istio.io/dataplane-mode": "none" } }), refused);
    assert.deepEqual(await change(asNoNode, "customer", marked("enabled")), refused);
    assert.deepEqual(await change(asAdministrator, "customer", marked(null)), [403, "veil-redirection"]);
    asAgent.close();
    asNoNode.close();
    asAdministrator.close();
  });

  it("lets an agent publish keys of tunnels, and report on them, for its own node alone", async () => {
    const names = ["veil-tunnels-own-node", "veil-agent-wireguard"];
    const rendered = renderInstallation(readValues({ wireguard: { mode: "on" } }), "any") as Named[]; // as the chart has them
    const parts = rendered.filter(({ metadata }) => names.includes(metadata.name));
    assert.equal(parts.length, 4);
    await cluster.apply(parts);
    const [agent] = await cluster.readyPods(VEIL_NAMESPACE, "app=veil-agent", 2);
    const own = agent?.spec?.nodeName ?? "";
    const bound = [`--bound-object-name=${agent?.metadata?.name}`, `--bound-object-uid=${agent?.metadata?.uid}`];
    const account = ["-n", VEIL_NAMESPACE, "create", "token", "veil-agent", "--bound-object-kind=Pod", ...bound];
    const as = new RawClient(readFileSync(cluster.kubeconfig, "utf8"), {
      token: (await cluster.kubectl(...account)).trim(),
    });
    const keys = "/apis/cilium.io/v2/ciliumnodes";
    const reports = "/apis/veil.dev/v1alpha1/wireguardnodes";
    const kinds: Readonly<Record<string, object>> = {
      [keys]: { apiVersion: "cilium.io/v2", kind: "CiliumNode" },
      [reports]: { apiVersion: "veil.dev/v1alpha1", kind: "WireGuardNode" },
    };
    const make = async (path: string, name: string): Promise<number> =>
      (await as.call("POST", path, { body: { ...kinds[path], metadata: { name } } })).code;
    await eventually("the policy", async () => (await make(keys, "another")) === 403 || undefined); // it takes a moment
    assert.deepEqual(
      [await make(keys, own), await make(reports, own), await make(reports, "another")],
      [201, 201, 403],
    );
    await cluster.apply([{ apiVersion: "cilium.io/v2", kind: "CiliumNode", metadata: { name: "another" } }]);
    const annotations = { "veil.dev/wireguard": "{}" };
    const change = { type: "application/merge-patch+json", body: { metadata: { annotations } } };
    const publish = async (name: string): Promise<number> => (await as.call("PATCH", `${keys}/${name}`, change)).code;
    assert.deepEqual([await publish(own), await publish("another")], [200, 403]);
    as.close();
    await cluster.kubectl("delete", "ciliumnodes,wireguardnodes", "--all");
    for (const kind of [
      "validatingadmissionpolicybinding",
      "validatingadmissionpolicy",
      "clusterrolebinding",
      "clusterrole",
    ]) {
      await cluster.kubectl("delete", kind, ...names, "--ignore-not-found");
    }
  });

  it("takes the mark off a pod that comes with it and is not enrolled", async () => {
    const liar = podOf({ namespace: "plain", name: "liar", node: "node1" }, undefined, { [REDIRECTION]: "enabled" });
    await cluster.apply([liar]);
    await eventually("the mark to go", async () => {
      const pod = await cluster.readyPod("plain", "liar");
      return pod.metadata?.annotations?.[REDIRECTION] === undefined || undefined;
    });
    assert.equal(await ask("shop", "customer", await urlOf("plain", "liar")), ANSWER);
  });

  it("goes by helm uninstall when the last connection has ended, and leaves pods in clear and nothing on the nodes", async () => {
    const ledger = await addressOf("shop", "ledger");
    const listen = "nc -ll -p 9000 -e cat </dev/null >/dev/null 2>&1 &";
    assert.equal((await cluster.execPod("shop", "ledger", "sh", "-c", listen)).code, 0);
    const talk = `(echo first; until [ -e /www/enough ]; do sleep 0.2; done; echo last) | nc ${ledger} 9000 >/www/echo`;
    const talking = cluster.execPod("shop", "customer", "sh", "-c", talk);
    const heard = async (): Promise<string> =>
      (await cluster.execPod("shop", "customer", "cat", "/www/echo")).stdout.replaceAll("\n", " ");
    await eventually("the long connection", async () => (await heard()) === "first " || undefined);

    let done = false;
    const uninstalling = readme.run("helm uninstall").finally(() => (done = true));
    await eventually("the pods to be plain", async () => {
      const pods = await cluster.readyPods("shop", "app in (ledger, customer)", 2);
      return pods.every((pod) => pod.metadata?.annotations?.[REDIRECTION] === undefined) || undefined;
    });
    assert.equal(done, false, "it waits for the connection");
    await cluster.execPod("shop", "customer", "touch", "/www/enough");
    assert.equal((await talking).code, 0);
    assert.equal(await heard(), "first last ");
    await uninstalling;

    await using capture = await cluster.captureNode("node1", { filter: "tcp" });
    await cluster.apply([podOf({ namespace: "shop", name: "after", node: "node2" })]);
    await cluster.readyPod("shop", "after");
    for (const name of ["customer", "after"]) {
      assert.equal(await ask("shop", name, await urlOf("shop", "ledger")), ANSWER);
    }
    const words = findWords(await capture.stop(), [QUESTION]);
    assert.equal(words.length, 2, "two questions in clear");
    await cluster.kubectl("-n", VEIL_NAMESPACE, "wait", "--for=delete", "pods", "--all", "--timeout=180s");
    for (const node of ["node1", "node2"]) assert.deepEqual(await leftOn(cluster, node), [], node);
    assert.deepEqual(await objectsLeft(cluster), [
      "ConfigMap istio-ca-root-cert",
      "ConfigMap kube-root-ca.crt",
      "ConfigMap veil-ca-root-cert",
      "Secret veil-ca",
      "ServiceAccount default",
    ]);
  });
});

/** What a doctor's report in JSON names, beside what is well. */
function wrongOf(report: string): string {
  const { findings } = JSON.parse(report) as { findings: { outcome: string; what: string }[] };
  const wrong = findings.filter(({ outcome }) => outcome !== "ok");
  return wrong.map(({ outcome, what }) => `${outcome}: ${what}`).join("\n");
}

/** What is not as it was before Veil: files and rules of the node, and the rules in the namespaces of its pods. */
async function leftOn(cluster: TestCluster, node: string): Promise<string[]> {
  const script = `
    ls /etc/cni/net.d | grep -v '^10-pods.conflist$'
    ls /opt/cni/bin | grep veil
    find /run/veil -mindepth 1
    nft list tables | grep veil
    for netns in /run/netns/*; do
      nsenter --net=$netns nft list ruleset
      nsenter --net=$netns ip rule | grep -vE '^(0|32766|32767):'
      nsenter --net=$netns ip route show table all | grep -v 'dev eth0\\|dev lo'
    done`;
  const { stdout } = await cluster.execNode(node, "sh", "-c", script);
  return stdout.split("\n").filter(Boolean);
}

/** What is left of the installation in the API: whatever is in its namespace, and what belongs to no namespace. */
async function objectsLeft(cluster: TestCluster): Promise<string[]> {
  const kinds =
    "pods,services,deployments,daemonsets,jobs,configmaps,secrets,serviceaccounts,roles,rolebindings,poddisruptionbudgets";
  const inside = await cluster.kubectl("-n", VEIL_NAMESPACE, "get", kinds, "-o", "json");
  const wide = await cluster.kubectl(
    "get",
    "clusterroles,clusterrolebindings,validatingadmissionpolicies",
    "-o",
    "json",
  );
  const objects = [inside, wide].flatMap(
    (text) => (JSON.parse(text) as { items: { kind: string; metadata: { name: string } }[] }).items,
  );
  const isOurs = ({ kind, metadata }: (typeof objects)[number]): boolean =>
    !/^(ClusterRole|ValidatingAdmission)/.test(kind) || metadata.name.startsWith("veil");
  return objects
    .filter(isOurs)
    .map(({ kind, metadata }) => `${kind} ${metadata.name}`)
    .toSorted();
}
