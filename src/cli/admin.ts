import { request } from "node:http";
import { Command, Option } from "commander";
import type { CliContext } from "./context.ts";

interface AdminFlags {
  readonly port: string;
  readonly post?: true;
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
    .action(async (path: string, flags: AdminFlags) => {
      const { status, body } = await ask(path, flags, context.signal);
      context.out(body.endsWith("\n") ? body : `${body}\n`);
      if (status >= 400) process.exitCode = 1;
    });
}

async function ask(path: string, flags: AdminFlags, signal: AbortSignal): Promise<{ status: number; body: string }> {
  const method = flags.post ? "POST" : "GET";
  return new Promise((resolve, reject) => {
    const call = request(
      { host: "127.0.0.1", port: Number(flags.port), path, method, signal, timeout: 5_000 },
      (answer) => {
        let body = "";
        answer.setEncoding("utf8").on("data", (text: string) => (body += text));
        answer.on("end", () => resolve({ status: answer.statusCode ?? 0, body }));
      },
    );
    call.on("timeout", () => call.destroy(new Error("no answer within 5 s")));
    call.on("error", (cause) => reject(new Error(`cannot ask the proxy at 127.0.0.1:${flags.port}`, { cause })));
    call.end();
  });
}
