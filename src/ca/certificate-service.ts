import { Code, ConnectError, type ConnectRouter, type ServiceImpl } from "@connectrpc/connect";
import { sleep, type Clock } from "#base/clock";
import { CodedError } from "#base/errors";
import type { Log } from "#base/log";
import { CellSet } from "#base/metrics";
import type { SpiffeId, WorkloadIdentity } from "#model/spiffe-id";
import { IstioCertificateService } from "#proto";
import { parseCsr } from "#x509";
import { authorize, DEFAULT_NODE_ACCOUNTS, parseRequestedIdentity, type PodDirectory } from "./authorize.ts";
import type { Authority, IssuedCertificate } from "./authority.ts";
import { formatCaller, type Caller, type CallerAuthenticator } from "./caller.ts";
import { caError } from "./errors.ts";
import { caMetrics } from "./metrics.ts";

/** What the certificate service is made of. */
export interface CertificateServiceOptions {
  readonly authority: Pick<Authority, "issueWorkload" | "trustDomain">;
  readonly authenticator: Pick<CallerAuthenticator, "authenticate">;
  readonly pods: PodDirectory;
  readonly clock: Clock;
  readonly log: Log;
  /** `namespace/name` of the accounts that act for nodes. Default {@link DEFAULT_NODE_ACCOUNTS}. */
  readonly nodeAccounts?: readonly string[];
  readonly cells?: CellSet;
}

/** A request is read before its sender is known: whoever can connect could fill the memory with large ones. */
const LARGEST_REQUEST_BYTES = 64 * 1024;
const MOST_IN_FLIGHT = 512;
const MOST_IN_FLIGHT_PER_NODE = 32;
/** A new pod may reach the agent before it reaches the controller: so long a request is held before it is denied. */
const POD_GRACE_MS = 1000;
const POD_POLL_MS = 50;

/** The request as protobuf gives it. */
interface Request {
  readonly csr: string;
  readonly validityDuration: bigint;
  readonly metadata?: Readonly<Record<string, unknown>> | undefined;
}

/**
 * Istio's certificate service (istioca.proto): a node's agent asks for the identities of the pods on its node.
 *
 *     1 authenticate the caller   2 read what it asks for   3 authorise: its node runs such a pod   4 sign
 *
 * The name in the certificate comes from step 3; of the request's CSR only the proven public key is used.
 */
export function certificateServiceRoutes(options: CertificateServiceOptions): (router: ConnectRouter) => void {
  const service = new CertificateService(options);
  return (router) => {
    const createCertificate: ServiceImpl<typeof IstioCertificateService>["createCertificate"] = async (
      request,
      context,
    ) => {
      const { chain, rootsPem } = await service.create(request, context.requestHeader, context.signal);
      return { certChain: [...chain, rootsPem] };
    };
    router.service(IstioCertificateService, { createCertificate }, { readMaxBytes: LARGEST_REQUEST_BYTES });
  };
}

class CertificateService {
  readonly #options: CertificateServiceOptions;
  readonly #cells: CellSet;
  readonly #inFlight = new Map<string, number>();
  #total = 0;

  constructor(options: CertificateServiceOptions) {
    this.#options = options;
    this.#cells = options.cells ?? new CellSet(caMetrics);
  }

  async create(request: Request, headers: Headers, signal: AbortSignal): Promise<IssuedCertificate> {
    let caller: Caller | undefined;
    try {
      caller = await this.#options.authenticator.authenticate(headers);
      using _ = this.#hold(caller.node);
      return await this.#issue(caller, request, signal);
    } catch (error) {
      this.#refused(error, caller);
      throw toConnectError(error);
    }
  }

  async #issue(caller: Caller, request: Request, signal: AbortSignal): Promise<IssuedCertificate> {
    const { authority, log } = this.#options;
    const identity = parseRequestedIdentity(request.metadata?.["ImpersonatedIdentity"]);
    const csr = parseCsr(request.csr, `the request of ${formatCaller(caller)}`);
    const id = await this.#authorize(caller, identity, signal);
    if (csr.requestedUris.some((uri) => uri !== id)) {
      log.warn(
        { node: caller.node, identity: id, asked: csr.requestedUris.slice(0, 4).map((uri) => uri.slice(0, 256)) },
        "ignored another name in a csr",
      );
    }
    const lifeMs = Number(request.validityDuration) * 1000;
    const issued = await authority.issueWorkload(csr, id, lifeMs);
    log.info({ node: caller.node, identity: id, notAfterMs: issued.notAfterMs }, "issued a certificate");
    return issued;
  }

  /** Asks again for a moment while the only objection is that no such pod is known on the node. */
  async #authorize(caller: Caller, identity: WorkloadIdentity, signal: AbortSignal): Promise<SpiffeId> {
    const { authority, clock, pods, nodeAccounts = DEFAULT_NODE_ACCOUNTS } = this.#options;
    const rule = { trustDomain: authority.trustDomain, nodeAccounts, pods };
    const endMs = clock.monotonic() + POD_GRACE_MS;
    for (;;) {
      try {
        return authorize(caller, identity, rule);
      } catch (error) {
        const unknownPod = error instanceof CodedError && error.code === "CA_NOT_ON_NODE";
        if (!unknownPod || clock.monotonic() >= endMs) throw error;
      }
      await sleep(clock, POD_POLL_MS, signal);
    }
  }

  #hold(node: string): Disposable {
    const held = this.#inFlight.get(node) ?? 0;
    if (this.#total >= MOST_IN_FLIGHT || held >= MOST_IN_FLIGHT_PER_NODE) {
      throw caError("CA_BUSY", `${this.#total} requests are being worked on, ${held} of them of node ${node}`);
    }
    this.#total++;
    this.#inFlight.set(node, held + 1);
    return {
      [Symbol.dispose]: () => {
        this.#total--;
        const left = (this.#inFlight.get(node) ?? 1) - 1;
        if (left === 0) this.#inFlight.delete(node);
        else this.#inFlight.set(node, left);
      },
    };
  }

  #refused(error: unknown, caller: Caller | undefined): void {
    const code = error instanceof CodedError ? error.code : "unexpected";
    this.#cells.bind("veil_ca_requests_refused_total", { code }).value++;
    const from = caller === undefined ? "an unknown caller" : formatCaller(caller);
    this.#options.log.warn({ err: error, code, from }, "refused a certificate request");
  }
}

/** What a refused caller is told: `CODE: sentence`, which Veil's agent takes apart. Causes stay in the log. */
function toConnectError(error: unknown): ConnectError {
  if (!(error instanceof CodedError)) return new ConnectError("the request failed inside the authority", Code.Internal);
  const status =
    STATUS.get(error.code) ?? (error.code.startsWith("CA_TOKEN_") ? Code.Unauthenticated : Code.InvalidArgument);
  return new ConnectError(`${error.code}: ${error.message}`, status);
}

const STATUS = new Map<string, Code>([
  ["CA_REVIEW_UNAVAILABLE", Code.Unavailable],
  ["CA_NOT_READY", Code.Unavailable],
  ["CA_BUSY", Code.ResourceExhausted],
  ["CA_NOT_NODE_ACCOUNT", Code.PermissionDenied],
  ["CA_WRONG_TRUST_DOMAIN", Code.PermissionDenied],
  ["CA_NOT_ON_NODE", Code.PermissionDenied],
  ["X509_EXPIRED", Code.Unavailable],
]);
