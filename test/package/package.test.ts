import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { after, test } from "node:test";

const root = resolve(import.meta.dirname, "../..");
const folder = mkdtempSync(join(tmpdir(), "veil-package-"));
after(() => {
  spawnSync(join(root, "bin/veil"), ["lab", "down", "--name", "vt-package"]);
  rmSync(folder, { recursive: true });
});

/** An environment without this checkout's modules on the path, as a user has it. */
const PATH = (process.env["PATH"] ?? "").split(":").filter((part) => !part.includes("node_modules"));
const env = { ...process.env, PATH: PATH.join(":"), NODE_COMPILE_CACHE: join(folder, "cache") };
const run = (command: string, args: readonly string[], cwd: string): string => {
  try {
    return execFileSync(command, args, {
      cwd,
      env,
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
      timeout: 240_000,
    });
  } catch (error) {
    const { stdout, stderr } = error as { stdout?: string; stderr?: string };
    throw new Error(`${command} ${args.join(" ")} failed\n${stdout ?? ""}\n${stderr ?? ""}`, { cause: error });
  }
};

test("the package that npm pack makes is plain JavaScript, installs, and plays the whole demo", () => {
  const [packed] = JSON.parse(run("npm", ["pack", "--json", "--pack-destination", folder], root)) as [
    { filename: string; files: { path: string }[] },
  ];
  const paths = packed.files.map(({ path }) => path);
  assert.ok(paths.includes("dist/main/veil.js"));
  assert.deepEqual(
    paths.filter((path) => path.endsWith(".ts") && !path.startsWith("dist/proto/gen/")),
    [],
  );
  run("npm", ["init", "-y"], folder);
  run("npm", ["install", "--no-audit", "--no-fund", "--loglevel=error", join(folder, packed.filename)], folder);
  const veil = join(folder, "node_modules/.bin/veil");
  const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };
  assert.equal(run(veil, ["--version"], "/").trim(), version);
  assert.match(run(veil, ["--help"], "/"), /Usage: veil/);
  const report = JSON.parse(run(veil, ["demo", "--name", "vt-package", "-o", "json"], "/")) as { proven: boolean };
  assert.equal(report.proven, true);
});
