import assert from "node:assert/strict";
import { generateKeyPairSync } from "node:crypto";
import { describe, it } from "node:test";
import fc from "fast-check";
import { FakeClock } from "#base/clock";
import { seededRandom } from "#base/random";
import type { KubeObject } from "./object.ts";
import { StoredObject, type ObjectKey } from "./stored-object.ts";
import { TokenIssuer } from "./tokens.ts";

const NOW_MS = Date.UTC(2026, 0, 1);

function world() {
  const clock = new FakeClock(NOW_MS);
  const objects = new Map<string, StoredObject>();
  const put = (resource: string, name: string, uid: string): KubeObject => {
    const namespace = resource === "nodes" ? "" : "shop";
    const object: KubeObject = {
      apiVersion: "v1",
      kind: resource,
      metadata: { name, uid, ...(namespace && { namespace }) },
    };
    const key: ObjectKey = { resource, namespace, name };
    objects.set(`${resource}/${name}`, new StoredObject(key, { revision: 1, text: JSON.stringify(object) }));
    return object;
  };
  const make = (): TokenIssuer =>
    new TokenIssuer({
      issuer: "https://test",
      key: generateKeyPairSync("ec", { namedCurve: "prime256v1" }).privateKey,
      clock,
      random: seededRandom(1),
      find: ({ resource, name }) => objects.get(`${resource}/${name}`),
    });
  const account = put("serviceaccounts", "web", "sa-1");
  const pod = put("pods", "web-1", "pod-1");
  const node = put("nodes", "n1", "node-1");
  const issuer = make();
  const issue = (audiences: readonly string[] = []): string =>
    issuer.issue({
      account,
      audiences,
      expirationSeconds: 600,
      pod,
      node: { name: node.metadata.name, uid: node.metadata.uid },
    }).token;
  return { clock, objects, put, make, issuer, account, issue };
}

describe("service account tokens", () => {
  it("say who, which pod and which node", () => {
    const { issuer, issue } = world();
    const verdict = issuer.verify(issue(["istio-ca"]), ["istio-ca", "other"]);
    assert.deepEqual(verdict.user?.groups, [
      "system:serviceaccounts",
      "system:serviceaccounts:shop",
      "system:authenticated",
    ]);
    assert.equal(verdict.user?.name, "system:serviceaccount:shop:web");
    assert.deepEqual(verdict.user?.extra["authentication.kubernetes.io/pod-name"], ["web-1"]);
    assert.deepEqual(verdict.user?.extra["authentication.kubernetes.io/pod-uid"], ["pod-1"]);
    assert.deepEqual(verdict.user?.extra["authentication.kubernetes.io/node-name"], ["n1"]);
    assert.deepEqual(verdict.user?.extra["authentication.kubernetes.io/node-uid"], ["node-1"]);
    assert.match(verdict.user?.extra["authentication.kubernetes.io/credential-id"]?.[0] ?? "", /^JTI=[0-9a-f-]{36}$/);
    assert.deepEqual(verdict.user === undefined ? [] : verdict.audiences, ["istio-ca"]);
  });

  it("are for their audiences only", () => {
    const { issuer, issue } = world();
    assert.match(issuer.verify(issue(["istio-ca"]), []).problem ?? "", /audiences/);
    assert.match(issuer.verify(issue(), ["istio-ca"]).problem ?? "", /audiences/);
    assert.ok(issuer.verify(issue(), []).user);
  });

  it("end with their time", async () => {
    const { clock, issuer, issue } = world();
    const token = issue();
    await clock.advance(599_000);
    assert.ok(issuer.verify(token, []).user);
    await clock.advance(1000);
    assert.match(issuer.verify(token, []).problem ?? "", /expired/);
  });

  for (const resource of ["pods", "serviceaccounts"]) {
    it(`end with the ${resource} they are bound to, also when one of the same name comes`, () => {
      const { objects, put, issuer, issue } = world();
      const token = issue();
      const name = resource === "pods" ? "web-1" : "web";
      objects.delete(`${resource}/${name}`);
      assert.match(issuer.verify(token, []).problem ?? "", /no longer exists/);
      put(resource, name, "another");
      assert.match(issuer.verify(token, []).problem ?? "", /no longer exists/);
    });
  }

  it("of another key, algorithm or issuer are refused, each with its reason", () => {
    const { make, issuer, issue } = world();
    assert.match(make().verify(issue(), []).problem ?? "", /key that is not known/);
    const [head = "", body = "", signature = ""] = issue().split(".");
    const none = Buffer.from('{"alg":"none"}').toString("base64url");
    assert.match(issuer.verify(`${none}.${body}.${signature}`, []).problem ?? "", /algorithm "none"/);
    const forged = Buffer.from(
      JSON.stringify({ ...JSON.parse(Buffer.from(body, "base64url").toString()), sub: "x" }),
    ).toString("base64url");
    assert.match(issuer.verify(`${head}.${forged}.${signature}`, []).problem ?? "", /signature is wrong/);
    assert.match(issuer.verify("a.b", []).problem ?? "", /no JSON Web Token/);
    assert.match(issuer.verify("x".repeat(20_000), []).problem ?? "", /longer than/);
  });

  it("never make the verifier throw or accept", () => {
    const { issuer, issue } = world();
    const token = issue();
    const damage = fc
      .tuple(fc.nat(token.length - 1), fc.constantFrom("A", "a", "0", "_", "-", "."))
      .map(([at, char]) => token.slice(0, at) + char + token.slice(at + 1));
    const parts = (text: string): Buffer[] => text.split(".").map((part) => Buffer.from(part, "base64url"));
    fc.assert(
      fc.property(fc.oneof(fc.string(), damage), (text) => {
        const same =
          parts(text).length === 3 &&
          parts(text).every((part, index) => part.equals(parts(token)[index] ?? Buffer.alloc(0)));
        if (!same) assert.equal(issuer.verify(text, []).user, undefined);
      }),
    );
  });
});
