import assert from "node:assert/strict";
import { before, test } from "node:test";
import { Code, ConnectError, createClient, createRouterTransport } from "@connectrpc/connect";
import { FakeClock, systemClock, type Clock } from "#base/clock";
import { silentLog } from "#base/log";
import { CellSet } from "#base/metrics";
import { systemRandom } from "#base/random";
import type { TokenVerdict } from "#kube";
import { parseSpiffeId } from "#model/spiffe-id";
import { IstioCertificateService } from "#proto";
import { createCsr, createKeyPair, parseCertificates } from "#x509";
import { Authority } from "./authority.ts";
import { authorize, parseRequestedIdentity } from "./authorize.ts";
import { CallerAuthenticator } from "./caller.ts";
import { certificateServiceRoutes } from "./certificate-service.ts";
import { caMetrics } from "./metrics.ts";
import { SecretBackend } from "./secret-backend.ts";
import { agentVerdict, FakeSecrets } from "./testing.ts";

const cart = "spiffe://cluster.local/ns/shop/sa/cart";
const till = "spiffe://cluster.local/ns/shop/sa/till";
let authority: Authority;
before(async () => {
  authority = new Authority({
    backend: new SecretBackend({ client: new FakeSecrets().client() }),
    trustDomain: "cluster.local",
    clock: systemClock({ unref: true }),
    random: systemRandom,
    log: silentLog(),
  });
  await authority.start(new AbortController().signal);
});

/** cart runs on node1, till on node2; the token names the node. */
function setUp(options: { clock?: Clock; verdict?: TokenVerdict; runs?: (key: string) => boolean } = {}) {
  const clock = options.clock ?? systemClock();
  const reviewer = {
    reviewToken: async (token: string) => options.verdict ?? agentVerdict(token.split(".")[1] ?? ""),
  };
  const cells = new CellSet(caMetrics);
  const runs = options.runs ?? ((key: string) => ["node1/shop/cart", "node2/shop/till"].includes(key));
  const routes = certificateServiceRoutes({
    authority,
    authenticator: new CallerAuthenticator({ reviewer, clock }),
    pods: { hasWorkload: (...key) => runs(key.join("/")) },
    clock,
    log: silentLog(),
    cells,
  });
  const client = createClient(IstioCertificateService, createRouterTransport(routes));
  const ask = async (wanted: unknown, more: { csr?: string; node?: string; seconds?: number } = {}) => {
    const csr = more.csr ?? (await createCsr(await createKeyPair(), parseSpiffeId(cart)));
    const metadata = wanted === undefined ? {} : { ImpersonatedIdentity: wanted as string };
    const headers = { authorization: `Bearer a.${more.node ?? "node1"}.c` };
    const request = { csr, validityDuration: BigInt(more.seconds ?? 0), metadata };
    return (await client.createCertificate(request, { headers })).certChain;
  };
  return { ask, cells };
}

async function refusal(promise: Promise<unknown>): Promise<{ status: Code; code: string }> {
  try {
    await promise;
  } catch (error) {
    assert.ok(error instanceof ConnectError);
    return { status: error.code, code: error.rawMessage.split(":")[0] ?? "" };
  }
  throw new Error("it was not refused");
}

test("the agent of a node gets the identity of a pod that runs there, in Istio's layout", async () => {
  const chain = await setUp().ask(cart);
  assert.equal(chain.length, 3);
  const [leaf, intermediate, root] = chain.map((pem) => parseCertificates(pem, "answer")[0]);
  assert.deepEqual(leaf?.extensions.uris, [cart]);
  assert.ok(leaf.openssl.checkIssued(intermediate?.openssl ?? leaf.openssl));
  assert.ok(intermediate?.openssl.checkIssued(root?.openssl ?? leaf.openssl));
  for (const pem of chain) assert.ok(pem.endsWith("-----END CERTIFICATE-----\n"));
});

test("a node gets no identity of a pod that runs elsewhere, whatever its request says of itself", async () => {
  const csr = await createCsr(await createKeyPair(), parseSpiffeId(till));
  const { ask } = setUp();
  assert.deepEqual(await refusal(ask(till, { csr })), { status: Code.PermissionDenied, code: "CA_NOT_ON_NODE" });
  assert.deepEqual(await refusal(ask(cart, { node: "node2" })), {
    status: Code.PermissionDenied,
    code: "CA_NOT_ON_NODE",
  });
  const [leaf] = parseCertificates((await ask(cart, { csr }))[0] ?? "", "leaf");
  assert.deepEqual(leaf?.extensions.uris, [cart], "the name in the csr is not believed");
});

