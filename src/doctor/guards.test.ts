import assert from "node:assert/strict";
import { test } from "node:test";
import { readValues, renderInstallation } from "#install";
import type { ConfigMap, EndpointSlice, Secret } from "#kube";
import { createKeyPair, issueCertificate, keyPairSigner, type Certificate } from "#x509";
import { accessQuestions, checkAccess, type AccessQuestion } from "./access.ts";
import { checkAdmission, checkWebhooks } from "./admission.ts";
import { checkAuthority, checkBundles } from "./certificates.ts";
import type { AdmissionBinding, AdmissionPolicy, WebhookConfiguration } from "./kinds.ts";
import { judged, namespaceOf, podAt, said } from "./testing.ts";

const NAMESPACE = "veil-system";
const objects = renderInstallation(readValues({}), "0") as AdmissionPolicy[];
const policies = objects.filter(({ kind }) => kind === "ValidatingAdmissionPolicy");
const bindings = (objects as AdmissionBinding[]).filter(({ kind }) => kind === "ValidatingAdmissionPolicyBinding");

function admission(found: AdmissionPolicy[] | undefined, bound = bindings, nodeBound = false): string {
  const account = { metadata: { annotations: nodeBound ? { "veil.dev/node-bound": "true" } : {} } };
  return said(checkAdmission({ namespace: NAMESPACE, policies: found, bindings: bound, account })).join("\n");
}

test("admission policies that are there and bound are well, and each fault is named", () => {
  assert.match(admission(policies), /^ok: both/);
  assert.match(admission(policies.slice(1)), /^problem: there is no ValidatingAdmissionPolicy veil-agent-own-node/);
  assert.match(admission(policies, bindings.slice(1)), /^problem: .*veil-agent-own-node is not bound/);
  const audits = bindings.map((binding) => ({ ...binding, spec: { ...binding.spec, validationActions: ["Audit"] } }));
  assert.match(admission(policies, audits), /^problem: the binding of veil-agent-own-node does not deny/);
  const filled = bindings.map((binding) => ({
    ...binding,
    spec: { ...binding.spec, matchResources: { matchPolicy: "Equivalent", namespaceSelector: {}, objectSelector: {} } },
  }));
  assert.match(admission(policies, filled), /^ok/);
  const narrow = bindings.map((binding) => ({
    ...binding,
    spec: { ...binding.spec, matchResources: { namespaceSelector: { matchLabels: { a: "b" } } } },
  }));
  assert.match(admission(policies, narrow), /^warning: the binding of veil-agent-own-node is for some objects only/);
  const other = policies.map((policy) => ({ ...policy, spec: { ...policy.spec, failurePolicy: "Ignore" } }));
  assert.match(admission(other), /^warning: .*veil-agent-own-node is not what this version installs/);
});

test("an API without admission policies is well only where it holds agents to their nodes itself", () => {
  assert.match(admission(undefined, [], true), /^ok: the API server itself/);
  assert.match(admission(undefined), /^problem: the API has no ValidatingAdmissionPolicies/);
});

function webhook(more: Partial<NonNullable<WebhookConfiguration["webhooks"]>[number]> = {}): WebhookConfiguration {
  const rules = [{ apiGroups: [""], resources: ["pods"], operations: ["UPDATE"] }];
  const clientConfig = { service: { namespace: "guard", name: "guard" } };
  return {
    kind: "ValidatingWebhookConfiguration",
    metadata: { name: "guard" },
    webhooks: [{ name: "guard.example", failurePolicy: "Fail", rules, clientConfig, ...more }],
  };
}

test("a webhook about pods with nobody behind it is found; one that is served, ignored or about others is not", () => {
  const slice = (ready: boolean): EndpointSlice => ({
    addressType: "IPv4",
    metadata: { namespace: "guard", labels: { "kubernetes.io/service-name": "guard" } },
    endpoints: [{ addresses: ["10.0.0.1"], conditions: { ready } }],
  });
  const say = (configuration: WebhookConfiguration, slices: EndpointSlice[] = []) =>
    said(checkWebhooks([configuration], slices, [namespaceOf("shop")])).join("");
  assert.match(
    say(webhook()),
    /^problem: the webhook guard.example .* its service guard\/guard has no ready endpoint: pods of shop/,
  );
  assert.match(say(webhook(), [slice(false)]), /^problem/);
  assert.equal(say(webhook(), [slice(true)]), "");
  assert.equal(say(webhook({ failurePolicy: "Ignore" })), "");
  assert.equal(say(webhook({ rules: [{ apiGroups: ["apps"], resources: ["deployments"], operations: ["*"] }] })), "");
  assert.equal(say(webhook({ namespaceSelector: { matchLabels: { guarded: "yes" } } })), "");
});

const scope = { namespace: NAMESPACE, controllerInAgents: false, plugin: true };

test("accounts that may what they need are well; what is missing or too much is named", () => {
  const answer = (wrong: (question: AccessQuestion) => boolean) =>
    accessQuestions(scope).map((question) => ({
      question,
      allowed: wrong(question) ? !question.expected : question.expected,
    }));
  assert.match(
    said(checkAccess(answer(() => false))).join(""),
    /^ok: 4 accounts may do what the roles need: \d+ questions asked$/,
  );
  const pods = ({ account, resource, verb }: AccessQuestion) =>
    account === "veil-agent" && resource === "pods" && verb === "patch";
  assert.deepEqual(said(checkAccess(answer(pods))), ["problem: the account veil-agent may not patch pods"]);
  const secrets = ({ account, expected }: AccessQuestion) => account === "veil-proxy" && !expected;
  assert.match(
    said(checkAccess(answer(secrets))).join(""),
    /^warning: the account veil-proxy may list secrets, which no role/,
  );
});

