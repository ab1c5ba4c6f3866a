import assert from "node:assert/strict";
import { test } from "node:test";
import type { DaemonSet, Deployment, Event, Node, Pod } from "#kube";
import { checkEnrolment } from "./enrolled-pods.ts";
import { checkNeighbours, type Neighbourhood } from "./neighbours.ts";
import { checkReadiness, type InstallationParts } from "./readiness.ts";
import { judged, namespaceOf, podAt, said } from "./testing.ts";
import { checkVersions } from "./versions.ts";

const NAMESPACE = "veil-system";

function daemonSet(name: string, namespace = NAMESPACE, containers: readonly string[] = []): DaemonSet {
  const template = { spec: { containers: containers.map((name) => ({ name })) } };
  return { metadata: { name, namespace }, spec: { selector: {}, template } };
}

function deployment(name: string, namespace = NAMESPACE, ready = 1): Deployment {
  return {
    metadata: { name, namespace },
    spec: { replicas: 2, selector: {}, template: {} },
    status: { readyReplicas: ready },
  };
}

function rolePod(app: string, node: string, { ready = true, image = "veil:1.2.3", role = "agent" } = {}): Pod {
  const pod = podAt(`${NAMESPACE}/${app}-${node}`, { labels: { app }, node });
  return {
    ...pod,
    spec: { nodeName: node, containers: [{ name: role, image }] },
    status: { phase: "Running", conditions: [{ type: "Ready", status: ready ? "True" : "False" }] },
  };
}

const nodes: Node[] = ["node1", "node2"].map((name) => ({ metadata: { name } }));
const system = namespaceOf(NAMESPACE, {});

function installation(pods: readonly Pod[], more: Partial<InstallationParts> = {}): InstallationParts {
  return {
    namespace: NAMESPACE,
    daemonSets: [daemonSet("veil-agent"), daemonSet("ztunnel")],
    deployments: [deployment("veil-controller", NAMESPACE, 2)],
    nodes,
    pods: judged(pods, [system, namespaceOf("shop")]),
    ...more,
  };
}

const everywhere = ["node1", "node2"].flatMap((node) => [rolePod("veil-agent", node), rolePod("ztunnel", node)]);

test("roles that are ready where they have to be are well", () => {
  assert.deepEqual(said(checkReadiness(installation(everywhere))), [
    "ok: 2 replicas of the controller ready",
    "ok: the agent is ready on all of 2 nodes",
    "ok: the proxy is ready on all of 2 nodes",
  ]);
  const inAgents = [daemonSet("veil-agent", NAMESPACE, ["agent", "controller"]), daemonSet("ztunnel")];
  const [controller] = checkReadiness(installation(everywhere, { deployments: [], daemonSets: inAgents }));
  assert.deepEqual(controller?.what, "the controller runs in the agents' pods");
});

test("a role that is not ready on a node is named, with what that means there", () => {
  const pods = [
    ...everywhere.slice(0, 2),
    rolePod("veil-agent", "node2", { ready: false }),
    rolePod("ztunnel", "node2"),
  ];
  assert.deepEqual(said(checkReadiness(installation(pods))).slice(1, 2), [
    "problem: the agent is not ready on node2: no pod is enrolled there",
  ]);
  const without = [rolePod("veil-agent", "node1"), rolePod("ztunnel", "node1")];
  assert.match(
    said(checkReadiness(installation(without)))[1] ?? "",
    /^warning: the agent does not run on 1 node, .*: node2$/,
  );
  const enrolled = [...without, podAt("shop/web", { node: "node2" })];
  assert.match(
    said(checkReadiness(installation(enrolled)))[2] ?? "",
    /^problem: the proxy is not ready on node2: enrolled pods there/,
  );
});

