import { createHash } from "node:crypto";
import type { Clock } from "#base/clock";
import type { KubeClient, TokenVerdict } from "#kube";
import { caError } from "./errors.ts";

/** Who calls, as the API server vouches for it: a pod, its account, and the node it runs on. */
export interface Caller {
  readonly namespace: string;
  readonly serviceAccount: string;
  readonly node: string;
  readonly podName: string;
  readonly podUid: string;
}

/** What is used of the Kubernetes client. */
export type TokenReviewer = Pick<KubeClient, "reviewToken">;

/** What a caller authenticator is made of. */
export interface CallerAuthenticatorOptions {
  readonly reviewer: TokenReviewer;
  readonly clock: Clock;
  /** Default `istio-ca`. */
  readonly audience?: string;
}

const LARGEST_TOKEN_CHARS = 16 * 1024;
const CACHE_MS = 10_000;
const CACHE_ENTRIES = 1024;
const JSON_WEB_TOKEN = /^[\w-]+\.[\w-]+\.[\w-]+$/;
const ACCOUNT = /^system:serviceaccount:([^:]+):([^:]+)$/;
const EXTRA = "authentication.kubernetes.io/";

/**
 * Authenticates callers by their service account token: TokenReview with our audience, never by looking into the token here.
 * A good answer is kept for 10 seconds, by the token's hash; a bad one never.
 */
export class CallerAuthenticator {
  readonly #options: CallerAuthenticatorOptions;
  readonly #audience: string;
  readonly #known = new Map<string, { caller: Promise<Caller>; untilMs: number }>();

  constructor(options: CallerAuthenticatorOptions) {
    this.#options = options;
    this.#audience = options.audience ?? "istio-ca";
  }

  /**
   * Who sent a request with these headers. Rejects with `CA_TOKEN_*` (a different one for each reason) or, when the API server
   * could not be asked, with `CA_REVIEW_UNAVAILABLE`.
   */
  async authenticate(headers: Headers): Promise<Caller> {
    const token = readBearer(headers.get("authorization"));
    const key = createHash("sha256").update(token).digest("base64");
    const nowMs = this.#options.clock.monotonic();
    const known = this.#known.get(key);
    if (known !== undefined && nowMs < known.untilMs) return known.caller;
    const caller = this.#review(token);
    this.#remember(key, { caller, untilMs: nowMs + CACHE_MS });
    try {
      return await caller;
    } catch (error) {
      if (this.#known.get(key)?.caller === caller) this.#known.delete(key);
      throw error;
    }
  }

  #remember(key: string, entry: { caller: Promise<Caller>; untilMs: number }): void {
    this.#known.delete(key); // so that the map stays in order of age
    const oldest = this.#known.keys().next();
    if (this.#known.size >= CACHE_ENTRIES && oldest.done !== true) this.#known.delete(oldest.value);
    this.#known.set(key, entry);
  }

  async #review(token: string): Promise<Caller> {
    let verdict: TokenVerdict;
    try {
      verdict = await this.#options.reviewer.reviewToken(token, [this.#audience]);
    } catch (cause) {
      throw caError("CA_REVIEW_UNAVAILABLE", "the API server could not be asked about the caller's token", { cause });
    }
    return readVerdict(verdict, this.#audience);
  }
}

function readBearer(header: string | null): string {
  if (header === null || header === "")
    throw caError("CA_TOKEN_MISSING", "the request carries no authorization header");
  const [scheme = "", token = "", ...rest] = header.split(" ");
  if (scheme.toLowerCase() !== "bearer") {
    throw caError("CA_TOKEN_SCHEME", "the authorization header is not of the scheme Bearer");
  }
  if (rest.length > 0 || token.length > LARGEST_TOKEN_CHARS || !JSON_WEB_TOKEN.test(token)) {
    const size = token.length > LARGEST_TOKEN_CHARS ? `: it has more than ${LARGEST_TOKEN_CHARS} characters` : "";
    throw caError("CA_TOKEN_MALFORMED", `the bearer token is no JSON web token${size}`);
  }
  return token;
}

function readVerdict(verdict: TokenVerdict, audience: string): Caller {
  if (!verdict.authenticated) {
    // Some API servers say "not authenticated" for a wrong audience, and say so only in the text.
    const code = /audience/i.test(verdict.error) ? "CA_TOKEN_AUDIENCE" : "CA_TOKEN_REJECTED";
    throw caError(code, `the API server does not accept the token: ${verdict.error || "no reason given"}`);
  }
  // An authenticator that ignores audiences answers with none: that is no yes.
  if (!verdict.audiences.includes(audience)) {
    throw caError("CA_TOKEN_AUDIENCE", `the token is not meant for audience ${audience}`);
  }
  const [, namespace, serviceAccount] = ACCOUNT.exec(verdict.username) ?? [];
  if (namespace === undefined || serviceAccount === undefined || !verdict.groups.includes("system:serviceaccounts")) {
    throw caError(
      "CA_TOKEN_NOT_SERVICE_ACCOUNT",
      `the token is that of ${verdict.username || "nobody"}, no service account`,
    );
  }
  return { namespace, serviceAccount, ...readBinding(verdict) };
}

function readBinding(verdict: TokenVerdict): Pick<Caller, "node" | "podName" | "podUid"> {
  const [node, podName, podUid] = ["node-name", "pod-name", "pod-uid"].map((name) => onlyOf(verdict, EXTRA + name));
  if (node === undefined || podName === undefined || podUid === undefined) {
    throw caError("CA_TOKEN_NOT_BOUND", `the token of ${verdict.username} is not bound to a pod on a node`);
  }
  return { node, podName, podUid };
}

function onlyOf(verdict: TokenVerdict, name: string): string | undefined {
  const values = verdict.extra[name] ?? [];
  return values.length === 1 && values[0] !== "" ? values[0] : undefined;
}

/** For messages: who called, from where. */
export function formatCaller({ namespace, serviceAccount, node }: Caller): string {
  return `${namespace}/${serviceAccount} on node ${node}`;
}
