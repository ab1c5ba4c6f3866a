import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { securityKinds } from "#discovery";
import { eventually, startLab, veil, VEIL, type TestLab } from "./harness.ts";

const PORT = 8080;
const API = "security.istio.io/v1";
const ENROLLED = { "io.cilium/mtls-enabled": "true" };
const CLIENTS = ["friend", "stranger", "outsider"] as const;
type Client = (typeof CLIENTS)[number];

function namespace(name: string, labels: Record<string, string>): object {
  return { apiVersion: "v1", kind: "Namespace", metadata: { name, labels } };
}

function pod(at: { namespace: string; name: string; node: string }, program: readonly string[]): object {
  const { node, ...names } = at;
  const container = { name: "main", image: "veil", command: [VEIL, "program", ...program] };
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { ...names, labels: { app: at.name } },
    spec: { nodeName: node, terminationGracePeriodSeconds: 1, containers: [container] },
  };
}

function policy(kind: string, name: string, spec: object): object {
  return { apiVersion: API, kind, metadata: { name, namespace: "shop" }, spec };
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

  async function conditionOf(name: string): Promise<string> {
    const { status } = await lab.client.get(securityKinds.authorizationPolicies, name, "shop");
    const found = status?.conditions?.find(({ type }) => type === "ZtunnelAccepted");
    return `${found?.status} ${found?.reason} ${found?.message}`;
  }
});
