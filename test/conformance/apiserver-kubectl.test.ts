import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { startApi, type ApiWorld } from "./apiserver-world.ts";

/** What people do with kubectl, done with kubectl. */
describe("kubectl", () => {
  let api: ApiWorld;
  before(async () => {
    api = await startApi("kubectl");
  });
  after(async () => api[Symbol.asyncDispose]());

  const WEB = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: web}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      serviceAccountName: web
      containers:
      - name: main
        image: local/web:1
        env: [{name: A, value: "1"}, {name: B, value: "2"}]
        ports: [{containerPort: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
`;

  it("lists what is served", async () => {
    const resources = await api.kubectl("api-resources", "--no-headers");
    for (const line of [
      /^pods +po +v1 +true +Pod$/m,
      /^deployments +deploy +apps\/v1 +true +Deployment$/m,
      /^namespaces +ns +v1 +false +Namespace$/m,
    ]) {
      assert.match(resources, line);
    }
    assert.match(await api.kubectl("version"), /Server Version: v1\.\d+/);
  });

  it("applies, applies again, changes and prunes fields", async () => {
    assert.match(await api.apply(WEB), /deployment\.apps\/web created/);
    assert.match(await api.apply(WEB), /deployment\.apps\/web unchanged/);
    const changed = WEB.replace('{name: A, value: "1"}, ', "").replace("web:1", "web:2");
    assert.match(await api.apply(changed), /deployment\.apps\/web configured/);
    const [image, env] = (
      await api.kubectl(
        "get",
        "deployment",
        "web",
        "-o",
        "jsonpath={.spec.template.spec.containers[0].image} {.spec.template.spec.containers[0].env[*].name}",
      )
    ).split(" ");
    assert.deepEqual([image, env], ["local/web:2", "B"]);
    assert.equal(await api.kubectl("get", "deployment", "web", "-o", "jsonpath={.metadata.generation}"), "2");
  });

  it("fills defaults and gives a Service an address", async () => {
    const [pull, type, ip] = (
      await api.kubectl(
        "get",
        "deployment/web",
        "service/web",
        "-o",
        "jsonpath={.items[0].spec.template.spec.containers[0].imagePullPolicy} {.items[1].spec.type} {.items[1].spec.clusterIP}",
      )
    ).split(" ");
    assert.deepEqual([pull, type], ["IfNotPresent", "ClusterIP"]);
    assert.match(ip ?? "", /^\d+\.\d+\.\d+\.\d+$/);
  });

  it("applies on the server, and takes back what is no longer applied", async () => {
    const config = (data: string): string =>
      `{apiVersion: v1, kind: ConfigMap, metadata: {name: ssa}, data: {${data}}}`;
    await api.apply(config("a: '1', b: '2'"), "--server-side", "--field-manager=one");
    await api.apply(config("c: '3'"), "--server-side", "--field-manager=two");
    await api.apply(config("b: '4'"), "--server-side", "--field-manager=one");
    assert.equal(await api.kubectl("get", "configmap", "ssa", "-o", "jsonpath={.data}"), '{"b":"4","c":"3"}');
  });

  it("refuses a misspelt field before anything is stored", async () => {
    const { output } = await api.refused(
      "create",
      "configmap",
      "x",
      "--from-literal=a=b",
      "--dry-run=server",
      "--namespace=no-such-namespace",
    );
    assert.match(output, /namespaces "no-such-namespace" not found/);
    await assert.rejects(
      api.apply("{apiVersion: v1, kind: Service, metadata: {name: typo}, spec: {port: [{port: 1}]}}"),
      /unknown field "spec\.port"/,
    );
    assert.match((await api.refused("get", "service", "typo")).output, /services "typo" not found/);
  });

  it("labels, annotates and selects", async () => {
    await api.kubectl("label", "deployment", "web", "tier=front");
    assert.match((await api.refused("label", "deployment", "web", "tier=back")).output, /already has a value/);
    await api.kubectl("label", "deployment", "web", "tier=back", "--overwrite");
    await api.kubectl("annotate", "deployment", "web", "note=hello world");
    assert.equal(
      await api.kubectl("get", "deployments", "-l", "tier in (back),!x", "-o", "name"),
      "deployment.apps/web\n",
    );
    assert.equal(await api.kubectl("get", "deployments", "-l", "tier!=back", "-o", "name"), "");
    await api.kubectl("label", "deployment", "web", "tier-");
    assert.equal(await api.kubectl("get", "deployments", "-l", "tier", "-o", "name"), "");
  });

  it("scales", async () => {
    await api.kubectl("scale", "deployment", "web", "--replicas=0");
    assert.equal(await api.kubectl("get", "deployment", "web", "-o", "jsonpath={.spec.replicas}"), "0");
    assert.match(
      (await api.refused("scale", "deployment", "web", "--current-replicas=5", "--replicas=1")).output,
      /Expected replicas to be 5, was 0/,
    );
  });

  it("patches in every way", async () => {
    await api.kubectl(
      "patch",
      "deployment",
      "web",
      "-p",
      '{"spec":{"template":{"spec":{"containers":[{"name":"main","image":"local/web:3"}]}}}}',
    );
    await api.kubectl("patch", "deployment", "web", "--type=merge", "-p", '{"metadata":{"labels":{"m":"1"}}}');
    await api.kubectl(
      "patch",
      "deployment",
      "web",
      "--type=json",
      "-p",
      '[{"op":"add","path":"/metadata/labels/j","value":"1"}]',
    );
    assert.equal(
      await api.kubectl(
        "get",
        "deployment",
        "web",
        "-o",
        "jsonpath={.metadata.labels.m}{.metadata.labels.j} {.spec.template.spec.containers[0].image} {.spec.template.spec.containers[0].env[0].name}",
      ),
      "11 local/web:3 B",
    );
  });

  it("creates with typed clients, which send protobuf", async () => {
    await api.kubectl("create", "deployment", "typed", "--image=local/x:1", "--replicas=3", "--", "sleep", "1");
    assert.equal(
      await api.kubectl(
        "get",
        "deployment",
        "typed",
        "-o",
        "jsonpath={.spec.replicas} {.spec.template.spec.containers[0].command}",
      ),
      '3 ["sleep","1"]',
    );
    await api.kubectl("create", "secret", "generic", "typed", "--from-literal=key=value");
    assert.equal(
      await api.kubectl("get", "secret", "typed", "-o", "jsonpath={.data.key}"),
      Buffer.from("value").toString("base64"),
    );
    await api.kubectl("create", "role", "typed", "--verb=get", "--resource=pods");
    await api.kubectl("create", "rolebinding", "typed", "--role=typed", `--serviceaccount=${api.namespace}:web`);
    assert.equal(
      (await api.kubectl("auth", "can-i", "get", "pods", `--as=system:serviceaccount:${api.namespace}:web`)).trim(),
      "yes",
    );
  });

  it("prints tables, wide and narrow", async () => {
    assert.match(
      await api.kubectl("get", "service", "web"),
      /^NAME +TYPE +CLUSTER-IP +EXTERNAL-IP +PORT\(S\) +AGE\nweb +ClusterIP +\S+ +<none> +80\/TCP +\d+s\n$/,
    );
    assert.match(
      await api.kubectl("get", "deployments", "-o", "wide"),
      /CONTAINERS +IMAGES +SELECTOR\n.*main +local\/web:3 +app=web/s,
    );
  });

  it("describes", async () => {
    const text = await api.kubectl("describe", "deployment", "web");
    assert.match(text, /Service Account: +web/);
    assert.match(await api.kubectl("describe", "service", "web"), /TargetPort: +80\/TCP/);
  });

  it("explains", async () => {
    assert.match(
      await api.kubectl("explain", "deployment.spec.template.spec.containers"),
      /FIELD: containers <\[\]Container>[\s\S]*imagePullPolicy/,
    );
  });

  it("waits for conditions and deletions", async () => {
    await api.kubectl("create", "configmap", "waited");
    const gone = api.kubectl("wait", "--for=delete", "configmap/waited", "--timeout=120s");
    await api.kubectl("delete", "configmap", "waited");
    await gone;
    await api.kubectl("create", "configmap", "filled");
    const filled = api.kubectl("wait", "--for=jsonpath={.data.ready}=yes", "configmap/filled", "--timeout=120s");
    await api.kubectl("patch", "configmap", "filled", "--type=merge", "-p", '{"data":{"ready":"yes"}}');
    assert.match(await filled, /condition met/);
  });

  it("serves custom resources with their columns, checks and status", async () => {
    const group = `${api.namespace}.test`;
    const name = `widgets.${group}`;
    await api.apply(`
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ${name}}
spec:
  group: ${group}
  scope: Namespaced
  names: {plural: widgets, kind: Widget, shortNames: [wd]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}}
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size}
    - {name: Ready, type: string, jsonPath: '.status.conditions[?(@.type=="Ready")].status'}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [size]
            properties: {size: {type: integer, minimum: 1}, color: {type: string, enum: [red, blue], default: red}, replicas: {type: integer}}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
