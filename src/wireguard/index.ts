export type { Backend } from "./backend.ts";
export { chooseBackend } from "./choose-backend.ts";
export { Firewall, type ClearReason, type LocalPod, type StrictMode } from "./firewall.ts";
export { DeviceTunnels, type DeviceTunnelsOptions } from "./device-tunnels.ts";
export { NodeRotation, type NodeRotationOptions } from "./driver.ts";
export { removeTunnels } from "./leftovers.ts";
export { generateKeyPair } from "./keys.ts";
export { wireguardMetrics, wireguardPeerMetrics } from "./metrics.ts";
export { decide, defaultIntervalMs, findIntervalMs, type BarrierVerdict, type Participant } from "./barrier.ts";
export {
  claimOf,
  FIRST_GENERATION,
  ROTATION_NAME,
  wireguardResources,
  type CiliumNode,
  type WireGuardNode,
  type WireGuardRotation,
} from "./objects.ts";
export { PeerDirectory, type Refusal } from "./peers.ts";
export {
  SLOT_PORTS,
  slotOf,
  type PeerStatus,
  type Slot,
  type SlotPeer,
  type SlotStatus,
  type Tunnels,
} from "./slots.ts";
export { findUserspaceVersion, UserspaceBackend, type UserspaceOptions } from "./userspace.ts";
export { type NodeView, type PairView, type SlotView } from "./view.ts";
