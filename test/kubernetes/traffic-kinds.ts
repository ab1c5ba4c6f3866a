import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { before, describe, it } from "node:test";
import { ensureKubectl } from "#apiserver";
import { findWords } from "#capture";
import { eventually, run, VEIL } from "../netns/harness.ts";
import type { TestCluster } from "./cluster.ts";
import { enterPodNetwork } from "./pod-network.ts";
import { CONTROL_NETNS, enterNetns } from "./layout.ts";
import {
  accessRecords,
  addressOf,
  ANSWER,
  applySoon,
  askFrom,
  enrolledPod,
  namespaceOf,
  podOf,
  serve,
  setMode,
  WEB_PORT,
} from "./mesh.ts";

const NODE_PORT = 30_080;
/** A port that no probe asks. */
const QUIET_PORT = 9000;
const QUESTION = "a-question-about-green-umbrellas";
const LEDGER = { namespace: "kinds", name: "ledger" };

/** One refusal is enough; a busy machine may answer late. */
const STRICTLY = { periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 20 };
/** Every kind of probe. */
const PROBES = {
  ports: [{ name: "web", containerPort: WEB_PORT }],
  startupProbe: { exec: { command: ["test", "-e", "/www/index.html"] }, periodSeconds: 1, timeoutSeconds: 20 },
  readinessProbe: { httpGet: { path: "/", port: "web" }, ...STRICTLY },
  livenessProbe: { tcpSocket: { port: WEB_PORT }, ...STRICTLY },
};

function serviceOf(name: string, spec: object): object {
  const ports = [{ port: 80, targetPort: WEB_PORT, ...(name === "ledger" && { nodePort: NODE_PORT }) }];
  const metadata = { namespace: LEDGER.namespace, name };
  return { apiVersion: "v1", kind: "Service", metadata, spec: { selector: { app: "ledger" }, ports, ...spec } };
}

