import assert from "node:assert/strict";
import { after, afterEach, before, test } from "node:test";
import { findWords } from "#capture";
import { REDIRECTION_TABLE } from "#enrolment";
import { CniWorld, STARTING } from "./cni-world.ts";
import { must, type Outcome } from "./harness.ts";
import { onTheWire } from "./proxy-peers.ts";
import { say } from "./proxy-world.ts";

// The plugin behind Debian's bridge and host-local, driven by the CNI project's own tool, with a real proxy on the node.

const WORDS = "the-first-words-of-the-first-process";
let world: CniWorld;

before(async () => {
  world = await CniWorld.create();
});
after(() => world[Symbol.asyncDispose]());
afterEach(() => world.removeStarting());

/** What the reference tool prints of a result, without what differs from run to run. */
function resultOf({ code, stdout, stderr }: Outcome): unknown {
  assert.equal(code, 0, `${stdout}${stderr}`);
  return JSON.parse(stdout.replaceAll(/"(mac|name)": "[^"]+"/g, '"$1": "some"'));
}

test("the reference tool adds, checks and deletes a pod, and its result is that of the chain without the plugin", async () => {
  const results: unknown[] = [];
  for (const list of ["without", "with"] as const) {
    await world.makeStarting({});
    results.push(resultOf(await world.cni("add", list)));
    assert.equal((await world.cni("check", list)).code, 0);
    assert.equal((await world.cni("del", list)).code, 0);
    await world.removeStarting();
  }
  assert.deepEqual(results[1], results[0]);
});

test("a pod's first connection is protected; without the plugin it is in clear until the agent gets to it", async () => {
  const { server: to } = world.proxies;
  for (const list of ["with", "without"] as const) {
    const pod = await world.makeStarting(list === "with" ? { "io.cilium/mtls-enabled": "true" } : {});
    const packets = await onTheWire(async () => {
      resultOf(await world.cni("add", list));
      assert.equal(await say(pod, { ip: to.ip, port: 8080 }, WORDS), `heard ${WORDS}`);
    });
    const inClear = findWords(packets, [WORDS]).length > 0;
    assert.equal(inClear, list === "without", `the words are seen ${list} the plugin: ${inClear}`);
    await world.removeStarting();
  }
});

test("a check finds rules that something has removed", async () => {
  await world.makeStarting({ "istio.io/dataplane-mode": "ambient" });
  resultOf(await world.cni("add", "with"));
  assert.equal((await world.cni("check", "with")).code, 0);
  await must(["nsenter", `--net=${STARTING}`, "nft", "delete", "table", ...REDIRECTION_TABLE.split(" ")]);
  const { code, stderr } = await world.cni("check", "with");
  assert.equal(code, 1);
  assert.match(stderr, /ENROLMENT_NOT_IN_PLACE: .* rules are absent/);
});

test("without the agent a pod that may be enrolled is not started, with the reason, and is deleted nevertheless", async (t) => {
  await world.makeStarting({});
  await world.stopAgent();
  t.after(() => world.startAgent());
  const { code, stderr } = await world.cni("add", "with");
  assert.equal(code, 1);
  assert.match(stderr, /the agent of Veil is away and the pod must not start without it/);
  assert.equal((await world.cni("del", "with")).code, 0);
});
