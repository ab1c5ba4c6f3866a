/**
 * Builds the program that the container runtime executes (deploy/cni) into the user's cache, by the digest of its sources. A static
 * binary: it runs on any node. Images and tests take it from here; `node tools/cni-plugin.ts` prints its path.
 */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { mkdir, mkdtemp, rename, rm } from "node:fs/promises";
import { homedir } from "node:os";
import { delimiter, dirname, join, resolve } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);
const sources = resolve(import.meta.dirname, "../deploy/cni");
/** Go's own archive puts it there, outside of many a PATH. */
const PATH = [process.env["PATH"], "/usr/local/go/bin"].join(delimiter);

/** The path of veil-cni, which is built first where that was not done. Rejects with what Go says. */
export async function ensureCniPlugin(): Promise<string> {
  const cache = process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache");
  const path = join(cache, "veil", `cni-plugin-${digest()}`, "veil-cni");
  if (existsSync(path)) return path;
  await mkdir(dirname(path), { recursive: true });
  // Made in a folder of its own and moved when it is finished: several may do this at once.
  const work = await mkdtemp(join(dirname(path), ".make-"));
  try {
    const made = join(work, "veil-cni");
    const env = { ...process.env, PATH, CGO_ENABLED: "0", GOFLAGS: "-buildvcs=false" };
    await run("go", ["build", "-trimpath", "-ldflags", "-s -w", "-o", made, "."], { cwd: sources, env });
    await rename(made, path);
  } catch (cause) {
    throw new Error("cannot build veil-cni", { cause });
  } finally {
    await rm(work, { recursive: true, force: true });
  }
  return path;
}

function digest(): string {
  const hash = createHash("sha256");
  for (const name of readdirSync(sources).toSorted()) hash.update(name).update(readFileSync(join(sources, name)));
  return hash.digest("hex").slice(0, 16);
}

if (import.meta.main) process.stdout.write(`${await ensureCniPlugin()}\n`);
