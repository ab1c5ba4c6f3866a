import { createHash } from "node:crypto";
import { create, toBinary } from "@bufbuild/protobuf";
import { OpenApiDocumentSchema } from "#proto";
import { apiVersionOf, type Kind } from "./kinds.ts";
import type { Registry } from "./registry.ts";
import { builtinSchema } from "./schema/builtin.ts";
import type { Schema } from "./schema/schema.ts";

const PREFIX = "#/components/schemas/";

/** What each scalar of ours is in OpenAPI. */
const SCALARS: Readonly<Record<string, Record<string, unknown>>> = {
  string: { type: "string" },
  int: { type: "integer", format: "int64" },
  number: { type: "number", format: "double" },
  bool: { type: "boolean" },
  time: { type: "string", format: "date-time" },
  bytes: { type: "string", format: "byte" },
  quantity: { description: "a quantity such as 100m or 64Mi", oneOf: [{ type: "string" }, { type: "number" }] },
  intstr: { format: "int-or-string", oneOf: [{ type: "integer" }, { type: "string" }] },
  any: {},
};

/**
 * The OpenAPI v3 documents, one for each group and version, made from the same schemas that objects are read by:
 * enough for validation (`fieldValidation`) and `kubectl explain`.
 */
export class OpenApi {
  readonly #registry: Registry;
  readonly #cache = new Map<string, { text: string; hash: string }>();
  #generation = -1;

  constructor(registry: Registry) {
    this.#registry = registry;
  }

  /** The answer to a path below `/openapi/v3`; undefined when there is none. */
  find(path: string): string | undefined {
    if (this.#generation !== this.#registry.generation) this.#cache.clear();
    this.#generation = this.#registry.generation;
    const key = path.replace(/^\/openapi\/v3\/?/, "").replace(/\/$/, "");
    return key === "" ? this.#root() : this.#document(key)?.text;
  }

  /**
   * The OpenAPI v2 document in its binary form, the only one that kubectl reads. It names the kinds and leaves their fields open:
   * kubectl needs it for `kind: List` alone, whose objects the server checks one by one when they arrive.
   */
  version2(): Uint8Array {
    const definitions = this.#registry.kinds().map(({ group, version, kind }) => ({
      name: `${group === "" ? "core" : group}.${version}.${kind}`,
      value: {
        type: { value: ["object"] },
        vendorExtension: [
          { name: "x-kubernetes-group-version-kind", value: { yaml: JSON.stringify([{ group, version, kind }]) } },
        ],
      },
    }));
    const info = { title: "veil apiserver", version: "v1" };
    const document = { swagger: "2.0", info, paths: {}, definitions: { additionalProperties: definitions } };
    return toBinary(OpenApiDocumentSchema, create(OpenApiDocumentSchema, document));
  }

  #root(): string {
    const keys = [...new Set(this.#registry.kinds().map((kind) => keyOf(kind)))];
    const paths = keys.map((key) => [
      key,
      { serverRelativeURL: `/openapi/v3/${key}?hash=${this.#document(key)?.hash ?? ""}` },
    ]);
    return JSON.stringify({ paths: Object.fromEntries(paths) });
  }

  #document(key: string): { text: string; hash: string } | undefined {
    const known = this.#cache.get(key);
    if (known !== undefined) return known;
    const kinds = this.#registry.kinds().filter((kind) => keyOf(kind) === key);
    if (kinds.length === 0) return undefined;
    const text = JSON.stringify(describe(kinds));
    const document = { text, hash: createHash("sha256").update(text).digest("hex").slice(0, 32).toUpperCase() };
    this.#cache.set(key, document);
    return document;
  }
}

function keyOf(kind: Kind): string {
  return `${kind.group === "" ? "api" : "apis"}/${apiVersionOf(kind)}`;
}

