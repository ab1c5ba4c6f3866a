import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { securityKinds } from "#discovery";
import { resources } from "#kube";
import { eventually, startLab, veil, VEIL, type TestLab } from "./harness.ts";

const PORT = 8080;
const API = "security.istio.io/v1";
const ENROLLED = { "io.cilium/mtls-enabled": "true" };
const CLIENTS = ["friend", "stranger", "outsider"] as const;
type Client = (typeof CLIENTS)[number];

function namespace(name: string, labels: Record<string, string>): object {
  return { apiVersion: "v1", kind: "Namespace", metadata: { name, labels } };
}

interface PodPlace {
  readonly namespace: string;
  readonly name: string;
  readonly node: string;
  readonly labels?: Record<string, string>;
}

function pod(at: PodPlace, program: readonly string[]): object {
  return podOf(at, [VEIL, "program", ...program]);
}

function podOf({ node, labels = {}, ...names }: PodPlace, command: readonly string[]): object {
  const container = { name: "main", image: "veil", command };
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { ...names, labels: { app: names.name, ...labels } },
    spec: { nodeName: node, terminationGracePeriodSeconds: 1, containers: [container] },
  };
}

function policy(kind: string, name: string, spec: object): object {
  return { apiVersion: API, kind, metadata: { name, namespace: "shop" }, spec };
}

/** The kind by which waypoints are known, for an API that nobody has installed it in. */
const GATEWAY_KIND = {
  apiVersion: "apiextensions.k8s.io/v1",
  kind: "CustomResourceDefinition",
  metadata: { name: "gateways.gateway.networking.k8s.io" },
  spec: {
    group: "gateway.networking.k8s.io",
    scope: "Namespaced",
    names: { kind: "Gateway", plural: "gateways", singular: "gateway", listKind: "GatewayList" },
    versions: [
      {
        name: "v1",
        served: true,
        storage: true,
        schema: { openAPIV3Schema: { type: "object", "x-kubernetes-preserve-unknown-fields": true } },
      },
    ],
  },
};

/** A waypoint's program: it passes each connection on to the workload, as itself. */
function passOn(ip: string): string {
  return `const net = require("node:net");
net.createServer({ allowHalfOpen: true }, (near) => {
  const far = net.connect({ port: ${PORT}, host: ${JSON.stringify(ip)}, allowHalfOpen: true });
  for (const [from, to] of [[near, far], [far, near]]) from.on("error", () => to.destroy()).pipe(to);
}).listen(${PORT}, "::");`;
}

