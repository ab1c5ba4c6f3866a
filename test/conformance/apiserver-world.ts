import assert from "node:assert/strict";
import { spawn, execFile, type ChildProcess } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { Agent, request, type RequestOptions } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { parse } from "yaml";
import { ensureKubectl } from "#apiserver";

/**
 * A Kubernetes API under test: ours in a process of its own, or the one that VEIL_TEST_KUBECONFIG names. VEIL_TEST_PKI is then the
 * folder of its authority, in the layout of our data directory, from which client certificates are made.
 */
export interface ApiWorld extends AsyncDisposable {
  readonly kubeconfig: string;
  /** True for ours: then its process can be killed. */
  readonly own: boolean;
  readonly dataDir: string;
  /** A namespace of this test file. */
  readonly namespace: string;
  readonly client: RawClient;
  kubectl(...args: string[]): Promise<string>;
  /** kubectl that is expected to fail: its output and its exit code. */
  refused(...args: string[]): Promise<{ code: number; output: string }>;
  apply(yaml: string, ...args: string[]): Promise<string>;
  /** Kills our server with SIGKILL and starts it again on the same data and port. */
  killAndRestart(): Promise<void>;
  kill(): void;
  restart(): Promise<void>;
  clientFor(user: string, ...groups: string[]): Promise<RawClient>;
}

/** JSON from the wire: tests look at any field of any kind. */
// oxlint-disable-next-line typescript/no-explicit-any
export type Loose = any;

/** An answer as it came over the wire. */
export interface Answer {
  readonly code: number;
  readonly headers: Record<string, unknown>;
  readonly body: Loose;
}

const run = promisify(execFile);
const root = join(import.meta.dirname, "../..");

/** HTTPS with the credentials of a kubeconfig, for what kubectl would smooth over. */
export class RawClient {
  readonly #server: URL;
  readonly #tls: RequestOptions;
  readonly #agent: Agent;

