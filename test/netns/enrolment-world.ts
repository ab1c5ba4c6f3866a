import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { inNetns, openNetns, type Netns } from "#linux";

/** Runs a program to its end; throws with its output when it fails. */
export function run(program: string, ...args: string[]): string {
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: "utf8" });
  if (status !== 0) throw error ?? new Error(`${program} ${args.join(" ")}: ${stderr}${stdout}`);
  return stdout;
}

/** A pod: a network namespace with one address, and the processes that were started in it. */
export interface TestPod {
  readonly name: string;
  readonly ip: string;
  readonly netns: Netns;
  readonly path: string;
}

/**
 * Pods on two nodes without anything of Kubernetes: `a1` and `a2` on node A (10.244.1.0/24), `b1` on node B (10.244.2.0/24).
 * Nodes route; pods hang on veths of their own. Everything is named `vt-<tag>-…` and goes with `dispose`.
 */
export class TestWorld implements Disposable {
  readonly #tag: string;
  readonly #children = new Set<ChildProcess>();
  readonly #machines: TestPod[] = [];
  readonly pods: Readonly<Record<"a1" | "a2" | "b1", TestPod>>;

  constructor(tag: string) {
    if (process.getuid?.() !== 0) throw new Error("these tests need root: network namespaces are made");
    this.#tag = `vt-${tag}`;
    this.#remove();
    this.#node("a", 1);
    this.#node("b", 2);
    this.#wire();
    this.pods = { a1: this.#pod("a", 1, 2), a2: this.#pod("a", 1, 3), b1: this.#pod("b", 2, 2) };
  }

  /** Starts a program inside a pod; it is killed at the end. */
  spawn(pod: TestPod, program: string, ...args: string[]): ChildProcess {
    const child = inNetns(pod.netns, () => spawn(program, args, { stdio: ["ignore", "pipe", "inherit"] }));
    this.#children.add(child);
    child.once("exit", () => this.#children.delete(child));
    return child;
  }

  /** Starts a TypeScript program of this folder inside a pod and waits for its first line. */
  async program(pod: TestPod, file: string, ...args: string[]): Promise<ChildProcess> {
    const path = fileURLToPath(new URL(file, import.meta.url));
    const child = this.spawn(
      pod,
      process.execPath,
      "--conditions=veil-source",
      "--disable-warning=DEP0111",
      path,
      ...args,
    );
    await firstLine(child);
    return child;
  }

  /** A machine behind a pod, which routes for it: what it sends comes into the pod from `interfaceName`. */
  addMachine(pod: TestPod, interfaceName: string): TestPod {
    const [inside, name] = [this.#name(pod.name), this.#name("vm")];
    run("ip", "netns", "add", name);
    run("ip", "-n", inside, "link", "add", interfaceName, "type", "veth", "peer", "name", "eth0", "netns", name);
    run("ip", "-n", inside, "address", "add", "10.99.0.1/24", "dev", interfaceName);
    run("ip", "-n", inside, "link", "set", interfaceName, "up");
    run("ip", "-n", name, "address", "add", "10.99.0.2/24", "dev", "eth0");
    run("ip", "-n", name, "link", "set", "eth0", "up");
    run("ip", "-n", name, "route", "add", "default", "via", "10.99.0.1");
    const machine = { name: "vm", ip: "10.99.0.2", netns: openNetns(`/run/netns/${name}`), path: `/run/netns/${name}` };
    this.#machines.push(machine);
    return machine;
  }

  /** Runs a program inside a pod to its end. */
  exec(pod: TestPod, ...command: string[]): string {
    return run("ip", "netns", "exec", pod.path.replace("/run/netns/", ""), ...command);
  }

  [Symbol.dispose](): void {
    for (const child of this.#children) child.kill("SIGKILL");
    for (const pod of [...Object.values(this.pods), ...this.#machines]) pod.netns[Symbol.dispose]();
    this.#remove();
  }

  #name(part: string): string {
    return `${this.#tag}-${part}`;
  }

  #remove(): void {
    for (const part of ["a", "b", "a1", "a2", "b1", "vm"]) {
      if (existsSync(`/run/netns/${this.#name(part)}`)) run("ip", "netns", "del", this.#name(part));
    }
  }

  #node(name: string, number: number): void {
    const node = this.#name(name);
    run("ip", "netns", "add", node);
    run("ip", "netns", "exec", node, "sysctl", "-qw", "net.ipv4.ip_forward=1");
    run("ip", "-n", node, "link", "set", "lo", "up");
    run("ip", "-n", node, "address", "add", `10.244.${number}.1/32`, "dev", "lo");
  }

  #wire(): void {
    const [a, b] = [this.#name("a"), this.#name("b")];
    run("ip", "-n", a, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b);
    for (const [node, own, other] of [
      [a, 1, 2],
      [b, 2, 1],
    ] as const) {
      run("ip", "-n", node, "address", "add", `172.20.0.${own}/24`, "dev", "eth0");
      run("ip", "-n", node, "link", "set", "eth0", "up");
      run("ip", "-n", node, "route", "add", `10.244.${other}.0/24`, "via", `172.20.0.${other}`);
    }
  }

  #pod(node: string, number: number, host: number): TestPod {
    const name = `${node}${host - 1}`;
    const pod = this.#name(name);
    const ip = `10.244.${number}.${host}`;
    run("ip", "netns", "add", pod);
    run(
      "ip",
      "-n",
      pod,
      "link",
      "add",
      "eth0",
      "type",
      "veth",
      "peer",
      "name",
      `veth${host}`,
      "netns",
      this.#name(node),
    );
    run("ip", "-n", this.#name(node), "link", "set", `veth${host}`, "up");
    run("ip", "-n", this.#name(node), "route", "add", `${ip}/32`, "dev", `veth${host}`);
    run("ip", "-n", pod, "link", "set", "lo", "up");
    run("ip", "-n", pod, "address", "add", `${ip}/32`, "dev", "eth0");
    run("ip", "-n", pod, "link", "set", "eth0", "up");
    run("ip", "-n", pod, "route", "add", `10.244.${number}.1`, "dev", "eth0");
    run("ip", "-n", pod, "route", "add", "default", "via", `10.244.${number}.1`);
    return { name, ip, netns: openNetns(`/run/netns/${pod}`), path: `/run/netns/${pod}` };
  }
}

/** The next line that a child prints. Throws when it ends first. */
export async function firstLine(child: ChildProcess): Promise<string> {
  if (child.stdout === null) throw new Error("the child has no standard output");
  const lines = createInterface({ input: child.stdout });
  const ended = new AbortController();
  const onExit = (code: number | null): void => {
    ended.abort(new Error(`the child ended with ${code} before it printed a line`));
  };
  child.once("exit", onExit);
  const [line] = (await once(lines, "line", { signal: ended.signal })) as [string]; // readline emits text
  lines.close();
  child.off("exit", onExit);
  child.stdout.resume();
  return line;
}
