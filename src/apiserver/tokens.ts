import { createHash, createPublicKey, sign, verify, type KeyObject } from "node:crypto";
import type { Clock } from "#base/clock";
import type { Random } from "#base/random";
import { isRecord, numberAt, recordAt, textAt, textsAt, type KubeObject } from "./object.ts";
import type { StoredObject, ObjectKey } from "./stored-object.ts";
import { AUTHENTICATED_GROUP, type User } from "./user.ts";

const MAX_TOKEN_LENGTH = 16_384;
const MAX_SEGMENTS = 3;
/** After this time the token's use is to be reported; the kubelet renews at 80 % of the life. */
const WARN_AFTER_SECONDS = 3600;

/** What a token is to say. */
export interface TokenSpec {
  readonly account: Readonly<KubeObject>;
  readonly audiences: readonly string[];
  readonly expirationSeconds: number;
  readonly pod?: Readonly<KubeObject> | undefined;
  readonly node?: { readonly name: string; readonly uid: string } | undefined;
  readonly secret?: Readonly<KubeObject> | undefined;
}

/** What became of a token: a user, or why there is none. */
export type TokenVerdict =
  | { readonly user: User; readonly audiences: readonly string[]; readonly problem?: undefined }
  | { readonly user?: undefined; readonly problem: string };

/** Issues and verifies service account tokens (JWT, ES256), bound to accounts, pods and nodes that still exist. */
export class TokenIssuer {
  readonly issuer: string;
  readonly #key: KeyObject;
  readonly #publicKey: KeyObject;
  readonly #keyId: string;
  readonly #clock: Clock;
  readonly #random: Random;
  readonly #find: (key: ObjectKey) => StoredObject | undefined;

  constructor(options: {
    issuer: string;
    key: KeyObject;
    clock: Clock;
    random: Random;
    find: (key: ObjectKey) => StoredObject | undefined;
  }) {
    this.issuer = options.issuer;
    this.#key = options.key;
    this.#publicKey = createPublicKey(options.key);
    const spki = this.#publicKey.export({ type: "spki", format: "der" });
    this.#keyId = createHash("sha256").update(spki).digest("base64url");
    this.#clock = options.clock;
    this.#random = options.random;
    this.#find = options.find;
  }

