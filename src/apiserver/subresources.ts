import { decodeBody } from "./decode.ts";
import type { Engine } from "./engine.ts";
import { resourceOf, subjectOf } from "./kinds.ts";
import { ensureRecord, textAt, type KubeObject } from "./object.ts";
import { sendJson } from "./render.ts";
import type { ResourceHandler, ResourceRequest } from "./resource-handler.ts";
import { badRequest, conflict, methodNotAllowed, notFound, notServed } from "./status.ts";

/** Answers requests for a subresource of a kind; the one for everything below an object. */
export type SubresourceAnswer = (request: ResourceRequest) => Promise<void>;

/** Finds who answers for a subresource. Objects that are only created (reviews) are handled here too, under their plural. */
export class SubresourceHandler {
  readonly #answers: Readonly<Record<string, SubresourceAnswer>>;
  readonly #resources: ResourceHandler;

  /** Keys are `plural/subresource` (a star stands for every plural), or `plural` for reviews. */
  constructor(options: { resources: ResourceHandler; answers: Readonly<Record<string, SubresourceAnswer>> }) {
    this.#resources = options.resources;
    this.#answers = options.answers;
  }

  async handle(request: ResourceRequest): Promise<void> {
    const { kind, target, info } = request;
    if (target.subresource === "") {
      const answer = this.#answers[resourceOf(kind)];
      if (answer === undefined || info.verb !== "create") throw methodNotAllowed(subjectOf(kind), info.verb);
      return answer(request);
    }
    if (!kind.subresources.includes(target.subresource)) {
      throw notServed(`${resourceOf(kind)} has no subresource ${target.subresource.slice(0, 100)}`);
    }
    const answer =
      this.#answers[`${resourceOf(kind)}/${target.subresource}`] ?? this.#answers[`*/${target.subresource}`];
    if (answer !== undefined) return answer(request);
    if (target.subresource !== "status")
      throw notServed(`veil apiserver does not have ${resourceOf(kind)}/${target.subresource} yet`);
    if (!["get", "update", "patch"].includes(info.verb)) throw methodNotAllowed(subjectOf(kind), info.verb);
    return this.#resources.handle(request);
  }
}

/** `pods/binding`: puts a pod on a node, once. */
export function bindingAnswer(engine: Engine): SubresourceAnswer {
  return async (request) => {
    const { kind, target } = request;
    if (request.info.verb !== "create") throw methodNotAllowed(subjectOf(kind), request.info.verb);
    const body = await decodeBody(await request.body(), request.message.headers["content-type"] ?? "");
    const node = textAt(body, "target", "name");
    if (node === "") throw badRequest("target.name: Required value: the name of a node");
    await engine.store.write((transaction) => {
      const key = { resource: "pods", namespace: target.namespace, name: target.name };
      const found = transaction.get(key);
      if (found === undefined) throw notFound(subjectOf(kind, target.name));
      const bound = textAt(found.object, "spec", "nodeName");
      if (found.object.metadata.deletionTimestamp !== undefined)
        throw conflict(
          subjectOf(kind, target.name),
          `pod ${target.name} is being deleted, cannot be assigned to a host`,
        );
      if (bound !== "")
        throw conflict(subjectOf(kind, target.name), `pod ${target.name} is already assigned to node "${bound}"`);
      const pod = found.copy();
      ensureRecord(pod, "spec")["nodeName"] = node;
      setScheduled(pod);
      transaction.put(key, pod);
    });
    sendJson(request.response, 201, { kind: "Status", apiVersion: "v1", metadata: {}, status: "Success", code: 201 });
  };
}

function setScheduled(pod: KubeObject): void {
  const status = ensureRecord(pod, "status");
  const conditions = Array.isArray(status["conditions"]) ? status["conditions"] : [];
  const others = conditions.filter((condition) => textAt(condition, "type") !== "PodScheduled");
  status["conditions"] = [
    ...others,
    { type: "PodScheduled", status: "True", lastProbeTime: null, lastTransitionTime: pod.metadata.creationTimestamp },
  ];
}
