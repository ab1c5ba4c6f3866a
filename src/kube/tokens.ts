import { kubeError } from "./errors.ts";
import type { KubeTransport } from "./transport.ts";

/** A token that TokenRequest made. */
export interface ServiceAccountToken {
  readonly token: string;
  /** Milliseconds since the epoch. */
  readonly expiresMs: number;
}

/** What TokenReview said. */
export interface TokenVerdict {
  readonly authenticated: boolean;
  /** `system:serviceaccount:<namespace>:<name>` for service accounts; empty when not authenticated. */
  readonly username: string;
  readonly uid: string;
  readonly groups: readonly string[];
  /** Bound objects: `authentication.kubernetes.io/pod-name`, `.../pod-uid`, `.../node-name`, ... */
  readonly extra: Readonly<Record<string, readonly string[]>>;
  /** Of those asked for, the ones that the token is meant for. */
  readonly audiences: readonly string[];
  readonly error: string;
}

/** What a token is to be. */
export interface TokenOptions {
  /** Default: the API's own. */
  readonly audiences?: readonly string[];
  readonly expirationSeconds?: number;
  /** The token dies with this object. */
  readonly boundObjectRef?: { kind: string; apiVersion: string; name: string; uid: string };
  readonly signal?: AbortSignal | undefined;
}

const API_VERSION = "authentication.k8s.io/v1";

/** See `KubeClient.createToken`. */
export async function requestToken(
  transport: KubeTransport,
  options: TokenOptions & { namespace: string; serviceAccount: string },
): Promise<ServiceAccountToken> {
  const { namespace, serviceAccount, signal, ...spec } = options;
  const path = `/api/v1/namespaces/${encodeURIComponent(namespace)}/serviceaccounts/${encodeURIComponent(serviceAccount)}/token`;
  const body = { apiVersion: API_VERSION, kind: "TokenRequest", spec };
  const answer = await transport.json({ method: "POST", path, body, signal });
  const status = fieldsOf(fieldsOf(answer)["status"]);
  const { token, expirationTimestamp } = status;
  if (typeof token !== "string" || typeof expirationTimestamp !== "string") {
    throw kubeError("KUBE_PROTOCOL", `post ${path} was answered without a token`);
  }
  return { token, expiresMs: Date.parse(expirationTimestamp) };
}

/** See `KubeClient.reviewToken`. What is missing or malformed in the answer reads as "not authenticated". */
export async function reviewToken(
  transport: KubeTransport,
  options: { token: string; audiences: readonly string[]; signal?: AbortSignal | undefined },
): Promise<TokenVerdict> {
  const { token, audiences, signal } = options;
  const path = "/apis/authentication.k8s.io/v1/tokenreviews";
  const body = { apiVersion: API_VERSION, kind: "TokenReview", spec: { token, audiences } };
  const status = fieldsOf(fieldsOf(await transport.json({ method: "POST", path, body, signal }))["status"]);
  const user = fieldsOf(status["user"]);
  const extra = Object.entries(fieldsOf(user["extra"])).map(([name, values]) => [name, textsOf(values)] as const);
  return {
    authenticated: status["authenticated"] === true,
    username: textOf(user["username"]),
    uid: textOf(user["uid"]),
    groups: textsOf(user["groups"]),
    extra: Object.fromEntries(extra),
    audiences: textsOf(status["audiences"]),
    error: textOf(status["error"]),
  };
}

function fieldsOf(value: unknown): Record<string, unknown> {
  return typeof value === "object" && value !== null ? { ...value } : {};
}

function textOf(value: unknown): string {
  return typeof value === "string" ? value : "";
}

function textsOf(value: unknown): readonly string[] {
  return Array.isArray(value) ? value.filter((item) => typeof item === "string") : [];
}
