import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { before, describe, it } from "node:test";
import { findWords } from "#capture";
import { resources, type Pod } from "#kube";
import { eventually } from "../netns/harness.ts";
import { clusterMesh } from "./cluster-mesh.ts";
import type { TestCluster } from "./cluster.ts";
import { fillAndEmpty, fullNodeAccounts } from "./full-node.ts";
import { keptCertificates, leftBehind } from "./left-behind.ts";
import {
  accessRecords,
  accountOf,
  addressOf,
  ANSWER,
  applySoon,
  askFrom,
  enrolledPod,
  namespaceOf,
  podOf,
  serve,
  WEB_PORT,
} from "./mesh.ts";
import { rolledOut, VEIL_NAMESPACE } from "./veil.ts";

const QUESTION = "a-question-about-yellow-bicycles";
/** After a reboot everything of a node starts at once. */
const BOOT_MS = 240_000;
const NODES = ["node1", "node2"];
/** A node takes 110; filling it takes a minute, and is a benchmark: bench/full-node.ts. */
const MANY = 25;
const PROBE = { readinessProbe: { httpGet: { path: "/", port: WEB_PORT }, periodSeconds: 1, timeoutSeconds: 20 } };

/** A script that asks a URL from its first moment on, again and again, and says what it was answered. */
function asking(url: string): string {
  return `while :; do echo "got=$(timeout 5 wget -q -O - '${url}' 2>/dev/null)"; sleep 0.1; done & ${serve()}`;
}

function account(name: string): object {
  return { apiVersion: "v1", kind: "ServiceAccount", metadata: { namespace: "life", name } };
}

/** Only an account may call the pods with this label, and only on their web port. */
function allowOnly(principal: string, app: string): object {
  const rules = [{ from: [{ source: { principals: [`cluster.local/ns/life/sa/${principal}`] } }] }];
  const spec = { selector: { matchLabels: { app } }, rules };
  return {
    apiVersion: "security.istio.io/v1",
    kind: "AuthorizationPolicy",
    metadata: { namespace: "life", name: app },
    spec,
  };
}

