import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import type { Container, Pod } from "#kube";
import { AddressPool, hardwareAddresses, hostInterfaceName } from "./addresses.ts";
import { quote, setupScript, underRun } from "./container-script.ts";
import { podPhase, podStatus, type ContainerFacts, type ContainerState, type PodFacts } from "./container-state.ts";
import { wantsEnrolment } from "./enrolment-gate.ts";
import { containerEnvironment, expand, needField } from "./environment.ts";
import { hostsFile, resolvConf } from "./name-files.ts";
import { podFiles } from "./pod-files.ts";
import { ProbeJudge } from "./probes.ts";
import { execFileSync } from "node:child_process";

const container: Container = { name: "c", image: "i", command: ["x"] };
const RUNNING: ContainerState = { kind: "running", startedMs: 1_000, started: true, ready: true };

function ended(exitCode: number): ContainerState {
  return { kind: "ended", exitCode, reason: "x", message: "", startedMs: 1_000, endedMs: 2_000 };
}

function one(state: ContainerState, attempt = 1): ContainerFacts {
  return { container, attempt, restarts: attempt - 1, state, last: undefined };
}

function facts(states: readonly ContainerFacts[], more: Partial<PodFacts> = {}): PodFacts {
  return {
    uid: "u",
    startedMs: 0,
    podIp: "10.244.1.2",
    hostIp: "172.20.0.11",
    veth: "veth0",
    init: [],
    containers: states,
    restartPolicy: "Always",
    stopping: false,
    ...more,
  };
}

test("addresses are given out once, never those of network, gateway and broadcast, and used again late", () => {
  const pool = new AddressPool("10.244.1.0/29");
  assert.equal(pool.gateway, "10.244.1.1");
  pool.hold("10.244.1.3");
  const taken = [pool.take(), pool.take()];
  assert.deepEqual(taken, ["10.244.1.2", "10.244.1.4"]);
  pool.release("10.244.1.2");
  assert.equal(pool.take(), "10.244.1.5");
  assert.deepEqual([pool.take(), pool.take()], ["10.244.1.6", "10.244.1.2"]);
  assert.throws(() => pool.take(), { code: "KUBELET_NO_ADDRESS" });
});

test("interface names fit the kernel and differ by pod; hardware addresses carry the address", () => {
  assert.equal(hostInterfaceName("a").length, 15);
  assert.notEqual(hostInterfaceName("a"), hostInterfaceName("b"));
  const [ip] = [new AddressPool("10.244.1.0/24").take()];
  assert.deepEqual(hardwareAddresses(ip), { pod: "0a:00:0a:f4:01:02", host: "ee:00:0a:f4:01:02" });
});

test("the phase follows the containers and the restart policy", () => {
  const waiting: ContainerState = { kind: "waiting", reason: "ContainerCreating", message: "" };
  const rows: [PodFacts, string][] = [
    [facts([one(waiting, 0)]), "Pending"],
    [facts([one(RUNNING)]), "Running"],
    [facts([one(ended(0))]), "Running"],
    [facts([one(ended(0))], { restartPolicy: "OnFailure" }), "Succeeded"],
    [facts([one(ended(1))], { restartPolicy: "OnFailure" }), "Running"],
    [facts([one(ended(1))], { restartPolicy: "Never" }), "Failed"],
    [facts([one(ended(0)), one(ended(3))], { restartPolicy: "Never" }), "Failed"],
    [facts([one(ended(0)), one(RUNNING)], { restartPolicy: "Never" }), "Running"],
    [facts([one(ended(0))], { stopping: true }), "Succeeded"],
    [facts([one(waiting, 0)], { init: [one(ended(2))], restartPolicy: "Never" }), "Failed"],
  ];
  for (const [given, phase] of rows) assert.equal(podPhase(given), phase);
});

test("a condition keeps its time until it changes, and others' conditions stay", () => {
  const first = podStatus(facts([one(RUNNING)]), undefined, 10_000);
  const foreign = { type: "veil.dev/x", status: "True" };
  const old = { ...first, conditions: [...(first.conditions ?? []), foreign] };
  const second = podStatus(facts([one({ ...RUNNING, ready: false })]), old, 60_000);
  const find = (type: string) => second.conditions?.find((condition) => condition.type === type);
  assert.equal(find("Initialized")?.lastTransitionTime, "1970-01-01T00:00:10Z");
  assert.deepEqual(find("Ready"), {
    type: "Ready",
    status: "False",
    reason: "ContainersNotReady",
    message: "containers with unready status: [c]",
    lastTransitionTime: "1970-01-01T00:01:00Z",
  });
  assert.deepEqual(find("veil.dev/x"), foreign);
});

test("a probe's thresholds count answers in a row, and failures only after the start", () => {
  const judge = new ProbeJudge({ successThreshold: 2, failureThreshold: 2 });
  assert.equal(judge.add("no", true), undefined);
  assert.equal(judge.add("no", true), undefined);
  assert.equal(judge.add(undefined, true), undefined);
  assert.deepEqual(judge.add(undefined, true), { ok: true, message: "" });
  assert.equal(judge.add("a", false), undefined);
  assert.equal(judge.add(undefined, false), undefined);
  assert.equal(judge.add("a", false), undefined);
  assert.deepEqual(judge.add("b", false), { ok: false, message: "b" });
  assert.equal(judge.add("c", false), undefined);
});

