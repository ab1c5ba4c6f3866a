import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { before, test } from "node:test";
import { parseAllDocuments } from "yaml";
import { ensureHelm } from "#apiserver";
import {
  installedKinds,
  nested,
  readValues,
  renderInstallation,
  VALUE_TABLE,
  type GivenValues,
  type ValueSpec,
} from "#install";

const root = resolve(import.meta.dirname, "../..");
const chart = join(root, "deploy/chart");
const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };
let helm = "";
before(async () => {
  helm = await ensureHelm({ env: process.env });
});

function run(
  args: readonly string[],
  values: GivenValues = {},
): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(helm, [...args, "--values", "-"], {
    input: JSON.stringify(values),
    encoding: "utf8",
    timeout: 120_000,
  });
}

/** What Helm makes of the chart, by kind and name. */
function templated(values: GivenValues): Map<string, unknown> {
  const { status, stdout, stderr } = run(["template", "any", chart, "--include-crds", "--no-hooks"], values);
  assert.equal(status, 0, stderr);
  return byName(parseAllDocuments(stdout).map((document): unknown => document.toJS()));
}

function byName(objects: readonly unknown[]): Map<string, unknown> {
  const named = objects
    .filter((one) => one !== null)
    .map((one) => {
      const { kind, metadata } = one as { kind: string; metadata: { name: string } }; // every object has both
      return [`${kind} ${metadata.name}`, one] as const;
    });
  assert.equal(new Map(named).size, named.length, "two objects of one name");
  return new Map(named.toSorted(([a], [b]) => (a < b ? -1 : 1)));
}

/** What of an object is looked at. */
interface Rendered {
  readonly kind: string;
  readonly metadata: { readonly name: string };
  readonly spec?: {
    readonly template?: {
      readonly spec?: {
        readonly volumes?: readonly { readonly name: string; readonly hostPath?: { readonly path: string } }[];
      };
    };
  };
}

/** Another value than the default that is allowed. */
function otherThan(spec: ValueSpec): unknown {
  const { path, oneOf, range } = spec;
  const chosen: Readonly<Record<string, unknown>> = {
    "image.pullSecrets": [{ name: "registry" }],
    "controller.clusterIP": "10.96.0.9",
    "ca.intermediateLifeDays": 30,
    nodesAtOnce: "10%",
    enrolLabels: ["io.cilium/mtls-enabled"],
    "controller.tolerations": [{ key: "a", operator: "Exists" }],
    "agent.ztunnelListen": "127.0.0.1:15012",
    "proxy.clusterRanges": ["10.0.0.0/8", "fd00::/8"],
    "proxy.threads": "50%",
    "wireguard.strict": "audit",
    "wireguard.interval": "10m",
    "cni.confDir": "/var/lib/cni/conf",
    "cni.binDir": "/home/kubernetes/bin",
    "image.repository": "registry.example:5000/a/veil",
  };
  if (path in chosen) return chosen[path];
  if (oneOf !== undefined) return oneOf.find((one) => one !== spec.default);
  if (range !== undefined) return range[1];
  if (typeof spec.default === "boolean") return !spec.default;
  if (Array.isArray(spec.default)) return [];
  return typeof spec.default === "object" ? { limits: { memory: "1Gi" } } : "other";
}

const CASES: readonly (readonly [string, GivenValues])[] = [
  ["the defaults", {}],
  ...VALUE_TABLE.filter(({ path }) => path !== "proxy.enabled").map(
    (spec) => [`another ${spec.path}`, nested(spec.path, otherThan(spec))] as const,
  ),
  ["tunnels between nodes", { wireguard: { mode: "on", strict: "on" } }],
  [
    "tunnels between nodes, the controller in the agents' pods",
    { controller: { mode: "agents" }, agent: { ztunnelListen: "none" }, wireguard: { mode: "on", interval: "90s" } },
  ],
  ["another ztunnel", { proxy: { enabled: false }, agent: { ztunnelListen: "127.0.0.1:15012" }, mode: "strict" }],
  [
    "the controller in the agents' pods, another ztunnel beside it",
    { controller: { mode: "agents" }, proxy: { enabled: false }, agent: { ztunnelListen: "127.0.0.1:15010" } },
  ],
  ...["gke", "k3s", "microk8s"].map((platform) => [`platform ${platform}`, { platform }] as const),
  ["a folder that is not the platform's", { platform: "k3s", cni: { binDir: "/opt/other/bin" } }],
  ["words that mean something in YAML", { network: "yes", clusterId: "0x10", proxy: { threads: "1" } }],
];

for (const [name, values] of CASES) {
  test(`Helm makes the same objects as veil manifests: ${name}`, () => {
    const ours = renderInstallation(readValues(values), version);
    assert.deepEqual(
      templated(values),
      byName(JSON.parse(JSON.stringify([...installedKinds(), ...ours])) as unknown[]),
    );
  });
}

