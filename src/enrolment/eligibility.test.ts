import assert from "node:assert/strict";
import { test } from "node:test";
import { captureOptions, decideEligibility, type PodFacts } from "./eligibility.ts";

const plain: PodFacts = {
  uid: "u",
  name: "p",
  namespace: "shop",
  serviceAccount: "default",
  hostNetwork: false,
  phase: "Running",
  labels: {},
  annotations: {},
};
const mtls = { "io.cilium/mtls-enabled": "true" };
const ambient = { "istio.io/dataplane-mode": "ambient" };

test("each outcome of eligibility has its row", () => {
  const rows: [string, Partial<PodFacts>, Record<string, string>, boolean, string][] = [
    ["no label anywhere", {}, {}, false, "not_labelled"],
    ["Cilium's label on the namespace", {}, mtls, true, "namespace_label"],
    ["Istio's label on the namespace", {}, ambient, true, "namespace_label"],
    ["Cilium's label on the pod", { labels: mtls }, {}, true, "pod_label"],
    ["Istio's label on the pod", { labels: ambient }, {}, true, "pod_label"],
    ["the pod opts out, Istio's way", { labels: { "istio.io/dataplane-mode": "none" } }, mtls, false, "pod_opts_out"],
    [
      "the pod opts out, Cilium's way",
      { labels: { "io.cilium/mtls-enabled": "false" } },
      ambient,
      false,
      "pod_opts_out",
    ],
    ["out beats in", { labels: { ...ambient, "io.cilium/mtls-enabled": "false" } }, {}, false, "pod_opts_out"],
    [
      "an unknown value on the pod says nothing",
      { labels: { "istio.io/dataplane-mode": "magic" } },
      mtls,
      true,
      "namespace_label",
    ],
    ["an unknown value on the namespace says nothing", {}, { "io.cilium/mtls-enabled": "True" }, false, "not_labelled"],
    ["the namespace opts out", {}, { ...mtls, "istio.io/dataplane-mode": "none" }, false, "not_labelled"],
    ["host network", { hostNetwork: true, labels: mtls }, mtls, false, "host_network"],
    ["a sidecar", { annotations: { "sidecar.istio.io/status": "{}" } }, mtls, false, "sidecar"],
    ["kube-system", { namespace: "kube-system", labels: mtls }, mtls, false, "namespace_excluded"],
    ["our own namespace", { namespace: "veil-system" }, mtls, false, "namespace_excluded"],
    ["a pod that has ended", { phase: "Succeeded" }, mtls, false, "ended"],
    ["a pod that has failed", { phase: "Failed", labels: mtls }, mtls, false, "ended"],
    ["a pod that has not begun", { phase: "Pending" }, mtls, true, "namespace_label"],
  ];
  for (const [name, pod, labels, eligible, reason] of rows) {
    assert.deepEqual(decideEligibility({ ...plain, ...pod }, labels), { eligible, reason }, name);
  }
});

test("Veil's own pods are never enrolled, wherever it is installed", () => {
  const of = (namespace: string) => decideEligibility({ ...plain, namespace }, mtls, "mesh").reason;
  assert.deepEqual(
    [of("mesh"), of("kube-system"), of("veil-system")],
    ["namespace_excluded", "namespace_excluded", "namespace_label"],
  );
});

test("a pod's annotations say what is captured of it", () => {
  assert.deepEqual(captureOptions(plain, false), { inbound: true, dns: false, virtualInterfaces: [] });
  const annotated = (annotations: Record<string, string>) => captureOptions({ ...plain, annotations }, false);
  assert.equal(annotated({ "ambient.istio.io/bypass-inbound-capture": "true" }).inbound, false);
  assert.equal(annotated({ "ambient.istio.io/bypass-inbound-capture": "false" }).inbound, true);
  const interfaces = (text: string) => annotated({ "istio.io/reroute-virtual-interfaces": text }).virtualInterfaces;
  assert.deepEqual(interfaces("k6t-eth0, vm1 ,,vm1"), ["k6t-eth0", "vm1"]);
  assert.deepEqual(interfaces('vm"; flush ruleset,no/such,sixteen-is-too-much,vm 2'), []);
  assert.equal(interfaces(Array.from({ length: 20 }, (_, i) => `vm${i}`).join(",")).length, 16);
});

test("a pod's own word on DNS capture comes before the default; another word is none", () => {
  const read = (annotations: Record<string, string>): boolean[] =>
    [true, false].map((byDefault) => captureOptions({ ...plain, annotations }, byDefault).dns);
  const asks = (value: string): boolean[] => read({ "ambient.istio.io/dns-capture": value });
  assert.deepEqual(read({}), [true, false]);
  assert.deepEqual(asks("true"), [true, true]);
  assert.deepEqual(asks("false"), [false, false]);
  assert.deepEqual(asks("yes"), [true, false]);
});
