import { existsSync } from "node:fs";
import { Command, Option } from "commander";
import type { CliContext } from "./context.ts";

interface DemoFlags {
  readonly keep?: true;
  readonly name: string;
  readonly output: "text" | "json";
}

/** `veil demo`: from nothing to proven mutual TLS between two nodes, on this machine. */
export function demoCommand(context: CliContext): Command {
  return new Command("demo")
    .description("bring up two nodes, watch the wire, label two namespaces, and prove that they are encrypted")
    .option("--keep", "leave the lab running, and say what to type next")
    .option("--name <name>", "name of the lab that the demo makes", "demo")
    .addOption(
      new Option("-o, --output <format>", "what to print at the end").choices(["text", "json"]).default("text"),
    )
    .addHelpText(
      "after",
      "\nThe fields of -o json are described in docs/demo.md. Exit code 0: everything was seen; 1: something was not.",
    )
    .action((flags: DemoFlags) => play(context, flags));
}

async function play(context: CliContext, flags: DemoFlags): Promise<void> {
  const [
    { bringUp, labLayout, lineProgress, netnsPath, nodeLayouts, takeDown, UNDERLAY_INTERFACE },
    { ensureKubectl },
    { formatReport, runDemo },
  ] = await Promise.all([import("#lab"), import("#apiserver"), import("#demo")]);
  const { env, signal, clock, program, note, interactive } = context;
  const lab = labLayout(flags.name);
  const labContext = { lab, clock, signal, program, env, progress: lineProgress({ clock, interactive, write: note }) };
  const down = (): Promise<unknown> => takeDown({ ...labContext, signal: new AbortController().signal });
  let keep = false;
  try {
    if (existsSync(lab.folder)) await down(); // a demo begins from nothing, also after one that was killed
    const startMs = clock.monotonic();
    await bringUp(labContext, { nodes: 2 });
    const upMs = clock.monotonic() - startMs;
    const kubectl = await ensureKubectl({ env, signal, note });
    const nodes = nodeLayouts(lab, 2).map(({ name, netns }) => ({
      name,
      netns: netnsPath(netns),
      underlay: UNDERLAY_INTERFACE,
    }));
    const cluster = { name: lab.name, kubeconfig: lab.kubeconfig, nodes };
    const played = await runDemo({ lab: cluster, kubectl, program, clock, signal, progress: labContext.progress });
    const report = { ...played, seconds: Math.round(upMs + played.seconds * 1000) / 1000 };
    context.out(flags.output === "json" ? `${JSON.stringify(report, undefined, 2)}\n` : formatReport(report));
    if (!report.proven) process.exitCode = 1;
    keep = flags.keep === true;
    if (keep) note(nextSteps(program, flags.name));
  } finally {
    if (!keep && existsSync(lab.folder)) await down();
  }
}

function nextSteps(program: string, name: string): string {
  return `
The lab keeps running. What to type next:
  eval "$(${program} lab env --name ${name})"            # for this shell's kubectl (or use: ${program} kubectl ...)
  ${program} kubectl get pods -A -o wide
  ${program} why shop/customer bank/ledger:8080
  ${program} kubectl -n veil-system logs -l app=ztunnel --tail 5
  ${program} kubectl label namespace visitors io.cilium/mtls-enabled=true
  ${program} lab exec --name ${name} node1 -- tcpdump -n -i eth0 -c 20 tcp
  ${program} lab down --name ${name}
`;
}
