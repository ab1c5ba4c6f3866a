/**
 * Makes Veil's image as an OCI tar without Docker, for test clusters: `node --conditions=veil-source tools/image.ts TAG FILE`.
 * What is in it is what deploy/Dockerfile puts in: the packed npm package with its production modules, the CNI plugin, Node, nft and ip,
 * and the libraries that they load, from this machine's Debian packages.
 */
import { execFile } from "node:child_process";
import { cp, mkdir, mkdtemp, readFile, realpath, rename, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, dirname, join, relative, resolve } from "node:path";
import { promisify } from "node:util";
import { ensureCniPlugin } from "./cni-plugin.ts";
import { writeOciImage } from "./oci.ts";
import { billOfMaterials } from "./sbom.ts";

const run = promisify(execFile);
const checkout = resolve(import.meta.dirname, "..");
/** Where the package is in the image. */
const HOME = "opt/veil";
/** How the image starts, as deploy/Dockerfile says it too. */
export const ENTRYPOINT = ["/usr/local/bin/node", "--disable-warning=DEP0111", `/${HOME}/dist/main/veil.js`];
/** The system's programs that roles call. */
const PROGRAMS = ["/usr/sbin/nft", "/usr/sbin/ip", "/usr/bin/unshare"];
/** The user of roles that need no rights on their node. */
const NOBODY = 65_532;

/** An image to be made: `docker.io/local/veil:TAG`, as a tar. */
export interface Image {
  readonly tag: string;
  readonly file: string;
  /** What its programs say they are. Default: this checkout's version. */
  readonly version?: string;
}

/** Makes images of this checkout, which differ in their versions alone; answers their digests. Takes some seconds. */
export async function makeImages(images: readonly Image[]): Promise<string[]> {
  const root = await mkdtemp(join(tmpdir(), "veil-image-"));
  try {
    await addPackage(root);
    await addModules(root);
    await addPrograms(root);
    await addSystemFiles(root);
    const config = {
      Entrypoint: ENTRYPOINT,
      User: `${NOBODY}:${NOBODY}`,
      Env: ["PATH=/usr/local/bin:/usr/sbin:/usr/bin"],
    };
    const digests: string[] = [];
    for (const { tag, file, version } of images) {
      if (version !== undefined) await setVersion(root, version);
      await run("chmod", ["-R", "a+rX,go-w", root]); // the image is for all its users, whatever this machine's umask
      digests.push(await writeOciImage({ root, name: `docker.io/local/veil:${tag}`, config }, file));
    }
    return digests;
  } finally {
    await rm(root, { recursive: true, force: true });
  }
}

/** The files that npm would publish. */
async function addPackage(root: string): Promise<void> {
  const work = join(root, "pack");
  await mkdir(work, { recursive: true });
  await run("npm", ["pack", "--silent", "--pack-destination", work], { cwd: checkout });
  await run("sh", ["-c", "tar -xzf *.tgz"], { cwd: work });
  await mkdir(dirname(join(root, HOME)), { recursive: true });
  await rename(join(work, "package"), join(root, HOME));
  await rm(work, { recursive: true });
}

async function setVersion(root: string, version: string): Promise<void> {
  const file = join(root, HOME, "package.json");
  const contents = JSON.parse(await readFile(file, "utf8")) as object; // our own file
  await writeFile(file, JSON.stringify({ ...contents, version }, undefined, 2));
}

/** The production modules of this checkout and what they are made of (SBOM). Node itself is a program of the image, no module. */
async function addModules(root: string): Promise<void> {
  const { stdout } = await run("npm", ["ls", "--omit=dev", "--all", "--parseable"], { cwd: checkout });
  const folders = stdout
    .trim()
    .split("\n")
    .filter((folder) => folder.includes("/node_modules/") && !/\/node_modules\/node(-bin-setup)?(\/|$)/.test(folder));
  const isShipped = (path: string): boolean => !/\.(map|md|d\.[cm]?ts)$/.test(path) && !path.includes("/musl_x64");
  for (const folder of folders) {
    await cp(folder, join(root, HOME, relative(checkout, folder)), { recursive: true, filter: isShipped });
  }
  await writeFile(join(root, HOME, "sbom.cdx.json"), await billOfMaterials(checkout));
}

async function addPrograms(root: string): Promise<void> {
  const node = join(checkout, "node_modules/node/bin/node");
  for (const program of PROGRAMS) await place(await realpath(program), join(root, program));
  await place(node, join(root, "usr/local/bin/node"));
  await place(join(checkout, "deploy/veil"), join(root, "usr/local/bin/veil"));
  await place(await ensureCniPlugin(), join(root, HOME, "cni/veil-cni"));
  const { stdout } = await run("ldd", [node, ...PROGRAMS]);
  const libraries = [...stdout.matchAll(/(?:=> |^\s*)(\/\S+) \(0x/gm)].map(([, path = ""]) => path);
  for (const path of new Set(libraries)) await place(await realpath(path), join(root, path));
}

async function place(from: string, to: string): Promise<void> {
  await mkdir(dirname(to), { recursive: true });
  await cp(from, to);
}

async function addSystemFiles(root: string): Promise<void> {
  for (const folder of ["etc", "proc", "sys", "dev", "run", "var"]) {
    await mkdir(join(root, folder), { recursive: true });
  }
  await symlink("../run", join(root, "var/run"));
  await writeFile(join(root, "etc/passwd"), `root:x:0:0::/:/\nveil:x:${NOBODY}:${NOBODY}::/:/\n`);
  await writeFile(join(root, "etc/group"), `root:x:0:\nveil:x:${NOBODY}:\n`);
  await writeFile(join(root, "etc/nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n");
  await writeFile(join(root, "etc/os-release"), await readFile("/etc/os-release"));
}

if (import.meta.main) {
  const [tag, file] = process.argv.slice(2);
  if (tag === undefined || file === undefined) throw new Error(`usage: ${basename(import.meta.filename)} TAG FILE`);
  process.stdout.write(`${(await makeImages([{ tag, file }])).join("")}\n`);
}
