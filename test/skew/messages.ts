/**
 * What roles say to each other, a sample of each kind of message, and what the reader makes of it.
 *
 *     node --conditions=veil-source test/skew/messages.ts     records the samples of this version in test/skew/MAJOR.MINOR.json
 *
 * Roles of neighbouring minor versions talk to each other while an upgrade is under way: record them again only when
 * test/skew.test.ts says that older roles still read them.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  create,
  fromBinary,
  toBinary,
  toJson,
  type DescFile,
  type DescMessage,
  type MessageInitShape,
} from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { parseIp } from "#base/ip";
import type { Authorization } from "#model/authorization";
import type { Service, Workload } from "#model/workload";
import {
  CertificateUpdateSchema,
  decodeAddress,
  decodeAuthorization,
  DeltaDiscoveryRequestSchema,
  DeltaDiscoveryResponseSchema,
  encodeAddress,
  encodeAuthorization,
  WatchRequestSchema,
  WorkloadRequestSchema,
  WorkloadResponseSchema,
  ZdsHelloSchema,
} from "#proto";
import { decodePluginRequest } from "../../src/cni/request.ts";
import { decodeZdsAck, decodeZdsHello, encodeZdsRequest } from "../../src/enrolment/zds-codec.ts";
import { AuthorizationSchema } from "../../src/proto/gen/istio/security/authorization_pb.js";
import {
  IstioCertificateRequestSchema,
  IstioCertificateResponseSchema,
} from "../../src/proto/gen/istio/auth/citadel_pb.js";
import { AddressSchema } from "../../src/proto/gen/istio/workload/workload_pb.js";
import { AwaitRequestSchema, AwaitResponseSchema } from "../../src/proto/gen/veil/control_pb.js";
import { decodeRequest, encodeAck, encodeHello } from "../../src/proxy/zds-messages.ts";
import { TYPE_ADDRESS } from "#xds";

/** A message of one role to another. */
export interface Sample {
  readonly from: string;
  readonly to: string;
  readonly bytes: Uint8Array;
  /** Its description on the wire; undefined for JSON. */
  readonly schema: DescMessage | undefined;
  /** What the role that it is for makes of it; throws when it refuses. */
  readonly read: (bytes: Uint8Array) => unknown;
}

/** What one version says. */
export interface SkewRecord {
  readonly version: string;
  /** `FileDescriptorSet`, base64: how this version reads messages. */
  readonly descriptors: string;
  readonly messages: Readonly<Record<string, { readonly bytes: string; readonly means: unknown }>>;
}

const WORKLOAD: Workload = {
  kind: "workload",
  uid: "Kubernetes//Pod/shop/cart",
  name: "cart",
  namespace: "shop",
  addresses: [parseIp("10.244.1.7"), parseIp("fd00::7")],
  hostname: "cart.example",
  network: "east",
  tunnelProtocol: "hbone",
  trustDomain: "mesh.example",
  serviceAccount: "cart",
  waypoint: {
    destination: { kind: "hostname", namespace: "shop", hostname: "waypoint.shop.svc.cluster.local" },
    hboneMtlsPort: 15_008,
  },
  networkGateway: {
    destination: { kind: "address", network: "east", address: parseIp("192.0.2.1") },
    hboneMtlsPort: 15_008,
  },
  node: "node1",
  canonicalName: "cart",
  canonicalRevision: "v1",
  workloadType: "deployment",
  workloadName: "cart",
  nativeTunnel: true,
  services: { "shop/cart.shop.svc.cluster.local": [{ servicePort: 80, targetPort: 8080 }] },
  authorizationPolicies: ["shop/only-frontend"],
  healthy: false,
  clusterId: "Kubernetes",
  locality: { region: "r", zone: "z", subzone: "s" },
  hostNetwork: true,
  capacity: 3,
  applicationTunnel: { protocol: "proxy", port: 15_088 },
};

const SERVICE: Service = {
  kind: "service",
  name: "cart",
  namespace: "shop",
  hostname: "cart.shop.svc.cluster.local",
  addresses: [{ network: "east", address: parseIp("10.96.0.7"), length: undefined }],
  ports: [{ servicePort: 80, targetPort: 8080 }],
  subjectAltNames: ["spiffe://mesh.example/ns/shop/sa/cart"],
  waypoint: WORKLOAD.waypoint,
  weightedWaypoints: [],
  loadBalancing: { mode: "failover", routingPreference: ["network", "zone"], allowUnhealthy: true },
  ipFamilies: "dual",
  canonical: true,
  visibility: "namespace",
};

