import { spawn, type ChildProcess } from "node:child_process";
import { closeSync, openSync, readFileSync } from "node:fs";
import { enterCgroup } from "./cgroups.ts";
import { LOGS } from "./layout.ts";

/** A program of the cluster that runs. */
export interface Daemon {
  readonly name: string;
  /** How it ended, with the end of its log; undefined while it runs. */
  findEnd(): string | undefined;
  /** Kills it with SIGKILL and waits for its end. What it has started (shims, containers) lives on. */
  kill(): Promise<void>;
}

/** Where a daemon logs. */
export function logOf(name: string): string {
  return `${LOGS}/${name}.log`;
}

/** Where a daemon runs. */
export interface Place {
  /** The cgroup for it and all that it starts. */
  readonly cgroup: string;
  /** The words that run a command there. */
  readonly enter: readonly string[];
}

/** Starts a program that lives as long as this process at most: the kernel kills it when this process ends, however it ends. */
export function startDaemon(name: string, command: readonly string[], place: Place): Daemon {
  const log = openSync(logOf(name), "a");
  // The shell joins the cgroup, before there is a namespace in which it could not, and becomes the program.
  const words = ["-c", `${enterCgroup(place.cgroup)}; exec "$@"`, "sh", ...place.enter];
  words.push("setpriv", "--pdeathsig", "KILL", ...command);
  const child = spawn("sh", words, { stdio: ["ignore", log, log], detached: true });
  closeSync(log);
  const ended = new Promise<void>((resolve) => {
    child.once("close", () => resolve());
    child.once("error", () => resolve());
  });
  return {
    name,
    findEnd: () =>
      runs(child) ? undefined : `${name} has ended (${child.exitCode ?? child.signalCode}): ${lastWords(name)}`,
    async kill() {
      if (runs(child)) child.kill("SIGKILL");
      await ended;
    },
  };
}

function runs(child: ChildProcess): boolean {
  return child.exitCode === null && child.signalCode === null;
}

/** The end of a daemon's log. */
export function lastWords(name: string, lines = 12): string {
  return readFileSync(logOf(name), "utf8").trimEnd().split("\n").slice(-lines).join("\n").slice(-4000);
}
