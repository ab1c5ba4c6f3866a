import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import type { Command } from "commander";
import { systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { PageServer, textPage } from "#rpc";
import { buildProgram, type CliContext } from "./index.ts";

function build(): { program: Command; said: () => string } {
  let said = "";
  const write = (text: string): void => {
    said += text;
  };
  const context: CliContext = {
    env: {},
    signal: new AbortController().signal,
    untilHurried: () => new AbortController().signal,
    clock: systemClock(),
    program: "/veil",
    out: write,
    note: write,
    interactive: false,
    log: silentLog,
  };
  return { program: buildProgram(context, "1.2.3"), said: () => said };
}

const run = (words: string[]): { parse: Promise<unknown>; said: () => string } => {
  const { program, said } = build();
  return { parse: program.parseAsync(["node", "veil", ...words]), said };
};

test("unknown commands and flags are refused with the right one, at every level", async () => {
  for (const [words, suggestion] of [
    [["demoo"], "demo"],
    [["--vesion"], "--version"],
    [["demo", "--kep"], "--keep"],
  ] as const) {
    const { parse, said } = run([...words]);
    await assert.rejects(parse, { name: "CommanderError" }, words.join(" "));
    assert.match(said(), new RegExp(`Did you mean ${suggestion}\\?`));
  }
});

test("every command explains itself and each of its options", () => {
  const all = (command: Command): Command[] => [command, ...command.commands.flatMap(all)];
  for (const command of all(build().program)) {
    assert.ok(command.description() !== "" || command.name() === "help", `${command.name()} has no description`);
    for (const option of command.options.filter(({ hidden }) => !hidden))
      assert.notEqual(option.description, "", `${command.name()} ${option.flags}`);
  }
});

test("the version is printed as it is", async () => {
  const { parse, said } = run(["--version"]);
  await assert.rejects(parse, { exitCode: 0 });
  assert.equal(said(), "1.2.3\n");
});

test("the admin pages of a proxy are printed, or written to a file as they are", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "vt-admin-"));
  const bytes = Uint8Array.of(0x1f, 0x8b, 0, 0xff);
  const server = new PageServer({
    name: "admin",
    host: "127.0.0.1",
    port: 0,
    log: silentLog(),
    handle: async ({ path, method }) => {
      if (path !== "/debug/pprof/heap") return textPage(path === "/logging" ? 200 : 404, method);
      return { status: 200, contentType: "application/octet-stream", body: bytes };
    },
  });
  await server.start(new AbortController().signal);
  t.after(async () => {
    rmSync(folder, { recursive: true });
    await server.drain();
  });
  const admin = (...words: string[]): ReturnType<typeof run> => run(["admin", "--port", String(server.port), ...words]);
  const logging = admin("/logging", "--post");
  await logging.parse;
  assert.equal(logging.said(), "POST\n");
  const file = join(folder, "heap.pb.gz");
  await admin("/debug/pprof/heap", "-o", file).parse;
  assert.deepEqual([...readFileSync(file)], [...bytes]);
  const missing = admin("/nothing", "-o", join(folder, "none"));
  await missing.parse;
  assert.equal(process.exitCode, 1);
  process.exitCode = 0;
  assert.equal(missing.said(), "GET\n");
  assert.ok(!existsSync(join(folder, "none")), "what went wrong is said, not written");
});
