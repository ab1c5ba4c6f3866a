export { copyPlain } from "./copy-plain.ts";
export { DEFAULT_LIMITS, type HboneLimits } from "./limits.ts";
export type { OpenRequest } from "./open-request.ts";
export { HbonePool, type HbonePoolOptions, type PoolPeer } from "./pool.ts";
export type { PeerRevocations, PeerWatch, PresentedChain } from "./revocation.ts";
export { HboneServer, type HboneServerOptions } from "./server.ts";
export type { InboundTunnel } from "./server-session.ts";
export type { TunnelHandle, TunnelResult } from "./tunnel.ts";
