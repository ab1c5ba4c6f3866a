import type { IncomingMessage } from "node:http";
import { badRequest } from "./status.ts";

/** What a request asks for, as authorization and routing see it. */
export interface RequestInfo {
  /** `create`, `get`, `list`, `watch`, `update`, `patch`, `delete`, `deletecollection`; for other paths the method in lower case. */
  readonly verb: string;
  readonly path: string;
  readonly query: URLSearchParams;
  /** Undefined for paths that are no resources, such as `/version`. */
  readonly target: ResourceTarget | undefined;
}

/** The resource part of a path. */
export interface ResourceTarget {
  readonly group: string;
  readonly version: string;
  readonly plural: string;
  /** Empty without one: all namespaces, or a resource without namespaces. */
  readonly namespace: string;
  /** Empty for the whole collection. */
  readonly name: string;
  readonly subresource: string;
}

const VERBS: Readonly<Record<string, string>> = {
  POST: "create",
  GET: "get",
  HEAD: "get",
  PUT: "update",
  PATCH: "patch",
  DELETE: "delete",
};
/** Subresources of a namespace: what follows its name is no resource inside it. */
const NAMESPACE_SUBRESOURCES = new Set(["status", "finalize"]);
const MAX_URL_LENGTH = 32_768;

/** Reads method, path and query of a request. Throws 400 for a path that cannot be decoded. */
export function parseRequest(message: Pick<IncomingMessage, "method" | "url">): RequestInfo {
  const url = message.url ?? "/";
  if (url.length > MAX_URL_LENGTH) throw badRequest(`the URL is longer than ${MAX_URL_LENGTH} characters`);
  const cut = url.indexOf("?");
  const path = cut < 0 ? url : url.slice(0, cut);
  const query = new URLSearchParams(cut < 0 ? "" : url.slice(cut + 1));
  const method = message.method ?? "GET";
  const target = parseTarget(path);
  if (target === undefined) return { verb: method.toLowerCase(), path, query, target };
  const verb = VERBS[method] ?? method.toLowerCase();
  return { verb: target.name === "" ? collectionVerb(verb, query) : verb, path, query, target };
}

function collectionVerb(verb: string, query: URLSearchParams): string {
  if (verb === "get") return isTrue(query.get("watch")) ? "watch" : "list";
  return verb === "delete" ? "deletecollection" : verb;
}

function parseTarget(text: string): ResourceTarget | undefined {
  const parts = text
    .split("/")
    .slice(1)
    .map((part) => decodePart(part));
  if (parts.at(-1) === "") parts.pop();
  const [root, ...below] = parts;
  if (root !== "api" && root !== "apis") return undefined;
  const [group = "", version = "", ...rest] = root === "api" ? ["", ...below] : below;
  if (rest.length === 0) return undefined;
  const [namespace = "", ...path] = isInNamespace(root, rest) ? rest.slice(1) : ["", ...rest];
  return { group, version, namespace, ...targetOf(path) };
}

function targetOf([plural = "", name = "", ...more]: readonly string[]): Pick<
  ResourceTarget,
  "plural" | "name" | "subresource"
> {
  return { plural, name, subresource: more.join("/") };
}

/** `namespaces/NAME/PLURAL…`, but not a subresource of the namespace itself. */
function isInNamespace(root: string, rest: readonly string[]): boolean {
  const [first, , third = ""] = rest;
  if (first !== "namespaces" || rest.length < 3) return false;
  return !(root === "api" && rest.length === 3 && NAMESPACE_SUBRESOURCES.has(third));
}

function decodePart(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    throw badRequest(`the path holds "${part.slice(0, 100)}", which is no valid percent encoding`);
  }
}

/** How query parameters write true. */
export function isTrue(value: string | null): boolean {
  return value === "true" || value === "1" || value === "True";
}

/** A whole number from the query; undefined when it is not there. Throws 400 that names the parameter. */
export function numberParameter(query: URLSearchParams, name: string): number | undefined {
  const text = query.get(name);
  if (text === null || text === "") return undefined;
  if (!/^\d{1,15}$/.test(text)) throw badRequest(`parameter ${name}: "${text.slice(0, 100)}" is not a whole number`);
  return Number(text);
}