  /** Signs a token; the caller has checked that it may be issued. */
  issue(spec: TokenSpec): { token: string; expiresMs: number } {
    const { account, pod, node, secret } = spec;
    const nowSeconds = Math.floor(this.#clock.now() / 1000);
    const { namespace = "", name, uid } = account.metadata;
    const id = this.#random.hex(16);
    const claims = {
      aud: spec.audiences.length === 0 ? [this.issuer] : spec.audiences,
      exp: nowSeconds + spec.expirationSeconds,
      iat: nowSeconds,
      iss: this.issuer,
      jti: `${id.slice(0, 8)}-${id.slice(8, 12)}-4${id.slice(13, 16)}-8${id.slice(17, 20)}-${id.slice(20)}`,
      "kubernetes.io": {
        namespace,
        ...(node && { node }),
        ...(pod && { pod: { name: pod.metadata.name, uid: pod.metadata.uid } }),
        ...(secret && { secret: { name: secret.metadata.name, uid: secret.metadata.uid } }),
        serviceaccount: { name, uid },
        ...(pod && { warnafter: nowSeconds + Math.min(WARN_AFTER_SECONDS, spec.expirationSeconds) + 7 }),
      },
      nbf: nowSeconds,
      sub: `system:serviceaccount:${namespace}:${name}`,
    };
    const input = `${encodeJson({ alg: "ES256", kid: this.#keyId })}.${encodeJson(claims)}`;
    const signature = sign("sha256", Buffer.from(input), { key: this.#key, dsaEncoding: "ieee-p1363" });
    return { token: `${input}.${signature.toString("base64url")}`, expiresMs: claims.exp * 1000 };
  }

  /**
   * Verifies a token for any of `audiences` (none: the server's own). Signature, times, and that the account, pod, node
   * and secret it is bound to still exist with the same UIDs. Never throws.
   */
  verify(token: string, audiences: readonly string[]): TokenVerdict {
    const claims = this.#open(token);
    if (typeof claims === "string") return { problem: claims };
    const wanted = audiences.length === 0 ? [this.issuer] : audiences;
    const aud = typeof claims["aud"] === "string" ? [claims["aud"]] : textsAt(claims, "aud");
    const shared = wanted.filter((audience) => aud.includes(audience));
    if (shared.length === 0) {
      return {
        problem: `token audiences ${JSON.stringify(aud)} is invalid for the target audiences ${JSON.stringify(wanted)}`,
      };
    }
    const problem = this.#checkTimes(claims) ?? this.#checkBindings(claims);
    if (problem !== undefined) return { problem };
    return { user: userOf(claims), audiences: shared };
  }

  /** The JSON Web Key Set of the signing key, for verification elsewhere. */
  keySet(): unknown {
    const jwk = this.#publicKey.export({ format: "jwk" });
    return { keys: [{ use: "sig", kty: jwk.kty, kid: this.#keyId, alg: "ES256", crv: jwk.crv, x: jwk.x, y: jwk.y }] };
  }

  /** The claims of a well-formed token with our signature, or what is wrong with it. */
  #open(token: string): Record<string, unknown> | string {
    if (token.length > MAX_TOKEN_LENGTH) return `the token is longer than ${MAX_TOKEN_LENGTH} characters`;
    const parts = token.split(".");
    const [head = "", body = "", signature = ""] = parts;
    if (parts.length !== MAX_SEGMENTS || !parts.every((part) => /^[A-Za-z0-9_-]+$/.test(part))) {
      return "the token is no JSON Web Token: three base64url parts are needed";
    }
    const problem = this.#headerProblem(head);
    if (problem !== undefined) return problem;
    const options = { key: this.#publicKey, dsaEncoding: "ieee-p1363" as const };
    if (!verify("sha256", Buffer.from(`${head}.${body}`), options, Buffer.from(signature, "base64url"))) {
      return "the token's signature is wrong";
    }
    const claims = decodeJson(body);
    if (claims === undefined) return "the token's claims are no JSON object";
    return claims["iss"] === this.issuer
      ? claims
      : `the token's issuer ${JSON.stringify(claims["iss"])} is not this cluster`;
  }

  #headerProblem(text: string): string | undefined {
    const header = decodeJson(text);
    if (header === undefined) return "the token's header is no JSON object";
    if (header["alg"] !== "ES256") return `the token's algorithm ${JSON.stringify(header["alg"])} is not accepted`;
    return header["kid"] === this.#keyId ? undefined : "the token was signed with a key that is not known here";
  }

  #checkTimes(claims: Record<string, unknown>): string | undefined {
    const nowSeconds = this.#clock.now() / 1000;
    if (nowSeconds >= (numberAt(claims, "exp") ?? 0)) return "the token has expired";
    return nowSeconds < (numberAt(claims, "nbf") ?? 0) ? "the token is not valid yet" : undefined;
  }

  #checkBindings(claims: Record<string, unknown>): string | undefined {
    const bound = recordAt(claims, "kubernetes.io");
    const namespace = textAt(bound, "namespace");
    const checks: [field: string, resource: string, namespace: string][] = [
      ["serviceaccount", "serviceaccounts", namespace],
      ["pod", "pods", namespace],
      ["secret", "secrets", namespace],
      ["node", "nodes", ""],
    ];
    for (const [field, resource, where] of checks) {
      const reference = bound[field];
      if (reference === undefined && field !== "serviceaccount") continue;
      if (field === "node" && bound["pod"] !== undefined) continue; // the pod holds; a node that registers anew keeps its pods
      const name = textAt(reference, "name");
      const found = this.#find({ resource, namespace: where, name });
      if (found === undefined || found.object.metadata.uid !== textAt(reference, "uid")) {
        return `the ${field} ${name} that the token is bound to no longer exists`;
      }
      const deleted = found.object.metadata.deletionTimestamp;
      if (deleted !== undefined && Date.parse(deleted) + 60_000 < this.#clock.now()) {
        return `the ${field} ${name} that the token is bound to has been deleted`;
      }
    }
    return undefined;
  }
}

function userOf(claims: Record<string, unknown>): User {
  const bound = recordAt(claims, "kubernetes.io");
  const namespace = textAt(bound, "namespace");
  const prefix = "authentication.kubernetes.io";
  const extra: Record<string, readonly string[]> = { [`${prefix}/credential-id`]: [`JTI=${textAt(claims, "jti")}`] };
  for (const field of ["pod", "node"]) {
    if (bound[field] === undefined) continue;
    extra[`${prefix}/${field}-name`] = [textAt(bound, field, "name")];
    extra[`${prefix}/${field}-uid`] = [textAt(bound, field, "uid")];
  }
  return {
    name: `system:serviceaccount:${namespace}:${textAt(bound, "serviceaccount", "name")}`,
    uid: textAt(bound, "serviceaccount", "uid"),
    groups: ["system:serviceaccounts", `system:serviceaccounts:${namespace}`, AUTHENTICATED_GROUP],
    extra,
  };
}

function encodeJson(value: unknown): string {
  return Buffer.from(JSON.stringify(value)).toString("base64url");
}

function decodeJson(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(Buffer.from(text, "base64url").toString("utf8"));
    return isRecord(value) ? value : undefined;
  } catch {
    return undefined;
  }
}
