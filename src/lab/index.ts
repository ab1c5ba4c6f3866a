export { removeLab, takeDown, type LabContext, type Removed } from "./down.ts";
export { labClient, isPodReady } from "./install.ts";
export {
  labLayout,
  nodeLayout,
  nodeLayouts,
  netnsPath,
  UNDERLAY_INTERFACE,
  type LabLayout,
  type NodeLayout,
} from "./layout.ts";
export { VEIL_NAMESPACE, veilManifests } from "./manifests.ts";
export { lineProgress, silentProgress, type Progress } from "./progress.ts";
export { Supervisor, type SupervisorOptions } from "./supervisor.ts";
export { bringUp, findNode, type UpOptions } from "./up.ts";
