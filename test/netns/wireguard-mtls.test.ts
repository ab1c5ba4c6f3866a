import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { findWords, readTls, tcpStreams, type Packet } from "#capture";
import { netnsPath } from "#lab";
import { openNetns } from "#linux";
import { Firewall } from "#wireguard";
import { DEVICES } from "./wireguard-world.ts";
import { ensureWireguardGo } from "../../tools/test-programs.ts";
import { eventually, must, run, startLab, type TestLab } from "./harness.ts";
import {
  buildScene,
  enrolled,
  label,
  labMesh,
  runLoad,
  startLoad,
  TUNNEL_PORT,
  type Mesh,
  type Scene,
} from "./mesh.ts";

const RAW_SEND = fileURLToPath(new URL("raw-send.ts", import.meta.url));
const WORDS = "words-about-yellow-windmills";
const FLIPS = 3;
/** Connections that are waited for after each flip: some with the old view, the rest with the new one. */
const AFTER_FLIP = 60;

describe("mTLS and tunnels together", () => {
  let lab: TestLab;
  let mesh: Mesh;
  let scene: Scene;
  let enter: readonly string[];

  before(async () => {
    const [program] = await ensureWireguardGo();
    lab = await startLab("wgmtls", { nodes: 2, wireguard: program });
    mesh = labMesh(lab);
    scene = await buildScene(mesh, "wg");
    enter = await mesh.enterPod(scene.far);
    await eventually("pairs to be proven", async () => {
      const { stdout } = await lab.execNode("node1", "ip", "route", "show", "table", "201");
      return stdout.includes("cilium_wg") || undefined;
    });
  });
  after(async () => {
    await lab?.[Symbol.asyncDispose]();
  });

  it("carries TCP of pods that are not enrolled inside of the tunnel alone", async () => {
    const watch = await watchNode(lab);
    await runLoad(enter, scene.server, ["--rate", "20", "--seconds", "1"]);
    const { outside, inside } = between(await watch(), scene);
    assert.deepEqual([...outside.keys()], []);
    assert.ok(inside.size > 0);
  });

  it("carries HBONE of enrolled pods outside of it alone, from the first packet to the last", async () => {
    await label(mesh, scene.namespaces, true);
    await enrolled(mesh, scene.namespaces, true);
    await eventually("connections to be HBONE", async () => {
      const watch = await watchNode(lab);
      await runLoad(enter, scene.server, ["--rate", "10", "--seconds", "1"]);
      const { outside } = between(await watch(), scene);
      return outside.size > 0 || undefined;
    });
    await mesh.kill("data path", "node1"); // its sessions begin anew
    const watch = await watchNode(lab);
    await eventually("a session after the restart", async () => {
      const { short } = await runLoad(enter, scene.server, ["--rate", "10", "--seconds", "1"]);
      return short.done > 0 || undefined;
    });
    const { outside, inside } = between(await watch(), scene);
    assert.deepEqual([...inside.keys()], []);
    assertHbone(outside);
  });

  it("covers each connection once while labels flip under load", async () => {
    const load = await startLoad(enter, scene.server, ["--rate", "30"]);
    const watch = await watchNode(lab);
    for (let flip = 0; flip < FLIPS; flip++) {
      for (const on of [false, true]) {
        await label(mesh, scene.namespaces, on);
        await enrolled(mesh, scene.namespaces, on);
        const { short } = await load.until("the load to tell how it goes", () => true);
        await load.until("connections after the flip", (now) => now.short.done >= short.done + AFTER_FLIP);
      }
    }
    await load.stop();
    const seen = await watch();
    const { outside, inside } = between(seen, scene);
    const twice = [...inside.keys()].filter((key) => key.includes(`:${TUNNEL_PORT}`));
    assert.deepEqual(twice, [], "HBONE went through the tunnel");
    assert.ok(inside.size > 0, "nothing was plain");
    assert.ok(
      seen.outside.some(({ destinationPort }) => destinationPort === TUNNEL_PORT),
      "nothing was HBONE",
    );
    if (outside.size > 0) assertHbone(outside);
  });

  it("keeps what a pod itself sends to port 15008 inside of the tunnel, or drops it; without the guard it would leave in clear", async () => {
    const [from, to] = [scene.far.status?.podIP ?? "", scene.server.status?.podIP ?? ""];
    const attack = async (): Promise<readonly Packet[]> => {
      const watch = await watchNode(lab);
      for (const how of ["raw", "packet"]) {
        await must([...enter, process.execPath, RAW_SEND, "--from", from, "--to", to, "--words", WORDS, "--how", how]);
      }
      const own = `const s=require("node:net").connect(${TUNNEL_PORT},${JSON.stringify(to)},()=>s.write(${JSON.stringify(WORDS)}));s.on("error",()=>{});setTimeout(()=>process.exit(),500)`;
      await run([...enter, process.execPath, "-e", own]);
      return (await watch()).outside;
    };
    assert.deepEqual(findWords(await attack(), [WORDS]), []);
    await must([...enter, "nft", "delete", "table", "netdev", "veil_guard"]);
    assert.ok(findWords(await attack(), [WORDS]).length > 0, "the attack is none");
  });

  it("in strict mode drops what no tunnel leads to, and counts it; in audit mode lets it pass, and counts it", async () => {
    using netns = openNetns(netnsPath(lab.nodes[0]?.netns ?? ""));
    const place = { netns, devices: Object.values(DEVICES), clusterRanges: [] };
    const count = async (firewall: Firewall): Promise<number> => (await firewall.countClear()).get("no_tunnel") ?? 0;
    for (const [mode, passes] of [
      ["audit", true],
      ["on", false],
    ] as const) {
      const firewall = new Firewall({ ...place, strict: mode });
      await firewall.open();
      const before = await count(firewall);
      // A peer that has lost its way: its route goes, as if its key had never come.
      const removed = await lab.execNode("node1", "sh", "-c", "ip route flush table 201");
      assert.equal(removed.code, 0, removed.stderr);
      const watch = await watchNode(lab, "udp");
      const say = `const s=require("node:dgram").createSocket("udp4");let n=0;const t=setInterval(()=>{s.send(${JSON.stringify(WORDS)},9300,${JSON.stringify(scene.server.status?.podIP)});if(++n===5){clearInterval(t);setTimeout(()=>s.close(),100)}},20)`;
      await must([...enter, process.execPath, "-e", say]);
      const seen = findWords((await watch()).outside, [WORDS]).length;
      assert.equal(seen > 0, passes, `${mode}: ${seen} packets in clear`);
      assert.ok((await count(firewall)) - before >= 5, `${mode}: not counted`);
    }
  });
});

