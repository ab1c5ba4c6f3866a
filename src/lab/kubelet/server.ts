import { createServer, type Server } from "node:https";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Duplex } from "node:stream";
import { TLSSocket } from "node:tls";
import { createWebSocketStream, WebSocketServer } from "ws";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { Service } from "#base/service";
import type { KubeConfig } from "#kube";
import { runExecSession } from "./exec-session.ts";
import { sendLogs } from "./log-session.ts";
import { forwardPorts, type DialPort } from "./port-forward.ts";
import type { PodWorker } from "./pod-worker.ts";
import { refuse } from "./refuse.ts";

/** What the kubelet's own API needs. */
export interface KubeletServerOptions {
  /** Its certificate serves here too; its roots check who asks. */
  readonly config: KubeConfig;
  readonly address: string;
  readonly port: number;
  readonly log: Log;
  find(at: { namespace: string; pod: string }): PodWorker | undefined;
}

/** The name in the certificate with which the API server asks kubelets. */
const API_SERVER_NAME = "kube-apiserver-kubelet-client";
/** Port-forward as kubectl says it: SPDY's frames in the messages of a WebSocket, or in the bare connection. */
const FORWARD_IN_WEBSOCKET = "SPDY/3.1+portforward.k8s.io";
const FORWARD_PROTOCOL = "portforward.k8s.io";
const PROTOCOLS = ["v5.channel.k8s.io", "v4.channel.k8s.io", FORWARD_IN_WEBSOCKET];
const MAX_FRAME_BYTES = 1 << 20;
const FORWARD_VERB = "portForward";
const NO_SUCH_PATH = { status: 404, message: "there is no such path here" };

interface Target {
  readonly verb: string;
  readonly worker: PodWorker | undefined;
  readonly pod: string;
  readonly container: string;
  readonly query: URLSearchParams;
}

