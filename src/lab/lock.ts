import { connect, createServer, type Server } from "node:net";
import { sleep, type Clock } from "#base/clock";
import { labError } from "./errors.ts";
import type { LabLayout } from "./layout.ts";

const RETRY_MS = 100;
const GREETING_DEADLINE_MS = 500;

/**
 * Holds a lab for one command at a time: an abstract Unix socket, which the kernel gives up with its process and which
 * leaves no file. Whoever connects is told the holder's pid. Waits for the holder `waitMs` and says so, then throws `LAB_BUSY`.
 */
export async function lockLab(
  lab: LabLayout,
  options: { clock: Clock; waitMs: number; signal: AbortSignal; note: (text: string) => void },
): Promise<AsyncDisposable> {
  const address = `\0veil-lab/${lab.name}`;
  const endMs = options.clock.monotonic() + options.waitMs;
  for (let tries = 0; ; tries++) {
    const server = await tryListen(address);
    if (server !== undefined) {
      return {
        [Symbol.asyncDispose]: () =>
          new Promise((resolve) => {
            server.close(() => resolve());
          }),
      };
    }
    if (options.clock.monotonic() >= endMs) {
      const holder = await askHolder(address, options.clock);
      throw labError("LAB_BUSY", `another command works on lab ${lab.name}${holder}`, { details: { name: lab.name } });
    }
    if (tries === 0)
      options.note(`waiting for another command on lab ${lab.name}${await askHolder(address, options.clock)}`);
    await sleep(options.clock, RETRY_MS, options.signal);
  }
}

async function tryListen(address: string): Promise<Server | undefined> {
  const server = createServer((socket) => {
    socket.on("error", () => {});
    socket.end(String(process.pid));
  });
  return new Promise((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) => {
      if (error.code === "EADDRINUSE") resolve(undefined);
      else reject(error);
    });
    server.listen(address, () => {
      server.unref();
      resolve(server);
    });
  });
}

async function askHolder(address: string, clock: Clock): Promise<string> {
  return new Promise((resolve) => {
    const socket = connect(address).setEncoding("utf8");
    let said = "";
    const finish = (): void => {
      cancel();
      socket.destroy();
      resolve(/^\d+$/.test(said) ? ` (pid ${said})` : "");
    };
    const cancel = clock.after(GREETING_DEADLINE_MS, finish);
    socket.on("data", (text: string) => {
      said += text;
    });
    socket.on("end", finish).on("error", finish);
  });
}