test("a pod's own token, even a good one of a pod on the node, gets nothing", async () => {
  const verdict = agentVerdict("node1", { username: "system:serviceaccount:shop:cart" });
  const answer = await refusal(setUp({ verdict }).ask(cart));
  assert.deepEqual(answer, { status: Code.PermissionDenied, code: "CA_NOT_NODE_ACCOUNT" });
});

test("each bad request has its own code, and the service goes on", async () => {
  const { ask, cells } = setUp();
  const cases: [wanted: unknown, more: { csr?: string; seconds?: number }, status: Code, code: string][] = [
    [undefined, {}, Code.InvalidArgument, "CA_NO_IDENTITY"],
    [7, {}, Code.InvalidArgument, "CA_BAD_IDENTITY"],
    ["https://cluster.local/ns/shop/sa/cart", {}, Code.InvalidArgument, "CA_BAD_IDENTITY"],
    ["spiffe://cluster.local/shop/cart", {}, Code.InvalidArgument, "CA_BAD_IDENTITY"],
    ["spiffe://other/ns/shop/sa/cart", {}, Code.PermissionDenied, "CA_WRONG_TRUST_DOMAIN"],
    [cart, { csr: "" }, Code.InvalidArgument, "X509_PEM"],
    [cart, { csr: "x".repeat(20_000) }, Code.InvalidArgument, "X509_TOO_LARGE"],
  ];
  for (const [wanted, more, status, code] of cases)
    assert.deepEqual(await refusal(ask(wanted, more)), { status, code });
  const bad = agentVerdict("node1", { authenticated: false });
  const unknown = await refusal(setUp({ verdict: bad }).ask(cart));
  assert.deepEqual(unknown, { status: Code.Unauthenticated, code: "CA_TOKEN_REJECTED" });
  assert.equal((await ask(cart)).length, 3);
  const refused = cells.snapshot().filter(({ name }) => name === "veil_ca_requests_refused_total");
  assert.equal(
    refused.reduce((sum, { value }) => sum + value, 0),
    cases.length,
  );
});

test("a request that is too large is refused before it is read whole, by whomever it was sent", async () => {
  const { ask } = setUp();
  const { status } = await refusal(ask(cart, { csr: "x".repeat(70_000), node: "not a token" }));
  assert.equal(status, Code.ResourceExhausted);
  assert.equal((await ask(cart)).length, 3);
});

test("a pod that becomes known a moment later is waited for, one that does not is denied after a second", async () => {
  const clock = new FakeClock();
  let known = false;
  const { ask } = setUp({ clock, runs: () => known });
  const early = ask(cart);
  await settle();
  await clock.advance(500);
  known = true;
  await clock.advance(50);
  assert.equal((await early).length, 3);
  known = false;
  const denied = refusal(ask(cart));
  await settle();
  await clock.advance(900);
  let ended = false;
  void denied.then(() => {
    ended = true;
  });
  await settle();
  assert.equal(ended, false);
  await clock.advance(150);
  assert.deepEqual(await denied, { status: Code.PermissionDenied, code: "CA_NOT_ON_NODE" });
});

test("one node cannot take the authority from the others", async () => {
  const clock = new FakeClock();
  const { ask } = setUp({ clock, runs: (key) => key.startsWith("node2") });
  const csr = await createCsr(await createKeyPair(), parseSpiffeId(cart));
  const flood = Array.from({ length: 33 }, () => refusal(ask(cart, { csr })));
  await settle();
  const other = ask(cart, { csr, node: "node2" });
  assert.equal((await other).length, 3);
  for (let i = 0; i < 30; i++) await clock.advance(50);
  const codes = (await Promise.all(flood)).map(({ code }) => code);
  assert.equal(codes.filter((code) => code === "CA_BUSY").length, 1);
  assert.equal(codes.filter((code) => code === "CA_NOT_ON_NODE").length, 32);
});

test("what is signed is made of what was decided, letter by letter", () => {
  const caller = { namespace: "veil-system", serviceAccount: "ztunnel", node: "n", podName: "p", podUid: "u" };
  const asked: string[][] = [];
  const pods = { hasWorkload: (...key: string[]) => asked.push(key) > 0 };
  const rule = { trustDomain: "cluster.local", nodeAccounts: ["veil-system/ztunnel"], pods };
  assert.equal(authorize(caller, parseRequestedIdentity(cart), rule), cart);
  assert.deepEqual(asked, [["n", "shop", "cart"]]);
  const none = { ...rule, nodeAccounts: [] };
  assert.throws(() => authorize(caller, parseRequestedIdentity(cart), none), { code: "CA_NOT_NODE_ACCOUNT" });
});

async function settle(): Promise<void> {
  for (let i = 0; i < 20; i++) await new Promise((resolve) => setTimeout(resolve, 1));
}
