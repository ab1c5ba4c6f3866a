import { watch, type FSWatcher } from "node:fs";
import { chmod, copyFile, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { sleep, type Clock } from "#base/clock";
import { CodedError, messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { CellSet } from "#base/metrics";
import type { Service } from "#base/service";
import { deriveList, findSource, isOwn, ownNameFor, PLUGIN_NAME, type PluginEntry } from "./chain.ts";
import { cniError } from "./errors.ts";

/** How often everything is looked at, whether or not the kernel has told of a change. */
const LOOK_MS = 10_000;
/** Between two looks, so that two programs that undo each other's work cost little. */
const PAUSE_MS = 500;

/** Where the plugin goes, and what it is told. */
export interface InstallerOptions {
  /** The node's CNI configuration, usually `/etc/cni/net.d`. */
  readonly confDir: string;
  /** The node's CNI plugins, usually `/opt/cni/bin`. */
  readonly binDir: string;
  /** The plugin's file, to be copied from. */
  readonly plugin: string;
  readonly entry: PluginEntry;
  /** Text of the file `entry.credentials`. */
  readonly credentials: () => Promise<string>;
  readonly clock: Clock;
  readonly log: Log;
  /** Cells of `cniMetrics`. */
  readonly cells: CellSet;
  /** Called with the failure when the plugin cannot be chained although there is a network, or for another reason than before. */
  readonly onProblem?: (code: string, failure: unknown) => void;
}

/** Whether the container runtime runs the plugin. */
export type InstallStatus =
  | { readonly chained: true; readonly file: string }
  | { readonly chained: false; readonly code: string; readonly reason: string };

/**
 * Keeps the plugin on the node: its file, and a list in the node's CNI configuration that comes before the network plugin's own,
 * which is not touched. Whatever is changed or removed is put right. Stopping it leaves the plugin in place; see {@link uninstall}.
 */
export class CniInstaller implements Service {
  readonly name = "cni installer";
  readonly #options: InstallerOptions;
  readonly #stop = new AbortController();
  #status: InstallStatus = { chained: false, code: "CNI_NO_CONFIG", reason: "not looked yet" };
  #watcher: FSWatcher | undefined;
  #running: Promise<void> = Promise.resolve();
  /** The plugin's file on the node, as it was when its content was compared. */
  #compared = "";
  #kept = true;
  #changed = Promise.withResolvers<void>();

  constructor(options: InstallerOptions) {
    this.#options = options;
  }

  get status(): InstallStatus {
    return this.#status;
  }

  /** True: as at the start. False: the plugin is taken off the node, and kept off. */
  keep(kept: boolean): void {
    this.#kept = kept;
    this.#changed.resolve();
  }

  /** True once the plugin was taken off the node. */
  get removed(): boolean {
    return !this.#status.chained && this.#status.code === "CNI_REMOVED";
  }

  /** Resolves when it was tried once; a node where it is not possible (yet) is reported by `status`, and tried again. */
  async start(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    await this.#look();
    this.#running = this.#follow();
  }

  async drain(_deadlineMs: number): Promise<void> {
    this.#stop.abort(new Error("the agent stops"));
    this.#changed.resolve();
    await this.#running;
    this.#watcher?.close();
  }

  async #follow(): Promise<void> {
    const { clock } = this.#options;
    const { signal } = this.#stop;
    while (!signal.aborted) {
      this.#watch();
      const cancel = clock.after(LOOK_MS, () => this.#changed.resolve());
      await this.#changed.promise;
      cancel();
      this.#changed = Promise.withResolvers();
      if (signal.aborted) return;
      await this.#look();
      await sleep(clock, PAUSE_MS, signal).catch(() => undefined);
    }
  }

  /** Tries again with each look: the directory may come later, or be another one by now. */
  #watch(): void {
    if (this.#watcher !== undefined) return;
    const forget = (): void => {
      this.#watcher?.close();
      this.#watcher = undefined;
    };
    try {
      this.#watcher = watch(this.#options.confDir, { persistent: false }, () => this.#changed.resolve());
      this.#watcher.once("error", forget);
    } catch {
      forget();
    }
  }

  async #look(): Promise<void> {
    const { log, cells } = this.#options;
    const before = this.#status;
    try {
      if (!this.#kept) await this.#remove();
      await this.#copyPlugin();
      const { file, wrote } = await install(this.#options);
      this.#status = { chained: true, file };
      if (wrote) {
        cells.bind("veil_cni_repairs_total", {}).value++;
        log.info({ file }, "cni plugin chained");
      }
    } catch (error) {
      const code = error instanceof CodedError ? error.code : "CNI_UNEXPECTED";
      this.#status = { chained: false, code, reason: messageOf(error) };
      if (before.chained || before.reason !== this.#status.reason) {
        log.warn(this.#status, "cni plugin is not chained");
        if (code !== "CNI_REMOVED" && code !== "CNI_NO_CONFIG") this.#options.onProblem?.(code, error);
      }
    }
    cells.bind("veil_cni_chained", {}).value = this.#status.chained ? 1 : 0;
  }

  /** Rejects, as the plugin is not chained then. */
  async #remove(): Promise<never> {
    const { confDir, binDir, entry } = this.#options;
    await uninstall({ confDir, binDir, credentials: entry.credentials });
    this.#compared = "";
    throw cniError("CNI_REMOVED", "the plugin was taken off the node");
  }

  async #copyPlugin(): Promise<void> {
    const { plugin, binDir } = this.#options;
    const target = join(binDir, PLUGIN_NAME);
    if ((await mark(target)) === this.#compared) return;
    if (!(await readFile(plugin)).equals(await readIfThere(target))) {
      await replace(target, (temporary) => copyFile(plugin, temporary), 0o755);
    }
    this.#compared = await mark(target);
  }
}

/** What changes when a file is another one, without reading it. */
async function mark(path: string): Promise<string> {
  const found = await stat(path).catch(() => undefined);
  return found === undefined ? "not there" : `${found.ino} ${found.size} ${found.mtimeMs}`;
}

/** Puts what is missing in place; answers our list and whether it had to be written. */
async function install(options: InstallerOptions): Promise<{ file: string; wrote: boolean }> {
  const { confDir, entry, credentials } = options;
  if (entry.credentials !== undefined) await writeIfChanged(entry.credentials, await credentials(), 0o600);
  const names = await inDirectory(confDir, () => readdir(confDir));
  const source = findSource(names);
  const own = source === undefined ? undefined : ownNameFor(source);
  const wrote = source !== undefined && own !== undefined && (await writeList(options, { names, source, own }));
  // Lists whose source is gone, or is not the first any more: whoever removed the network of the node meant it.
  for (const name of names) if (isOwn(name) && name !== own) await inDirectory(confDir, () => rm(join(confDir, name)));
  if (own !== undefined) return { file: join(confDir, own), wrote };
  throw cniError("CNI_NO_CONFIG", `there is no CNI configuration in ${confDir}`, { details: { folder: confDir } });
}

async function writeList(
  { confDir, entry }: InstallerOptions,
  { names, source, own }: { readonly names: readonly string[]; readonly source: string; readonly own: string },
): Promise<boolean> {
  const file = join(confDir, own);
  const existing = names.includes(own) ? (await readIfThere(file)).toString() : undefined;
  const text = (await readIfThere(join(confDir, source))).toString();
  return writeIfChanged(file, deriveList({ name: source, text }, existing, entry), 0o600);
}

/**
 * Takes the plugin off the node: its lists, then its files. The network plugin's own configuration is in force again at once. Answers
 * what was removed. To be called when no installer runs any more. Rejects with `CNI_FOLDER`.
 */
export async function uninstall(from: {
  readonly confDir: string;
  readonly binDir: string;
  readonly credentials: string | undefined;
}): Promise<readonly string[]> {
  const { confDir, binDir, credentials } = from;
  const names = await inDirectory(confDir, () => readdir(confDir));
  const lists = names.filter(isOwn).map((name) => join(confDir, name));
  const removed: string[] = [];
  for (const path of [...lists, join(binDir, PLUGIN_NAME), credentials]) {
    if (path === undefined || (await mark(path)) === "not there") continue;
    await inDirectory(dirname(path), () => rm(path));
    removed.push(path);
  }
  return removed;
}

async function writeIfChanged(path: string, text: string, mode: number): Promise<boolean> {
  if ((await readIfThere(path)).toString() === text) return false;
  await replace(path, (temporary) => writeFile(temporary, text, { mode, flush: true }), mode);
  return true;
}

/** All or nothing: readers see the old file or the new one. The temporary name is none that a container runtime reads. */
async function replace(path: string, write: (temporary: string) => Promise<void>, mode: number): Promise<void> {
  const temporary = `${path}.veil-tmp`;
  await inDirectory(dirname(path), async () => {
    await write(temporary);
    await chmod(temporary, mode);
    await rename(temporary, path);
  });
}

async function inDirectory<T>(folder: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    throw cniError("CNI_FOLDER", `cannot work in ${folder}`, { cause, details: { folder } });
  }
}

/** What is in a file; nothing when it is not there. */
async function readIfThere(path: string): Promise<Buffer> {
  return readFile(path).catch(() => Buffer.alloc(0));
}
