import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect, createServer as createTlsServer } from "node:tls";
import { after, test } from "node:test";
import { Code, ConnectError, createRouterTransport, type Transport } from "@connectrpc/connect";
import { FakeClock, systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { kubeError } from "#kube";
import { IstioCertificateService, Propagation } from "#proto";
import { RpcServer, rpcTransport } from "#rpc";
import { kubeAnnouncer, workloadUid } from "./announcer.ts";
import { certificateRelayRoutes } from "./certificate-relay.ts";
import { LocalServing } from "./local-serving.ts";
import { podFacts } from "./pod-facts.ts";

const folder = mkdtempSync(join(tmpdir(), "vt-agent-"));
after(() => rmSync(folder, { recursive: true }));
const never = new AbortController().signal;
const pod = podFacts({ metadata: { uid: "u1", name: "cart-1", namespace: "shop" } });

test("a pod of the API that says little is read with Kubernetes' defaults", () => {
  assert.deepEqual(podFacts({}), {
    uid: "",
    name: "",
    namespace: "default",
    serviceAccount: "default",
    hostNetwork: false,
    phase: "Pending",
    labels: {},
    annotations: {},
    probePorts: [],
  });
});

test("the ports at which a kubelet asks are those of probes and hooks that go to the pod itself, by number or by name", () => {
  const ports = [{ name: "web", containerPort: 8080 }];
  const main = {
    name: "main",
    ports,
    readinessProbe: { httpGet: { port: "web" } },
    livenessProbe: { tcpSocket: { port: 9000 } },
    startupProbe: { exec: { command: ["true"] } },
    lifecycle: { preStop: { httpGet: { port: 9001 } } },
  };
  const others = [
    { name: "calls", livenessProbe: { grpc: { port: 50_051 } } },
    { name: "elsewhere", livenessProbe: { httpGet: { host: "192.0.2.1", port: 7000 } } },
    { name: "unknown", livenessProbe: { tcpSocket: { port: "web" } } },
    { name: "again", livenessProbe: { tcpSocket: { port: 8080 } } },
  ];
  const initContainers = [{ name: "before", restartPolicy: "Always", startupProbe: { tcpSocket: { port: 7777 } } }];
  const spec = { containers: [main, ...others], initContainers };
  assert.deepEqual(podFacts({ spec }).probePorts, [9000, 8080, 9001, 50_051, 7777]);
});

test("the annotation is set and removed for this very pod; one that is gone is no failure", async () => {
  const patches: unknown[] = [];
  let failure: Error | undefined;
  const client = {
    patch: async (_ref: unknown, at: unknown, { body }: { body: unknown }) => {
      patches.push([at, body]);
      if (failure !== undefined) throw failure;
      return {} as never; // nobody reads it
    },
  };
  const announcer = kubeAnnouncer({ client, controller: createRouterTransport(() => {}), clusterId: "c" });
  await announcer.announce(pod, true, never);
  await announcer.announce(pod, false, never);
  const at = { name: "cart-1", namespace: "shop", signal: never };
  assert.deepEqual(patches, [
    [at, { metadata: { uid: "u1", annotations: { "ambient.istio.io/redirection": "enabled" } } }],
    [at, { metadata: { uid: "u1", annotations: { "ambient.istio.io/redirection": null } } }],
  ]);
  for (const code of ["KUBE_NOT_FOUND", "KUBE_CONFLICT"] as const) {
    failure = kubeError(code, "no such pod");
    await announcer.announce(pod, true, never);
  }
  failure = kubeError("KUBE_UNAVAILABLE", "the api is away");
  await assert.rejects(announcer.announce(pod, true, never), { code: "KUBE_UNAVAILABLE" });
});

test("the nodes that do not know yet are told; a controller that is away is a failure of its own", async () => {
  const asked: unknown[] = [];
  let away = false;
  const controller: Transport = createRouterTransport((router) => {
    router.service(Propagation, {
      await: ({ uid, hbone }) => {
        asked.push([uid, hbone]);
        if (away) throw new ConnectError("gone", Code.Unavailable);
        return { nodesBehind: ["node7"] };
      },
    });
  });
  const announcer = kubeAnnouncer({ client: { patch: () => Promise.reject(new Error()) }, controller, clusterId: "c" });
  assert.deepEqual(await announcer.confirmPlain(pod, never), ["node7"]);
  assert.deepEqual(asked, [["c//Pod/shop/cart-1", false]]);
  assert.equal(workloadUid("c", pod), "c//Pod/shop/cart-1");
  away = true;
  await assert.rejects(announcer.confirmPlain(pod, never), { code: "AGENT_NO_CONTROLLER", message: /gone/ });
});

test("requests of another proxy are passed on with its own credentials, and refusals come back as they are", async () => {
  const seen: (string | null)[] = [];
  const controller = createRouterTransport((router) => {
    router.service(IstioCertificateService, {
      createCertificate: ({ csr }, { requestHeader }) => {
        seen.push(requestHeader.get("authorization"), requestHeader.get("clusterid"));
        if (csr !== "good") throw new ConnectError("CA_NOT_ON_NODE: no such pod", Code.PermissionDenied);
        return { certChain: ["leaf", "roots"] };
      },
    });
  });
  const path = join(folder, "relay.sock");
  const routes = certificateRelayRoutes(controller);
  const server = new RpcServer({ name: "relay", listen: { unix: path }, routes, log: silentLog() });
  await server.start(never);
  const { createClient } = await import("@connectrpc/connect");
  const client = createClient(IstioCertificateService, rpcTransport({ target: `unix://${path}` }));
  const headers = { authorization: "Bearer its-own", clusterid: "c", "x-other": "stays here" };
  assert.deepEqual((await client.createCertificate({ csr: "good" }, { headers })).certChain, ["leaf", "roots"]);
  assert.deepEqual(seen, ["Bearer its-own", "c"]);
  await assert.rejects(client.createCertificate({ csr: "bad" }), (error: unknown) => {
    return (
      error instanceof ConnectError && error.code === Code.PermissionDenied && /CA_NOT_ON_NODE/.test(error.message)
    );
  });
  await server.drain(0);
});

test("the local certificate is trusted through the written root by its names, and is renewed in time", async () => {
  const rootFile = join(folder, "sub", "root.pem");
  const clock = new FakeClock(systemClock().now());
  const renewed = Promise.withResolvers<void>();
  const serving = new LocalServing({ rootFile, clock, log: silentLog(), onRenewed: renewed.resolve });
  assert.throws(() => serving.current());
  await serving.start(never);
  assert.equal(statSync(rootFile).mode & 0o777, 0o644);
  const first = serving.current();
  assert.equal(await handshake(first, rootFile, "localhost"), "ok");
  assert.equal(await handshake(first, rootFile, "other"), "ERR_TLS_CERT_ALTNAME_INVALID");
  await clock.advance(46 * 86_400_000);
  await renewed.promise;
  assert.notEqual(serving.current().certPem, first.certPem);
  await serving.drain(0);
});

test("a root file that cannot be written is named", async () => {
  const rootFile = join(folder, "a-file", "root.pem");
  writeFileSync(join(folder, "a-file"), "");
  const serving = new LocalServing({ rootFile, clock: new FakeClock(), log: silentLog(), onRenewed: () => {} });
  await assert.rejects(serving.start(never), { code: "AGENT_ROOT_FILE", message: /root\.pem/ });
});

async function handshake(
  tls: { certPem: string; keyPem: string },
  rootFile: string,
  servername: string,
): Promise<string> {
  const server = createTlsServer({ cert: tls.certPem, key: tls.keyPem }, (socket) => socket.end());
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  const port = typeof address === "object" ? (address?.port ?? 0) : 0;
  const outcome = await new Promise<string>((resolve) => {
    const socket = connect({ host: "127.0.0.1", port, servername, ca: readFileSync(rootFile, "utf8") });
    socket.once("secureConnect", () => resolve("ok"));
    socket.once("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
  });
  server.close();
  return outcome;
}
