import { openNetns, runCommand as runProgram } from "#linux";
import { labError } from "./errors.ts";
import { netnsPath } from "./layout.ts";

/** No program that changes something of a lab takes longer; one that hangs must not hang the lab. */
const DEADLINE_MS = 60_000;

/** How a program ended. */
export interface CommandResult {
  /** Exit status; 128 when a signal ended it. */
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/**
 * Runs a system program to its end, in the network namespace of that name when one is given. A failing exit status is an
 * outcome; throws when the program cannot be started, or hangs.
 */
export async function tryCommand(command: readonly string[], input = "", netns?: string): Promise<CommandResult> {
  const [program = "", ...args] = command;
  using handle = netns === undefined ? undefined : openNetns(netnsPath(netns));
  const signal = AbortSignal.timeout(DEADLINE_MS);
  const place = handle === undefined ? {} : { netns: handle };
  const { status = 128, stdout, stderr } = await runProgram({ program, args, input, signal, ...place });
  return { code: status, stdout, stderr };
}

const KERNEL_LACKS =
  /Operation not supported|Unknown device type|No such device|Protocol not supported|Function not implemented|Operation not permitted|Permission denied/i;

/** Runs a system program. Throws `LAB_KERNEL`, `LAB_DISK_FULL` or `LAB_COMMAND` with its own words; returns what it printed. */
export async function runCommand(command: readonly string[], input = "", netns?: string): Promise<string> {
  const { code, stdout, stderr } = await tryCommand(command, input, netns);
  if (code === 0) return stdout;
  const said = stderr.trim().replaceAll(/\s*\n\s*/g, "; ");
  const details = { command: command.join(" "), code };
  const what = `${command.slice(0, 4).join(" ")} failed: ${said === "" ? `exit status ${code}` : said}`;
  if (/No space left/i.test(said)) throw labError("LAB_DISK_FULL", what, { details });
  throw labError(KERNEL_LACKS.test(said) ? "LAB_KERNEL" : "LAB_COMMAND", what, { details });
}

/** Runs lines of `ip` inside a namespace, all in one process; stops at the first that fails. */
export async function runIp(netns: string, lines: readonly string[]): Promise<void> {
  if (lines.length === 0) return;
  await runCommand(["ip", "-batch", "-"], lines.map((line) => `${line}\n`).join(""), netns);
}
