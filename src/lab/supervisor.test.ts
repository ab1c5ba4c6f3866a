import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { seededRandom } from "#base/random";
import { labLayout } from "./layout.ts";
import { findProcess, isRunning } from "./processes.ts";
import { findRolePid, findState, stateFiles, writeWhole, type RoleSpec } from "./state.ts";
import { endRoles, Supervisor } from "./supervisor.ts";

const clock = systemClock();

function role(name: string, command: readonly string[]): RoleSpec {
  return { name, command, node: undefined, inheritsListener: false };
}

async function until(what: string, look: () => boolean): Promise<void> {
  for (let i = 0; i < 6000; i++) {
    if (look()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.fail(`waited for ${what}`);
}

describe("the supervisor of a lab", () => {
  const folder = mkdtempSync(join(tmpdir(), "vt-lab-supervisor-"));
  const lab = { ...labLayout("unit"), folder };
  const files = stateFiles(lab);
  const supervisor = new Supervisor({
    lab,
    clock,
    random: seededRandom(1),
    log: silentLog(),
    listenerFd: 0,
    env: { PATH: process.env["PATH"] },
  });
  const write = (...roles: RoleSpec[]): void => writeWhole(files.roles, JSON.stringify(roles));
  const pidOf = (name: string): number | undefined => findState(lab)?.roles[name]?.pid;
  const runs = (name: string, program: string): boolean =>
    readFileSync(`/proc/${pidOf(name) ?? 0}/comm`, "utf8") === `${program}\n`;

  before(async () => {
    write(role("one", ["sleep", "600"]));
    await supervisor.start();
  });
  after(async () => {
    await supervisor.drain(2_000);
    rmSync(folder, { recursive: true });
  });

  it("starts what is wanted, and names it in a file that it wrote before it became the role", async () => {
    await until("the role", () => pidOf("one") !== undefined && runs("one", "sleep"));
    const named = findRolePid(lab, "one");
    assert.equal(named?.pid, pidOf("one"));
    assert.ok(named !== undefined && isRunning(named));
  });

  it("starts a killed role again and counts it", async () => {
    const killed = pidOf("one") ?? 0;
    process.kill(killed, "SIGKILL");
    await until("the next one", () => ![undefined, killed].includes(pidOf("one")));
    const state = findState(lab)?.roles["one"];
    assert.equal(state?.restarts, 1);
    assert.equal(state?.lastEnd, "SIGKILL");
  });

  it("starts, ends and replaces roles as the list of roles changes", async () => {
    write(role("one", ["sleep", "600"]), role("two", ["sleep", "601"]));
    await until("the second role", () => pidOf("two") !== undefined);
    const [one, two] = [pidOf("one") ?? 0, pidOf("two") ?? 0];
    write(role("one", ["sleep", "600"]), role("two", ["sleep", "602"]));
    await until("its replacement", () => ![undefined, two].includes(pidOf("two")));
    assert.equal(pidOf("one"), one, "the other one stays");
    write(role("two", ["sleep", "602"]));
    await until("the end of the first", () => findProcess(one) === undefined);
  });

  it("keeps its roles when the list cannot be read, and takes the next one that can", async () => {
    const two = pidOf("two");
    writeWhole(files.roles, "{ not json");
    await new Promise((resolve) => setTimeout(resolve, 100));
    assert.equal(pidOf("two"), two);
    write(role("two", ["sleep", "602"]), role("three", ["sleep", "603"]));
    await until("the third role", () => pidOf("three") !== undefined);
  });

  it("waits longer and longer for a role that ends at once", async () => {
    write(role("broken", ["sh", "-c", "echo no; exit 3"]));
    await until("three tries", () => (findState(lab)?.roles["broken"]?.restarts ?? 0) >= 3);
    assert.equal(findState(lab)?.roles["broken"]?.lastEnd, "exit code 3");
    assert.ok(readFileSync(files.log("broken"), "utf8").startsWith("no\nno\n"));
  });

  it("is replaced by one that ends what it has left running", async () => {
    write(role("left", ["sleep", "604"]));
    await until("the role", () => pidOf("left") !== undefined && runs("left", "sleep"));
    const left = findRolePid(lab, "left");
    assert.ok(left !== undefined);
    await supervisor.drain(2_000);
    await endRoles(lab, clock);
    assert.ok(!isRunning(left));
    assert.equal(findRolePid(lab, "left"), undefined);
  });
});