/** Of each namespace two clients of the same server: one dials anew for each request, the other keeps its connection. */
describe("policies in a lab", () => {
  let lab: TestLab;
  before(async () => {
    lab = await startLab("policies");
    await lab.apply([
      namespace("shop", ENROLLED),
      namespace("friend", ENROLLED),
      namespace("stranger", ENROLLED),
      namespace("outsider", {}),
      pod({ namespace: "shop", name: "server", node: "node2" }, ["http-echo", "--port", String(PORT)]),
    ]);
    const target = `${(await lab.readyPod("shop", "server")).status?.podIP}:${PORT}`;
    await lab.apply(
      CLIENTS.flatMap((name) => [
        pod({ namespace: name, name: "new", node: "node1" }, ["client", "--interval", "100", target]),
        pod({ namespace: name, name: "kept", node: "node1" }, ["client", "--interval", "100", "--keep", target]),
      ]),
    );
    await Promise.all(
      CLIENTS.map(async (name) => eventually(`answers for ${name}`, () => lastWords(name, "kept", "ok"))),
    );
  });
  after(async () => {
    await lab?.[Symbol.asyncDispose]();
  });

  /** True when the newest line of a client has this word. */
  async function lastWords(client: Client, name: "new" | "kept", word: string): Promise<true | undefined> {
    const log = await lab.client.logs({ namespace: client, name, tailLines: 1 });
    return log.includes(` ${word} `) ? true : undefined;
  }

  /** Waits until each client is answered, or is not. */
  async function served(expected: Readonly<Record<Client, boolean>>): Promise<void> {
    const wait = async (name: Client): Promise<unknown> =>
      eventually(`${name} to be ${expected[name] ? "served" : "refused"}`, () =>
        lastWords(name, "new", expected[name] ? "ok" : "failed"),
      );
    await Promise.all(CLIENTS.map(wait));
  }

  async function why(client: Client): Promise<string> {
    const { stdout } = await veil("why", "--lab", lab.name, `${client}/new`, `shop/server:${PORT}`);
    return stdout;
  }

  it("let everybody in while there are none", async () => {
    await served({ friend: true, stranger: true, outsider: true });
  });

  it("PeerAuthentication STRICT refuses new plaintext, and lets running connections end by themselves", async () => {
    await lab.apply([policy("PeerAuthentication", "strict", { mtls: { mode: "STRICT" } })]);
    await served({ friend: true, stranger: true, outsider: false });
    assert.ok(await lastWords("outsider", "kept", "kept"), "its list of policies is that of its beginning");
    assert.match(await why("outsider"), /REFUSE it: explicitly denied by: istio-system\/istio_converted_static_strict/);
    await lab.kubectl("delete", "peerauthentication", "-n", "shop", "strict");
    await served({ friend: true, stranger: true, outsider: true });
  });

  it("AuthorizationPolicy ALLOW lets in whom it names, and cuts the running connections of all others", async () => {
    const source = { namespaces: ["friend"] };
    await lab.apply([policy("AuthorizationPolicy", "friends", { rules: [{ from: [{ source }] }] })]);
    await served({ friend: true, stranger: false, outsider: false });
    for (const name of ["stranger", "outsider"] as const) {
      await eventually(`${name}'s kept connection to be cut`, () => lastWords(name, "kept", "failed"));
    }
    assert.ok(await lastWords("friend", "kept", "kept"));
    const log = await lab.client.logs({ namespace: "friend", name: "kept" });
    assert.doesNotMatch(log, / failed .* kept /, "the friend's connection has never been cut");
    assert.match(await why("friend"), /let it in: allowed by: shop\/friends/);
    assert.match(await why("stranger"), /REFUSE it: allow policies exist, but none allowed/);
    assert.match(await conditionOf("friends"), /^True Accepted/);
  });

  it("a policy on HTTP says on its object that it has no effect here", async () => {
    const operation = { paths: ["/secret"] };
    await lab.apply([policy("AuthorizationPolicy", "http", { action: "DENY", rules: [{ to: [{ operation }] }] })]);
    await eventually("the status", async () => ((await conditionOf("http")).includes("NO EFFECT") ? true : undefined));
    assert.match(await conditionOf("http"), /^True UnsupportedValue/);
    await served({ friend: true, stranger: false, outsider: false });
  });

  it("AuthorizationPolicy DENY goes before ALLOW, and everybody is back once all are gone", async () => {
    const selector = { matchLabels: { app: "server" } };
    const rules = [{ to: [{ operation: { ports: [String(PORT)] } }] }];
    await lab.apply([policy("AuthorizationPolicy", "nobody", { selector, action: "DENY", rules })]);
    await served({ friend: false, stranger: false, outsider: false });
    assert.match(await why("friend"), /REFUSE it: explicitly denied by: shop\/nobody/);
    await lab.kubectl("delete", "authorizationpolicy", "-n", "shop", "--all");
    await served({ friend: true, stranger: true, outsider: true });
  });

  describe("--enforce-waypoints", () => {
    const through = async (word: string): Promise<true | undefined> => {
      const log = await lab.client.logs({ namespace: "friend", name: "through", tailLines: 1 });
      return log.includes(` ${word} `) ? true : undefined;
    };

    before(async () => {
      const { podIP } = (await lab.readyPod("shop", "server")).status ?? {};
      const labels = { "gateway.networking.k8s.io/gateway-name": "wp" };
      const service = (name: string, ports: readonly object[], labels: Record<string, string> = {}): object => ({
        apiVersion: "v1",
        kind: "Service",
        metadata: { namespace: "shop", name, labels },
        spec: { selector: { app: name }, ports },
      });
      await lab.apply([GATEWAY_KIND]);
      await lab.kubectl("wait", "--for=condition=Established", "crd/gateways.gateway.networking.k8s.io");
      await lab.apply([
        {
          apiVersion: "gateway.networking.k8s.io/v1",
          kind: "Gateway",
          metadata: { namespace: "shop", name: "wp" },
          spec: { gatewayClassName: "any", listeners: [{ name: "mesh", port: 15_008, protocol: "HBONE" }] },
        },
        service("wp", [{ name: "mesh", port: 15_008 }], labels),
        service("server", [{ name: "http", port: PORT }], { "istio.io/use-waypoint": "wp" }),
        podOf({ namespace: "shop", name: "wp", node: "node1", labels }, [process.execPath, "-e", passOn(`${podIP}`)]),
      ]);
      await lab.readyPod("shop", "wp");
      const { spec } = await lab.client.get(resources.services, "server", "shop");
      const to = `${spec?.clusterIP}:${PORT}`;
      await lab.apply([
        pod({ namespace: "friend", name: "through", node: "node1" }, ["client", "--interval", "100", to]),
      ]);
    });

    it("is off by default: whoever dials a pod past its waypoint is let in", async () => {
      await eventually("an answer through the waypoint", () => through("ok"));
      await served({ friend: true, stranger: true, outsider: true });
    });

    it("refuses whoever passes the waypoint by, and records why; what comes through it goes on", async () => {
      const path = "/spec/template/spec/containers/0/command/-";
      const patch = JSON.stringify([{ op: "add", path, value: "--enforce-waypoints" }]);
      await lab.kubectl("patch", "-n", "veil-system", "deployment", "veil-controller", "--type", "json", "-p", patch);
      await served({ friend: false, stranger: false, outsider: false });
      assert.match(await why("friend"), /REFUSE it: allow policies exist, but none allowed/);
      const { items } = await lab.client.list(resources.pods, {
        namespace: "veil-system",
        labelSelector: "app=ztunnel",
      });
      const proxy = items.find(({ spec }) => spec?.nodeName === "node2")?.metadata?.name ?? "";
      await eventually("the record of a refusal", async () => {
        const log = await lab.client.logs({ namespace: "veil-system", name: proxy, tailLines: 200 });
        const refused = log.split("\n").some((line) => /friend.*allow policies exist, but none allowed/.test(line));
        return refused ? true : undefined;
      });
      await eventually("an answer through the waypoint", () => through("ok"));
    });
  });

  async function conditionOf(name: string): Promise<string> {
    const { status } = await lab.client.get(securityKinds.authorizationPolicies, name, "shop");
    const found = status?.conditions?.find(({ type }) => type === "ZtunnelAccepted");
    return `${found?.status} ${found?.reason} ${found?.message}`;
  }
});
