import assert from "node:assert/strict";
import { test } from "node:test";
import { CodedError } from "#base/errors";
import { installedKinds, renderInstallation } from "./objects.ts";
import { resolveTree, text, value, when } from "./template.ts";
import { VALUE_TABLE } from "./value-table.ts";
import { readValues, type GivenValues } from "./values.ts";

interface Rendered {
  kind: string;
  metadata: { name: string; namespace?: string };
  subjects?: { name: string }[];
  spec?: { template?: { spec: { hostNetwork?: boolean; containers: { args: string[]; image: string }[] } } };
}

const render = (...given: GivenValues[]): Rendered[] => renderInstallation(readValues(...given), "1.2.3") as Rendered[];
const find = (objects: Rendered[], kind: string, name: string): Rendered | undefined =>
  objects.find((one) => one.kind === kind && one.metadata.name === name);
const argsOf = (objects: Rendered[], kind: string, name: string): string[] =>
  find(objects, kind, name)?.spec?.template?.spec.containers[0]?.args ?? [];

test("every object lives in the namespace that was asked for, or in none", () => {
  const homes = new Set(render({ namespace: "mesh", mode: "strict" }).map(({ metadata }) => metadata.namespace));
  assert.deepEqual(homes, new Set([undefined, "mesh"]));
});

test("values stand where the roles read them", () => {
  const objects = render({
    namespace: "mesh",
    image: { repository: "registry.example:5000/veil", tag: "7" },
    agent: { unenrolDeadlineSeconds: 1_000_000 },
    proxy: { clusterRanges: ["10.0.0.0/8", "fd00::/8"] },
  });
  const agent = argsOf(objects, "DaemonSet", "veil-agent");
  assert.equal(agent[agent.indexOf("--unenrol-deadline") + 1], "1000000");
  assert.equal(agent[agent.indexOf("--controller") + 1], "https://veil-controller.mesh.svc:15012");
  const proxy = argsOf(objects, "DaemonSet", "ztunnel");
  assert.equal(proxy[proxy.indexOf("--cluster-ranges") + 1], "10.0.0.0/8,fd00::/8");
  const { image } = find(objects, "DaemonSet", "ztunnel")?.spec?.template?.spec.containers[0] ?? {};
  assert.equal(image, "registry.example:5000/veil:7");
  const controller = argsOf(objects, "Deployment", "veil-controller");
  assert.equal(controller[controller.indexOf("--root-namespace") + 1], "mesh");
});

test("an image without a tag is that of the program itself", () => {
  const { image } = find(render(), "DaemonSet", "ztunnel")?.spec?.template?.spec.containers[0] ?? {};
  assert.equal(image, "docker.io/local/veil:1.2.3");
});

test("only what is wanted is there: one replica needs no budget, another ztunnel no proxy, permissive no policy", () => {
  assert.ok(find(render(), "PodDisruptionBudget", "veil-controller"));
  assert.ok(!find(render({ controller: { replicas: 1 } }), "PodDisruptionBudget", "veil-controller"));
  const other = render({ proxy: { enabled: false }, agent: { ztunnelListen: "127.0.0.1:15012" } });
  assert.ok(!find(other, "DaemonSet", "ztunnel"));
  assert.ok(!find(render(), "PeerAuthentication", "veil-mode"));
  assert.ok(find(render({ mode: "strict" }), "PeerAuthentication", "veil-mode"));
});

test("in the agents' pods the controller is a container, and its rights are the agents'", () => {
  const objects = render({ namespace: "mesh", controller: { mode: "agents" } });
  const { containers = [] } = find(objects, "DaemonSet", "veil-agent")?.spec?.template?.spec ?? {};
  const [agent, controller] = containers.map(({ args }) => args.join(" "));
  assert.equal(containers.length, 2);
  assert.match(agent ?? "", /--controller https:\/\/127\.0\.0\.1:15012 --controller-name veil-controller\.mesh\.svc /);
  assert.match(controller ?? "", /^controller --pod-name \$\(POD_NAME\) --replica-app veil-agent --namespace mesh /);
  for (const kind of ["Deployment", "Service", "PodDisruptionBudget", "ServiceAccount"]) {
    assert.ok(!find(objects, kind, "veil-controller"), kind);
  }
  const holders = (all: Rendered[], kind: string): unknown =>
    find(all, kind, "veil-controller")?.subjects?.map(({ name }) => name);
  for (const kind of ["ClusterRoleBinding", "RoleBinding"]) {
    assert.deepEqual(holders(objects, kind), ["veil-agent"]);
    assert.deepEqual(holders(render(), kind), ["veil-controller"]);
  }
  assert.equal(find(render(), "DaemonSet", "veil-agent")?.spec?.template?.spec.containers.length, 1);
});