`);
    try {
      await api.kubectl("wait", "--for=condition=Established", `crd/${name}`, "--timeout=120s");
      const widget = (spec: string): string =>
        `{apiVersion: ${group}/v1, kind: Widget, metadata: {name: one}, spec: {${spec}}}`;
      await api.apply(widget("size: 3"));
      assert.equal(
        await api.kubectl("get", "wd", "one", "-o", "jsonpath={.spec.color} {.metadata.generation}"),
        "red 1",
      );
      const wrong = await api.apply(widget("size: 0, color: green")).then(String, String);
      for (const field of ["spec.size", "spec.color"]) assert.ok(wrong.includes(field), wrong); // in either order
      await api.kubectl(
        "patch",
        "wd",
        "one",
        "--type=merge",
        "--subresource=status",
        "-p",
        '{"spec":{"size":9},"status":{"conditions":[{"type":"Ready","status":"True"}]}}',
      );
      assert.match(await api.kubectl("get", "wd"), /^NAME +SIZE +READY\none +3 +True\n$/);
      await api.kubectl("scale", "wd", "one", "--replicas=4");
      assert.equal(await api.kubectl("get", "wd", "one", "-o", "jsonpath={.spec.replicas}"), "4");
    } finally {
      await api.kubectl("delete", "crd", name);
    }
    assert.match((await api.refused("get", "wd")).output, /(could not find the requested|doesn't have a) resource/);
  });

  it("deletes a namespace with everything in it", async () => {
    const name = `${api.namespace}-gone`;
    await api.kubectl("create", "namespace", name);
    await api.kubectl("create", "configmap", "x", `--namespace=${name}`);
    await api.kubectl("delete", "namespace", name, "--timeout=120s");
    assert.match((await api.refused("get", "configmap", "x", `--namespace=${name}`)).output, /not found/);
  });

  it("says what does not exist here", async () => {
    assert.match((await api.refused("get", "frobs")).output, /the server doesn't have a resource type "frobs"/);
    assert.match((await api.refused("get", "pod", "nobody")).output, /pods "nobody" not found/);
  });
});
