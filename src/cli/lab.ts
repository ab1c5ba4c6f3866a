import { Command, InvalidArgumentError, Option } from "commander";
import { systemRandom } from "#base/random";
import { runRole, type CliContext } from "./context.ts";
import { labControllersCommand } from "./lab-controllers.ts";
import { labKubeletCommand } from "./lab-kubelet.ts";

/** The name of a lab when none is given. */
const DEFAULT_NAME = "lab";
const SUPERVISOR_DRAIN_MS = 5_000;
/** The supervisor is given the API's listening socket as this descriptor. */
const LISTENER_FD = 3;

interface NameOption {
  readonly name: string;
}

interface UpFlags {
  readonly nodes?: number;
  readonly port?: number;
  /** True: the one of the system. */
  readonly wireguard?: string | true;
}

interface OutputOption {
  readonly output: "text" | "json";
}

/** `veil lab …`: a whole cluster on this machine. */
export function labCommand(context: CliContext): Command {
  return new Command("lab")
    .description("a cluster on this machine, in network namespaces: nothing leaves it")
    .enablePositionalOptions()
    .addCommand(upCommand(context))
    .addCommand(downCommand(context))
    .addCommand(statusCommand(context))
    .addCommand(envCommand(context))
    .addCommand(execCommand(context))
    .addCommand(superviseCommand(context), { hidden: true })
    .addCommand(labKubeletCommand(context), { hidden: true })
    .addCommand(labControllersCommand(context), { hidden: true });
}

function nameOption(): Option {
  return new Option("--name <name>", "which lab").default(DEFAULT_NAME);
}

function outputOption(): Option {
  return new Option("-o, --output <format>", "how to print facts").choices(["text", "json"]).default("text");
}

function wholeNumber(text: string): number {
  if (!/^\d{1,5}$/.test(text)) throw new InvalidArgumentError("It is no whole number.");
  return Number(text);
}

/** What the lab's functions work with. */
async function labContext(context: CliContext, name: string) {
  const { labLayout, lineProgress } = await import("#lab");
  const { clock, interactive, env, signal, program } = context;
  return {
    lab: labLayout(name),
    clock,
    signal,
    env,
    program,
    progress: lineProgress({ clock, interactive, write: context.note }),
  };
}

function upCommand(context: CliContext): Command {
  return new Command("up")
    .description("bring a lab up, or repair and complete one that is there")
    .addOption(nameOption())
    .option("--nodes <count>", "how many nodes (default: 2, or as many as it has)", wholeNumber)
    .option("--port <port>", "port of the API on 127.0.0.1 (default: a free one)", wholeNumber)
    .option("--wireguard [program]", "tunnels between the nodes; this wireguard-go runs them")
    .addOption(outputOption())
    .action(async ({ wireguard, ...options }: NameOption & OutputOption & UpFlags) => {
      const { bringUp, formatStatus, labStatus } = await import("#lab");
      const lab = await labContext(context, options.name);
      const startMs = context.clock.monotonic();
      await bringUp(lab, { ...options, wireguard: wireguard === true ? "wireguard-go" : wireguard });
      const seconds = Math.round(context.clock.monotonic() - startMs) / 1000;
      const status = await labStatus(lab.lab, context.clock);
      context.out(options.output === "json" ? json({ ...status, seconds }) : formatStatus(status));
      if (options.output === "text") context.note(nextStep(context, options.name));
    });
}

function downCommand(context: CliContext): Command {
  return new Command("down")
    .description("remove a lab and everything of it, however much of it is there")
    .addOption(nameOption())
    .addOption(outputOption())
    .action(async (options: NameOption & OutputOption) => {
      const { takeDown } = await import("#lab");
      const removed = await takeDown(await labContext(context, options.name));
      if (options.output === "json") context.out(json({ name: options.name, removed }));
    });
}

function statusCommand(context: CliContext): Command {
  return new Command("status")
    .description("what runs of a lab, and whether it is well (exit code 1 when something is not)")
    .addOption(nameOption())
    .addOption(outputOption())
    .action(async (options: NameOption & OutputOption) => {
      const { formatStatus, labLayout, labStatus } = await import("#lab");
      const status = await labStatus(labLayout(options.name), context.clock);
      context.out(options.output === "json" ? json(status) : formatStatus(status));
      if (!status.ready) process.exitCode = 1;
    });
}

function envCommand(context: CliContext): Command {
  return new Command("env")
    .description("print what a shell evaluates to reach the lab's API with kubectl")
    .addOption(nameOption())
    .option("-u, --unset", "print how to forget it")
    .action(async ({ name, unset }: NameOption & { unset?: true }) => {
      const { findNode, labLayout } = await import("#lab");
      if (unset === true) {
        context.out("unset KUBECONFIG;\n");
        return;
      }
      const lab = labLayout(name);
      findNode(lab, "node1"); // a lab that is not up has no kubeconfig
      const self = `${context.program} lab env${name === DEFAULT_NAME ? "" : ` --name ${name}`}`;
      context.out(`export KUBECONFIG=${lab.kubeconfig};\n`);
      context.out(`# For this shell: eval "$(${self})"     To undo: eval "$(${self} --unset)"\n`);
    });
}

function execCommand(context: CliContext): Command {
  return new Command("exec")
    .description("run a command on a node (node1) or in a pod (namespace/pod)")
    .addOption(nameOption())
    .argument("<place>", "node1, or namespace/pod")
    .argument("<command...>", "the command and its arguments")
    .passThroughOptions()
    .action(async (place: string, command: string[], { name }: NameOption) => {
      const { runAtPlace } = await import("#lab");
      process.exitCode = await runAtPlace(await labContext(context, name), place, command);
    });
}

function json(value: unknown): string {
  return `${JSON.stringify(value, undefined, 2)}\n`;
}

function nextStep(context: CliContext, name: string): string {
  const option = name === DEFAULT_NAME ? "" : ` --name ${name}`;
  return `\nFor this shell: eval "$(${context.program} lab env${option})"\n`;
}

function superviseCommand(context: CliContext): Command {
  return new Command("supervise")
    .description("keep the roles of a lab running (veil lab up starts it)")
    .addOption(nameOption())
    .action(async ({ name }: NameOption) => {
      const { closeInherited, labLayout, Supervisor } = await import("#lab");
      closeInherited([LISTENER_FD]);
      const { clock, env } = context;
      const log = context.log("lab-supervisor");
      const supervisor = new Supervisor({
        lab: labLayout(name),
        clock,
        random: systemRandom,
        log,
        listenerFd: LISTENER_FD,
        env,
      });
      await runRole(context, [supervisor], SUPERVISOR_DRAIN_MS);
    });
}
