export { ServiceNetwork, type ServiceNetworkOptions } from "./service-network/service-network.ts";
export { LabControllers } from "./controllers/controllers.ts";
export { Kubelet, type KubeletOptions } from "./kubelet/kubelet.ts";
export { removeLab, takeDown, type LabContext, type Removed } from "./down.ts";
export { enterPlace, runAtPlace } from "./exec.ts";
export { isPodReady, labClient } from "./install.ts";
export {
  labLayout,
  netnsPath,
  nodeLayout,
  nodeLayouts,
  UNDERLAY_INTERFACE,
  type LabLayout,
  type NodeLayout,
} from "./layout.ts";
export { VEIL_NAMESPACE, veilManifests } from "./manifests.ts";
export { closeInherited } from "./processes.ts";
export { lineProgress, silentProgress, type Progress } from "./progress.ts";
export { formatStatus } from "./report.ts";
export { labStatus, type Health, type LabStatus, type NodeStatus, type RoleStatus } from "./status.ts";
export { Supervisor, type SupervisorOptions } from "./supervisor.ts";
export { bringUp, findNode, type UpOptions } from "./up.ts";
