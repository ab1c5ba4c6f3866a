import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { describe, it } from "node:test";
import { pino } from "pino";
import { LogScopes } from "./log.ts";

function rig() {
  const lines: string[] = [];
  const root = pino({ level: "info" }, { write: (line: string) => void lines.push(line) });
  const scopes = new LogScopes(root);
  return { root, scopes, xds: scopes.child("xds"), pods: scopes.child("pods"), lines };
}

describe("levels of scopes", () => {
  it("are set for all, or for one, while the loggers are in use, and reset", () => {
    const { scopes, root, xds, pods, lines } = rig();
    xds.debug("not said");
    assert.equal(scopes.format(), "info");
    assert.equal(scopes.change("xds=debug,warn"), undefined);
    assert.equal(scopes.format(), "xds=debug,warn");
    xds.debug("said");
    pods.info("not said");
    root.warn("said");
    assert.equal(lines.length, 2);
    assert.equal(scopes.change("off"), undefined);
    assert.deepEqual(
      [scopes.format(), scopes.level("pods"), scopes.level("xds")],
      ["xds=debug,off", "silent", "debug"],
    );
    scopes.reset();
    assert.deepEqual([scopes.format(), xds.level, pods.level], ["info", "info", "info"]);
    assert.equal(scopes.child("late").level, "info");
  });

  it("take both of upstream's spellings, also for scopes with colons, and tell whoever listens", () => {
    const { scopes } = rig();
    let changes = 0;
    scopes.onChange(() => changes++);
    assert.equal(scopes.change("access:debug, ztunnel::proxy=trace"), undefined);
    assert.equal(scopes.format(), "access=debug,ztunnel::proxy=trace,info");
    assert.equal(changes, 1);
  });

  it("are replaced when they are reset and changed at once", () => {
    const { scopes } = rig();
    scopes.change("xds=debug,warn");
    assert.match(scopes.change("loud", { reset: true }) ?? "", /has no level/);
    assert.equal(scopes.format(), "xds=debug,warn");
    scopes.change("access=off", { reset: true });
    assert.equal(scopes.format(), "access=off,info");
  });

  it("are left alone by a directive that is wrong, which is named", () => {
    const { scopes } = rig();
    for (const wrong of ["loud", "xds", "xds=", "debug,loud", "=debug", "a b=debug", ""]) {
      assert.match(scopes.change(wrong) ?? "", /has no level|names no scope/, wrong);
    }
    assert.equal(scopes.format(), "info");
    const many = Array.from({ length: 65 }, (_, i) => `s${i}=debug`).join(",");
    assert.match(scopes.change(many) ?? "", /at most 64/);
    assert.equal(scopes.format(), "info");
  });
});

describe("a log on a full disk", () => {
  it("fails nobody who writes to it", () => {
    const full = openSync("/dev/full", "w");
    const program = `const { createLog } = await import(process.env.MODULE);
      const log = createLog("test");
      for (let i = 0; i < 10_000; i++) log.warn({ i }, "nobody can read this, and it takes some room");
      process.stdout.write("went on");`;
    const args = ["--conditions=veil-source", "--input-type=module", "-e", program];
    const { status, stdout } = spawnSync(process.execPath, args, {
      env: { ...process.env, MODULE: import.meta.resolve("./log.ts") },
      stdio: ["ignore", "pipe", full],
      encoding: "utf8",
    });
    closeSync(full);
    assert.deepEqual([status, stdout], [0, "went on"]);
  });
});
