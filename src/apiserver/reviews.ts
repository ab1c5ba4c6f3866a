import type { Clock } from "#base/clock";
import { decodeBody, readObject } from "./decode.ts";
import type { Attributes } from "./authorizer.ts";
import { formatTime, listAt, numberAt, recordAt, textAt, textsAt, valueAt, type KubeObject } from "./object.ts";
import { sendJson } from "./render.ts";
import type { ResourceRequest } from "./resource-handler.ts";
import {
  badRequest,
  conflict,
  forbidden,
  invalid,
  invalidValue,
  methodNotAllowed,
  notFound,
  required,
} from "./status.ts";
import type { Store } from "./store.ts";
import type { StoredObject } from "./stored-object.ts";
import type { SubresourceAnswer } from "./subresources.ts";
import type { TokenIssuer } from "./tokens.ts";
import { builtinSchema } from "./schema/builtin.ts";
import { NO_RULES, subjectOf, type Kind } from "./kinds.ts";
import { AUTHENTICATED_GROUP, type User } from "./user.ts";

const DEFAULT_TOKEN_SECONDS = 3600;
const LEAST_TOKEN_SECONDS = 600;
const MOST_TOKEN_SECONDS = 2 ** 32;
/** No token lives longer, whatever is asked for. */
const TOKEN_LIFE_CAP_SECONDS = 48 * 3600;

/** The shape of a TokenRequest, which is only ever a body of `serviceaccounts/token`. */
const TOKEN_REQUEST: Kind = {
  group: "authentication.k8s.io",
  version: "v1",
  kind: "TokenRequest",
  plural: "tokenrequests",
  singular: "tokenrequest",
  shortNames: [],
  categories: [],
  namespaced: true,
  verbs: ["create"],
  subresources: [],
  schema: builtinSchema("TokenRequest"),
  columns: [],
  selectableFields: [],
  rules: NO_RULES,
  custom: false,
};

/** What reviews ask. */
export interface ReviewParts {
  readonly store: Store;
  readonly tokens: TokenIssuer;
  readonly clock: Clock;
  readonly decide: (user: User, attributes: Attributes) => boolean;
  /** Whether somebody may ask for this token of an account in a namespace (nodes: only for their own pods). */
  readonly allowsToken: (user: User, namespace: string, review: Readonly<Record<string, unknown>>) => boolean;
  readonly rulesOf: (user: User, namespace: string) => readonly unknown[];
}

/** The answers to reviews (`plural.group`) and to `serviceaccounts/token`. */
export function reviewAnswers(parts: ReviewParts): Readonly<Record<string, SubresourceAnswer>> {
  const decide = async (
    request: ResourceRequest,
    decideFor: (spec: Record<string, unknown>) => { allowed: boolean; reason?: string },
  ): Promise<void> => {
    const review = await readReview(request, request.kind);
    const spec = recordAt(review, "spec");
    sendJson(request.response, 201, { ...review, status: decideFor(spec) });
  };
  const others = async (request: ResourceRequest): Promise<void> =>
    decide(request, (spec) => ({
      allowed: parts.decide(subjectOfReview(spec), attributesOfReview(spec, request.target.namespace)),
    }));
  return {
    "serviceaccounts/token": async (request) => issueToken(parts, request),
    "tokenreviews.authentication.k8s.io": async (request) => reviewToken(parts, request),
    "selfsubjectreviews.authentication.k8s.io": async (request) => {
      const review = await readReview(request, request.kind);
      sendJson(request.response, 201, { ...review, status: { userInfo: userInfo(request.user) } });
    },
    "subjectaccessreviews.authorization.k8s.io": others,
    "localsubjectaccessreviews.authorization.k8s.io": others,
    "selfsubjectaccessreviews.authorization.k8s.io": async (request) =>
      decide(request, (spec) => ({ allowed: parts.decide(request.user, attributesOfReview(spec, "")) })),
    "selfsubjectrulesreviews.authorization.k8s.io": async (request) => reviewRules(parts, request),
  };
}

async function readReview(request: ResourceRequest, kind: Kind): Promise<KubeObject> {
  const body = await decodeBody(await request.body(), request.message.headers["content-type"] ?? "");
  const { object } = readObject(kind, body, "Ignore");
  object.metadata = { ...object.metadata };
  return object;
}

