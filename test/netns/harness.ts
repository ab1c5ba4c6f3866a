import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { sleep, systemClock } from "#base/clock";
import { messageOf } from "#base/errors";
import { ensureKubectl } from "#apiserver";
import { startCapture, type Capture } from "#capture";
import { resources, type KubeClient, type Pod } from "#kube";
import { isPodReady, labClient, labLayout, netnsPath, nodeLayouts, type LabLayout, type NodeLayout } from "#lab";

/** Where labs keep their files. */
const LABS = "/run/veil-lab";

/** The start script of this checkout. */
export const VEIL = fileURLToPath(new URL("../../bin/veil", import.meta.url));

const clock = systemClock();

/** What a program printed and how it ended. */
export interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Fails the test, with what is missing, where labs cannot be made. */
export function requireRoot(): void {
  assert.equal(process.getuid?.(), 0, "these tests make network namespaces: run them as root");
}

/** Runs a program to its end; never rejects for an exit code. `started` gets the process, to kill it in between. */
export async function run(
  command: readonly string[],
  options: {
    input?: string;
    env?: Record<string, string>;
    timeoutMs?: number;
    started?: (child: ChildProcess) => void;
  } = {},
): Promise<Outcome> {
  const [program = "", ...args] = command;
  const { input = "", env = {}, timeoutMs = 900_000, started } = options;
  const child = spawn(program, args, { stdio: "pipe", env: { ...process.env, ...env }, detached: true });
  const output = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const) {
    child[name].setEncoding("utf8").on("data", (text: string) => (output[name] += text));
  }
  child.stdin.on("error", () => {});
  child.stdin.end(input);
  started?.(child);
  const cancel = clock.after(timeoutMs, () => child.kill("SIGKILL"));
  const code = await new Promise<number>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code, signal) => resolve(code ?? { SIGKILL: 137, SIGINT: 130 }[String(signal)] ?? 143));
  });
  cancel();
  return { code, ...output };
}

/** Runs `veil` with these words. */
export async function veil(...words: string[]): Promise<Outcome> {
  return run([VEIL, ...words]);
}

/** As {@link run}, but fails the test when the program fails; answers what it printed. */
export async function must(command: readonly string[], options: Parameters<typeof run>[1] = {}): Promise<string> {
  const { code, stdout, stderr } = await run(command, options);
  assert.equal(code, 0, `${command.join(" ")} ended with ${code}: ${stderr}\n${stdout}`);
  return stdout;
}

/** Looks until something is there; fails the test with `what` after `timeoutMs`. A look that throws counts as nothing. */
export async function eventually<T>(
  what: string,
  look: () => Promise<T | undefined> | T | undefined,
  timeoutMs = 60_000,
): Promise<T> {
  const endMs = clock.monotonic() + timeoutMs;
  let last = "";
  for (;;) {
    try {
      const found = await look();
      if (found !== undefined) return found;
    } catch (error) {
      last = messageOf(error);
    }
    if (clock.monotonic() > endMs) assert.fail(`waited ${timeoutMs / 1000} s for ${what}${last && `: ${last}`}`);
    await sleep(clock, 50);
  }
}

/** A lab for one test file. Dispose it, also after a failure: `await using lab = await startLab("agent")`. */
export interface TestLab extends AsyncDisposable {
  readonly name: string;
  readonly layout: LabLayout;
  readonly kubeconfig: string;
  readonly nodes: readonly NodeLayout[];
  /** All rights. */
  readonly client: KubeClient;
  /** Runs kubectl; fails the test when it fails. */
  kubectl(...words: string[]): Promise<string>;
  /** Applies YAML or JSON text, or objects. */
  apply(manifest: string | readonly object[]): Promise<void>;
  /** A pod, once it is ready. */
  readyPod(namespace: string, name: string): Promise<Pod>;
  /** The first ready pod that a label selector finds. */
  readyPodOf(namespace: string, selector: string): Promise<Pod>;
  /** Runs a command in a container. */
  execPod(namespace: string, pod: string, ...command: string[]): Promise<Outcome>;
  /** Runs a command on a node: its network, its mounts, its hostname. */
  execNode(node: string, ...command: string[]): Promise<Outcome>;
  /** Starts tcpdump on an interface of a node; `eth0` is the underlay. */
  captureNode(node: string, options?: { interface?: string; filter?: string }): Promise<Capture>;
  /** Starts tcpdump on the node's end of a pod's link. */
  capturePod(pod: Pod, filter?: string): Promise<Capture>;
}

