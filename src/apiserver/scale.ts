import { readObject, decodeBody } from "./decode.ts";
import type { Engine } from "./engine.ts";
import { NO_RULES, subjectOf, type Kind } from "./kinds.ts";
import { isRecord, numberAt, recordAt, textAt, valueAt, type KubeObject } from "./object.ts";
import { jsonPatch, mergePatch } from "./patch.ts";
import { sendJson } from "./render.ts";
import { writeOptions, type ResourceRequest } from "./resource-handler.ts";
import { builtinSchema } from "./schema/builtin.ts";
import { badRequest, invalid, invalidValue, methodNotAllowed, unsupportedMediaType } from "./status.ts";
import type { SubresourceAnswer } from "./subresources.ts";

/** The shape of a Scale, which is only ever a view of another object. */
const SCALE: Kind = {
  group: "autoscaling",
  version: "v1",
  kind: "Scale",
  plural: "scales",
  singular: "scale",
  shortNames: [],
  categories: [],
  namespaced: true,
  verbs: [],
  subresources: [],
  schema: builtinSchema("Scale"),
  columns: [],
  selectableFields: [],
  rules: NO_RULES,
  custom: false,
};

/** `scale`: replicas of any kind that has them, as one small object that is read, replaced and patched. */
export function scaleAnswer(engine: Engine): SubresourceAnswer {
  return async (request) => {
    const { kind, target, info, response } = request;
    if (info.verb === "get") {
      sendJson(response, 200, scaleOf(kind, engine.get(kind, target.namespace, target.name).object));
      return;
    }
    if (info.verb !== "update" && info.verb !== "patch")
      throw methodNotAllowed(subjectOf(kind, target.name), info.verb);
    const change = await readChange(request);
    const options = { ...writeOptions(request), subresource: "" };
    const stored = await engine.update(kind, target.name, {
      options,
      change: (old) => {
        const { object: scale } = readObject(SCALE, change(scaleOf(kind, old)), "Ignore");
        const replicas = numberAt(scale, "spec", "replicas") ?? 0;
        if (replicas < 0) {
          throw invalid({ ...subjectOf(SCALE, target.name) }, [
            invalidValue("spec.replicas", replicas, "must be greater than or equal to 0"),
          ]);
        }
        const revision = scale.metadata.resourceVersion;
        if (revision !== undefined && revision !== "") old.metadata.resourceVersion = revision;
        setPath(old, kind.scale?.specPath ?? ".spec.replicas", replicas);
        return old;
      },
    });
    sendJson(response, 200, scaleOf(kind, stored.object));
  };
}

async function readChange(request: ResourceRequest): Promise<(scale: unknown) => unknown> {
  const type = (request.message.headers["content-type"] ?? "").split(";")[0]?.trim() ?? "";
  const body = await decodeBody(await request.body(), type);
  if (request.info.verb === "update") return () => body;
  if (type === "application/json-patch+json")
    return (scale) => jsonPatch(scale, body, subjectOf(SCALE, request.target.name));
  if (type !== "application/merge-patch+json" && type !== "application/strategic-merge-patch+json") {
    throw unsupportedMediaType(`scale cannot be patched with ${type.slice(0, 100)}`);
  }
  if (!isRecord(body)) throw badRequest("a merge patch must be an object");
  return (scale) => mergePatch(scale, body);
}

function scaleOf(kind: Kind, object: Readonly<KubeObject>): Record<string, unknown> {
  const { name, namespace, uid, resourceVersion, creationTimestamp } = object.metadata;
  const { specPath = ".spec.replicas", statusPath = ".status.replicas", selectorPath } = kind.scale ?? {};
  const selector =
    selectorPath === undefined
      ? formatSelector(valueAt(object, "spec", "selector"))
      : textAt(object, ...steps(selectorPath));
  return {
    kind: "Scale",
    apiVersion: "autoscaling/v1",
    metadata: { name, namespace, uid, resourceVersion, creationTimestamp },
    spec: { replicas: numberAt(object, ...steps(specPath)) ?? 0 },
    status: { replicas: numberAt(object, ...steps(statusPath)) ?? 0, ...(selector !== "" && { selector }) },
  };
}

function formatSelector(selector: unknown): string {
  const labels = recordAt(selector, "matchLabels");
  return Object.entries(labels)
    .map(([key, value]) => `${key}=${String(value)}`)
    .join(",");
}

function steps(path: string): string[] {
  return path.split(".").filter((step) => step !== "");
}

function setPath(object: Record<string, unknown>, path: string, value: unknown): void {
  const names = steps(path);
  let at = object;
  for (const name of names.slice(0, -1)) {
    const next = at[name];
    if (isRecord(next)) at = next;
    else {
      const made = {};
      at[name] = made;
      at = made;
    }
  }
  at[names.at(-1) ?? "replicas"] = value;
}

/** `namespaces/finalize`: replaces the finalizers in a namespace's spec. */
export function finalizeAnswer(engine: Engine): SubresourceAnswer {
  return async (request) => {
    const { kind, target, info } = request;
    if (info.verb !== "update") throw methodNotAllowed(subjectOf(kind, target.name), info.verb);
    const body = await decodeBody(await request.body(), request.message.headers["content-type"] ?? "");
    const { object } = readObject(kind, body, "Ignore");
    const stored = await engine.update(kind, target.name, { options: writeOptions(request), change: () => object });
    sendJson(request.response, 200, stored.object);
  };
}

/** `pods/eviction`: deletes a pod with its grace. There are no disruption budgets here. */
export function evictionAnswer(engine: Engine): SubresourceAnswer {
  return async (request) => {
    const { kind, target, info, response } = request;
    if (info.verb !== "create") throw methodNotAllowed(subjectOf(kind, target.name), info.verb);
    const body = await decodeBody(await request.body(), request.message.headers["content-type"] ?? "");
    const how = {
      gracePeriodSeconds: numberAt(body, "deleteOptions", "gracePeriodSeconds"),
      uid: textAt(body, "deleteOptions", "preconditions", "uid") || undefined,
    };
    const options = { ...writeOptions(request), subresource: "" };
    await engine.delete(kind, target.name, { options, how });
    sendJson(response, 201, { kind: "Status", apiVersion: "v1", metadata: {}, status: "Success", code: 201 });
  };
}
