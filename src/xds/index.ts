export {
  ResourceCache,
  TYPE_ADDRESS,
  TYPE_AUTHORIZATION,
  TYPE_WORKLOAD,
  type CacheChange,
  type CachedResource,
  type ResourceUpdate,
} from "./cache.ts";
export { XdsClient } from "./client.ts";
export type { Rejection, XdsClientOptions } from "./client-options.ts";
export type { SubscriptionMode } from "./client-type.ts";
export { xdsMetrics } from "./metrics.ts";
export { relayUpdates, type RelayOptions } from "./relay.ts";
export { VERSION_KEY } from "./server-stream.ts";
export { XdsServer, type Acknowledged, type XdsServerOptions } from "./server.ts";