/** Takes down what runs have left behind that were killed: a test's lab is named after its process. */
async function removeAbandoned(): Promise<void> {
  for (const name of existsSync(LABS) ? readdirSync(LABS) : []) {
    const pid = /^vt-.+-p(\d+)$/.exec(name)?.[1];
    if (pid !== undefined && !existsSync(`/proc/${pid}`)) await must([VEIL, "lab", "down", "--name", name]);
  }
}

/** Brings up a lab of its own for a test file. `component` and this process make its name. */
export async function startLab(
  component: string,
  options: { nodes?: number; wireguard?: string } = {},
): Promise<TestLab> {
  requireRoot();
  await removeAbandoned();
  const name = `vt-${component}-p${process.pid}`;
  const layout = labLayout(name);
  const nodes = nodeLayouts(layout, options.nodes ?? 2);
  const down = async (): Promise<void> => {
    await must([VEIL, "lab", "down", "--name", name]);
  };
  try {
    const tunnels = options.wireguard === undefined ? [] : ["--wireguard", options.wireguard];
    await must([VEIL, "lab", "up", "--name", name, "--nodes", String(nodes.length), ...tunnels]);
    const kubectl = await ensureKubectl({ env: process.env });
    const client = await labClient({ lab: layout, clock });
    return testLab({ name, layout, nodes, kubectl, client, down });
  } catch (error) {
    await down();
    throw error;
  }
}

function testLab(parts: {
  name: string;
  layout: LabLayout;
  nodes: readonly NodeLayout[];
  kubectl: string;
  client: KubeClient;
  down: () => Promise<void>;
}): TestLab {
  const { name, layout, nodes, client, down } = parts;
  const env = { KUBECONFIG: layout.kubeconfig };
  const nodeNetns = (node: string | undefined): string => {
    const found = nodes.find((other) => other.name === node);
    assert.ok(found, `the lab has no node ${node}`);
    return netnsPath(found.netns);
  };
  return {
    name,
    layout,
    kubeconfig: layout.kubeconfig,
    nodes,
    client,
    kubectl: (...words) => must([parts.kubectl, ...words], { env }),
    async apply(manifest) {
      const input =
        typeof manifest === "string" ? manifest : manifest.map((object) => JSON.stringify(object)).join("\n---\n");
      await must([parts.kubectl, "apply", "-f", "-"], { env, input });
    },
    readyPod: (namespace, pod) =>
      eventually(`pod ${namespace}/${pod} to be ready`, async () => {
        const found = await client.find(resources.pods, { namespace, name: pod });
        return found !== undefined && isPodReady(found) ? found : undefined;
      }),
    readyPodOf: (namespace, labelSelector) =>
      eventually(`a ready pod ${namespace} ${labelSelector}`, async () => {
        const { items } = await client.list(resources.pods, { namespace, labelSelector });
        return items.find(isPodReady);
      }),
    execPod: (namespace, pod, ...command) => client.exec({ namespace, pod, command }),
    execNode: (node, ...command) => run([VEIL, "lab", "exec", "--name", name, node, "--", ...command]),
    captureNode: (node, options = {}) =>
      startCapture({
        netns: nodeNetns(node),
        interface: options.interface ?? "eth0",
        clock,
        ...(options.filter === undefined ? {} : { filter: options.filter }),
      }),
    capturePod(pod, filter) {
      const veth = pod.metadata?.annotations?.["veil.dev/veth"];
      assert.ok(veth, `pod ${pod.metadata?.name} does not tell its interface`);
      const netns = nodeNetns(pod.spec?.nodeName);
      return startCapture({ netns, interface: veth, clock, ...(filter === undefined ? {} : { filter }) });
    },
    async [Symbol.asyncDispose]() {
      client.close();
      await down();
    },
  };
}
