import type { IncomingMessage, ServerResponse } from "node:http";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import { authenticate } from "./authenticate.ts";
import type { Attributes } from "./authorizer.ts";
import { MAX_BODY_BYTES, MAX_REQUESTS, MAX_STREAMS } from "./config.ts";
import type { Discovery } from "./discovery.ts";
import { impersonate } from "./impersonation.ts";
import { subjectOf, type Kind } from "./kinds.ts";
import type { OpenApi } from "./openapi.ts";
import type { Registry } from "./registry.ts";
import { sendBody, sendJson, sendStatus, sendText } from "./render.ts";
import { parseRequest, type RequestInfo, type ResourceTarget } from "./request.ts";
import type { ResourceHandler } from "./resource-handler.ts";
import {
  badRequest,
  forbidden,
  internalError,
  methodNotAllowed,
  notServed,
  StatusError,
  tooLarge,
  unavailable,
} from "./status.ts";
import type { SubresourceHandler } from "./subresources.ts";
import type { TokenIssuer } from "./tokens.ts";
import type { User } from "./user.ts";

/** How many times the cap of a body is read (and dropped) before the connection is given up. */
const DROPPED_BODIES = 8;

/** The parts that answer requests. */
export interface RouterParts {
  readonly registry: Registry;
  readonly tokens: TokenIssuer;
  /** Whether somebody may do something; what nobody allows is refused. */
  readonly decide: (user: User, attributes: Attributes) => boolean;
  readonly discovery: Discovery;
  readonly resources: ResourceHandler;
  readonly subresources: SubresourceHandler;
  readonly openApi: OpenApi;
  readonly documents: Readonly<Record<string, () => unknown>>;
  readonly log: Log;
}

/** Takes each request through authentication and authorization to the part that answers it. */
export class Router {
  readonly #parts: RouterParts;
  #running = 0;

  constructor(parts: RouterParts) {
    this.#parts = parts;
  }

  /** Requests that are being answered now, without watches. */
  get running(): number {
    return this.#running;
  }

