import { bytesToIp, cidrContains, findIp, ipToBytes, type Cidr, type IpAddress } from "#base/ip";
import type { Rules, WriteContext } from "../kinds.ts";
import {
  defaultTo,
  ensureRecord,
  isRecord,
  listAt,
  numberAt,
  recordAt,
  textAt,
  textsAt,
  type KubeObject,
} from "../object.ts";
import { internalError, invalidValue, required, unsupportedValue, type Cause } from "../status.ts";
import { isDnsLabel, isPort, PORT_RANGE, validateLabels } from "../validation.ts";

const TYPES = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS = ["SCTP", "TCP", "UDP"];
const NONE = "None";
/** Addresses that automatic allocation leaves for those that ask for one by name (`.1` is the API's, `.10` DNS'). */
const STATIC_BAND = 16;

/** The nth address of a range; undefined when the range is smaller. The broadcast address is not given out. */
export function addressAt(cidr: Cidr, index: number): IpAddress | undefined {
  const bytes = ipToBytes(cidr.address);
  const hostBits = bytes.length * 8 - cidr.length;
  if (hostBits < 31 && index >= 2 ** hostBits - 1) return undefined;
  let carry = index;
  for (let at = bytes.length - 1; at >= 0 && carry > 0; at--) {
    const sum = (bytes[at] ?? 0) + (carry & 0xff);
    bytes[at] = sum & 0xff;
    carry = (carry >>> 8) + (sum >>> 8);
  }
  return bytesToIp(bytes);
}

function usedAddresses(context: WriteContext): Set<string> {
  return new Set(context.transaction.list("services").flatMap(({ object }) => textAt(object, "spec", "clusterIP")));
}

function allocate(context: WriteContext): IpAddress {
  const used = usedAddresses(context);
  for (let index = STATIC_BAND; index < 65_536; index++) {
    const ip = addressAt(context.config.serviceCidr, index);
    if (ip === undefined) break;
    if (!used.has(ip)) return ip;
  }
  throw internalError("failed to allocate IP: range is full");
}

function usesClusterIp(spec: unknown): boolean {
  return textAt(spec, "type") !== "ExternalName";
}

function fill(service: KubeObject, old: Readonly<KubeObject> | undefined, context: WriteContext): void {
  const spec = ensureRecord(service, "spec");
  defaultTo(spec, "type", "ClusterIP");
  defaultTo(spec, "sessionAffinity", "None");
  if (usesClusterIp(spec)) {
    const before = textAt(old, "spec", "clusterIP");
    const asked = textAt(spec, "clusterIP");
    spec["clusterIP"] = asked || before || allocate(context);
    spec["clusterIPs"] = [spec["clusterIP"]];
    defaultTo(spec, "ipFamilies", ["IPv4"]);
    defaultTo(spec, "ipFamilyPolicy", "SingleStack");
    defaultTo(spec, "internalTrafficPolicy", "Cluster");
  }
  for (const port of listAt(spec, "ports")) {
    if (!isRecord(port)) continue;
    defaultTo(port, "protocol", "TCP");
    defaultTo(port, "targetPort", port["port"]);
  }
}

function validateClusterIp(
  service: KubeObject,
  old: Readonly<KubeObject> | undefined,
  context: WriteContext,
): readonly Cause[] {
  const ip = textAt(service, "spec", "clusterIP");
  if (!usesClusterIp(service["spec"]) || ip === NONE) return [];
  const before = textAt(old, "spec", "clusterIP");
  if (before !== "" && usesClusterIp(old?.["spec"])) {
    return before === ip ? [] : [invalidValue("spec.clusterIPs[0]", [ip], "may not change once set")];
  }
  const address = findIp(ip);
  if (address === undefined || !cidrContains(context.config.serviceCidr, address)) {
    return [invalidValue("spec.clusterIPs", [ip], "failed to allocate IP: the provided IP is not in the valid range")];
  }
  return usedAddresses(context).has(ip)
    ? [invalidValue("spec.clusterIPs", [ip], `failed to allocate IP ${ip}: provided IP is already allocated`)]
    : [];
}

function validatePort(port: unknown, field: string, several: boolean): readonly Cause[] {
  const causes: Cause[] = [];
  const number = numberAt(port, "port");
  if (!isPort(number)) causes.push(invalidValue(`${field}.port`, number ?? null, PORT_RANGE));
  const name = textAt(port, "name");
  if (several && name === "") causes.push(required(`${field}.name`));
  if (name !== "" && !isDnsLabel(name)) causes.push(invalidValue(`${field}.name`, name, "must be a DNS label"));
  const protocol = textAt(port, "protocol");
  if (!PROTOCOLS.includes(protocol)) causes.push(unsupportedValue(`${field}.protocol`, protocol, PROTOCOLS));
  const target = numberAt(port, "targetPort");
  if (target !== undefined && !isPort(target)) causes.push(invalidValue(`${field}.targetPort`, target, PORT_RANGE));
  return causes;
}

export const serviceRules: Rules = {
  prepareCreate(service, context) {
    fill(service, undefined, context);
    service["status"] = { loadBalancer: {} };
  },
  prepareUpdate(service, old, context) {
    if (context.subresource === "") fill(service, old, context);
  },
  validate(service, old, context) {
    if (context.subresource !== "") return [];
    const spec = recordAt(service, "spec");
    const causes: Cause[] = [
      ...validateClusterIp(service, old, context),
      ...validateLabels(spec["selector"], "spec.selector"),
    ];
    const type = textAt(spec, "type");
    if (!TYPES.includes(type)) causes.push(unsupportedValue("spec.type", type, TYPES));
    const ports = listAt(spec, "ports");
    if (ports.length === 0 && type !== "ExternalName" && textAt(spec, "clusterIP") !== NONE)
      causes.push(required("spec.ports"));
    if (type === "ExternalName" && textAt(spec, "externalName") === "") causes.push(required("spec.externalName"));
    for (const [index, port] of ports.entries()) {
      causes.push(...validatePort(port, `spec.ports[${index}]`, ports.length > 1));
    }
    for (const [index, ip] of textsAt(spec, "externalIPs").entries()) {
      if (findIp(ip) === undefined)
        causes.push(invalidValue(`spec.externalIPs[${index}]`, ip, "must be a valid IP address"));
    }
    return causes;
  },
};
