import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { resources, type Pod } from "#kube";
import { eventually, must, run, startLab, VEIL, type TestLab } from "./harness.ts";

const NS = "services-test";
let lab: TestLab;
let servers: Pod[];
let webIp = "";

const template = (labels: Record<string, string>, command: readonly string[], ready: readonly string[]) => ({
  metadata: { labels },
  spec: {
    containers: [
      {
        name: "main",
        image: "none",
        command: [...command],
        ports: [{ name: "http", containerPort: 8080 }],
        readinessProbe: { exec: { command: [...ready] }, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 60 },
      },
    ],
  },
});

before(async () => {
  lab = await startLab("services");
  const selector = { app: "web" };
  await lab.client.create(resources.namespaces, { metadata: { name: NS } });
  await lab.client.create(resources.deployments, {
    metadata: { name: "web", namespace: NS },
    spec: {
      replicas: 2,
      selector: { matchLabels: selector },
      template: template(
        selector,
        ["veil", "program", "http-echo"],
        ["bash", "-c", "test ! -e /run/sick && exec 3<>/dev/tcp/127.0.0.1/8080"],
      ),
    },
  });
  const ports = [{ name: "http", port: 80, targetPort: "http" }];
  const web = await lab.client.create(resources.services, {
    metadata: { name: "web", namespace: NS },
    spec: { selector, ports },
  });
  webIp = web.spec?.clusterIP ?? "";
  await lab.client.create(resources.services, {
    metadata: { name: "all", namespace: NS },
    spec: { selector, ports, clusterIP: "None" },
  });
  await lab.client.create(resources.services, {
    metadata: { name: "none", namespace: NS },
    spec: { selector: { app: "none" }, ports },
  });
  await lab.client.create(resources.pods, {
    metadata: { name: "client", namespace: NS },
    spec: { nodeName: "node1", containers: [{ name: "main", image: "none", command: ["sleep", "infinity"] }] },
  });
  await lab.readyPod(NS, "client");
  servers = await eventually("two servers", async () => {
    const { items } = await lab.client.list(resources.pods, { namespace: NS, labelSelector: "app=web" });
    const ready = items.filter((pod) => pod.status?.containerStatuses?.[0]?.ready === true);
    return ready.length === 2 ? ready : undefined;
  });
});
after(async () => {
  await lab[Symbol.asyncDispose]();
});

async function shell(script: string, pod = "client"): Promise<{ code: number; stdout: string; stderr: string }> {
  return lab.execPod(NS, pod, "bash", "-c", script);
}

/** Which pods answer `count` requests from the client. */
async function answerers(host: string, count = 12): Promise<Set<string>> {
  const { stdout } = await shell(`for i in $(seq ${count}); do curl -s -m 20 http://${host}/; done`);
  return new Set([...stdout.matchAll(/hello from ([^:]+):/g)].map((match) => match[1] ?? ""));
}

