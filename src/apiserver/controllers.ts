import type { Log } from "#base/log";
import { findIp, isV6 } from "#base/ip";
import type { Engine, WriteOptions } from "./engine.ts";
import { copyOf, sameJson, type KubeObject } from "./object.ts";
import type { Registry } from "./registry.ts";
import { addressAt } from "./rules/services.ts";
import type { Transaction } from "./store.ts";
import { StatusError } from "./status.ts";
import { SERVER_USER } from "./user.ts";

const ROOT_CA_MAP = "kube-root-ca.crt";

/** What the in-process controllers work on. */
export interface ControllerParts {
  readonly engine: Engine;
  readonly registry: Registry;
  readonly log: Log;
  /** The certificate of the cluster's authority, for the ConfigMap in each namespace. */
  readonly caPem: string;
}

/** How the server itself writes. */
export function serverOptions(namespace: string, subresource = ""): WriteOptions {
  return {
    user: SERVER_USER,
    namespace,
    subresource,
    dryRun: false,
    fieldManager: "veil-apiserver",
    fieldValidation: "Ignore",
  };
}

/** Writes an object as the server: creates it, or makes its fields (not its metadata) equal to these. */
function ensureObject(
  transaction: Transaction,
  parts: Pick<ControllerParts, "engine" | "registry">,
  given: KubeObject,
): void {
  const kind = parts.registry.findByKind(given.apiVersion, given.kind);
  if (kind === undefined) throw new Error(`${given.kind} is not served`);
  const options = serverOptions(given.metadata.namespace ?? "");
  const resource = kind.group === "" ? kind.plural : `${kind.plural}.${kind.group}`;
  const { name } = given.metadata;
  const found = transaction.get({ resource, namespace: options.namespace, name });
  if (found === undefined) {
    parts.engine.createIn(transaction, { kind, given, options });
    return;
  }
  const { metadata: _metadata, ...fields } = given;
  if (Object.entries(fields).every(([field, value]) => sameJson(found.object[field], value))) return;
  parts.engine.updateIn(transaction, { kind, name, options, change: (old) => ({ ...old, ...copyOf(fields) }) });
}

/** Keeps in each namespace the service account `default` and the ConfigMap with the cluster's root certificate. */
export function keepNamespaceObjects(parts: ControllerParts): () => void {
  const { engine, caPem, log } = parts;
  const fill = (namespace: string): void => {
    const run = (transaction: Transaction): void => {
      const found = transaction.get({ resource: "namespaces", namespace: "", name: namespace });
      if (found === undefined || found.object.metadata.deletionTimestamp !== undefined) return;
      const meta = (name: string): KubeObject["metadata"] => ({ name, namespace, uid: "" });
      const account = { resource: "serviceaccounts", namespace, name: "default" };
      if (transaction.get(account) === undefined) {
        ensureObject(transaction, parts, { apiVersion: "v1", kind: "ServiceAccount", metadata: meta("default") });
      }
      ensureObject(transaction, parts, {
        apiVersion: "v1",
        kind: "ConfigMap",
        metadata: meta(ROOT_CA_MAP),
        data: { "ca.crt": caPem },
      });
    };
    engine.store.write(run).catch((error: unknown) => {
      if (!(error instanceof StatusError)) log.error({ err: error, namespace }, "cannot fill a namespace");
    });
  };
  for (const { key } of engine.store.list("namespaces")) fill(key.name);
  const stops = [
    engine.store.subscribe("namespaces", ({ type, object }) => {
      if (type === "ADDED") fill(object.key.name);
    }),
    engine.store.subscribe("serviceaccounts", ({ type, object }) => {
      if (type === "DELETED" && object.key.name === "default") fill(object.key.namespace);
    }),
    engine.store.subscribe("configmaps", ({ type, object }) => {
      if (type !== "ADDED" && object.key.name === ROOT_CA_MAP) fill(object.key.namespace);
    }),
  ];
  return () => {
    for (const stop of stops) stop();
  };
}

/** Makes the Service `kubernetes` in `default`, and the endpoints behind it: where this server is reached. */
export async function keepKubernetesService(parts: ControllerParts): Promise<void> {
  const { config } = parts.engine;
  const meta = (labels: Record<string, string>): KubeObject["metadata"] => ({
    name: "kubernetes",
    namespace: "default",
    uid: "",
    labels,
  });
  const address = findIp(config.advertise.host);
  await parts.engine.store.write((transaction) => {
    const clusterIP = addressAt(config.serviceCidr, 1);
    const key = { resource: "services", namespace: "default", name: "kubernetes" };
    if (transaction.get(key) === undefined) {
      const ports = [{ name: "https", port: 443, protocol: "TCP", targetPort: config.advertise.port }];
      const labels = { component: "apiserver", provider: "kubernetes" };
      const service = { apiVersion: "v1", kind: "Service", metadata: meta(labels), spec: { clusterIP, ports } };
      ensureObject(transaction, parts, service);
    }
    if (address === undefined) return; // a name: whoever advertises one brings its own endpoints
    ensureObject(transaction, parts, {
      apiVersion: "discovery.k8s.io/v1",
      kind: "EndpointSlice",
      metadata: meta({ "kubernetes.io/service-name": "kubernetes" }),
      addressType: isV6(address) ? "IPv6" : "IPv4",
      endpoints: [{ addresses: [address], conditions: { ready: true } }],
      ports: [{ name: "https", port: config.advertise.port, protocol: "TCP" }],
    });
  });
}
