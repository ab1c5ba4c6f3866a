import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { labError } from "./errors.ts";
import { findStat, type ProcessId } from "./processes.ts";
import type { LabLayout } from "./layout.ts";

/** What a lab is meant to be; written before anything of it exists. */
export interface LabSpec {
  /** Start script of the copy of Veil that made it. */
  readonly program: string;
  readonly nodes: number;
  /** Port of the API on 127.0.0.1. */
  readonly port: number;
  /** True when the port was asked for; otherwise another may be taken when it is in use at a repair. */
  readonly fixedPort: boolean;
  /** `wireguard-go` for tunnels between the nodes. Undefined: none are made. */
  readonly wireguard?: string | undefined;
}

/** One role that the supervisor keeps running. */
export interface RoleSpec {
  /** `apiserver`, `controllers`, `kubelet-node1`, … */
  readonly name: string;
  readonly command: readonly string[];
  /** The node it belongs to; undefined for the control namespace. */
  readonly node: string | undefined;
  /** Gets the listening socket of the API as descriptor 3. */
  readonly inheritsListener: boolean;
}

/** What the supervisor does now; written whenever it changes. */
export interface SupervisorState {
  readonly supervisor: ProcessId;
  readonly roles: Readonly<Record<string, RoleState>>;
}

export interface RoleState extends ProcessId {
  /** How often it was started again after it had ended. */
  readonly restarts: number;
  /** How it ended the last time, for example `exit code 1` or `SIGKILL`. */
  readonly lastEnd: string | undefined;
}

/** The files in a lab's folder. */
export function stateFiles(lab: LabLayout) {
  const at = (name: string): string => `${lab.folder}/${name}`;
  return {
    spec: at("lab.json"),
    roles: at("roles.json"),
    state: at("state.json"),
    logs: at("logs"),
    log: (role: string) => at(`logs/${role}.log`),
    pid: (role: string) => at(`pids/${role}`),
    pids: at("pids"),
    namespaces: at("namespaces"),
  };
}

/** Writes a file so that a reader sees the old or the new content, never half of it. Throws `LAB_DISK_FULL`. */
export function writeWhole(file: string, content: string, mode = 0o600): void {
  const part = `${file}.part`;
  try {
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(part, content, { mode });
    renameSync(part, file);
  } catch (cause) {
    rmSync(part, { force: true });
    throw fileError(`write ${file}`, cause);
  }
}

/** Turns a failure of the file system into the lab's own. */
export function fileError(what: string, cause: unknown): Error {
  const code = cause instanceof Error && "code" in cause ? cause.code : undefined;
  const full = code === "ENOSPC" || code === "EDQUOT";
  return labError(full ? "LAB_DISK_FULL" : "LAB_STATE", `cannot ${what}`, { cause });
}

/** Reads a JSON file of the lab; undefined when there is none. Throws `LAB_STATE` when `check` does not accept it. */
function findJson<T>(file: string, check: (value: unknown) => value is T): T | undefined {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch {
    return undefined;
  }
  try {
    const value: unknown = JSON.parse(text);
    if (check(value)) return value;
  } catch (cause) {
    throw labError("LAB_STATE", `${file} is no JSON`, { cause });
  }
  throw labError("LAB_STATE", `${file} does not have the form that this version writes`);
}

/** The lab's specification; undefined when no `up` has come far enough to write it. */
export function findSpec(lab: LabLayout): LabSpec | undefined {
  return findJson(stateFiles(lab).spec, isLabSpec);
}

/** What the supervisor wrote last; undefined when there is nothing, or it cannot be read: then it is made anew. */
export function findState(lab: LabLayout): SupervisorState | undefined {
  try {
    return findJson(stateFiles(lab).state, isSupervisorState);
  } catch {
    return undefined;
  }
}

/** The roles that the supervisor shall run. */
export function findRoles(lab: LabLayout): readonly RoleSpec[] {
  return findJson(stateFiles(lab).roles, isRoleList) ?? [];
}

/** Which process last became this role; it may have ended. It wrote the file itself before it became the role. */
export function findRolePid(lab: LabLayout, role: string): ProcessId | undefined {
  const file = stateFiles(lab).pid(role);
  if (!existsSync(file)) return undefined;
  const stat = findStat(readFileSync(file, "utf8"));
  return stat === undefined ? undefined : { pid: stat.pid, startTicks: stat.startTicks };
}

const NSFS_MAGIC = 0x6e73_6673;
const TMPFS_MAGIC = 0x0102_1994;

/** True when the file holds a namespace (and is not just the empty file that was to hold one). */
export function holdsNamespace(path: string): boolean {
  return fileSystemType(path) === NSFS_MAGIC;
}

/** True when the lab's folder is its own memory file system, rather than a folder that was to become one. */
export function isFolderMounted(lab: LabLayout): boolean {
  try {
    return (
      readFileSync("/proc/self/mountinfo", "utf8").includes(` ${lab.folder} `) &&
      fileSystemType(lab.folder) === TMPFS_MAGIC
    );
  } catch {
    return false;
  }
}

function fileSystemType(path: string): number | undefined {
  try {
    return statfsSync(path).type;
  } catch {
    return undefined;
  }
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}

function isLabSpec(value: unknown): value is LabSpec {
  return (
    isRecord(value) &&
    typeof value["program"] === "string" &&
    Number.isInteger(value["nodes"]) &&
    Number.isInteger(value["port"]) &&
    typeof value["fixedPort"] === "boolean" &&
    ["string", "undefined"].includes(typeof value["wireguard"])
  );
}

function isProcessId(value: unknown): value is ProcessId {
  return isRecord(value) && Number.isInteger(value["pid"]) && Number.isInteger(value["startTicks"]);
}

function isSupervisorState(value: unknown): value is SupervisorState {
  return (
    isRecord(value) &&
    isProcessId(value["supervisor"]) &&
    isRecord(value["roles"]) &&
    Object.values(value["roles"]).every(isProcessId)
  );
}

function isRoleList(value: unknown): value is readonly RoleSpec[] {
  return (
    Array.isArray(value) &&
    value.every((role) => isRecord(role) && typeof role["name"] === "string" && Array.isArray(role["command"]))
  );
}
