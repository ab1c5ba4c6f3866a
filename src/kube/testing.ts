// oxlint-disable-next-line import/no-unassigned-import -- @peculiar/x509 needs it, before itself
import "reflect-metadata";
import { createServer, type Server } from "node:https";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { webcrypto } from "node:crypto";
import { PemConverter, SubjectAlternativeNameExtension, X509CertificateGenerator } from "@peculiar/x509";
import type { KubeConfig } from "./config.ts";

interface Stored {
  apiVersion?: string;
  kind?: string;
  metadata: Record<string, unknown> & { name?: string; namespace?: string; resourceVersion?: string };
  [field: string]: unknown;
}

interface Watcher {
  readonly path: string;
  readonly response: ServerResponse;
}

/**
 * A tiny Kubernetes API for tests: any kind, list, watch with resume, create, replace with conflicts, merge patch, delete.
 * No selectors, no checks, no permissions. `restart` cuts all connections and comes back on the same port with what it
 * stored; `compact` makes older versions answer 410.
 */
export class FakeApi {
  readonly #objects = new Map<string, Stored>();
  readonly #log: { version: number; path: string; type: string; object: Stored }[] = [];
  readonly #watchers = new Set<Watcher>();
  readonly #sockets = new Set<Socket>();
  readonly #tls: { key: string; cert: string };
  readonly requests: string[] = [];
  /** Answers instead of the store when it returns true. */
  intercept: ((request: IncomingMessage, response: ServerResponse) => boolean) | undefined;
  #server: Server | undefined;
  #version = 100;
  #oldest = 0;
  #port = 0;

  private constructor(tls: { key: string; cert: string }) {
    this.#tls = tls;
  }

  /** Starts one on a free port of loopback; the caller stops it. */
  static async start(): Promise<FakeApi> {
    const api = new FakeApi(await selfSigned());
    await api.listen();
    return api;
  }

  get config(): KubeConfig {
    return {
      source: "fake",
      server: `https://127.0.0.1:${this.#port}`,
      caPem: this.#tls.cert,
      insecureSkipTlsVerify: false,
      tlsServerName: undefined,
      namespace: "default",
      credentials: async () => ({ token: "fake" }),
    };
  }

  async listen(): Promise<void> {
    const server = createServer(this.#tls, (request, response) => void this.#answer(request, response));
    this.#server = server;
    server.on("connection", (socket: Socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
    });
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(this.#port, "127.0.0.1", resolve);
    });
    const address = server.address();
    if (typeof address === "object" && address !== null) this.#port = address.port;
  }

  async stop(): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    this.#watchers.clear();
    server?.closeAllConnections();
    for (const socket of this.#sockets) socket.destroy(); // those too that have not finished their handshake
    await new Promise<void>((resolve) => {
      if (server === undefined) resolve();
      else server.close(() => resolve());
    });
  }

  async restart(): Promise<void> {
    await this.stop();
    await this.listen();
  }

