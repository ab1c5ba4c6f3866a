export { addressAlias, endpointUid, podUid, type Cluster, type Problem } from "./cluster.ts";
export { Discovery, type DiscoveryUpdate } from "./discovery.ts";
export type { AddressVerdict } from "./entry-addresses.ts";
export type { PolicyVerdict } from "./policies.ts";
export { NEIGHBOURS, type Neighbour } from "./neighbours.ts";
export { isLive, podWorkload, type PodSurroundings } from "./pod.ts";
export type { PublishedAddress } from "./publication.ts";
export {
  securityKinds,
  type AuthorizationPolicy,
  type PeerAuthentication,
  type PolicyCondition,
} from "./security-kinds.ts";
export { meshService, serviceFacts, type ServiceFacts, type TargetedPort } from "./service.ts";
