export {
  Authority,
  AUTHORITY_BACKDATE_MS,
  DEFAULT_LIVES,
  LEAF_BACKDATE_MS,
  type AuthorityLives,
  type AuthorityOptions,
  type IssuedCertificate,
} from "./authority.ts";
export { authorize, DEFAULT_NODE_ACCOUNTS, type AuthorizationRule, type PodDirectory } from "./authorize.ts";
export type { AuthorityBackend, AuthorityKey, AuthorityState } from "./backend.ts";
export { CallerAuthenticator, type Caller, type CallerAuthenticatorOptions, type TokenReviewer } from "./caller.ts";
export { certificateServiceRoutes, type CertificateServiceOptions } from "./certificate-service.ts";
export { DirectoryBackend } from "./directory-backend.ts";
export { caMetrics } from "./metrics.ts";
export { SecretBackend, type SecretBackendOptions, type SecretClient } from "./secret-backend.ts";
export { ServingCertificate, type ServingCertificateOptions } from "./serving-certificate.ts";
