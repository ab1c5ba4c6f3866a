import { cniError } from "./errors.ts";

/** Versions of the CNI specification that the plugin speaks; the helper in deploy/cni lists the same. */
export const CNI_VERSIONS: readonly string[] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

const COMMANDS = ["ADD", "CHECK", "DEL", "GC", "STATUS"] as const;

/** A command of the CNI specification that reaches the agent (VERSION does not). */
type CniCommand = (typeof COMMANDS)[number];

/** A pod as the container runtime names it. */
export interface CniPod {
  readonly namespace: string;
  readonly name: string;
  /** Undefined where the runtime does not tell it. */
  readonly uid: string | undefined;
}

/** What the container runtime asks of the plugin. */
export interface PluginRequest {
  readonly command: CniCommand;
  readonly cniVersion: string;
  /** Whether the node's configuration says that no pod starts without the agent. */
  readonly strict: boolean;
  /** Undefined for a container that is no pod of Kubernetes, and for commands without a container. */
  readonly pod: CniPod | undefined;
  /** The container's network namespace; empty where the command names none. */
  readonly netnsPath: string;
  /** The result of the plugins before, for ADD and CHECK. */
  readonly prevResult: Readonly<Record<string, unknown>>;
}

/** A JSON object. */
export type Fields = Readonly<Record<string, unknown>>;

/** CNI specification 1.1, section 2: what each command needs, and what it looks like. */
const VARIABLES: Readonly<Record<string, { readonly form: RegExp; readonly needed: readonly CniCommand[] }>> = {
  CNI_CONTAINERID: { form: /^[A-Za-z0-9][A-Za-z0-9_.-]*$/, needed: ["ADD", "CHECK", "DEL"] },
  CNI_NETNS: { form: /^\/[^\0]*$/, needed: ["ADD", "CHECK"] },
  CNI_IFNAME: { form: /^[^/:\s\0]{1,15}$/, needed: ["ADD", "CHECK", "DEL"] },
};
const MAX_TEXT_CHARACTERS = 4096;
/** Names of pods and of their namespaces. */
export const OBJECT_NAME = /^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/;
const UID = /^[\w-]{1,64}$/;

/**
 * Decodes what the helper sends: `{"env": {"CNI_COMMAND": …}, "config": "standard input, as it was"}`. Throws `CNI_REQUEST`,
 * `CNI_ENVIRONMENT`, `CNI_INPUT`, `CNI_VERSION` or `CNI_NOT_CHAINED`, naming the field.
 */
export function decodePluginRequest(body: string): PluginRequest {
  const request = parseFields(body);
  const env = asFields(request?.["env"]);
  const configText = request?.["config"];
  if (env === undefined || typeof configText !== "string") {
    throw cniError("CNI_REQUEST", "the request is not what veil-cni sends: it needs env and config");
  }
  const command = COMMANDS.find((known) => known === env["CNI_COMMAND"]);
  if (command === undefined) throw wrongVariable("CNI_COMMAND");
  for (const [name, { form, needed }] of Object.entries(VARIABLES)) {
    if (needed.includes(command) ? !isText(env[name], form) : env[name] !== undefined && !isText(env[name], /^[^\0]*$/))
      throw wrongVariable(name);
  }
  return {
    command,
    pod: decodePod(env["CNI_ARGS"]),
    netnsPath: typeof env["CNI_NETNS"] === "string" ? env["CNI_NETNS"] : "",
    ...decodeConfig(configText, command),
  };
}

/** Reads standard input of the plugin: its entry of the node's configuration, with what the runtime has added. */
function decodeConfig(text: string, command: CniCommand): Pick<PluginRequest, "cniVersion" | "strict" | "prevResult"> {
  const config = parseFields(text);
  if (config === undefined) throw cniError("CNI_INPUT", "the plugin's configuration is no JSON object");
  const { cniVersion, strict = false, prevResult } = config;
  if (typeof cniVersion !== "string" || !CNI_VERSIONS.includes(cniVersion)) {
    const details = { field: "cniVersion" };
    throw cniError("CNI_VERSION", `the configuration's cniVersion is not one of ${CNI_VERSIONS.join(", ")}`, {
      details,
    });
  }
  if (typeof strict !== "boolean") throw wrongField("strict");
  if (prevResult === undefined && (command === "ADD" || command === "CHECK")) {
    throw cniError("CNI_NOT_CHAINED", "there is no prevResult: the plugin is to be the last of a list");
  }
  const result = asFields(prevResult ?? {});
  if (result === undefined) throw wrongField("prevResult");
  return { cniVersion, strict, prevResult: result };
}

/** `K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart;K8S_POD_UID=…`. One that names half a pod is refused. */
function decodePod(args: unknown): CniPod | undefined {
  if (args === undefined) return undefined;
  if (!isText(args, /^[^\0]*$/)) throw wrongVariable("CNI_ARGS");
  const pairs = new Map(
    args.split(";").map((pair) => {
      const at = pair.indexOf("=");
      return at < 0 ? ([pair, ""] as const) : ([pair.slice(0, at), pair.slice(at + 1)] as const);
    }),
  );
  const [namespace, name, uid] = ["NAMESPACE", "NAME", "UID"].map((part) => pairs.get(`K8S_POD_${part}`) ?? "");
  if (namespace === "" && name === "") return undefined;
  if (!isText(namespace, OBJECT_NAME) || !isText(name, OBJECT_NAME)) throw wrongVariable("CNI_ARGS");
  return { namespace, name, uid: isText(uid, UID) ? uid : undefined };
}

/** Whether a value from outside is a text of this form, and no longer than any that is meant. */
export function isText(value: unknown, form: RegExp): value is string {
  return typeof value === "string" && value.length <= MAX_TEXT_CHARACTERS && form.test(value);
}

function wrongVariable(variable: string): Error {
  return cniError("CNI_ENVIRONMENT", `${variable} is missing or malformed`, { details: { variable } });
}

function wrongField(field: string): Error {
  return cniError("CNI_INPUT", `the configuration's field ${field} is malformed`, { details: { field } });
}

/** The JSON object that a text is; undefined for any other text. */
export function parseFields(text: string): Fields | undefined {
  try {
    return asFields(JSON.parse(text));
  } catch {
    return undefined;
  }
}

function asFields(value: unknown): Fields | undefined {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? { ...value } : undefined;
}
