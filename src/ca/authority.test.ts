import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeClock } from "#base/clock";
import { silentLog } from "#base/log";
import { CellSet } from "#base/metrics";
import { seededRandom } from "#base/random";
import { kubeError } from "#kube";
import { parseSpiffeId } from "#model/spiffe-id";
import {
  checkPeerLeaf,
  createCsr,
  createKeyPair,
  parseCertificates,
  parseCsr,
  parsePrivateKey,
  verifyPath,
} from "#x509";
import { Authority, LEAF_BACKDATE_MS, type AuthorityOptions, type IssuedCertificate } from "./authority.ts";
import { caMetrics } from "./metrics.ts";
import { SecretBackend } from "./secret-backend.ts";
import { FakeSecrets } from "./testing.ts";

const NOW = Date.UTC(2026, 0, 1);
const DAY = 86_400_000;
const HOUR = DAY / 24;
const id = parseSpiffeId("spiffe://cluster.local/ns/shop/sa/cart");
const never = new AbortController().signal;

function makeAuthority(secrets: FakeSecrets, clock: FakeClock, more: Partial<AuthorityOptions> = {}): Authority {
  return new Authority({
    backend: new SecretBackend({ client: secrets.client() }),
    trustDomain: "cluster.local",
    clock,
    random: seededRandom(7),
    log: silentLog(),
    ...more,
  });
}

async function request() {
  return parseCsr(
    await createCsr(await createKeyPair(), parseSpiffeId("spiffe://cluster.local/ns/other/sa/name")),
    "test",
  );
}

/** As a peer would: chain to the roots, then the leaf. */
function verify({ chain, rootsPem }: IssuedCertificate, nowMs: number): void {
  const certificates = parseCertificates(chain.join(""), "chain");
  verifyPath(certificates, parseCertificates(rootsPem, "roots"), { nowMs, place: "chain" });
  const leaf = certificates[0];
  assert.ok(leaf);
  assert.equal(checkPeerLeaf(leaf.der, { trustDomain: "cluster.local" }), id);
}

