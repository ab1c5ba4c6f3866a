import type { ConnectRouter, Transport } from "@connectrpc/connect";
import { messageOf } from "#base/errors";
import type { Service } from "#base/service";
import type { PodFacts } from "#enrolment";
import { workloadCertificatesRoutes, type CertificateManager } from "#identity";
import { formatSpiffeId } from "#model/spiffe-id";
import { RpcServer } from "#rpc";
import type { XdsServer } from "#xds";
import type { AgentOptions } from "./options.ts";
import { certificateRelayRoutes } from "./certificate-relay.ts";
import { LocalServing } from "./local-serving.ts";

/** The socket where this node's proxy gets addresses, policies and certificates. */
export function createAgentSocket(
  options: AgentOptions,
  server: XdsServer,
  certificates: CertificateManager,
): RpcServer {
  return new RpcServer({
    name: "agent socket",
    listen: { unix: options.sockets.agent },
    routes: (router) => {
      server.routes(router);
      workloadCertificatesRoutes(certificates)(router);
    },
    log: options.log.child({ component: "rpc" }),
  });
}

/** The port where another ztunnel finds what istiod would give it. */
export function createZtunnelPort(
  options: AgentOptions,
  server: XdsServer,
  controller: Transport,
): { services: Service[]; port: () => number } {
  const { ztunnel, clock, log } = options;
  if (ztunnel === undefined) return { services: [], port: () => 0 };
  const { host, port, rootFile } = ztunnel;
  const serving = new LocalServing({ rootFile, clock, log, onRenewed: () => rpc.reload() });
  const rpc = new RpcServer({
    name: "ztunnel port",
    listen: { host, port, tls: serving.current },
    routes: (router: ConnectRouter) => {
      server.routes(router);
      certificateRelayRoutes(controller)(router);
    },
    log: log.child({ component: "ztunnel port" }),
  });
  return { services: [serving, rpc], port: () => rpc.port };
}

/** Asks for a pod's certificate while the pod is being enrolled, so that the proxy finds it there. */
export function holdCertificate(certificates: CertificateManager, pod: PodFacts, options: AgentOptions): Disposable {
  const { namespace, serviceAccount } = pod;
  try {
    return certificates.hold(
      formatSpiffeId({ trustDomain: options.trustDomain, namespace, serviceAccount }),
      "realtime",
    );
  } catch (error) {
    options.log.warn(
      { pod: pod.name, namespace, reason: messageOf(error) },
      "certificate of a pod cannot be asked for",
    );
    return { [Symbol.dispose]: () => {} };
  }
}
