export {
  SLOT_PORTS,
  slotOf,
  type PeerStatus,
  type Slot,
  type SlotPeer,
  type SlotStatus,
  type Tunnels,
} from "./slots.ts";
