import type { IncomingMessage, ServerResponse } from "node:http";
import type { Clock } from "#base/clock";
import type { Random } from "#base/random";
import { applyObject } from "./apply.ts";
import { MAX_PAGE_ITEMS } from "./config.ts";
import { decodeBody, readObject, type FieldValidation } from "./decode.ts";
import type { DeleteOptions, Engine, WriteOptions } from "./engine.ts";
import { resourceOf, subjectOf, type Kind } from "./kinds.ts";
import { isRecord, numberAt, textAt, valueAt, type KubeObject } from "./object.ts";
import { jsonPatch, mergePatch, strategicPatch } from "./patch.ts";
import { negotiate, parseIncludeObject, Renderer, sendJson, sendText, type ListMeta } from "./render.ts";
import { isTrue, numberParameter, type RequestInfo, type ResourceTarget } from "./request.ts";
import { objectMatcher, parseFieldSelector, parseLabelSelector } from "./selectors.ts";
import { badRequest, expired, methodNotAllowed, success, unsupportedMediaType } from "./status.ts";
import type { StoredObject } from "./stored-object.ts";
import type { User } from "./user.ts";
import { parseRevision, Watch } from "./watch.ts";

/** One request for objects of a kind. */
export interface ResourceRequest {
  readonly kind: Kind;
  readonly target: ResourceTarget;
  readonly info: RequestInfo;
  readonly user: User;
  readonly message: IncomingMessage;
  readonly response: ServerResponse;
  readonly body: () => Promise<Buffer>;
}

/** Answers get, list, watch, create, update, patch and delete for every kind. */
export class ResourceHandler {
  readonly #engine: Engine;
  readonly #clock: Clock;
  readonly #random: Random;
  readonly #watches = new Set<Watch>();

  constructor(options: { engine: Engine; clock: Clock; random: Random }) {
    this.#engine = options.engine;
    this.#clock = options.clock;
    this.#random = options.random;
  }

  /** How many watches are open. */
  get watches(): number {
    return this.#watches.size;
  }

  /** Ends all watches (for shutting down), or those of a resource that is no longer served. */
  endWatches(resource?: string): void {
    for (const watch of this.#watches) if (resource === undefined || watch.resource === resource) watch.end();
  }

  async handle(request: ResourceRequest): Promise<void> {
    const { verb } = request.info;
    switch (verb) {
      case "get":
        return this.#get(request);
      case "list":
        return this.#list(request);
      case "watch":
        return this.#watch(request);
      case "create":
        return this.#create(request);
      case "update":
        return this.#update(request);
      case "patch":
        return this.#patch(request);
      case "delete":
        return this.#delete(request);
      case "deletecollection":
        return this.#deleteCollection(request);
      default:
        throw methodNotAllowed(subjectOf(request.kind), verb);
    }
  }

  #get(request: ResourceRequest): void {
    const { kind, target } = request;
    const stored = this.#engine.get(kind, target.namespace, target.name);
    sendText(request.response, 200, this.#renderer(request).one(stored));
  }

  #matcher(request: ResourceRequest): (object: Readonly<KubeObject>) => boolean {
    const { query } = request.info;
    const labels = query.get("labelSelector") ?? "";
    const fields = parseFieldSelector(query.get("fieldSelector") ?? "", request.kind.selectableFields);
    return objectMatcher(labels === "" ? undefined : parseLabelSelector(labels), fields);
  }

