import { Command, InvalidArgumentError, Option } from "commander";
import { findHostPort } from "#base/ip";
import type { Clock } from "#base/clock";
import type { ProgramContext } from "./echo-servers.ts";

interface ServeOptions {
  readonly port: number;
  readonly address: string;
}

interface ClientFlags {
  readonly interval: number;
  readonly timeout: number;
  readonly count?: number;
  readonly keep: boolean;
  readonly words: string;
}

interface Target {
  readonly host: string;
  readonly port: number;
}

/** What the commands use of the process. `out` takes text with its line ends. */
export interface CommandContext extends ProgramContext {
  readonly clock: Clock;
}

/** `veil program …`: small programs for pods. They load nothing of Veil that they do not need. */
export function podProgramsCommand(context: CommandContext): Command {
  return new Command("program")
    .description("small programs for pods: echo servers and a periodic client")
    .addCommand(
      serverCommand("http-echo", "answers HTTP requests with the pod's name and the request's own words")
        .option("--words <text>", "said in each answer", "the answer in clear words")
        .action(async (options: ServeOptions & { words: string }) => {
          const { httpEcho } = await import("./echo-servers.ts");
          await httpEcho(options, programContext(context));
        }),
    )
    .addCommand(
      serverCommand("tcp-echo", "sends back every byte").action(async (options: ServeOptions) => {
        const { tcpEcho } = await import("./echo-servers.ts");
        await tcpEcho(options, programContext(context));
      }),
    )
    .addCommand(
      serverCommand("udp-echo", "sends back every datagram").action(async (options: ServeOptions) => {
        const { udpEcho } = await import("./echo-servers.ts");
        await udpEcho(options, programContext(context));
      }),
    )
    .addCommand(clientCommand(context));
}

function serverCommand(name: string, description: string): Command {
  return new Command(name)
    .description(description)
    .addOption(new Option("--port <port>", "where to listen").default(8080).argParser(portNumber))
    .option("--address <ip>", "where to listen", "0.0.0.0");
}

function clientCommand(context: CommandContext): Command {
  return new Command("client")
    .description("asks HTTP servers periodically and prints a line per try: time, target, result, answer")
    .argument("<target...>", "host:port, several are asked in turn", addTarget)
    .option("--interval <ms>", "time between the starts of two tries", milliseconds, 1000)
    .option("--timeout <ms>", "time for one try", milliseconds, 5000)
    .option("--count <tries>", "stop after so many tries (default: never)", milliseconds)
    .option("--keep", "keep one connection per target instead of a new one per try", false)
    .option("--words <text>", "said in each request", "the question in clear words")
    .action(async (targets: readonly Target[], flags: ClientFlags) => {
      const { runClient } = await import("./client.ts");
      const { interval: intervalMs, timeout: timeoutMs, count, keep, words } = flags;
      await runClient({ targets, intervalMs, timeoutMs, count, keep, words }, context.clock, programContext(context));
    });
}

function programContext(context: CommandContext): ProgramContext {
  return { env: context.env, signal: context.signal, out: (line) => context.out(`${line}\n`) };
}

function addTarget(text: string, before: readonly Target[] | undefined): readonly Target[] {
  const target = findHostPort(text.replace(/^http:\/\//, "").replace(/\/$/, ""));
  if (target === undefined) throw new InvalidArgumentError("It is no host:port.");
  return [...(before ?? []), target];
}

function portNumber(text: string): number {
  const port = Number(text);
  if (!/^\d+$/.test(text) || port < 1 || port > 65_535) throw new InvalidArgumentError("It is no port.");
  return port;
}

function milliseconds(text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new InvalidArgumentError("It is no whole number.");
  return Number(text);
}
