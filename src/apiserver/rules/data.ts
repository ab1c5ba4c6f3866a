import type { Rules } from "../kinds.ts";
import {
  defaultTo,
  isRecord,
  listAt,
  recordAt,
  sameJson,
  textAt,
  textsAt,
  valueAt,
  type KubeObject,
} from "../object.ts";
import { findIp, isV6 } from "#base/ip";
import { forbiddenValue, invalidValue, required, unsupportedValue, type Cause } from "../status.ts";

const DATA_KEY = /^[-._a-zA-Z0-9]{1,253}$/;
const MAX_DATA_BYTES = 1024 * 1024;

function validateData(object: Readonly<KubeObject>, fields: readonly string[]): readonly Cause[] {
  const causes: Cause[] = [];
  let bytes = 0;
  for (const field of fields) {
    for (const [key, value] of Object.entries(recordAt(object, field))) {
      if (!DATA_KEY.test(key) || key === "." || key === "..") {
        causes.push(
          invalidValue(`${field}[${key}]`, key, "a valid key must consist of alphanumeric characters, '-', '_' or '.'"),
        );
      }
      if (typeof value === "string") bytes += value.length;
    }
  }
  if (bytes > MAX_DATA_BYTES * 1.4)
    causes.push({
      reason: "FieldValueInvalid",
      field: fields[0] ?? "",
      message: `Too long: may not be more than ${MAX_DATA_BYTES} bytes`,
    });
  return causes;
}

function validateImmutable(
  object: KubeObject,
  old: Readonly<KubeObject> | undefined,
  fields: readonly string[],
): readonly Cause[] {
  if (old?.["immutable"] !== true) return [];
  return [...fields, "immutable"]
    .filter((field) => !sameJson(object[field], old[field]))
    .map((field) => forbiddenValue(field, "field is immutable when `immutable` is set"));
}

export const configMapRules: Rules = {
  validate: (map, old) => [
    ...validateData(map, ["data", "binaryData"]),
    ...validateImmutable(map, old, ["data", "binaryData"]),
  ],
};

function foldStringData(secret: KubeObject): void {
  const texts = secret["stringData"];
  delete secret["stringData"];
  defaultTo(secret, "type", "Opaque");
  if (!isRecord(texts)) return;
  const encoded = Object.entries(texts).map(([key, value]) => [key, Buffer.from(String(value)).toString("base64")]);
  secret["data"] = { ...recordAt(secret, "data"), ...Object.fromEntries(encoded) };
}

export const secretRules: Rules = {
  prepareCreate: foldStringData,
  prepareUpdate: foldStringData,
  validate(secret, old) {
    const causes = [...validateData(secret, ["data"]), ...validateImmutable(secret, old, ["data"])];
    if (old !== undefined && secret["type"] !== old["type"])
      causes.push(invalidValue("type", secret["type"], "field is immutable"));
    if (secret["type"] === "kubernetes.io/tls") {
      for (const key of ["tls.crt", "tls.key"]) {
        if (valueAt(secret, "data", key) === undefined) causes.push(required(`data[${key}]`));
      }
    }
    return causes;
  },
};

export const eventRules: Rules = {
  validate(event) {
    const namespace = textAt(event, "involvedObject", "namespace") || "default";
    return namespace === event.metadata.namespace
      ? []
      : [
          invalidValue(
            "involvedObject.namespace",
            textAt(event, "involvedObject", "namespace"),
            "does not match event.namespace",
          ),
        ];
  },
};

export const leaseRules: Rules = {
  validate(lease) {
    const duration = valueAt(lease, "spec", "leaseDurationSeconds");
    return typeof duration === "number" && duration <= 0
      ? [invalidValue("spec.leaseDurationSeconds", duration, "must be greater than 0")]
      : [];
  },
};

const ADDRESS_TYPES = ["IPv4", "IPv6", "FQDN"];

function validateEndpoint(endpoint: unknown, type: string, field: string): readonly Cause[] {
  const addresses = textsAt(endpoint, "addresses");
  if (addresses.length === 0) return [required(`${field}.addresses`, "must contain at least 1 address")];
  if (type === "FQDN") return [];
  return addresses.flatMap((address, index) => {
    const ip = findIp(address);
    return ip !== undefined && isV6(ip) === (type === "IPv6")
      ? []
      : [invalidValue(`${field}.addresses[${index}]`, address, `must be an ${type} address`)];
  });
}

export const sliceRules: Rules = {
  prepareCreate: defaultPorts,
  prepareUpdate: defaultPorts,
  validate(slice, old) {
    const type = textAt(slice, "addressType");
    const causes: Cause[] = [];
    if (!ADDRESS_TYPES.includes(type)) causes.push(unsupportedValue("addressType", type, ADDRESS_TYPES));
    if (old !== undefined && type !== old["addressType"])
      causes.push(invalidValue("addressType", type, "field is immutable"));
    for (const [index, endpoint] of listAt(slice, "endpoints").entries()) {
      causes.push(...validateEndpoint(endpoint, type, `endpoints[${index}]`));
    }
    return causes;
  },
};

function defaultPorts(slice: KubeObject): void {
  for (const port of listAt(slice, "ports")) {
    if (!isRecord(port)) continue;
    defaultTo(port, "name", "");
    defaultTo(port, "protocol", "TCP");
  }
}