test("labels ask for enrolment, a pod's own label against it counts more", () => {
  const on = { "io.cilium/mtls-enabled": "true" };
  const ambient = { "istio.io/dataplane-mode": "ambient" };
  assert.ok(wantsEnrolment({}, on));
  assert.ok(wantsEnrolment(ambient, {}));
  assert.ok(!wantsEnrolment({}, {}));
  assert.ok(!wantsEnrolment({}, { "io.cilium/mtls-enabled": "yes" }));
  assert.ok(!wantsEnrolment({ "io.cilium/mtls-enabled": "false" }, on));
  assert.ok(!wantsEnrolment({ "istio.io/dataplane-mode": "none" }, ambient));
});

test("variables come in order and refer to earlier ones", async () => {
  const reader = {
    content: async (kind: string, _namespace: string, name: string) =>
      name === "gone" ? undefined : { KEY: Buffer.from(`${kind} ${name}`) },
  };
  const pod: Pod = { metadata: { name: "p", namespace: "n", labels: { app: "a" } }, spec: { containers: [container] } };
  const from = { pod, podIp: "10.0.0.1", hostIp: "10.0.0.2" };
  const env = await containerEnvironment(
    {
      ...container,
      envFrom: [{ prefix: "P_", configMapRef: { name: "m" } }],
      env: [
        { name: "A", value: "1" },
        { name: "B", value: "$(A)$(NOT)$$(A)" },
        { name: "NAME", valueFrom: { fieldRef: { fieldPath: "metadata.name" } } },
        { name: "APP", valueFrom: { fieldRef: { fieldPath: "metadata.labels['app']" } } },
        { name: "S", valueFrom: { secretKeyRef: { name: "s", key: "KEY" } } },
        { name: "MISSING", valueFrom: { secretKeyRef: { name: "gone", key: "KEY", optional: true } } },
      ],
    },
    from,
    { base: { A: "0" }, reader },
  );
  assert.deepEqual(env, { A: "1", P_KEY: "configMap m", B: "1$(NOT)$(A)", NAME: "p", APP: "a", S: "secret s" });
  const wrong = { ...container, env: [{ name: "X", valueFrom: { secretKeyRef: { name: "gone", key: "K" } } }] };
  await assert.rejects(containerEnvironment(wrong, from, { base: {}, reader }), {
    code: "KUBELET_ENVIRONMENT",
    message: /n\/gone/,
  });
  assert.throws(() => needField(from, "spec.magic", "env X"), { code: "KUBELET_UNSUPPORTED", message: /spec\.magic/ });
});

test("expansion never runs away and leaves other text alone", () => {
  fc.assert(
    fc.property(fc.string(), fc.dictionary(fc.constantFrom("A", "B"), fc.string()), (text, variables) => {
      const out = expand(text, variables);
      if (!text.includes("$")) assert.equal(out, text);
    }),
  );
});

test("a word reaches the shell as it is", () => {
  fc.assert(
    fc.property(
      fc.string({ maxLength: 20 }).filter((word) => !word.includes("\0")),
      (word) => {
        assert.equal(execFileSync("sh", ["-c", `printf %s ${quote(word)}`], { encoding: "utf8" }), word);
      },
    ),
    { numRuns: 15 },
  );
});

test("paths below /run are told apart, also by their other name", () => {
  assert.equal(underRun("/var/run/secrets/x"), "secrets/x");
  assert.equal(underRun("/run/a/../b"), "b");
  for (const path of ["/run", "/runner/x", "/etc/run/x", "/run/../etc/passwd"]) assert.equal(underRun(path), undefined);
});

test("a container gets a /run of its own, and a /proc unless it shares the node's pids", () => {
  const plan = {
    files: podFiles("/s", "u").container("c"),
    attempt: 3,
    sandbox: undefined,
    hostPid: false,
    command: ["x"],
    environment: { A: "it's" },
    marks: {},
    workingDir: "/",
    mounts: [{ source: "/s/v", target: "/var/run/secrets/t", readOnly: true, isFolder: true }],
  };
  const script = setupScript(plan);
  assert.match(script, /mount -n --rbind -o ro '\/s\/v' '\/s\/pods\/u\/containers\/c\/run\/secrets\/t'/);
  assert.match(script, /--move '[^']*\/run' \/run/);
  assert.match(script, /mount -n -t proc/);
  assert.match(script, /exec env -i 'A=it'\\''s' "\$@"/);
  assert.doesNotMatch(setupScript({ ...plan, hostPid: true }), /-t proc/);
});

test("names are looked up in the pod's namespace first", () => {
  const pod: Pod = { metadata: { name: "p", namespace: "shop" }, spec: { containers: [] } };
  assert.equal(
    resolvConf(pod, "10.96.0.10"),
    "nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
  );
  const own: Pod = { ...pod, spec: { containers: [], dnsPolicy: "None", dnsConfig: { nameservers: ["1.2.3.4"] } } };
  assert.equal(resolvConf(own, "10.96.0.10"), "nameserver 1.2.3.4\n");
  assert.match(hostsFile(pod, "10.244.1.2"), /^10\.244\.1\.2\tp$/m);
});
