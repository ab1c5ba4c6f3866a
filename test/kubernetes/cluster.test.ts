import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { resources, type Pod } from "#kube";
import { eventually, run } from "../netns/harness.ts";
import { startCluster, type TestCluster } from "./cluster.ts";
import { BUSYBOX_IMAGE } from "./images.ts";

/** A Deployment on both nodes, whose pods answer HTTP with their name, and its Service. */
const WEB = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}
      containers:
      - name: web
        image: ${BUSYBOX_IMAGE}
        command: [sh, -c, 'mkdir /www; hostname >/www/index.html; echo "serving as $(hostname)"; exec httpd -f -v -p 8080 -h /www']
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`;

describe("the test cluster", () => {
  let cluster: TestCluster;
  let pods: readonly Pod[] = [];
  before(async () => {
    cluster = await startCluster();
    await cluster.apply(WEB);
    pods = await cluster.readyPods("default", "app=web", 4);
  });
  after(() => cluster[Symbol.asyncDispose]());

  const nameOf = (pod: Pod | undefined): string => pod?.metadata?.name ?? "";
  const podOn = (node: string): Pod => {
    const found = pods.find((pod) => pod.spec?.nodeName === node);
    assert.ok(found, `no pod runs on ${node}`);
    return found;
  };
  const fetchFrom = async (pod: Pod, address: string): Promise<string> => {
    const wget = ["timeout", "5", "wget", "-q", "-O", "-", address];
    const { code, stdout, stderr } = await cluster.execPod("default", nameOf(pod), ...wget);
    assert.equal(code, 0, `${nameOf(pod)} got nothing from ${address}: ${stderr}`);
    return stdout.trim();
  };

  it("has two nodes of the pinned version, with a network for pods each", async () => {
    const { items } = await cluster.client.list(resources.nodes);
    const versions = items.map(({ metadata, status }) => `${metadata?.name} ${status?.nodeInfo?.kubeletVersion}`);
    assert.deepEqual(new Set(versions), new Set(["node1 v1.35.4", "node2 v1.35.4"]));
    assert.match(await cluster.kubectl("version"), /Server Version: v1\.35\.4/);
  });

  it("spreads a Deployment over both nodes", () => {
    const counts = ["node1", "node2"].map((node) => pods.filter((pod) => pod.spec?.nodeName === node).length);
    assert.deepEqual(counts, [2, 2]);
    assert.equal(new Set(pods.map((pod) => pod.status?.podIP)).size, 4, "each pod has an address of its own");
  });

  it("carries traffic between pods of one node and of two, with the pods' own addresses", async () => {
    for (const target of pods) {
      const answer = await fetchFrom(podOn("node1"), `http://${target.status?.podIP}:8080/`);
      assert.equal(answer, nameOf(target));
    }
    const log = await cluster.kubectl("logs", nameOf(podOn("node2")));
    assert.ok(log.includes(`:${podOn("node1").status?.podIP}]:`), `the server has seen the client's address: ${log}`);
  });

  it("answers at a ClusterIP from every node, with all pods in turn", async () => {
    const service = await cluster.client.find(resources.services, { namespace: "default", name: "web" });
    for (const node of ["node1", "node2"]) {
      const seen = new Set<string>();
      await eventually(`all pods to have answered ${node}`, async () => {
        seen.add(await fetchFrom(podOn(node), `http://${service?.spec?.clusterIP}/`));
        return seen.size === pods.length || undefined;
      });
    }
  });

  it("runs commands in containers and shows their logs", async () => {
    const name = nameOf(podOn("node2"));
    const { code, stdout } = await cluster.execPod("default", name, "sh", "-c", "hostname; exit 3");
    assert.deepEqual([code, stdout], [3, `${name}\n`]);
    assert.match(await cluster.kubectl("exec", name, "--", "id"), /uid=0\(root\)/);
    assert.match(await cluster.kubectl("logs", name), new RegExp(`^serving as ${name}$`, "m"));
  });

  it("gives pods tokens of their service account, bound to their node", async () => {
    const name = nameOf(podOn("node1"));
    const file = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    const { stdout: token } = await cluster.execPod("default", name, "cat", file);
    const asPod = ["--kubeconfig=/dev/null", "--certificate-authority", `${cluster.pki}/pki/ca.crt`];
    const server = /server: (\S+)/.exec(await cluster.kubectl("config", "view", "--minify"))?.[1] ?? "";
    const who = await cluster.kubectl("auth", "whoami", ...asPod, "--server", server, "--token", token, "-o", "json");
    const { status } = JSON.parse(who) as {
      status: { userInfo: { username: string; extra: Record<string, string[]> } };
    };
    assert.equal(status.userInfo.username, "system:serviceaccount:default:default");
    assert.deepEqual(status.userInfo.extra["authentication.kubernetes.io/node-name"], ["node1"]);
  });

  it("lets a node change itself and no other", async () => {
    const kubeconfig = await cluster.kubeconfigFor("system:node:node1", "system:nodes");
    const annotate = (node: string) => cluster.tryKubectl("--kubeconfig", kubeconfig, "annotate", "node", node, "a=b");
    assert.equal((await annotate("node1")).code, 0);
    const refused = await annotate("node2");
    assert.equal(refused.code, 1);
    assert.match(refused.stderr, /node 'node1' cannot read 'node2', only its own Node object/);
  });

  it("starts its API server again with everything in it, and pods go on", async () => {
    await cluster.restartApiServer();
    assert.equal((await cluster.readyPods("default", "app=web", 4)).length, 4);
    assert.equal(
      await fetchFrom(podOn("node1"), `http://${podOn("node2").status?.podIP}:8080/`),
      nameOf(podOn("node2")),
    );
  });

  it("keeps containers when their kubelet and containerd are killed", async () => {
    await cluster.node("node1").restart("kubelet");
    await cluster.node("node1").restart("containerd");
    await cluster.nodesReady();
    await eventually("the pods of node1 to be served again", async () => {
      const { code } = await cluster.execPod("default", nameOf(podOn("node1")), "true");
      return code === 0 || undefined;
    });
    const again = await cluster.readyPods("default", "app=web", 4);
    const restarts = again
      .flatMap((pod) => pod.status?.containerStatuses ?? [])
      .map(({ restartCount }) => restartCount);
    assert.deepEqual(restarts, [0, 0, 0, 0]);
  });

  it("starts the pods of a node anew that was cut off", async () => {
    const before = podOn("node2");
    await cluster.rebootNode("node2");
    const again = await eventually(
      "the pods of node2 to have started again",
      async () => {
        const pod = await cluster.readyPod("default", nameOf(before));
        return pod.status?.containerStatuses?.[0]?.restartCount === 1 ? pod : undefined;
      },
      180_000,
    );
    assert.equal(await fetchFrom(podOn("node1"), `http://${again.status?.podIP}:8080/`), nameOf(before));
  });

  it("leaves this machine's own settings and links alone", async () => {
    const { stdout } = await cluster.execNode("node1", "hostname");
    assert.equal(stdout, "node1\n");
    assert.notEqual((await run(["hostname"])).stdout, "node1\n");
    const { stdout: links } = await run(["ip", "-o", "link"]);
    assert.doesNotMatch(links, /cni0|\bveth[0-9a-f]{8}@/, "the links of pods are on their nodes");
  });
});
