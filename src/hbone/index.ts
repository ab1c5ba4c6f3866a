export { copyPlain } from "./copy-plain.ts";
export { HbonePool, type HboneLimits, type OpenRequest, type HbonePoolOptions } from "./pool.ts";
export { HboneServer, type InboundTunnel, type HboneServerOptions } from "./server.ts";
export type { TunnelHandle, TunnelResult } from "./tunnel.ts";
