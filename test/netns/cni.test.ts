import assert from "node:assert/strict";
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, afterEach, before, test } from "node:test";
import { systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { CellSet } from "#base/metrics";
import { systemRandom } from "#base/random";
import { findWords } from "#capture";
import { cniMetrics, CniServer } from "#cni";
import { DEFAULT_TIMES, Enrolment, enrolmentMetrics, nftRedirector, REDIRECTION_TABLE } from "#enrolment";
import { openNetns } from "#linux";
import { parseIp } from "#base/ip";
import { formatSpiffeId } from "#model/spiffe-id";
import { testWorkload } from "../../src/proxy/testing.ts";
import { ensureCniPlugin } from "../../tools/cni-plugin.ts";
import { ensureCnitool } from "../../tools/test-programs.ts";
import { must, run as execute, type Outcome } from "./harness.ts";
import { onTheWire } from "./proxy-peers.ts";
import { listen, netnsPath, ProxyWorld, run, say, type Pod } from "./proxy-world.ts";

// The plugin behind Debian's bridge and host-local, driven by the CNI project's own tool, with a real proxy on the node.

const WORDS = "the-first-words-of-the-first-process";
const ADDRESS = "10.201.1.50";
const POD = "a-starting";
const ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=starting;K8S_POD_UID=uid-starting";
let world: ProxyWorld;
let enrolment: Enrolment;
let server: CniServer;
let cnitool: string;
let starting: Pod | undefined;

before(async () => {
  cnitool = await ensureCnitool();
  world = await ProxyWorld.createEnrolled();
  listen(world.server, 8080, (socket) => {
    let heard = "";
    socket.on("data", (part) => (heard += part.toString()));
    socket.on("end", () => socket.end(`heard ${heard}`));
  });
  await writeChains();
  enrolment = new Enrolment({
    zds: {
      open: () => undefined,
      declare: () => undefined,
      add: async () => (starting === undefined ? undefined : world.a.handOver(starting)),
      remove: async () => (starting === undefined ? undefined : world.a.takeBack(starting)),
    },
    redirector: nftRedirector,
    finder: { find: () => undefined },
    announcer: { announce: () => Promise.resolve(), confirmPlain: () => Promise.resolve([]) },
    controllerReachable: () => true,
    clock: systemClock(),
    random: systemRandom,
    log: silentLog(),
    cells: new CellSet(enrolmentMetrics),
    times: DEFAULT_TIMES,
    dnsCapture: true,
  });
  await enrolment.synced();
  const host = {
    add: enrolment.enrolStarting.bind(enrolment),
    check: enrolment.checkStarted.bind(enrolment),
    pending: () => [],
  };
  const path = join(world.folder, "cni.sock");
  server = new CniServer({ path, log: silentLog(), cells: new CellSet(cniMetrics), host });
  await server.start(new AbortController().signal);
});

after(async () => {
  await server.drain(0);
  await enrolment.drain(0);
  await world[Symbol.asyncDispose]();
});

afterEach(removeStarting);

async function removeStarting(): Promise<void> {
  enrolment.removePod("uid-starting");
  if (starting === undefined) return;
  for (const list of ["with", "without"] as const) await cni("del", list); // gives the address back
  await world.a.takeBack(starting);
  starting.netns[Symbol.dispose]();
  starting = undefined;
  run("ip", "netns", "del", netnsPath(POD).replace("/run/netns/", ""));
}

/** Two lists, which differ in Veil's plugin alone. */
async function writeChains(): Promise<void> {
  const folder = join(world.folder, "net.d");
  mkdirSync(folder);
  mkdirSync(join(world.folder, "bin"));
  symlinkSync(await ensureCniPlugin(), join(world.folder, "bin/veil-cni"));
  const ranges = [[{ subnet: "10.201.1.0/24", rangeStart: ADDRESS, rangeEnd: ADDRESS, gateway: "10.201.1.1" }]];
  const ipam = { type: "host-local", dataDir: join(world.folder, "ipam"), ranges, routes: [{ dst: "0.0.0.0/0" }] };
  const bridge = { type: "bridge", bridge: "pods", ipam };
  const veil = { type: "veil-cni", socket: join(world.folder, "cni.sock"), namespace: "veil-system" };
  for (const [name, plugins] of Object.entries({ with: [bridge, veil], without: [bridge] }))
    writeFileSync(join(folder, `${name}.conflist`), JSON.stringify({ cniVersion: "1.0.0", name, plugins }));
}

/** Runs cnitool on node a. */
async function cni(command: "add" | "check" | "del", list: "with" | "without"): Promise<Outcome> {
  const env = {
    NETCONFPATH: join(world.folder, "net.d"),
    CNI_PATH: `/usr/lib/cni:${join(world.folder, "bin")}`,
    CNI_ARGS: ARGS,
    CNI_IFNAME: "eth0",
  };
  return execute(["nsenter", `--net=${netnsPath("a")}`, cnitool, command, list, netnsPath(POD)], { env });
}

/** A pod that has a namespace, and nothing in it yet; the API knows it, with these labels. */
async function makeStarting(labels: Readonly<Record<string, string>>): Promise<Pod> {
  run("ip", "netns", "add", netnsPath(POD).replace("/run/netns/", ""));
  const identity = formatSpiffeId({ trustDomain: "cluster.local", namespace: "shop", serviceAccount: "starting" });
  const made: Pod = {
    name: "starting",
    uid: "uid-starting",
    node: "a",
    ip: ADDRESS,
    ip6: "",
    netns: openNetns(netnsPath(POD)),
    identity,
    workload: (tunnelProtocol) =>
      testWorkload("starting", ADDRESS, { tunnelProtocol, node: "a", addresses: [parseIp(ADDRESS)] }),
  };
  await world.a.certify(made);
  for (const node of [world.a, world.b]) await node.impose([made.workload("none")]);
  starting = made;
  const { uid, name } = made;
  const facts = { serviceAccount: name, hostNetwork: false, phase: "Pending", annotations: {} };
  enrolment.upsertPod({ uid, name, namespace: "shop", labels, ...facts });
  return made;
}

/** What the reference tool prints of a result, without what differs from run to run. */
function resultOf({ code, stdout, stderr }: Outcome): unknown {
  assert.equal(code, 0, `${stdout}${stderr}`);
  return JSON.parse(stdout.replaceAll(/"(mac|name)": "[^"]+"/g, '"$1": "some"'));
}

test("the reference tool adds, checks and deletes a pod, and its result is that of the chain without the plugin", async () => {
  const results: unknown[] = [];
  for (const list of ["without", "with"] as const) {
    await makeStarting({});
    results.push(resultOf(await cni("add", list)));
    assert.equal((await cni("check", list)).code, 0);
    assert.equal((await cni("del", list)).code, 0);
    await removeStarting();
  }
  assert.deepEqual(results[1], results[0]);
});

test("a pod's first connection is protected; without the plugin it is in clear until the agent gets to it", async () => {
  const { server: to } = world;
  for (const list of ["with", "without"] as const) {
    const pod = await makeStarting(list === "with" ? { "io.cilium/mtls-enabled": "true" } : {});
    const packets = await onTheWire(async () => {
      resultOf(await cni("add", list));
      assert.equal(await say(pod, { ip: to.ip, port: 8080 }, WORDS), `heard ${WORDS}`);
    });
    const inClear = findWords(packets, [WORDS]).length > 0;
    assert.equal(inClear, list === "without", `the words are seen ${list} the plugin: ${inClear}`);
    await removeStarting();
  }
});

test("a check finds rules that something has removed", async () => {
  await makeStarting({ "istio.io/dataplane-mode": "ambient" });
  resultOf(await cni("add", "with"));
  assert.equal((await cni("check", "with")).code, 0);
  await must(["nsenter", `--net=${netnsPath(POD)}`, "nft", "delete", "table", ...REDIRECTION_TABLE.split(" ")]);
  const { code, stderr } = await cni("check", "with");
  assert.equal(code, 1);
  assert.match(stderr, /ENROLMENT_NOT_IN_PLACE: .* rules are absent/);
});

test("without the agent a pod that may be enrolled is not started, with the reason, and is deleted nevertheless", async (t) => {
  await makeStarting({});
  await server.drain(0);
  t.after(() => server.start(new AbortController().signal));
  const { code, stderr } = await cni("add", "with");
  assert.equal(code, 1);
  assert.match(stderr, /the agent of Veil is away and the pod must not start without it/);
  assert.equal((await cni("del", "with")).code, 0);
});
