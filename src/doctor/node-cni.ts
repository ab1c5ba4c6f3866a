import { constants } from "node:fs";
import { access, readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { sleep, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import { deriveList, findSource, isConfiguration, isOwn, ownNameFor, PLUGIN_NAME, readEntry } from "#cni";
import { voiceOf, type Finding } from "./finding.ts";

const voice = voiceOf("cni");
/** Long enough to see two programs that undo each other's work: the agent puts its list right within moments. */
const WATCH_MS = 2000;
/** What Cilium makes of other programs' configuration when it is to be alone. */
const CILIUM_BACKUP = /\.cilium_bak$/;

/** The folders of a node, as they were found. */
export interface CniState {
  readonly confDir: string;
  readonly binDir: string;
  /** Names and texts of all files in the configuration's folder. */
  readonly files: ReadonlyMap<string, string>;
  /** Folders that cannot be written. */
  readonly readOnly: readonly string[];
  /** Whether the plugin's program is there and can be run. */
  readonly plugin: "there" | "missing" | "not executable";
  /** Files that changed while they were watched. */
  readonly changed: readonly string[];
  /** The agent's socket, when the list names one that is not there. */
  readonly missingSocket: string | undefined;
}

/** Looks at a node's CNI configuration, twice. Never rejects. */
export async function examineCni(
  folders: { readonly confDir: string; readonly binDir: string },
  clock: Clock,
  signal: AbortSignal,
): Promise<readonly Finding[]> {
  try {
    return checkCni(await readState(folders, clock, signal));
  } catch (error) {
    return [voice.notChecked(messageOf(error))];
  }
}

/** Whether the container runtime runs the plugin last, for every pod. */
export function checkCni(state: CniState): readonly Finding[] {
  const { confDir, files, changed } = state;
  const names = [...files.keys()];
  const source = findSource(names);
  const findings = [...checkFolders(state), ...checkBackups(state)];
  if (source === undefined) {
    findings.push(
      voice.problem(
        `there is no network plugin's configuration in ${confDir}`,
        "install a network plugin, or name its folder by --cni-conf-dir",
      ),
    );
    return findings;
  }
  findings.push(...checkOrder(state, names), ...checkList(state, source));
  if (changed.length > 0) {
    findings.push(
      voice.warning(
        `${changed.join(", ")} in ${confDir} changed while it was looked at`,
        "look which program rewrites it again and again, and let it leave Veil's list alone",
      ),
    );
  }
  return findings.length > 0
    ? findings
    : [voice.ok(`${ownNameFor(source)} comes first, and ${PLUGIN_NAME} last in it`)];
}

function checkFolders({ readOnly, plugin, binDir, missingSocket }: CniState): Finding[] {
  const findings = readOnly.map((folder) =>
    voice.problem(
      `${folder} cannot be written: the agent cannot keep the plugin there`,
      "mount it writable, or set cni.confDir and cni.binDir to folders that are",
    ),
  );
  if (plugin !== "there") {
    findings.push(
      voice.problem(
        `${join(binDir, PLUGIN_NAME)} is ${plugin}: no pod can start`,
        "the agent puts it there (--cni-bin-dir must be the runtime's own folder); look at its log",
      ),
    );
  }
  if (missingSocket !== undefined) {
    findings.push(
      voice.problem(
        `the agent's socket ${missingSocket} is not there: pods that are to be enrolled cannot start`,
        "look whether the agent of this node runs",
      ),
    );
  }
  return findings;
}

function checkBackups({ files }: CniState): Finding[] {
  const own = [...files.keys()].filter((name) => CILIUM_BACKUP.test(name) && isOwn(name.replace(CILIUM_BACKUP, "")));
  if (own.length === 0) return [];
  return [
    voice.problem(`Cilium has put Veil's list away (${own.join(", ")})`, "set cni.exclusive=false in Cilium's values"),
  ];
}

/** The runtime reads the first file by name. */
function checkOrder({ confDir }: CniState, names: readonly string[]): Finding[] {
  const [first] = names.filter(isConfiguration).toSorted();
  if (first === undefined || isOwn(first)) return [];
  const own = names.some(isOwn);
  const what = own ? `${first} comes before Veil's list in ${confDir}` : `Veil's list is not in ${confDir}`;
  return [
    voice.problem(
      `${what}: new pods start without being held until they are protected`,
      own
        ? `look why ${first} is there; the agent makes a list that comes before it`
        : "let the agent install the plugin (cni.enabled, --cni-conf-dir); look at /cni on its metrics port",
    ),
  ];
}

function checkList({ files }: CniState, source: string): Finding[] {
  const name = ownNameFor(source);
  const text = files.get(name);
  if (text === undefined) return [];
  const entry = readEntry(text);
  const again = "look who changed it; an agent that is ready writes it anew";
  if (entry === undefined) return [voice.problem(`${name} is not JSON, or does not have ${PLUGIN_NAME} last`, again)];
  try {
    if (deriveList({ name: source, text: files.get(source) ?? "" }, text, entry) === text) return [];
    return [voice.problem(`${name} is not what ${source} makes it`, again)];
  } catch (error) {
    return [
      voice.problem(
        `the network plugin's own configuration cannot be used: ${messageOf(error)}`,
        "mend the named file; Veil's list stays as it is until then",
      ),
    ];
  }
}

async function readState(
  { confDir, binDir }: { readonly confDir: string; readonly binDir: string },
  clock: Clock,
  signal: AbortSignal,
): Promise<CniState> {
  const before = await marksOf(confDir);
  await sleep(clock, WATCH_MS, signal);
  const after = await marksOf(confDir);
  const names = [...after.keys()];
  const texts = await Promise.all(names.map((name) => readFile(join(confDir, name), "utf8").catch(() => "")));
  const files = new Map(names.map((name, i) => [name, texts[i] ?? ""]));
  const own = names.find(isOwn);
  const socket = own === undefined ? undefined : readEntry(files.get(own) ?? "")?.socket;
  const writable = async (folder: string): Promise<string[]> => ((await can(folder, constants.W_OK)) ? [] : [folder]);
  return {
    confDir,
    binDir,
    files,
    readOnly: (await Promise.all([confDir, binDir].map(writable))).flat(),
    plugin: await pluginIn(binDir),
    changed: [...new Set([...before.keys(), ...names])].filter((name) => before.get(name) !== after.get(name)),
    missingSocket: socket === undefined || (await can(socket, constants.F_OK)) ? undefined : socket,
  };
}

/** What changes when a file is written or replaced. */
async function marksOf(folder: string): Promise<ReadonlyMap<string, string>> {
  const entries = await readdir(folder, { withFileTypes: true });
  const names = entries.filter((entry) => !entry.isDirectory()).map(({ name }) => name);
  const marks = await Promise.all(names.map((name) => stat(join(folder, name)).catch(() => undefined)));
  return new Map(names.map((name, i) => [name, `${marks[i]?.ino} ${marks[i]?.mtimeMs}`]));
}

async function pluginIn(binDir: string): Promise<CniState["plugin"]> {
  const program = join(binDir, PLUGIN_NAME);
  if (!(await can(program, constants.F_OK))) return "missing";
  return (await can(program, constants.X_OK)) ? "there" : "not executable";
}

async function can(path: string, mode: number): Promise<boolean> {
  return access(path, mode).then(
    () => true,
    () => false,
  );
}
