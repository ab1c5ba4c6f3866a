import type { Pod } from "#kube";

/** Where the cluster's names end. */
const CLUSTER_DOMAIN = "cluster.local";

/** The text of a pod's /etc/resolv.conf: the cluster's DNS, with the pod's own namespace searched first. */
export function resolvConf(pod: Pod, dns: string): string {
  const namespace = pod.metadata?.namespace ?? "default";
  const config = pod.spec?.dnsConfig ?? {};
  const cluster = {
    servers: [dns],
    searches: [`${namespace}.svc.${CLUSTER_DOMAIN}`, `svc.${CLUSTER_DOMAIN}`, CLUSTER_DOMAIN],
    options: ["ndots:5"],
  };
  const base = pod.spec?.dnsPolicy === "None" ? { servers: [], searches: [], options: [] } : cluster;
  const own = (config.options ?? []).map(({ name = "", value }) => (value === undefined ? name : `${name}:${value}`));
  const lines = {
    nameserver: [...base.servers, ...(config.nameservers ?? [])].map((server) => [server]),
    search: [[...base.searches, ...(config.searches ?? [])]],
    options: [[...base.options, ...own]], // of one option given twice, the last counts
  };
  return Object.entries(lines)
    .flatMap(([key, rows]) => rows.filter((row) => row.length > 0).map((row) => `${key} ${row.join(" ")}\n`))
    .join("");
}

/** The text of a pod's /etc/hosts. */
export function hostsFile(pod: Pod, ip: string | undefined): string {
  const { hostname = pod.metadata?.name ?? "pod", subdomain } = pod.spec ?? {};
  const namespace = pod.metadata?.namespace ?? "default";
  const full = subdomain === undefined ? "" : `${hostname}.${subdomain}.${namespace}.svc.${CLUSTER_DOMAIN}\t`;
  const aliases = (pod.spec?.hostAliases ?? []).map((alias) => `${alias.ip}\t${(alias.hostnames ?? []).join("\t")}`);
  return [
    "127.0.0.1\tlocalhost",
    "::1\tlocalhost ip6-localhost ip6-loopback",
    ...(ip === undefined ? [] : [`${ip}\t${full}${hostname}`]),
    ...aliases,
    "",
  ].join("\n");
}