function userInfo(user: User): Record<string, unknown> {
  const { name, uid, groups, extra } = user;
  return { username: name, ...(uid !== "" && { uid }), groups, ...(Object.keys(extra).length > 0 && { extra }) };
}

async function reviewToken(parts: ReviewParts, request: ResourceRequest): Promise<void> {
  const review = await readReview(request, request.kind);
  const token = textAt(review, "spec", "token");
  if (token === "") throw badRequest("spec.token: Required value: the token to review");
  const verdict = parts.tokens.verify(token, textsAt(review, "spec", "audiences"));
  const status =
    verdict.user === undefined
      ? { user: {}, error: verdict.problem }
      : { authenticated: true, user: userInfo(verdict.user), audiences: verdict.audiences };
  sendJson(request.response, 201, { ...review, status });
}

async function reviewRules(parts: ReviewParts, request: ResourceRequest): Promise<void> {
  const review = await readReview(request, request.kind);
  const namespace = textAt(review, "spec", "namespace");
  if (namespace === "") throw badRequest("spec.namespace: Required value: no namespace on request");
  const rules = parts.rulesOf(request.user, namespace);
  const pick = (rule: unknown, fields: readonly string[]): Record<string, unknown> =>
    Object.fromEntries(
      fields.map((field) => [field, textsAt(rule, field)]).filter(([, values]) => values?.length !== 0),
    );
  const status = {
    resourceRules: rules
      .filter((rule) => listAt(rule, "resources").length > 0)
      .map((rule) => pick(rule, ["verbs", "apiGroups", "resources", "resourceNames"])),
    nonResourceRules: rules
      .filter((rule) => listAt(rule, "nonResourceURLs").length > 0)
      .map((rule) => pick(rule, ["verbs", "nonResourceURLs"])),
    incomplete: false,
  };
  sendJson(request.response, 201, { ...review, status });
}

function subjectOfReview(spec: Record<string, unknown>): User {
  const name = textAt(spec, "user");
  const groups = textsAt(spec, "groups");
  if (name === "" && groups.length === 0)
    throw badRequest("spec.user: Invalid value: at least one of user or group must be specified");
  const extra = Object.fromEntries(
    Object.entries(recordAt(spec, "extra")).map(([key]) => [key, textsAt(spec, "extra", key)]),
  );
  return { name, uid: textAt(spec, "uid"), groups: groups.length > 0 ? groups : [AUTHENTICATED_GROUP], extra };
}

function attributesOfReview(spec: Record<string, unknown>, onlyNamespace: string): Attributes {
  const resource = valueAt(spec, "resourceAttributes");
  const path = valueAt(spec, "nonResourceAttributes");
  if ((resource === undefined) === (path === undefined)) {
    throw badRequest(
      "spec.resourceAttributes: Invalid value: exactly one of nonResourceAttributes or resourceAttributes must be specified",
    );
  }
  if (path !== undefined) {
    return {
      verb: textAt(path, "verb").toLowerCase(),
      group: "",
      resource: "",
      namespace: "",
      name: "",
      path: textAt(path, "path"),
      fieldSelector: "",
    };
  }
  const namespace = textAt(resource, "namespace");
  if (onlyNamespace !== "" && namespace !== onlyNamespace) {
    throw badRequest(`spec.resourceAttributes.namespace: Invalid value: "${namespace}": must match metadata.namespace`);
  }
  const subresource = textAt(resource, "subresource");
  return {
    verb: textAt(resource, "verb").toLowerCase(),
    group: textAt(resource, "group"),
    resource: subresource === "" ? textAt(resource, "resource") : `${textAt(resource, "resource")}/${subresource}`,
    namespace,
    name: textAt(resource, "name"),
    path: "",
    fieldSelector: "",
  };
}