  /** Forgets the history: watches from before now answer 410; open ones are ended. */
  compact(): void {
    this.#oldest = this.#version;
    this.#log.length = 0;
    for (const { response } of this.#watchers) response.end();
    this.#watchers.clear();
  }

  /** Stores an object under its collection's path (`/api/v1/namespaces/a/pods`), as a client would. */
  put(collection: string, object: object): void {
    const stored = structuredClone(object) as Stored; // tests give whole objects
    const key = `${collection}/${String(stored.metadata.name)}`;
    this.#store(key, stored);
  }

  remove(key: string): void {
    const object = this.#objects.get(key);
    if (object === undefined) return;
    this.#objects.delete(key);
    this.#publish(key, "DELETED", { ...object, metadata: { ...object.metadata, resourceVersion: this.#next() } });
  }

  #next(): string {
    this.#version++;
    return String(this.#version);
  }

  #store(key: string, object: Stored): Stored {
    const old = this.#objects.get(key);
    const uid = old?.metadata["uid"] ?? `uid-${this.#version}`;
    const stored = { ...object, metadata: { uid, ...object.metadata, resourceVersion: this.#next() } };
    this.#objects.set(key, stored);
    this.#publish(key, old === undefined ? "ADDED" : "MODIFIED", stored);
    return stored;
  }

  #publish(key: string, type: string, object: Stored): void {
    const event = { version: this.#version, path: key, type, object };
    this.#log.push(event);
    for (const { path, response } of this.#watchers) {
      if (within(key, path)) response.write(`${JSON.stringify({ type, object })}\n`);
    }
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(`https://fake${String(request.url)}`);
    const { method = "" } = request;
    this.requests.push(`${method} ${url.pathname}`);
    if (this.intercept?.(request, response) === true) return;
    const text = await readText(request);
    const body = text === "" ? undefined : (JSON.parse(text) as Stored); // our own client wrote it
    switch (method) {
      case "GET":
        return url.searchParams.has("watch") ? this.#watch(url, response) : this.#read(url, response);
      case "POST":
        return this.#create(url.pathname, body, response);
      case "PUT":
      case "PATCH":
        return this.#change(method, url.pathname, { body, response });
      case "DELETE":
        this.remove(url.pathname);
        return send(response, 200, { kind: "Status", status: "Success" });
      default:
        return sendStatus(response, 405, "MethodNotAllowed");
    }
  }

  #read(url: URL, response: ServerResponse): void {
    const single = this.#objects.get(url.pathname);
    if (single !== undefined) return send(response, 200, single);
    if (!isCollection(url.pathname)) return sendStatus(response, 404, "NotFound");
    const all = [...this.#objects].filter(([key]) => within(key, url.pathname)).map(([, object]) => object);
    const from = Number(url.searchParams.get("continue") ?? 0);
    const limit = Number(url.searchParams.get("limit") ?? all.length);
    const items = all.slice(from, from + limit);
    const next = from + limit < all.length ? { continue: String(from + limit) } : {};
    return send(response, 200, { kind: "List", metadata: { resourceVersion: String(this.#version), ...next }, items });
  }

  #watch(url: URL, response: ServerResponse): void {
    const from = Number(url.searchParams.get("resourceVersion") ?? 0);
    response.writeHead(200, { "content-type": "application/json" });
    response.flushHeaders();
    if (from < this.#oldest) {
      const object = { kind: "Status", code: 410, reason: "Expired", message: "too old resource version" };
      response.end(`${JSON.stringify({ type: "ERROR", object })}\n`);
      return;
    }
    for (const { version, path, type, object } of this.#log) {
      if (version > from && within(path, url.pathname)) response.write(`${JSON.stringify({ type, object })}\n`);
    }
    const watcher = { path: url.pathname, response };
    this.#watchers.add(watcher);
    response.on("close", () => this.#watchers.delete(watcher));
  }

  #create(path: string, body: Stored | undefined, response: ServerResponse): void {
    if (body?.metadata === undefined) return sendStatus(response, 422, "Invalid");
    const key = `${path}/${String(body.metadata.name)}`;
    if (this.#objects.has(key)) return sendStatus(response, 409, "AlreadyExists");
    return send(response, 201, this.#store(key, body));
  }

  #change(method: string, path: string, exchange: { body: Stored | undefined; response: ServerResponse }): void {
    const { body, response } = exchange;
    const key = path.replace(/\/status$/, "");
    const old = this.#objects.get(key);
    if (old === undefined) return sendStatus(response, 404, "NotFound");
    const version = body?.metadata?.resourceVersion;
    if (version !== undefined && version !== old.metadata.resourceVersion) return sendStatus(response, 409, "Conflict");
    const next = method === "PUT" ? body : mergePatch(old, body);
    return send(response, 200, this.#store(key, next as Stored)); // merged from a stored object
  }
}

/** RFC 7386. */
function mergePatch(target: unknown, patch: unknown): unknown {
  if (typeof patch !== "object" || patch === null || Array.isArray(patch)) return patch;
  const out: Record<string, unknown> =
    typeof target === "object" && target !== null && !Array.isArray(target) ? { ...target } : {};
  for (const [field, value] of Object.entries(patch)) {
    if (value === null) delete out[field];
    else out[field] = mergePatch(out[field], value);
  }
  return out;
}

function isCollection(path: string): boolean {
  const depth = path.split("/").length;
  const first = path.startsWith("/api/") ? 4 : 5;
  return depth === first || depth === first + 2;
}

/** True when the object at `key` belongs to the collection at `path`, of one namespace or of all. */
function within(key: string, path: string): boolean {
  if (key.startsWith(`${path}/`)) return !key.slice(path.length + 1).includes("/");
  const plural = path.split("/").at(-1) ?? "";
  const root = path.slice(0, -plural.length);
  return key.startsWith(`${root}namespaces/`) && key.split("/").at(-2) === plural;
}

function send(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { "content-type": "application/json" });
  response.end(JSON.stringify(body));
}

function sendStatus(response: ServerResponse, code: number, reason: string): void {
  send(response, code, { kind: "Status", status: "Failure", code, reason, message: `fake: ${reason}` });
}

async function readText(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer); // no encoding is set
  return Buffer.concat(chunks).toString("utf8");
}

async function selfSigned(): Promise<{ key: string; cert: string }> {
  const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
  const keys = await webcrypto.subtle.generateKey(algorithm, true, ["sign", "verify"]);
  const certificate = await X509CertificateGenerator.createSelfSigned({
    serialNumber: "01",
    name: "CN=fake",
    notBefore: new Date("2020-01-01"),
    notAfter: new Date("2100-01-01"),
    keys,
    signingAlgorithm: algorithm,
    extensions: [new SubjectAlternativeNameExtension([{ type: "ip", value: "127.0.0.1" }])],
  });
  const key = await webcrypto.subtle.exportKey("pkcs8", keys.privateKey);
  return { key: PemConverter.encode(key, "PRIVATE KEY"), cert: certificate.toString("pem") };
}