  #list(request: ResourceRequest): void {
    const { kind, target, info } = request;
    const matches = this.#matcher(request);
    const limit = Math.min(numberParameter(info.query, "limit") || MAX_PAGE_ITEMS, MAX_PAGE_ITEMS);
    const token = parseContinue(info.query.get("continue"));
    const { revision, all } = this.#snapshot(resourceOf(kind), token?.revision ?? exactRevision(info.query));
    const selected = all.filter(
      (stored) => (target.namespace === "" || stored.key.namespace === target.namespace) && matches(stored.object),
    );
    const start = token === undefined ? 0 : selected.findIndex((stored) => pathOf(stored) > token.after);
    const rest = start < 0 ? [] : selected.slice(start);
    const page = rest.slice(0, limit);
    const last = page.at(-1);
    const more = rest.length - page.length;
    const meta: ListMeta = {
      resourceVersion: String(revision),
      ...(more > 0 && last && { continue: formatContinue(revision, pathOf(last)), remainingItemCount: more }),
    };
    sendText(request.response, 200, this.#renderer(request).list(page, meta));
  }

  /** Everything of a resource as it was at a revision (now, when none is given). Throws 410 when that is too long ago. */
  #snapshot(resource: string, asked: number | undefined): { revision: number; all: readonly StoredObject[] } {
    const { store } = this.#engine;
    const revision = asked ?? store.revision;
    const all = revision > store.revision ? undefined : store.listAt(resource, revision);
    if (all !== undefined) return { revision, all };
    throw expired(
      "The provided continue parameter is too old to display a consistent list result. Start a new list without the continue parameter.",
    );
  }

  #watch(request: ResourceRequest): void {
    const { query } = request.info;
    const initialEvents = isTrue(query.get("sendInitialEvents"));
    if (initialEvents && query.get("resourceVersionMatch") !== "NotOlderThan") {
      throw badRequest("resourceVersionMatch: sendInitialEvents needs resourceVersionMatch=NotOlderThan");
    }
    const watch = new Watch({
      store: this.#engine.store,
      response: request.response,
      request: {
        renderer: this.#renderer(request),
        namespace: request.target.namespace,
        matches: this.#matcher(request),
        resourceVersion: query.get("resourceVersion") ?? "",
        bookmarks: isTrue(query.get("allowWatchBookmarks")),
        initialEvents,
        timeoutSeconds: numberParameter(query, "timeoutSeconds"),
      },
    });
    watch.start(this.#clock, this.#random);
    this.#watches.add(watch);
    request.response.once("close", () => this.#watches.delete(watch));
  }

  async #create(request: ResourceRequest): Promise<void> {
    const options = writeOptions(request);
    const { object, warnings } = await this.#decode(request, options);
    const stored = await this.#engine.create(request.kind, object, options);
    warn(request.response, warnings);
    sendText(request.response, 201, this.#renderer(request).one(stored));
  }

  async #update(request: ResourceRequest): Promise<void> {
    const options = writeOptions(request);
    const { object, warnings } = await this.#decode(request, options);
    const stored = await this.#engine.update(request.kind, request.target.name, { options, change: () => object });
    warn(request.response, warnings);
    sendText(request.response, 200, this.#renderer(request).one(stored));
  }

  async #decode(request: ResourceRequest, options: WriteOptions): Promise<{ object: KubeObject; warnings: string[] }> {
    const body = await decodeBody(await request.body(), request.message.headers["content-type"] ?? "");
    const { object, warnings } = readObject(request.kind, body, options.fieldValidation);
    return { object, warnings: [...warnings, ...(request.kind.rules.warnings?.(object) ?? [])] };
  }

  async #patch(request: ResourceRequest): Promise<void> {
    const { kind, target, message } = request;
    const options = writeOptions(request);
    const type = (message.headers["content-type"] ?? "").split(";")[0]?.trim() ?? "";
    const patch = await decodeBody(await request.body(), type);
    if (type === "application/apply-patch+yaml") return this.#apply(request, { patch, options });
    const change = patchBy(type, { kind, patch, name: target.name });
    const warnings: string[] = [];
    const stored = await this.#engine.update(kind, target.name, {
      options,
      change: (old) => {
        const read = readObject(kind, change(old), options.fieldValidation);
        warnings.push(...read.warnings);
        return read.object;
      },
    });
    warn(request.response, warnings);
    sendText(request.response, 200, this.#renderer(request).one(stored));
  }

  async #apply(request: ResourceRequest, given: { patch: unknown; options: WriteOptions }): Promise<void> {
    const { kind, target, response } = request;
    const { options } = given;
    if (options.fieldManager === "") throw badRequest("parameter fieldManager: is required for apply patch");
    const { object, warnings } = readObject(kind, given.patch, options.fieldValidation);
    if (object.metadata.name !== undefined && object.metadata.name !== target.name) {
      throw badRequest(
        `metadata.name: "${object.metadata.name}" does not match the name on the URL ("${target.name}")`,
      );
    }
    if (object.metadata.managedFields !== undefined) throw badRequest("metadata.managedFields must be nil");
    object.metadata.name = target.name;
    const { stored, created } = await applyObject(this.#engine, { kind, object, options, nowMs: this.#clock.now() });
    warn(response, warnings);
    sendText(response, created ? 201 : 200, this.#renderer(request).one(stored));
  }

  async #delete(request: ResourceRequest): Promise<void> {
    const { kind, target, response } = request;
    const options = writeOptions(request);
    const how = await deleteOptions(request);
    const { object, gone } = await this.#engine.delete(kind, target.name, { options, how });
    if (gone && kind.rules.graceSeconds === undefined) {
      sendJson(response, 200, success(subjectOf(kind, target.name), object.object.metadata.uid));
    } else sendText(response, 200, this.#renderer(request).one(object));
  }

  async #deleteCollection(request: ResourceRequest): Promise<void> {
    const { kind, target } = request;
    const options = writeOptions(request);
    const how = await deleteOptions(request);
    const matches = this.#matcher(request);
    const deleted = await this.#engine.store.write(
      (transaction) =>
        transaction
          .list(resourceOf(kind), target.namespace === "" ? undefined : target.namespace)
          .filter((stored) => matches(stored.object))
          .map(({ key }) => {
            const place = { ...options, namespace: key.namespace };
            return this.#engine.deleteIn(transaction, { kind, name: key.name, options: place, how }).object;
          }),
      options,
    );
    const meta = { resourceVersion: String(this.#engine.store.revision) };
    sendText(request.response, 200, this.#renderer(request).list(deleted, meta));
  }

  #renderer(request: ResourceRequest): Renderer {
    const include = parseIncludeObject(request.info.query.get("includeObject"));
    const nowMs = (): number => this.#clock.now();
    return new Renderer({ kind: request.kind, form: negotiate(request.message), include, nowMs });
  }
}