  constructor(kubeconfig: string, credentials: { token?: string; anonymous?: boolean } = {}) {
    // A kubeconfig that a server of ours or an administrator wrote.
    const config = parse(kubeconfig) as {
      clusters: { cluster: Record<string, string> }[];
      users: { user: Record<string, string> }[];
    };
    const decode = (text: string | undefined): string | undefined =>
      text === undefined ? undefined : Buffer.from(text, "base64").toString();
    const cluster = config.clusters[0]?.cluster ?? {};
    const user = config.users[0]?.user ?? {};
    this.#server = new URL(cluster["server"] ?? "");
    const identity =
      credentials.anonymous || credentials.token
        ? {}
        : { cert: decode(user["client-certificate-data"]), key: decode(user["client-key-data"]) };
    const token = credentials.token ?? (credentials.anonymous ? undefined : user["token"]);
    this.#tls = {
      ca: decode(cluster["certificate-authority-data"]),
      ...identity,
      ...(token && { headers: { authorization: `Bearer ${token}` } }),
    };
    this.#agent = new Agent({ keepAlive: true, maxSockets: 64 });
  }

  async call(
    method: string,
    path: string,
    options: { body?: unknown; type?: string; headers?: Record<string, string> } = {},
  ): Promise<Answer> {
    const { body } = options;
    const payload =
      body === undefined ? undefined : typeof body === "string" || Buffer.isBuffer(body) ? body : JSON.stringify(body);
    const done = Promise.withResolvers<Answer>();
    const sent = request(
      {
        ...this.#tls,
        host: this.#server.hostname,
        port: this.#server.port,
        method,
        path,
        agent: this.#agent,
        headers: {
          ...(this.#tls.headers as object),
          "content-type": options.type ?? "application/json",
          ...(payload !== undefined && { "content-length": String(Buffer.byteLength(payload)) }), // Node sends none for DELETE
          ...options.headers,
        },
      },
      (answer) => {
        let text = "";
        answer.setEncoding("utf8");
        answer.on("data", (chunk: string) => (text += chunk));
        answer.on("error", done.reject);
        answer.on("end", () => {
          const json = String(answer.headers["content-type"]).includes("json");
          done.resolve({ code: answer.statusCode ?? 0, headers: answer.headers, body: json ? JSON.parse(text) : text });
        });
      },
    );
    sent.on("error", done.reject);
    sent.end(payload);
    return done.promise;
  }

  /** Events of a watch; `close` ends it. `next` waits for one event, or is undefined at the end of the stream. */
  watch(path: string): { next(): Promise<Loose>; close(): void; code: Promise<number> } {
    const events: unknown[] = [];
    let wake: () => void = () => {};
    const state = { ended: false };
    const code = Promise.withResolvers<number>();
    const end = (): void => {
      state.ended = true;
      wake();
    };
    const sent = request(
      { ...this.#tls, host: this.#server.hostname, port: this.#server.port, path, agent: false },
      (answer) => {
        code.resolve(answer.statusCode ?? 0);
        let rest = "";
        answer.setEncoding("utf8");
        answer.on("data", (chunk: string) => {
          const lines = (rest + chunk).split("\n");
          rest = lines.pop() ?? "";
          events.push(...lines.map((line): unknown => JSON.parse(line)));
          wake();
        });
        answer.on("end", end);
        answer.on("error", end);
        answer.on("close", end);
      },
    );
    sent.on("error", (error) => {
      code.reject(error);
      end();
    });
    sent.end();
    return {
      code: code.promise,
      close: () => sent.destroy(),
      next: async () => {
        while (events.length === 0 && !state.ended) {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        }
        return events.shift();
      },
    };
  }

  close(): void {
    this.#agent.destroy();
  }
}

class Server {
  readonly dataDir: string;
  readonly #own: boolean;
  #process: ChildProcess | undefined;
  #port = 0;

  constructor(dataDir: string, own: boolean) {
    this.dataDir = dataDir;
    this.#own = own;
  }

  async start(): Promise<void> {
    if (!this.#own) return;
    const args = [
      "--conditions=veil-source",
      join(root, "src/main/veil.ts"),
      "apiserver",
      "--data",
      this.dataDir,
      "--listen",
      `127.0.0.1:${this.#port}`,
    ];
    const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"] });
    this.#process = child;
    let errors = "";
    child.stderr.on("data", (chunk) => (errors += String(chunk)));
    const ready = Promise.withResolvers<string>();
    child.stdout.once("data", (chunk) => ready.resolve(String(chunk)));
    child.once("exit", (code) => ready.reject(new Error(`veil apiserver left with ${code}: ${errors}`)));
    const line = JSON.parse(await ready.promise) as { listen: string[] };
    this.#port = Number(line.listen[0]?.split(":").at(-1));
  }

  kill(): void {
    this.#process?.removeAllListeners("exit");
    this.#process?.kill("SIGKILL");
  }

  async stop(): Promise<void> {
    const child = this.#process;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const left = new Promise((resolve) => child.once("exit", resolve));
    child.kill("SIGTERM");
    await left;
  }
}

/** Starts the world of one test file. Fails, never skips, when kubectl or the server cannot be had. */
export async function startApi(name: string): Promise<ApiWorld> {
  const external = process.env["VEIL_TEST_KUBECONFIG"];
  const authority = process.env["VEIL_TEST_PKI"];
  const folder = mkdtempSync(join(tmpdir(), "vt-apiserver-"));
  const server = new Server(join(folder, "data"), external === undefined);
  const program = await ensureKubectl({ env: process.env });
  await server.start();
  const kubeconfig = external ?? join(server.dataDir, "admin.kubeconfig");
  const text = readFileSync(kubeconfig, "utf8");
  const client = new RawClient(text);
  const namespace = `vt-apiserver-${name}-${Date.now().toString(36)}`;
  const env = { ...process.env, KUBECONFIG: kubeconfig, HOME: folder };
  const kubectl = async (...args: string[]): Promise<string> =>
    (await run(program, ["-n", namespace, ...args], { env, timeout: 200_000 })).stdout;
  const refused = async (...args: string[]): Promise<{ code: number; output: string }> => {
    const failure: { code?: number; stdout?: string; stderr?: string } = await run(
      program,
      ["-n", namespace, ...args],
      { env, timeout: 200_000 },
    ).then(
      (done) => assert.fail(`kubectl ${args.join(" ")} should have failed, but said ${done.stdout}`),
      (error: unknown) => error as object,
    );
    return { code: failure.code ?? 0, output: `${failure.stdout ?? ""}${failure.stderr ?? ""}` };
  };
  const apply = async (yaml: string, ...args: string[]): Promise<string> => {
    const child = run(program, ["-n", namespace, "apply", "-f", "-", ...args], { env, timeout: 200_000 });
    child.child.stdin?.end(yaml);
    return (await child).stdout;
  };
  await kubectl("create", "namespace", namespace);
  await until(
    async () => (await client.call("GET", `/api/v1/namespaces/${namespace}/serviceaccounts/default`)).code === 200,
  );
  return {
    kubeconfig: text,
    own: external === undefined,
    dataDir: server.dataDir,
    namespace,
    client,
    kubectl,
    refused,
    apply,
    kill: () => server.kill(),
    restart: async () => server.start(),
    killAndRestart: async () => {
      server.kill();
      await server.start();
    },
    clientFor: async (user, ...groups) => {
      assert.ok(
        external === undefined || authority,
        "client certificates need VEIL_TEST_PKI beside VEIL_TEST_KUBECONFIG",
      );
      const { createKubeconfig } = await import("#apiserver");
      const url = /server: (\S+)/.exec(text)?.[1] ?? "";
      return new RawClient(await createKubeconfig({ dataDir: authority ?? server.dataDir, user, groups, server: url }));
    },
    [Symbol.asyncDispose]: async () => {
      if (external !== undefined) await client.call("DELETE", `/api/v1/namespaces/${namespace}`);
      client.close();
      await server.stop();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

/** Waits until something is true, at most a minute. */
export async function until(check: () => Promise<boolean>, what = "it"): Promise<void> {
  for (const end = Date.now() + 60_000; Date.now() < end;) {
    if (await check()) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assert.fail(`${what} did not happen within a minute`);
}