/** What happens to nodes and to what pods are made of: nobody has a wrong identity at any moment, and nothing is left of who is gone. */
export function nodeLife(find: () => TestCluster): void {
  describe("the life of nodes", () => {
    let cluster: TestCluster;
    /** Every pod that has ever been in the namespace, and its account. */
    const accounts = new Map<string, string>();
    before(async () => {
      cluster = find();
      await applySoon(cluster, [
        namespaceOf("life", true),
        namespaceOf("still", false),
        account("first"),
        account("second"),
        podOf({ namespace: "life", name: "bank", node: "node1" }),
        podOf({ namespace: "life", name: "caller", node: "node1" }),
        podOf({ namespace: "still", name: "board", node: "node1" }),
        allowOnly("first", "bank"),
      ]);
      await enrolledPod(cluster, "life/bank");
      await enrolledPod(cluster, "life/caller");
      await cluster.readyPod("still", "board");
      await nothingLeft();
    });

    /** Waits until nodes have exactly what the API says. */
    const nothingLeft = async (...nodes: string[]): Promise<void> => {
      for (const node of nodes.length === 0 ? NODES : nodes) {
        await eventually(`${node} to have what the API says, and nothing else`, async () => {
          assert.deepEqual(await leftBehind(cluster, node), []);
          return true;
        });
      }
      await rightIdentities();
    };

    /** Every record of the namespace's pods names the identity that the pod has. */
    const rightIdentities = async (): Promise<void> => {
      const { items } = await cluster.client.list(resources.pods, { namespace: "life" });
      for (const pod of items) accounts.set(pod.metadata?.name ?? "", accountOf(pod));
      const wrong = (await accessRecords(cluster))
        .flatMap(({ source, destination }) => [source, destination])
        .filter(({ namespace, workload, identity }) => {
          const expected = accounts.get(workload ?? "");
          if (namespace !== "life" || identity === undefined || expected === undefined) return false;
          return identity !== `spiffe://cluster.local/ns/life/sa/${expected}`;
        });
      assert.deepEqual(wrong, []);
    };

    /** What the asking pod has been answered so far. */
    const answersOf = async (name: string, namespace = "life"): Promise<string[]> =>
      (await cluster.kubectl("-n", namespace, "logs", name)).split("\n").filter((line) => line.startsWith("got="));
    const url = async (pod: string): Promise<string> =>
      `http://${await addressOf(cluster, pod)}:${WEB_PORT}/?${QUESTION}`;
    const answered = (name: string, namespace?: string): Promise<boolean> =>
      eventually(
        `${name} to be answered`,
        async () => (await answersOf(name, namespace)).includes(`got=${ANSWER}`) || undefined,
      );

    it("gives an address that another pod takes over at once the new pod's identity, and never the old one's", async (t) => {
      const bank = await url("life/bank");
      const one = { namespace: "life", name: "one", node: "node2", account: "first" };
      const two = { namespace: "life", name: "two", node: "node2", account: "second" };
      const command = ["sh", "-c", asking(bank)];
      await cluster.apply([podOf(one, { command })]);
      await answered("one");
      const address = await addressOf(cluster, "life/one");
      await using watch = watchCertificate(cluster, address);
      await eventually("the first pod's certificate", () => watch.seen.includes("first") || undefined);
      await rightIdentities();

      await cluster.client.delete(resources.pods, { namespace: "life", name: "one" });
      assert.equal((await cluster.execNode("node2", "timeout", "120", "sh", "-c", giveNext(address))).code, 0);
      const freeMs = performance.now();
      await cluster.apply([podOf(two, { command })]);
      assert.equal(await addressOf(cluster, "life/two"), address, "the address is used again");
      t.diagnostic(
        `another pod has the address and is ready ${Math.round(performance.now() - freeMs)} ms after it was free`,
      );
      await eventually("the second pod's certificate", () => watch.seen.includes("second") || undefined);
      assert.deepEqual(
        watch.seen.slice(watch.seen.indexOf("second")).filter((name) => name === "first"),
        [],
      );
      await eventually("the second pod to have asked", async () => (await answersOf("two")).length > 10 || undefined);
      assert.deepEqual([...new Set(await answersOf("two"))], ["got="], "only the first pod's account is let in");
      assert.equal(await askFrom(cluster, "life/caller", await url("life/two")), ANSWER);
      await nothingLeft();
    });

    it("leaves pods and connections alone while kubelets and containerd are started again", async () => {
      const target = await url("life/two");
      for (const daemon of ["kubelet", "containerd"] as const) {
        await Promise.all(cluster.nodes.map((node) => node.restart(daemon)));
        await cluster.nodesReady();
      }
      await eventually("commands to be run in pods again", async () => {
        return (await askFrom(cluster, "life/caller", target)) === ANSWER || undefined;
      });
      const { items } = await cluster.client.list(resources.pods, { namespace: "life" });
      assert.deepEqual(
        items.flatMap(restarts),
        items.map(() => 0),
      );
      await nothingLeft();
    });

    it("keeps the identity of a pod whose service account is deleted until the pod goes", async () => {
      await cluster.kubectl("-n", "life", "delete", "serviceaccount", "second");
      await clusterMesh(cluster).kill("agent", "node2"); // the next one has no certificate, and asks for all
      assert.equal(await askFrom(cluster, "life/caller", await url("life/two")), ANSWER);
      await nothingLeft();
      await cluster.kubectl("-n", "life", "delete", "pod", "two", "--wait");
      await nothingLeft();
    });

    it("leaves nothing of a namespace that is deleted while its pods talk", async () => {
      const server = podOf({ namespace: "gone", name: "server", node: "node1" }, PROBE);
      await applySoon(cluster, [namespaceOf("gone", true), server]);
      const command = ["sh", "-c", asking(await url("gone/server"))];
      await cluster.apply(
        ["node1", "node2"].map((node) => podOf({ namespace: "gone", name: `at-${node}`, node }, { command })),
      );
      for (const node of NODES) await enrolledPod(cluster, `gone/at-${node}`);
      await cluster.kubectl("delete", "namespace", "gone", "--wait", "--timeout=120s");
      await nothingLeft();
      const logs = await cluster.kubectl("-n", VEIL_NAMESPACE, "logs", "-l", "app=veil-controller", "--tail=-1");
      assert.deepEqual(
        logs.split("\n").filter((line) => line.includes('"level":"error"') && line.includes("gone")),
        [],
      );
    });

    it("moves what a drained node served, and leaves nothing there", async () => {
      const template = podOf({ namespace: "life", name: "web" }, PROBE) as {
        metadata: { labels: object };
        spec: object;
      };
      const spec = {
        replicas: 2,
        selector: { matchLabels: { app: "web" } },
        template: { metadata: { labels: template.metadata.labels }, spec: template.spec },
      };
      await cluster.apply([
        { apiVersion: "apps/v1", kind: "Deployment", metadata: { namespace: "life", name: "web" }, spec },
        {
          apiVersion: "v1",
          kind: "Service",
          metadata: { namespace: "life", name: "web" },
          spec: { selector: { app: "web" }, ports: [{ port: 80, targetPort: WEB_PORT }] },
        },
      ]);
      await cluster.readyPods("life", "app=web", 2);
      await cluster.kubectl(
        "drain",
        "node2",
        "--ignore-daemonsets",
        "--force",
        "--delete-emptydir-data",
        "--timeout=180s",
      );
      const pods = await cluster.readyPods("life", "app=web", 2);
      assert.deepEqual(
        pods.map((pod) => pod.spec?.nodeName),
        ["node1", "node1"],
      );
      const service = await cluster.client.get(resources.services, "web", "life");
      assert.equal(await askFrom(cluster, "life/caller", `http://${service.spec?.clusterIP}/`), ANSWER);
      await nothingLeft();
      await cluster.kubectl("uncordon", "node2");
    });

    it("gives each of many pods that begin at once its own identity, and leaves nothing when all end at once", async (t) => {
      await applySoon(cluster, [namespaceOf("many", true), ...fullNodeAccounts("many")]);
      const place = { namespace: "many", node: "node2", count: MANY, asker: "life/caller", isEnrolled: true };
      const { filledS, emptiedS } = await fillAndEmpty(cluster, place);
      t.diagnostic(`${MANY} pods are enrolled after ${filledS.toFixed(1)} s, and gone after ${emptiedS.toFixed(1)} s`);
    });

    it("lets no pod of a node that boots say a word in clear, and each has its identity again", async () => {
      const [bank, board] = [await url("life/bank"), await url("still/board")];
      const early = { namespace: "life", name: "early", node: "node2", account: "first" };
      await cluster.apply([
        podOf(early, { command: ["sh", "-c", asking(bank)] }),
        podOf({ namespace: "still", name: "reader", node: "node2" }, { command: ["sh", "-c", asking(board)] }),
      ]);
      await answered("early");
      const before = await cluster.readyPod("still", "reader");
      await using capture = await cluster.captureNode("node1", { filter: `tcp port ${WEB_PORT}` });
      await cluster.rebootNode("node2");
      await cluster.nodesReady();
      for (const [namespace, name] of [
        ["life", "early"],
        ["still", "reader"],
      ] as const) {
        await eventually(
          `${name} to have started again`,
          async () => {
            return restarts(await cluster.readyPod(namespace, name))[0] === 1 || undefined;
          },
          BOOT_MS,
        );
      }
      await answered("early");
      await answered("reader", "still");
      await rolledOut(cluster);
      const after = await cluster.readyPod("still", "reader");
      const words = findWords(await capture.stop(), [QUESTION]);
      assert.ok(words.length > 0, "the capture does not see the twin's words");
      const clear = new Set([before, after].map(({ status }) => status?.podIP ?? ""));
      assert.deepEqual(
        words.map(({ packet }) => String(packet.source)).filter((ip) => !clear.has(ip)),
        [],
      );
      await nothingLeft();
    });

    it("keeps the certificates of nobody who has gone", async () => {
      for (const node of NODES) {
        await eventually(
          `${node}'s agent to forget`,
          async () => (await keptCertificates(cluster, node)) === 0 || undefined,
        );
      }
    });
  });
}

