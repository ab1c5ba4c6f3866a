import { spawn, type ChildProcess } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { sleep, type Clock } from "#base/clock";
import { captureError } from "./errors.ts";
import { decodePcap, type Packet } from "./pcap.ts";

/** What to capture, and where. */
export interface CaptureOptions {
  readonly interface: string;
  /** Path of the network namespace that has the interface; the caller's own when left out. */
  readonly netns?: string;
  /** A filter in tcpdump's language. Default: everything. */
  readonly filter?: string;
  /** Where to keep the capture. Default: a temporary file that is removed. */
  readonly file?: string;
  readonly clock: Clock;
}

/** A running capture. Exactly one of `stop` and dispose must be called; a second call does nothing. */
export interface Capture extends AsyncDisposable {
  /** Waits until what was sent has been seen, ends tcpdump and decodes. Throws `CAPTURE_LOST` when packets were dropped. */
  stop(): Promise<Packet[]>;
}

/** tcpdump hands packets over with this delay at the most (its read timeout) even when its buffer is not full. */
const SETTLE_MS = 150;
/** In immediate mode each packet has a place for the largest there is, 64 KiB: this buffer holds a thousand. */
const BUFFER_KIB = 65_536;
/** A capture that gets no processor for some hundred milliseconds on a busy machine loses packets. Without the right to it, `nice` only warns. */
const BEFORE_OTHERS = ["nice", "-n", "-15"];
const START_DEADLINE_MS = 5_000;

/** Starts tcpdump; resolves when it listens. Throws `CAPTURE_START` with tcpdump's own words. */
export async function startCapture(options: CaptureOptions): Promise<Capture> {
  const folder = options.file === undefined ? mkdtempSync(join(tmpdir(), "veil-capture-")) : undefined;
  const file = options.file ?? join(folder ?? "", "capture.pcap");
  const tcpdump = ["tcpdump", "--immediate-mode", "-n", "-s", "0", "-B", String(BUFFER_KIB)];
  tcpdump.push("-i", options.interface, "-w", file);
  if (options.filter !== undefined) tcpdump.push(options.filter);
  const inside = options.netns === undefined ? [] : ["nsenter", `--net=${options.netns}`];
  const [command = "", ...args] = [...inside, ...BEFORE_OTHERS, ...tcpdump];
  const child = spawn(command, args, { stdio: ["ignore", "ignore", "pipe"] });
  let said = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => (said += text));
  const ended = new Promise<void>((resolve) => {
    child.once("error", () => resolve()).once("close", () => resolve());
  });
  const clean = (): void => {
    if (folder !== undefined) rmSync(folder, { recursive: true, force: true });
  };
  const end = async (): Promise<void> => {
    child.kill("SIGINT");
    await ended;
  };
  try {
    await listening(child, { said: () => said, ended, clock: options.clock });
  } catch (error) {
    await end();
    clean();
    throw error;
  }
  return {
    async stop() {
      await sleep(options.clock, SETTLE_MS);
      await end();
      try {
        const dropped = Number(/(\d+) packets? dropped by kernel/.exec(said)?.[1] ?? 0);
        if (dropped > 0)
          throw captureError("CAPTURE_LOST", `the kernel dropped ${dropped} packets on ${options.interface}`);
        return decodePcap(readFileSync(file));
      } finally {
        clean();
      }
    },
    async [Symbol.asyncDispose]() {
      await end();
      clean();
    },
  };
}

async function listening(
  child: ChildProcess,
  state: { said: () => string; ended: Promise<void>; clock: Clock },
): Promise<void> {
  let over = false;
  void state.ended.then(() => (over = true));
  for (let waitedMs = 0; waitedMs < START_DEADLINE_MS; waitedMs += 5) {
    if (/listening on/.test(state.said())) return;
    if (over) break;
    await sleep(state.clock, 5);
  }
  const details = { pid: child.pid };
  throw captureError("CAPTURE_START", `tcpdump did not start: ${state.said().trim() || "it said nothing"}`, {
    details,
  });
}