test("what is asked follows the mode: subresources, names, and whose account the controller has", () => {
  const questions = accessQuestions({ ...scope, controllerInAgents: true, plugin: false });
  assert.deepEqual([...new Set(questions.map(({ account }) => account))], ["veil-agent", "veil-proxy"]);
  const token = questions.find(({ subresource }) => subresource === "token");
  assert.deepEqual(
    [token?.resource, token?.name, token?.verb, token?.namespace],
    ["serviceaccounts", "veil-cni", "create", NAMESPACE],
  );
});

const DAY = 86_400_000;
const START = Date.parse("2026-01-01T00:00:00Z");
const base64 = (text: string): string => Buffer.from(text).toString("base64");

interface MadeAuthority {
  readonly root: Certificate;
  readonly issuer: Certificate;
}

async function makeAuthority(): Promise<MadeAuthority> {
  const signer = keyPairSigner(await createKeyPair("ecdsa-p256"));
  const { publicKeySpki } = keyPairSigner(await createKeyPair("ecdsa-p256"));
  const names = { commonName: "test", trustDomain: "cluster.local" };
  const root = await issueCertificate({
    purpose: { kind: "root", ...names },
    publicKeySpki: signer.publicKeySpki,
    issuer: { signer, certificate: undefined },
    notBeforeMs: START,
    notAfterMs: START + 365 * DAY,
  });
  const issuer = await issueCertificate({
    purpose: { kind: "intermediate", ...names },
    publicKeySpki,
    issuer: { signer, certificate: root },
    notBeforeMs: START,
    notAfterMs: START + 90 * DAY,
  });
  return { root, issuer };
}

const [own, other] = await Promise.all([makeAuthority(), makeAuthority()]);

function secretOf({ root, issuer }: MadeAuthority): Secret {
  return { data: { "root-cert.pem": base64(root.pem), "ca-cert.pem": base64(issuer.pem) } };
}

function authority(secret: Secret | undefined, days: number): string {
  return said(checkAuthority(secret, NAMESPACE, START + days * DAY)).join("\n");
}

test("an authority is well for as long as it lives and is renewed in time", () => {
  assert.match(
    authority(secretOf(own), 10),
    /^ok: root valid until 2027-01-01, issuer until 2026-04-01, signed by it$/,
  );
  assert.match(
    authority(secretOf(own), 61),
    /^warning: the issuer, due for renewal at half of its life, ends on 2026-04-01$/,
  );
  assert.match(authority(secretOf(own), 91), /^problem: the issuer test has expired on 2026-04-01$/);
  assert.match(authority(secretOf(own), 340), /^warning: the root test ends on 2027-01-01/);
  assert.match(authority(secretOf(own), 366), /^problem: the root test has expired/);
  assert.match(authority(secretOf(own), -1), /^problem: the root test is valid from .* only: this clock is behind/);
});

test("an authority that is not there, cannot be read, or does not belong together is found", () => {
  assert.match(authority(undefined, 10), /^problem: there is no Secret veil-system\/veil-ca/);
  assert.match(
    authority({ data: { "root-cert.pem": base64("no certificate") } }, 10),
    /^problem: the authority cannot be used/,
  );
  assert.match(
    authority(secretOf({ root: own.root, issuer: other.issuer }), 10),
    /^problem: the issuer does not belong to the roots/,
  );
});

function bundle(
  namespace: string,
  text: string,
  labels: Record<string, string> = { "veil.dev/managed-by": "veil-controller" },
): ConfigMap {
  return { metadata: { namespace, labels }, data: { "root-cert.pem": text } };
}

test("trust bundles are compared with the authority, and with each other where it cannot be read", () => {
  const namespaces = [namespaceOf("shop")];
  const pods = judged([podAt("shop/web")], namespaces);
  const known = { value: secretOf(own) };
  const say = (bundles: ConfigMap[], secret: Parameters<typeof checkBundles>[2]["secret"] = known) =>
    said(checkBundles(bundles, pods, { secret })).join("\n");
  assert.match(say([bundle("shop", own.root.pem)]), /^ok: the trust bundle is the authority's roots in 1 namespace$/);
  assert.match(
    say([bundle("shop", other.root.pem)]),
    /^problem: the trust bundle .* does not hold the authority's roots in 1 namespace: shop$/,
  );
  assert.match(say([bundle("shop", "")]), /^problem: the trust bundle .* does not hold/);
  assert.match(say([]), /^problem: there is no trust bundle .* in shop, where pods are enrolled$/);
  assert.match(say([bundle("shop", other.root.pem, {})]), /^warning: somebody else's ConfigMap .*: shop$/);
  const three = [bundle("shop", own.root.pem), bundle("bank", own.root.pem), bundle("plain", other.root.pem)];
  assert.match(say(three, { unknown: "no right" }), /^problem: .* does not hold what most hold in 1 namespace: plain$/);
  assert.match(say(three.slice(0, 2), { unknown: "no right" }), /^ok: the trust bundle is the same in 2 namespaces$/);
});
