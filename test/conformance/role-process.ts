import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { createServer, type AddressInfo } from "node:net";
import { join, resolve } from "node:path";

const root = resolve(import.meta.dirname, "../..");

/** Looks every few milliseconds until `what` holds. */
export async function until(what: () => boolean | Promise<boolean>, ms = 60_000): Promise<void> {
  const end = performance.now() + ms;
  while (!(await what())) {
    if (performance.now() > end) throw new Error(`not within ${ms} ms: ${what.toString()}`);
    await new Promise((done) => setTimeout(done, 2));
  }
}

/** A port of loopback that nobody has now. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo; // a TCP server
  server.close();
  await once(server, "close");
  return port;
}

/** A role in a process of its own, ended with the test whatever happens. */
export class Role implements AsyncDisposable {
  readonly #args: readonly string[];
  #child: ChildProcess | undefined;
  #errors = "";

  constructor(...args: string[]) {
    this.#args = args;
  }

  async start(ready: () => Promise<boolean>): Promise<void> {
    const main = join(root, "src/main/veil.ts");
    const flags = ["--conditions=veil-source", "--disable-warning=DEP0111"];
    const child = spawn(process.execPath, [...flags, main, ...this.#args], { stdio: ["ignore", "ignore", "pipe"] });
    this.#child = child;
    child.stderr.on("data", (chunk: Buffer) => (this.#errors = (this.#errors + chunk.toString()).slice(-4000)));
    const end = performance.now() + 120_000;
    while (!(await ready().catch(() => false))) {
      if (child.exitCode !== null || performance.now() > end) {
        throw new Error(`veil ${this.#args.join(" ")} does not get ready (exit ${child.exitCode}): ${this.#errors}`);
      }
      await new Promise((done) => setTimeout(done, 20));
    }
  }

  /** Ends it at once, or, with SIGTERM, as Kubernetes does first. Resolves when it is gone. */
  async kill(signal: "SIGKILL" | "SIGTERM" = "SIGKILL"): Promise<void> {
    const child = this.#child;
    this.#child = undefined;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    child.kill(signal);
    await once(child, "exit");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }
}
