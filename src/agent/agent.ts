import { CellSet } from "#base/metrics";
import type { Service } from "#base/service";
import {
  checkRedirection,
  DEFAULT_TIMES,
  Enrolment,
  enrolmentMetrics,
  nftRedirector,
  Probes,
  ZdsServer,
  type EnrolmentTools,
} from "#enrolment";
import { cniMetrics } from "#cni";
import { CertificateManager, identityMetrics, istioIssuer } from "#identity";
import { Informer, resources } from "#kube";
import { AGENTS } from "#model/leaving";
import { PageServer, statusPages, type StatusPages } from "#rpc";
import { xdsMetrics, type XdsServer } from "#xds";
import { kubeAnnouncer } from "./announcer.ts";
import { createCni } from "./cni.ts";
import { controllerTransports, createRelay, followTrustBundle } from "./controller-link.ts";
import { Following, type FollowingParts } from "./following.ts";
import { Leaving, type LeavingParts } from "./leaving.ts";
import { LabelWarnings } from "./label-warnings.ts";
import type { AgentOptions } from "./options.ts";
import { createAgentSocket, createZtunnelPort, holdCertificate } from "./proxy-supply.ts";
import { createWireguard, withoutTunnels } from "./wireguard.ts";
import { stuckWarning } from "./stuck-warning.ts";

/** An agent that was put together but not started: its services in the order of their start. */
export interface Agent {
  readonly services: readonly Service[];
  readonly enrolment: Enrolment;
  /** The port of metrics and health, and that for another ztunnel; 0 before the start. */
  readonly ports: () => { readonly status: number; readonly ztunnel: number };
}

/**
 * Puts the agent of a node together.
 *
 *     API ──informers──▶ enrolment ──ZDS──▶ proxy            controller ──xDS──▶ cache ──xDS──▶ proxy
 *                            │ nft, annotation                        └──CSR──▶ certificates ──▶ proxy
 *
 * Sockets for the proxy are there before the API has answered: a proxy that starts while everything else is away connects and waits.
 */
export function createAgent(options: AgentOptions): Agent {
  const { client, clock, random, log } = options;
  const cells = { xds: new CellSet(xdsMetrics), own: new CellSet(enrolmentMetrics), ids: new CellSet(identityMetrics) };
  const bundle = followTrustBundle(options, (roots) => certificates.updateTrustBundle(roots));
  const controller = controllerTransports(options, () => bundle.current());
  const certificates = new CertificateManager({
    issuer: istioIssuer({ transport: controller.own, clusterId: options.clusterId }),
    clock,
    random,
    log: log.child({ component: "certificates" }),
    cells: cells.ids,
  });
  const onConnected = (): void => {
    certificates.retryNow();
    enrolment.poke();
  };
  const tunnels = createWireguard(options);
  const xds = createRelay(options, { transport: controller.own, cells: cells.xds, onConnected, gate: tunnels?.gate });
  const announcer = kubeAnnouncer({ client, controller: controller.own, clusterId: options.clusterId });
  const local = createEnrolment(options, {
    cells: cells.own,
    redirector: tunnels?.redirector ?? nftRedirector,
    announcer,
    controllerReachable: () => xds.client.connected,
    prepare: (pod) => holdCertificate(certificates, pod, options),
    onStuck: stuckWarning(options),
  });
  const { enrolment } = local;
  const pending = (): string[] => [
    ...(following.started ? [] : ["informers"]),
    ...(xds.client.warm ? [] : ["controller"]),
  ];
  const cni = createCni(options, { enrolment, pending });
  const ztunnel = createZtunnelPort(options, xds.server, controller.passThrough);
  const following = createFollowing(options, { enrolment, onSynced: tunnels?.synced });
  const leaving = createLeaving(options, { enrolment, installer: cni.installer, knowsPods: () => following.started });
  const status = createStatus(options, {
    cells: { ...cells, cni: cni.cells },
    pending: () => [...pending(), ...(cni.status()?.chained === false && !leaving.asked ? ["cni"] : [])],
    wireguard: tunnels?.sources ?? [],
    more: { "/pods": () => enrolment.list(), "/cni": cni.status, ...tunnels?.pages },
  });
  const early = tunnels?.services ?? [withoutTunnels(options)];
  const first = [preflight(options), status, ...early, certificates, local.zds, enrolment];
  const forProxy = [createAgentSocket(options, xds.server, certificates), ...ztunnel.services, endStreams(xds.server)];
  const fromCluster = [
    ...bundle.informers.map(patient),
    xds.client,
    cni.server,
    leaving,
    ...(cni.installer === undefined ? [] : [cni.installer]),
    following,
  ];
  return {
    services: [...first, ...forProxy, ...fromCluster],
    enrolment,
    ports: () => ({ status: status.port, ztunnel: ztunnel.port() }),
  };
}

