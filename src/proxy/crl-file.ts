import { createHash } from "node:crypto";
import { watch, type FSWatcher } from "node:fs";
import { readFile } from "node:fs/promises";
import { dirname } from "node:path";
import { every, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { Service } from "#base/service";
import { parseCrls, type Crl } from "#x509";

/** The folder has to be quiet for this long: a ConfigMap is swapped in several steps. */
const DEBOUNCE_MS = 2_000;
/** Looked at this often also without a sign: the folder may not have been there. */
const LOOK_MS = 30_000;

/** What a file of revocation lists is followed with. */
export interface CrlFileOptions {
  readonly path: string;
  /** Puts the lists in force; resolves when they are. */
  readonly spread: (crls: readonly Crl[]) => Promise<void>;
  readonly clock: Clock;
  readonly log: Log;
}

/**
 * Follows a file of revocation lists (PEM or DER). A file that is missing or empty holds none; one that cannot be read
 * changes nothing: what was in force stays. Its folder is watched, since Kubernetes swaps the link to it.
 */
export class CrlFile implements Service {
  readonly name = "revocation lists";
  readonly #options: CrlFileOptions;
  #digest = digestOf(new Uint8Array());
  #watcher: FSWatcher | undefined;
  #cancelLook = (): void => {};
  #stopLooking = (): void => {};
  #running: Promise<void> = Promise.resolve();

  constructor(options: CrlFileOptions) {
    this.#options = options;
  }

  /** Resolves when what is in the file now is in force. */
  async start(): Promise<void> {
    this.#watch();
    await this.#look();
    this.#stopLooking = every(this.#options.clock, LOOK_MS, () => {
      if (this.#watcher === undefined) this.#watch();
      this.#lookNow();
    });
  }

  async drain(): Promise<void> {
    this.#cancelLook();
    this.#stopLooking();
    this.#watcher?.close();
    await this.#running;
  }

  #watch(): void {
    const folder = dirname(this.#options.path);
    try {
      const watcher = watch(folder, { persistent: false }, () => this.#schedule());
      watcher.on("error", () => {
        watcher.close();
        this.#watcher = undefined;
      });
      this.#watcher = watcher;
    } catch (error) {
      this.#options.log.warn({ folder, error: messageOf(error) }, "folder of revocation lists cannot be watched");
    }
  }

  #schedule(): void {
    this.#cancelLook();
    this.#cancelLook = this.#options.clock.after(DEBOUNCE_MS, () => this.#lookNow());
  }

  #lookNow(): void {
    this.#running = this.#running.then(async () => this.#look());
  }

  async #look(): Promise<void> {
    const { path, spread, log } = this.#options;
    try {
      const bytes = await readOrEmpty(path);
      const digest = digestOf(bytes);
      if (digest === this.#digest) return;
      const crls = parseCrls(bytes, path);
      await spread(crls);
      this.#digest = digest;
      const revoked = crls.reduce((sum, { serials }) => sum + serials.size, 0);
      log.info({ path, lists: crls.length, revoked }, "revocation lists in force");
    } catch (error) {
      log.error({ path, error: messageOf(error) }, "revocation lists cannot be used, those before stay in force");
    }
  }
}

async function readOrEmpty(path: string): Promise<Uint8Array> {
  try {
    return await readFile(path);
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return new Uint8Array();
    throw error;
  }
}

function digestOf(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}
