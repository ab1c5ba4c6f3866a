import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, createServer, type AddressInfo, type Socket } from "node:net";
import { test } from "node:test";
import type { OpenRequest } from "./open-request.ts";
import { identities, testId, TunnelRig, type RigOptions } from "./testing.ts";

const PATIENCE_MS = 60_000;

async function eventually(what: string, condition: () => boolean): Promise<void> {
  const endMs = performance.now() + PATIENCE_MS;
  while (!condition()) {
    assert.ok(performance.now() < endMs, `never came: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

async function withRig(options: Partial<RigOptions>, body: (rig: TunnelRig) => Promise<void>): Promise<void> {
  const rig = await TunnelRig.start({ app: (socket) => socket.pipe(socket), ...options });
  try {
    await body(rig);
  } finally {
    await rig.stop();
  }
}

/** A connection that stays: it has carried a byte both ways. */
async function held(rig: TunnelRig): Promise<Socket> {
  const socket = rig.dial();
  socket.write("a");
  await once(socket, "data");
  return socket;
}

/** A connection from beginning to end. Rejects when it is reset. */
async function whole(rig: TunnelRig, words = "words"): Promise<void> {
  const socket = rig.dial();
  const failed = new Promise<never>((_, reject) => {
    socket.on("error", reject);
  });
  let text = "";
  socket.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
  socket.end(words);
  await Promise.race([once(socket, "end"), failed]);
  assert.equal(text, words);
}

/** A TCP relay to the rig's server. */
class Relay {
  /** The connections that came. */
  readonly seen: Socket[] = [];
  /** New connections get no answer. */
  holds = false;
  readonly #sockets: Socket[] = [];
  readonly #server = createServer((near) => {
    this.#take(near);
  });
  rig: TunnelRig | undefined;
  /** Nothing goes on any more, and nothing is closed. */
  isSilent = false;

  static async start(): Promise<Relay> {
    const relay = new Relay();
    await new Promise<void>((resolve) => relay.#server.listen(0, "127.0.0.1", resolve));
    return relay;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port; // it listens on TCP
  }

  #take(near: Socket): void {
    this.seen.push(near);
    this.#sockets.push(near);
    near.on("error", () => undefined);
    if (this.holds) {
      near.resume();
      return;
    }
    const far = connect(this.rig?.server.port ?? 0, "127.0.0.1");
    this.#sockets.push(far);
    far.on("error", () => near.destroy());
    near.on("close", () => far.destroy());
    far.on("close", () => {
      if (!this.isSilent) near.destroy();
    });
    near.on("data", (bytes) => this.isSilent || far.write(bytes));
    far.on("data", (bytes) => this.isSilent || near.write(bytes));
  }

  stop(): void {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
  }
}

/** With a relay between the pool and the server. */
async function withRelay(
  limits: RigOptions["limits"],
  body: (rig: TunnelRig, relay: Relay) => Promise<void>,
): Promise<void> {
  const relay = await Relay.start();
  try {
    await withRig({ limits: limits ?? {}, request: () => ({ port: relay.port }) }, async (rig) => {
      relay.rig = rig;
      await body(rig, relay);
    });
  } finally {
    relay.stop();
  }
}

test("connections to one peer share one session, one after the other and at once", async () => {
  await withRig({}, async (rig) => {
    for (let i = 0; i < 3; i++) await whole(rig);
    await Promise.all(Array.from({ length: 20 }, () => whole(rig)));
    assert.equal(rig.sessionsSeen, 1);
    assert.equal(rig.pool.sessions, 1);
  });
});

test("another source, other accepted identities, their order, and another source address each have a session of their own", async () => {
  const [server, other] = [testId("server"), testId("other")];
  const variants = [
    {},
    { source: testId("client-two") },
    { accepted: [server, other] },
    { accepted: [other, server] },
    { sourceIp: "127.0.0.2" },
  ];
  let next = 0;
  await withRig({ request: () => variants[next++ % variants.length] ?? {} }, async (rig) => {
    for (let i = 0; i < 2 * variants.length; i++) await whole(rig);
    assert.equal(rig.sessionsSeen, variants.length);
    assert.equal(rig.pool.sessions, variants.length);
  });
});

test("a session takes as many tunnels as both sides allow, and the next one is there before it is full", async () => {
  await withRig({ limits: { streamsPerSession: 8 } }, async (rig) => {
    const sockets: Socket[] = [];
    for (let i = 0; i < 6; i++) sockets.push(await held(rig));
    assert.equal(rig.pool.sessions, 1, "room for two more");
    sockets.push(await held(rig));
    await eventually("a second session", () => rig.pool.sessions === 2);
    assert.equal(rig.sessionsSeen, 1, "nobody needs it yet");
    sockets.push(await held(rig));
    assert.equal(rig.sessionsSeen, 1, "the first one is filled first");
    sockets.push(await held(rig));
    assert.equal(rig.sessionsSeen, 2);
    sockets[0]?.end();
    await eventually("room", () => rig.results.outbound.length === 1);
    sockets.push(await held(rig));
    assert.equal(rig.sessionsSeen, 2, "what has become free is used again");
  });
});

test("a peer that takes one tunnel a session gets no session in advance", async () => {
  await withRig({ limits: { streamsPerPeer: 1 } }, async (rig) => {
    const sockets = [await held(rig), await held(rig), await held(rig)];
    assert.equal(rig.sessionsSeen, 3);
    assert.equal(rig.pool.sessions, 3);
    for (const socket of sockets) socket.destroy();
  });
});

test("a session that the peer winds up is left for a new one, and its tunnels go on", async () => {
  await withRig({}, async (rig) => {
    const first = await held(rig);
    rig.server.trustChanged();
    await eventually("the goodbye", () =>
      [...rig.pool.peers()].every(({ sessions }) => sessions.every(({ open }) => !open)),
    );
    await whole(rig);
    assert.equal(rig.sessionsSeen, 2);
    first.write("b");
    await once(first, "data");
    first.end();
    await eventually("the old session ends", () => rig.pool.sessions === 1);
  });
});

test("a handshake that is under way when trust changes begins again, and who waits for it does not fail", async () => {
  await withRelay({}, async (rig, relay) => {
    relay.holds = true; // the handshake hangs
    const waiting = [whole(rig), whole(rig)];
    await eventually("a handshake", () => relay.seen.length === 1);
    relay.holds = false;
    const { authority } = await identities();
    rig.identities.client = await authority.identity(testId("client"));
    rig.pool.trustChanged();
    await Promise.all(waiting);
    assert.equal(relay.seen.length, 2, "one handshake for both");
    await eventually("the one under the old trust is given up", () => relay.seen[0]?.destroyed === true);
  });
});

test("certificates and roots are replaced under load, on both sides, without a failed connection", async () => {
  await withRig({}, async (rig) => {
    const { authority } = await identities();
    const state = { over: false };
    let done = 0;
    const client = async (): Promise<void> => {
      while (!state.over) {
        await whole(rig);
        done++;
      }
    };
    const clients = Array.from({ length: 4 }, () => client());
    for (let round = 0; round < 8; round++) {
      const before = done;
      await eventually("some connections", () => done > before + 5);
      rig.identities.client = await authority.identity(testId("client"));
      rig.identities.server = await authority.identity(testId("server"));
      if (round % 2 === 0) rig.pool.certificateChanged(testId("client"));
      else rig.pool.trustChanged();
      rig.server.trustChanged();
    }
    state.over = true;
    await Promise.all(clients);
    assert.ok(rig.sessionsSeen > 4, `${rig.sessionsSeen} sessions`);
    assert.deepEqual(rig.rejected, []);
    await eventually("old sessions are gone", () => rig.pool.sessions <= 1);
  });
});

test("a peer that falls silent is found by pings: its tunnels end with that reason, and the next connection gets a new session", async () => {
  await withRelay({ pingIntervalMs: 100, pingTimeoutMs: 200 }, async (rig, relay) => {
    const socket = await held(rig);
    const broken = once(socket, "error");
    relay.isSilent = true;
    const [error] = await broken;
    assert.equal((error as NodeJS.ErrnoException).code, "ECONNRESET");
    await eventually("a result", () => rig.results.outbound.length === 1);
    assert.equal(rig.results.outbound[0]?.error?.code, "HBONE_PING_TIMEOUT");
    relay.isSilent = false;
    await whole(rig);
  });
});

test("a peer that nobody reaches fails all who wait for it, after one try", async () => {
  await withRelay({ handshakeTimeoutMs: 500 }, async (rig, relay) => {
    relay.holds = true;
    const sockets = Array.from({ length: 5 }, () => rig.dial());
    await eventually("five results", () => rig.results.outbound.length === 5);
    const codes = rig.results.outbound.map(({ error }) => error?.code);
    assert.deepEqual(new Set(codes), new Set(["HBONE_TLS_TIMEOUT"]));
    assert.ok(relay.seen.length <= 2, "those that came while it was tried shared the try");
    for (const socket of sockets) socket.destroy();
  });
});

test("unused sessions are released after a while, and not while a connection stays", async () => {
  await withRig({ limits: { idleMs: 100, streamsPerSession: 4 } }, async (rig) => {
    const stays = await held(rig);
    const leave = await Promise.all(Array.from({ length: 6 }, () => held(rig)));
    assert.ok(rig.pool.sessions >= 2);
    for (const socket of leave) socket.end();
    await eventually("only the used one is left", () => rig.pool.sessions === 1);
    stays.write("b");
    await once(stays, "data");
    stays.end();
    await eventually("none is left", () => rig.pool.sessions === 0 && rig.server.sessions === 0);
    await whole(rig);
  });
});

for (const [name, sources, clients] of [
  ["one source", 1, 32],
  ["several sources", 4, 16],
  ["many clients of many sources", 8, 64],
] as const) {
  test(`many connections of ${name} at once all come through, on few sessions`, async () => {
    let next = 0;
    const request = (): Partial<OpenRequest> => ({ source: testId(`client-${next++ % sources}`) });
    await withRig({ request, limits: { streamsPerSession: 16 } }, async (rig) => {
      const rounds = 4;
      const work = Array.from({ length: clients }, async (_, client) => {
        for (let round = 0; round < rounds; round++) await whole(rig, `client ${client} round ${round} `.repeat(200));
      });
      await Promise.all(work);
      assert.equal(rig.results.outbound.filter(({ error }) => error !== undefined).length, 0);
      // Each source needs one session for 16 at a time, and has at most one more in advance.
      const most = sources * (Math.ceil(clients / 16) + 2);
      assert.ok(rig.sessionsSeen >= sources && rig.sessionsSeen <= most, `${rig.sessionsSeen} sessions`);
    });
  });
}
