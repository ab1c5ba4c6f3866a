import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { CodedError } from "#base/errors";
import { parseIp } from "#base/ip";
import { findLink, setLink } from "#linux";
import { generateKeyPair, removeTunnels } from "#wireguard";
import { ensureWireguardGo } from "../../tools/test-programs.ts";
import { eventually, must } from "./harness.ts";
import { startFlows } from "./flow-mesh.ts";
import { DEVICES, peerOf, processOf, wireguardWorld, type WireguardNode } from "./wireguard-world.ts";

// What every back end has to do, and what a node's two devices do with it. Each program of user space that this machine has is held to it.

const programs = await ensureWireguardGo();
const device = DEVICES[0];
/** For echoes that come, and for those that do not. */
const LONG = { deadlineMs: 10_000 };
const SHORT = { deadlineMs: 300 };

for (const program of programs) {
  void describe(`devices run by ${program}`, () => {
    void test("a device takes a change and tells it back, to another agent, too, and to wg", () =>
      tellsItBack(program));
    void test("two nodes reach each other by each slot, and only with each other's keys", () => reach(program));
    void test("a device whose process is killed is made anew, and nothing goes another way meanwhile", () =>
      madeAnew(program));
  });
}

void test("datagrams of 1,400 and 60,000 bytes arrive in both families, at 1,500 and 3,900 bytes of the underlay", () =>
  bigPackets(programs[0]));

async function tellsItBack(program: string): Promise<void> {
  await using world = await wireguardWorld(program, 1);
  const [node] = world.nodes;
  assert.ok(node);
  const backend = node.backend();
  assert.equal(await backend.open(device, () => {}), "made");
  assert.equal((await backend.read(device)).publicKey, undefined);
  using own = generateKeyPair();
  using one = generateKeyPair();
  using two = generateKeyPair();
  const { privateKey, publicKey } = own;
  const endpoint = { ip: parseIp("fd30::2"), port: 51871 };
  const peers = [
    { publicKey: one.publicKey, endpoint, keepaliveSeconds: 25, allowedIps: ["10.30.2.0/24", "fd30::2/128"] },
    { publicKey: two.publicKey, allowedIps: ["10.30.3.0/24"] },
  ];
  const secret = [privateKey.toString("hex"), privateKey.toString("base64")];
  await backend.configure(device, { replacePeers: true, privateKey, listenPort: 51871, mark: 0xe00, peers });
  const state = await backend.read(device);
  const { listenPort, mark } = state;
  assert.deepEqual({ publicKey: state.publicKey, listenPort, mark }, { publicKey, listenPort: 51871, mark: 0xe00 });
  assert.equal(state.peers.length, 2);
  const found = state.peers.find((peer) => peer.publicKey === one.publicKey);
  assert.deepEqual([found?.endpoint, found?.keepaliveSeconds, found?.lastHandshakeMs], [endpoint, 25, 0]);
  assert.deepEqual(found?.allowedIps.toSorted(), ["10.30.2.0/24", "fd30::2/128"]);
  // A prefix belongs to one peer: who gets it takes it from the other.
  await backend.configure(device, { peers: [{ publicKey: two.publicKey, allowedIps: ["10.30.2.0/24"] }] });
  const after = (await backend.read(device)).peers.find((peer) => peer.publicKey === one.publicKey);
  assert.deepEqual(after?.allowedIps, ["fd30::2/128"]);
  await backend.configure(device, { peers: [{ publicKey: one.publicKey, remove: true }] });
  backend.close();
  // Another agent finds what this one has left, and so does wg.
  const next = node.backend();
  assert.equal(await next.open(device, () => {}), "found");
  assert.deepEqual(
    (await next.read(device)).peers.map((peer) => peer.publicKey),
    [two.publicKey],
  );
  const { stdout } = await node.exec("wg", "show", device, "public-key");
  assert.equal(stdout.trim(), publicKey);
  const wrong = { peers: [{ publicKey: two.publicKey, allowedIps: ["nonsense"] }] };
  await assert.rejects(
    next.configure(device, wrong),
    (error) => error instanceof CodedError && error.code === "WIREGUARD_DEVICE",
  );
  assertNoSecret(node, secret);
  await next.remove(device);
  await eventually("the device's process to end", () => processOf(node, device) === undefined || undefined);
  assert.equal(findLink(node.netns, device), undefined);
  await next.remove(device);
}

