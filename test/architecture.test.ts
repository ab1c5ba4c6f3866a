import assert from "node:assert/strict";
import { existsSync, globSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { test } from "node:test";

/** Low to high. A component imports only from rows above its own, never sideways, never down. ARCHITECTURE.md shows the same table. */
const LAYERS: readonly (readonly string[])[] = [
  ["base"],
  ["linux", "model"],
  ["x509", "proto"],
  ["rpc", "kube", "capture", "programs", "cni"],
  ["xds", "ca", "identity", "discovery", "policy", "install", "wireguard"],
  ["hbone", "dns", "enrolment"],
  ["proxy", "apiserver", "doctor"],
  ["controller", "agent"],
  ["lab"],
  ["demo"],
  ["cli"],
  ["main"],
];

/** Only these may touch sockets, processes and files; the rest is pure and is tested without any. */
const EDGES = new Set([
  "linux",
  "rpc",
  "kube",
  "capture",
  "programs",
  "programs",
  "ca", // keeps keys where its backends keep them: a directory is one
  "hbone",
  "dns",
  "proxy",
  "cni",
  "enrolment",
  "wireguard",
  "doctor",
  "agent",
  "controller",
  "apiserver",
  "lab",
  "demo",
  "cli",
  "main",
]);
const EDGE_MODULES = /^node:(net|tls|http|https|http2|dgram|child_process|fs|fs\/promises|dns|worker_threads)$/;
const ENTERED_BY_FILE = new Set(["base", "model"]);
const BANNED_NAMES = /^(utils?|helpers?|common|misc|types)\.ts$/;

const root = resolve(import.meta.dirname, "..");
const source = join(root, "src");

interface Import {
  readonly file: string;
  readonly specifier: string;
  readonly typeOnly: boolean;
}

const files = globSync("**/*.ts", { cwd: source })
  .filter((file) => !file.startsWith("proto/gen/"))
  .map((file) => join(source, file));

function componentOf(file: string): string {
  return relative(source, file).split("/")[0] ?? "";
}

/** Static, re-export, side-effect and dynamic imports of a file. */
function importsOf(file: string): Import[] {
  const text = readFileSync(file, "utf8").replaceAll(/\/\*[\s\S]*?\*\/|^\s*\/\/.*$/gm, "");
  const found: Import[] = [];
  for (const match of text.matchAll(/^\s*(?:import|export)\s+(type\s)?[^"';]*?from\s+"([^"]+)"/gm)) {
    found.push({ file, specifier: match[2] ?? "", typeOnly: match[1] !== undefined });
  }
  for (const match of text.matchAll(/^\s*import\s+"([^"]+)"|\bimport\("([^"]+)"\)/gm)) {
    found.push({ file, specifier: match[1] ?? match[2] ?? "", typeOnly: false });
  }
  return found;
}

/** The file that a relative or `#` specifier names. Throws when there is none: such an import was not looked at. */
function target(entry: Import): string {
  if (entry.specifier.startsWith(".")) return resolve(dirname(entry.file), entry.specifier);
  const [component = "", ...rest] = entry.specifier.slice(1).split("/");
  if (rest.length === 0) return join(source, component, "index.ts");
  return join(source, component, component === "proto" ? rest.join("/") : `${rest.join("/")}.ts`);
}

const inner = files.flatMap(importsOf).filter(({ specifier }) => /^[.#]/.test(specifier));
const isTest = (file: string): boolean => file.endsWith(".test.ts");
/** A component's fakes, which tests (and the fakes) of higher components may enter by their file. */
const isFake = (file: string): boolean => file.endsWith("/testing.ts");

test("the check looks at the whole program", () => {
  assert.ok(files.length > 50, `only ${files.length} files found under ${source}`);
  assert.ok(inner.length > 100, `only ${inner.length} imports found`);
  for (const file of files)
    assert.ok(LAYERS.flat().includes(componentOf(file)), `${file} belongs to no component of the table`);
  for (const entry of inner)
    assert.ok(existsSync(target(entry)), `${entry.file} imports ${entry.specifier}, which is not there`);
});

test("imports point to lower layers, through the component's name", () => {
  const wrong: string[] = [];
  const level = (component: string): number => LAYERS.findIndex((row) => row.includes(component));
  for (const entry of inner) {
    const from = componentOf(entry.file);
    const to = componentOf(target(entry));
    const said = `${relative(root, entry.file)} imports ${entry.specifier}`;
    if (from === to) {
      if (!entry.specifier.startsWith(".")) wrong.push(`${said}: use a relative path inside a component`);
      continue;
    }
    if (level(to) >= level(from)) wrong.push(`${said}: ${to} is no lower layer than ${from}`);
    if (isFake(target(entry)) && (isTest(entry.file) || isFake(entry.file))) continue;
    if (entry.specifier.startsWith(".")) wrong.push(`${said}: enter another component by its name`);
    if (!ENTERED_BY_FILE.has(to) && to !== "proto" && entry.specifier.includes("/")) wrong.push(`${said}: use #${to}`);
  }
  assert.deepEqual(wrong, []);
});

test("no files import each other in a circle", () => {
  const graph = new Map<string, string[]>();
  for (const entry of inner) graph.set(entry.file, [...(graph.get(entry.file) ?? []), target(entry)]);
  const done = new Set<string>();
  const visit = (file: string, path: readonly string[]): void => {
    assert.ok(!path.includes(file), `circle: ${[...path, file].map((at) => relative(root, at)).join(" -> ")}`);
    if (done.has(file)) return;
    for (const next of graph.get(file) ?? []) visit(next, [...path, file]);
    done.add(file);
  };
  for (const file of graph.keys()) visit(file, []);
});

test("only edge components touch sockets, processes and files", () => {
  const wrong = files
    .filter((file) => !isTest(file) && !EDGES.has(componentOf(file)))
    .flatMap(importsOf)
    .filter(({ specifier, typeOnly }) => EDGE_MODULES.test(specifier) && !typeOnly)
    .map(({ file, specifier }) => `${relative(root, file)} imports ${specifier}`)
    .filter((said) => !said.startsWith("src/base/ip.ts imports node:net"));
  assert.deepEqual(wrong, []);
});

test("files are named for what they hold", () => {
  assert.deepEqual(
    files.filter((file) => BANNED_NAMES.test(file.split("/").at(-1) ?? "")),
    [],
  );
});

test("ARCHITECTURE.md shows this table", () => {
  const text = readFileSync(join(root, "ARCHITECTURE.md"), "utf8");
  const shown = [...text.matchAll(/^\| \d+ \| ([a-z0-9, ]+) \|/gm)].map((match) =>
    (match[1] ?? "").split(",").map((name) => name.trim()),
  );
  assert.deepEqual(shown, LAYERS);
});
