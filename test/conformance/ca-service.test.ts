import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { createServer, type AddressInfo } from "node:net";
import { connect, createServer as createTlsServer, type TLSSocket } from "node:tls";
import { systemClock, type Clock } from "#base/clock";
import type { CodedError } from "#base/errors";
import { silentLog } from "#base/log";
import { systemRandom } from "#base/random";
import { Authority, CallerAuthenticator, certificateServiceRoutes, DirectoryBackend, ServingCertificate } from "#ca";
import { CertificateManager, istioIssuer } from "#identity";
import { parseSpiffeId } from "#model/spiffe-id";
import type { TlsIdentity } from "#model/tls-identity";
import { RpcServer, rpcTransport } from "#rpc";
import { checkPeerLeaf, parseCertificates } from "#x509";
import { agentVerdict } from "../../src/ca/testing.ts";

// From the agent's request over TLS to a certificate with which two peers speak mutual TLS: nothing here is simulated but the
// API server's answer to TokenReview. `openssl s_client` is the independent peer.

const id = parseSpiffeId("spiffe://cluster.local/ns/shop/sa/cart");
const dnsName = "localhost";
const directory = mkdtempSync(join(tmpdir(), "vt-ca-service-"));
const never = new AbortController().signal;
const log = silentLog();
const services: { drain(deadlineMs: number): Promise<void> }[] = [];

/** A clock that is off by so much. */
function skewed(byMs: number): Clock {
  const clock = systemClock({ unref: true });
  return { ...clock, now: () => clock.now() + byMs };
}

/** A controller's authority and certificate service on a port of loopback. */
async function startController(name: string, clock: Clock): Promise<{ authority: Authority; port: number }> {
  const backend = new DirectoryBackend(join(directory, name));
  const authority = new Authority({ backend, trustDomain: "cluster.local", clock, random: systemRandom, log });
  await authority.start(never);
  const serving = new ServingCertificate({ authority, dnsNames: [dnsName], clock, random: systemRandom, log });
  await serving.start(never);
  const reviewer = {
    reviewToken: async (token: string) =>
      token === "good.agent.token"
        ? agentVerdict("node1")
        : agentVerdict("", { authenticated: false, error: "unknown" }),
  };
  const server = new RpcServer({
    name: "controller",
    listen: { host: "127.0.0.1", port: 0, tls: serving.current },
    routes: certificateServiceRoutes({
      authority,
      authenticator: new CallerAuthenticator({ reviewer, clock }),
      pods: { hasWorkload: (...key) => key.join("/") === "node1/shop/cart" },
      clock,
      log,
    }),
    log,
  });
  await server.start(never);
  services.push(server, serving, authority);
  return { authority, port: server.port };
}

function startAgent(options: { port: number; roots: string; token?: string }): CertificateManager {
  const { port, roots, token = "good.agent.token" } = options;
  const transport = rpcTransport({
    target: `https://${dnsName}:${port}`,
    roots: () => roots,
    token: async () => token,
  });
  const clock = systemClock({ unref: true });
  const manager = new CertificateManager({ issuer: istioIssuer({ transport }), clock, random: systemRandom, log });
  services.push(manager);
  return manager;
}

/** Waits for the first failed attempt and gives its error. */
async function firstFailure(manager: CertificateManager, wanted = id): Promise<CodedError> {
  const failed = Promise.withResolvers<CodedError>();
  manager.onChange(() => {
    const failure = manager.state(wanted)?.failure;
    if (failure !== undefined) failed.resolve(failure);
  });
  manager.hold(wanted, "realtime");
  return failed.promise;
}

let controller: { authority: Authority; port: number };
let identity: TlsIdentity;
before(async () => {
  execFileSync("openssl", ["version"]); // fails here, and says so, when the program is missing
  controller = await startController("main", systemClock({ unref: true }));
  const agent = startAgent({ port: controller.port, roots: controller.authority.trustBundlePem });
  identity = await agent.fetch(id, AbortSignal.timeout(60_000));
});
after(async () => {
  for (const service of services.toReversed()) await service.drain(0);
  rmSync(directory, { recursive: true });
});