test("a controller that is away is a problem, one that lacks a replica a warning", () => {
  const say = (deployments: Deployment[]) => said(checkReadiness(installation(everywhere, { deployments })))[0];
  assert.match(say([deployment("veil-controller", NAMESPACE, 1)]) ?? "", /^warning: 1 of 2 replicas/);
  assert.match(say([deployment("veil-controller", NAMESPACE, 0)]) ?? "", /^problem: 0 of 2 replicas/);
  assert.match(
    say([deployment("veil-controller", "elsewhere", 2)]) ?? "",
    /^problem: there is no Deployment veil-controller/,
  );
  assert.match(
    said(checkReadiness(installation(everywhere, { daemonSets: [] })))[1] ?? "",
    /^problem: there is no DaemonSet veil-agent/,
  );
});

test("versions may be one minor apart, and are named when they are more", () => {
  const say = (agent: string, proxy: string, own = "1.2.3") =>
    said(
      checkVersions(
        judged(
          [
            rolePod("veil-agent", "node1", { image: agent }),
            rolePod("ztunnel", "node1", { image: proxy, role: "proxy" }),
          ],
          [system],
        ),
        NAMESPACE,
        own,
      ),
    );
  assert.deepEqual(say("r.io:5000/veil:1.2.3", "r.io:5000/veil:1.2.3"), ["ok: all 2 containers run 1.2.3"]);
  assert.match(
    say("veil:1.2.3", "veil:1.3.0").join(""),
    /^warning: several versions run: controller , agent 1.2.3, proxy 1.3.0$/,
  );
  assert.match(say("veil:1.2.3", "veil:1.4.0").join("\n"), /^problem: the roles are more than one minor version apart/);
  assert.match(say("veil:1.9.0", "veil:2.0.0", "2.0.0").join("\n"), /^problem: the roles are more/);
  assert.match(
    say("veil:1.2.3", "veil:1.2.3", "1.4.0").join("\n"),
    /^warning: this program is 1.4.0, the cluster runs 1.2.3/,
  );
  assert.deepEqual(say("veil", "veil"), ["ok: all 2 containers run veil"]);
  assert.match(
    say("veil:main", "veil@sha256:abc").join(""),
    /^not checked: the images veil:main, veil@sha256:abc do not say/,
  );
  assert.match(said(checkVersions([], NAMESPACE, "1.0.0")).join(""), /^not checked: no pod of Veil/);
});

const NOW = Date.parse("2026-01-01T01:00:00Z");
const namespaces = [namespaceOf("shop"), namespaceOf("plain", {})];

function enrolment(pods: readonly Pod[], events: readonly Event[] = [], spaces = namespaces): string[] {
  return said(checkEnrolment({ pods: judged(pods, spaces), namespaces: spaces }, events, NOW));
}

test("pods that are as their labels ask are well", () => {
  assert.deepEqual(enrolment([podAt("shop/web", { enrolled: true }), podAt("plain/web")]), [
    "ok: 1 running pod enrolled, as labels ask",
  ]);
});

test("a pod that should be enrolled and is not needs a restart, with the reason that its agent gave", () => {
  const event: Event = {
    metadata: {},
    reason: "VeilNotEnrolled",
    message: "not enrolled yet: its namespace cannot be entered",
    involvedObject: { uid: "uid-web" },
  };
  assert.match(
    enrolment([podAt("shop/web")], [event]).join(""),
    /^problem: pod shop\/web is not enrolled, .*: not enrolled yet: its namespace/,
  );
  assert.match(
    enrolment([podAt("shop/web")]).join(""),
    /^problem: pod shop\/web is not enrolled, .*the agent of node1 has not done it/,
  );
  const young = podAt("shop/web");
  assert.match(
    enrolment([{ ...young, status: { ...young.status, startTime: "2026-01-01T00:59:30Z" } }]).join(""),
    /^ok/,
  );
});

test("pods that wait for their network, and such that are enrolled without a label, are named", () => {
  const pod = podAt("shop/web");
  const waiting: Pod = { ...pod, status: { phase: "Pending", startTime: "2026-01-01T00:00:00Z" } };
  assert.match(enrolment([waiting]).join(""), /^problem: pod shop\/web waits on node1 for its network/);
  assert.match(
    enrolment([podAt("plain/web", { enrolled: true })]).join(""),
    /^warning: pod plain\/web is enrolled, and its labels/,
  );
});

