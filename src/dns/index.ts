export { dnsMetrics } from "./metrics.ts";
export { DNS_PORT, PodDns, type PodDnsOptions } from "./pod-dns.ts";
export { parseNameservers } from "./resolv-conf.ts";