async function until(done: () => boolean): Promise<void> {
  for (let turns = 0; !done(); turns++) {
    assert.ok(turns < 2000, "it did not happen");
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

test("the first start makes root and intermediate, the second finds the same, and the lives are as documented", async () => {
  const [secrets, clock] = [new FakeSecrets(), new FakeClock(NOW)];
  const first = makeAuthority(secrets, clock);
  await first.start(never);
  const second = makeAuthority(secrets, clock);
  await second.start(never);
  assert.equal(second.trustBundlePem, first.trustBundlePem);
  const issued = await second.issueWorkload(await request(), id);
  verify(issued, NOW);
  const [leaf, intermediate] = parseCertificates(issued.chain.join(""), "chain");
  const [root] = parseCertificates(issued.rootsPem, "roots");
  assert.deepEqual(
    [leaf, intermediate, root].map((certificate) => [certificate?.notBeforeMs, certificate?.notAfterMs]),
    [
      [NOW - LEAF_BACKDATE_MS, NOW + DAY],
      [NOW - 300_000, NOW + 90 * DAY],
      [NOW - 300_000, NOW + 365 * DAY],
    ],
  );
  await first.drain();
  await assert.rejects(first.issueWorkload(await request(), id), { code: "CA_NOT_READY" });
  await second.drain();
});

test("ten controllers that start at once end up with one authority", async () => {
  const [secrets, clock] = [new FakeSecrets(), new FakeClock(NOW)];
  const authorities = Array.from({ length: 10 }, () => makeAuthority(secrets, clock));
  await Promise.all(authorities.map((authority) => authority.start(never)));
  assert.equal(new Set(authorities.map(({ trustBundlePem }) => trustBundlePem)).size, 1);
  for (const authority of authorities) verify(await authority.issueWorkload(await request(), id), NOW);
});

test("the name comes from the caller of the authority; of the request only the key is used", async () => {
  const authority = makeAuthority(new FakeSecrets(), new FakeClock(NOW));
  await authority.start(never);
  const csr = await request();
  assert.deepEqual(csr.requestedUris, ["spiffe://cluster.local/ns/other/sa/name"]);
  const [leaf] = parseCertificates((await authority.issueWorkload(csr, id)).chain[0] ?? "", "leaf");
  assert.deepEqual(leaf?.extensions.uris, [id]);
  assert.deepEqual(leaf.extensions.dnsNames, []);
  assert.equal(leaf.openssl.subject, undefined);
});

test("a life is given as asked for, and the most there is when more or nothing is asked for", async () => {
  const authority = makeAuthority(new FakeSecrets(), new FakeClock(NOW), { lives: { workloadMs: HOUR } });
  await authority.start(never);
  assert.equal((await authority.issueWorkload(await request(), id, HOUR / 2)).notAfterMs, NOW + HOUR / 2);
  for (const defaulted of [undefined, 0, -5, HOUR + 1, Number.MAX_SAFE_INTEGER]) {
    assert.equal((await authority.issueWorkload(await request(), id, defaulted)).notAfterMs, NOW + HOUR);
  }
});

test("through many renewals of the intermediate every certificate in use verifies, and the root stays", async () => {
  const [secrets, clock] = [new FakeSecrets(), new FakeClock(NOW)];
  const lives = { rootMs: 60 * DAY, intermediateMs: 4 * DAY };
  const pair = [makeAuthority(secrets, clock, { lives }), makeAuthority(secrets, clock, { lives })];
  for (const authority of pair) await authority.start(never);
  const bundle = pair[0]?.trustBundlePem;
  const intermediates = new Set<string>();
  let inUse: IssuedCertificate[] = [];
  for (let hours = 0; hours < 10 * 24; hours += 12) {
    for (const authority of pair) {
      const issued = await authority.issueWorkload(await request(), id);
      intermediates.add(issued.chain[1] ?? "");
      inUse = [...inUse.filter(({ notAfterMs }) => notAfterMs > clock.now()), issued];
      assert.equal(issued.notAfterMs, clock.now() + DAY, "no leaf is ever cut short by its issuer");
      assert.equal(issued.rootsPem, bundle);
    }
    for (const issued of inUse) verify(issued, clock.now());
    for (let step = 0; step < 12; step++) {
      await clock.advance(HOUR);
      await new Promise((resolve) => setTimeout(resolve, 2)); // lets the maintenance end, which uses OpenSSL's threads
    }
  }
  assert.ok(intermediates.size >= 5 && intermediates.size <= 7, `${intermediates.size} intermediates in 10 days`);
  for (const authority of pair) await authority.drain();
});

test("what others keep in the Secret stays when the intermediate is renewed, and the renewal is taken over by the other controller", async () => {
  const [secrets, clock] = [new FakeSecrets(), new FakeClock(NOW)];
  const lives = { intermediateMs: 4 * DAY };
  const [a, b] = [makeAuthority(secrets, clock, { lives }), makeAuthority(secrets, clock, { lives })];
  await a.start(never);
  await b.start(never);
  const object = secrets.objects.get("veil-system/veil-ca");
  assert.ok(object);
  object.data = { ...object.data, note: "a2VlcA==" };
  const before = object.data["ca-cert.pem"];
  await clock.advance(2 * DAY);
  await until(() => secrets.objects.get("veil-system/veil-ca")?.data?.["ca-cert.pem"] !== before);
  const stored = secrets.objects.get("veil-system/veil-ca")?.data;
  assert.equal(stored?.["note"], "a2VlcA==");
  await clock.advance(HOUR);
  const current = Buffer.from(stored?.["ca-cert.pem"] ?? "", "base64").toString();
  for (const authority of [a, b]) {
    let chain: readonly string[] = [];
    for (let turns = 0; chain[1] !== current; turns++) {
      assert.ok(turns < 200);
      chain = (await authority.issueWorkload(await request(), id)).chain;
    }
    await authority.drain();
  }
});

test("a stopped controller that comes back after its intermediate has ended makes a new one under the same root", async () => {
  const [secrets, clock] = [new FakeSecrets(), new FakeClock(NOW)];
  const before = makeAuthority(secrets, clock);
  await before.start(never);
  const bundle = before.trustBundlePem;
  await before.drain();
  await clock.advance(200 * DAY);
  const after = makeAuthority(secrets, clock);
  await after.start(never);
  assert.equal(after.trustBundlePem, bundle);
  verify(await after.issueWorkload(await request(), id), clock.now());
});

test("an unreadable Secret, one that may not be read, and one of other roots are never replaced", async () => {
  const [secrets, clock] = [new FakeSecrets(), new FakeClock(NOW)];
  const running = makeAuthority(secrets, clock);
  await running.start(never);
  const bundle = running.trustBundlePem;
  const object = secrets.objects.get("veil-system/veil-ca");
  assert.ok(object?.data);
  const key = object.data["ca-key.pem"];
  object.data["ca-key.pem"] = "";
  const snapshot = JSON.stringify(object);
  await assert.rejects(makeAuthority(secrets, clock).start(never), { code: "CA_UNREADABLE" });
  await clock.advance(50 * DAY);
  assert.equal(JSON.stringify(secrets.objects.get("veil-system/veil-ca")), snapshot);
  verify(await running.issueWorkload(await request(), id), clock.now());
  object.data["ca-key.pem"] = key ?? "";
  secrets.failure = kubeError("KUBE_FORBIDDEN", "forbidden");
  await assert.rejects(makeAuthority(secrets, clock).start(never), { code: "CA_STORE" });
  secrets.failure = undefined;
  const other = new FakeSecrets();
  await makeAuthority(other, clock).start(never);
  const swapped = other.objects.get("veil-system/veil-ca");
  assert.ok(swapped?.metadata);
  swapped.metadata.resourceVersion = "999";
  secrets.objects.set("veil-system/veil-ca", swapped);
  await clock.advance(2 * HOUR);
  assert.equal(running.trustBundlePem, bundle);
});

test("a clock before the root's beginning and one after its end are told apart", async () => {
  const secrets = new FakeSecrets();
  await makeAuthority(secrets, new FakeClock(NOW)).start(never);
  const early = makeAuthority(secrets, new FakeClock(NOW - HOUR));
  await assert.rejects(early.start(never), { code: "CA_CLOCK_BEHIND" });
  const late = makeAuthority(secrets, new FakeClock(NOW + 366 * DAY));
  await assert.rejects(late.start(never), { code: "CA_ROOT_EXPIRED" });
});

test("a server certificate fits its key and its names, and metrics count what was issued", async () => {
  const cells = new CellSet(caMetrics);
  const authority = makeAuthority(new FakeSecrets(), new FakeClock(NOW), { cells });
  await authority.start(never);
  const { certPem, keyPem } = await authority.issueServer(["veil-controller.veil-system.svc"]);
  const [leaf] = parseCertificates(certPem, "server");
  assert.deepEqual(leaf?.extensions.dnsNames, ["veil-controller.veil-system.svc"]);
  assert.ok(leaf.openssl.checkPrivateKey(parsePrivateKey(keyPem, "key").privateKey));
  assert.throws(() => checkPeerLeaf(leaf.der, { trustDomain: "cluster.local" }), { code: "X509_NO_URI_SAN" });
  await authority.issueWorkload(await request(), id);
  const counted = cells.snapshot().filter(({ name }) => name === "veil_ca_certificates_issued_total");
  assert.deepEqual(Object.fromEntries(counted.map(({ labels, value }) => [labels["kind"], value])), {
    intermediate: 1,
    server: 1,
    workload: 1,
  });
});
