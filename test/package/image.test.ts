import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { readValues, renderInstallation } from "#install";
import { ENTRYPOINT, makeImages } from "../../tools/image.ts";
import { writeOciImage } from "../../tools/oci.ts";

const SETUP_MS = 900_000;
const folder = mkdtempSync(join(tmpdir(), "veil-image-test-"));
const archive = join(folder, "veil.tar");
const root = join(folder, "root");
const layout = join(folder, "layout");

before(
  async () => {
    await makeImages([{ tag: "test", file: archive }]);
    for (const made of [root, layout]) mkdirSync(made);
    execFileSync("tar", ["-xf", archive, "-C", layout]);
    execFileSync("tar", ["-xf", blob(manifest().layers[0]?.digest ?? ""), "-C", root]);
  },
  { timeout: SETUP_MS },
);
after(() => rmSync(folder, { recursive: true }));

interface Manifest {
  readonly config: { readonly digest: string };
  readonly layers: readonly { readonly digest: string }[];
}

const blob = (digest: string): string => join(layout, "blobs", digest.replace(":", "/"));
const json = (path: string): unknown => JSON.parse(readFileSync(path, "utf8"));
const index = (): { manifests: { digest: string; annotations: Record<string, string> }[] } =>
  json(join(layout, "index.json")) as ReturnType<typeof index>;
const manifest = (): Manifest => json(blob(index().manifests[0]?.digest ?? "")) as Manifest;

test("the image has the name that a kubelet looks for, is small, and holds no development modules", () => {
  assert.equal(index().manifests[0]?.annotations["io.containerd.image.name"], "docker.io/local/veil:test");
  assert.ok(statSync(archive).size < 250_000_000, `${statSync(archive).size} bytes`);
  const { config } = json(blob(manifest().config.digest)) as { config: { Entrypoint: string[]; User: string } };
  assert.deepEqual(config.Entrypoint, ENTRYPOINT);
  assert.equal(config.User, "65532:65532");
  assert.ok(!existsSync(join(root, "opt/veil/node_modules/typescript")));
  assert.ok(!existsSync(join(root, "opt/veil/src")));
  const sbom = json(join(root, "opt/veil/sbom.cdx.json")) as { components: { name: string }[] };
  const listed = new Set(sbom.components.map(({ name }) => name));
  const present = readdirSync(join(root, "opt/veil/node_modules")).filter((name) => !/^[.@]/.test(name));
  assert.deepEqual(
    present.filter((name) => !listed.has(name)),
    [],
    "modules that the list of what it is made of does not name",
  );
});

test("the Dockerfile makes the same: it starts the same way, on the Node that Veil is pinned to", () => {
  const file = readFileSync(resolve(import.meta.dirname, "../../deploy/Dockerfile"), "utf8");
  assert.deepEqual(JSON.parse(/^ENTRYPOINT (.*)$/m.exec(file)?.[1] ?? "null"), ENTRYPOINT);
  const { dependencies } = json(resolve(import.meta.dirname, "../../package.json")) as {
    dependencies: Record<string, string>;
  };
  const bases = [...file.matchAll(/^FROM node:([\d.]+)-/gm)].map(([, version]) => version);
  assert.deepEqual(bases, [dependencies["node"], dependencies["node"]]);
});

test("veil is on the image's path, for whoever executes a command in a container", () => {
  const { version } = json(resolve(import.meta.dirname, "../../package.json")) as { version: string };
  const { config } = json(blob(manifest().config.digest)) as { config: { Env: string[] } };
  const said = execFileSync("env", ["-i", ...config.Env, "/usr/sbin/chroot", root, "veil", "--version"], {
    encoding: "utf8",
  });
  assert.ok(said.includes(version), said);
});

