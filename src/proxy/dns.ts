import { DNS_PORT } from "#dns";
import { PACKET_MARK } from "./config.ts";
import type { PodNames } from "./network.ts";
import { ownWorkload, type PodContext } from "./pod-context.ts";

/**
 * The DNS of a pod, on the thread that carries its connections: a name is answered from the table that decides where a connection to the
 * answer goes (docs/adr/0070-names-where-connections-are-decided.md). Undefined where DNS is left alone.
 */
export function createPodDns(context: PodContext): PodNames | undefined {
  const { config, pod, knowledge, network, netns, clock, random, flows } = context;
  if (config.dns === undefined) return undefined;
  const { nameservers, clusterDomain, preferredNamespace, ipv6 } = config.dns;
  return network.createDns({
    netns,
    port: DNS_PORT,
    resolver: {
      table: knowledge.table,
      scope: { namespace: pod.namespace, clusterDomain },
      network: config.network,
      preferredNamespace,
      ipv6,
      random,
    },
    forwarder: { nameservers, port: 53, mark: PACKET_MARK },
    whenReady: () => knowledge.whenSynced(),
    source: () => ownWorkload(context),
    clock,
    cells: flows.cells,
    record: (question) => flows.asked(pod, question),
  });
}