function exactRevision(query: URLSearchParams): number | undefined {
  return query.get("resourceVersionMatch") === "Exact" ? parseRevision(query.get("resourceVersion") ?? "") : undefined;
}

function pathOf(stored: StoredObject): string {
  const { namespace, name } = stored.key;
  return namespace === "" ? name : `${namespace}/${name}`;
}

function formatContinue(revision: number, after: string): string {
  return Buffer.from(JSON.stringify({ v: "veil/v1", revision, after })).toString("base64url");
}

/** Reads the token of a next page. Throws 400 for one that is not ours. */
export function parseContinue(text: string | null): { revision: number; after: string } | undefined {
  if (text === null || text === "") return undefined;
  try {
    const value: unknown = JSON.parse(Buffer.from(text, "base64url").toString("utf8"));
    const revision = numberAt(value, "revision");
    const after = valueAt(value, "after");
    if (
      textAt(value, "v") === "veil/v1" &&
      Number.isSafeInteger(revision) &&
      revision !== undefined &&
      typeof after === "string"
    ) {
      return { revision, after };
    }
  } catch {
    // refused below, as every other text that is no token
  }
  throw badRequest("parameter continue: continue key is not valid: it is not a token that this server gave out");
}

/** Reads what a writing request says about itself. Throws 400 that names the parameter. */
export function writeOptions(request: ResourceRequest): WriteOptions {
  const { query } = request.info;
  const dryRun = query.getAll("dryRun").filter((value) => value !== "");
  if (dryRun.some((value) => value !== "All")) throw badRequest(`parameter dryRun: "${dryRun[0] ?? ""}" must be All`);
  const validation = query.get("fieldValidation") || "Warn";
  if (validation !== "Strict" && validation !== "Warn" && validation !== "Ignore") {
    throw badRequest(`parameter fieldValidation: "${validation.slice(0, 100)}" must be one of Ignore, Strict, Warn`);
  }
  const fieldManager = query.get("fieldManager") ?? "";
  if (fieldManager.length > 128) throw badRequest("parameter fieldManager: must have at most 128 characters");
  const fieldValidation: FieldValidation = validation;
  const { namespace, subresource } = request.target;
  return { user: request.user, namespace, subresource, dryRun: dryRun.length > 0, fieldManager, fieldValidation };
}