function createFollowing(
  { client, node, clock, random, log, enrolLabels }: AgentOptions,
  parts: Pick<FollowingParts, "enrolment" | "onSynced">,
): Following {
  return new Following({
    ...parts,
    pods: new Informer({ client, clock, random, log, ref: resources.pods, fieldSelector: `spec.nodeName=${node}` }),
    namespaces: new Informer({ client, clock, random, log, ref: resources.namespaces }),
    warnings: new LabelWarnings({ client, node, clock, log }),
    enrolLabels,
  });
}

function createLeaving(
  { client, namespace, instance, clock, random, log }: AgentOptions,
  parts: Pick<LeavingParts, "enrolment" | "installer" | "knowsPods">,
): Leaving {
  const fieldSelector = `metadata.name=${AGENTS}`;
  return new Leaving({
    ...parts,
    client,
    agents: new Informer({ client, clock, random, log, ref: resources.daemonSets, namespace, fieldSelector }),
    own: { name: instance.pod, namespace },
    clock,
    log: log.child({ component: "leaving" }),
  });
}

/** The port of metrics and health. */
function createStatus(
  { status, log }: AgentOptions,
  parts: {
    readonly cells: Readonly<Record<"xds" | "own" | "ids" | "cni", CellSet>>;
    readonly wireguard: StatusPages["sources"];
    readonly pending: () => readonly string[];
    readonly more: Readonly<Record<string, () => unknown>>;
  },
): PageServer {
  const { cells, wireguard, pending, more } = parts;
  const handle = statusPages({
    sources: [
      { table: enrolmentMetrics, cells: cells.own },
      { table: xdsMetrics, cells: cells.xds },
      { table: identityMetrics, cells: cells.ids },
      { table: cniMetrics, cells: cells.cni },
      ...wireguard,
    ],
    pending,
    more,
  });
  return new PageServer({ name: "status", ...status, log, handle });
}

/** Enrolment and the socket that hands its pods to the proxy. */
function createEnrolment(
  options: AgentOptions,
  parts: Pick<EnrolmentTools, "cells" | "redirector" | "announcer" | "controllerReachable" | "prepare" | "onStuck">,
): { zds: ZdsServer; enrolment: Enrolment } {
  const { clock, random, log, sockets, finder, times } = options;
  const { cells } = parts;
  const zds = new ZdsServer({ path: sockets.zds, clock, log: log.child({ component: "zds" }), cells });
  const enrolment = new Enrolment({
    ...parts,
    zds,
    probes: new Probes(),
    finder,
    namespace: options.namespace,
    clock,
    random,
    log: log.child({ component: "enrolment" }),
    times: { ...DEFAULT_TIMES, ...times },
    dnsCapture: options.dnsCapture,
  });
  return { zds, enrolment };
}

/** Fails at once, with one sentence, on a machine where no pod could ever be enrolled. */
function preflight(options: AgentOptions): Service {
  return {
    name: "redirection check",
    start: () => checkRedirection({ dns: options.dnsCapture }),
    drain: () => Promise.resolve(),
  };
}

/** Ends the proxies' streams before the servers that carry them. */
function endStreams(server: XdsServer): Service {
  return {
    name: "xds streams",
    start: () => Promise.resolve(),
    drain: () => {
      server.close();
      return Promise.resolve();
    },
  };
}

/** Starts a service without waiting for it: what needs it tries until it is there. */
function patient(service: Service): Service {
  let running: Promise<void> = Promise.resolve();
  return {
    name: service.name,
    start: (signal) => {
      running = service.start(signal).catch(() => undefined); // only an abort ends it
      return Promise.resolve();
    },
    drain: async (deadlineMs) => {
      await service.drain(deadlineMs);
      await running;
    },
  };
}
