import assert from "node:assert/strict";
import { accessSync, constants, readFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { ensureKubernetes } from "../../tools/kubernetes-programs.ts";

/** Where Debian has busybox. */
export const BUSYBOX = "/usr/bin/busybox";

/** What a cluster is made of, and the Debian package that brings it. */
const PROGRAMS = {
  etcd: "etcd-server",
  containerd: "containerd",
  runc: "runc",
  ip: "iproute2",
  nft: "nftables",
  nsenter: "util-linux",
  curl: "curl",
  sysctl: "procps",
  "/usr/lib/cni/bridge": "containernetworking-plugins",
  [BUSYBOX]: "busybox-static",
};

/** Builds Kubernetes where it is not built yet, and fails with all that is missing otherwise. Nothing is skipped. */
export async function requireKubernetes(note: (line: string) => void): Promise<void> {
  const missing = Object.entries(PROGRAMS).filter(([program]) => !isThere(program));
  const packages = missing.map(([program, name]) => `${program} (Debian package ${name})`);
  assert.equal(process.getuid?.(), 0, "a test cluster makes namespaces and cgroups: run this as root");
  assert.deepEqual(packages, [], "a test cluster needs programs that are not there: run bin/veil setup --kubernetes");
  assert.ok(
    !readFileSync(BUSYBOX).includes("/lib64/ld-linux"),
    `${BUSYBOX} needs libraries, which images do not have: apt-get install busybox-static`,
  );
  await ensureKubernetes(note);
}

function isThere(program: string): boolean {
  const folders = program.startsWith("/") ? ["/"] : [...(process.env["PATH"] ?? "").split(delimiter), "/usr/sbin"];
  return folders.some((folder) => {
    try {
      accessSync(join(folder, program), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}
