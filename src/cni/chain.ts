import { cniError } from "./errors.ts";
import { CNI_VERSIONS, parseFields, type Fields } from "./request.ts";

/** Name of the plugin: of its file, and of its entry's `type`. */
export const PLUGIN_NAME = "veil-cni";
/** How the names of our own lists end. `-` sorts before `.`: such a list comes before the file that it is made of. */
const OWN_SUFFIX = "-veil.conflist";
/** Our lists remember the types that came from their source; what else is in them was added by others, and is kept. */
const SOURCE_FIELD = "veil.dev/source";

/** The plugin's entry in the node's configuration; docs/cni.md has a table. */
export interface PluginEntry {
  readonly socket: string;
  readonly namespace: string;
  readonly strict: boolean;
  /** Undefined: the API is not asked while the agent is away. */
  readonly credentials: string | undefined;
}

type Plugin = Fields & { readonly type: string };

/** The file that the container runtime would read if we were not there: the first by name. Undefined when there is none. */
export function findSource(names: readonly string[]): string | undefined {
  return names
    .filter((name) => isConfiguration(name) && !isOwn(name))
    .toSorted()
    .at(0);
}

/** Whether a container runtime reads a file of that name. */
export function isConfiguration(name: string): boolean {
  return /\.(conf|conflist|json)$/.test(name);
}

/** Whether a file of the node's configuration is ours. */
export function isOwn(name: string): boolean {
  return name.endsWith(OWN_SUFFIX);
}

/** The name of the list that is made of a source. */
export function ownNameFor(source: string): string {
  return source.replace(/\.\w+$/, OWN_SUFFIX);
}

/**
 * Makes our list: what the source says, then what others have added to our list as it stands, then our entry. Throws
 * `CNI_CONFIG_INVALID` or `CNI_CONFIG_VERSION`, naming file and field.
 */
export function deriveList(
  source: { readonly name: string; readonly text: string },
  existing: string | undefined,
  entry: PluginEntry,
): string {
  const { plugins, ...list } = readSource(source);
  const own = { type: PLUGIN_NAME, ...entry };
  const others = plugins.filter(({ type }) => type !== PLUGIN_NAME);
  const types = others.map(({ type }) => type);
  const all = [...others, ...addedByOthers(existing, types), own];
  return `${JSON.stringify({ ...list, [SOURCE_FIELD]: types, plugins: all }, undefined, 2)}\n`;
}

/** Our entry of a list of ours; undefined when it is not the last there, or no list at all. */
export function readEntry(list: string): PluginEntry | undefined {
  const plugins = parseFields(list)?.["plugins"];
  const last: unknown = Array.isArray(plugins) ? plugins.at(-1) : undefined;
  if (!isPlugin(last) || last.type !== PLUGIN_NAME) return undefined;
  const { socket, namespace, strict, credentials } = last;
  if (typeof socket !== "string" || typeof namespace !== "string" || typeof strict !== "boolean") return undefined;
  return { socket, namespace, strict, credentials: typeof credentials === "string" ? credentials : undefined };
}

/** What others have put into our list since we wrote it. */
function addedByOthers(existing: string | undefined, types: readonly string[]): readonly Plugin[] {
  const list = existing === undefined ? undefined : parseFields(existing);
  const before = list?.[SOURCE_FIELD];
  const plugins = list?.["plugins"];
  if (!Array.isArray(before) || !Array.isArray(plugins)) return [];
  return plugins.filter(isPlugin).filter(({ type }) => ![...before, ...types, PLUGIN_NAME].includes(type));
}

/** Reads a list (`.conflist`), or one plugin as a list of one. */
function readSource({ name, text }: { name: string; text: string }): Fields & { readonly plugins: readonly Plugin[] } {
  const wrong = (why: string): Error => cniError("CNI_CONFIG_INVALID", `${name} ${why}`, { details: { file: name } });
  const fields = parseFields(text);
  if (fields === undefined) throw wrong("is no JSON object");
  const { cniVersion } = fields;
  if (typeof cniVersion !== "string" || !CNI_VERSIONS.includes(cniVersion)) {
    const message = `${name}: cniVersion is not one of ${CNI_VERSIONS.join(", ")}`;
    throw cniError("CNI_CONFIG_VERSION", message, { details: { file: name } });
  }
  if (typeof fields["name"] !== "string") throw wrong("has no name");
  if (!name.endsWith(".conflist")) {
    if (!isPlugin(fields)) throw wrong("has no type");
    return { cniVersion, name: fields["name"], plugins: [fields] };
  }
  const { plugins } = fields;
  if (!Array.isArray(plugins) || plugins.length === 0) throw wrong("has no plugins");
  const broken = plugins.findIndex((plugin) => !isPlugin(plugin));
  if (broken >= 0) throw wrong(`has a plugin without type: plugins[${broken}]`);
  return { ...fields, plugins: plugins.filter(isPlugin) };
}

function isPlugin(value: unknown): value is Plugin {
  return typeof value === "object" && value !== null && "type" in value && typeof value.type === "string";
}
