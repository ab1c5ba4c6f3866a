import assert from "node:assert/strict";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { createClient, type ConnectRouter } from "@connectrpc/connect";
import { silentLog } from "#base/log";
import { IstioCertificateService } from "#proto";
import { RpcServer, rpcTransport } from "./index.ts";

const routes = (router: ConnectRouter): void => {
  router.service(IstioCertificateService, {
    createCertificate: (request, context) => ({
      certChain: [request.csr, context.requestHeader.get("authorization") ?? ""],
    }),
  });
};

function folder(): Disposable & { path: string } {
  const path = mkdtempSync(join(tmpdir(), "veil-rpc-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true }) };
}

test("a call over a unix socket carries the token of that moment, and works again after the server was replaced", async () => {
  using dir = folder();
  const unix = join(dir.path, "agent.sock");
  let token = "first";
  const client = createClient(
    IstioCertificateService,
    rpcTransport({ target: `unix://${unix}`, token: async () => token }),
  );
  for (const turn of ["first", "second"]) {
    token = turn;
    const server = new RpcServer({ name: "test", listen: { unix }, routes, log: silentLog() });
    await server.start(new AbortController().signal);
    const { certChain } = await client.createCertificate({ csr: "c" });
    assert.deepEqual(certChain, ["c", `Bearer ${turn}`]);
    await server.drain(100);
  }
});

test("a socket file that nobody answers on is taken over, one that is alive is not", async () => {
  using dir = folder();
  const unix = join(dir.path, "agent.sock");
  writeFileSync(unix, "");
  const first = new RpcServer({ name: "first", listen: { unix }, routes, log: silentLog() });
  await first.start(new AbortController().signal);
  const second = new RpcServer({ name: "second", listen: { unix }, routes, log: silentLog() });
  await assert.rejects(second.start(new AbortController().signal), { code: "RPC_LISTEN" });
  assert.ok(existsSync(unix));
  await first.drain(0);
});

test("a taken port is said with the address", async () => {
  const holder = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => {
    holder.once("listening", resolve);
  });
  const { port } = holder.address() as { port: number };
  const tls = (): { certPem: string; keyPem: string } => ({ certPem: "", keyPem: "" });
  const server = new RpcServer({ name: "test", listen: { host: "127.0.0.1", port, tls }, routes, log: silentLog() });
  await assert.rejects(server.start(new AbortController().signal), {
    code: "RPC_LISTEN",
    message: `test cannot listen on 127.0.0.1:${port}`,
  });
  holder.close();
});

test("addresses that are none are refused at once", () => {
  for (const target of ["", "unix:relative", "unix://host/path", "http://a:1", "https://a", "https://a:1/path"]) {
    assert.throws(() => rpcTransport({ target }), { code: "RPC_TARGET" }, target);
  }
});
