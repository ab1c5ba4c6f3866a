export { cniMetrics } from "./metrics.ts";
export { CniServer, type CniServerOptions } from "./server.ts";
