import assert from "node:assert/strict";
import { execFile, execFileSync, spawn, type ChildProcess } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { promisify } from "node:util";
import { RawClient } from "./apiserver-world.ts";

const program = ["--conditions=veil-source", join(import.meta.dirname, "../../src/main/veil.ts"), "apiserver"];

/** The process itself: its options, its files, and what it says when it cannot run. */
describe("veil apiserver", () => {
  let folder = "";
  const children: ChildProcess[] = [];
  before(() => {
    folder = mkdtempSync(join(tmpdir(), "vt-apiserver-process-"));
  });
  after(() => {
    for (const child of children) child.kill("SIGKILL");
    rmSync(folder, { recursive: true, force: true });
  });

  const run = async (...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> =>
    promisify(execFile)(process.execPath, [...program, ...args], { timeout: 200_000 }).then(
      ({ stdout, stderr }) => ({ code: 0, stdout, stderr }),
      (error: unknown) => error as { code: number; stdout: string; stderr: string },
    );

  const start = async (
    data: string,
    ...args: string[]
  ): Promise<{ child: ChildProcess; ready: { listen: string[]; kubeconfig: string } }> => {
    const child = spawn(process.execPath, [...program, "--data", data, ...args], {
      stdio: ["ignore", "pipe", "ignore"],
    });
    children.push(child);
    const line = await new Promise<string>((resolve, reject) => {
      child.stdout?.once("data", (chunk) => resolve(String(chunk)));
      child.once("exit", (code) => reject(new Error(`left with ${code}`)));
    });
    return { child, ready: JSON.parse(line) };
  };

  it("says what is wrong with an option and leaves with 2", async () => {
    const listen = await run("--data", folder, "--listen", "nowhere");
    assert.equal(listen.code, 2);
    assert.match(listen.stderr, /--listen.*HOST:PORT/s);
    const flag = await run("--data", folder, "--lisen", "127.0.0.1:0");
    assert.equal(flag.code, 2);
    assert.match(flag.stderr, /Did you mean --listen/);
    assert.equal((await run("--listen", "127.0.0.1:0")).code, 2);
  });

  it("names the port that is in use", async () => {
    const holder = createServer();
    await new Promise<void>((resolve) => holder.listen(0, "127.0.0.1", resolve));
    const { port } = holder.address() as AddressInfo;
    const { code, stderr } = await run("--data", join(folder, "port"), "--listen", `127.0.0.1:${port}`);
    holder.close();
    assert.equal(code, 1);
    assert.match(stderr, new RegExp(`cannot listen on 127\\.0\\.0\\.1:${port}[\\s\\S]*APISERVER_LISTEN_FAILED`));
  });

  it("holds its data directory alone, and leaves in good order", async () => {
    const data = join(folder, "alone");
    const { child, ready } = await start(data, "--listen", "127.0.0.1:0");
    const second = await run("--data", data, "--listen", "127.0.0.1:0");
    assert.equal(second.code, 1);
    assert.match(second.stderr, /APISERVER_DATA_LOCKED/);
    assert.match(readFileSync(ready.kubeconfig, "utf8"), new RegExp(`server: https://${ready.listen[0]}`));
    const left = new Promise<number | null>((resolve) => child.once("exit", resolve));
    child.kill("SIGTERM");
    assert.equal(await left, 0);
  });

  it("makes kubeconfigs without a server, and says when it cannot", async () => {
    const args = ["--user", "system:node:n1", "--group", "system:nodes", "--server", "https://10.0.0.1:6443"];
    const made = await run("kubeconfig", "--data", join(folder, "alone"), ...args);
    assert.equal(made.code, 0, made.stderr);
    const certificate = /client-certificate-data: (\S+)/.exec(made.stdout)?.[1] ?? "";
    const subject = execFileSync("openssl", ["x509", "-noout", "-subject", "-ext", "extendedKeyUsage"], {
      input: Buffer.from(certificate, "base64"),
    }).toString();
    assert.match(subject, /O ?= ?system:nodes[\s\S]*CN ?= ?system:node:n1[\s\S]*TLS Web Client Authentication/);
    const none = await run("kubeconfig", "--data", join(folder, "nothing"), ...args);
    assert.equal(none.code, 1);
    assert.match(none.stderr, /ca\.crt does not exist[\s\S]*APISERVER_DATA_UNREADABLE/);
  });

  it("refuses writes on a full disk, keeps what it has, and goes on when there is room", async () => {
    const disk = join(folder, "disk");
    mkdirSync(disk);
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=3m", "vt-apiserver-disk", disk]);
    try {
      const { child, ready } = await start(join(disk, "data"), "--listen", "127.0.0.1:0");
      const client = new RawClient(readFileSync(ready.kubeconfig, "utf8"));
      const maps = "/api/v1/namespaces/default/configmaps";
      const kept: string[] = [];
      let refused = { code: 0, message: "" };
      for (let index = 0; index < 200 && refused.code === 0; index++) {
        const { code, body } = await client.call("POST", maps, {
          body: { metadata: { name: `m${index}` }, data: { a: "x".repeat(100_000) } },
        });
        if (code === 201) kept.push(`m${index}`);
        else refused = { code, message: body.message };
      }
      assert.equal(refused.code, 500);
      assert.match(refused.message, /database cannot write.*full/);
      assert.ok(kept.length > 2);
      const { body } = await client.call("GET", maps);
      const listed = new Set<string>(body.items.map((item: { metadata: { name: string } }) => item.metadata.name));
      assert.deepEqual(
        kept.filter((name) => !listed.has(name)),
        [],
        "what was acknowledged is there",
      );
      assert.ok(!listed.has(`m${kept.length}`), "what was refused is not");
      execFileSync("mount", ["-o", "remount,size=30m", disk]);
      assert.equal((await client.call("POST", maps, { body: { metadata: { name: "after" } } })).code, 201);
      client.close();
      const left = new Promise((resolve) => child.once("exit", resolve));
      child.kill("SIGTERM");
      await left;
    } finally {
      for (const child of children) child.kill("SIGKILL");
      execFileSync("umount", ["-l", disk]);
    }
  });
});