/** Names of servers that the API shows as not ready at any moment until the signal. */
async function watchUnready(signal: AbortSignal): Promise<string[]> {
  const at = { namespace: NS, labelSelector: "app=web", signal };
  const seen: string[] = [];
  const { resourceVersion } = await lab.client.list(resources.pods, at);
  try {
    for await (const { type, object } of lab.client.watch(resources.pods, { ...at, resourceVersion })) {
      const ready = object.status?.conditions?.some((one) => one.type === "Ready" && one.status === "True");
      if (type === "MODIFIED" && ready !== true) seen.push(object.metadata?.name ?? "");
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  }
  return seen;
}

test("a service's address leads to all of its ready pods, on both nodes", async () => {
  assert.equal(new Set(servers.map((pod) => pod.spec?.nodeName)).size, 2, "the servers are on different nodes");
  await eventually("answers of both", async () => ((await answerers("web")).size === 2 ? true : undefined));
  const fromNode = await lab.execNode("node2", "curl", "-s", "-m", "20", `http://${webIp}/`);
  assert.match(fromNode.stdout, /hello from web-/);
});

test("the server sees the client's own address", async () => {
  const { podIP } = (await lab.readyPod(NS, "client")).status ?? {};
  const [server] = servers;
  assert.ok(server);
  await using capture = await lab.capturePod(server, "tcp port 8080 and tcp[tcpflags] & tcp-syn != 0");
  const name = server.metadata?.name ?? "";
  await eventually("the server to have been chosen", async () =>
    (await answerers("web")).has(name) ? true : undefined,
  );
  const packets = await capture.stop();
  const sources = new Set(
    packets.filter((packet) => packet.destinationPort === 8080).map((packet) => packet.source as string),
  );
  assert.ok(sources.has(podIP ?? ""), [...sources].join());
});

test("a pod that is not ready gets no new connection, and gets them again when it is", async () => {
  const [sick] = servers;
  const name = sick?.metadata?.name ?? "";
  await shell("touch /run/sick", name);
  await eventually("only the other one to answer", async () => {
    const seen = await answerers("web");
    return seen.size === 1 && !seen.has(name) ? true : undefined;
  });
  await shell("rm /run/sick", name);
  await eventually("both to answer", async () => ((await answerers("web")).size === 2 ? true : undefined));
});

test("a service without endpoints, and an address of no service, refuse at once", async () => {
  for (const target of ["http://none/", "http://10.96.200.200:81/"]) {
    const { code, stdout } = await shell(`curl -s -m 20 ${target}; echo "code $?"`);
    assert.equal(code, 0);
    assert.match(stdout, /^code 7$/m, `${target} is refused, not silent`);
  }
});

test("a pod reaches itself through its service", async () => {
  const name = servers[0]?.metadata?.name ?? "";
  await eventually("an answer of its own", async () => {
    const { stdout } = await shell("for i in $(seq 8); do curl -s -m 20 http://web/; done", name);
    return stdout.includes(`hello from ${name}:`) ? true : undefined;
  });
});

test("names: short and long, headless, of ports, by UDP and TCP, and none outside the cluster", async () => {
  const ips = servers.map((pod) => pod.status?.podIP ?? "").toSorted();
  const lookup = async (name: string): Promise<string[]> => {
    const { stdout } = await shell(`getent ahostsv4 ${name} | awk '{print $1}' | sort -u`);
    return stdout.split("\n").filter((line) => line !== "");
  };
  assert.deepEqual(await lookup("web"), [webIp]);
  assert.deepEqual(await lookup(`web.${NS}.svc.cluster.local`), [webIp]);
  assert.deepEqual(await lookup(`kubernetes.default`), ["10.96.0.1"]);
  assert.deepEqual((await lookup("all")).toSorted(), ips);
  assert.deepEqual(await lookup("example.com"), []);
  const overTcp = await shell("RES_OPTIONS=use-vc getent ahostsv4 web | head -n1 | cut -d' ' -f1");
  assert.equal(overTcp.stdout.trim(), webIp);
});

test("changes of rules and a killed kubelet cut no connection", async () => {
  const slow = `exec 3<>/dev/tcp/web/80; for i in $(seq 12); do printf 'POST / HTTP/1.1\\r\\nContent-Length: 2\\r\\n\\r\\nn%x' $i >&3; sleep 0.3; done; timeout 60 grep -m 12 -c 'you said' <&3`;
  const long = shell(slow);
  await lab.client.create(resources.services, {
    metadata: { name: "more", namespace: NS },
    spec: { selector: { app: "web" }, ports: [{ port: 81, targetPort: 8080 }] },
  });
  await eventually("the new service", async () => ((await answerers("more:81", 2)).size > 0 ? true : undefined));
  const status = JSON.parse(await must([VEIL, "lab", "status", "--name", lab.name, "-o", "json"])) as {
    nodes: { name: string; roles: { role: string; pid?: number }[] }[];
  };
  const other = status.nodes.find((node) => node.name === "node2")?.roles.find((role) => role.role === "kubelet")?.pid;
  const stop = new AbortController();
  const unready = watchUnready(stop.signal);
  await run(["kill", "-9", String(other)]);
  await lab.client.delete(resources.services, { name: "more", namespace: NS });
  const { stdout } = await long;
  assert.equal(stdout.trim(), "12");
  stop.abort();
  assert.deepEqual(await unready, [], "the next kubelet takes pods over as ready as they were");
  await eventually("answers of both after the restart", async () =>
    (await answerers("web")).size === 2 ? true : undefined,
  );
});

test("host network pods have the node's address and the cluster's names", async () => {
  await lab.client.create(resources.pods, {
    metadata: { name: "host", namespace: NS },
    spec: {
      nodeName: "node1",
      hostNetwork: true,
      containers: [{ name: "main", image: "none", command: ["sleep", "infinity"] }],
    },
  });
  const pod = await lab.readyPod(NS, "host");
  assert.equal(pod.status?.podIP, pod.status?.hostIP);
  const { stdout } = await shell("hostname; curl -s -m 20 http://web/", "host");
  assert.match(stdout, /^node1\nhello from web-/);
});
