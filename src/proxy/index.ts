export { DEFAULT_CLUSTER_RANGES, proxyConfig, type ProxyConfig } from "./config.ts";
export { LineOutput } from "./line-output.ts";
export type { Proxy, ProxyOptions } from "./role.ts";
export { createProxy } from "./start.ts";
export { supervise, UNUSABLE_EXIT, whenTold, type SupervisorOptions } from "./supervisor.ts";
export type { Explanation } from "./why.ts";