test("labels that enrol nothing are named", () => {
  const odd = [namespaceOf("shop", { "io.cilium/mtls-enabled": "yes" })];
  assert.match(
    enrolment([], [], odd).join(""),
    /^warning: namespace shop has a label that enrols nothing: io.cilium\/mtls-enabled=yes/,
  );
  const pod = podAt("plain/web", { labels: { "istio.io/dataplane-mode": "ambient" } });
  const host: Pod = { ...pod, spec: { hostNetwork: true, containers: [] } };
  assert.match(
    enrolment([host]).join(""),
    /^warning: 1 pod with a label that asks for it cannot be enrolled, as it uses its node's network: plain\/web$/,
  );
});

const alone: Neighbourhood = {
  namespace: NAMESPACE,
  pods: judged(
    [
      podAt(`${NAMESPACE}/veil-agent-1`, { labels: { app: "veil-agent" } }),
      podAt(`${NAMESPACE}/veil-controller-1`, { labels: { app: "veil-controller" } }),
      podAt("kube-system/cilium-1", { labels: { "k8s-app": "cilium" } }),
    ],
    [],
  ),
  namespaces: [namespaceOf("shop")],
  ciliumConfig: { data: { "cni-exclusive": "false", "enable-bpf-masquerade": "false" } },
  felix: [],
  calico: [],
};

test("Veil alone, beside a Cilium that leaves it room, is well", () => {
  assert.match(said(checkNeighbours(alone)).join(""), /^ok/);
});

test("a second Veil, Istio's agents and Cilium's own mutual TLS are found", () => {
  const say = (more: Partial<Neighbourhood>) => said(checkNeighbours({ ...alone, ...more })).join("\n");
  const beside = (place: string, labels: Record<string, string> = {}): Pick<Neighbourhood, "pods"> => ({
    pods: [...alone.pods, ...judged([podAt(place, { labels })], [])],
  });
  for (const app of ["veil-agent", "veil-controller"]) {
    assert.match(say(beside("other/one", { app })), /^problem: Veil is installed in other, too/);
  }
  const istio = beside("istio-system/istio-cni-node-1", { "k8s-app": "istio-cni-node" });
  assert.match(say(istio), /^warning: Istio is installed \(istio-system\)/);
  const ambient = [namespaceOf("shop", { "istio.io/dataplane-mode": "ambient" })];
  assert.match(say({ ...istio, namespaces: ambient }), /^problem: Istio's agents .* both enrol 1 namespace .*: shop$/);
  assert.match(say(beside("istio-system/istiod-1", { app: "istiod" })), /^warning: Istio is installed/);
  assert.match(say(beside("kube-system/ztunnel-cilium-1")), /^problem: Cilium's own mutual TLS/);
  assert.match(
    say({ ciliumConfig: { data: { "cni-exclusive": "true" } } }),
    /^problem: Cilium removes other programs' CNI/,
  );
  assert.match(say({ ciliumConfig: { data: { "enable-ztunnel": "true" } } }), /^problem: Cilium's own mutual TLS/);
});

test("network plugins that would lose the kubelet's probes of enrolled pods are found", () => {
  const say = (more: Partial<Neighbourhood>) => said(checkNeighbours({ ...alone, ...more })).join("\n");
  assert.match(
    say({ ciliumConfig: { data: { "enable-bpf-masquerade": "true" } } }),
    /^problem: Cilium masquerades by BPF .*169\.254\.7\.127/,
  );
  const calico = (calicoVersion: string, bpfEnabled: boolean): string =>
    say({ felix: [{ spec: { bpfEnabled } }], calico: [{ spec: { calicoVersion } }] });
  assert.match(calico("v3.28.1", true), /^problem: Calico v3\.28\.1 judges packets by BPF/);
  for (const [version, bpf] of [
    ["v3.28.1", false],
    ["v3.29.0", true],
    ["v4.0.0", true],
    ["", true],
  ] as const) {
    assert.match(calico(version, bpf), /^ok/, `${version} ${bpf}`);
  }
});