/** Traffic of every kind that Kubernetes knows, towards an enrolled pod. Leaves the mesh in strict mode. */
export function trafficKinds(find: () => TestCluster): void {
  describe("traffic of every kind", () => {
    let cluster: TestCluster;
    let ledger = "";
    before(async () => {
      cluster = find();
      const waiting = { command: ["sleep", "2000000000"] };
      const echo = `nc -ll -p ${QUIET_PORT} -e cat </dev/null >/dev/null 2>&1 &`;
      await applySoon(cluster, [
        namespaceOf("kinds", true),
        namespaceOf("outside", false),
        podOf({ ...LEDGER, node: "node1" }, { ...PROBES, command: ["sh", "-c", serve(echo)] }),
        serviceOf("ledger", { type: "NodePort" }),
        serviceOf("ledgers", { clusterIP: "None", ports: [{ port: WEB_PORT }] }),
        podOf({ namespace: "kinds", name: "customer", node: "node2" }, waiting),
        podOf({ namespace: "outside", name: "near", node: "node1" }, waiting),
        podOf({ namespace: "outside", name: "far", node: "node2" }, waiting),
        podOf({ namespace: "outside", name: "host-near", node: "node1" }, waiting, { hostNetwork: true }),
        podOf({ namespace: "outside", name: "host-far", node: "node2" }, waiting, { hostNetwork: true }),
        podOf(
          { namespace: "outside", name: "root", node: "node2" },
          { ...waiting, securityContext: { privileged: true } },
        ),
      ]);
      ledger = await addressOf(cluster, "kinds/ledger");
      for (const pod of ["kinds/ledger", "kinds/customer"]) await enrolledPod(cluster, pod);
      for (const name of ["near", "far", "host-near", "host-far", "root"]) await cluster.readyPod("outside", name);
    });

    /** Who answers whom, of those who have no identity; each way once. */
    const plainWays = async (): Promise<Record<string, boolean>> => {
      const { spec } = JSON.parse(await cluster.kubectl("-n", "kinds", "get", "service", "ledger", "-o", "json")) as {
        spec: { clusterIP: string };
      };
      const ways: [string, Promise<boolean>][] = [
        ...["near", "far"].map((pod): [string, Promise<boolean>] => [pod, asks(pod, `${ledger}:${WEB_PORT}`)]),
        ["far by ClusterIP", asks("far", spec.clusterIP)],
        ["host-far", asks("host-far", `${ledger}:${WEB_PORT}`)],
        ["host-near, a port without a probe", echoes("host-near")],
        ["host-far, a port without a probe", echoes("host-far")],
        ...["198.18.77.11", "198.18.77.12"].map((ip): [string, Promise<boolean>] => [
          `NodePort ${ip}`,
          fromOutside(ip),
        ]),
      ];
      return Object.fromEntries(await Promise.all(ways.map(async ([way, answer]) => [way, await answer] as const)));
    };
    const asks = async (pod: string, address: string): Promise<boolean> =>
      (await askFrom(cluster, `outside/${pod}`, `http://${address}/?${QUESTION}`)) === ANSWER;
    const echoes = async (pod: string): Promise<boolean> => {
      const talk = `echo ${QUESTION} | timeout 5 nc ${ledger} ${QUIET_PORT}`;
      return (await cluster.execPod("outside", pod, "sh", "-c", talk)).stdout.includes(QUESTION);
    };
    const fromOutside = async (node: string): Promise<boolean> => {
      const curl = ["curl", "-s", "-m", "5", `http://${node}:${NODE_PORT}/?${QUESTION}`];
      return (await run([...enterNetns(CONTROL_NETNS), ...curl])).stdout.trim() === ANSWER;
    };
    const all = (ways: Record<string, boolean>, answered: boolean): Record<string, boolean> =>
      Object.fromEntries(Object.keys(ways).map((way) => [way, answered]));

    it("comes in from everywhere while the mode is permissive, in clear where the client is not enrolled", async () => {
      // The NodePort is there a moment later than the pods.
      await eventually("everybody to be answered", async () => {
        const ways = await plainWays();
        assert.deepEqual(ways, all(ways, true));
        return true;
      });
    });

    it("comes from an enrolled client by ClusterIP and by a headless service, and nobody reads it between the nodes", async () => {
      await using capture = await cluster.captureNode("node1", { filter: "tcp" });
      const resolve = async (name: string): Promise<string> => {
        const { stdout } = await cluster.execPod("kinds", "customer", "nslookup", `${name}.kinds.svc.cluster.local`);
        return /Name:.*\nAddress: (\S+)/.exec(stdout)?.[1] ?? stdout;
      };
      const [byService, byPod] = [await resolve("ledger"), await resolve("ledgers")];
      assert.equal(byPod, ledger, "a headless service's name is its pods' addresses");
      assert.notEqual(byService, ledger);
      for (const address of [byService, `${byPod}:${WEB_PORT}`]) {
        assert.equal(await askFrom(cluster, "kinds/customer", `http://${address}/?${QUESTION}`), ANSWER);
      }
      assert.ok(await asks("far", `${ledger}:${WEB_PORT}`));
      const clients = findWords(await capture.stop(), [QUESTION]).map(({ packet }) => String(packet.source));
      assert.deepEqual(
        [...new Set(clients)],
        [await addressOf(cluster, "outside/far")],
        "the twin's question alone is read",
      );
    });

    it("is refused in strict mode where the client proves no identity, whichever way it comes", async () => {
      await setMode(cluster, "strict");
      await eventually(
        "a plain client to be refused",
        async () => !(await asks("near", `${ledger}:${WEB_PORT}`)) || undefined,
      );
      const ways = await plainWays();
      assert.deepEqual(ways, all(ways, false));
      assert.equal(await askFrom(cluster, "kinds/customer", `http://${ledger}:${WEB_PORT}/`), ANSWER);
      const far = await addressOf(cluster, "outside/far");
      await eventually("the reason in the proxy's records", async () => {
        const refused = (await accessRecords(cluster)).find(
          ({ verdict, source }) => verdict === "refused" && source.address.startsWith(`${far}:`),
        );
        return refused?.reason === "policy_denied" || undefined;
      });
    });

    it("is explained by veil why to whoever may run commands in proxies", async () => {
      const why = (client: string): ReturnType<typeof run> =>
        run([VEIL, "why", "--kubeconfig", cluster.kubeconfig, client, `kinds/ledger:${WEB_PORT}`]);
      const [enrolled, plain] = [await why("kinds/customer"), await why("outside/far")];
      assert.deepEqual([enrolled.code, plain.code], [0, 3], `${enrolled.stderr}${plain.stderr}`);
      assert.match(enrolled.stdout, /^kinds\/customer -> kinds\/ledger: encrypted \(mutual TLS\)/);
      assert.match(plain.stdout, /^outside\/far -> kinds\/ledger: NOT encrypted\n.*no label/);
    });

    it("comes by kubectl port-forward in strict mode, too", async () => {
      const kubectl = await ensureKubectl({ env: process.env });
      const words = ["-n", "kinds", "port-forward", "pod/ledger", `:${WEB_PORT}`];
      const child = spawn(kubectl, words, { env: { ...process.env, KUBECONFIG: cluster.kubeconfig } });
      try {
        const [line] = (await once(createInterface({ input: child.stdout }), "line")) as [string];
        const port = /127\.0\.0\.1:(\d+)/.exec(line)?.[1];
        assert.equal(await (await fetch(`http://127.0.0.1:${port}/`)).text(), `${ANSWER}\n`);
      } finally {
        child.kill("SIGKILL");
      }
    });

    it("is the kubelet's probes' in strict mode: not one fails, and one that has to fail does", async () => {
      await cluster.apply([podOf({ namespace: "kinds", name: "asked", node: "node1" }, PROBES)]);
      await cluster.readyPod("kinds", "asked");
      for (const pod of ["ledger", "asked"]) {
        await eventually(`probes of ${pod}`, async () => {
          const { Readiness = 0, Liveness = 0 } = (await probesOf(pod)).successful;
          return (Readiness >= 5 && Liveness >= 5) || undefined;
        });
        assert.deepEqual((await probesOf(pod)).failed, {}, pod);
      }
      await cluster.execPod("kinds", "asked", "mv", "/www/index.html", "/www/away");
      await eventually("the failing probe", async () => (await probesOf("asked")).failed["Readiness"]);
      await cluster.execPod("kinds", "asked", "mv", "/www/away", "/www/index.html");
      await cluster.readyPod("kinds", "asked");
    });

    it("would refuse probes without the source that the node gives them, and takes that source from nobody else", async () => {
      const root = await cluster.readyPod("outside", "root");
      await cluster.execPod("outside", "root", "ip", "address", "add", "169.254.7.127/32", "dev", "eth0");
      const forge = ["curl", "-s", "-m", "3", "--interface", "169.254.7.127", `http://${ledger}:${WEB_PORT}/`];
      const enter = await enterPodNetwork(cluster, root);
      const table = ["nft", "list", "table", "inet", "veil_probes"];
      const dropped = /ip saddr 169\.254\.7\.127 counter packets [1-9]\d* bytes \d+ drop/;
      // Counters begin anew with the table, whenever a pod comes or goes.
      await eventually("a forged probe to be dropped, on its own node or on the ledger's", async () => {
        assert.equal((await run([...enter, ...forge])).code, 28, "it waits in vain");
        const said = await Promise.all(["node1", "node2"].map((node) => cluster.execNode(node, ...table)));
        return said.some(({ stdout }) => dropped.test(stdout)) || undefined;
      });

      await cluster.execNode("node1", "nft", "delete", "table", "inet", "veil_probes");
      await eventually("a probe that is refused", async () => (await probesOf("ledger")).failed["Readiness"]);
      await cluster.kubectl("-n", "kinds", "delete", "pod", "asked", "--wait");
      await eventually("the rules to be there again", async () => {
        return (await cluster.execNode("node1", ...table)).stdout.includes(`${ledger} . ${WEB_PORT}`) || undefined;
      });
      await cluster.readyPod("kinds", "ledger");
    });

    /** How many probes of a pod on node1 the kubelet has counted, by outcome and kind; kinds without any are left out. */
    async function probesOf(pod: string): Promise<Record<"successful" | "failed", Record<string, number>>> {
      const text = await cluster.kubectl("get", "--raw", "/api/v1/nodes/node1/proxy/metrics/probes");
      const counts: Record<"successful" | "failed", Record<string, number>> = { successful: {}, failed: {} };
      for (const line of text.split("\n").filter((one) => one.startsWith("prober_probe_total{"))) {
        const label = (name: string): string => new RegExp(`[{,]${name}="([^"]*)"`).exec(line)?.[1] ?? "";
        const result = label("result");
        if (label("pod") !== pod || label("probe_type") === "Startup") continue;
        if (result === "successful" || result === "failed") {
          counts[result][label("probe_type")] = Number(line.split(" ").at(-1));
        }
      }
      return counts;
    }
  });
}
