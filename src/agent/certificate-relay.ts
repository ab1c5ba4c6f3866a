import { createClient, type ConnectRouter, type ServiceImpl, type Transport } from "@connectrpc/connect";
import { IstioCertificateService } from "#proto";

const CALL_MS = 10_000;
/** The port is open to every process of the node: a request must not fill the memory. */
const MAX_REQUEST_BYTES = 64 * 1024;

/**
 * Passes certificate requests of another proxy (an unmodified ztunnel) on to the controller as they are, with the caller's own
 * credentials: the agent lends nobody its name. What the controller answers, refusals too, goes back unchanged.
 */
export function certificateRelayRoutes(controller: Transport): (router: ConnectRouter) => void {
  const client = createClient(IstioCertificateService, controller);
  return (router) => {
    const createCertificate: ServiceImpl<typeof IstioCertificateService>["createCertificate"] = (request, context) => {
      const headers = new Headers();
      for (const name of ["authorization", "clusterid"]) {
        const value = context.requestHeader.get(name);
        if (value !== null) headers.set(name, value);
      }
      return client.createCertificate(request, { headers, signal: context.signal, timeoutMs: CALL_MS });
    };
    router.service(IstioCertificateService, { createCertificate }, { readMaxBytes: MAX_REQUEST_BYTES });
  };
}
