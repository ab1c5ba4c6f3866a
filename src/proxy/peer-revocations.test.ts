import assert from "node:assert/strict";
import { mkdtemp, rename, rm, symlink, unlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { FakeClock, systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { CellSet } from "#base/metrics";
import type { PresentedChain } from "#hbone";
import { formatSpiffeId } from "#model/spiffe-id";
import { decodeCrl, parseCertificates, type Certificate, type Crl } from "#x509";
import { identities, TunnelRig } from "../hbone/testing.ts";
import { TestAuthority } from "../x509/testing.ts";
import { CrlFile } from "./crl-file.ts";
import { proxyMetrics } from "./metrics.ts";
import { PeerRevocationLists } from "./peer-revocations.ts";

const authority = await TestAuthority.create();
const uri = formatSpiffeId({ trustDomain: "cluster.local", namespace: "test", serviceAccount: "a" });
const identity = await authority.identity(uri);
const newLeaf = async (): Promise<Certificate> => (await authority.craft({ uris: [uri] })).certificate;
const leaf = await newLeaf();
const turn = async (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

function chainOf(one: Certificate, more: Partial<PresentedChain> = {}): PresentedChain {
  const certificates = [one.openssl, authority.intermediate.openssl];
  return { certificates, identity, reporter: "destination", ...more };
}

async function listOf(...revoked: Certificate[]): Promise<Crl> {
  return decodeCrl(await authority.crl(revoked));
}

function rig() {
  const cells = new CellSet(proxyMetrics);
  const lists = new PeerRevocationLists(new FakeClock(), cells);
  const counted = (name: string): string =>
    cells
      .snapshot()
      .filter((sample) => sample.name === name && sample.value > 0)
      .map(({ labels, value }) => `${labels["reporter"]} ${value}`)
      .join(", ");
  return {
    lists,
    rejections: () => counted("istio_crl_policy_rejections_total"),
    untracked: () => counted("istio_crl_untracked_connections_total"),
  };
}

describe("a peer in its handshake", () => {
  it("passes while no list names it, and is refused and counted when one does", async () => {
    const { lists, rejections } = rig();
    assert.ok(lists.admit(chainOf(leaf)));
    lists.apply([await listOf(await newLeaf())]);
    assert.ok(lists.admit(chainOf(leaf)));
    lists.apply([await listOf(leaf)]);
    assert.equal(lists.admit(chainOf(leaf)), undefined);
    assert.equal(lists.admit(chainOf(leaf, { reporter: "source" })), undefined);
    await turn();
    assert.equal(rejections(), "destination 3, source 1", "the two that ran, too");
  });

  const foreign = async () => {
    const stranger = await TestAuthority.create("cluster.local");
    const { certificate } = await stranger.craft({ uris: [uri] });
    const own = { ...identity, rootsPem: stranger.root.pem };
    const bare = chainOf(certificate, { certificates: [certificate.openssl], identity: own });
    return { stranger, certificate, own, bare };
  };

  it("that shows its leaf alone is judged by our own chain, and by what other peers have shown", async () => {
    const { lists, untracked } = rig();
    assert.ok(lists.admit(chainOf(leaf, { certificates: [leaf.openssl] })));
    const { stranger, certificate, own, bare } = await foreign();
    assert.ok(lists.admit({ ...bare, certificates: [certificate.openssl, stranger.intermediate.openssl] }));
    assert.ok(lists.admit({ ...bare, identity: own }));
    assert.deepEqual([untracked(), lists.watched], ["", 3]);
  });

  it("whose issuer is not known is counted, and refused when it may have been revoked", async () => {
    const { lists, untracked, rejections } = rig();
    const { stranger, certificate, bare } = await foreign();
    assert.ok(lists.admit(bare));
    assert.equal(untracked(), "destination 1");
    lists.apply([decodeCrl(await stranger.crl([leaf]))]);
    assert.ok(lists.admit(bare), "its issuer has revoked somebody else");
    lists.apply([decodeCrl(await stranger.crl([certificate]))]);
    assert.equal(lists.admit(bare), undefined);
    lists.apply([decodeCrl(await stranger.crl([leaf], { by: "root" }))]);
    assert.equal(lists.admit(bare), undefined, "the root has revoked something: it may be its issuer");
    await turn();
    assert.equal(lists.watched, 0, "those that ran were judged alike");
    assert.equal(rejections(), "destination 4");
  });
});

describe("a session", () => {
  it("ends when a list comes that names a certificate of its path, others and ended ones are left alone", async () => {
    const { lists } = rig();
    const ended: string[] = [];
    const session = (name: string, one: Certificate) => {
      const watch = lists.admit(chainOf(one));
      assert.ok(watch);
      watch.onRevoked = () => ended.push(name);
      return watch;
    };
    session("a", leaf);
    session("b", await newLeaf());
    session("gone", leaf).leave();
    lists.apply([await listOf(leaf)]);
    assert.deepEqual(ended, [], "not at once");
    await turn();
    assert.deepEqual([ended, lists.watched], [["a"], 1]);
    lists.apply([]);
    lists.apply([decodeCrl(await authority.crl([authority.intermediate], { by: "root" }))]);
    await turn();
    assert.deepEqual([ended, lists.watched], [["a", "b"], 0], "its intermediate was revoked");
  });

  it("of a thousand with one revoked issuer end together, in slices", async () => {
    const { lists } = rig();
    let ended = 0;
    for (let i = 0; i < 1_000; i++) {
      const watch = lists.admit(chainOf(leaf));
      if (watch !== undefined) watch.onRevoked = () => ended++;
    }
    lists.apply([decodeCrl(await authority.crl([authority.intermediate], { by: "root" }))]);
    await turn();
    assert.ok(ended > 0 && ended <= 512, `${ended} in the first turn`);
    for (let i = 0; i < 50 && lists.watched > 0; i++) await turn();
    assert.equal(ended, 1_000);
  });
});

describe("a tunnel between two proxies", () => {
  const sides = ["source", "destination"] as const;

  /** One end has lists; the certificate of the other end's workload, or their common intermediate, may be revoked. */
  async function withEnd(
    side: (typeof sides)[number],
    work: (end: {
      rig: TunnelRig;
      lists: PeerRevocationLists;
      peer: Certificate;
      crl: (one: Certificate) => Promise<Crl>;
    }) => Promise<void>,
  ) {
    const { client, server, authority: own } = await identities();
    const lists = new PeerRevocationLists(systemClock(), new CellSet(proxyMetrics));
    const rig = await TunnelRig.start({ app: (socket) => socket.pipe(socket), revocations: { [side]: lists } });
    const [peer] = parseCertificates((side === "source" ? server : client).chainPem, "the peer's chain");
    assert.ok(peer);
    try {
      await work({ rig, lists, peer, crl: async (one) => decodeCrl(await own.crl([one])) });
    } finally {
      await rig.stop();
    }
  }

  async function until(what: string, look: () => boolean): Promise<void> {
    for (let left = 6_000; left > 0; left--) {
      if (look()) return;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    assert.fail(`never came: ${what}`);
  }

  for (const side of sides) {
    it(`whose ${side} finds the other revoked does not come about`, async () => {
      await withEnd(side, async ({ rig, lists, peer, crl }) => {
        lists.apply([await crl(peer)]);
        rig.dial();
        await until("the refusal", () => rig.results.outbound.length === 1);
        if (side === "source") assert.equal(rig.results.outbound[0]?.error?.code, "HBONE_PEER_REVOKED");
        else
          assert.deepEqual(
            rig.rejected.map(({ code }) => code),
            ["HBONE_PEER_REVOKED"],
          );
        assert.deepEqual([rig.tunnels.length, lists.watched], [0, 0]);
      });
    });

    it(`that runs ends when its ${side} finds the other revoked, not when somebody else is`, async () => {
      await withEnd(side, async ({ rig, lists, peer, crl }) => {
        const socket = rig.dial();
        socket.write("hello");
        await new Promise((resolve) => socket.once("data", resolve));
        assert.equal(lists.watched, 1);
        lists.apply([await crl(await newLeaf())]);
        await turn();
        socket.write("still");
        await new Promise((resolve) => socket.once("data", resolve));
        lists.apply([await crl(peer)]);
        const closed = new Promise((resolve) => socket.once("close", resolve));
        await closed;
        const ends = side === "source" ? rig.results.outbound : rig.results.inbound;
        await until("the end", () => ends.length === 1);
        assert.equal(ends[0]?.error?.code, "HBONE_PEER_REVOKED");
        // A destination whose source hangs up counts a lost session, sooner or later.
        if (side === "destination") assert.deepEqual(rig.rejected, [], "told by its tunnel's record alone");
        await until("no watched session", () => lists.watched === 0);
      });
    });
  }

  it("is not watched any more once its session has ended", async () => {
    await withEnd("destination", async ({ rig, lists }) => {
      const socket = rig.dial();
      socket.write("hello");
      await new Promise((resolve) => socket.once("data", resolve));
      assert.equal(lists.watched, 1);
      await rig.pool.drain(0);
      await until("no watched session", () => lists.watched === 0);
    });
  });
});

describe("a file of revocation lists", () => {
  async function follow(
    work: (rig: { folder: string; path: string; spread: number[]; file: CrlFile; clock: FakeClock }) => Promise<void>,
  ) {
    const folder = await mkdtemp(join(tmpdir(), "veil-crl-"));
    const path = join(folder, "ca-crl.pem");
    const spread: number[] = [];
    const clock = new FakeClock();
    const take = async (crls: readonly Crl[]): Promise<void> => void spread.push(crls.length);
    const file = new CrlFile({ path, spread: take, clock, log: silentLog() });
    try {
      await work({ folder, path, spread, file, clock });
    } finally {
      await file.drain();
      await rm(folder, { recursive: true });
    }
  }

  /** Until something was spread: the folder's watch speaks when it can. */
  async function until(spread: readonly number[], count: number, clock: FakeClock): Promise<void> {
    for (let left = 2_000; left > 0 && spread.length < count; left--) {
      await clock.advance(50);
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    assert.equal(spread.length, count);
  }

  it("that is missing or empty holds none, and one that comes later counts", async () => {
    await follow(async ({ path, spread, file, clock }) => {
      await file.start();
      assert.deepEqual(spread, []);
      await writeFile(path, "");
      await writeFile(path, await authority.crl([leaf]));
      await until(spread, 1, clock);
      assert.deepEqual(spread, [1]);
      await unlink(path);
      await until(spread, 2, clock);
      assert.deepEqual(spread, [1, 0]);
    });
  });

  it("that is there is in force when it has started; one that cannot be read changes nothing", async () => {
    await follow(async ({ path, spread, file, clock }) => {
      await writeFile(path, await authority.crl([leaf]));
      await file.start();
      assert.deepEqual(spread, [1]);
      const replace = async (content: string | Uint8Array): Promise<void> => {
        await writeFile(`${path}.new`, content);
        await rename(`${path}.new`, path);
      };
      await replace("garbage");
      await clock.advance(60_000);
      await replace(await authority.crl([]));
      await until(spread, 2, clock);
      assert.deepEqual(spread, [1, 1], "the garbage was passed over");
    });
  });

  it("is followed through a link that is swapped, as Kubernetes does", async () => {
    await follow(async ({ folder, path, spread, file, clock }) => {
      await writeFile(join(folder, "one"), await authority.crl([leaf]));
      await writeFile(join(folder, "two"), await authority.crl([leaf, await newLeaf()]));
      await symlink("one", path);
      await file.start();
      await symlink("two", join(folder, "next"));
      await rename(join(folder, "next"), path);
      await until(spread, 2, clock);
      assert.deepEqual(spread, [1, 1]);
    });
  });

  it("whose folder is not there is looked for from time to time", async () => {
    await follow(async ({ folder, spread, clock }) => {
      const path = join(folder, "later", "crl.pem");
      const take = async (crls: readonly Crl[]): Promise<void> => void spread.push(crls.length);
      const late = new CrlFile({ path, spread: take, clock, log: silentLog() });
      await late.start();
      const { mkdir } = await import("node:fs/promises");
      await mkdir(join(folder, "later"));
      await writeFile(path, await authority.crl([leaf]));
      await clock.advance(30_000);
      await until(spread, 1, clock);
      await late.drain();
    });
  });
});
