import { openNetns, runCommand as runProgram, type CommandOutcome } from "#linux";
import { labError } from "./errors.ts";
import { netnsPath } from "./layout.ts";

/** No program that changes something of a lab takes longer; one that hangs must not hang the lab. */
const DEADLINE_MS = 20_000;

/** What a program is given besides its arguments. */
export interface CommandOptions {
  readonly input?: string;
  /** Name of the network namespace to run it in. */
  readonly netns?: string;
}

/** Runs a system program to its end. A failing exit status is an outcome; throws when it cannot be started. */
export async function tryCommand(command: readonly string[], options: CommandOptions = {}): Promise<CommandOutcome> {
  const [program = "", ...args] = command;
  const { input = "", netns } = options;
  using handle = netns === undefined ? undefined : openNetns(netnsPath(netns));
  const signal = AbortSignal.timeout(DEADLINE_MS);
  return await runProgram({ program, args, input, signal, ...(handle === undefined ? {} : { netns: handle }) });
}

const KERNEL_LACKS =
  /Operation not supported|Unknown device type|No such device|Protocol not supported|Function not implemented|Operation not permitted|Permission denied/i;

/** Runs a system program. Throws `LAB_KERNEL`, `LAB_DISK_FULL` or `LAB_COMMAND` with its own words; returns what it printed. */
export async function runCommand(command: readonly string[], options: CommandOptions = {}): Promise<string> {
  const { status, stdout, stderr } = await tryCommand(command, options);
  if (status === 0) return stdout;
  const said = stderr.trim().replaceAll(/\s*\n\s*/g, "; ");
  const details = { command: command.join(" "), status };
  const what = `${command.slice(0, 4).join(" ")} failed: ${said === "" ? `exit status ${status ?? "unknown"}` : said}`;
  if (/No space left/i.test(said)) throw labError("LAB_DISK_FULL", what, { details });
  throw labError(KERNEL_LACKS.test(said) ? "LAB_KERNEL" : "LAB_COMMAND", what, { details });
}

/** Runs lines of `ip` inside a namespace, all in one process; stops at the first that fails. */
export async function runIp(netns: string, lines: readonly string[]): Promise<void> {
  if (lines.length === 0) return;
  await runCommand(["ip", "-batch", "-"], { netns, input: lines.map((line) => `${line}\n`).join("") });
}