function restarts({ status }: Pod): number[] {
  return (status?.containerStatuses ?? []).map(({ restartCount }) => restartCount);
}

/** A script that waits until an address of the node's pods is free, and has it given away next. */
function giveNext(address: string): string {
  const before = address.replace(/\d+$/, (last) => String(Number(last) - 1));
  const folder = "/var/lib/cni/networks/pods";
  return `while [ -e ${folder}/${address} ]; do sleep 0.02; done; echo -n ${before} >${folder}/last_reserved_ip.0`;
}

/** Says the account in the certificate that a pod's proxy shows, whenever somebody listens there. */
const LOOK = `
const { connect } = require("node:tls");
const look = () => {
  const socket = connect({ host: process.argv[1], port: 15008, rejectUnauthorized: false, ALPNProtocols: ["h2"], timeout: 500 });
  socket.on("secureConnect", () => {
    console.log(socket.getPeerCertificate().subjectaltname?.split("/sa/")[1]);
    socket.destroy();
  });
  socket.on("timeout", () => socket.destroy()).on("error", () => {}).on("close", () => setTimeout(look, 20));
};
look();
`;

/** Looks at the certificate at an address all the time, from node1. */
function watchCertificate(
  cluster: TestCluster,
  address: string,
): AsyncDisposable & { readonly seen: readonly string[] } {
  const words = [...cluster.node("node1").enter, process.execPath, "-e", LOOK, address];
  const child = spawn("setpriv", ["--pdeathsig", "KILL", ...words], { stdio: ["ignore", "pipe", "inherit"] });
  const seen: string[] = [];
  createInterface({ input: child.stdout }).on("line", (line) => void seen.push(line));
  return {
    seen,
    [Symbol.asyncDispose]: () => {
      child.kill("SIGKILL");
      return Promise.resolve();
    },
  };
}
