export { Propagation } from "./gen/veil/control_pb.js";
export {
  AggregatedDiscoveryService,
  DeltaDiscoveryRequestSchema,
  DeltaDiscoveryResponseSchema,
  ResourceSchema,
  type DeltaDiscoveryRequest,
  type DeltaDiscoveryResponse,
  type Resource,
} from "./gen/envoy/discovery/discovery_pb.js";
export { IstioCertificateService } from "./gen/istio/auth/citadel_pb.js";
export {
  decodeAuthorization,
  encodeAuthorization,
  MAX_AUTHORIZATION_BYTES,
  type DecodedAuthorization,
} from "./authorization.ts";
export {
  WorkloadRequestSchema,
  WorkloadResponseSchema,
  ZdsHelloSchema,
  type WorkloadRequest,
  type WorkloadResponse,
} from "./gen/istio/zds/zds_pb.js";
export {
  CertificateUpdateSchema,
  WatchRequestSchema,
  WorkloadCertificates,
  type CertificateUpdate,
  type WatchRequest,
} from "./gen/veil/node_pb.js";
export { decodeAddress, encodeAddress, MAX_ADDRESS_BYTES } from "./address.ts";
export { DocumentSchema as OpenApiDocumentSchema } from "./gen/openapi/openapi_pb.js";
export { ProfileSchema, type Profile } from "./gen/pprof/profile_pb.js";
