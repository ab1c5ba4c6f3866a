import { defineErrors } from "#base/errors";

const fail = defineErrors("spiffe-id", {
  SPIFFE_ID_EMPTY: { when: "a SPIFFE ID is empty", hint: "give an ID such as spiffe://cluster.local/ns/shop/sa/cart" },
  SPIFFE_ID_TOO_LONG: { when: "a SPIFFE ID is longer than 2048 bytes", hint: "shorten the path" },
  SPIFFE_ID_SCHEME: { when: "an ID does not begin with spiffe://", hint: "write the scheme in lower case: spiffe://" },
  SPIFFE_ID_TRUST_DOMAIN: {
    when: "the trust domain of an ID is missing, longer than 255 bytes, or has characters other than a-z 0-9 . - _",
    hint: "correct the trust domain; it is a name without port and user",
  },
  SPIFFE_ID_PATH: {
    when: "the path of an ID has an empty or dot segment, a trailing slash, or characters other than A-Z a-z 0-9 . - _",
    hint: "correct the path",
  },
  SPIFFE_ID_WORKLOAD: {
    when: "an ID is valid but does not name a Kubernetes workload",
    hint: "workload IDs have the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>",
  },
});

/** A valid SPIFFE ID in text, for example `spiffe://cluster.local/ns/shop/sa/cart`. Only a parser makes one. */
export type SpiffeId = string & { readonly __spiffeId: unique symbol };

/** The parts of a Kubernetes workload's identity. */
export interface WorkloadIdentity {
  readonly trustDomain: string;
  readonly namespace: string;
  readonly serviceAccount: string;
}

const TRUST_DOMAIN = /^[a-z0-9._-]{1,255}$/;
const SEGMENT = /^[A-Za-z0-9._-]+$/;

/** Parses a SPIFFE ID by the SPIFFE-ID standard. Throws one of the `SPIFFE_ID_*` codes, a different one for each rule. */
export function parseSpiffeId(text: string): SpiffeId {
  if (text === "") throw fail("SPIFFE_ID_EMPTY", "a SPIFFE ID is empty");
  if (text.length > 2048)
    throw fail("SPIFFE_ID_TOO_LONG", `a SPIFFE ID has ${text.length} characters, at most 2048 are allowed`);
  if (!text.startsWith("spiffe://")) throw fail("SPIFFE_ID_SCHEME", `"${text}" does not begin with spiffe://`);
  const [trustDomain = "", ...segments] = text.slice("spiffe://".length).split("/");
  if (!TRUST_DOMAIN.test(trustDomain)) throw fail("SPIFFE_ID_TRUST_DOMAIN", `"${text}" has no valid trust domain`);
  for (const segment of segments) {
    if (!SEGMENT.test(segment) || segment === "." || segment === "..") {
      throw fail("SPIFFE_ID_PATH", `"${text}" has no valid path: segment "${segment}"`);
    }
  }
  return text as SpiffeId; // every rule was checked above
}

/**
 * The ID of a workload. Throws like {@link parseWorkloadIdentity} when a part has characters that it may not have there,
 * slashes among them: what is one's name must not become another's path.
 */
export function formatSpiffeId(identity: WorkloadIdentity): SpiffeId {
  const { trustDomain, namespace, serviceAccount } = identity;
  const id = parseSpiffeId(`spiffe://${trustDomain}/ns/${namespace}/sa/${serviceAccount}`);
  parseWorkloadIdentity(id);
  return id;
}

/** The trust domain of an ID, for example `cluster.local`. */
export function trustDomainOf(id: SpiffeId): string {
  return id.slice("spiffe://".length).split("/", 1)[0] ?? "";
}

/** Takes a workload's ID apart. Throws `SPIFFE_ID_WORKLOAD` when its path is not `/ns/<namespace>/sa/<service account>`. */
export function parseWorkloadIdentity(text: string): WorkloadIdentity {
  const id = parseSpiffeId(text);
  const [trustDomain = "", ns, namespace, sa, serviceAccount, ...rest] = id.slice("spiffe://".length).split("/");
  if (ns !== "ns" || sa !== "sa" || namespace === undefined || serviceAccount === undefined || rest.length > 0) {
    throw fail("SPIFFE_ID_WORKLOAD", `"${text}" does not name a Kubernetes workload`);
  }
  return { trustDomain, namespace, serviceAccount };
}
