import type { EndpointSlice, Service } from "#kube";
import { isReadyEndpoint, slicesByService } from "./endpoints.ts";

/** What a name of the cluster stands for. */
export type NameAnswer =
  | { readonly kind: "addresses"; readonly addresses: readonly string[] }
  | { readonly kind: "alias"; readonly target: string }
  | { readonly kind: "services"; readonly targets: readonly { readonly name: string; readonly port: number }[] }
  /** The name exists, but not with records of the kind that was asked for. */
  | { readonly kind: "empty" }
  | { readonly kind: "unknown" };

/** What names are answered from. */
export interface NameView {
  readonly services: readonly Service[];
  readonly slices: readonly EndpointSlice[];
}

const UNKNOWN: NameAnswer = { kind: "unknown" };
const EMPTY: NameAnswer = { kind: "empty" };
const DOMAIN = ["cluster", "local"];

/** The names of a cluster (Kubernetes DNS specification 1.1), looked up in indexes that are made once per change. */
export class ClusterNames {
  readonly #services = new Map<string, Service>();
  readonly #slices: Map<string, EndpointSlice[]>;
  /** Namespaces with services; others have no names. */
  readonly #namespaces = new Set<string>();

  constructor(view: NameView) {
    for (const service of view.services) {
      const { name = "", namespace = "" } = service.metadata ?? {};
      this.#services.set(`${namespace}/${name}`, service);
      this.#namespaces.add(namespace);
    }
    this.#slices = slicesByService(view.slices);
  }

  /** Finds a name, written with or without the last dot, in any case, for questions of type A, AAAA, SRV or any other. */
  find(name: string, type: string): NameAnswer {
    const labels = name.toLowerCase().replace(/\.$/, "").split(".");
    if (labels.length < 2 || labels.slice(-2).join(".") !== DOMAIN.join(".")) return UNKNOWN;
    const [zone, namespace = "", ...rest] = labels.slice(0, -2).toReversed();
    if (zone === undefined || (zone === "svc" && namespace === "")) return EMPTY;
    if (zone === "svc") return this.#inService(namespace, rest.toReversed(), type);
    if (zone === "pod" && rest.length === 1) return this.#pod(rest[0] ?? "", type);
    return UNKNOWN;
  }

  /** `10-244-1-5.<namespace>.pod`: the address is in the name, and nothing is looked up. */
  #pod(label: string, type: string): NameAnswer {
    if (!/^\d{1,3}(-\d{1,3}){3}$/.test(label)) return UNKNOWN;
    const numbers = label.split("-").map(Number);
    if (numbers.some((number) => number > 255)) return UNKNOWN;
    return type === "A" ? { kind: "addresses", addresses: [numbers.join(".")] } : EMPTY;
  }

  /** `labels` are what stands before `<namespace>.svc`: none, `service`, `host.service` or `_port._protocol.service`. */
  #inService(namespace: string, labels: readonly string[], type: string): NameAnswer {
    const serviceName = labels.at(-1);
    if (serviceName === undefined) return this.#namespaces.has(namespace) ? EMPTY : UNKNOWN;
    const service = this.#services.get(`${namespace}/${serviceName}`);
    if (service === undefined) return UNKNOWN;
    if (service.spec?.type === "ExternalName") return externalName(service, labels);
    const [first = "", second = ""] = labels;
    switch (labels.length) {
      case 1:
        return this.#service(service, type);
      case 2:
        return this.#host(service, first, type);
      case 3:
        return this.#ports(service, { port: first, protocol: second }, type);
      default:
        return UNKNOWN;
    }
  }

  #service(service: Service, type: string): NameAnswer {
    const { clusterIP = "" } = service.spec ?? {};
    const addresses = clusterIP === "None" ? this.#readyHosts(service).map(({ ip }) => ip) : [clusterIP];
    if (addresses.length === 0) return UNKNOWN;
    return type === "A" ? { kind: "addresses", addresses } : EMPTY;
  }

  #host(service: Service, host: string, type: string): NameAnswer {
    const found = this.#readyHosts(service).filter((one) => one.host === host);
    if (found.length === 0) return UNKNOWN;
    return type === "A" ? { kind: "addresses", addresses: found.map(({ ip }) => ip) } : EMPTY;
  }

  #ports(service: Service, wanted: { port: string; protocol: string }, type: string): NameAnswer {
    const { name = "", namespace = "" } = service.metadata ?? {};
    const base = `${name}.${namespace}.svc.cluster.local`;
    const port = service.spec?.ports?.find(
      (one) =>
        `_${one.name?.toLowerCase()}` === wanted.port &&
        `_${(one.protocol ?? "TCP").toLowerCase()}` === wanted.protocol,
    );
    if (port === undefined) return UNKNOWN;
    if (type !== "SRV") return EMPTY;
    if (service.spec?.clusterIP !== "None") return { kind: "services", targets: [{ name: base, port: port.port }] };
    const hosts = this.#readyHosts(service);
    const number = typeof port.targetPort === "number" ? port.targetPort : port.port;
    return { kind: "services", targets: hosts.map(({ host }) => ({ name: `${host}.${base}`, port: number })) };
  }

  /** Ready endpoints and their names: the pod's hostname where it has one, else its address with dashes. */
  #readyHosts(service: Service): { host: string; ip: string }[] {
    const slices = this.#slices.get(`${service.metadata?.namespace ?? ""}/${service.metadata?.name ?? ""}`) ?? [];
    const endpoints = slices.flatMap((slice) => slice.endpoints ?? []).filter(isReadyEndpoint);
    return endpoints.flatMap(({ addresses, hostname }) =>
      addresses.map((ip) => ({ host: hostname ?? ip.replaceAll(".", "-"), ip })),
    );
  }
}

function externalName(service: Service, labels: readonly string[]): NameAnswer {
  return labels.length === 1 ? { kind: "alias", target: service.spec?.externalName ?? "" } : UNKNOWN;
}