/** A private key stands in no file of the node, no argument and no variable of its processes. */
function assertNoSecret(node: WireguardNode, secret: readonly string[]): void {
  const pid = processOf(node, device) ?? 0;
  const files = readdirSync(node.socketFolder).filter((name) => !name.endsWith(".sock"));
  const places = [`/proc/${pid}/cmdline`, `/proc/${pid}/environ`, "/proc/self/cmdline", "/proc/self/environ"];
  for (const place of [...places, ...files.map((name) => join(node.socketFolder, name))]) {
    for (const text of secret) assert.ok(!readFileSync(place, "latin1").includes(text), `the key stands in ${place}`);
  }
  const limits = readFileSync(`/proc/${pid}/limits`, "latin1");
  assert.match(limits, /Max core file size\s+0\s/, "the device's process may leave a core file with its key");
}

async function reach(program: string): Promise<void> {
  await using world = await wireguardWorld(program, 2);
  const [a, b] = world.nodes;
  assert.ok(a && b);
  const [here, there] = [a.tunnels(), b.tunnels()];
  await Promise.all([here.open(), there.open()]);
  for (const slot of [0, 1] as const) {
    const [ka, kb] = [await here.rekey(slot, []), await there.rekey(slot, [])];
    await there.install(slot, peerOf(a, ka, slot));
    const peer = peerOf(b, kb, slot);
    await here.install(slot, peer);
    assert.ok(await here.probe(slot, peer, LONG), `no echo by slot ${slot}`);
    assert.ok(await here.probe(slot, { ...peer, endpoint: b.addresses[1] ?? "" }, LONG), "no echo over IPv6");
    assert.ok(await there.probe(slot, peerOf(a, ka, slot), LONG), "no echo the other way");
    assert.equal((await here.status(slot)).publicKey, ka);
    const known = (await here.status(slot)).peers.get(kb);
    assert.ok((known?.lastHandshakeMs ?? 0) > 0 && (known?.receivedBytes ?? 0) > 0);
    // A new key on the other side: nothing comes until it is known.
    const fresh = await there.rekey(slot, [peerOf(a, ka, slot)]);
    assert.equal(await here.probe(slot, peer, SHORT), false);
    await here.install(slot, peerOf(b, fresh, slot), kb);
    assert.ok(await here.probe(slot, peer, LONG), "no echo with the new key");
    await narrow(
      b,
      () => here.probe(slot, peer, { ...SHORT, full: true }),
      () => here.probe(slot, peer, LONG),
    );
    assert.ok(await here.probe(slot, peer, { ...LONG, full: true }), "no echo as long as a packet can be");
    await here.remove(slot, fresh);
    assert.equal((await here.status(slot)).peers.size, 0);
  }
  // The underlay's size is followed.
  const [link, large] = [findLink(a.netns, "eth0"), 3900];
  assert.equal(findLink(a.netns, device)?.mtu, 1420);
  setLink(a.netns, link?.index ?? 0, { mtu: large });
  await eventually("the tunnel's MTU to follow", () => findLink(a.netns, device)?.mtu === large - 80 || undefined);
  await here.removeAll();
  assert.equal(findLink(a.netns, device), undefined);
  const rules = await must(["ip", "-n", a.netnsName, "rule"]);
  assert.equal(rules.trim().split("\n").length, 3, rules);
  there.close();
}

/** Over a path that drops large packets and tells nobody, only small echoes come back. */
async function narrow(
  node: WireguardNode,
  large: () => Promise<boolean>,
  small: () => Promise<boolean>,
): Promise<void> {
  const rules =
    "add table ip narrow; add chain ip narrow in { type filter hook prerouting priority -300; }; add rule ip narrow in udp dport 51871-51872 ip length > 1400 drop";
  await node.exec("nft", rules);
  assert.ok(await small(), "no small echo over a narrow path");
  assert.equal(await large(), false, "a large echo over a narrow path");
  await node.exec("nft", "delete table ip narrow");
}

