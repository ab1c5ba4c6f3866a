export {
  KubeClient,
  type CallOptions,
  type DeleteOptions,
  type ListOptions,
  type ObjectAt,
  type ObjectList,
  type PatchOptions,
} from "./client.ts";
export {
  findKubeConfig,
  inClusterConfig,
  loadKubeConfig,
  parseKubeConfig,
  SERVICE_ACCOUNT_DIRECTORY,
  type KubeConfig,
} from "./config.ts";
export { isKubeError, kubeError, type KubeStatus } from "./errors.ts";
export type { KubeCredentials } from "./login-program.ts";
export type { ExecRequest, ExecResult } from "./exec.ts";
export { gatewayResources, selectsLabels, type Gateway, type GatewayClass, type LabelSelector } from "./gateway-api.ts";
export { Informer, type InformerListener, type InformerOptions } from "./informer.ts";
export {
  istioNetworkingResources,
  type ServiceEntry,
  type WorkloadEntry,
  type WorkloadEntrySpec,
} from "./istio-networking.ts";
export {
  apiVersionOf,
  objectKey,
  resourcePath,
  resourceRef,
  type KubeObject,
  type ObjectMeta,
  type ResourceRef,
  type Wire,
} from "./object.ts";
export {
  resources,
  type ClusterRole,
  type ClusterRoleBinding,
  type ConfigMap,
  type Container,
  type CustomResourceDefinition,
  type DaemonSet,
  type Deployment,
  type EndpointSlice,
  type Event,
  type Lease,
  type Namespace,
  type Node,
  type Pod,
  type PodTemplateSpec,
  type ReplicaSet,
  type Role,
  type RoleBinding,
  type Secret,
  type Service,
  type ServiceAccount,
} from "./resources.ts";
export type { ServiceAccountToken, TokenOptions, TokenVerdict } from "./tokens.ts";
export type { RawRequest } from "./transport.ts";
export { warningEvent } from "./warning-event.ts";
export type { WatchEvent, WatchOptions } from "./watch.ts";
export { isReadyPod } from "./pod.ts";
