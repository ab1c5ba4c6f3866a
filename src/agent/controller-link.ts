import { readFile } from "node:fs/promises";
import type { Transport } from "@connectrpc/connect";
import { messageOf } from "#base/errors";
import type { CellSet } from "#base/metrics";
import type { Service } from "#base/service";
import { Informer, resources } from "#kube";
import { OWN_TRUST_BUNDLE, ROOTS_PART } from "#model/authority-objects";
import { rpcTransport } from "#rpc";
import {
  relayUpdates,
  ResourceCache,
  TYPE_ADDRESS,
  TYPE_AUTHORIZATION,
  VERSION_KEY,
  XdsClient,
  XdsServer,
  type ResourceUpdate,
  type XdsClientOptions,
} from "#xds";
import type { AgentOptions } from "./options.ts";
import { agentError } from "./errors.ts";

/** What a node's proxy is told about. */
const FOLLOWED: readonly string[] = [TYPE_ADDRESS, TYPE_AUTHORIZATION];
/** Updates of the controller that may be in work at once: each waits for this node's proxy. */
const XDS_PIPELINE = 64;
/** A controller that has come back is found again within this time. */
const RECONNECT = { initialMs: 10, maxMs: 2000, jitter: 0.3 };

/** The cluster's roots as the API has them. */
export interface TrustBundle {
  readonly informers: readonly Service[];
  /** PEM; undefined while nobody has published them. */
  current(): string | undefined;
}

/**
 * Follows the trust bundle that the controller publishes; `onChange` gets each new text. That of Veil's own name counts; the one that
 * the installation names, which may be somebody else's, only while there is none: an older controller knows no other.
 */
export function followTrustBundle(options: AgentOptions, onChange: (rootsPem: string) => void): TrustBundle {
  const { client, clock, random, log, namespace, trustBundle } = options;
  const shared = { client, clock, random, log, namespace, ref: resources.configMaps };
  const followed = [...new Set([OWN_TRUST_BUNDLE, trustBundle])].map((name) => {
    return { name, informer: new Informer({ ...shared, fieldSelector: `metadata.name=${name}` }) };
  });
  const current = (): string | undefined =>
    followed
      .map(({ name, informer }) => informer.get(name, namespace)?.data?.[ROOTS_PART])
      .find((roots) => roots !== undefined);
  const upserted = (): void => {
    const roots = current();
    try {
      if (roots !== undefined) onChange(roots);
    } catch (error) {
      log.error({ reason: messageOf(error) }, "trust bundle cannot be read");
    }
  };
  for (const { informer } of followed) informer.on({ upserted });
  return { informers: followed.map(({ informer }) => informer), current };
}

/** The way to the controller: with the agent's own token, and without one for requests that carry their own. */
export function controllerTransports(
  options: AgentOptions,
  roots: () => string | undefined,
): { own: Transport; passThrough: Transport } {
  const { controller: target, controllerName: serverName, tokenFile, clusterId } = options;
  const token = async (): Promise<string> => {
    if (roots() === undefined) throw agentError("AGENT_NO_ROOTS", "the controller has not published its roots yet");
    try {
      return (await readFile(tokenFile, "utf8")).trim();
    } catch (cause) {
      throw agentError("AGENT_NO_TOKEN", `cannot read the token in ${tokenFile}`, { cause, details: { tokenFile } });
    }
  };
  const base = { target, ...(serverName !== undefined && { serverName }), roots: () => roots() ?? "" };
  return { own: rpcTransport({ ...base, token, headers: { clusterid: clusterId } }), passThrough: rpcTransport(base) };
}

/** What happens around each update: before the proxies of this node get it, and after they have confirmed it. */
export interface UpdateGate {
  before(update: ResourceUpdate): Promise<void>;
  after(update: ResourceUpdate): Promise<void>;
}

/** Lets updates pass in their order, each when what comes before it is done. */
function gated(gate: UpdateGate, apply: XdsClientOptions["onUpdate"]): XdsClientOptions["onUpdate"] {
  let queue: Promise<void> = Promise.resolve();
  return async (update) => {
    const admitted = queue.then(() => gate.before(update));
    queue = admitted;
    await admitted;
    const refused = await apply(update);
    await gate.after(update);
    return refused;
  };
}

/** A cache between the controller and the proxies of this node. */
export function createRelay(
  options: Pick<AgentOptions, "clock" | "random" | "log" | "node" | "namespace" | "instance">,
  parts: { transport: Transport; cells: CellSet; onConnected: () => void; gate?: UpdateGate | undefined },
): { client: XdsClient; server: XdsServer } {
  const { clock, random, log, node, namespace, instance } = options;
  const cache = new ResourceCache();
  const xdsLog = log.child({ component: "xds" });
  // Not `client.warm`: that comes after the proxies' confirmation, and they confirm only what they are served.
  const received = new Set<string>();
  const server: XdsServer = new XdsServer({
    cache,
    log: xdsLog,
    // Of a type that only a newer proxy knows there is nothing, and that is said: it waits for the first answer of each.
    ready: (typeUrl) => received.has(typeUrl) || !FOLLOWED.includes(typeUrl),
    onDemand: (typeUrl, name, signal) => client.find(typeUrl, name, signal),
    metrics: parts.cells,
  });
  const relay = relayUpdates({ cache, server, clock, log: xdsLog });
  const apply: XdsClientOptions["onUpdate"] = (update) => {
    const confirmed = relay(update);
    if (!received.has(update.typeUrl)) {
      received.add(update.typeUrl);
      server.recheck();
    }
    return confirmed;
  };
  const client: XdsClient = new XdsClient({
    transport: parts.transport,
    node: {
      id: `agent~${instance.ip}~${instance.pod}.${namespace}~${namespace}.svc.cluster.local`,
      metadata: { NODE_NAME: node, NAMESPACE: namespace, NAME: instance.pod, [VERSION_KEY]: instance.version },
    },
    types: FOLLOWED.map((typeUrl) => ({ typeUrl, mode: "wildcard" as const })),
    onUpdate: parts.gate === undefined ? apply : gated(parts.gate, apply),
    pipeline: XDS_PIPELINE,
    onConnection: (connected) => {
      if (!connected) return;
      server.recheck();
      parts.onConnected();
    },
    reconnect: RECONNECT,
    clock,
    random,
    log: xdsLog,
    metrics: parts.cells,
  });
  return { client, server };
}
