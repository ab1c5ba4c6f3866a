import { spawn, type ChildProcess } from "node:child_process";
import { createInterface } from "node:readline";

/** Latencies of one beat, in microseconds. */
export interface Beat {
  readonly p50: number;
  readonly p99: number;
}

/** What does not say a beat within this time has come to a standstill. */
const PATIENCE_MS = 60_000;

/** A load generator (`load.ts beats` or `dials`) that runs until {@link Beats.stop}, and what it says. */
export class Beats {
  readonly #child: ChildProcess;
  #beats: Beat[] = [];
  #failure: Error | undefined;
  #told = Promise.withResolvers<void>();

  /** It dies with this process, however that dies. */
  constructor(words: readonly string[]) {
    const all = ["--pdeathsig", "KILL", ...words];
    const child = spawn("setpriv", all, { stdio: ["ignore", "pipe", "inherit"] });
    this.#child = child;
    createInterface({ input: child.stdout }).on("line", (line) => {
      this.#beats.push(JSON.parse(line) as Beat); // of load.ts
      this.#tell();
    });
    child.once("close", (code) => {
      this.#failure = new Error(`the load generator ended with ${code}: ${words.join(" ")}`);
      this.#tell();
    });
  }

  /** The next so many beats that begin from now on. */
  async take(count: number): Promise<readonly Beat[]> {
    this.#beats = [];
    const endMs = performance.now() + PATIENCE_MS;
    while (this.#beats.length <= count) {
      if (this.#failure !== undefined) throw this.#failure;
      if (performance.now() > endMs) throw new Error(`${this.#beats.length} beats in ${PATIENCE_MS} ms`);
      await Promise.race([this.#told.promise, new Promise((resolve) => setTimeout(resolve, 1_000))]);
    }
    return this.#beats.slice(1, count + 1); // the first began before
  }

  stop(): void {
    this.#child.kill("SIGKILL");
  }

  #tell(): void {
    this.#told.resolve();
    this.#told = Promise.withResolvers();
  }
}