/** The object that a token is to be bound to. Throws when it is not what the request says it is. */
function findBound(
  parts: ReviewParts,
  review: KubeObject,
  request: ResourceRequest,
): { kind: string; object: StoredObject } | undefined {
  const reference = valueAt(review, "spec", "boundObjectRef");
  if (reference === undefined) return undefined;
  const kind = textAt(reference, "kind");
  const name = textAt(reference, "name");
  const resource = { Pod: "pods", Secret: "secrets", Node: "nodes" }[kind];
  const field = "spec.boundObjectRef";
  if (resource === undefined) {
    throw invalid({ kind: "TokenRequest", group: "authentication.k8s.io", name: request.target.name }, [
      invalidValue(`${field}.kind`, kind, "only Pod, Node and Secret may be bound"),
    ]);
  }
  if (name === "") throw invalid({ kind: "TokenRequest", name: request.target.name }, [required(`${field}.name`)]);
  const object = parts.store.get({ resource, namespace: kind === "Node" ? "" : request.target.namespace, name });
  if (object === undefined) throw notFound({ resource, name });
  const uid = textAt(reference, "uid");
  if (uid !== "" && uid !== object.object.metadata.uid) {
    throw conflict(
      { resource, name },
      `the UID in the bound object reference (${uid}) does not match the UID in record. The object might have been deleted and then recreated`,
    );
  }
  return { kind, object };
}

/** How long a token is to live. Throws 422 for less than ten minutes and more than 2^32 seconds. */
function tokenSeconds(review: KubeObject, name: string): number {
  const seconds = numberAt(review, "spec", "expirationSeconds") ?? DEFAULT_TOKEN_SECONDS;
  if (seconds >= LEAST_TOKEN_SECONDS && seconds <= MOST_TOKEN_SECONDS) return Math.min(seconds, TOKEN_LIFE_CAP_SECONDS);
  const limit = seconds < LEAST_TOKEN_SECONDS ? "less than 10 minutes" : "larger than 2^32 seconds";
  throw invalid({ kind: "TokenRequest", group: "authentication.k8s.io", name }, [
    invalidValue("spec.expirationSeconds", seconds, `may not specify a duration ${limit}`),
  ]);
}

async function issueToken(parts: ReviewParts, request: ResourceRequest): Promise<void> {
  const { target, kind } = request;
  if (request.info.verb !== "create") throw methodNotAllowed(subjectOf(kind), request.info.verb);
  const account = parts.store.get({ resource: "serviceaccounts", namespace: target.namespace, name: target.name });
  if (account === undefined) throw notFound(subjectOf(kind, target.name));
  const review = await readReview(request, TOKEN_REQUEST);
  if (!parts.allowsToken(request.user, target.namespace, review)) {
    throw forbidden(
      subjectOf(kind, target.name),
      `${request.user.name} may only ask for tokens that are bound to a pod on its node`,
    );
  }
  const expirationSeconds = tokenSeconds(review, target.name);
  const bound = findBound(parts, review, request);
  if (bound?.kind === "Pod" && textAt(bound.object.object, "spec", "serviceAccountName") !== target.name) {
    throw badRequest(
      `cannot bind token for serviceaccount "${target.name}" to pod running with different serviceaccount name.`,
    );
  }
  const audiences = textsAt(review, "spec", "audiences");
  const boundTo = (kind: string): Readonly<KubeObject> | undefined =>
    bound?.kind === kind ? bound.object.object : undefined;
  const { token, expiresMs } = parts.tokens.issue({
    account: account.object,
    audiences,
    expirationSeconds,
    pod: boundTo("Pod"),
    secret: boundTo("Secret"),
    node: nodeOfBound(parts, bound),
  });
  const spec = {
    ...recordAt(review, "spec"),
    audiences: audiences.length === 0 ? [parts.tokens.issuer] : audiences,
    expirationSeconds,
  };
  const metadata = {
    name: target.name,
    namespace: target.namespace,
    creationTimestamp: formatTime(parts.clock.now()),
  };
  const expirationTimestamp = formatTime(expiresMs);
  sendJson(request.response, 201, { ...review, metadata, spec, status: { token, expirationTimestamp } });
}

function nodeOfBound(
  parts: ReviewParts,
  bound: { kind: string; object: StoredObject } | undefined,
): { name: string; uid: string } | undefined {
  if (bound === undefined || bound.kind === "Secret") return undefined;
  const name = bound.kind === "Node" ? bound.object.key.name : textAt(bound.object.object, "spec", "nodeName");
  if (name === "") return undefined;
  const node = parts.store.get({ resource: "nodes", namespace: "", name });
  return { name, uid: node?.object.metadata.uid ?? "" };
}
