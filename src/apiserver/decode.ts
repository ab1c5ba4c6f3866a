import { apiVersionOf, subjectOf, type Kind } from "./kinds.ts";
import { isRecord, type KubeObject } from "./object.ts";
import { decodeProtobuf, PROTOBUF_TYPE } from "./protobuf.ts";
import { readBySchema, type SchemaFindings } from "./schema/schema.ts";
import { badRequest, invalid, unsupportedMediaType, type Cause } from "./status.ts";

/** How a request wants unknown fields to be treated. */
export type FieldValidation = "Strict" | "Warn" | "Ignore";

const JSON_TYPES = new Set([
  "application/json",
  "application/merge-patch+json",
  "application/strategic-merge-patch+json",
  "application/json-patch+json",
]);
const YAML_TYPES = new Set(["application/yaml", "application/apply-patch+yaml"]);
/** YAML documents may expand by aliases; more nodes than this are refused. */
const MAX_YAML_ALIASES = 100;

/** Reads a body by its content type. Throws 400 with the place of the mistake, or 415. */
export async function decodeBody(body: Buffer, contentType: string): Promise<unknown> {
  const type = (contentType.split(";")[0] ?? "").trim().toLowerCase();
  if (type === PROTOBUF_TYPE) return decodeProtobuf(body);
  const text = body.toString("utf8");
  if (type === "" || JSON_TYPES.has(type)) return parseJson(text);
  if (YAML_TYPES.has(type)) return text.trimStart().startsWith("{") ? parseJson(text) : parseYaml(text);
  const accepted = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
  throw unsupportedMediaType(
    `the body of the request was in an unknown format - accepted media types include: ${accepted} (not ${type})`,
  );
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw badRequest(
      `the body of the request is not valid JSON: ${error instanceof Error ? error.message : String(error)}`,
    );
  }
}

async function parseYaml(text: string): Promise<unknown> {
  const { parse } = await import("yaml");
  try {
    return parse(text, { maxAliasCount: MAX_YAML_ALIASES, schema: "core", prettyErrors: true });
  } catch (error) {
    throw badRequest(
      `the body of the request is not valid YAML: ${error instanceof Error ? error.message : String(error)}`,
    );
  }
}

/**
 * Makes an object of a kind from what a body held: checks `apiVersion`, `kind` and `metadata`, removes unknown fields
 * (the returned warnings name them). Throws 400 or 422 that name each wrong field.
 */
export function readObject(
  kind: Kind,
  value: unknown,
  validation: FieldValidation,
): { object: KubeObject; warnings: string[] } {
  if (!isRecord(value)) throw badRequest(`the body must be a ${kind.kind} object`);
  const apiVersion = value["apiVersion"] ?? apiVersionOf(kind);
  const name = value["kind"] ?? kind.kind;
  if (apiVersion !== apiVersionOf(kind) || name !== kind.kind) {
    const found = `${JSON.stringify(apiVersion)}, Kind=${JSON.stringify(name)}`.replaceAll('"', "").slice(0, 200);
    throw badRequest(
      `the object provided (${found}) does not match the expected ${apiVersionOf(kind)}, Kind=${kind.kind}`,
    );
  }
  const metadata = value["metadata"] ?? {};
  if (!isRecord(metadata))
    throw badRequest(
      `${kind.kind} in version "${kind.version}" cannot be handled as a ${kind.kind}: metadata: expected an object`,
    );
  const findings: SchemaFindings = { unknown: [], wrong: [] };
  readBySchema(kind.schema, value, findings);
  refuse(kind, typeof metadata["name"] === "string" ? metadata["name"] : "", findings);
  if (validation === "Strict" && findings.unknown.length > 0) {
    const list = findings.unknown.map((field) => `unknown field "${field}"`).join(", ");
    throw badRequest(
      `${kind.kind} in version "${kind.version}" cannot be handled as a ${kind.kind}: strict decoding error: ${list}`,
    );
  }
  const warnings = validation === "Warn" ? findings.unknown.map((field) => `unknown field "${field}"`) : [];
  // The schema has just checked every field of the metadata.
  return {
    object: { ...value, apiVersion: apiVersionOf(kind), kind: kind.kind, metadata } as unknown as KubeObject,
    warnings,
  };
}

function refuse(kind: Kind, name: string, findings: SchemaFindings): void {
  if (findings.wrong.length === 0) return;
  if (kind.custom) {
    const causes = findings.wrong.map(({ field, message, missing }): Cause => ({
      reason: missing ? "FieldValueRequired" : "FieldValueInvalid",
      field: field === "" ? "<root>" : field,
      message,
    }));
    throw invalid(subjectOf(kind, name), causes);
  }
  const list = findings.wrong.map(({ field, message }) => `${field}: ${message}`).join(", ");
  throw badRequest(`${kind.kind} in version "${kind.version}" cannot be handled as a ${kind.kind}: ${list}`);
}