const POLICY: Authorization = {
  name: "only-frontend",
  namespace: "shop",
  scope: "workload",
  action: "allow",
  dryRun: false,
  rules: [
    [
      [
        {
          namespaces: [{ kind: "exact", value: "web" }],
          notNamespaces: [],
          principals: [{ kind: "prefix", value: "mesh.example/ns/web/" }],
          notPrincipals: [{ kind: "presence" }],
          serviceAccounts: [{ namespace: "web", serviceAccount: "frontend" }],
          notServiceAccounts: [],
          sourceIps: [{ address: parseIp("10.0.0.0"), length: 8 }],
          notSourceIps: [],
          destinationIps: [],
          notDestinationIps: [],
          destinationPorts: [8080],
          notDestinationPorts: [22],
        },
      ],
    ],
  ],
};

const CNI_REQUEST = {
  env: {
    CNI_COMMAND: "ADD",
    CNI_CONTAINERID: "c0ffee",
    CNI_NETNS: "/run/netns/x",
    CNI_IFNAME: "eth0",
    CNI_ARGS: "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart;K8S_POD_UID=u-1",
  },
  config: JSON.stringify({
    cniVersion: "1.0.0",
    name: "pods",
    type: "veil-cni",
    strict: true,
    prevResult: { ips: [] },
  }),
};

function message<T extends DescMessage>(from: string, to: string, schema: T): (init: MessageInitShape<T>) => Sample {
  const read = (bytes: Uint8Array): unknown => toJson(schema, fromBinary(schema, bytes));
  return (init) => ({ from, to, schema, bytes: toBinary(schema, create(schema, init)), read });
}

function zdsRequest(request: Parameters<typeof encodeZdsRequest>[0]): Sample {
  const read = (bytes: Uint8Array): unknown => decodeRequest(bytes, request.kind === "add" ? 1 : 0);
  return { from: "agent", to: "proxy", schema: WorkloadRequestSchema, bytes: encodeZdsRequest(request), read };
}

function zdsAnswer(error: string): Sample {
  const read = (bytes: Uint8Array): unknown => decodeZdsAck(bytes);
  return { from: "proxy", to: "agent", schema: WorkloadResponseSchema, bytes: encodeAck(error), read };
}

function address(bytes: Uint8Array): Sample {
  return { from: "controller", to: "proxy", schema: AddressSchema, bytes, read: decodeAddress };
}

const xdsRequest = message("proxy", "agent, controller", DeltaDiscoveryRequestSchema);
const certificateUpdate = message("agent", "proxy", CertificateUpdateSchema);