function describe(kinds: readonly Kind[]): unknown {
  const components: Record<string, unknown> = {};
  const paths: Record<string, unknown> = {};
  for (const kind of kinds) {
    const gvk = { group: kind.group, version: kind.version, kind: kind.kind };
    const name = kind.custom
      ? `${kind.group.split(".").toReversed().join(".")}.${kind.version}.${kind.kind}`
      : `io.k8s.${kind.kind}`;
    const schema = kind.custom ? translate(kind.schema, components) : body(builtinSchema(kind.kind), components);
    components[name] = { ...schema, "x-kubernetes-group-version-kind": [gvk] };
    Object.assign(paths, pathsOf(kind, { gvk, name }));
  }
  return {
    openapi: "3.0.0",
    info: { title: "Kubernetes", version: "v1.34.5" },
    paths,
    components: { schemas: components },
  };
}

function pathsOf(kind: Kind, { gvk, name }: { gvk: Record<string, string>; name: string }): Record<string, unknown> {
  const collection = `/${keyOf(kind)}/${kind.namespaced ? "namespaces/{namespace}/" : ""}${kind.plural}`;
  const query = (parameter: string): unknown => ({
    name: parameter,
    in: "query",
    schema: { type: "string", uniqueItems: true },
  });
  const writing = ["dryRun", "fieldManager", "fieldValidation"].map((parameter) => query(parameter));
  const content = { "application/json": { schema: { $ref: `${PREFIX}${name}` } } };
  const responses = { "200": { description: "OK", content } };
  const operation = (action: string, parameters: unknown[]): unknown => ({
    "x-kubernetes-action": action,
    "x-kubernetes-group-version-kind": gvk,
    parameters,
    responses,
  });
  // kubectl computes strategic merges itself for the kinds it knows; it does so from here only when that type is listed.
  const patch = { "application/merge-patch+json": { schema: {} }, "application/apply-patch+yaml": { schema: {} } };
  const out: Record<string, unknown> = {
    [collection]: { post: operation("post", writing), get: operation("list", []) },
  };
  if (kind.verbs.includes("patch")) {
    out[`${collection}/{name}`] = {
      get: operation("get", []),
      put: operation("put", writing),
      patch: { ...(operation("patch", [...writing, query("force")]) as object), requestBody: { content: patch } },
      delete: operation("delete", []),
    };
  }
  return out;
}

/** A schema as OpenAPI; named types become references and are added to `components`. */
function translate(schema: Schema, components: Record<string, unknown>): Record<string, unknown> {
  const described = schema.description === undefined ? {} : { description: schema.description };
  if (schema.type === "list") return { ...described, ...translateList(schema, components) };
  if (schema.type === "map") {
    const additionalProperties = schema.item === undefined ? {} : translate(schema.item, components);
    return { ...described, type: "object", additionalProperties };
  }
  if (schema.type !== "object") return { ...described, ...SCALARS[schema.type] };
  if (schema.name === undefined) return { ...described, ...body(schema, components) };
  return { allOf: [{ $ref: reference(schema, components) }], default: {} };
}

function translateList(schema: Schema, components: Record<string, unknown>): Record<string, unknown> {
  const { item, keys = [] } = schema;
  const kind = schema.keys === undefined ? "atomic" : keys.length === 0 ? "set" : "map";
  return {
    type: "array",
    items: item === undefined ? {} : translate(item, components),
    "x-kubernetes-list-type": kind,
    ...(keys.length > 0 && { "x-kubernetes-list-map-keys": keys }),
  };
}

function reference(schema: Schema, components: Record<string, unknown>): string {
  const name = `io.k8s.${schema.name ?? ""}`;
  if (components[name] === undefined) {
    components[name] = {}; // types refer to themselves
    components[name] = body(schema, components);
  }
  return `${PREFIX}${name}`;
}

function body(schema: Schema, components: Record<string, unknown>): Record<string, unknown> {
  const fields = Object.entries(schema.fields?.() ?? {}).map(([name, field]) => [name, translate(field, components)]);
  const required = schema.required ?? [];
  return {
    type: "object",
    ...(fields.length > 0 && { properties: Object.fromEntries(fields) }),
    ...(required.length > 0 && { required }),
    ...(schema.open === true && { "x-kubernetes-preserve-unknown-fields": true }),
  };
}