test("the image brings the CNI plugin, which runs without anything of the image", () => {
  const env = { CNI_COMMAND: "VERSION" };
  const said = execFileSync(join(root, "opt/veil/cni/veil-cni"), {
    env,
    input: '{"cniVersion":"1.0.0"}',
    encoding: "utf8",
  });
  assert.match(said, /"supportedVersions":\["0.3.0",/);
});

test("the same files give the same image to the byte, whenever and by whom it is made", async () => {
  const digests: string[] = [];
  for (const second of [1, 2]) {
    const made = join(folder, `same-${second}`);
    mkdirSync(join(made, "etc"), { recursive: true });
    writeFileSync(join(made, "etc/hostname"), "x");
    execFileSync("touch", ["-d", `2026-01-0${second}`, join(made, "etc/hostname")]);
    digests.push(await writeOciImage({ root: made, name: "docker.io/local/x:1", config: {} }, `${made}.tar`));
  }
  assert.equal(digests[0], digests[1]);
  assert.deepEqual(readFileSync(join(folder, "same-1.tar")), readFileSync(join(folder, "same-2.tar")));
});

/**
 * Gives a role what a container has: a network and mounts of its own, a root that cannot be written, a folder for sockets, and the
 * user and the rights that the chart gives it.
 */
const CONTAINER = `set -e
root=$1; kubeconfig=$2; user=$3; rights=$4; shift 4
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs run "$root/run"
mkdir "$root/run/veil" "$root/run/ztunnel"
cp "$kubeconfig" "$root/run/kubeconfig"
mount -o remount,ro,bind "$root"
ip link set lo up
[ "$user" = 0 ] || exec chroot --userspec="$user:$user" "$root" "$@"
exec setpriv --bounding-set="-all,+sys_chroot,$rights" --inh-caps=-all chroot "$root" "$@"`;

/** User and capabilities (`+net_admin,+sys_admin`) of a role's container. */
function rightsOf(role: string): [user: string, rights: string] {
  const specs = renderInstallation(readValues(), "test").map((object) => (object as Installed).spec?.template?.spec);
  const pod = specs.find((spec) => spec?.containers?.[0]?.name === role);
  const { securityContext } = pod?.containers?.[0] ?? {};
  const user = securityContext?.runAsUser ?? pod?.securityContext?.runAsUser;
  assert.notEqual(user, undefined, role);
  const rights = (securityContext?.capabilities?.add ?? []).map((name) => `+${name.toLowerCase()}`);
  return [String(user), rights.join(",")];
}

interface Installed {
  readonly spec?: { readonly template?: { readonly spec: PodSpec } };
}

interface PodSpec {
  readonly securityContext?: { readonly runAsUser?: number };
  readonly containers?: readonly {
    readonly name: string;
    readonly securityContext?: {
      readonly runAsUser?: number;
      readonly capabilities?: { readonly add?: readonly string[] };
    };
  }[];
}

/** No API is there: a role that has come so far has started, and waits for it. */
const ROLES = [
  { role: "controller", flags: ["--kubeconfig", "/run/kubeconfig"], says: /cannot read the authority .* ECONNREFUSED/ },
  { role: "agent", flags: ["--kubeconfig", "/run/kubeconfig", "--node", "n1"], says: /lost the api, trying again/ },
  { role: "proxy", flags: ["--node", "n1"], says: /no nameserver: names outside fail/ },
];

for (const { role, flags, says } of ROLES) {
  test(
    `the ${role} starts from the image with the rights of the chart and a read-only root, in less than 1.5 s of processor time`,
    { timeout: 120_000 },
    async () => {
      const kubeconfig = join(folder, "kubeconfig");
      const context = { name: "x", cluster: { server: "https://127.0.0.1:6443" }, user: { token: "t" } };
      writeFileSync(
        kubeconfig,
        JSON.stringify({
          clusters: [context],
          users: [context],
          contexts: [{ name: "x", context: { cluster: "x", user: "x" } }],
          "current-context": "x",
        }),
      );
      const args = [
        "--net",
        "--mount",
        "sh",
        "-c",
        CONTAINER,
        "sh",
        root,
        kubeconfig,
        ...rightsOf(role),
        ...ENTRYPOINT,
        role,
        ...flags,
      ];
      const child = spawn("unshare", args, {
        stdio: ["ignore", "ignore", "pipe"],
        env: { PATH: "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" },
      });
      const said: string[] = [];
      try {
        let seconds: number | undefined;
        for await (const line of createInterface({ input: child.stderr })) {
          said.push(line);
          if (!says.test(line)) continue;
          seconds = processorSeconds(child.pid ?? 0);
          break;
        }
        assert.ok(seconds !== undefined, `it ended before it had started: ${said.join("\n")}`);
        assert.ok(seconds < 1.5, `it took ${seconds} s`);
      } finally {
        child.kill("SIGKILL"); // the proxy's children die with their supervisor
        if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
      }
    },
  );
}

/** What a process and its children have used, fields 14 and 15 of their `stat`, in ticks of 10 ms. */
function processorSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  const after = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim();
  const below = children === "" ? [] : children.split(" ").map((child) => processorSeconds(Number(child)));
  return (Number(after[11]) + Number(after[12])) / 100 + below.reduce((sum, seconds) => sum + seconds, 0);
}