test("the agent's certificate is for the pod's identity, and openssl verifies it strictly", () => {
  const path = (name: string): string => join(directory, name);
  const [leaf, intermediate] = parseCertificates(identity.chainPem, "chain");
  writeFileSync(path("leaf.pem"), leaf?.pem ?? "");
  writeFileSync(path("intermediate.pem"), intermediate?.pem ?? "");
  writeFileSync(path("roots.pem"), identity.rootsPem);
  const chain = [
    "-x509_strict",
    "-CAfile",
    path("roots.pem"),
    "-untrusted",
    path("intermediate.pem"),
    path("leaf.pem"),
  ];
  assert.match(execFileSync("openssl", ["verify", ...chain], { encoding: "utf8" }), /OK/);
  assert.deepEqual(leaf?.extensions.uris, [id]);
});

test("openssl s_client accepts the controller's certificate by name and root, and refuses it for another name", async () => {
  writeFileSync(join(directory, "bundle.pem"), controller.authority.trustBundlePem);
  const ask = (name: string) =>
    run([
      "s_client",
      "-connect",
      `127.0.0.1:${controller.port}`,
      "-CAfile",
      join(directory, "bundle.pem"),
      "-verify_hostname",
      name,
      "-verify_return_error",
      "-alpn",
      "h2",
      "-brief",
    ]);
  const good = await ask(dnsName);
  assert.equal(good.code, 0, good.text);
  assert.match(good.text, /Verification: OK/);
  assert.match(good.text, /TLSv1\.3/);
  assert.notEqual((await ask("evil.svc")).code, 0);
});

test("two peers speak mutual TLS 1.3 with it, and openssl s_client is let in as the workload that it proves to be", async () => {
  writeFileSync(join(directory, "chain.pem"), identity.chainPem);
  writeFileSync(join(directory, "key.pem"), identity.keyPem, { mode: 0o600 });
  const { port, peers } = await serveMutualTls(identity);
  const ours = connect({
    port,
    host: "127.0.0.1",
    ca: identity.rootsPem,
    cert: identity.chainPem,
    key: identity.keyPem,
    minVersion: "TLSv1.3",
    checkServerIdentity: () => undefined,
  });
  await new Promise((resolve) => ours.once("data", resolve));
  assert.equal(checkPeerLeaf(ours.getPeerCertificate().raw, { trustDomain: "cluster.local", accepted: [id] }), id);
  ours.destroy();
  const { text } = await run([
    "s_client",
    "-connect",
    `127.0.0.1:${port}`,
    "-CAfile",
    join(directory, "bundle.pem"),
    "-cert",
    join(directory, "leaf.pem"),
    "-cert_chain",
    join(directory, "chain.pem"),
    "-key",
    join(directory, "key.pem"),
    "-verify_return_error",
    "-tls1_3",
    "-ign_eof",
    "-brief",
  ]);
  // Its exit status tells how the connection ended, not whether it was let in.
  assert.match(text, /Verification: OK[^]*hello/);
  assert.deepEqual(peers, [id, id]);
});

test("a workload's certificate of another authority with the same names is refused by its chain", async () => {
  const other = await startController("other", systemClock({ unref: true }));
  const agent = startAgent({ port: other.port, roots: other.authority.trustBundlePem });
  const stranger = await agent.fetch(id, AbortSignal.timeout(60_000));
  const { port, peers, refused } = await serveMutualTls(identity);
  const socket = connect({
    port,
    host: "127.0.0.1",
    rejectUnauthorized: false,
    cert: stranger.chainPem,
    key: stranger.keyPem,
  });
  socket.on("error", () => {}); // the server ends it
  await new Promise((resolve) => socket.once("close", resolve));
  assert.deepEqual(peers, []);
  assert.equal(refused.length, 1);
  assert.match(
    String(refused[0]),
    /UNABLE_TO_VERIFY_LEAF_SIGNATURE|SELF_SIGNED_CERT_IN_CHAIN|UNABLE_TO_GET_ISSUER_CERT/,
  );
});

