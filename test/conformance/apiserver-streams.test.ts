import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createServer, type Server } from "node:https";
import type { AddressInfo } from "node:net";
import type { TLSSocket } from "node:tls";
import { after, before, describe, it } from "node:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { WebSocketServer } from "ws";
import { ensureKubectl } from "#apiserver";
import { startApi, type ApiWorld } from "./apiserver-world.ts";

/** What a kubelet saw of a request, and who made it. */
interface Seen {
  readonly url: string;
  readonly user: string | undefined;
}

/** `kubectl logs` and `kubectl exec`, with a stand-in for the kubelet that answers as the real one does. */
describe("logs and exec", () => {
  let api: ApiWorld;
  let kubelet: Server;
  const seen: Seen[] = [];
  const node = "stream-node";

  before(async () => {
    api = await startApi("streams");
    assert.ok(api.own, "a stand-in kubelet is registered; unset VEIL_TEST_KUBECONFIG for this suite");
    const pki = join(api.dataDir, "pki");
    const pem = (name: string): string => readFileSync(join(pki, name), "utf8");
    kubelet = createServer({
      cert: pem("server.crt"),
      key: pem("server.key"),
      ca: pem("ca.crt"),
      requestCert: true,
      rejectUnauthorized: false,
    });
    const note = (url: string | undefined, socket: unknown): void => {
      const tls = socket as TLSSocket;
      const name = tls.authorized ? tls.getPeerCertificate().subject.CN : undefined;
      seen.push({ url: url ?? "", user: Array.isArray(name) ? name[0] : name });
    };
    kubelet.on("request", (message, response) => {
      note(message.url, message.socket);
      const url = message.url ?? "";
      if (url.includes("tailLines=1")) response.end("last line\n");
      else if (url.includes("follow=true")) {
        response.write("first line\n");
        setTimeout(() => response.end("followed line\n"), 200);
      } else response.end("first line\nlast line\n");
    });
    const sockets = new WebSocketServer({
      noServer: true,
      handleProtocols: (offered) => (offered.has("v5.channel.k8s.io") ? "v5.channel.k8s.io" : false),
    });
    kubelet.on("upgrade", (message, socket, head) => {
      note(message.url, message.socket);
      sockets.handleUpgrade(message, socket, head, (client) => {
        const send = (channel: number, text: string): void =>
          client.send(Buffer.concat([Buffer.from([channel]), Buffer.from(text)]));
        const command = new URL(message.url ?? "", "https://x").searchParams.getAll("command");
        const finish = (code: number): void => {
          const status =
            code === 0
              ? { status: "Success" }
              : {
                  status: "Failure",
                  reason: "NonZeroExitCode",
                  details: { causes: [{ reason: "ExitCode", message: String(code) }] },
                };
          send(3, JSON.stringify({ metadata: {}, ...status }));
          client.close(1000);
        };
        if (command[0] !== "cat") {
          send(1, `ran ${command.join(" ")}\n`);
          send(2, "to stderr\n");
          finish(command[0] === "false" ? 7 : 0);
        }
        client.on("message", (data: Buffer) => {
          if (data[0] === 0) send(1, data.subarray(1).toString());
          if (data[0] === 255) finish(0);
        });
      });
    });
    await new Promise<void>((resolve) => kubelet.listen(0, "127.0.0.1", resolve));
    const { port } = kubelet.address() as AddressInfo;
    const client = await api.clientFor(`system:node:${node}`, "system:nodes");
    await client.call("POST", "/api/v1/nodes", {
      body: {
        metadata: { name: node },
        status: {
          addresses: [{ type: "InternalIP", address: "127.0.0.1" }],
          daemonEndpoints: { kubeletEndpoint: { Port: port } },
        },
      },
    });
    client.close();
    const home = `/api/v1/namespaces/${api.namespace}/pods`;
    for (const name of ["p", "unscheduled"]) {
      await api.client.call("POST", home, {
        body: {
          metadata: { name },
          spec: { containers: [{ name: "main", image: "i" }, ...(name === "p" ? [{ name: "side", image: "i" }] : [])] },
        },
      });
    }
    await api.client.call("POST", `${home}/p/binding`, {
      body: { apiVersion: "v1", kind: "Binding", metadata: { name: "p" }, target: { name: node } },
    });
    await api.client.call("PATCH", `${home}/p/status`, {
      type: "application/merge-patch+json",
      body: { status: { phase: "Running" } },
    });
  });
  after(async () => {
    kubelet?.closeAllConnections();
    kubelet?.close();
    await api[Symbol.asyncDispose]();
  });

  it("gives a container's log, whole and its end", async () => {
    assert.equal(await api.kubectl("logs", "p", "-c", "main"), "first line\nlast line\n");
    assert.equal(await api.kubectl("logs", "p", "-c", "side", "--tail=1"), "last line\n");
    assert.match(seen.at(-1)?.url ?? "", new RegExp(`^/containerLogs/${api.namespace}/p/side\\?.*tailLines=1`));
    assert.equal(seen.at(-1)?.user, "kube-apiserver-kubelet-client");
  });

  it("follows a log as it grows", async () => {
    assert.equal(await api.kubectl("logs", "p", "-c", "main", "-f"), "first line\nfollowed line\n");
  });

  it("runs a command and brings back its output and its exit code", async () => {
    assert.equal(await api.kubectl("exec", "p", "-c", "main", "--", "echo", "a b", "&"), "ran echo a b &\n");
    assert.match(seen.at(-1)?.url ?? "", /command=echo&command=a\+b&command=%26/);
    const failed = await api.refused("exec", "p", "-c", "main", "--", "false");
    assert.equal(failed.code, 7);
    assert.match(failed.output, /to stderr/);
  });

  it("passes standard input on", async () => {
    const input = "line\n".repeat(20_000);
    const where = ["--kubeconfig", join(api.dataDir, "admin.kubeconfig"), "-n", api.namespace];
    const program = await ensureKubectl({ env: process.env });
    const child = spawn(program, where.concat("exec", "-i", "p", "-c", "main", "--", "cat"));
    child.stdin.end(input);
    let output = "";
    for await (const chunk of child.stdout) output += String(chunk);
    assert.equal(output, input);
  });

  it("says what is wrong before it connects", async () => {
    assert.match((await api.refused("logs", "p", "-c", "nobody")).output, /container nobody is not valid for pod p/);
    assert.match((await api.refused("logs", "unscheduled")).output, /does not have a host assigned/);
    assert.match((await api.refused("exec", "nobody", "--", "true")).output, /pods "nobody" not found/);
  });

  it("needs the right to do it", async () => {
    await api.kubectl("create", "serviceaccount", "curious");
    await api.kubectl("create", "role", "curious", "--verb=get", "--resource=pods");
    await api.kubectl(
      "create",
      "rolebinding",
      "curious",
      "--role=curious",
      `--serviceaccount=${api.namespace}:curious`,
    );
    const as = `--as=system:serviceaccount:${api.namespace}:curious`;
    assert.match(
      (await api.refused("exec", "p", "-c", "main", as, "--", "true")).output,
      /cannot (get|create) resource "pods\/exec"/,
    );
    assert.match((await api.refused("logs", "p", "-c", "main", as)).output, /cannot get resource "pods\/log"/);
  });

  it("says which node's kubelet cannot be reached", async () => {
    kubelet.closeAllConnections();
    await new Promise((resolve) => kubelet.close(resolve));
    assert.match(
      (await api.refused("logs", "p", "-c", "main")).output,
      new RegExp(`cannot reach the kubelet of node ${node}`),
    );
    assert.match(
      (await api.refused("exec", "p", "-c", "main", "--", "true")).output,
      new RegExp(`cannot reach the kubelet of node ${node}`),
    );
  });
});