/** By name. */
export const SAMPLES: Readonly<Record<string, Sample>> = {
  "zds hello": {
    from: "proxy",
    to: "agent",
    schema: ZdsHelloSchema,
    bytes: encodeHello(),
    read: (bytes) => {
      decodeZdsHello(bytes);
      return "taken";
    },
  },
  "zds add": zdsRequest({ kind: "add", uid: "u-1", name: "cart", namespace: "shop", serviceAccount: "cart" }),
  "zds keep": zdsRequest({ kind: "keep", uid: "u-1" }),
  "zds del": zdsRequest({ kind: "del", uid: "u-1" }),
  "zds snapshot sent": zdsRequest({ kind: "snapshot-sent" }),
  "zds done": zdsAnswer(""),
  "zds objection": zdsAnswer("port 15001 is taken"),
  "xds first request": xdsRequest({
    node: { id: "ztunnel~10.0.0.1~z.veil-system~veil-system.svc.cluster.local", metadata: { NODE_NAME: "node1" } },
    typeUrl: TYPE_ADDRESS,
    initialResourceVersions: { "Kubernetes//Pod/shop/cart": "7" },
  }),
  "xds question": xdsRequest({ typeUrl: TYPE_ADDRESS, resourceNamesSubscribe: ["east/10.244.1.7"] }),
  "xds refusal": xdsRequest({
    typeUrl: TYPE_ADDRESS,
    responseNonce: "3",
    errorDetail: { code: 0, message: "Kubernetes//Pod/shop/cart: no" },
  }),
  "xds response": message(
    "controller, agent",
    "agent, proxy",
    DeltaDiscoveryResponseSchema,
  )({
    typeUrl: TYPE_ADDRESS,
    nonce: "3",
    resources: [{ name: WORKLOAD.uid, version: "8", aliases: ["east/10.244.1.7"] }],
    removedResources: ["Kubernetes//Pod/shop/gone"],
  }),
  "address of a workload": address(encodeAddress(WORKLOAD)),
  "address of a service": address(encodeAddress(SERVICE)),
  policy: {
    from: "controller",
    to: "proxy",
    schema: AuthorizationSchema,
    bytes: encodeAuthorization(POLICY),
    read: (bytes) => {
      const decoded = decodeAuthorization("shop/only-frontend", bytes);
      if ("error" in decoded) throw decoded.error;
      return decoded.policy;
    },
  },
  "certificates wanted": message("proxy", "agent", WatchRequestSchema)({ identities: SERVICE.subjectAltNames.slice() }),
  certificate: certificateUpdate({
    identity: "spiffe://mesh.example/ns/shop/sa/cart",
    state: {
      case: "certificate",
      value: { chainPem: "chain", keyPem: "key", rootsPem: "roots", notBeforeMs: 1n, notAfterMs: 2n },
    },
  }),
  "certificate failure": certificateUpdate({
    identity: "spiffe://mesh.example/ns/shop/sa/cart",
    state: { case: "failure", value: { code: "IDENTITY_CLOCK_AHEAD", message: "the clock is ahead" } },
  }),
  "certificate request": message(
    "agent",
    "controller",
    IstioCertificateRequestSchema,
  )({
    csr: "csr",
    validityDuration: 86_400n,
    metadata: { ImpersonatedIdentity: "spiffe://mesh.example/ns/shop/sa/cart" },
  }),
  "certificate answer": message("controller", "agent", IstioCertificateResponseSchema)({ certChain: ["leaf", "root"] }),
  "propagation question": message(
    "agent",
    "controller",
    AwaitRequestSchema,
  )({
    uid: WORKLOAD.uid,
    hbone: true,
    timeoutMs: 5_000,
  }),
  "propagation answer": message("controller", "agent", AwaitResponseSchema)({ nodesBehind: ["node2"] }),
  "cni request": {
    from: "CNI plugin",
    to: "agent",
    schema: undefined,
    bytes: new TextEncoder().encode(JSON.stringify(CNI_REQUEST)),
    read: (bytes) => decodePluginRequest(new TextDecoder().decode(bytes)),
  },
};

/** As JSON keeps it. */
export function plain(value: unknown): unknown {
  return JSON.parse(JSON.stringify(value));
}

/** This checkout's version. */
export const { version: VERSION } = JSON.parse(
  readFileSync(new URL("../../package.json", import.meta.url), "utf8"),
) as { version: string }; // our own file

/** Where the samples of a minor version are. */
export function recordFile(major: number, minor: number): string {
  return join(import.meta.dirname, `${major}.${minor}.json`);
}

/** The descriptions of all samples, those first that others need. */
function describeAll(): string {
  const files = new Map<string, DescFile>();
  const add = (file: DescFile): void => {
    for (const needed of file.dependencies) add(needed);
    files.set(file.name, file);
  };
  for (const { schema } of Object.values(SAMPLES)) if (schema !== undefined) add(schema.file);
  const set = create(FileDescriptorSetSchema, { file: [...files.values()].map(({ proto }) => proto) });
  return Buffer.from(toBinary(FileDescriptorSetSchema, set)).toString("base64");
}

if (import.meta.main) {
  const [major = 0, minor = 0] = VERSION.split(".").map(Number);
  const messages = Object.entries(SAMPLES).map(([name, { bytes, read }]) => [
    name,
    { bytes: Buffer.from(bytes).toString("base64"), means: plain(read(bytes)) },
  ]);
  const record = { version: VERSION, messages: Object.fromEntries(messages) as object, descriptors: describeAll() };
  writeFileSync(recordFile(major, minor), `${JSON.stringify(record, undefined, 2)}\n`);
}
