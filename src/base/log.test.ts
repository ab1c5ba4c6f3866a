import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { pino } from "pino";
import { createLog, LogScopes } from "./log.ts";

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

describe("a log that cannot be written", () => {
  it("fails nobody and keeps nobody waiting; what fits is written later, in order, and what does not is counted", async () => {
    let room = 0;
    let written = "";
    const write = (bytes: Uint8Array): number => {
      if (room === 0) throw new Error("EAGAIN");
      const count = Math.min(room, bytes.length, 1000); // in pieces, as a pipe may
      written += Buffer.from(bytes.subarray(0, count)).toString();
      room -= count;
      return count;
    };
    const log = createLog("test", write);
    const filler = "x".repeat(1000);
    for (let i = 0; i < 2_000; i++) log.warn({ i, filler }, "said");
    room = 2500;
    log.warn({}, "half of what waits");
    assert.equal(written.length, 2500);
    room = Number.POSITIVE_INFINITY;
    for (let i = 0; i < 500 && !written.includes("were lost"); i++)
      await new Promise((resolve) => setTimeout(resolve, 20));
    const lines = written.trimEnd().split("\n");
    const read = lines.map((line) => JSON.parse(line) as { i?: number; count?: number; msg: string });
    const said = read.filter(({ msg }) => msg === "said").map(({ i }) => i);
    assert.deepEqual(
      said,
      said.map((_, i) => i),
    );
    assert.ok(said.length > 800 && said.length < 1100, `${said.length} of 1 MiB`);
    assert.deepEqual(read.at(-1)?.count, 2_001 - said.length);
  });
});
