export { proxyConfig, type ProxyConfig } from "./config.ts";
export { decideOutbound, type LocalPod, type Route, type View } from "./route.ts";
export { decideInbound, decidePlaintext, type Verdict } from "./verdict.ts";
