import assert from "node:assert/strict";
import { chmodSync, mkdirSync, mkdtempSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { systemClock, type Clock } from "#base/clock";
import { deriveList } from "#cni";
import { FakeApi } from "../kube/testing.ts";
import { checkClock, examineClock } from "./api-clock.ts";
import { checkCni, examineCni, type CniState } from "./node-cni.ts";
import { said } from "./testing.ts";

const NOW = Date.parse("2026-01-01T00:00:00Z");

test("a clock is right, somewhat wrong, or so wrong that certificates do not hold", () => {
  const at = (offMs: number) => said([checkClock({ beforeMs: NOW, afterMs: NOW + 400, serverMs: NOW + offMs })])[0];
  for (const offMs of [0, 400, -999, 4000, -5000]) assert.match(at(offMs) ?? "", /^ok/, String(offMs));
  assert.match(at(20_400) ?? "", /^warning: this node's clock is 20 s behind the API server's$/);
  assert.match(at(-20_000) ?? "", /^warning: this node's clock is 19 s ahead of the API server's$/);
  assert.match(at(121_000) ?? "", /^problem: this node's clock is 121 s behind .*: certificates are not valid/);
  assert.match(at(-3_600_000) ?? "", /^problem: this node's clock is 3599 s ahead/);
});

test("the API server is asked for the time, and where it is away nothing is checked", async () => {
  const api = await FakeApi.start();
  const shifted = (ms: number): Clock => ({ ...systemClock(), now: () => Date.now() + ms });
  const ask = async (ms: number, signal = AbortSignal.timeout(60_000)) =>
    said(await examineClock(api.config, shifted(ms), signal))[0] ?? "";
  assert.match(await ask(0), /^ok/);
  assert.match(await ask(-3_600_000), /^problem: .* 3\d\d\d s behind/);
  assert.match(
    await ask(0, AbortSignal.abort(new Error("no answer within 1 s"))),
    /^not checked: .*: no answer within 1 s$/,
  );
  await api.stop();
  assert.match(await ask(0), /^not checked: the API server does not say the time: .*ECONNREFUSED/);
});

const source = JSON.stringify({ cniVersion: "1.0.0", name: "net", plugins: [{ type: "bridge" }] });
const entry = {
  socket: "/run/veil/cni.sock",
  namespace: "veil-system",
  strict: false,
  credentials: "/run/veil/cni-api.json",
};
const list = deriveList({ name: "10-net.conflist", text: source }, undefined, entry);
const chained: Record<string, string> = { "10-net.conflist": source, "10-net-veil.conflist": list };

function cni(files: Record<string, string>, more: Partial<CniState> = {}): string {
  const state = {
    confDir: "/conf",
    binDir: "/bin",
    readOnly: [],
    plugin: "there",
    changed: [],
    missingSocket: undefined,
  } as const;
  return said(checkCni({ ...state, files: new Map(Object.entries(files)), ...more })).join("\n");
}

test("a plugin that is last in the first list is well", () => {
  assert.equal(cni(chained), "ok: 10-net-veil.conflist comes first, and veil-cni last in it");
  const added = { ...JSON.parse(list), plugins: [{ type: "bridge" }, { type: "tuning" }, JSON.parse(list).plugins[1]] };
  assert.match(cni({ ...chained, "10-net-veil.conflist": `${JSON.stringify(added, undefined, 2)}\n` }), /^ok/);
});

test("each fault of the chain is named", () => {
  const swapped = JSON.stringify({ ...JSON.parse(list), plugins: JSON.parse(list).plugins.toReversed() });
  assert.match(cni({}), /^problem: there is no network plugin's configuration in \/conf/);
  assert.match(cni({ "10-net.conflist": source }), /^problem: Veil's list is not in \/conf: new pods start without/);
  assert.match(cni({ ...chained, "00-other.conf": "{}" }), /^problem: 00-other.conf comes before Veil's list/);
  assert.match(cni({ ...chained, "10-net-veil.conflist": "{" }), /^problem: 10-net-veil.conflist is not JSON/);
  assert.match(
    cni({ ...chained, "10-net-veil.conflist": swapped }),
    /^problem: 10-net-veil.conflist is not JSON, or does not have veil-cni last/,
  );
  assert.match(
    cni({ ...chained, "10-net.conflist": source.replace("bridge", "ptp") }),
    /^problem: 10-net-veil.conflist is not what 10-net.conflist makes it/,
  );
  assert.match(
    cni({ ...chained, "10-net.conflist": "{" }),
    /^problem: the network plugin's own configuration cannot be used: 10-net.conflist is no JSON/,
  );
  assert.match(
    cni({ "05-cilium.conflist": source, "10-net-veil.conflist.cilium_bak": list }),
    /^problem: Cilium has put Veil's list away/,
  );
});

test("each fault of the folders is named", () => {
  assert.match(cni(chained, { readOnly: ["/conf"] }), /^problem: \/conf cannot be written/);
  assert.match(cni(chained, { plugin: "missing" }), /^problem: \/bin\/veil-cni is missing: no pod can start/);
  assert.match(cni(chained, { plugin: "not executable" }), /^problem: \/bin\/veil-cni is not executable/);
  assert.match(
    cni(chained, { missingSocket: "/run/veil/cni.sock" }),
    /^problem: the agent's socket \/run\/veil\/cni.sock is not there/,
  );
  assert.match(
    cni(chained, { changed: ["10-net-veil.conflist"] }),
    /^warning: 10-net-veil.conflist in \/conf changed while/,
  );
});

test("a node's folders are read: what is there, what is missing, and what changes meanwhile", async () => {
  const folder = mkdtempSync(join(tmpdir(), "vt-doctor-"));
  const [confDir, binDir] = [join(folder, "conf"), join(folder, "bin")];
  const socket = join(folder, "cni.sock");
  const text = deriveList({ name: "10-net.conflist", text: source }, undefined, { ...entry, socket });
  for (const made of [confDir, binDir]) mkdirSync(made);
  /** `meanwhile` happens between the two looks. */
  const look = async (meanwhile = (): void => {}): Promise<string> => {
    const after: Clock["after"] = (_, callback) => {
      meanwhile();
      setImmediate(callback);
      return () => {};
    };
    const signal = AbortSignal.timeout(60_000);
    return said(await examineCni({ confDir, binDir }, { ...systemClock(), after }, signal)).join("\n");
  };
  try {
    writeFileSync(join(confDir, "10-net.conflist"), source);
    writeFileSync(join(confDir, "10-net-veil.conflist"), text);
    assert.match(await look(), /veil-cni is missing.*\n.*cni.sock is not there/);
    writeFileSync(socket, "");
    writeFileSync(join(binDir, "veil-cni"), "", { mode: 0o644 });
    assert.match(await look(), /^problem: .*veil-cni is not executable/);
    chmodSync(join(binDir, "veil-cni"), 0o755);
    assert.match(await look(), /^ok/);
    assert.match(
      await look(() => utimesSync(join(confDir, "10-net-veil.conflist"), 1, 1)),
      /^warning: 10-net-veil.conflist .* changed/,
    );
    rmSync(confDir, { recursive: true });
    assert.match(await look(), /^not checked: .*ENOENT/);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
