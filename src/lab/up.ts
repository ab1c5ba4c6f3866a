import { spawn } from "node:child_process";
import { accessSync, closeSync, constants, existsSync, mkdirSync, openSync } from "node:fs";
import { delimiter, join } from "node:path";
import { sleep } from "#base/clock";
import { findCodedError } from "#base/errors";
import { parseIp } from "#base/ip";
import { ADDRESS_IN_USE, openListener } from "#linux";
import { runCommand } from "./commands.ts";
import { labNetns, LOCK_WAIT_MS, removeLab, removeNodes, type LabContext } from "./down.ts";
import { labError } from "./errors.ts";
import { MAX_NODES, nodeLayouts, type LabLayout, type NodeLayout } from "./layout.ts";
import { lockLab } from "./lock.ts";
import { checkNft, ensureControl, ensureNode, ensureSwitch, routePods } from "./network.ts";
import { ensureNodeNamespaces } from "./node-namespaces.ts";
import { isRunning, LAB_VARIABLE } from "./processes.ts";
import { allRoles, apiserverRole } from "./roles.ts";
import {
  fileError,
  findRoles,
  findSpec,
  findState,
  isFolderMounted,
  stateFiles,
  writeWhole,
  type LabSpec,
  type RoleSpec,
} from "./state.ts";
import { endRoles } from "./supervisor.ts";
import {
  credentialsOfNodes,
  forgetNodes,
  installVeil,
  tail,
  waitForApi,
  waitForNodes,
  waitForRoles,
  waitForVeil,
} from "./install.ts";

/** What to bring up. */
export interface UpOptions {
  /** Default: as many as the lab has, two for a new one. */
  readonly nodes?: number | undefined;
  /** Port of the API on 127.0.0.1. Default: the one that the lab has, any free one for a new one. */
  readonly port?: number | undefined;
  /** The `wireguard-go` that runs tunnels between the nodes. Default: as the lab has it, none for a new one. */
  readonly wireguard?: string | undefined;
}

const DEFAULT_NODES = 2;
/** Size at which the lab's memory file system (state of the API, logs) is full. It takes only what is used. */
const FOLDER_BYTES = 1 << 30;
const PROGRAMS = ["ip", "nft", "nsenter", "unshare", "mount", "umount"];

/**
 * Brings a lab up, or repairs and completes one that is there; does nothing where everything is as it should be.
 * A new lab that cannot be completed, or is interrupted, is removed again; of one that was there before, nothing is.
 * It is ready when the promise resolves.
 */
export async function bringUp(context: LabContext, options: UpOptions): Promise<void> {
  const { lab, clock, signal } = context;
  checkMachine(context);
  await using _ = await lockLab(lab, { clock, signal, waitMs: LOCK_WAIT_MS, note: context.progress.note });
  const before = findSpec(lab);
  const spec = plan(context, before, options);
  try {
    await build(context, before, spec);
  } catch (error) {
    const keep = findCodedError(error)?.code === "LAB_ROLE_FAILED"; // its logs tell why
    if (!keep) await undo(context, before, spec);
    throw error;
  }
}

/** Takes back what this run has made: the whole lab, or the nodes that a lab has got in addition. */
async function undo({ lab, clock, progress }: LabContext, before: LabSpec | undefined, spec: LabSpec): Promise<void> {
  const added = nodeLayouts(lab, spec.nodes).slice(before?.nodes ?? 0);
  if (added.length === 0) return;
  await progress.step("what was made is removed again", async () => {
    if (before === undefined) {
      await removeLab(lab, clock);
      return;
    }
    const now = { ...(findSpec(lab) ?? before), nodes: before.nodes };
    writeSpec(lab, now);
    writeRoles(lab, allRoles(lab, now));
    await removeNodes(lab, added, clock);
    await forgetNodes({ lab, clock }, added);
  });
}

