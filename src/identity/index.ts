export type { FetchPriority } from "./fetch-queue.ts";
export { istioIssuer, type CertificateIssuer, type IstioIssuerOptions } from "./issuer.ts";
export { CertificateManager, type CertificateManagerOptions, type CertificateState } from "./manager.ts";
export { identityMetrics } from "./metrics.ts";
export { workloadCertificatesRoutes } from "./watch-service.ts";
export { CertificateWatcher, type CertificateWatcherOptions } from "./watcher.ts";
