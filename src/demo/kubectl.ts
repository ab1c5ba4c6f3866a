import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { demoError } from "./errors.ts";

const run = promisify(execFile);

/** The real kubectl, on the demo's cluster. */
export class Kubectl {
  readonly #path: string;
  readonly #kubeconfig: string;
  readonly #signal: AbortSignal;

  constructor(options: { path: string; kubeconfig: string; signal: AbortSignal }) {
    this.#path = options.path;
    this.#kubeconfig = options.kubeconfig;
    this.#signal = options.signal;
  }

  /** Runs kubectl with `args`; returns what it printed. Throws `DEMO_KUBECTL` with its words when it fails. */
  async run(...args: string[]): Promise<string> {
    try {
      const { stdout } = await run(this.#path, ["--kubeconfig", this.#kubeconfig, ...args], {
        signal: this.#signal,
        maxBuffer: 256 * 1024 * 1024,
        timeout: 60_000,
      });
      return stdout;
    } catch (cause) {
      const said = cause instanceof Error && "stderr" in cause ? String(cause.stderr).trim() : "";
      throw demoError("DEMO_KUBECTL", `kubectl ${args.join(" ")} failed: ${said}`, { cause });
    }
  }

  /** Runs kubectl with `-o json`. The caller names the part of the object that it reads. */
  async json<T>(...args: string[]): Promise<T> {
    return JSON.parse(await this.run(...args, "-o", "json")) as T; // the API server's answer, of a kind the caller asked for
  }

  /** Applies objects. */
  async apply(objects: readonly object[], write: (text: string) => Promise<string>): Promise<string> {
    const file = await write(objects.map((object) => JSON.stringify(object)).join("\n---\n"));
    return this.run("apply", "--validate=false", "-f", file);
  }
}
