import type { Container, Pod } from "#kube";
import { kubeletError } from "./errors.ts";

/** Where the contents of ConfigMaps and Secrets come from. */
export interface ContentReader {
  /** Contents by key; undefined when there is no such object. */
  content(kind: ContentKind, namespace: string, name: string): Promise<Record<string, Buffer> | undefined>;
}

export type ContentKind = "configMap" | "secret";

/** What a pod may learn about itself. */
export interface DownwardFacts {
  readonly pod: Pod;
  readonly podIp: string;
  readonly hostIp: string;
}

type EnvVar = NonNullable<Container["env"]>[number];

/**
 * The variables of a container: `base`, then `envFrom`, then `env`, later ones over earlier ones; `$(NAME)` in values
 * stands for an earlier variable. Throws `KUBELET_ENVIRONMENT`, naming what is missing.
 */
export async function containerEnvironment(
  container: Container,
  facts: DownwardFacts,
  options: { base: Readonly<Record<string, string>>; reader: ContentReader },
): Promise<Record<string, string>> {
  const out: Record<string, string> = { ...options.base };
  for (const source of container.envFrom ?? []) {
    const kind = source.configMapRef === undefined ? "secret" : "configMap";
    const data = await dataOf(facts, options.reader, { kind, ref: source.configMapRef ?? source.secretRef ?? {} });
    for (const [key, value] of Object.entries(data ?? {})) out[`${source.prefix ?? ""}${key}`] = value;
  }
  for (const variable of container.env ?? []) {
    const value = await valueOf(variable, facts, options.reader);
    if (value !== undefined) out[variable.name] = expand(value, out);
  }
  return out;
}

/** Replaces `$(NAME)` by the variable; `$$` stands for `$`; a name that is unknown stays as it is. */
export function expand(text: string, variables: Readonly<Record<string, string>>): string {
  return text.replaceAll(/\$\$|\$\(([A-Za-z_.-][\w.-]*)\)/g, (all, name: string | undefined) => {
    if (name === undefined) return "$";
    return Object.hasOwn(variables, name) ? (variables[name] ?? all) : all;
  });
}

async function valueOf(variable: EnvVar, facts: DownwardFacts, reader: ContentReader): Promise<string | undefined> {
  const from = variable.valueFrom;
  if (from === undefined) return variable.value ?? "";
  if (from.fieldRef !== undefined) return needField(facts, from.fieldRef.fieldPath, `env ${variable.name}`);
  const [kind, ref] =
    from.configMapKeyRef === undefined
      ? (["secret", from.secretKeyRef] as const)
      : (["configMap", from.configMapKeyRef] as const);
  if (ref === undefined) {
    throw kubeletError("KUBELET_UNSUPPORTED", `env ${variable.name}: only fieldRef, configMapKeyRef and secretKeyRef`);
  }
  const value = (await dataOf(facts, reader, { kind, ref }))?.[ref.key];
  if (value === undefined && ref.optional !== true) {
    throw kubeletError("KUBELET_ENVIRONMENT", `env ${variable.name}: ${kind} ${ref.name ?? ""} has no key ${ref.key}`);
  }
  return value;
}

async function dataOf(
  facts: DownwardFacts,
  reader: ContentReader,
  source: { kind: ContentKind; ref: { name?: string; optional?: boolean } },
): Promise<Record<string, string> | undefined> {
  const namespace = facts.pod.metadata?.namespace ?? "default";
  const { name = "", optional = false } = source.ref;
  const data = await reader.content(source.kind, namespace, name);
  if (data === undefined && !optional) {
    throw kubeletError("KUBELET_ENVIRONMENT", `there is no ${source.kind} ${namespace}/${name}`);
  }
  return data && Object.fromEntries(Object.entries(data).map(([key, bytes]) => [key, bytes.toString("utf8")]));
}

/** A field of the pod as the downward API names it. Throws `KUBELET_UNSUPPORTED`. */
export function needField(facts: DownwardFacts, path: string, place: string): string {
  const value = findField(facts, path);
  if (value === undefined) throw kubeletError("KUBELET_UNSUPPORTED", `${place}: there is no field ${path}`);
  return value;
}

function findField({ pod, podIp, hostIp }: DownwardFacts, path: string): string | undefined {
  const { metadata = {}, spec } = pod;
  const simple: Readonly<Record<string, string | undefined>> = {
    "metadata.name": metadata.name,
    "metadata.namespace": metadata.namespace,
    "metadata.uid": metadata.uid,
    "metadata.labels": asLines(metadata.labels),
    "metadata.annotations": asLines(metadata.annotations),
    "spec.nodeName": spec?.nodeName,
    "spec.serviceAccountName": spec?.serviceAccountName ?? "default",
    "status.podIP": podIp,
    "status.podIPs": podIp,
    "status.hostIP": hostIp,
    "status.hostIPs": hostIp,
  };
  if (Object.hasOwn(simple, path)) return simple[path] ?? "";
  const keyed = /^metadata\.(labels|annotations)\['([^']+)'\]$/.exec(path);
  if (keyed === null) return undefined;
  const map = keyed[1] === "labels" ? metadata.labels : metadata.annotations;
  return map?.[keyed[2] ?? ""] ?? "";
}

function asLines(map: Readonly<Record<string, string>> | undefined): string {
  return Object.entries(map ?? {})
    .map(([key, value]) => `${key}=${JSON.stringify(value)}\n`)
    .join("");
}
