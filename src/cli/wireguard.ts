import { Command, Option } from "commander";
import { messageOf } from "#base/errors";
import type { KubeClient, Pod } from "#kube";
import type { NodeView } from "#wireguard";
import type { CliContext } from "./context.ts";

interface ClusterFlags {
  readonly kubeconfig?: string;
  readonly lab?: string;
  readonly output: "text" | "json";
}

interface StatusFlags extends ClusterFlags {
  readonly namespace: string;
  readonly node?: string;
}

/** Pairs are asked for without being named on clusters up to this many nodes. */
const MAX_ASKED = 10;
const AGENT_PORT = "9965";
const AGENT_SELECTOR = "app=veil-agent";

/**
 * `veil wireguard status`: which keys every pair of nodes uses, how old they are, and what holds their rotation.
 * `veil wireguard doctor`: what is wrong with them, and what to do.
 */
export function wireguardCommand(context: CliContext): Command {
  const status = clusterCommand("status", "show the tunnels between the nodes: peers, slots, keys and what is wrong")
    .option("--namespace <namespace>", "where Veil is installed", "veil-system")
    .option("--node <name>", `show this node's pairs (default: all nodes', where there are at most ${MAX_ASKED})`)
    .action((flags: StatusFlags) => show(context, flags));
  const doctor = clusterCommand("doctor", "say what is wrong with the tunnels between the nodes, and what to do")
    .addHelpText(
      "after",
      "\nExit code 0: nothing is wrong; 1: something is; 2: something could not be looked at. `veil doctor` looks at everything else, too.",
    )
    .action((flags: ClusterFlags) => diagnose(context, flags));
  return new Command("wireguard")
    .description("look at the tunnels between the nodes")
    .addCommand(status)
    .addCommand(doctor);
}

function clusterCommand(name: string, description: string): Command {
  return new Command(name)
    .description(description)
    .option("--kubeconfig <file>", "credentials of the cluster (default: KUBECONFIG, then ~/.kube/config)")
    .option("--lab <name>", "ask the lab of this name")
    .addOption(new Option("-o, --output <format>", "how to answer").choices(["text", "json"]).default("text"));
}

async function diagnose(context: CliContext, flags: ClusterFlags): Promise<void> {
  const { examineTunnels, exitCodeOf, findingsAsJson, formatFindings } = await import("#doctor");
  const client = await connect(context, flags);
  try {
    const findings = await examineTunnels({ client, nowMs: context.clock.now(), signal: context.signal });
    context.signal.throwIfAborted();
    context.out(flags.output === "json" ? findingsAsJson(findings) : formatFindings(findings));
    process.exitCode = exitCodeOf(findings);
  } finally {
    client.close();
  }
}

async function show(context: CliContext, flags: StatusFlags): Promise<void> {
  const { formatTunnels } = await import("./wireguard-status.ts");
  const { ROTATION_NAME, wireguardResources } = await import("#wireguard");
  const client = await connect(context, flags);
  try {
    const rotation = await client.find(wireguardResources.wireguardRotations, { name: ROTATION_NAME });
    const { items: nodes } = await client.list(wireguardResources.wireguardNodes);
    const names = nodes.flatMap(({ metadata }) => metadata?.name ?? []);
    const asked = flags.node === undefined ? (names.length > MAX_ASKED ? [] : names) : [flags.node];
    const views = asked.length === 0 ? new Map() : await askAgents(client, asked, flags.namespace);
    if (flags.output === "text") context.out(formatTunnels({ rotation, nodes, views }));
    else {
      const byNode = nodes.map(({ metadata, status }) => ({ node: metadata?.name, ...status }));
      const answer = { rotation: rotation?.status, nodes: byNode, views: Object.fromEntries(views) };
      context.out(`${JSON.stringify(answer, undefined, 2)}\n`);
    }
  } finally {
    client.close();
  }
}

async function connect(context: CliContext, flags: ClusterFlags): Promise<KubeClient> {
  const [{ findKubeConfig, KubeClient }, { systemRandom }, { silentLog }] = await Promise.all([
    import("#kube"),
    import("#base/random"),
    import("#base/log"),
  ]);
  const path = flags.lab === undefined ? flags.kubeconfig : (await import("#lab")).labLayout(flags.lab).kubeconfig;
  const config = await findKubeConfig(context.env, path);
  return new KubeClient({ config, log: silentLog(), clock: context.clock, random: systemRandom });
}

/** What each node's agent says of its devices, asked inside its pod; a sentence for one that cannot be asked. */
async function askAgents(
  client: KubeClient,
  nodes: readonly string[],
  namespace: string,
): Promise<Map<string, NodeView | string>> {
  const { resources } = await import("#kube");
  const { items } = await client.list(resources.pods, { namespace, labelSelector: AGENT_SELECTOR });
  const asked = nodes.map(async (node): Promise<[string, NodeView | string]> => {
    const agent = items.find(({ spec }) => spec?.nodeName === node);
    if (agent === undefined) return [node, "no agent runs there"];
    return [
      node,
      await askAgent(client, agent).catch((error: unknown) => `its agent could not be asked: ${messageOf(error)}`),
    ];
  });
  return new Map(await Promise.all(asked));
}

async function askAgent(client: KubeClient, agent: Pod): Promise<NodeView | string> {
  const { name: pod = "", namespace = "" } = agent.metadata ?? {};
  const program = agent.spec?.containers[0]?.command?.[0] ?? "veil";
  const at = { namespace, pod, container: "agent" };
  const command = [program, "admin", "--port", AGENT_PORT, "/wireguard"];
  const { code, stdout, stderr } = await client.exec({ ...at, command });
  if (code !== 0) return (stderr || stdout).trim();
  if (stdout.startsWith("undefined")) return "its devices are not there yet";
  return JSON.parse(stdout) as NodeView; // written by our own agent
}
