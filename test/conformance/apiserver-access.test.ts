import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { WIREGUARD_KINDS, WIREGUARD_RULES } from "#install";
import { eventually } from "../netns/harness.ts";
import { RawClient, startApi, type ApiWorld, type Loose } from "./apiserver-world.ts";

const CORE = "/api/v1";

describe("who may do what", () => {
  let api: ApiWorld;
  let home = "";
  before(async () => {
    api = await startApi("access");
    home = `${CORE}/namespaces/${api.namespace}`;
    for (const name of ["reader", "other"]) await api.kubectl("create", "serviceaccount", name);
  });
  after(async () => api[Symbol.asyncDispose]());

  const pod = (name: string, more: Record<string, unknown> = {}): Record<string, unknown> => ({
    metadata: { name },
    spec: { serviceAccountName: "reader", containers: [{ name: "main", image: "local/x:1" }], ...more },
  });
  const tokenFor = async (account: string, spec: Record<string, unknown> = {}): Promise<string> => {
    const { code, body } = await api.client.call("POST", `${home}/serviceaccounts/${account}/token`, {
      body: { apiVersion: "authentication.k8s.io/v1", kind: "TokenRequest", spec },
    });
    assert.equal(code, 201, JSON.stringify(body));
    return body.status.token;
  };
  const review = async (token: string, audiences?: string[]): Promise<Loose> => {
    const { code, body } = await api.client.call("POST", "/apis/authentication.k8s.io/v1/tokenreviews", {
      body: { apiVersion: "authentication.k8s.io/v1", kind: "TokenReview", spec: { token, audiences } },
    });
    assert.equal(code, 201, JSON.stringify(body));
    return body.status;
  };

  it("nobody is anonymous", async () => {
    const anonymous = new RawClient(api.kubeconfig, { anonymous: true });
    for (const path of [`${CORE}/pods`, `${home}/secrets`, "/apis/apps/v1/deployments"]) {
      const { code, body } = await anonymous.call("GET", path);
      assert.ok(code === 401 || code === 403, `${path}: ${code}`);
      assert.equal(body.kind, "Status");
    }
    const wrong = await new RawClient(api.kubeconfig, { token: "no.such.token" }).call("GET", `${CORE}/pods`);
    assert.deepEqual([wrong.code, wrong.body.reason], [401, "Unauthorized"]);
    anonymous.close();
  });

  it("a service account may do what a role allows, where it allows it", async () => {
    const client = new RawClient(api.kubeconfig, { token: await tokenFor("reader") });
    const refused = await client.call("GET", `${home}/configmaps`);
    assert.deepEqual([refused.code, refused.body.reason], [403, "Forbidden"]);
    assert.match(
      refused.body.message,
      new RegExp(
        `User "system:serviceaccount:${api.namespace}:reader" cannot list resource "configmaps" in API group "" in the namespace`,
      ),
    );
    await api.kubectl("create", "role", "reader", "--verb=get,list", "--resource=configmaps");
    await api.kubectl("create", "rolebinding", "reader", "--role=reader", `--serviceaccount=${api.namespace}:reader`);
    assert.equal((await client.call("GET", `${home}/configmaps`)).code, 200);
    assert.equal((await client.call("GET", `${home}/configmaps/kube-root-ca.crt`)).code, 200);
    assert.equal((await client.call("GET", `${CORE}/configmaps`)).code, 403, "only in its namespace");
    assert.equal(
      (await client.call("POST", `${home}/configmaps`, { body: { metadata: { name: "x" } } })).code,
      403,
      "only those verbs",
    );
    client.close();
  });

  it("a token is for its audiences, and says whose it is", async () => {
    const token = await tokenFor("reader", { audiences: ["istio-ca"], expirationSeconds: 600 });
    const status = await review(token, ["istio-ca"]);
    assert.equal(status["authenticated"], true);
    assert.deepEqual(status["audiences"], ["istio-ca"]);
    assert.equal(status["user"].username, `system:serviceaccount:${api.namespace}:reader`);
    assert.ok(status["user"].groups.includes(`system:serviceaccounts:${api.namespace}`));
    const other = await review(token, ["another"]);
    assert.notEqual(other["authenticated"], true);
    assert.ok(other["error"]);
    assert.equal(
      (await new RawClient(api.kubeconfig, { token }).call("GET", `${home}/configmaps`)).code,
      401,
      "not for the API itself",
    );
  });

  it("a token that is bound to a pod names it, and ends with it", async () => {
    const created = (await api.client.call("POST", `${home}/pods`, { body: pod("bound") })).body;
    const uid = created.metadata.uid;
    const token = await tokenFor("reader", {
      audiences: ["a"],
      boundObjectRef: { apiVersion: "v1", kind: "Pod", name: "bound", uid },
    });
    const { user } = await review(token, ["a"]);
    assert.deepEqual(user.extra["authentication.kubernetes.io/pod-name"], ["bound"]);
    assert.deepEqual(user.extra["authentication.kubernetes.io/pod-uid"], [uid]);
    await api.client.call("DELETE", `${home}/pods/bound?gracePeriodSeconds=0`);
    // A cluster's server remembers for ten seconds what it found.
    await eventually(
      "the token to be worth nothing",
      async () => (await review(token, ["a"]))["authenticated"] !== true || undefined,
    );
  });

  it("a token request that cannot be granted says why", async () => {
    const ask = async (account: string, spec: unknown): Promise<{ code: number; message: string }> => {
      const { code, body } = await api.client.call("POST", `${home}/serviceaccounts/${account}/token`, {
        body: { apiVersion: "authentication.k8s.io/v1", kind: "TokenRequest", spec },
      });
      return { code, message: body.message };
    };
    assert.equal((await ask("nobody", {})).code, 404);
    const short = await ask("reader", { expirationSeconds: 5 });
    assert.equal(short.code, 422);
    assert.match(short.message, /spec\.expirationSeconds.*10 minutes/);
    assert.equal(
      (await ask("reader", { boundObjectRef: { apiVersion: "v1", kind: "Pod", name: "nobody" } })).code,
      404,
    );
    await api.client.call("POST", `${home}/pods`, { body: pod("others", { serviceAccountName: "other" }) });
    const foreign = await ask("reader", { boundObjectRef: { apiVersion: "v1", kind: "Pod", name: "others" } });
    assert.equal(foreign.code, 400);
    assert.match(foreign.message, /different serviceaccount/);
  });

  it("nobody gives what they do not have", async () => {
    await api.kubectl("create", "serviceaccount", "giver");
    await api.kubectl("create", "role", "giver", "--verb=create", "--resource=roles,rolebindings,configmaps");
    await api.kubectl("create", "rolebinding", "giver", "--role=giver", `--serviceaccount=${api.namespace}:giver`);
    await api.kubectl("create", "role", "secrets", "--verb=get", "--resource=secrets");
    const as = `--as=system:serviceaccount:${api.namespace}:giver`;
    await api.kubectl("create", "role", "given", "--verb=create", "--resource=configmaps", as);
    await api.kubectl("create", "rolebinding", "given", "--role=given", `--serviceaccount=${api.namespace}:other`, as);
    const role = await api.refused("create", "role", "more", "--verb=get", "--resource=secrets", as);
    assert.match(role.output, /attempting to grant RBAC permissions not currently held/);
    const account = `--serviceaccount=${api.namespace}:giver`;
    for (const target of ["--role=secrets", "--clusterrole=cluster-admin"]) {
      assert.match(
        (await api.refused("create", "rolebinding", "more", target, account, as)).output,
        /not currently held/,
      );
    }
  });

  it("impersonation needs the right to it", async () => {
    const client = new RawClient(api.kubeconfig, { token: await tokenFor("reader") });
    const headers = { "impersonate-user": "kubernetes-admin", "impersonate-group": "system:masters" };
    const { code, body } = await client.call("GET", `${home}/secrets`, { headers });
    assert.deepEqual([code, body.reason], [403, "Forbidden"]);
    assert.match(body.message, /cannot impersonate/);
    client.close();
  });

  it("access reviews agree with what happens", async () => {
    const ask = async (user: string, verb: string, resource: string): Promise<boolean> => {
      const spec = { user, resourceAttributes: { namespace: api.namespace, verb, resource } };
      const { body } = await api.client.call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", {
        body: { apiVersion: "authorization.k8s.io/v1", kind: "SubjectAccessReview", spec },
      });
      return body.status.allowed;
    };
    assert.equal(await ask(`system:serviceaccount:${api.namespace}:reader`, "list", "configmaps"), true);
    assert.equal(await ask(`system:serviceaccount:${api.namespace}:reader`, "list", "secrets"), false);
    assert.equal(await ask("nobody", "list", "configmaps"), false);
    assert.match(
      await api.kubectl("auth", "can-i", "--list", `--as=system:serviceaccount:${api.namespace}:reader`),
      /configmaps/,
    );
  });

  it("a pod needs a service account that exists", async () => {
    const { code, body } = await api.client.call("POST", `${home}/pods`, {
      body: pod("lost", { serviceAccountName: "nobody" }),
    });
    assert.equal(code, 403);
    assert.match(body.message, /serviceaccount "nobody" not found/);
  });
});

