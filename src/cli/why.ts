import { Command, Option } from "commander";
import { messageOf } from "#base/errors";
import type { KubeClient, Pod } from "#kube";
import type { Explanation } from "#proxy";
import { whyError } from "./why-errors.ts";
import type { WhyFacts } from "./why-answer.ts";
import type { CliContext } from "./context.ts";

interface WhyFlags {
  readonly kubeconfig?: string;
  readonly lab?: string;
  readonly namespace: string;
  readonly output: "text" | "json";
}

const PROXY_SELECTOR = "app=ztunnel";

/** `veil why POD POD:PORT`: is a connection from here to there encrypted, and why (not)? */
export function whyCommand(context: CliContext): Command {
  return new Command("why")
    .description("say why connections between two pods are (not) encrypted")
    .argument("<source>", "a pod, as NAMESPACE/POD")
    .argument("<destination>", "a pod and a port, as NAMESPACE/POD:PORT, or IP:PORT")
    .option("--kubeconfig <file>", "credentials of the cluster (default: KUBECONFIG, then ~/.kube/config)")
    .option("--namespace <namespace>", "where Veil is installed", context.env["POD_NAMESPACE"] ?? "veil-system")
    .option("--lab <name>", "ask the lab of this name")
    .addOption(new Option("-o, --output <format>", "how to answer").choices(["text", "json"]).default("text"))
    .addHelpText("after", "\nExit code 0: encrypted; 3: not encrypted; 1: no answer could be found.")
    .action((source: string, destination: string, flags: WhyFlags) => why(context, { source, destination, flags }));
}

/** Exit code for "not encrypted", so that scripts can ask. */
const NOT_ENCRYPTED = 3;

async function why(
  context: CliContext,
  question: { source: string; destination: string; flags: WhyFlags },
): Promise<void> {
  const { flags } = question;
  const { answerWhy, formatAnswer } = await import("./why-answer.ts");
  const client = await connect(context, flags);
  try {
    const source = await findPod(client, question.source);
    const { pod: destination, address } = await findDestination(client, question.destination);
    const facts: WhyFacts = {
      namespace: flags.namespace,
      source,
      sourceNamespace: await labelsOf(client, source),
      destination,
      destinationNamespace: destination && (await labelsOf(client, destination)),
      address,
      proxy: await askProxy(client, { namespace: flags.namespace, source, name: question.source, address }),
    };
    const answer = answerWhy(facts);
    context.out(flags.output === "json" ? `${JSON.stringify(answer, undefined, 2)}\n` : formatAnswer(answer));
    if (!answer.encrypted) process.exitCode = NOT_ENCRYPTED;
  } finally {
    client.close();
  }
}

async function connect(context: CliContext, flags: WhyFlags): Promise<KubeClient> {
  const [{ findKubeConfig, KubeClient }, { systemRandom }, { silentLog }] = await Promise.all([
    import("#kube"),
    import("#base/random"),
    import("#base/log"),
  ]);
  const path = flags.lab === undefined ? flags.kubeconfig : (await import("#lab")).labLayout(flags.lab).kubeconfig;
  const config = await findKubeConfig(context.env, path);
  return new KubeClient({ config, log: silentLog(), clock: context.clock, random: systemRandom });
}

async function findPod(client: KubeClient, text: string): Promise<Pod> {
  const { resources } = await import("#kube");
  const match = /^([^/\s]+)\/([^/\s]+)$/.exec(text);
  if (match === null) throw whyError("WHY_POD", `cannot read "${text}" as a pod: write NAMESPACE/POD`);
  const [, namespace = "", name = ""] = match;
  const pod = await client.find(resources.pods, { namespace, name });
  if (pod === undefined) throw whyError("WHY_POD", `there is no pod ${text}`, { details: { namespace, name } });
  return pod;
}

async function findDestination(client: KubeClient, text: string): Promise<{ pod: Pod | undefined; address: string }> {
  const colon = text.lastIndexOf(":");
  const [place, port] = [text.slice(0, colon), Number(text.slice(colon + 1))];
  if (colon < 0 || !Number.isInteger(port) || port < 1 || port > 65_535) {
    throw whyError("WHY_POD", `cannot read "${text}" as a destination: write NAMESPACE/POD:PORT or IP:PORT`);
  }
  if (!place.includes("/")) return { pod: await findByIp(client, place), address: text };
  const pod = await findPod(client, place);
  const ip = pod.status?.podIP;
  if (ip === undefined) throw whyError("WHY_POD", `pod ${place} has no address yet`);
  return { pod, address: ip.includes(":") ? `[${ip}]:${port}` : `${ip}:${port}` };
}

async function findByIp(client: KubeClient, place: string): Promise<Pod | undefined> {
  const { resources } = await import("#kube");
  const ip = place.replace(/^\[|\]$/g, "");
  const { items } = await client.list(resources.pods);
  return items.find(({ status, spec }) => status?.podIP === ip && spec?.hostNetwork !== true);
}

async function labelsOf(client: KubeClient, pod: Pod): Promise<Readonly<Record<string, string>>> {
  const { resources } = await import("#kube");
  const namespace = await client.find(resources.namespaces, { name: pod.metadata?.namespace ?? "" });
  return namespace?.metadata?.labels ?? {};
}

/** Asks the proxy of the source's node, inside its pod; a sentence when it cannot be asked. */
async function askProxy(
  client: KubeClient,
  { namespace, source, name, address }: { namespace: string; source: Pod; name: string; address: string },
): Promise<Explanation | string> {
  const { resources } = await import("#kube");
  const node = source.spec?.nodeName ?? "its node";
  const { items } = await client.list(resources.pods, { namespace, labelSelector: PROXY_SELECTOR });
  const proxy = items.find(({ spec }) => spec?.nodeName === node);
  if (proxy === undefined) return `no proxy runs on ${node}`;
  const query = new URLSearchParams({ source: name, destination: address });
  try {
    return await execAdmin(client, proxy, `/why?${query.toString()}`);
  } catch (error) {
    return `the proxy of ${node} could not be asked: ${messageOf(error)}`;
  }
}

async function execAdmin(client: KubeClient, proxy: Pod, path: string): Promise<Explanation> {
  const program = proxy.spec?.containers[0]?.command?.[0] ?? "veil";
  const at = { namespace: proxy.metadata?.namespace ?? "", pod: proxy.metadata?.name ?? "" };
  const { code, stdout, stderr } = await client.exec({ ...at, command: [program, "admin", path] });
  if (code !== 0) throw new Error((stderr || stdout).trim());
  return JSON.parse(stdout) as Explanation; // written by our own proxy
}
