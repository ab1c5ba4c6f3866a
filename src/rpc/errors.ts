import { defineErrors } from "#base/errors";

/** Failures of the servers and clients of a role: gRPC, and HTTP for operators. */
export const rpcError = defineErrors("rpc", {
  RPC_TARGET: {
    when: "the address of a gRPC server cannot be read",
    hint: "write unix:///absolute/path or https://host:port",
  },
  RPC_LISTEN: {
    when: "a server of a role (gRPC, metrics, readiness, admin) cannot listen",
    hint: "another process holds the port or the socket file (ss -ltnp shows which); stop it, or choose another with the role's flags (veil proxy: --admin-port, --metrics-port, --ready-port)",
  },
});
