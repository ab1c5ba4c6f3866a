import assert from "node:assert/strict";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { sleep, systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { CellSet } from "#base/metrics";
import { CniInstaller, uninstall } from "./installer.ts";
import { cniMetrics } from "./metrics.ts";

const clock = systemClock();
const never = new AbortController().signal;
const BRIDGE = JSON.stringify({ cniVersion: "1.0.0", name: "net", plugins: [{ type: "bridge" }] });

interface World {
  readonly confDir: string;
  readonly binDir: string;
  readonly credentials: string;
  readonly cells: CellSet;
  /** What was told as a problem, by its code. */
  readonly problems: string[];
  readonly make: () => CniInstaller;
}

function setUp(t: TestContext): World {
  const folder = mkdtempSync(join(tmpdir(), "vt-cni-"));
  t.after(() => rmSync(folder, { recursive: true }));
  const [confDir, binDir, plugin] = [join(folder, "net.d"), join(folder, "bin"), join(folder, "veil-cni")];
  for (const made of [confDir, binDir]) mkdirSync(made);
  writeFileSync(plugin, "the plugin");
  const credentials = join(folder, "api.json");
  const entry = { socket: "/s", namespace: "veil-system", strict: false, credentials };
  const cells = new CellSet(cniMetrics);
  const problems: string[] = [];
  const onProblem = (code: string): void => void problems.push(code);
  const rest = { credentials: async () => "secret", clock, log: silentLog(), cells, onProblem };
  return {
    confDir,
    binDir,
    credentials,
    cells,
    problems,
    make: () => new CniInstaller({ confDir, binDir, plugin, entry, ...rest }),
  };
}

async function until(what: string, look: () => boolean): Promise<void> {
  const endMs = clock.monotonic() + 60_000;
  while (!look()) {
    assert.ok(clock.monotonic() < endMs, `waited a minute for ${what}`);
    await sleep(clock, 20);
  }
}

/** The types in the list that a container runtime would take. */
function chain(confDir: string): string[] {
  const [first = ""] = readdirSync(confDir)
    .filter((name) => /\.(conf|conflist)$/.test(name))
    .toSorted();
  const { plugins = [] } = JSON.parse(readFileSync(join(confDir, first), "utf8")) as { plugins?: { type: string }[] };
  return plugins.map(({ type }) => type);
}

test("the plugin comes, stays when the installer stops, and goes without a trace", async (t) => {
  const { confDir, binDir, credentials, cells, make } = setUp(t);
  writeFileSync(join(confDir, "10-net.conflist"), BRIDGE);
  const installer = make();
  await installer.start(never);
  assert.deepEqual(installer.status, { chained: true, file: join(confDir, "10-net-veil.conflist") });
  assert.deepEqual(chain(confDir), ["bridge", "veil-cni"]);
  const program = join(binDir, "veil-cni");
  assert.deepEqual([readFileSync(program, "utf8"), statSync(program).mode & 0o777], ["the plugin", 0o755]);
  assert.deepEqual([readFileSync(credentials, "utf8"), statSync(credentials).mode & 0o777], ["secret", 0o600]);
  await installer.drain(0);
  assert.deepEqual(chain(confDir), ["bridge", "veil-cni"]);
  const again = make();
  await again.start(never);
  await again.drain(0);
  assert.equal(cells.bind("veil_cni_repairs_total", {}).value, 1);
  assert.equal((await uninstall({ confDir, binDir, credentials })).length, 3);
  assert.deepEqual(
    [readdirSync(confDir), readdirSync(binDir), existsSync(credentials)],
    [["10-net.conflist"], [], false],
  );
  assert.equal(readFileSync(join(confDir, "10-net.conflist"), "utf8"), BRIDGE);
  assert.deepEqual(await uninstall({ confDir, binDir, credentials }), []);
});

test("the plugin goes when it is not to be kept, and comes back when it is", async (t) => {
  const { confDir, binDir, credentials, make } = setUp(t);
  writeFileSync(join(confDir, "10-net.conflist"), BRIDGE);
  const installer = make();
  installer.keep(false);
  await installer.start(never);
  t.after(() => installer.drain(0));
  assert.ok(installer.removed, "it was never there");
  installer.keep(true);
  await until("the plugin", () => installer.status.chained);
  assert.deepEqual([chain(confDir), installer.removed], [["bridge", "veil-cni"], false]);
  installer.keep(false);
  await until("the end of the plugin", () => installer.removed);
  assert.deepEqual(
    [readdirSync(confDir), readdirSync(binDir), existsSync(credentials)],
    [["10-net.conflist"], [], false],
  );
});

test("what is removed, rewritten or replaced is put right", async (t) => {
  const { confDir, binDir, make } = setUp(t);
  const [source, own, program] = [
    join(confDir, "10-net.conflist"),
    join(confDir, "10-net-veil.conflist"),
    join(binDir, "veil-cni"),
  ];
  writeFileSync(source, BRIDGE);
  const installer = make();
  await installer.start(never);
  t.after(() => installer.drain(0));
  rmSync(own);
  await until("the removed list", () => existsSync(own));
  writeFileSync(own, BRIDGE);
  await until("the overwritten list", () => chain(confDir).includes("veil-cni"));
  writeFileSync(source, BRIDGE.replace("bridge", "ptp"));
  await until("the changed source", () => chain(confDir)[0] === "ptp");
  writeFileSync(program, "an old plugin");
  writeFileSync(source, BRIDGE); // is noticed at once; the plugin's file with the next look
  await until("the plugin's file", () => readFileSync(program, "utf8") === "the plugin");
  writeFileSync(join(confDir, "00-first.conf"), '{"cniVersion":"0.4.0","name":"f","type":"macvlan"}');
  await until("a source that comes before", () => chain(confDir)[0] === "macvlan");
  assert.deepEqual(chain(confDir), ["macvlan", "veil-cni"]);
  await until("the old list to go", () => !existsSync(own));
});

test("a node without a network, or with one that is broken, is reported and left as it is", async (t) => {
  const { confDir, cells, problems, make } = setUp(t);
  const installer = make();
  const code = (): string | undefined => (installer.status.chained ? undefined : installer.status.code);
  await installer.start(never);
  t.after(() => installer.drain(0));
  assert.equal(code(), "CNI_NO_CONFIG");
  writeFileSync(join(confDir, "10-net.conflist"), "not json");
  await until("the broken file", () => code() === "CNI_CONFIG_INVALID");
  assert.deepEqual(readdirSync(confDir), ["10-net.conflist"]);
  writeFileSync(join(confDir, "10-net.conflist"), BRIDGE);
  await until("the mended file", () => installer.status.chained);
  writeFileSync(join(confDir, "10-net.conflist"), "not json");
  await until("the broken file", () => code() === "CNI_CONFIG_INVALID");
  assert.deepEqual(chain(confDir), ["bridge", "veil-cni"]); // the last good one stays in force
  assert.equal(cells.bind("veil_cni_chained", {}).value, 0);
  rmSync(join(confDir, "10-net.conflist"));
  await until("the end of the network", () => readdirSync(confDir).length === 0);
  assert.deepEqual(problems, ["CNI_CONFIG_INVALID", "CNI_CONFIG_INVALID"], "no network yet is no problem");
});

test("folders that are not there or cannot be written are named", async (t) => {
  for (const broken of ["confDir", "binDir"] as const) {
    const world = setUp(t);
    writeFileSync(join(world.confDir, "10-net.conflist"), BRIDGE);
    rmSync(world[broken], { recursive: true });
    writeFileSync(world[broken], "a file");
    const installer = world.make();
    await installer.start(never);
    const { status } = installer;
    assert.ok(!status.chained && status.code === "CNI_FOLDER" && status.reason.includes(world[broken]));
    assert.deepEqual(world.problems, ["CNI_FOLDER"]);
    await installer.drain(0);
  }
});
