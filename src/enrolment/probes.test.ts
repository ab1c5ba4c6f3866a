import assert from "node:assert/strict";
import { test } from "node:test";
import { parseIp } from "#base/ip";
import { openNetns } from "#linux";
import { Probes, probesScript, probeTargets } from "./probes.ts";

const target = (ip: string, port: number) => ({ ip: parseIp(ip), port });

test("probes are told apart by address and port, each family in its own set, whoever asked for them twice", () => {
  const script = probesScript([target("10.1.0.2", 80), target("fd00::2", 80), target("10.1.0.2", 80)]);
  assert.match(script, /set v4 \{ type ipv4_addr \. inet_service; elements = \{ 10\.1\.0\.2 \. 80 \} \}/);
  assert.match(script, /set v6 \{ type ipv6_addr \. inet_service; elements = \{ fd00::2 \. 80 \} \}/);
  assert.doesNotMatch(probesScript([target("10.1.0.2", 80)]), /set v6 \{[^}]*elements/);
  assert.equal(probesScript([]), "add table inet veil_probes\ndelete table inet veil_probes\n");
});

test("a pod without probes has no targets; others have each of their addresses that is neither loopback nor link-local", () => {
  using netns = openNetns("/proc/self/ns/net");
  assert.deepEqual(probeTargets(netns, []), []);
  const targets = probeTargets(netns, [80, 90]);
  assert.equal(targets.filter(({ port }) => port === 80).length, targets.length / 2);
  assert.ok(targets.every(({ ip }) => ip !== "127.0.0.1" && ip !== "::1" && !ip.startsWith("fe80")));
});

test("what is wanted while one transaction runs is written by the next one, all of it; what is there is not written again", async () => {
  const scripts: string[] = [];
  const gates: PromiseWithResolvers<void>[] = [];
  const probes = new Probes((script) => {
    scripts.push(script);
    const gate = Promise.withResolvers<void>();
    gates.push(gate);
    return gate.promise;
  });
  probes.declare("a", [target("10.1.0.1", 80)]);
  const first = probes.write();
  await new Promise(setImmediate);
  const others = [probes.allow("b", [target("10.1.0.2", 80)]), probes.allow("c", [target("10.1.0.3", 80)])];
  await new Promise(setImmediate);
  assert.deepEqual(scripts, [probesScript([target("10.1.0.1", 80)])]);
  gates[0]?.resolve();
  await first;
  await new Promise(setImmediate);
  assert.deepEqual(
    scripts.slice(1),
    [[1, 2, 3].map((n) => target(`10.1.0.${n}`, 80))].map((targets) => probesScript(targets)),
  );
  gates[1]?.resolve();
  await Promise.all(others);
  await probes.allow("c", [target("10.1.0.3", 80)]);
  await probes.forbid("nobody");
  assert.equal(scripts.length, 2);
});

test("a transaction that fails is told to who asked, and made again by the next who does", async () => {
  const scripts: string[] = [];
  let fails = true;
  const probes = new Probes((script) => {
    scripts.push(script);
    return fails ? Promise.reject(new Error("busy")) : Promise.resolve();
  });
  await assert.rejects(probes.allow("a", [target("10.1.0.1", 80)]), /busy/);
  fails = false;
  await probes.allow("a", [target("10.1.0.1", 80)]);
  await probes.forbid("a");
  assert.deepEqual(scripts.slice(1), [probesScript([target("10.1.0.1", 80)]), probesScript([])]);
});