test("a bundle of another name is the one that is written, read and allowed", () => {
  const objects = render({ trustBundle: "veil-roots" });
  for (const [kind, name] of [
    ["Deployment", "veil-controller"],
    ["DaemonSet", "veil-agent"],
  ] as const) {
    const args = argsOf(objects, kind, name);
    assert.equal(args[args.indexOf("--trust-bundle") + 1], "veil-roots");
  }
  const rules = JSON.stringify(objects.filter(({ kind }) => kind === "Role" || kind === "ClusterRole"));
  assert.equal(rules.match(/veil-roots/g)?.length, 2);
  assert.doesNotMatch(rules, /istio-ca-root-cert/);
});

/** What is wrong, and what is said about it. */
const REFUSED: readonly (readonly [GivenValues, string, RegExp])[] = [
  [{ nonsense: 1 }, "INSTALL_VALUE", /there is no value nonsense/],
  [{ proxy: { thread: "2" } }, "INSTALL_VALUE", /there is no value proxy\.thread/],
  [{ proxy: true }, "INSTALL_VALUE", /proxy is not one value/],
  [{ mode: "Strict" }, "INSTALL_VALUE", /mode is one of permissive, strict, not "Strict"/],
  [{ controller: { replicas: 0 } }, "INSTALL_VALUE", /controller\.replicas is a whole number from 1 to 20, not 0/],
  [{ controller: { replicas: "2" } }, "INSTALL_VALUE", /controller\.replicas is a number/],
  [{ namespace: "a\nb" }, "INSTALL_VALUE", /namespace matches/],
  [{ trustDomain: null }, "INSTALL_VALUE", /trustDomain is a string/],
  [{ proxy: { clusterRanges: ["10.0.0.0"] } }, "INSTALL_VALUE", /proxy\.clusterRanges matches/],
  [{ cni: { enabled: false, strict: true } }, "INSTALL_CONTRADICTION", /nothing would hold pods back/],
  [{ proxy: { enabled: false } }, "INSTALL_CONTRADICTION", /nobody would carry the connections/],
  [{ enrolLabels: [] }, "INSTALL_CONTRADICTION", /nothing could be enrolled/],
  [{ enrolLabels: ["app"] }, "INSTALL_VALUE", /enrolLabels matches/],
  [{ ca: { rootLifeDays: 60 } }, "INSTALL_CONTRADICTION", /nothing outlives what signed it/],
  [{ ca: { workloadLifeHours: 169 } }, "INSTALL_VALUE", /from 1 to 168/],
  [{ controller: { mode: "agents", clusterIP: "10.96.0.9" } }, "INSTALL_CONTRADICTION", /of their own node/],
  [
    { controller: { mode: "agents" }, agent: { ztunnelListen: "127.0.0.1:15012" } },
    "INSTALL_CONTRADICTION",
    /listens there/,
  ],
  [{ controller: { clusterIP: "fd00::9" } }, "INSTALL_CONTRADICTION", /ipFamily is IPv4/],
  [{ ipFamily: "IPv6", controller: { clusterIP: "10.96.0.9" } }, "INSTALL_CONTRADICTION", /ipFamily is IPv6/],
  [
    { ipFamily: "dual", controller: { clusterIP: "10.96.0.9" } },
    "INSTALL_CONTRADICTION",
    /a dual service has one of each family/,
  ],
];

for (const [given, code, said] of REFUSED) {
  test(`${JSON.stringify(given)} is refused with the reason`, () => {
    assert.throws(
      () => readValues(given),
      (error) => error instanceof CodedError && error.code === code && said.test(error.message),
    );
  });
}

test("what is given later counts more, maps are merged, and null takes a key away", () => {
  const values = readValues(
    { logLevel: "warn", proxy: { resources: { limits: { memory: "1Gi" } } } },
    { logLevel: "debug", proxy: { resources: { requests: null } } },
  );
  assert.equal(values.get("logLevel"), "debug");
  assert.deepEqual(values.get("proxy.resources"), { limits: { memory: "1Gi" } });
});

test("a tree without its conditions' parts is whole: lists and maps leave them out", () => {
  const values = new Map<string, unknown>([
    ["yes", true],
    ["no", false],
    ["name", "x"],
  ]);
  const tree = {
    a: when({ path: "no" }, 1),
    b: [when({ path: "yes" }, value("name")), when({ path: "no" }, 2)],
    c: text`<${value("name")}>`,
  };
  assert.deepEqual(resolveTree(tree, values), { b: ["x"], c: "<x>" });
});

test("every value says what it is for in a sentence, and stands under one name", () => {
  for (const { path, about } of VALUE_TABLE) assert.match(about, /\.$/, path);
  assert.equal(new Set(VALUE_TABLE.map(({ path }) => path)).size, VALUE_TABLE.length);
});

test("the kinds that users write policies in come with the installation", () => {
  assert.deepEqual(
    installedKinds().map(({ metadata }) => metadata?.name?.split(".")[0]),
    [
      "authorizationpolicies",
      "peerauthentications",
      "serviceentries",
      "workloadentries",
      "ciliumnodes",
      "wireguardnodes",
      "wireguardrotations",
    ],
  );
});
