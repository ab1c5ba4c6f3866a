import { closeSync, fstatSync, readFileSync } from "node:fs";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { createClient } from "@connectrpc/connect";
import { istioIssuer } from "#identity";
import { connectSeqpacket } from "#linux";
import { parseSpiffeId } from "#model/spiffe-id";
import {
  AggregatedDiscoveryService,
  DeltaDiscoveryRequestSchema,
  WorkloadRequestSchema,
  WorkloadResponseSchema,
  ZdsHelloSchema,
  type DeltaDiscoveryRequest,
} from "#proto";
import { rpcTransport } from "#rpc";
import { createCsr, createKeyPair, parseCertificates } from "#x509";

// What a ztunnel that knows nothing of Veil does when it starts on a node, over the wire formats alone: announces itself over ZDS and
// takes the snapshot, follows workloads and policies over xDS, and has a key of its own signed. Run inside a node's namespaces.
// Input on stdin: `{ token, identity, refusedToken }`; output: one line of JSON.

interface Input {
  readonly token: string;
  readonly identity: string;
  readonly refusedToken: string;
}

/** What the imitation got. */
export interface Served {
  /** Pods of the snapshot, with the inode of the namespace that came along. */
  readonly pods: readonly { readonly name: string; readonly namespace: string; readonly netnsInode: number }[];
  /** Names of the resources of the first response of each type. */
  readonly resources: Readonly<Record<string, readonly string[]>>;
  /** Names in the certificate. */
  readonly uris: readonly string[];
  /** What became of the same request with a token that may not have it. */
  readonly refusal: string;
}

const TYPES = ["type.googleapis.com/istio.workload.Address", "type.googleapis.com/istio.security.Authorization"];

async function takeSnapshot(): Promise<Served["pods"]> {
  using socket = connectSeqpacket("/var/run/ztunnel/ztunnel.sock");
  socket.send(toBinary(ZdsHelloSchema, create(ZdsHelloSchema, { version: 1 })));
  const pods: Served["pods"][number][] = [];
  for (;;) {
    const message = await socket.receive(AbortSignal.timeout(60_000));
    if (message === undefined) throw new Error("the agent hung up");
    const { payload } = fromBinary(WorkloadRequestSchema, message.data);
    if (payload.case === "add") {
      const [fd = -1, ...others] = message.fds;
      if (others.length > 0) throw new Error("more than one descriptor came along");
      const { name = "", namespace = "" } = payload.value.workloadInfo ?? {};
      pods.push({ name, namespace, netnsInode: fstatSync(fd).ino });
      closeSync(fd);
    } else if (message.fds.length > 0) throw new Error(`a descriptor came along with ${payload.case}`);
    const ack = create(WorkloadResponseSchema, { payload: { case: "ack", value: { error: "" } } });
    socket.send(toBinary(WorkloadResponseSchema, ack));
    if (payload.case === "snapshotSent") return pods;
  }
}

const target = "https://localhost:15012";
const roots = (): string => readFileSync("/run/veil/agent-root.pem", "utf8");

async function follow(token: string): Promise<Served["resources"]> {
  const client = createClient(AggregatedDiscoveryService, rpcTransport({ target, roots, token: async () => token }));
  const stop = new AbortController();
  async function* requests(): AsyncGenerator<DeltaDiscoveryRequest> {
    const id = "ztunnel~172.20.0.11~ztunnel-x.veil-system~veil-system.svc.cluster.local";
    for (const typeUrl of TYPES) yield create(DeltaDiscoveryRequestSchema, { node: { id }, typeUrl });
    await new Promise((resolve) => stop.signal.addEventListener("abort", resolve, { once: true }));
  }
  const got: Record<string, string[]> = {};
  const options = { signal: AbortSignal.timeout(60_000) };
  for await (const response of client.deltaAggregatedResources(requests(), options)) {
    got[response.typeUrl] = response.resources.map(({ name }) => name);
    if (TYPES.every((typeUrl) => got[typeUrl] !== undefined)) break;
  }
  stop.abort();
  return got;
}

async function sign(token: string, identity: string): Promise<readonly string[]> {
  const id = parseSpiffeId(identity);
  const transport = rpcTransport({ target, roots, token: async () => token });
  const answer = await istioIssuer({ transport }).issue(
    await createCsr(await createKeyPair(), id),
    id,
    AbortSignal.timeout(60_000),
  );
  return parseCertificates(answer[0] ?? "", "answer").flatMap(({ extensions }) => extensions.uris);
}

const { token, identity, refusedToken } = JSON.parse(readFileSync(0, "utf8")) as Input; // written by the test
const served: Served = {
  pods: await takeSnapshot(),
  resources: await follow(token),
  uris: await sign(token, identity),
  refusal: await sign(refusedToken, identity).then(
    (uris) => `issued ${uris.join()}`,
    (error: unknown) => (error instanceof Error ? error.message : String(error)),
  ),
};
process.stdout.write(`${JSON.stringify(served)}\n`, () => process.exit(0));
