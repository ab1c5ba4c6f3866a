import { defineErrors } from "#base/errors";

/** Failures of WireGuard between nodes. */
export const wireguardError = defineErrors("wireguard", {
  WIREGUARD_BACKEND: {
    when: "nothing on this machine can run a WireGuard device",
    hint: "load the kernel's module (modprobe wireguard), or install wireguard-go and give the agent /dev/net/tun",
  },
  WIREGUARD_DEVICE: {
    when: "a WireGuard device refused a change, or does not answer",
    hint: "the message carries its own words; veil wireguard status shows the device, and the agent makes one anew that has ended",
  },
  WIREGUARD_PROTOCOL: {
    when: "a WireGuard device answered in a form that it should not",
    hint: "check which program runs the device: Veil knows the kernel's and wireguard-go",
  },
  WIREGUARD_UNDERLAY: {
    when: "no interface of this node has the address under which its Node object shows it",
    hint: "compare kubectl get node -o wide with ip address; the agent needs the node's own network (hostNetwork)",
  },
});
