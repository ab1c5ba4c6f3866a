import { spawn, type ChildProcess } from "node:child_process";
import {
  closeSync,
  copyFileSync,
  mkdirSync,
  openSync,
  readdirSync,
  rmSync,
  statSync,
  truncateSync,
  watch,
} from "node:fs";
import { basename } from "node:path";
import { Backoff } from "#base/backoff";
import { every, sleep, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { Random } from "#base/random";
import type { Service } from "#base/service";
import type { LabLayout } from "./layout.ts";
import { findProcess, isRunning, LAB_VARIABLE, signalProcess, type ProcessId } from "./processes.ts";
import { findRolePid, findRoles, stateFiles, writeWhole, type RoleSpec, type RoleState } from "./state.ts";

/** A role that ends within this time of its start is not started again at once, but after a delay. */
const QUICK_END_MS = 1_000;
const RESTART = { initialMs: 100, maxMs: 3_000 };
/** A role's log is kept up to this size, and once more the same beside it as `.1`. */
const MAX_LOG_BYTES = 8 << 20;
const LOG_CHECK_MS = 5_000;
const PREDECESSOR_DEADLINE_MS = 3_000;

/**
 * Writes which process it is before it becomes the role: at no moment does a role run that no file names.
 * The line of /proc/PID/stat carries the pid and the start time, and both outlive `exec`.
 */
const NAME_YOURSELF = 'read -r stat </proc/$$/stat && printf "%s\\n" "$stat" >"$0" && exec "$@"';

interface Role {
  spec: RoleSpec;
  child: ChildProcess | undefined;
  state: RoleState | undefined;
  readonly backoff: Backoff;
  /** Aborted when the role is no longer wanted. */
  readonly stop: AbortController;
  readonly ended: Promise<void>;
}

/** What the supervisor works with. */
export interface SupervisorOptions {
  readonly lab: LabLayout;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  /** Descriptor of the API's listening socket on 127.0.0.1. */
  readonly listenerFd: number;
  /** Environment of the roles. */
  readonly env: Readonly<Record<string, string | undefined>>;
}

/**
 * Keeps the lab's roles running: those that `roles.json` names, no others. It is the one process of a lab that is not a
 * role. When it is killed, the roles go on without it; the next one, which `veil lab up` starts, replaces them.
 */
export class Supervisor implements Service {
  readonly name = "lab-supervisor";
  readonly #options: SupervisorOptions;
  readonly #files: ReturnType<typeof stateFiles>;
  readonly #roles = new Map<string, Role>();
  #stopWatching = (): void => {};

  constructor(options: SupervisorOptions) {
    this.#options = options;
    this.#files = stateFiles(options.lab);
  }

  async start(): Promise<void> {
    mkdirSync(this.#files.logs, { recursive: true });
    mkdirSync(this.#files.pids, { recursive: true });
    await endRoles(this.#options.lab, this.#options.clock);
    const watcher = watch(this.#options.lab.folder, (_, file) => {
      if (file === basename(this.#files.roles)) this.#reconcile();
    });
    watcher.on("error", () => {}); // the folder has gone: the lab is being taken down, and so is this process
    const stopTrimming = every(this.#options.clock, LOG_CHECK_MS, () => this.#trimLogs());
    this.#stopWatching = () => {
      watcher.close();
      stopTrimming();
    };
    this.#reconcile();
    this.#writeState();
  }

  async drain(deadlineMs: number): Promise<void> {
    this.#stopWatching();
    const roles = [...this.#roles.values()];
    for (const role of roles) this.#end(role);
    await Promise.race([
      Promise.all(roles.map((role) => role.ended)),
      sleep(this.#options.clock, deadlineMs).then(() => {
        for (const role of roles) role.child?.kill("SIGKILL");
      }),
    ]);
  }

  /** Starts what is wanted and does not run, ends what runs and is not wanted, replaces what is wanted otherwise. */
  #reconcile(): void {
    let wanted: readonly RoleSpec[];
    try {
      wanted = findRoles(this.#options.lab);
    } catch (error) {
      this.#options.log.error({ error: messageOf(error) }, "roles cannot be read, those that run go on");
      return;
    }
    for (const [name, role] of this.#roles) {
      const spec = wanted.find((other) => other.name === name);
      if (spec !== undefined && JSON.stringify(spec) === JSON.stringify(role.spec)) continue;
      this.#roles.delete(name);
      this.#end(role);
      this.#options.log.info({ name }, "role is no longer wanted as it was");
      if (spec !== undefined) void role.ended.then(() => this.#reconcile());
    }
    for (const spec of wanted) if (!this.#roles.has(spec.name)) this.#run(spec);
  }

  #run(spec: RoleSpec): void {
    const stop = new AbortController();
    const { promise, resolve } = Promise.withResolvers<void>();
    const role: Role = {
      spec,
      child: undefined,
      state: undefined,
      backoff: new Backoff(RESTART, this.#options.random),
      stop,
      ended: promise,
    };
    this.#roles.set(spec.name, role);
    void this.#keepRunning(role).finally(() => {
      this.#writeState();
      resolve();
    });
  }

  async #keepRunning(role: Role): Promise<void> {
    const { clock, log } = this.#options;
    for (let restarts = 0; !role.stop.signal.aborted; restarts++) {
      const startedMs = clock.monotonic();
      const end = await this.#runOnce(role, restarts).catch(messageOf); // no room for a log, for example
      if (role.stop.signal.aborted) return;
      log.warn({ name: role.spec.name, end, restarts }, "role has ended");
      if (role.state !== undefined) role.state = { ...role.state, lastEnd: end };
      this.#writeState();
      if (clock.monotonic() - startedMs >= QUICK_END_MS) role.backoff.reset();
      else await sleep(clock, role.backoff.next(), role.stop.signal).catch(() => {});
    }
  }

  /** Resolves with how it ended. */
  async #runOnce(role: Role, restarts: number): Promise<string> {
    const { lab, listenerFd } = this.#options;
    const { spec } = role;
    const log = openSync(this.#files.log(spec.name), "a");
    try {
      const child = spawn("/bin/sh", ["-c", NAME_YOURSELF, this.#files.pid(spec.name), ...spec.command], {
        stdio: ["ignore", log, log, ...(spec.inheritsListener ? [listenerFd] : [])],
        // A role that starts must not change the modules under those that run.
        env: { ...this.#options.env, [LAB_VARIABLE]: lab.name, VEIL_NO_INSTALL: "1" },
        cwd: "/",
        detached: true,
      });
      role.child = child;
      const ended = new Promise<string>((resolve) => {
        child.once("error", (error) => resolve(messageOf(error)));
        child.once("exit", (code, signal) => resolve(signal ?? `exit code ${code}`));
      });
      const found = child.pid === undefined ? undefined : findProcess(child.pid);
      if (found !== undefined) {
        role.state = {
          pid: found.pid,
          startTicks: found.startTicks,
          restarts,
          lastEnd: role.state?.lastEnd,
        };
      }
      this.#writeState();
      return await ended;
    } finally {
      closeSync(log);
    }
  }

  #end(role: Role): void {
    role.stop.abort();
    role.child?.kill("SIGTERM");
  }

  #writeState(): void {
    const self = findProcess(process.pid);
    const running = [...this.#roles].flatMap(([name, { state }]) =>
      state === undefined ? [] : [[name, state] as const],
    );
    const state = {
      supervisor: { pid: process.pid, startTicks: self?.startTicks ?? 0 },
      roles: Object.fromEntries(running),
    };
    try {
      writeWhole(this.#files.state, JSON.stringify(state));
    } catch (error) {
      // A full or vanished folder is no reason to end the roles; the pids also stand in files of their own.
      this.#options.log.error({ error: messageOf(error) }, "state cannot be written");
    }
  }

  #trimLogs(): void {
    for (const { spec } of this.#roles.values()) trimLog(this.#files.log(spec.name));
  }
}

/** Ends the roles that a supervisor before this one has left running, so that ports and states have one owner. */
export async function endRoles(lab: LabLayout, clock: Clock): Promise<void> {
  const { pids } = stateFiles(lab);
  let names: string[];
  try {
    names = readdirSync(pids);
  } catch {
    return;
  }
  const left = names.flatMap((name): ProcessId[] => {
    const id = findRolePid(lab, name);
    return id === undefined || !isRunning(id) ? [] : [id];
  });
  for (const id of left) signalProcess(id, "SIGTERM");
  const endMs = clock.monotonic() + PREDECESSOR_DEADLINE_MS;
  while (left.some(isRunning)) {
    if (clock.monotonic() > endMs) for (const id of left) signalProcess(id, "SIGKILL");
    await sleep(clock, 20);
  }
  for (const name of names) rmSync(`${pids}/${name}`, { force: true });
}

function trimLog(file: string): void {
  try {
    if (statSync(file).size < MAX_LOG_BYTES) return;
    copyFileSync(file, `${file}.1`);
    truncateSync(file); // the role writes in append mode: it goes on at the new end
  } catch {
    // the log is not there yet, or the folder is full: tried again in a few seconds
  }
}