test("helm lint has nothing to say, with the defaults and with everything else", () => {
  for (const values of [
    {},
    { mode: "strict", proxy: { enabled: false }, agent: { ztunnelListen: "127.0.0.1:15012" } },
  ]) {
    const { status, stdout, stderr } = run(["lint", "--strict", "--quiet", chart], values);
    assert.equal(status, 0, stdout + stderr);
    assert.doesNotMatch(stdout, /WARNING|ERROR/);
  }
});

/** What the chart refuses, and with what words. */
const REFUSED: readonly (readonly [GivenValues, RegExp])[] = [
  [{ nonsense: 1 }, /nonsense/],
  [{ proxy: { thread: "2" } }, /thread/],
  [{ mode: "Strict" }, /mode/],
  [{ platform: "openstack" }, /platform/],
  [{ controller: { mode: null } }, /missing property 'mode'/], // as --reuse-values of an older chart leaves it
  [{ controller: { replicas: 0 } }, /replicas/],
  [{ controller: { replicas: "2" } }, /replicas/],
  [{ namespace: "a\nb" }, /namespace/],
  [{ proxy: { clusterRanges: ["10.0.0.0"] } }, /clusterRanges/],
  [{ cni: { enabled: false, strict: true } }, /nothing would hold pods back/],
  [{ proxy: { enabled: false } }, /nobody would carry the connections of enrolled pods/],
  [{ wireguard: { strict: "on" } }, /nothing for packets to go through/],
  [{ wireguard: { interval: "soon" } }, /interval/],
  [{ enrolLabels: [] }, /nothing could be enrolled/],
  [{ enrolLabels: ["app"] }, /enrolLabels/],
  [{ ca: { rootLifeDays: 60 } }, /nothing outlives what signed it/],
  [{ ca: { workloadLifeHours: 169 } }, /workloadLifeHours/],
  [{ controller: { mode: "agents", clusterIP: "10.96.0.9" } }, /of their own node/],
  [{ controller: { mode: "agents" }, agent: { ztunnelListen: "127.0.0.1:15012" } }, /listens there/],
  [{ controller: { clusterIP: "fd00::9" } }, /ipFamily is IPv4/],
  [{ ipFamily: "IPv6", controller: { clusterIP: "10.96.0.9" } }, /ipFamily is IPv6/],
  [{ ipFamily: "dual", controller: { clusterIP: "10.96.0.9" } }, /a dual service has one of each family/],
];

for (const [values, said] of REFUSED) {
  test(`${JSON.stringify(values)} is refused by Helm, as by veil manifests`, () => {
    const { status, stderr } = run(["template", "any", chart], values);
    assert.notEqual(status, 0);
    assert.match(stderr, said);
    assert.throws(() => readValues(values));
  });
}

/** Where a node's runtime reads configurations and finds plugins. */
const FOLDERS: Readonly<Record<string, readonly [confDir: string, binDir: string]>> = {
  generic: ["/etc/cni/net.d", "/opt/cni/bin"],
  azure: ["/etc/cni/net.d", "/opt/cni/bin"],
  calico: ["/etc/cni/net.d", "/opt/cni/bin"],
  cilium: ["/etc/cni/net.d", "/opt/cni/bin"],
  gke: ["/etc/cni/net.d", "/home/kubernetes/bin"],
  k3s: ["/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/lib/rancher/k3s/data/cni"],
  microk8s: ["/var/snap/microk8s/current/args/cni-network", "/var/snap/microk8s/current/opt/cni/bin"],
};

test("each platform has its folders of the CNI, and GKE the quota for critical pods", () => {
  assert.deepEqual(Object.keys(FOLDERS), VALUE_TABLE.find(({ path }) => path === "platform")?.oneOf);
  for (const [platform, folders] of Object.entries(FOLDERS)) {
    const objects = new Map(
      renderInstallation(readValues({ platform }), version).map((object) => {
        const { kind, metadata, spec } = JSON.parse(JSON.stringify(object)) as Rendered;
        return [`${kind} ${metadata.name}`, spec] as const;
      }),
    );
    const { volumes = [] } = objects.get("DaemonSet veil-agent")?.template?.spec ?? {};
    const mounted = volumes.flatMap(({ name, hostPath }) => (name.startsWith("cni-") ? [hostPath?.path] : []));
    assert.deepEqual(mounted, folders, platform);
    assert.equal(objects.has("ResourceQuota veil-critical-pods"), platform === "gke");
  }
});

test("a release in Veil's own namespace does not make that namespace a second time", () => {
  const inside = run(["template", "any", chart, "--namespace", "veil-system"]);
  assert.equal(inside.status, 0, inside.stderr);
  assert.doesNotMatch(inside.stdout, /^kind: "?Namespace"?$/m);
  assert.match(run(["template", "any", chart]).stdout, /^kind: "?Namespace"?$/m);
});
