import type { IncomingMessage } from "node:http";
import { Agent, request as httpsRequest } from "node:https";
import { connect, type TLSSocket } from "node:tls";
import type { Duplex } from "node:stream";
import { messageOf } from "#base/errors";
import { listAt, numberAt, textAt, type KubeObject } from "./object.ts";
import type { CertificateFiles } from "./pki.ts";
import type { RequestInfo, ResourceTarget } from "./request.ts";
import type { ResourceRequest } from "./resource-handler.ts";
import { badRequest, methodNotAllowed, notFound, StatusError } from "./status.ts";
import type { Store } from "./store.ts";
import { MAX_STREAMS } from "./config.ts";

const CONNECT_TIMEOUT_MS = 10_000;
const KUBELET_PORT = 10_250;
const MAX_HEAD_BYTES = 65_536;
const LOG_PARAMETERS = [
  "follow",
  "previous",
  "timestamps",
  "sinceSeconds",
  "sinceTime",
  "tailLines",
  "limitBytes",
  "stream",
];
const STREAM_PATHS: Readonly<Record<string, string>> = { exec: "exec", attach: "attach", portforward: "portForward" };

/** Passes logs, exec, attach and port-forward on to the kubelet of the pod's node. */
export class KubeletProxy {
  readonly #store: Store;
  readonly #identity: CertificateFiles;
  readonly #agent: Agent;
  readonly #tunnels = new Set<Duplex>();

  constructor(options: { store: Store; identity: CertificateFiles }) {
    this.#store = options.store;
    this.#identity = options.identity;
    this.#agent = new Agent({
      cert: options.identity.certPem,
      key: options.identity.keyPem,
      rejectUnauthorized: false,
      maxSockets: MAX_STREAMS,
    });
  }

  /** How many tunnels are open. */
  get tunnels(): number {
    return this.#tunnels.size;
  }

  /** Cuts all tunnels, for shutting down. */
  endAll(): void {
    for (const socket of this.#tunnels) socket.destroy();
    this.#agent.destroy();
  }

  /** `pods/log`: streams a container's log as plain text. */
  async logs(request: ResourceRequest): Promise<void> {
    const { info, target, response } = request;
    if (info.verb !== "get") throw methodNotAllowed({ resource: "pods/log" }, info.verb);
    const { host, port, container, pod } = this.#locate(info, target);
    const query = new URLSearchParams();
    for (const name of LOG_PARAMETERS) {
      const value = info.query.get(name);
      if (value !== null) query.set(name, value);
    }
    const path = `/containerLogs/${target.namespace}/${pod.metadata.name}/${container}?${query.toString()}`;
    const done = Promise.withResolvers<void>();
    const upstream = httpsRequest({ host, port, path, agent: this.#agent, timeout: CONNECT_TIMEOUT_MS }, (answer) => {
      upstream.setTimeout(0);
      response.shouldKeepAlive = false; // see sendText: no request may follow on a stream of any size
      response.writeHead(answer.statusCode ?? 502, { "content-type": answer.headers["content-type"] ?? "text/plain" });
      response.flushHeaders();
      answer.pipe(response);
      answer.once("close", () => done.resolve());
      answer.once("error", () => response.destroy());
    });
    upstream.once("timeout", () => upstream.destroy(new Error("no answer in time")));
    upstream.once("error", (error) => done.reject(unreachable(pod, error)));
    response.once("close", () => upstream.destroy());
    upstream.end();
    await done.promise.catch((error: unknown) => {
      if (!response.destroyed) throw error;
    });
  }

  /**
   * `exec`, `attach`, `portforward`: passes the upgrade on and then bytes in both directions, untouched. The caller has
   * checked who asks. Throws a {@link StatusError} before anything was sent to the client.
   */
  async tunnel(given: { info: RequestInfo; message: IncomingMessage; socket: Duplex; head: Buffer }): Promise<void> {
    const { info, message, socket, head } = given;
    const { target } = info;
    if (target === undefined) throw badRequest("no pod is named");
    if (this.#tunnels.size >= MAX_STREAMS)
      throw new StatusError(503, "ServiceUnavailable", { message: "too many streams are open" });
    const place = this.#locate(info, target);
    const path = streamPath(info, place);
    const upstream = await this.#connect(place);
    this.#tunnels.add(socket);
    const end = (): void => {
      socket.destroy();
      upstream.destroy();
      this.#tunnels.delete(socket);
    };
    for (const side of [socket, upstream]) {
      side.once("error", end);
      side.once("close", end);
    }
    upstream.write(upgradeHead(message, { path, host: place.host }));
    if (head.length > 0) upstream.write(head);
    upstream.pipe(socket);
    socket.pipe(upstream);
  }

  async #connect(place: Place): Promise<TLSSocket> {
    const { host, port, pod } = place;
    const { certPem: cert, keyPem: key } = this.#identity;
    const connected = Promise.withResolvers<TLSSocket>();
    const socket = connect({ host, port, cert, key, rejectUnauthorized: false, ALPNProtocols: ["http/1.1"] });
    socket.setTimeout(CONNECT_TIMEOUT_MS, () => socket.destroy(new Error("no answer in time")));
    socket.once("secureConnect", () => {
      socket.setTimeout(0);
      connected.resolve(socket);
    });
    socket.once("error", (error) => connected.reject(unreachable(pod, error)));
    return connected.promise;
  }

  /** Where the kubelet of a pod is, and which container is meant. */
  #locate(info: RequestInfo, target: ResourceTarget): Place {
    const found = this.#store.get({ resource: "pods", namespace: target.namespace, name: target.name });
    if (found === undefined) throw notFound({ resource: "pods", name: target.name });
    const pod = found.object;
    const nodeName = textAt(pod, "spec", "nodeName");
    if (nodeName === "") throw badRequest(`pod ${target.name} does not have a host assigned`);
    const node = this.#store.get({ resource: "nodes", namespace: "", name: nodeName })?.object;
    if (node === undefined) throw notFound({ resource: "nodes", name: nodeName });
    const address = listAt(node, "status", "addresses").find((one) => textAt(one, "type") === "InternalIP");
    const host = textAt(address, "address");
    if (host === "")
      throw new StatusError(503, "ServiceUnavailable", { message: `node ${nodeName} has no InternalIP` });
    const port = numberAt(node, "status", "daemonEndpoints", "kubeletEndpoint", "Port") ?? KUBELET_PORT;
    // A port is the pod's: nobody has to say which of its containers listens there.
    const container = target.subresource === "portforward" ? "" : containerOf(pod, info.query.get("container") ?? "");
    return { host, port, pod, target, container };
  }
}