async function bigPackets(program: string): Promise<void> {
  for (const mtu of [1500, 3900]) {
    await using world = await wireguardWorld(program, 2, mtu);
    const [a, b] = world.nodes;
    assert.ok(a && b);
    const [here, there] = [a.tunnels(), b.tunnels()];
    await Promise.all([here.open(), there.open()]);
    assert.equal(findLink(a.netns, device)?.mtu, mtu - 80);
    const [ka, kb] = [await here.rekey(0, []), await there.rekey(0, [])];
    await Promise.all([there.install(0, peerOf(a, ka)), here.install(0, peerOf(b, kb))]);
    assert.ok(await here.probe(0, peerOf(b, kb), LONG));
    await Promise.all([here.route(peerOf(b, kb), 0), there.route(peerOf(a, ka), 0)]);
    for (const family of [0, 1] as const) {
      for (const bytes of [1_400, 60_000]) {
        const places = [a, b].map((node) => ({
          ip: node.podAddresses[family],
          enter: ["ip", "netns", "exec", node.netnsName],
        }));
        await using flows = await startFlows(places, 20, `${bytes},${bytes}`);
        await eventually("datagrams to arrive", async () => (await flows.received()) >= 10 || undefined);
        const { lost, by } = await flows.stop();
        assert.deepEqual([lost, by], [0, {}], `${bytes} bytes at ${mtu}`);
      }
    }
    const sent = (await here.status(0)).peers.get(kb)?.sentBytes ?? 0;
    assert.ok(sent > 2 * 5 * 61_400, `only ${sent} bytes went through the tunnel`);
    for (const tunnels of [here, there]) await tunnels.removeAll();
  }
}

async function madeAnew(program: string): Promise<void> {
  await using world = await wireguardWorld(program, 2);
  const [a, b] = world.nodes;
  assert.ok(a && b);
  const tunnels = a.tunnels();
  await tunnels.open();
  const lost: number[] = [];
  tunnels.onLost((slot) => lost.push(slot));
  const key = await tunnels.rekey(0, []);
  await tunnels.route(peerOf(b, key), 0);
  const way = (): Promise<string> =>
    must(["ip", "-n", a.netnsName, "route", "get", b.podAddresses[0], "from", a.podAddresses[0]]);
  assert.match(await way(), /dev cilium_wg0/);
  const pid = processOf(a, device) ?? 0;
  process.kill(pid, "SIGKILL");
  assert.match(await way(), /dev cilium_wg0/);
  await eventually("the device to be made anew", () => lost.length > 0 || undefined);
  assert.deepEqual(lost, [0]);
  assert.match(await way(), /dev cilium_wg0/);
  assert.notEqual(processOf(a, device), pid);
  assert.deepEqual(await tunnels.status(0), { publicKey: undefined, peers: new Map() });
  assert.notEqual(await tunnels.rekey(0, []), key);
  // An agent that comes finds both, and takes all away when it is told to.
  tunnels.close();
  const next = a.tunnels();
  await next.open();
  assert.match(await way(), /dev cilium_wg0/);
  assert.equal(await removeTunnels(b.netns, Object.values(DEVICES)), false);
  await next.route(peerOf(b, key), undefined);
  assert.doesNotMatch(await must(["ip", "-n", a.netnsName, "route", "show", "table", "201"]), /10\.30/);
  next.close();
  // An agent that is to have no tunnels takes away what is there.
  assert.equal(await removeTunnels(a.netns, Object.values(DEVICES), a.socketFolder), true);
  await eventually("processes to end", () => processOf(a, device) === undefined || undefined);
  assert.doesNotMatch(await must(["ip", "-n", a.netnsName, "rule"]), /20[123]/);
  assert.equal(findLink(a.netns, device), undefined);
}
