/**
 * The programs of a real Kubernetes, built by Go from their modules and kept in the user's cache by version.
 * `bin/veil setup --kubernetes` runs this. The first time takes about ten minutes of two processors.
 */
import { execFile, spawn } from "node:child_process";
import { access, constants, mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:net";
import { homedir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { promisify } from "node:util";
import { sleep, systemClock } from "#base/clock";

/** The pinned version, and the digest of its module as sum.golang.org has it. */
const KUBERNETES = {
  version: "v1.35.4",
  staging: "v0.35.4",
  sum: "h1:o/8dBC/pHVpYoGV4OAIytAlNPZbdYVTXJHoYvXC4qzM=",
} as const;
/** What is built, in the order in which a cluster needs them; the first has most of the packages of the others. */
const NAMES = ["kube-apiserver", "kube-controller-manager", "kubelet", "kube-scheduler", "kube-proxy"] as const;
/** Packages that the five are made of, all together; each is compiled once. For progress only. */
const PACKAGES = 2503;
const REPORT_MS = 20_000;
const LOCK = "\0veil-kubernetes-build";
const LOCK_RETRY_MS = 500;

/** Name of a program of Kubernetes that the test cluster runs. */
export type KubernetesProgram = (typeof NAMES)[number];

const run = promisify(execFile);
const clock = systemClock();
const env = {
  ...process.env,
  PATH: [process.env["PATH"], "/usr/local/go/bin"].join(delimiter),
  GOFLAGS: "-mod=mod",
  CGO_ENABLED: "0",
};

/** The folder of the built programs. */
export function kubernetesFolder(): string {
  const cache = process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache");
  return join(cache, "veil", "test-programs", `kubernetes-${KUBERNETES.version}`);
}

/** The programs that are not in the cache; empty when all are. */
export async function missingKubernetesPrograms(): Promise<KubernetesProgram[]> {
  const found = await Promise.all(
    NAMES.map((name) =>
      access(join(kubernetesFolder(), name), constants.X_OK).then(
        () => [],
        () => [name],
      ),
    ),
  );
  return found.flat();
}

/**
 * Builds what is missing, each program under a name of its own until it is finished: whatever is killed halfway, a program that is
 * there is whole. One build at a time on a machine: a second waits for the first. `note` is told of progress.
 * Rejects with what Go says.
 */
export async function ensureKubernetes(note: (line: string) => void): Promise<void> {
  if ((await missingKubernetesPrograms()).length === 0) return;
  await requireGo();
  await using _ = await lockBuild(note);
  const missing = await missingKubernetesPrograms();
  if (missing.length === 0) return;
  const folder = kubernetesFolder();
  await mkdir(dirname(folder), { recursive: true });
  await removeUnfinished(folder);
  const work = await mkdtemp(`${folder}.make-`);
  try {
    note(`building Kubernetes ${KUBERNETES.version}: ${missing.join(", ")}; once per machine, about ten minutes`);
    await writeModule(work);
    await mkdir(folder, { recursive: true });
    for (const name of missing) {
      await build(work, name, note);
      await rename(join(work, name), join(folder, name));
    }
  } catch (cause) {
    throw new Error(`cannot build Kubernetes ${KUBERNETES.version} for the tests`, { cause });
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

/** From 1.21 on Go fetches the version that a module asks for. */
async function requireGo(): Promise<void> {
  const { stdout } = await run("go", ["version"], { env });
  const minor = Number(/go1\.(\d+)/.exec(stdout)?.[1] ?? 0);
  if (minor < 21) throw new Error(`building Kubernetes needs Go 1.21 or newer; here is ${stdout.trim()}`);
}

/** What a build that was killed has left; nobody else builds, as the lock is ours. */
async function removeUnfinished(folder: string): Promise<void> {
  for (const name of await readdir(dirname(folder))) {
    const path = join(dirname(folder), name);
    if (path.startsWith(`${folder}.make-`)) await rm(path, { recursive: true, force: true });
  }
}

/**
 * Writes a module that requires Kubernetes as a library. Its own go.mod cannot be installed from: it replaces the modules of its
 * staging area by folders. With them replaced by their published versions it says which version of everything else belongs to it.
 */
async function writeModule(work: string): Promise<void> {
  const { stdout } = await run("go", ["mod", "download", "-json", `k8s.io/kubernetes@${KUBERNETES.version}`], {
    cwd: work,
    env,
  });
  const { Dir, Sum } = JSON.parse(stdout) as { Dir: string; Sum: string }; // the form of `go help mod download`
  if (Sum !== KUBERNETES.sum) throw new Error(`k8s.io/kubernetes ${KUBERNETES.version} has the digest ${Sum}`);
  const theirs = await readFile(join(Dir, "go.mod"), "utf8");
  const ours = theirs
    .replace(/^module .*/m, "module veil.test/kubernetes")
    .replaceAll(/=> \.\/staging\/src\/(\S+)/g, `=> $1 ${KUBERNETES.staging}`);
  await writeFile(join(work, "go.mod"), `${ours}\nrequire k8s.io/kubernetes ${KUBERNETES.version}\n`);
  await writeFile(join(work, "go.sum"), await readFile(join(Dir, "go.sum")));
}

/** Without these the server does not know its version, and kubectl complains. */
function linkFlags(): string {
  const [major = "", minor = ""] = KUBERNETES.version.slice(1).split(".");
  const values = { gitVersion: KUBERNETES.version, gitMajor: major, gitMinor: minor, gitTreeState: "clean" };
  const set = Object.entries(values).map(([name, value]) => `-X k8s.io/component-base/version.${name}=${value}`);
  return ["-s", "-w", ...set].join(" ");
}

async function build(work: string, name: KubernetesProgram, note: (line: string) => void): Promise<void> {
  const args = ["build", "-v", "-trimpath", "-ldflags", linkFlags(), "-o", name, `k8s.io/kubernetes/cmd/${name}`];
  const go = spawn("go", args, { cwd: work, env, stdio: ["ignore", "ignore", "pipe"] });
  let said = "";
  go.stderr.setEncoding("utf8").on("data", (text: string) => (said += text));
  const startMs = clock.monotonic();
  const report = (): void => {
    const minutes = ((clock.monotonic() - startMs) / 60_000).toFixed(1);
    note(`  ${name}: ${said.split("\n").length - 1} packages of up to ${PACKAGES} after ${minutes} min`);
    cancel = clock.after(REPORT_MS, report);
  };
  let cancel = clock.after(REPORT_MS, report);
  try {
    const code = await new Promise<number | null>((resolve, reject) => {
      go.once("error", reject);
      go.once("close", resolve);
    });
    if (code !== 0) throw new Error(`go build of ${name} ended with ${code}: ${said.slice(-2000)}`);
  } finally {
    cancel();
  }
  note(`  ${name}: built`);
}

/** The kernel gives an abstract socket up with its process, however that ends. */
async function lockBuild(note: (line: string) => void): Promise<AsyncDisposable> {
  for (let tries = 0; ; tries++) {
    const server = await tryListen(LOCK);
    if (server !== undefined) {
      return {
        [Symbol.asyncDispose]: () =>
          new Promise((resolve) => {
            server.close(() => resolve());
          }),
      };
    }
    if (tries === 0) note("another process builds Kubernetes: waiting for it");
    await sleep(clock, LOCK_RETRY_MS);
  }
}

async function tryListen(address: string): Promise<Server | undefined> {
  const server = createServer((socket) => socket.destroy());
  return new Promise((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) => {
      if (error.code === "EADDRINUSE") resolve(undefined);
      else reject(error);
    });
    server.listen(address, () => resolve(server));
  });
}

if (import.meta.main) await ensureKubernetes((line) => process.stderr.write(`veil: ${line}\n`));
