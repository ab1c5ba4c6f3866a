import { defineMetrics } from "#base/metrics";

/** Metrics of the tunnels of a node. */
export const wireguardMetrics = defineMetrics("wireguard", {
  veil_wireguard_generation: {
    kind: "gauge",
    help: "Generation of keys that the cluster comes to, as the node knows it; -1 before it knows one.",
    labels: [],
  },
  veil_wireguard_done_generation: {
    kind: "gauge",
    help: "Generation of keys on which the node sends to all its peers; -1 before there is one.",
    labels: [],
  },
  veil_wireguard_pairs: {
    kind: "gauge",
    help: "Peers of the node, by state (proven: reached on the newest keys, older: on older keys, none: not reached).",
    labels: ["state"],
  },
  veil_wireguard_refused_peers: {
    kind: "gauge",
    help: "Nodes that the node has no tunnel to because of what they claim, by reason.",
    labels: ["reason"],
  },
  veil_wireguard_rotations_total: {
    kind: "counter",
    help: "Keys that the node has made for its devices, by slot.",
    labels: ["slot"],
  },
  veil_wireguard_device_failures_total: {
    kind: "counter",
    help: "Changes of devices and routes that were refused; each is tried again.",
    labels: [],
  },
  veil_wireguard_clear_packets_total: {
    kind: "counter",
    help: "Packets between pods that would have left this node in clear (strict mode drops them, audit mode lets them pass), by reason.",
    labels: ["reason"],
  },
  veil_wireguard_lost_devices_total: {
    kind: "counter",
    help: "Devices that ended and were made anew with fresh keys, by slot.",
    labels: ["slot"],
  },
});

/** Metrics of each peer of a node in each slot. */
export const wireguardPeerMetrics = defineMetrics("wireguard-peers", {
  veil_wireguard_peer_generation: {
    kind: "gauge",
    help: "Generation of the peer's key in the slot; 0 for a static one.",
    labels: ["peer", "slot"],
  },
  veil_wireguard_peer_sending: {
    kind: "gauge",
    help: "1 where packets to the peer leave through the slot.",
    labels: ["peer", "slot"],
  },
  veil_wireguard_peer_handshake_age_seconds: {
    kind: "gauge",
    help: "Since the last handshake with the peer in the slot; absent before the first.",
    labels: ["peer", "slot"],
  },
  veil_wireguard_peer_received_bytes_total: {
    kind: "counter",
    help: "Bytes from the peer in the slot, since it has its key: each rotation begins at 0.",
    labels: ["peer", "slot"],
  },
  veil_wireguard_peer_sent_bytes_total: {
    kind: "counter",
    help: "Bytes to the peer in the slot, since it has its key: each rotation begins at 0.",
    labels: ["peer", "slot"],
  },
});
