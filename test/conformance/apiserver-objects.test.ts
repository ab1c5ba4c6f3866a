import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { startApi, until, type Answer, type ApiWorld, type Loose } from "./apiserver-world.ts";

const MERGE = { type: "application/merge-patch+json" };

describe("the life of objects", () => {
  let api: ApiWorld;
  let home = "";
  let maps = "";
  before(async () => {
    api = await startApi("objects");
    home = `/api/v1/namespaces/${api.namespace}`;
    maps = `${home}/configmaps`;
  });
  after(async () => api[Symbol.asyncDispose]());

  const create = async (path: string, body: unknown): Promise<Loose> => {
    const answer = await api.client.call("POST", path, { body });
    assert.equal(answer.code, 201, JSON.stringify(answer.body));
    return answer.body;
  };
  const gone = async (path: string): Promise<boolean> => (await api.client.call("GET", path)).code === 404;

  it("an update with an old version is refused, and without one is taken", async () => {
    const first = await create(maps, { metadata: { name: "versions" }, data: { a: "1" } });
    const second = await api.client.call("PUT", `${maps}/versions`, { body: { ...first, data: { a: "2" } } });
    assert.equal(second.code, 200);
    assert.notEqual(second.body.metadata.resourceVersion, first.metadata.resourceVersion);
    const stale = await api.client.call("PUT", `${maps}/versions`, { body: { ...first, data: { a: "3" } } });
    assert.deepEqual([stale.code, stale.body.reason], [409, "Conflict"]);
    const { resourceVersion: _old, ...metadata } = first.metadata;
    assert.equal(
      (await api.client.call("PUT", `${maps}/versions`, { body: { ...first, metadata, data: { a: "4" } } })).code,
      200,
    );
    const again = await api.client.call("POST", maps, { body: { metadata: { name: "versions" } } });
    assert.deepEqual([again.code, again.body.reason], [409, "AlreadyExists"]);
  });

  it("an update that changes nothing writes nothing", async () => {
    const first = await create(maps, { metadata: { name: "same" }, data: { a: "1" } });
    const second = await api.client.call("PATCH", `${maps}/same`, { ...MERGE, body: { data: { a: "1" } } });
    assert.equal(second.body.metadata.resourceVersion, first.metadata.resourceVersion);
  });

  it("what only the server may set stays as it is", async () => {
    const first = await create(maps, {
      metadata: { name: "fixed", uid: "mine", creationTimestamp: "2000-01-01T00:00:00Z" },
    });
    assert.notEqual(first.metadata.uid, "mine");
    const change = (field: string): Promise<Answer> =>
      api.client.call("PATCH", `${maps}/fixed`, { ...MERGE, body: { metadata: { [field]: "2000-01-01T00:00:00Z" } } });
    const { body } = await change("creationTimestamp");
    assert.equal(body.metadata.creationTimestamp, first.metadata.creationTimestamp);
    const refused = await change("deletionTimestamp");
    assert.equal(refused.code, 422);
    assert.match(refused.body.message, /metadata\.deletionTimestamp.*field is immutable/);
  });

  it("large objects go back and forth on one connection", async () => {
    for (let index = 0; index < 60; index++) {
      const answer = await api.client.call("PUT", `${maps}/large`, {
        body: { metadata: { name: "large" }, data: { a: `${index}${"x".repeat(60_000 + index * 1000)}` } },
      });
      if (index > 0) assert.equal(answer.code, 200);
      else await create(maps, { metadata: { name: "large" } });
    }
  });

  it("names are generated", async () => {
    const { metadata } = await create(maps, { metadata: { generateName: "made-" } });
    assert.match(metadata.name, /^made-[a-z0-9]{5}$/);
  });

  it("a dry run checks and stores nothing", async () => {
    const { code } = await api.client.call("POST", `${maps}?dryRun=All`, { body: { metadata: { name: "dry" } } });
    assert.equal(code, 201);
    assert.ok(await gone(`${maps}/dry`));
  });

  it("the object and its status are written apart", async () => {
    const deployments = `/apis/apps/v1/namespaces/${api.namespace}/deployments`;
    const spec = {
      selector: { matchLabels: { a: "b" } },
      template: { metadata: { labels: { a: "b" } }, spec: { containers: [{ name: "c", image: "i" }] } },
    };
    const first = await create(deployments, { metadata: { name: "parts" }, spec, status: { readyReplicas: 7 } });
    assert.equal(first.status.readyReplicas, undefined);
    const status = await api.client.call("PATCH", `${deployments}/parts/status`, {
      ...MERGE,
      body: { spec: { replicas: 9 }, status: { observedGeneration: 1, replicas: 1 } },
    });
    assert.deepEqual(
      [status.body.spec.replicas, status.body.status.observedGeneration, status.body.metadata.generation],
      [1, 1, 1],
    );
    const object = await api.client.call("PATCH", `${deployments}/parts`, {
      ...MERGE,
      body: { spec: { replicas: 2 }, status: { observedGeneration: 5 } },
    });
    assert.deepEqual(
      [object.body.spec.replicas, object.body.status.observedGeneration, object.body.metadata.generation],
      [2, 1, 2],
    );
  });

  it("a finalizer holds an object until it is taken off", async () => {
    await create(maps, { metadata: { name: "held", finalizers: ["test.io/hold"] } });
    const deleted = await api.client.call("DELETE", `${maps}/held`);
    assert.equal(deleted.code, 200);
    const { body } = await api.client.call("GET", `${maps}/held`);
    assert.ok(body.metadata.deletionTimestamp);
    await api.client.call("PATCH", `${maps}/held`, { ...MERGE, body: { metadata: { finalizers: null } } });
    assert.ok(await gone(`${maps}/held`));
  });

  it("a pod on a node is given its grace; one that waits for a node goes at once", async () => {
    const pod = (name: string): unknown => ({
      metadata: { name },
      spec: { terminationGracePeriodSeconds: 20, containers: [{ name: "c", image: "i" }] },
    });
    await create(`${home}/pods`, pod("waiting"));
    await api.client.call("DELETE", `${home}/pods/waiting`);
    assert.ok(await gone(`${home}/pods/waiting`));
    const node = `${api.namespace}-node`;
    await create("/api/v1/nodes", { metadata: { name: node } });
    try {
      await create(`${home}/pods`, pod("running"));
      const binding = {
        apiVersion: "v1",
        kind: "Binding",
        metadata: { name: "running" },
        target: { apiVersion: "v1", kind: "Node", name: node },
      };
      await create(`${home}/pods/running/binding`, binding);
      const twice = await api.client.call("POST", `${home}/pods/running/binding`, { body: binding });
      assert.deepEqual([twice.code, twice.body.reason], [409, "Conflict"]);
      const { body } = await api.client.call("DELETE", `${home}/pods/running`);
      assert.equal(body.metadata.deletionGracePeriodSeconds, 20);
      const longer = await api.client.call("DELETE", `${home}/pods/running?gracePeriodSeconds=60`);
      assert.equal(longer.body.metadata.deletionGracePeriodSeconds, 20, "grace only gets shorter");
      await api.client.call("DELETE", `${home}/pods/running?gracePeriodSeconds=0`);
      assert.ok(await gone(`${home}/pods/running`));
    } finally {
      await api.client.call("DELETE", `/api/v1/nodes/${node}`);
    }
  });

  it("a deletion with another UID is refused", async () => {
    await create(maps, { metadata: { name: "precise" } });
    const { code, body } = await api.client.call("DELETE", `${maps}/precise`, {
      body: { preconditions: { uid: "another" } },
    });
    assert.deepEqual([code, body.reason], [409, "Conflict"]);
  });

  it("a collection is deleted by selector", async () => {
    await create(maps, { metadata: { name: "c1", labels: { bulk: "1" } } });
    await create(maps, { metadata: { name: "c2", labels: { bulk: "1" } } });
    await create(maps, { metadata: { name: "c3" } });
    assert.equal((await api.client.call("DELETE", `${maps}?labelSelector=bulk%3D1`)).code, 200);
    assert.deepEqual(
      [await gone(`${maps}/c1`), await gone(`${maps}/c2`), await gone(`${maps}/c3`)],
      [true, true, false],
    );
  });

  describe("owners", () => {
    const family = async (name: string): Promise<void> => {
      const owner = await create(maps, { metadata: { name } });
      const ownerReferences = [
        { apiVersion: "v1", kind: "ConfigMap", name, uid: owner.metadata.uid, blockOwnerDeletion: true },
      ];
      await create(maps, { metadata: { name: `${name}-child`, ownerReferences } });
    };

    it("take their dependents with them", async () => {
      await family("background");
      await api.client.call("DELETE", `${maps}/background`, { body: { propagationPolicy: "Background" } });
      assert.ok(await gone(`${maps}/background`));
      await until(async () => gone(`${maps}/background-child`), "collection");
    });

    it("go after their dependents in the foreground", async () => {
      await family("foreground");
      await api.client.call("PATCH", `${maps}/foreground-child`, {
        ...MERGE,
        body: { metadata: { finalizers: ["test.io/hold"] } },
      });
      await api.client.call("DELETE", `${maps}/foreground`, { body: { propagationPolicy: "Foreground" } });
      await until(
        async () =>
          (await api.client.call("GET", `${maps}/foreground-child`)).body.metadata.deletionTimestamp !== undefined,
        "marking",
      );
      assert.ok(!(await gone(`${maps}/foreground`)), "the owner waits");
      await api.client.call("PATCH", `${maps}/foreground-child`, {
        ...MERGE,
        body: { metadata: { finalizers: null } },
      });
      await until(async () => gone(`${maps}/foreground`), "the owner's end");
    });

    it("leave orphans when asked to", async () => {
      await family("orphan");
      await api.client.call("DELETE", `${maps}/orphan`, { body: { propagationPolicy: "Orphan" } });
      await until(async () => gone(`${maps}/orphan`), "the owner's end");
      const { body } = await api.client.call("GET", `${maps}/orphan-child`);
      assert.equal(body.metadata.ownerReferences, undefined);
    });

    it("that never existed do not keep a dependent", async () => {
      const ownerReferences = [
        { apiVersion: "v1", kind: "ConfigMap", name: "nobody", uid: "00000000-0000-4000-8000-000000000000" },
      ];
      await api.client.call("POST", maps, { body: { metadata: { name: "lost", ownerReferences } } });
      await until(async () => gone(`${maps}/lost`), "collection");
    });
  });

  describe("namespaces", () => {
    it("hold what is in them until it has ended, and take nothing new meanwhile", async () => {
      const name = `${api.namespace}-ending`;
      const inside = `/api/v1/namespaces/${name}/configmaps`;
      await create("/api/v1/namespaces", { metadata: { name } });
      await create(inside, { metadata: { name: "held", finalizers: ["test.io/hold"] } });
      await api.client.call("DELETE", `/api/v1/namespaces/${name}`);
      await until(
        async () => (await api.client.call("GET", `${inside}/held`)).body.metadata?.deletionTimestamp !== undefined,
        "marking",
      );
      const { body } = await api.client.call("GET", `/api/v1/namespaces/${name}`);
      assert.equal(body.status.phase, "Terminating");
      const late = await api.client.call("POST", inside, { body: { metadata: { name: "late" } } });
      assert.deepEqual([late.code, late.body.reason], [403, "Forbidden"]);
      await api.client.call("PATCH", `${inside}/held`, { ...MERGE, body: { metadata: { finalizers: null } } });
      await until(async () => gone(`/api/v1/namespaces/${name}`), "the namespace's end");
    });

    it("have a service account and the cluster's root certificate, always", async () => {
      await until(async () => (await api.client.call("GET", `${maps}/kube-root-ca.crt`)).code === 200);
      await api.client.call("DELETE", `${maps}/kube-root-ca.crt`);
      await until(
        async () => (await api.client.call("GET", `${maps}/kube-root-ca.crt`)).code === 200,
        "the return of the certificate",
      );
      await api.client.call("DELETE", `${home}/serviceaccounts/default`);
      await until(
        async () => (await api.client.call("GET", `${home}/serviceaccounts/default`)).code === 200,
        "the return of the account",
      );
    });
  });

  describe("Services", () => {
    const service = (name: string, spec: Record<string, unknown>): unknown => ({
      metadata: { name },
      spec: { ports: [{ port: 80 }], ...spec },
    });

    it("have an address each, which comes back to nobody else while they live", async () => {
      const one = await create(`${home}/services`, service("one", {}));
      const two = await create(`${home}/services`, service("two", {}));
      assert.notEqual(one.spec.clusterIP, two.spec.clusterIP);
      const { code, body } = await api.client.call("POST", `${home}/services`, {
        body: service("three", { clusterIP: one.spec.clusterIP }),
      });
      assert.equal(code, 422);
      assert.match(body.message, /spec\.clusterIPs.*already allocated/);
      const moved = await api.client.call("PATCH", `${home}/services/two`, {
        ...MERGE,
        body: { spec: { clusterIP: one.spec.clusterIP, clusterIPs: [one.spec.clusterIP] } },
      });
      assert.equal(moved.code, 422);
    });

    it("may be headless", async () => {
      assert.equal(
        (await create(`${home}/services`, service("headless", { clusterIP: "None" }))).spec.clusterIP,
        "None",
      );
    });
  });

  describe("bad input names its place", () => {
    const rows: [
      what: string,
      method: string,
      path: () => string,
      body: unknown,
      type: string,
      code: number,
      message: RegExp,
    ][] = [
      ["JSON that ends early", "POST", () => maps, '{"metadata":', "application/json", 400, /./],
      ["YAML that is none", "POST", () => maps, "a: [1\nb: 2", "application/yaml", 400, /./],
      ["an unknown media type", "POST", () => maps, "x", "text/plain", 415, /text\/plain|unknown format/],
      ["no name", "POST", () => maps, { metadata: {} }, "application/json", 422, /name or generateName is required/],
      [
        "a bad name",
        "POST",
        () => maps,
        { metadata: { name: "Not_A_Name" } },
        "application/json",
        422,
        /metadata\.name.*Not_A_Name/,
      ],
      [
        "a bad label key",
        "POST",
        () => maps,
        { metadata: { name: "x", labels: { "-a": "b" } } },
        "application/json",
        422,
        /metadata\.labels.*-a/,
      ],
      [
        "a bad label value",
        "POST",
        () => maps,
        { metadata: { name: "x", labels: { a: "b c" } } },
        "application/json",
        422,
        /metadata\.labels.*b c/,
      ],
      [
        "a bad data key",
        "POST",
        () => maps,
        { metadata: { name: "x" }, data: { "a b": "c" } },
        "application/json",
        422,
        /data\[a b\]/,
      ],
      [
        "a wrong type",
        "POST",
        () => maps,
        { metadata: { name: "x" }, data: { a: 1 } },
        "application/json",
        400,
        /data/,
      ],
      [
        "another kind",
        "POST",
        () => maps,
        { apiVersion: "v1", kind: "Secret", metadata: { name: "x" } },
        "application/json",
        400,
        /Secret/,
      ],
      [
        "another namespace",
        "POST",
        () => maps,
        { metadata: { name: "x", namespace: "other" } },
        "application/json",
        400,
        /namespace/,
      ],
      ["a bad label selector", "GET", () => `${maps}?labelSelector=a%3Db%3Dc`, undefined, "", 400, /=/],
      ["a bad field selector", "GET", () => `${maps}?fieldSelector=data.x%3D1`, undefined, "", 400, /data\.x/],
      ["a bad continue token", "GET", () => `${maps}?continue=abc`, undefined, "", 400, /continue/],
      ["a patch of an unknown type", "PATCH", () => `${maps}/kube-root-ca.crt`, {}, "application/json", 415, /./],
      [
        "a JSON patch that is none",
        "PATCH",
        () => `${maps}/kube-root-ca.crt`,
        {},
        "application/json-patch+json",
        400,
        /./,
      ],
      [
        "a JSON patch that does not fit",
        "PATCH",
        () => `${maps}/kube-root-ca.crt`,
        [{ op: "remove", path: "/nothing" }],
        "application/json-patch+json",
        422,
        /./,
      ],
      [
        "a Service without ports",
        "POST",
        () => `${home}/services`,
        { metadata: { name: "x" }, spec: {} },
        "application/json",
        422,
        /spec\.ports/,
      ],
      [
        "a pod without an image",
        "POST",
        () => `${home}/pods`,
        { metadata: { name: "x" }, spec: { containers: [{ name: "c" }] } },
        "application/json",
        422,
        /spec\.containers\[0\]\.image/,
      ],
      [
        "two containers of one name",
        "POST",
        () => `${home}/pods`,
        {
          metadata: { name: "x" },
          spec: {
            containers: [
              { name: "c", image: "i" },
              { name: "c", image: "i" },
            ],
          },
        },
        "application/json",
        422,
        /spec\.containers\[1\]\.name.*Duplicate/,
      ],
      [
        "an unknown resource",
        "GET",
        () => `${home}/frobs`,
        undefined,
        "",
        404,
        /could not find the requested resource/,
      ],
      [
        "an unknown group",
        "GET",
        () => "/apis/frob.io/v1/frobs",
        undefined,
        "",
        404,
        /could not find the requested resource|404/,
      ],
      ["a method that is not for this", "POST", () => `${maps}/kube-root-ca.crt`, {}, "application/json", 405, /./],
    ];
    for (const [what, method, path, body, type, code, message] of rows) {
      it(what, async () => {
        const answer = await api.client.call(method, path(), { body, ...(type && { type }) });
        assert.equal(answer.code, code, JSON.stringify(answer.body));
        const text = typeof answer.body === "string" ? answer.body : answer.body.message;
        assert.match(text, message);
        if (typeof answer.body !== "string")
          assert.deepEqual([answer.body.kind, answer.body.status, answer.body.code], ["Status", "Failure", code]);
      });
    }

    it("several mistakes are told at once", async () => {
      const { body } = await api.client.call("POST", `${home}/pods`, {
        body: {
          metadata: { name: "BAD" },
          spec: {
            restartPolicy: "Sometimes",
            containers: [{ name: "c", image: "i", ports: [{ containerPort: 70000 }] }],
          },
        },
      });
      const fields = body.details.causes.map(({ field }: { field: string }) => field);
      for (const field of ["metadata.name", "spec.restartPolicy", "spec.containers[0].ports[0].containerPort"])
        assert.ok(fields.includes(field), `${field} in ${fields}`);
    });

    it("a body that is too large", async () => {
      const { code, body } = await api.client.call("POST", maps, {
        body: { metadata: { name: "big" }, data: { a: "x".repeat(4 * 1024 * 1024) } },
      });
      assert.deepEqual([code, body.reason], [413, "RequestEntityTooLarge"]);
    });

    it("unknown fields are warned of, or refused when the client is strict", async () => {
      const body = { metadata: { name: "unknown" }, dat: { a: "b" } };
      const strict = await api.client.call("POST", `${maps}?fieldValidation=Strict`, { body });
      assert.deepEqual([strict.code, /unknown field "dat"/.test(strict.body.message)], [400, true]);
      const warned = await api.client.call("POST", `${maps}?fieldValidation=Warn`, { body });
      assert.equal(warned.code, 201);
      assert.match(String(warned.headers["warning"]), /unknown field \\"dat\\"/);
      assert.equal(warned.body.dat, undefined);
    });
  });
});
