import { Command, InvalidArgumentError } from "commander";
import type { ListenAddress } from "#apiserver";
import { findHostPort, formatHostPort, parseCidr, type Cidr } from "#base/ip";
import { messageOf } from "#base/errors";
import { LOG_LEVELS, type LogLevel } from "#base/log";
import { systemRandom } from "#base/random";
import { runRole, type CliContext } from "./context.ts";

const DRAIN_MS = 2000;
const LEAST_FD = 3;

interface ServeOptions {
  readonly data: string;
  readonly listen: readonly ListenAddress[];
  readonly advertise?: { host: string; port: number };
  readonly serviceCidr: Cidr;
  readonly logLevel: LogLevel;
}

/** `veil apiserver`: the embedded Kubernetes API, and kubeconfigs for its clients. */
export function apiserverCommand(context: CliContext): Command {
  const command = new Command("apiserver")
    .description("serve the part of the Kubernetes API that Veil and kubectl need, on SQLite")
    .option("--data <directory>", "where keys and objects are kept; made on first start (required)")
    .option(
      "--listen <address>",
      "HOST:PORT, or fd:N for an inherited listening socket; may be repeated",
      addListen,
      [],
    )
    .option(
      "--advertise <host:port>",
      "how clients inside the cluster reach this server (default: the first --listen)",
      readHostPort,
    )
    .option("--service-cidr <cidr>", "where addresses of Services come from", readCidr, parseCidr("10.96.0.0/16"))
    .option("--log-level <level>", `one of ${LOG_LEVELS.join(", ")}`, readLevel, "info")
    .action(async ({ data, ...options }: Partial<Pick<ServeOptions, "data">> & Omit<ServeOptions, "data">) => {
      // Not a required option of commander's: that would be required of the subcommand too, twice.
      if (data === undefined) command.error("error: required option '--data <directory>' not specified");
      else await serve(context, { ...options, data });
    });
  command.addCommand(kubeconfigCommand(context));
  return command;
}

async function serve(context: CliContext, options: ServeOptions): Promise<void> {
  const { ApiServer } = await import("#apiserver");
  const listen = options.listen.length === 0 ? [{ host: "127.0.0.1", port: 6443 }] : options.listen;
  const server = new ApiServer({
    dataDir: options.data,
    listen,
    ...(options.advertise && { advertise: options.advertise }),
    serviceCidr: options.serviceCidr,
    log: context.log("apiserver", options.logLevel),
    clock: context.clock,
    random: systemRandom,
  });
  const ready = {
    name: "ready",
    start: async (): Promise<void> => {
      const addresses = server.addresses.map(({ host, port }) => formatHostPort(host, port));
      context.out(
        `${JSON.stringify({ ready: true, role: "apiserver", listen: addresses, kubeconfig: server.adminKubeconfig })}\n`,
      );
    },
    drain: async (): Promise<void> => {},
  };
  await runRole(context, [server, ready], DRAIN_MS);
}

function kubeconfigCommand(context: CliContext): Command {
  return new Command("kubeconfig")
    .description("print a kubeconfig with a fresh client certificate; works while the server is stopped")
    .requiredOption("--data <directory>", "the server's data directory")
    .requiredOption("--user <name>", "user name, such as system:node:node1")
    .option(
      "--group <name>",
      "group of the user; may be repeated",
      (value: string, before: string[]) => [...before, value],
      [],
    )
    .requiredOption("--server <url>", "the server's URL, such as https://172.20.0.2:6443")
    .action(async (options: { data: string; user: string; group: string[]; server: string }) => {
      const { createKubeconfig } = await import("#apiserver");
      const { data: dataDir, user, group: groups, server } = options;
      context.out(await createKubeconfig({ dataDir, user, groups, server }));
    });
}

function addListen(text: string, before: readonly ListenAddress[]): readonly ListenAddress[] {
  const fd = /^fd:(\d{1,6})$/.exec(text)?.[1];
  if (fd !== undefined && Number(fd) >= LEAST_FD) return [...before, { fd: Number(fd) }];
  return [...before, readHostPort(text)];
}

function readHostPort(text: string): { host: string; port: number } {
  const found = findHostPort(text);
  if (found === undefined)
    throw new InvalidArgumentError("expected HOST:PORT, such as 127.0.0.1:6443, or fd:3 for an inherited socket");
  return found;
}

function readCidr(text: string): Cidr {
  try {
    return parseCidr(text);
  } catch (error) {
    throw new InvalidArgumentError(messageOf(error));
  }
}

function readLevel(text: string): LogLevel {
  const level = LOG_LEVELS.find((one) => one === text);
  if (level === undefined) throw new InvalidArgumentError(`expected one of ${LOG_LEVELS.join(", ")}`);
  return level;
}
