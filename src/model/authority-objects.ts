/** The Secret with the authority, in Veil's own namespace. */
export const AUTHORITY_SECRET = "veil-ca";
/** Part of that Secret with the roots, and key of each trust bundle: Istio's names. */
export const ROOTS_PART = "root-cert.pem";
/** Part of that Secret with the issuer's certificate: Istio's name. */
export const ISSUER_PART = "ca-cert.pem";
/** The ConfigMap with the roots, in each namespace, where an installation names no other: Istio's name. */
export const DEFAULT_TRUST_BUNDLE = "istio-ca-root-cert";
/**
 * The ConfigMap with the roots in Veil's own namespace, whatever the others are called: agents know the controller by it. Nobody
 * else has that name, while Istio writes its own roots into the other one, in every namespace.
 */
export const OWN_TRUST_BUNDLE = "veil-ca-root-cert";
/** Label of the trust bundles that the controller keeps; one without it is somebody else's. */
export const MANAGED_LABEL = "veil.dev/managed-by";
