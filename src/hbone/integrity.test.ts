import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { once } from "node:events";
import type { Socket } from "node:net";
import { test } from "node:test";
import { seededRandom, type Random } from "#base/random";
import { socketPath, useSocketPath, type SocketPath } from "#linux";
import { TunnelRig, type RigOptions } from "./testing.ts";

/** Sends `total` random bytes in random pieces with random pauses, then ends. The result is their digest. */
async function send(socket: Socket, total: number, random: Random): Promise<string> {
  const hash = createHash("sha256");
  let left = total;
  while (left > 0 && !socket.destroyed) {
    const size = Math.min(left, [1, 9, 100, 4096, 16_384, 65_536, 200_000, 1_500_000][random.below(8)] ?? 1);
    const chunk = Buffer.allocUnsafe(size);
    for (let at = 0, x = random.below(2 ** 31); at < size; at++)
      chunk[at] = x = (Math.imul(x, 1103515245) + 12345) >>> 8;
    hash.update(chunk);
    left -= size;
    if (!socket.write(chunk)) await Promise.race([once(socket, "drain"), once(socket, "close")]);
    if (random.below(4) === 0) await new Promise((resolve) => setTimeout(resolve, random.below(4)));
  }
  socket.end();
  return hash.digest("hex");
}

/** Reads to the end, sometimes slowly. Rejects when the connection is reset. */
async function receive(socket: Socket, random: Random): Promise<string> {
  const hash = createHash("sha256");
  return new Promise((resolve, reject) => {
    socket.on("data", (chunk) => {
      hash.update(chunk);
      if (random.below(16) > 0) return;
      socket.pause();
      setTimeout(() => socket.resume(), random.below(4));
    });
    socket.on("error", reject);
    socket.on("end", () => {
      resolve(hash.digest("hex"));
    });
  });
}

interface Expectation {
  readonly up: string;
  readonly down: string;
}

/** Many connections at once, both directions at once, of random sizes; the app's sides are matched by a first line. */
async function exchange(count: number, seed: number, sizes: readonly number[]): Promise<void> {
  const random = seededRandom(seed);
  const appSide = new Map<string, Promise<Expectation>>();
  const options: RigOptions = {
    app: (socket) => {
      socket.once("readable", () => {
        const name = String(socket.read(8));
        const own = seededRandom(Number(name));
        const total = sizes[own.below(sizes.length)] ?? 0;
        appSide.set(
          name,
          Promise.all([receive(socket, own), send(socket, total, own)]).then(([up, down]) => ({ up, down })),
        );
      });
    },
  };
  const rig = await TunnelRig.start(options);
  try {
    const clients = Array.from({ length: count }, async (_, index) => {
      const own = seededRandom(random.below(2 ** 31));
      const name = String(10_000_000 + seed * 10_000 + index);
      const socket = rig.dial();
      socket.write(name);
      const total = sizes[own.below(sizes.length)] ?? 0;
      const [down, up] = await Promise.all([receive(socket, own), send(socket, total, own)]);
      return { name, up, down };
    });
    for (const { name, up, down } of await Promise.all(clients)) {
      const app = await appSide.get(name);
      assert.equal(app?.up, up, `${name} up`);
      assert.equal(app?.down, down, `${name} down`);
    }
    await settled(rig, count);
    for (const result of [...rig.results.outbound, ...rig.results.inbound]) assert.equal(result.error, undefined);
  } finally {
    await rig.stop();
  }
}

async function settled(rig: TunnelRig, count: number): Promise<void> {
  for (let i = 0; i < 6000 && (rig.results.outbound.length < count || rig.results.inbound.length < count); i++) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.equal(rig.results.outbound.length, count);
  assert.equal(rig.results.inbound.length, count);
}

for (const path of ["handles", "public"] as const satisfies SocketPath[]) {
  const within = async (body: () => Promise<void>): Promise<void> => {
    const before = socketPath();
    useSocketPath(path);
    try {
      await body();
    } finally {
      useSocketPath(before);
    }
  };
  const small = [0, 1, 3, 100, 5000, 70_000];
  const large = [0, 1, 65_536, 1_000_000, 5_000_000];

  test(`every byte arrives, in order, in both directions, on many tunnels of one session (${path})`, async () => {
    await within(async () => exchange(60, 1, small));
  });

  test(`every byte of large transfers arrives, more tunnels than one session takes (${path})`, async () => {
    await within(async () => exchange(12, 2, large));
    await within(async () => exchange(130, 3, small));
  });
}
