import { writeFile } from "node:fs/promises";
import { request } from "node:http";
import { Command, Option } from "commander";
import type { CliContext } from "./context.ts";

interface AdminFlags {
  readonly port: string;
  readonly post?: true;
  readonly output?: string;
}

/** `veil admin PATH`: asks the proxy of this node, on its loopback admin port. Other commands run it inside the proxy's pod. */
export function adminCommand(context: CliContext): Command {
  return new Command("admin")
    .description(
      "ask the proxy of this node: /config_dump, /why?source=…&destination=…, /debug/…, /logging, /quitquitquit",
    )
    .argument("<path>", "what to ask for")
    .addOption(new Option("--port <port>", "admin port of the proxy").default("15000"))
    .option("--post", "use POST, for what changes something")
    .option("-o, --output <file>", "write the answer to a file, as it is: for profiles")
    .action(async (path: string, flags: AdminFlags) => {
      const { status, body } = await ask(path, flags, context.signal);
      const text = body.toString("utf8");
      if (status < 400 && flags.output !== undefined) await writeFile(flags.output, body);
      else context.out(text.endsWith("\n") ? text : `${text}\n`);
      if (status >= 400) process.exitCode = 1;
    });
}

/** How long the proxy may be silent; a profile is silent while it is recorded, 300 s at most. */
const PATIENCE_MS = 5_000;
const PROFILE_PATIENCE_MS = 305_000;

async function ask(path: string, flags: AdminFlags, signal: AbortSignal): Promise<{ status: number; body: Buffer }> {
  const method = flags.post ? "POST" : "GET";
  const timeout = path.startsWith("/debug/pprof/") ? PROFILE_PATIENCE_MS : PATIENCE_MS;
  return new Promise((resolve, reject) => {
    const call = request({ host: "127.0.0.1", port: Number(flags.port), path, method, signal, timeout }, (answer) => {
      const parts: Buffer[] = [];
      answer.on("data", (part: Buffer) => parts.push(part));
      answer.on("end", () => resolve({ status: answer.statusCode ?? 0, body: Buffer.concat(parts) }));
    });
    call.on("timeout", () => call.destroy(new Error(`no answer within ${timeout / 1000} s`)));
    call.on("error", (cause) => reject(new Error(`cannot ask the proxy at 127.0.0.1:${flags.port}`, { cause })));
    call.end();
  });
}