interface Place {
  readonly host: string;
  readonly port: number;
  readonly pod: Readonly<KubeObject>;
  readonly container: string;
  readonly target: ResourceTarget;
}

function containerOf(pod: Readonly<KubeObject>, asked: string): string {
  const names = ["containers", "initContainers"].flatMap((list) =>
    listAt(pod, "spec", list).map((one) => textAt(one, "name")),
  );
  const { name } = pod.metadata;
  if (asked !== "") {
    if (names.includes(asked)) return asked;
    throw badRequest(`container ${asked} is not valid for pod ${name}`);
  }
  const preferred = pod.metadata.annotations?.["kubectl.kubernetes.io/default-container"];
  if (preferred !== undefined && names.includes(preferred)) return preferred;
  const only = names[0];
  if (names.length === 1 && only !== undefined) return only;
  throw badRequest(`a container name must be specified for pod ${name}, choose one of: [${names.join(" ")}]`);
}

/** The kubelet's path and parameters: it calls the streams `input`, `output` and `error`. */
function streamPath(info: RequestInfo, place: Place): string {
  const { query } = info;
  const { subresource, namespace, name } = place.target;
  const kind = STREAM_PATHS[subresource] ?? "exec";
  const base = `/${kind}/${namespace}/${name}`;
  const out = new URLSearchParams();
  if (kind === "portForward") {
    for (const port of query.getAll("ports")) out.append("port", port);
    return `${base}?${out.toString()}`;
  }
  for (const [from, to] of [
    ["stdin", "input"],
    ["stdout", "output"],
    ["stderr", "error"],
    ["tty", "tty"],
  ] as const) {
    if (["true", "1"].includes(query.get(from) ?? "")) out.set(to, "1");
  }
  for (const word of query.getAll("command")) out.append("command", word);
  return `${base}/${place.container}?${out.toString()}`;
}

function upgradeHead(message: IncomingMessage, to: { path: string; host: string }): string {
  const lines = [`${message.method ?? "GET"} ${to.path} HTTP/1.1`, `Host: ${to.host}`];
  for (let index = 0; index + 1 < message.rawHeaders.length; index += 2) {
    const name = message.rawHeaders[index] ?? "";
    const value = message.rawHeaders[index + 1] ?? "";
    if (!["host", "authorization"].includes(name.toLowerCase())) lines.push(`${name}: ${value}`);
  }
  const head = `${lines.join("\r\n")}\r\n\r\n`;
  if (head.length > MAX_HEAD_BYTES) throw badRequest("the request's headers are too long");
  return head;
}

function unreachable(pod: Readonly<KubeObject>, error: unknown): StatusError {
  const node = textAt(pod, "spec", "nodeName");
  return new StatusError(502, "InternalError", {
    message: `cannot reach the kubelet of node ${node}: ${messageOf(error)}`,
  });
}