/** Refuses before anything is made. */
function checkMachine(context: LabContext): void {
  if (process.getuid?.() !== 0) {
    throw labError("LAB_NOT_ROOT", "a lab makes network namespaces and mounts, which needs root");
  }
  const folders = (context.env["PATH"] ?? "").split(delimiter);
  const missing = PROGRAMS.filter((name) => !folders.some((folder) => isExecutable(join(folder, name))));
  if (missing.length > 0) throw labError("LAB_COMMAND_MISSING", `cannot find ${missing.join(", ")}`);
  for (const kind of ["net", "mnt", "uts"]) {
    if (!existsSync(`/proc/self/ns/${kind}`)) throw labError("LAB_KERNEL", `the kernel has no ${kind} namespaces`);
  }
}

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** What the lab shall be. Throws when its name is taken, or the number of nodes cannot be. */
function plan(context: LabContext, before: LabSpec | undefined, options: UpOptions): LabSpec {
  checkName(context, before);
  const had: Omit<LabSpec, "program"> = before ?? { nodes: 0, port: 0, fixedPort: false };
  const nodes = options.nodes ?? (had.nodes || DEFAULT_NODES);
  if (!Number.isInteger(nodes) || nodes < 1 || nodes > MAX_NODES) {
    throw labError("LAB_NODES", `a lab cannot have ${nodes} nodes`);
  }
  if (nodes < had.nodes) {
    throw labError("LAB_NODES", `lab ${context.lab.name} has ${had.nodes} nodes and cannot shrink to ${nodes}`);
  }
  const { program } = context;
  const { port, wireguard = had.wireguard } = options;
  const wanted = { ...had, program, nodes, ...(wireguard !== undefined && { wireguard }) };
  return port === undefined ? wanted : { ...wanted, port, fixedPort: true };
}

function checkName({ lab, program }: LabContext, before: LabSpec | undefined): void {
  if (before !== undefined && before.program !== program) {
    throw labError("LAB_NAME_TAKEN", `lab ${lab.name} was brought up by ${before.program}`);
  }
  const [stranger] = labNetns(lab);
  // A lab's folder is made before its first namespace and removed after its last.
  if (stranger !== undefined && !existsSync(lab.folder)) {
    throw labError("LAB_NAME_TAKEN", `a namespace ${stranger} exists, but no lab ${lab.name}`);
  }
}

async function build(context: LabContext, before: LabSpec | undefined, wanted: LabSpec): Promise<void> {
  const { lab, progress, signal } = context;
  await ensureFolder(lab);
  writeSpec(lab, wanted);
  await ensureSwitch(lab);
  signal.throwIfAborted();
  const [spec] = await together(context, (inner) => [
    controlPlane(inner, before, wanted),
    nodesWithoutRoles(inner, wanted),
  ]);
  signal.throwIfAborted();
  await routePods(lab, spec.nodes);
  writeRoles(lab, allRoles(lab, spec));
  await together(context, (inner) => [
    progress.step("nodes ready", () => waitForNodes(inner, spec)),
    progress.step("Veil ready", async () => {
      await installVeil(inner, spec);
      await waitForVeil(inner, spec);
    }),
  ]);
  // What the API says may be of the time before a repair.
  await waitForRoles(context);
}

/** Answers the specification with the port that the API has. */
async function controlPlane(context: LabContext, before: LabSpec | undefined, wanted: LabSpec): Promise<LabSpec> {
  const { lab, progress } = context;
  return progress.step("API ready", async () => {
    await ensureControl(lab);
    const spec = await ensureSupervisor(context, { before, spec: wanted });
    await waitForApi(context, spec);
    await credentialsOfNodes(context, spec);
    return spec;
  });
}

async function nodesWithoutRoles(context: LabContext, spec: LabSpec): Promise<void> {
  const { lab, progress } = context;
  const nodes = nodeLayouts(lab, spec.nodes);
  await progress.step(`networks and namespaces of ${nodes.map((node) => node.name).join(", ")} made`, async () => {
    await together(context, () => [
      checkNft(lab.switchNetns),
      ...nodes.map((node) => ensureNode(lab, node)),
      ...nodes.map((node) => ensureNodeNamespaces(lab, node, programRoot(spec.program))),
    ]);
  });
}

/**
 * Does things at the same time; when one fails, the others are told to stop and waited for (nobody may still be making
 * something while it is being removed), and its failure is thrown.
 */
async function together<const Work extends readonly Promise<unknown>[]>(
  context: LabContext,
  start: (context: LabContext) => Work,
): Promise<{ [Key in keyof Work]: Awaited<Work[Key]> }> {
  const stop = new AbortController();
  const signal = AbortSignal.any([context.signal, stop.signal]);
  const work = start({ ...context, signal });
  let first: { error: unknown } | undefined;
  for (const each of work) {
    each.catch((error: unknown) => {
      first ??= { error };
      stop.abort(new Error("another part failed"));
    });
  }
  await Promise.allSettled(work);
  if (first !== undefined) throw first.error;
  return Promise.all(work);
}