/** `/containerLogs`, `/exec` and `/portForward`, for the API server only. */
export class KubeletServer implements Service {
  readonly name = "kubelet-api";
  readonly #options: KubeletServerOptions;
  readonly #sockets = new WebSocketServer({
    noServer: true,
    maxPayload: MAX_FRAME_BYTES,
    perMessageDeflate: false,
    handleProtocols: (offered) => PROTOCOLS.find((protocol) => offered.has(protocol)) ?? false,
  });
  readonly #forwards = new Set<Duplex>();
  #server: Server | undefined;

  constructor(options: KubeletServerOptions) {
    this.#options = options;
  }

  async start(): Promise<void> {
    const { config, address, port } = this.#options;
    const { certPem, keyPem } = await config.credentials();
    const server = createServer({
      cert: certPem,
      key: keyPem,
      ca: config.caPem,
      requestCert: true,
      rejectUnauthorized: false, // answered with 401 below, instead of a broken handshake
    });
    server.on("request", (request, response) => void this.#serve(request, response));
    server.on("upgrade", (request, socket, head) => this.#upgrade(request, socket, head));
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(port, address, resolve);
    });
    this.#server = server;
  }

  async drain(_deadlineMs: number): Promise<void> {
    for (const client of this.#sockets.clients) client.terminate();
    for (const client of this.#forwards) client.destroy();
    this.#server?.closeAllConnections();
    await new Promise<void>((resolve) => {
      if (this.#server === undefined) resolve();
      else this.#server.close(() => resolve());
    });
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const target = this.#target(request);
    try {
      if (request.url === "/healthz") return void response.end("ok");
      if (!isApiServer(request)) return refuse(response, 401, "only the API server may ask");
      if (target?.verb !== "containerLogs") return refuse(response, 404, "there is no such path here");
      if (target.worker === undefined) return refuse(response, 404, `pod ${target.pod} does not run on this node`);
      await sendLogs(target.worker, target, response);
    } catch (error) {
      this.#options.log.warn({ path: request.url, error: messageOf(error) }, "request failed");
      if (response.headersSent) response.destroy();
      else refuse(response, 500, messageOf(error));
    }
  }

  #upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    const target = this.#target(request);
    const refusal = refuseUpgrade(request, target);
    if (refusal !== undefined || target?.worker === undefined) {
      const { status, message } = refusal ?? NO_SUCH_PATH;
      const bytes = Buffer.byteLength(message);
      socket.end(
        `HTTP/1.1 ${status} Refused\r\nContent-Type: text/plain\r\nContent-Length: ${bytes}\r\n\r\n${message}`,
      );
      return;
    }
    const { verb, worker, query, container } = target;
    if (verb === FORWARD_VERB && isSpdy(request)) {
      socket.write(
        `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: ${FORWARD_PROTOCOL}\r\n\r\n`,
      );
      if (head.length > 0) socket.unshift(head);
      return this.#forward(socket, (port) => worker.dial(port));
    }
    if (verb === FORWARD_VERB) {
      return this.#sockets.handleUpgrade(request, socket, head, (client) => {
        this.#forward(createWebSocketStream(client), (port) => worker.dial(port));
      });
    }
    this.#sockets.handleUpgrade(request, socket, head, (client) => {
      runExecSession(client, worker.runner(container), query);
    });
  }

  #forward(client: Duplex, dial: DialPort): void {
    this.#forwards.add(client);
    client.once("close", () => this.#forwards.delete(client));
    forwardPorts(client, dial).catch((error: unknown) => {
      this.#options.log.warn({ error: messageOf(error) }, "port-forward was given up");
    });
  }

  /** `/<verb>/<namespace>/<pod>/<container>`, and `/portForward/<namespace>/<pod>`; undefined for other paths. */
  #target(request: IncomingMessage): Target | undefined {
    const url = URL.parse(request.url ?? "/", "https://kubelet");
    const parts = (url?.pathname ?? "").split("/").slice(1).map(decodePart);
    const [verb = "", namespace = "", pod = "", container = ""] = parts;
    if (url === null || parts.length !== (verb === FORWARD_VERB ? 3 : 4)) return undefined;
    return { verb, worker: this.#options.find({ namespace, pod }), pod, container, query: url.searchParams };
  }
}

interface Refusal {
  readonly status: number;
  readonly message: string;
}

function refuseUpgrade(request: IncomingMessage, target: Target | undefined): Refusal | undefined {
  if (!isApiServer(request)) return { status: 401, message: "only the API server may ask" };
  if (target === undefined || !["exec", FORWARD_VERB].includes(target.verb)) return NO_SUCH_PATH;
  if (target.worker === undefined) return { status: 404, message: `pod ${target.pod} does not run on this node` };
  if (target.verb === "exec") return refuseExec(target, target.worker);
  const offered = `${header(request, "sec-websocket-protocol")},${header(request, "x-stream-protocol-version")}`;
  if (offered.includes(FORWARD_PROTOCOL)) return undefined;
  return { status: 400, message: `port-forward is spoken as ${FORWARD_PROTOCOL} here` };
}

function refuseExec(target: Target, worker: PodWorker): Refusal | undefined {
  if (worker.runner(target.container)?.process === undefined) {
    return { status: 400, message: `container ${target.container} of pod ${target.pod} does not run now` };
  }
  if (!target.query.has("command")) return { status: 400, message: "exec needs a command" };
  return undefined;
}

function isApiServer(request: IncomingMessage): boolean {
  const { socket } = request;
  if (!(socket instanceof TLSSocket) || !socket.authorized) return false;
  const { subject } = socket.getPeerCertificate();
  return subject.CN === API_SERVER_NAME;
}

function isSpdy(request: IncomingMessage): boolean {
  return header(request, "upgrade").toLowerCase() === "spdy/3.1";
}

function header(request: IncomingMessage, name: string): string {
  const value = request.headers[name];
  return typeof value === "string" ? value : "";
}

function decodePart(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return "";
  }
}