interface Seen {
  readonly outside: readonly Packet[];
  readonly inside: readonly Packet[];
}

/** Captures what node1 sends and gets by its underlay, and by its tunnels. */
async function watchNode(lab: TestLab, protocol: "tcp" | "udp" = "tcp"): Promise<() => Promise<Seen>> {
  const filter = `${protocol} and net 10.244.0.0/16`;
  const captures = await Promise.all(
    ["eth0", "cilium_wg0", "cilium_wg1"].map((name) => lab.captureNode("node1", { interface: name, filter })),
  );
  return async () => {
    const [outside = [], ...inside] = await Promise.all(captures.map((capture) => capture.stop()));
    return { outside, inside: inside.flat() };
  };
}

/** Connections between the scene's pods that began while it was watched, by where their packets went. */
function between({ outside, inside }: Seen, scene: Scene): Record<"outside" | "inside", ReadonlyMap<string, Packet[]>> {
  const ips = new Set<string | undefined>([scene.server, scene.far, scene.near].map((pod) => pod.status?.podIP));
  const keyOf = (packet: Packet): string =>
    [`${packet.source}:${packet.sourcePort}`, `${packet.destination}:${packet.destinationPort}`]
      .toSorted(byText)
      .join(" ");
  const own = (packets: readonly Packet[]): Packet[] =>
    packets.filter(({ source, destination }) => ips.has(source) && ips.has(destination));
  const begun = new Set([...own(outside), ...own(inside)].filter(({ flags }) => (flags & 0x12) === 0x02).map(keyOf));
  const grouped = (packets: readonly Packet[]): Map<string, Packet[]> => {
    const groups = new Map<string, Packet[]>();
    for (const packet of own(packets)) {
      const key = keyOf(packet);
      if (begun.has(key)) groups.set(key, [...(groups.get(key) ?? []), packet]);
    }
    return groups;
  };
  const found = { outside: grouped(outside), inside: grouped(inside) };
  const both = [...found.outside.keys()].filter((key) => found.inside.has(key));
  assert.deepEqual(both, [], "connections went both ways");
  return found;
}

/** All of it is HBONE: port 15008, and TLS from the first byte. */
function assertHbone(connections: ReadonlyMap<string, readonly Packet[]>): void {
  assert.ok(connections.size > 0, "there was no HBONE");
  for (const [key, packets] of connections) {
    assert.ok(key.includes(`:${TUNNEL_PORT}`), `${key} went in clear`);
    const said = tcpStreams(packets).filter(({ bytes }) => bytes.length > 0);
    assert.ok(
      said.every((stream) => readTls(stream).wellFormed),
      `${key} is no TLS`,
    );
  }
}

function byText(a: string, b: string): number {
  return a < b ? -1 : 1;
}