async function ensureFolder(lab: LabLayout): Promise<void> {
  try {
    mkdirSync(lab.folder, { recursive: true, mode: 0o755 });
  } catch (cause) {
    throw fileError(`make ${lab.folder}`, cause);
  }
  if (isFolderMounted(lab)) return;
  await runCommand(["mount", "-t", "tmpfs", "-o", `mode=755,size=${FOLDER_BYTES}`, "veil-lab", lab.folder]);
  // Files that hold mount namespaces can only be mounted where mounts are not passed on.
  await runCommand(["mount", "--make-private", lab.folder]);
}

function writeSpec(lab: LabLayout, spec: LabSpec): void {
  writeWhole(stateFiles(lab).spec, JSON.stringify(spec));
}

function writeRoles(lab: LabLayout, roles: readonly RoleSpec[]): void {
  if (JSON.stringify(findRoles(lab)) === JSON.stringify(roles)) return;
  writeWhole(stateFiles(lab).roles, JSON.stringify(roles));
}

/** The folder of the copy of Veil that a start script belongs to. */
function programRoot(program: string): string {
  return program.replace(/\/bin\/veil$/, "");
}

/** Starts the supervisor unless it runs; returns the specification with the port that the API has. */
async function ensureSupervisor(
  context: LabContext,
  { before, spec }: { before: LabSpec | undefined; spec: LabSpec },
): Promise<LabSpec> {
  const { lab, clock } = context;
  const state = findState(lab);
  if (before !== undefined && state !== undefined && isRunning(state.supervisor)) {
    if (spec.port === before.port) return spec;
    throw labError("LAB_PORT_IN_USE", `lab ${lab.name} is up on port ${before.port}; take it down to change the port`);
  }
  await endRoles(lab, clock); // the API server of the last supervisor holds the port
  using listener = listen(spec);
  const actual = { ...spec, port: listener.port };
  writeSpec(lab, actual);
  writeRoles(lab, [apiserverRole(lab, actual)]);
  mkdirSync(stateFiles(lab).logs, { recursive: true });
  const log = openSync(stateFiles(lab).log("supervisor"), "a");
  try {
    const child = spawn(spec.program, ["lab", "supervise", "--name", lab.name], {
      stdio: ["ignore", log, log, listener.fd],
      env: { ...context.env, [LAB_VARIABLE]: lab.name },
      cwd: "/",
      detached: true,
    });
    child.unref();
    await waitForSupervisor(context, child.pid ?? 0);
  } finally {
    closeSync(log);
  }
  return actual;
}

function listen(spec: LabSpec): ReturnType<typeof openListener> {
  const host = parseIp("127.0.0.1");
  try {
    return openListener(host, spec.port);
  } catch (cause) {
    if (findCodedError(cause)?.details["errno"] !== ADDRESS_IN_USE) throw cause;
    if (!spec.fixedPort) return openListener(host, 0);
    throw labError("LAB_PORT_IN_USE", `port ${spec.port} on 127.0.0.1 is in use`, { cause });
  }
}

const SUPERVISOR_DEADLINE_MS = 60_000;
const POLL_MS = 10;

async function waitForSupervisor({ lab, clock, signal }: LabContext, pid: number): Promise<void> {
  const endMs = clock.monotonic() + SUPERVISOR_DEADLINE_MS;
  for (;;) {
    const state = findState(lab);
    if (state?.supervisor.pid === pid && isRunning(state.supervisor)) return;
    if (clock.monotonic() > endMs) {
      const log = stateFiles(lab).log("supervisor");
      throw labError("LAB_ROLE_FAILED", `the supervisor did not start; its log is ${log}: ${tail(log)}`);
    }
    await sleep(clock, POLL_MS, signal);
  }
}

/** The node that a name means. Throws `LAB_NOT_UP` or `LAB_NO_SUCH_PLACE`. */
export function findNode(lab: LabLayout, name: string): NodeLayout {
  const spec = findSpec(lab);
  if (spec === undefined) throw labError("LAB_NOT_UP", `there is no lab ${lab.name}`);
  const node = nodeLayouts(lab, spec.nodes).find((other) => other.name === name);
  if (node === undefined) throw labError("LAB_NO_SUCH_PLACE", `lab ${lab.name} has no node ${name}`);
  return node;
}
