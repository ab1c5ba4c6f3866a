export type { Backend } from "./backend.ts";
export { chooseBackend } from "./choose-backend.ts";
export { Firewall, type ClearReason, type LocalPod, type StrictMode } from "./firewall.ts";
export { DeviceTunnels, type DeviceTunnelsOptions } from "./device-tunnels.ts";
export { generateKeyPair } from "./keys.ts";
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
