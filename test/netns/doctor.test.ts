import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { eventually, run, startLab, VEIL, type TestLab } from "./harness.ts";

const PORT = 8080;
const GROUP = "networking.k8s.io";

interface Finding {
  readonly check: string;
  readonly outcome: string;
  readonly what: string;
}

/** The embedded API has no NetworkPolicies of its own; a custom kind of the same name is the same to whoever reads it. */
const NETWORK_POLICIES = {
  apiVersion: "apiextensions.k8s.io/v1",
  kind: "CustomResourceDefinition",
  metadata: {
    name: `networkpolicies.${GROUP}`,
    annotations: { "api-approved.kubernetes.io": "https://github.com/kubernetes/enhancements" },
  },
  spec: {
    group: GROUP,
    scope: "Namespaced",
    names: {
      plural: "networkpolicies",
      singular: "networkpolicy",
      kind: "NetworkPolicy",
      listKind: "NetworkPolicyList",
    },
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

function webPolicy(...ports: number[]): object {
  const podSelector = { matchLabels: { app: "web" } };
  const from = [{ podSelector: { matchLabels: { app: "customer" } } }];
  const ingress = [{ from, ports: ports.map((port) => ({ port, protocol: "TCP" })) }];
  return {
    apiVersion: `${GROUP}/v1`,
    kind: "NetworkPolicy",
    metadata: { namespace: "shop", name: "web" },
    spec: { podSelector, ingress },
  };
}

function podOf(name: string, ...program: string[]): object {
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { namespace: "shop", name, labels: { app: name } },
    spec: {
      terminationGracePeriodSeconds: 1,
      containers: [{ name: "main", image: "veil", command: [VEIL, "program", ...program] }],
    },
  };
}

describe("veil doctor in a lab", () => {
  let lab: TestLab;
  before(async () => {
    lab = await startLab("doctor", { nodes: 1 });
    await lab.apply([
      NETWORK_POLICIES,
      { apiVersion: "v1", kind: "Namespace", metadata: { name: "shop", labels: { "io.cilium/mtls-enabled": "true" } } },
      podOf("web", "http-echo", "--port", String(PORT)),
      podOf("customer", "http-echo", "--port", String(PORT)),
    ]);
    for (const name of ["web", "customer"]) await lab.readyPod("shop", name);
  });
  after(async () => {
    await lab?.[Symbol.asyncDispose]();
  });

  async function doctor(...words: string[]): Promise<{ code: number; findings: readonly Finding[] }> {
    const { code, stdout, stderr } = await run([
      VEIL,
      "doctor",
      "--kubeconfig",
      lab.kubeconfig,
      "-o",
      "json",
      ...words,
    ]);
    assert.notEqual(stdout, "", stderr);
    const report = JSON.parse(stdout) as { exitCode: number; findings: Finding[] };
    assert.equal(report.exitCode, code);
    return { code, findings: report.findings };
  }

  const bad = (findings: readonly Finding[]): string[] =>
    findings
      .filter(({ outcome }) => outcome !== "ok")
      .map(({ check, outcome, what }) => `${check}: ${outcome}: ${what}`);

  /** Asks until it says just this: what was applied a moment ago takes effect in its own time. */
  async function untilItSays(expected: RegExp, exitCode: number): Promise<readonly Finding[]> {
    let last = "nothing";
    const found = await eventually(
      "the doctor to say so",
      async () => {
        const { code, findings } = await doctor();
        last = bad(findings).join("\n");
        return expected.test(last) && code === exitCode ? findings : undefined;
      },
      120_000,
    ).catch(() => undefined);
    assert.ok(found, `the doctor said: ${last}`);
    return found;
  }

  it("finds nothing wrong", async () => {
    const findings = await untilItSays(/^$/, 0);
    assert.ok(findings.some(({ what }) => what === "2 running pods enrolled, as labels ask"));
  });

  it("finds a NetworkPolicy that keeps tunnels away, once it is applied, and until 15008 is let in", async () => {
    await lab.apply([webPolicy(PORT)]);
    await untilItSays(
      /^network policies: problem: NetworkPolicy shop\/web lets shop\/customer call shop\/web, but not on TCP 15008[^\n]*$/,
      1,
    );
    await lab.kubectl("-n", "shop", "delete", "networkpolicy", "web");
    await lab.apply([webPolicy(PORT, 15008)]);
    await untilItSays(/^$/, 0);
  });

  it("finds a right that was taken away", async () => {
    await lab.kubectl("-n", "veil-system", "delete", "rolebinding", "veil-agent");
    await untilItSays(
      /^access: problem: the account veil-agent may not list configmaps "istio-ca-root-cert" in veil-system[^\n]*$/,
      1,
    );
  });

  it("says what an account without rights cannot look at", async () => {
    const folder = mkdtempSync(join(tmpdir(), "vt-doctor-"));
    try {
      const token = (await lab.kubectl("-n", "shop", "create", "token", "default")).trim();
      const view = JSON.parse(await lab.kubectl("config", "view", "--raw", "-o", "json")) as {
        users: { user: object }[];
      };
      for (const user of view.users) user.user = { token };
      writeFileSync(join(folder, "config"), JSON.stringify(view));
      const { code, findings } = await doctor("--kubeconfig", join(folder, "config"));
      assert.equal(code, 2, bad(findings).join("\n"));
      assert.deepEqual(new Set(findings.map(({ outcome }) => outcome)), new Set(["not checked"]));
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });

  it("tries a node's kernel and asks the API for the time, from the agent's pod", async () => {
    const agent = (await lab.readyPodOf("veil-system", "app=veil-agent")).metadata?.name ?? "";
    const words = [VEIL, "doctor", "--node", "-o", "json", "--cni-conf-dir", "/nowhere"];
    const { code, stdout } = await lab.execPod("veil-system", agent, ...words);
    const { findings } = JSON.parse(stdout) as { findings: Finding[] };
    assert.deepEqual(bad(findings), ["cni: not checked: ENOENT: no such file or directory, scandir '/nowhere'"]);
    assert.ok(findings.some(({ check, what }) => check === "clock" && what.includes("agree")));
    assert.ok(findings.filter(({ check }) => check === "kernel").length >= 5);
    assert.equal(code, 2);
  });

  it("finds what a kernel, or a process without the rights for it, cannot do", async () => {
    const doctor = [
      VEIL,
      "doctor",
      "--node",
      "--kubeconfig",
      lab.kubeconfig,
      "-o",
      "json",
      "--cni-conf-dir",
      "/nowhere",
    ];
    const kernel = async (...words: string[]): Promise<string[]> => {
      const { stdout, stderr } = await run([...words, ...doctor]);
      assert.notEqual(stdout, "", stderr);
      const { findings } = JSON.parse(stdout) as { findings: Finding[] };
      return bad(findings.filter(({ check }) => check === "kernel"));
    };
    assert.deepEqual(await kernel(), []);
    const without = await kernel("setpriv", "--bounding-set=-net_admin,-net_raw", "--");
    assert.deepEqual(
      without.map((said) => /kernel: problem: .* (\S+): does not work here: ./.exec(said)?.[1]),
      ["routes)", "(SO_ORIGINAL_DST)", "marks"],
    );
    assert.match(
      (await kernel("setpriv", "--bounding-set=-sys_admin", "--")).join("\n"),
      /^kernel: problem: no network namespace can be made: /,
    );
  });

  it("names a kubeconfig that cannot be read, and prints a table", async () => {
    const wrong = await run([VEIL, "doctor", "--kubeconfig", "/nowhere"]);
    assert.equal(wrong.code, 2);
    assert.match(wrong.stderr, /cannot read \/nowhere/);
    const { stdout } = await run([VEIL, "doctor", "--kubeconfig", lab.kubeconfig]);
    assert.match(stdout, /^problem +access +the account veil-agent may not/m);
    assert.match(stdout, /^ +do: install the chart/m);
  });
});