describe("a node's credentials", () => {
  let api: ApiWorld;
  let home = "";
  let one: RawClient;
  let two: RawClient;
  before(async () => {
    api = await startApi("node");
    home = `${CORE}/namespaces/${api.namespace}`;
    one = await api.clientFor("system:node:n1", "system:nodes");
    two = await api.clientFor("system:node:n2", "system:nodes");
    for (const [client, name] of [
      [one, "n1"],
      [two, "n2"],
    ] as const) {
      assert.equal((await client.call("POST", `${CORE}/nodes`, { body: { metadata: { name } } })).code, 201);
    }
    for (const name of ["mine", "unrelated"]) {
      await api.client.call("POST", `${home}/secrets`, { body: { metadata: { name }, stringData: { a: "b" } } });
      await api.client.call("POST", `${home}/configmaps`, { body: { metadata: { name }, data: { a: "b" } } });
    }
    const spec = {
      containers: [
        { name: "c", image: "i", env: [{ name: "X", valueFrom: { secretKeyRef: { name: "mine", key: "a" } } }] },
      ],
      volumes: [
        { name: "v", configMap: { name: "mine" } },
        { name: "t", projected: { sources: [{ serviceAccountToken: { path: "t", audience: "istio-ca" } }] } },
      ],
    };
    for (const name of ["p1", "p2"]) {
      await api.client.call("POST", `${home}/pods`, { body: { metadata: { name }, spec } });
      const node = name === "p1" ? "n1" : "n2";
      const { code } = await api.client.call("POST", `${home}/pods/${name}/binding`, {
        body: { apiVersion: "v1", kind: "Binding", metadata: { name }, target: { kind: "Node", name: node } },
      });
      assert.equal(code, 201);
    }
  });
  after(async () => {
    one?.close();
    two?.close();
    await api[Symbol.asyncDispose]();
  });

  const merge = { type: "application/merge-patch+json" };
  const codes = async (
    client: RawClient,
    requests: [method: string, path: string, body?: unknown][],
  ): Promise<number[]> => {
    const out: number[] = [];
    for (const [method, path, body] of requests)
      out.push((await client.call(method, path, { body, ...(method === "PATCH" && merge) })).code);
    return out;
  };

  it("change its own Node and lease, and no other", async () => {
    const status = { status: { conditions: [{ type: "Ready", status: "True" }] } };
    const lease = (name: string): unknown => ({
      metadata: { name },
      spec: { holderIdentity: name, leaseDurationSeconds: 40 },
    });
    const leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    assert.deepEqual(
      await codes(one, [
        ["PATCH", `${CORE}/nodes/n1/status`, status],
        ["PATCH", `${CORE}/nodes/n2/status`, status],
        ["PATCH", `${CORE}/nodes/n1`, { metadata: { annotations: { a: "b" } } }],
        ["PATCH", `${CORE}/nodes/n2`, { metadata: { annotations: { a: "b" } } }],
        ["PATCH", `${CORE}/nodes/n1`, { metadata: { labels: { "node-restriction.kubernetes.io/x": "1" } } }],
        ["POST", `${CORE}/nodes`, { metadata: { name: "n3" } }],
        ["POST", leases, lease("n1")],
        ["POST", leases, lease("n2")],
        ["GET", `${CORE}/nodes/n1`],
        ["DELETE", `${CORE}/nodes/n2`],
      ]),
      [200, 403, 200, 403, 403, 403, 201, 403, 200, 403],
    );
  });

  it("see and report the pods that run there, and no others", async () => {
    const status = { status: { phase: "Running" } };
    assert.deepEqual(
      await codes(one, [
        ["PATCH", `${home}/pods/p1/status`, status],
        ["PATCH", `${home}/pods/p2/status`, status],
        ["PATCH", `${home}/pods/p1`, { metadata: { labels: { a: "b" } } }],
        ["GET", `${CORE}/pods?fieldSelector=spec.nodeName%3Dn1`],
        ["GET", `${CORE}/pods?fieldSelector=spec.nodeName%3Dn2`],
        ["GET", `${CORE}/pods`],
        ["POST", `${home}/pods`, { metadata: { name: "x" }, spec: { containers: [{ name: "c", image: "i" }] } }],
        ["DELETE", `${home}/pods/p2`],
      ]),
      [200, 403, 403, 200, 403, 403, 403, 403],
    );
    const listed = (await one.call("GET", `${CORE}/pods?fieldSelector=spec.nodeName%3Dn1`)).body;
    assert.deepEqual(
      listed.items.map((item: { metadata: { name: string } }) => item.metadata.name),
      ["p1"],
    );
  });

  it("read the Secrets and ConfigMaps that its pods use, and no others", async () => {
    assert.deepEqual(
      await codes(one, [
        ["GET", `${home}/secrets/mine`],
        ["GET", `${home}/secrets/unrelated`],
        ["GET", `${home}/secrets`],
        ["GET", `${home}/configmaps/mine`],
        ["GET", `${home}/configmaps/kube-root-ca.crt`],
        ["GET", `${home}/configmaps/unrelated`],
        ["GET", `${home}/configmaps?watch=true&timeoutSeconds=1&fieldSelector=metadata.name%3Dmine`],
        ["PATCH", `${home}/secrets/mine`, { data: {} }],
      ]),
      [200, 403, 403, 200, 200, 403, 200, 403],
    );
  });

  it("ask for tokens that are bound to its pods, and no others", async () => {
    const uids = new Map<string, string>();
    for (const name of ["p1", "p2"])
      uids.set(name, (await api.client.call("GET", `${home}/pods/${name}`)).body.metadata.uid);
    const request = (name?: string, audience = "istio-ca"): unknown => ({
      apiVersion: "authentication.k8s.io/v1",
      kind: "TokenRequest",
      spec: {
        audiences: [audience],
        ...(name && { boundObjectRef: { apiVersion: "v1", kind: "Pod", name, uid: uids.get(name) } }),
      },
    });
    const path = `${home}/serviceaccounts/default/token`;
    assert.deepEqual(
      await codes(one, [
        ["POST", path, request("p1")],
        ["POST", path, request("p1", "of no volume of the pod")],
        ["POST", path, request("p2")],
        ["POST", path, request()],
      ]),
      [201, 403, 403, 403],
    );
    const { token } = (await one.call("POST", path, { body: request("p1") })).body.status;
    const { body } = await api.client.call("POST", "/apis/authentication.k8s.io/v1/tokenreviews", {
      body: { spec: { token, audiences: ["istio-ca"] } },
    });
    assert.deepEqual(body.status.user.extra["authentication.kubernetes.io/node-name"], ["n1"]);
  });

  it("hold for an account that all nodes share: its tokens write for the node they are bound to, and without the mark for all", async (t) => {
    if (!api.own) {
      t.diagnostic("in a cluster an admission policy of the chart does this");
      return;
    }
    const rbac = "/apis/rbac.authorization.k8s.io/v1";
    const rules = [{ apiGroups: [""], resources: ["pods"], verbs: ["get", "patch"] }];
    await api.client.call("POST", `${rbac}/clusterroles`, { body: { metadata: { name: "patch-pods" }, rules } });
    const attempts = async (
      account: string,
      annotations: Record<string, string>,
      bound: boolean,
    ): Promise<number[]> => {
      await api.client.call("POST", `${home}/serviceaccounts`, { body: { metadata: { name: account, annotations } } });
      const subjects = [{ kind: "ServiceAccount", name: account, namespace: api.namespace }];
      const roleRef = { apiGroup: "rbac.authorization.k8s.io", kind: "ClusterRole", name: "patch-pods" };
      await api.client.call("POST", `${rbac}/clusterrolebindings`, {
        body: { metadata: { name: account }, roleRef, subjects },
      });
      const spec = { serviceAccountName: account, nodeName: "n1", containers: [{ name: "c", image: "i" }] };
      const pod = await api.client.call("POST", `${home}/pods`, {
        body: { metadata: { name: `of-${account}` }, spec },
      });
      const { name, uid } = pod.body.metadata;
      const boundObjectRef = { apiVersion: "v1", kind: "Pod", name, uid };
      const { body } = await api.client.call("POST", `${home}/serviceaccounts/${account}/token`, {
        body: { spec: { audiences: [], ...(bound && { boundObjectRef }) } },
      });
      assert.ok(body.status.token, JSON.stringify(body));
      const client = new RawClient(api.kubeconfig, { token: body.status.token });
      const off = { metadata: { annotations: { "ambient.istio.io/redirection": `by-${account}` } } };
      const seen = await codes(client, [
        ["PATCH", `${home}/pods/p1`, off],
        ["PATCH", `${home}/pods/p2`, off],
      ]);
      client.close();
      return seen;
    };
    const mark = { "veil.dev/node-bound": "true" };
    assert.deepEqual(await attempts("agent", mark, true), [200, 403]);
    assert.deepEqual(await attempts("unbound", mark, false), [403, 403]);
    assert.deepEqual(await attempts("unmarked", {}, true), [200, 200]);
  });

  it("publish keys of tunnels, and report on them, under their own node's name alone, from an account that all nodes share", async (t) => {
    if (!api.own) {
      t.diagnostic("in a cluster an admission policy of the chart does this");
      return;
    }
    const rbac = "/apis/rbac.authorization.k8s.io/v1";
    const definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    for (const kind of WIREGUARD_KINDS)
      assert.equal((await api.client.call("POST", definitions, { body: kind })).code, 201);
    const body = (name: string, more: object = {}): object => ({ body: { metadata: { name, ...more } } });
    const keys = "/apis/cilium.io/v2/ciliumnodes";
    const reports = "/apis/veil.dev/v1alpha1/wireguardnodes";
    for (const path of [keys, reports]) {
      for (const name of ["n1", "n2"]) {
        const made = async (): Promise<number> => (await api.client.call("POST", path, body(name))).code;
        await eventually(`the kind of ${path}`, async () => (await made()) === 201 || undefined);
      }
    }
    const metadata = { name: "tunnels" };
    await api.client.call("POST", `${rbac}/clusterroles`, { body: { metadata, rules: WIREGUARD_RULES.agent } });
    const account = { "veil.dev/node-bound": "true" };
    await api.client.call("POST", `${home}/serviceaccounts`, body("tunnels", { annotations: account }));
    const subjects = [{ kind: "ServiceAccount", name: "tunnels", namespace: api.namespace }];
    const roleRef = { apiGroup: "rbac.authorization.k8s.io", kind: "ClusterRole", name: "tunnels" };
    await api.client.call("POST", `${rbac}/clusterrolebindings`, { body: { metadata, roleRef, subjects } });
    const spec = { serviceAccountName: "tunnels", nodeName: "n1", containers: [{ name: "c", image: "i" }] };
    const pod = await api.client.call("POST", `${home}/pods`, { body: { metadata: { name: "of-tunnels" }, spec } });
    const { name, uid } = pod.body.metadata;
    const boundObjectRef = { apiVersion: "v1", kind: "Pod", name, uid };
    const asked = { body: { spec: { audiences: [], boundObjectRef } } };
    const token = await api.client.call("POST", `${home}/serviceaccounts/tunnels/token`, asked);
    const client = new RawClient(api.kubeconfig, { token: token.body.status.token });
    const key = { metadata: { annotations: { "veil.dev/wireguard": "{}" } } };
    const report = { status: { done: 7 } };
    const seen = await codes(client, [
      ["PATCH", `${keys}/n1`, key],
      ["PATCH", `${keys}/n2`, key],
      ["PATCH", `${keys}/n2/status`, { status: {} }],
      ["PATCH", `${reports}/n1/status`, report],
      ["PATCH", `${reports}/n2/status`, report],
      ["POST", keys, { metadata: { name: "n3" } }],
      ["POST", reports, { metadata: { name: "n3" } }],
    ]);
    assert.deepEqual(seen, [200, 403, 403, 200, 403, 403, 403]);
    client.close();
  });

  it("read Services and EndpointSlices, and change none", async () => {
    assert.deepEqual(
      await codes(one, [
        ["GET", `${CORE}/services`],
        ["GET", "/apis/discovery.k8s.io/v1/endpointslices"],
        ["DELETE", `${CORE}/namespaces/default/services/kubernetes`],
        ["GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles"],
      ]),
      [200, api.own ? 200 : 403, 403, 403],
    );
  });

  it("count for nothing without the group of nodes", async () => {
    const pretender = await api.clientFor("system:node:n1", "others");
    assert.deepEqual(await codes(pretender, [["GET", `${CORE}/nodes/n1`]]), [403]);
    pretender.close();
  });
});