async function deleteOptions(request: ResourceRequest): Promise<DeleteOptions> {
  const raw = await request.body();
  const body = raw.length === 0 ? {} : await decodeBody(raw, request.message.headers["content-type"] ?? "");
  if (!isRecord(body)) throw badRequest("the body of a deletion must be DeleteOptions");
  const { query } = request.info;
  return {
    gracePeriodSeconds: graceOf(valueAt(body, "gracePeriodSeconds") ?? numberParameter(query, "gracePeriodSeconds")),
    propagationPolicy: policyOf(body, query),
    uid: textAt(body, "preconditions", "uid") || undefined,
    resourceVersion: textAt(body, "preconditions", "resourceVersion") || undefined,
  };
}

function graceOf(value: unknown): number | undefined {
  if (value === undefined) return undefined;
  if (typeof value === "number" && Number.isInteger(value) && value >= 0) return value;
  throw badRequest(`gracePeriodSeconds: ${JSON.stringify(value)} must be a whole number of seconds, not negative`);
}

function policyOf(body: Record<string, unknown>, query: URLSearchParams): DeleteOptions["propagationPolicy"] {
  const policy = textAt(body, "propagationPolicy") || (query.get("propagationPolicy") ?? "");
  const orphan = valueAt(body, "orphanDependents") === true || isTrue(query.get("orphanDependents"));
  if (policy === "") return orphan ? "Orphan" : undefined;
  if (policy === "Background" || policy === "Foreground" || policy === "Orphan") return policy;
  throw badRequest(`propagationPolicy: "${policy.slice(0, 100)}" must be one of Background, Foreground, Orphan`);
}

function patchBy(type: string, request: { kind: Kind; patch: unknown; name: string }): (old: KubeObject) => unknown {
  const { kind, patch, name } = request;
  switch (type) {
    case "application/json-patch+json":
      return (old) => jsonPatch(old, patch, subjectOf(kind, name));
    case "application/merge-patch+json":
      if (!isRecord(patch)) throw badRequest("a merge patch must be an object");
      return (old) => mergePatch(old, patch);
    case "application/strategic-merge-patch+json":
      if (kind.custom) break;
      if (!isRecord(patch)) throw badRequest("a strategic merge patch must be an object");
      return (old) => strategicPatch(kind.schema, old, patch);
    default:
  }
  const accepted = [
    "application/json-patch+json",
    "application/merge-patch+json",
    ...(kind.custom ? [] : ["application/strategic-merge-patch+json"]),
    "application/apply-patch+yaml",
  ];
  throw unsupportedMediaType(
    `the body of the request was in an unknown format - accepted media types include: ${accepted.join(", ")}`,
  );
}

function warn(response: ServerResponse, warnings: readonly string[]): void {
  if (warnings.length === 0) return;
  const texts = warnings
    .slice(0, 20)
    .map((text) => `299 - ${JSON.stringify(text.replaceAll(/[^\x20-\x7e]/g, "?").slice(0, 500))}`);
  response.setHeader("warning", texts);
}
