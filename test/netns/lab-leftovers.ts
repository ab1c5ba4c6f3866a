import { existsSync, readdirSync, readFileSync } from "node:fs";
import { execFileSync } from "node:child_process";

/**
 * What is there of a lab on this machine, found without any of the lab's own code: processes (by environment, command
 * line, mounts and network namespace), namespaces, mounts and files. Empty after `veil lab down`.
 */
export function leftoversOf(name: string): string[] {
  return [...processesOf(name), ...namespacesOf(name), ...mountsOf(name), ...filesOf(name)];
}

function read(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}

function processesOf(name: string): string[] {
  const found: string[] = [];
  for (const pid of readdirSync("/proc").filter((entry) => /^\d+$/.test(entry))) {
    if (Number(pid) === process.pid || /^State:\tZ/m.test(read(`/proc/${pid}/status`))) continue;
    const words = read(`/proc/${pid}/cmdline`).split("\0");
    const reasons = [
      read(`/proc/${pid}/environ`).split("\0").includes(`VEIL_LAB=${name}`) && "environment",
      words.some((word) => word === name || word.includes(`/veil-lab/${name}/`)) && "command line",
      read(`/proc/${pid}/mountinfo`).includes(`veil-lab:${name}:`) && "mounts",
    ].filter((reason) => reason !== false);
    if (reasons.length > 0) found.push(`process ${pid} (${words.join(" ").trim()}) by ${reasons.join(", ")}`);
  }
  return found;
}

function namespacesOf(name: string): string[] {
  if (!existsSync("/run/netns")) return [];
  return readdirSync("/run/netns")
    .filter((entry) => entry.startsWith(`veil-${name}-`))
    .map((entry) => `network namespace ${entry}`);
}

function mountsOf(name: string): string[] {
  return read("/proc/self/mountinfo")
    .split("\n")
    .filter((line) => line.includes(`/veil-lab/${name}`) || line.includes(`veil-lab:${name}:`))
    .map((line) => `mount ${line}`);
}

function filesOf(name: string): string[] {
  return [`/run/veil-lab/${name}`].filter((path) => existsSync(path)).map((path) => `file ${path}`);
}

/** Links and nft tables of the namespace of this process: a lab makes none, at no time. */
export function linksAndRules(): string {
  const links = execFileSync("ip", ["-o", "link", "show"], { encoding: "utf8" });
  const tables = execFileSync("nft", ["list", "tables"], { encoding: "utf8" });
  return `${links.replaceAll(/^\d+: (\S+?)[@:].*$/gm, "$1")}\n${tables}`;
}
