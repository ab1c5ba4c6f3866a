import { posix } from "node:path";
import type { ContainerPlan, MountPlan } from "./container-plan.ts";

/**
 * What runs between the new namespaces and the command. The container sees the machine's own file system, with these
 * differences: a `/run` of its own, in which only its volumes are; its volumes elsewhere, over what is there; a `/proc` of
 * its own pid namespace.
 */
export function setupScript(plan: ContainerPlan): string {
  const files = plan.files.attempt(plan.attempt);
  const staged = files.runMount;
  const lines = [
    "set -eu",
    // The old /proc tells the pid as the node sees it; the builtin opens it itself, so it is the pid of what becomes the command.
    "read -r stat </proc/self/stat",
    "pid=${stat%% *}",
    "twentieth() { shift 19; ticks=$1; }",
    "twentieth ${stat##*) }",
    `mkdir -p ${quote(staged)}`,
    `mount -n -t tmpfs -o mode=755,size=64m veil-pod ${quote(staged)}`,
    `mkdir -p ${quote(`${staged}/lock`)}`,
    ...plan.mounts.filter((mount) => underRun(mount.target) !== undefined).flatMap((mount) => stage(mount, staged)),
    ...plan.mounts
      .filter((mount) => underRun(mount.target) === undefined)
      .flatMap((mount) => bind(mount, mount.target)),
    // Written through a descriptor: after the move the kubelet's folder is out of sight.
    `exec 4>${quote(files.pid)}`,
    `mount -n --move ${quote(staged)} /run`,
    ...(plan.hostPid ? [] : ["mount -n -t proc proc /proc"]),
    `cd ${quote(plan.workingDir)}`,
  ];
  return `${[...lines, ...begin(plan.environment)].join("\n")}\n`;
}

/** Says which process this is, and becomes the command, found on the container's own PATH. */
function begin(environment: Readonly<Record<string, string>>): string[] {
  const variables = Object.entries(environment).map(([name, value]) => quote(`${name}=${value}`));
  return ['echo "$pid $ticks" >&4', "exec 4>&- 2>&3 3>&-", `exec env -i ${variables.join(" ")} "$@"`];
}

/** The part of a path below /run; undefined for other paths. */
export function underRun(path: string): string | undefined {
  const match = /^(?:\/var)?\/run\/(.+)$/.exec(posix.normalize(path));
  return match?.[1];
}

function stage(mount: MountPlan, staged: string): string[] {
  const target = `${staged}/${underRun(mount.target) ?? ""}`;
  const place = mount.isFolder
    ? [`mkdir -p ${quote(target)}`]
    : [`mkdir -p ${quote(posix.dirname(target))}`, `: >>${quote(target)}`];
  return [...place, ...bind(mount, target)];
}

function bind(mount: MountPlan, target: string): string[] {
  const options = mount.readOnly ? "-o ro " : "";
  return [`mount -n --rbind ${options}${quote(mount.source)} ${quote(target)}`];
}

/** One word for the shell, whatever it holds. */
export function quote(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`;
}