  /** Answers a request. Never rejects: failures become a Status. */
  async answer(message: IncomingMessage, response: ServerResponse): Promise<void> {
    this.#running++;
    try {
      if (this.#running > MAX_REQUESTS)
        throw unavailable("too many requests are being answered, please try again later");
      await this.#route(message, response);
    } catch (error) {
      sendStatus(response, this.#statusOf(error, message).body);
    } finally {
      this.#running--;
    }
  }

  /** Checks who asks and whether they may; for requests that become streams too. Throws 400, 401, 403. */
  admit(message: IncomingMessage): { info: RequestInfo; user: User } {
    const user = impersonate(message, authenticate(message, this.#parts.tokens), this.#parts.decide);
    const info = parseRequest(message);
    const attributes = attributesOf(info);
    if (!this.#parts.decide(user, attributes)) throw refusal(user, attributes);
    return { info, user };
  }

  /** A failure as the client gets it; what is not a client's mistake is logged and told without internals. */
  statusOf(error: unknown, message: IncomingMessage): StatusError {
    return this.#statusOf(error, message);
  }

  async #route(message: IncomingMessage, response: ServerResponse): Promise<void> {
    const { info, user } = this.admit(message);
    const { target } = info;
    if (target === undefined) return this.#document(info, message, response);
    const kind = this.#kindOf(target, info.verb);
    const body = async (): Promise<Buffer> => readBody(message);
    const request = { kind, target, info, user, message, response, body };
    if (this.#parts.resources.watches >= MAX_STREAMS && info.verb === "watch")
      throw unavailable("too many watches are open");
    if (target.subresource !== "" || !kind.verbs.includes("get")) return this.#parts.subresources.handle(request);
    const collection = ["create", "list", "watch", "deletecollection"].includes(info.verb);
    if (collection !== (target.name === "") || !kind.verbs.includes(info.verb)) {
      throw methodNotAllowed(subjectOf(kind, target.name), info.verb);
    }
    return this.#parts.resources.handle(request);
  }

  /** The kind behind a path. Throws 404 for what is not served, and for objects that are asked for outside of a namespace. */
  #kindOf(target: ResourceTarget, verb: string): Kind {
    const kind = this.#parts.registry.find(target.group, target.version, target.plural);
    if (kind === undefined || (target.namespace !== "" && !kind.namespaced)) {
      throw notServed(`veil apiserver does not serve ${describe(target)}`);
    }
    if (!kind.namespaced || target.namespace !== "" || ["list", "watch", "deletecollection"].includes(verb))
      return kind;
    if (target.name === "" && kind.verbs.includes("list")) throw methodNotAllowed(subjectOf(kind), verb);
    throw notServed(`${kind.plural} live in namespaces: use /namespaces/NAME/${kind.plural}`);
  }

  #document(info: RequestInfo, message: IncomingMessage, response: ServerResponse): void {
    if (info.verb !== "get" && info.verb !== "head") throw methodNotAllowed({ resource: info.path }, info.verb);
    const found = this.#parts.discovery.find(info.path, message.headers.accept ?? "");
    if (found !== undefined)
      return sendBody(response, { code: 200, text: JSON.stringify(found.body), contentType: found.contentType });
    if (["/healthz", "/livez", "/readyz"].includes(info.path)) {
      response.writeHead(200, { "content-type": "text/plain" }).end("ok");
      return;
    }
    if (info.path === "/openapi/v2") {
      response.writeHead(200, { "content-type": OPENAPI_V2_TYPE }).end(this.#parts.openApi.version2());
      return;
    }
    const schema = /^\/openapi\/v3(\/|$)/.test(info.path) ? this.#parts.openApi.find(info.path) : undefined;
    if (schema !== undefined) return sendText(response, 200, schema);
    const document = this.#parts.documents[info.path]?.();
    if (document === undefined) throw notServed(`veil apiserver has nothing at ${info.path}`);
    sendJson(response, 200, document);
  }

  #statusOf(error: unknown, message: IncomingMessage): StatusError {
    if (error instanceof StatusError) return error;
    this.#parts.log.error({ err: error, method: message.method, path: message.url?.split("?")[0] }, "request failed");
    return internalError(messageOf(error));
  }
}

const OPENAPI_V2_TYPE = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

function describe(target: { group: string; version: string; plural: string }): string {
  return `${target.plural} in ${target.group === "" ? "" : `${target.group}/`}${target.version}`;
}

function attributesOf(info: RequestInfo): Attributes {
  const { target, verb, path } = info;
  if (target === undefined) return { verb, group: "", resource: "", namespace: "", name: "", path, fieldSelector: "" };
  const resource = target.subresource === "" ? target.plural : `${target.plural}/${target.subresource}`;
  const fieldSelector = info.query.get("fieldSelector") ?? "";
  return {
    verb,
    group: target.group,
    resource,
    namespace: target.namespace,
    name: target.name || nameSelected(verb, fieldSelector),
    path,
    fieldSelector,
  };
}

/** Who lists what has one name asks for that name: a rule with resourceNames may allow it. */
function nameSelected(verb: string, fieldSelector: string): string {
  if (!["list", "watch", "deletecollection"].includes(verb)) return "";
  return /^metadata\.name==?([^,!=]+)$/.exec(fieldSelector)?.[1] ?? "";
}

function refusal(user: User, wanted: Attributes): StatusError {
  const where = wanted.namespace === "" ? "at the cluster scope" : `in the namespace "${wanted.namespace}"`;
  const who = `User "${user.name}" cannot ${wanted.verb}`;
  if (wanted.resource === "") return forbidden({ resource: wanted.path }, `${who} path "${wanted.path}"`);
  const why = `${who} resource "${wanted.resource}" in API group "${wanted.group}" ${where}`;
  return forbidden({ group: wanted.group, resource: wanted.resource.split("/")[0] ?? "", name: wanted.name }, why);
}

/**
 * Reads a body up to the cap. A larger one is read to its end and dropped, so that the client hears the refusal; far
 * beyond the cap the connection is given up.
 */
async function readBody(message: IncomingMessage): Promise<Buffer> {
  const read = Promise.withResolvers<Buffer>();
  const chunks: Buffer[] = [];
  let bytes = 0;
  message.on("data", (chunk: Buffer) => {
    bytes += chunk.length;
    if (bytes <= MAX_BODY_BYTES) chunks.push(chunk);
    else chunks.length = 0;
    if (bytes > MAX_BODY_BYTES * DROPPED_BODIES) message.destroy();
  });
  message.once("end", () => {
    if (bytes > MAX_BODY_BYTES) read.reject(tooLarge(MAX_BODY_BYTES));
    else read.resolve(Buffer.concat(chunks));
  });
  message.once("error", () => read.reject(badRequest("the body ended before its end")));
  message.once("close", () => read.reject(badRequest("the body ended before its end")));
  return read.promise;
}
