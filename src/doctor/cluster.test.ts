import assert from "node:assert/strict";
import { test } from "node:test";
import { systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { systemRandom } from "#base/random";
import { KubeClient } from "#kube";
import { FakeApi } from "../kube/testing.ts";
import { examineCluster } from "./cluster.ts";
import { exitCodeOf, type Finding } from "./finding.ts";
import { findingsAsJson, formatFindings } from "./report.ts";

async function examine(api: FakeApi, signal = AbortSignal.timeout(60_000)): Promise<readonly Finding[]> {
  const clock = systemClock();
  const client = new KubeClient({ config: api.config, log: silentLog(), clock, random: systemRandom });
  try {
    return await examineCluster({ client, namespace: "veil-system", version: "1.0.0", nowMs: clock.now(), signal });
  } finally {
    client.close();
  }
}

/** Each check of the cluster has looked at nothing, and says so. */
function assertBlind(findings: readonly Finding[], reason: RegExp): void {
  for (const { outcome, what } of findings) {
    assert.equal(outcome, "not checked", what);
    assert.match(what, reason);
  }
  const checks = [
    "readiness",
    "versions",
    "enrolment",
    "network policies",
    "certificates",
    "admission",
    "access",
    "neighbours",
    "wireguard",
  ];
  assert.deepEqual([...new Set(findings.map(({ check }) => check))].toSorted(), checks.toSorted());
  assert.equal(exitCodeOf(findings), 2);
}

test("nothing is well that could not be looked at: no right, no answer, no API", async () => {
  const api = await FakeApi.start();
  try {
    api.intercept = (_, response) => {
      response.writeHead(403, { "content-type": "application/json" });
      response.end(JSON.stringify({ kind: "Status", code: 403, reason: "Forbidden", message: "you may not" }));
      return true;
    };
    assertBlind(await examine(api), /you may not/);
    api.intercept = () => true; // and never an answer
    assertBlind(await examine(api, AbortSignal.abort(new Error("no answer within 1 s"))), /no answer within 1 s/);
  } finally {
    await api.stop();
  }
  assertBlind(await examine(api), /got no answer/);
});

test("one right that is missing leaves the other checks as they are", async () => {
  const api = await FakeApi.start();
  try {
    api.intercept = (request, response) => {
      const url = String(request.url);
      if (url.startsWith("/apis?") || url === "/apis") {
        response.writeHead(200, { "content-type": "application/json" });
        response.end(JSON.stringify({ groups: [{ name: "apps" }] }));
        return true;
      }
      if (!url.includes("/secrets/")) return false;
      response.writeHead(403, { "content-type": "application/json" });
      response.end(JSON.stringify({ kind: "Status", code: 403, reason: "Forbidden", message: "no Secrets for you" }));
      return true;
    };
    const findings = await examine(api);
    assert.deepEqual(
      findings
        .filter(({ check, outcome }) => check === "certificates" && outcome === "not checked")
        .map(({ what }) => /no Secrets for you/.test(what)),
      [true],
    );
    assert.ok(findings.some(({ check, outcome }) => check === "readiness" && outcome === "problem"));
    assert.ok(findings.some(({ check, outcome }) => check === "network policies" && outcome === "ok"));
    assert.equal(exitCodeOf(findings), 1);
  } finally {
    await api.stop();
  }
});

test("findings are shown by check, the worst first, with what to do", () => {
  const findings: Finding[] = [
    { check: "clock", outcome: "ok", what: "right" },
    { check: "versions", outcome: "ok", what: "all run 1.0.0" },
    { check: "versions", outcome: "problem", what: "too far apart", todo: "upgrade" },
    { check: "kernel", outcome: "not checked", what: "only root can try it" },
  ];
  assert.equal(
    formatFindings(findings),
    `problem      versions  too far apart
                       do: upgrade
ok           versions  all run 1.0.0
not checked  kernel    only root can try it
ok           clock     right

1 problem, 0 warning, 1 not checked, 2 ok
`,
  );
  const json: unknown = JSON.parse(findingsAsJson(findings));
  assert.deepEqual(json, { exitCode: 1, findings: [findings[2], findings[1], findings[3], findings[0]] });
  assert.equal(exitCodeOf([]), 0);
  assert.equal(exitCodeOf(findings.slice(0, 2)), 0);
  assert.equal(exitCodeOf([{ check: "clock", outcome: "warning", what: "off", todo: "set it" }]), 0);
});
