import { link, mkdir, open, readdir, readFile, unlink } from "node:fs/promises";
import { join } from "node:path";
import { systemRandom } from "#base/random";
import type { Signer } from "#x509";
import { AUTHORITY_PARTS, MemoryKeys, type AuthorityBackend, type AuthorityState } from "./backend.ts";
import { caError } from "./errors.ts";

const FILE = /^authority-(\d{1,9})\.json$/;
const KEPT_GENERATIONS = 2;

/**
 * An authority in a directory of root's (mode 0700): one file per generation, `authority-<n>.json`, mode 0600, of which the highest
 * counts. A generation appears whole, by a hard link that fails when another process was first; so a crash leaves the one before.
 */
export class DirectoryBackend implements AuthorityBackend {
  readonly place: string;
  readonly #directory: string;
  readonly #keys = new MemoryKeys();

  constructor(directory: string) {
    this.#directory = directory;
    this.place = `directory ${directory}`;
  }

  createSigner(kind: "root" | "intermediate"): Promise<Signer> {
    return this.#keys.create(kind);
  }

  async load(): Promise<{ state: AuthorityState; version: string } | undefined> {
    const newest = (await this.#generations()).at(-1);
    if (newest === undefined) return undefined;
    const place = join(this.#directory, fileName(newest));
    const text = await this.#attempt("read", () => readFile(place, "utf8"));
    return { state: this.#keys.parse(parseParts(text), place), version: String(newest) };
  }

  async create(state: AuthorityState): Promise<boolean> {
    return (await this.#generations()).length === 0 && this.#write(state, 1);
  }

  async replace(state: AuthorityState, version: string): Promise<boolean> {
    const generations = await this.#generations();
    if (String(generations.at(-1)) !== version) return false;
    if (!(await this.#write(state, Number(version) + 1))) return false;
    for (const old of generations.slice(0, 1 - KEPT_GENERATIONS || undefined)) {
      await this.#attempt("tidy", () => unlink(join(this.#directory, fileName(old))));
    }
    return true;
  }

  /** Numbers of the stored generations, ascending. */
  async #generations(): Promise<number[]> {
    const names = await this.#attempt("read", async () => {
      await mkdir(this.#directory, { recursive: true, mode: 0o700 });
      return readdir(this.#directory);
    });
    const numbers = names.map((name) => Number(FILE.exec(name)?.[1] ?? Number.NaN)).filter((number) => number >= 0);
    return numbers.toSorted((a, b) => a - b);
  }

  async #write(state: AuthorityState, generation: number): Promise<boolean> {
    const text = `${JSON.stringify(this.#keys.format(state), null, 2)}\n`;
    const draft = join(this.#directory, `.draft-${systemRandom.hex(8)}`);
    return this.#attempt("write", async () => {
      try {
        await using file = await open(draft, "wx", 0o600);
        await file.writeFile(text);
        await file.sync();
        await link(draft, join(this.#directory, fileName(generation)));
        await syncDirectory(this.#directory);
        return true;
      } catch (error) {
        if (error instanceof Error && "code" in error && error.code === "EEXIST") return false;
        throw error;
      } finally {
        await unlink(draft).catch(() => {}); // it may never have been made
      }
    });
  }

  async #attempt<T>(verb: string, work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (cause) {
      throw caError("CA_STORE", `cannot ${verb} the authority in ${this.place}`, {
        cause,
        details: { place: this.place },
      });
    }
  }
}

function fileName(generation: number): string {
  return `authority-${generation}.json`;
}

/** Reads what can be read; the parts that are missing then are named by `MemoryKeys.parse`. */
function parseParts(text: string): Record<string, string | undefined> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return {}; // not even JSON: every part is missing; the parser's own message could quote a key
  }
  const fields = new Map<string, unknown>(Object.entries(typeof value === "object" && value !== null ? value : {}));
  return Object.fromEntries(
    AUTHORITY_PARTS.map((name) => {
      const part = fields.get(name);
      return [name, typeof part === "string" ? part : undefined];
    }),
  );
}

async function syncDirectory(path: string): Promise<void> {
  await using directory = await open(path, "r");
  await directory.sync();
}