test("each way to fail reaches the agent with its own code", async () => {
  const roots = controller.authority.trustBundlePem;
  const { port } = controller;
  const rejected = await firstFailure(startAgent({ port, roots, token: "a.b.c" }));
  assert.deepEqual([rejected.code, rejected.details["refusal"]], ["IDENTITY_REFUSED", "CA_TOKEN_REJECTED"]);
  const elsewhere = parseSpiffeId("spiffe://cluster.local/ns/shop/sa/till");
  const denied = await firstFailure(startAgent({ port, roots }), elsewhere);
  assert.deepEqual([denied.code, denied.details["refusal"]], ["IDENTITY_REFUSED", "CA_NOT_ON_NODE"]);
  const foreign = parseSpiffeId("spiffe://other.domain/ns/shop/sa/cart");
  const outside = await firstFailure(startAgent({ port, roots }), foreign);
  assert.deepEqual([outside.code, outside.details["refusal"]], ["IDENTITY_REFUSED", "CA_WRONG_TRUST_DOMAIN"]);
  const free = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => free.once("listening", resolve));
  const nobody = (free.address() as AddressInfo).port;
  free.close();
  const unreachable = await firstFailure(startAgent({ port: nobody, roots }));
  assert.equal(unreachable.code, "IDENTITY_AUTHORITY_UNREACHABLE");
  const distrusted = await firstFailure(startAgent({ port, roots: "" }));
  assert.equal(distrusted.code, "IDENTITY_AUTHORITY_UNREACHABLE");
});

test("clocks within the margin work; a node whose clock is behind or ahead is told so", async () => {
  const minute = 60_000;
  const near = await startController("near", skewed(1.9 * minute));
  const agent = startAgent({ port: near.port, roots: near.authority.trustBundlePem });
  assert.equal((await agent.fetch(id, AbortSignal.timeout(60_000))).id, id);
  const ahead = await startController("ahead", skewed(30 * minute));
  const behindUs = startAgent({ port: ahead.port, roots: ahead.authority.trustBundlePem });
  assert.equal((await firstFailure(behindUs)).code, "IDENTITY_CLOCK_BEHIND");
  const old = await startController("old", skewed(-3 * 24 * 60 * minute));
  const aheadOfUs = startAgent({ port: old.port, roots: old.authority.trustBundlePem });
  assert.equal((await firstFailure(aheadOfUs)).code, "IDENTITY_CLOCK_AHEAD");
});

/** A server that lets in whom Veil's rules let in, and notes who that was. */
async function serveMutualTls(own: TlsIdentity) {
  const peers: string[] = [];
  const refused: unknown[] = [];
  const options = {
    ca: own.rootsPem,
    cert: own.chainPem,
    key: own.keyPem,
    requestCert: true,
    rejectUnauthorized: false,
    minVersion: "TLSv1.3",
  } as const;
  const server = createTlsServer(options, (socket: TLSSocket) => {
    socket.on("error", () => {}); // a peer that was refused may reset
    if (!socket.authorized) {
      refused.push(socket.authorizationError);
      socket.destroy();
      return;
    }
    peers.push(checkPeerLeaf(socket.getPeerCertificate().raw, { trustDomain: "cluster.local" }));
    socket.end("hello");
  });
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  services.push({
    async drain() {
      server.close();
    },
  });
  return { port: (server.address() as AddressInfo).port, peers, refused };
}

async function run(args: readonly string[]): Promise<{ code: number | null; text: string }> {
  const child = spawn("openssl", args, { stdio: ["ignore", "pipe", "pipe"], timeout: 200_000 });
  let text = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk: Buffer) => (text += chunk.toString()));
  const code = await new Promise<number | null>((resolve) => child.once("close", resolve));
  return { code, text };
}
