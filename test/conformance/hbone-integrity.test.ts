import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { randomFillSync } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, Socket, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { seededRandom, type Random } from "#base/random";
import { identities, testId } from "../../src/hbone/testing.ts";

// Two proxies as processes of their own, so that every stage can be the slow one. Whatever a side sends is a range of one
// block of noise that repeats; whoever reads compares byte by byte, so that the first wrong byte is named.

const NOISE_BYTES = 4 << 20;
const noise = Buffer.alloc(2 * NOISE_BYTES);
randomFillSync(noise, 0, NOISE_BYTES);
noise.copy(noise, NOISE_BYTES, 0, NOISE_BYTES);

interface Plan {
  readonly seed: number;
  readonly total: number;
  /** Stop with a reset after so many bytes. */
  readonly resetAt: number | undefined;
  /** Stall so often. */
  readonly slow: boolean;
}

function planOf(seed: number, side: number): Plan {
  const random = seededRandom(seed * 2 + side);
  random.unit();
  const sizes = [0, 1, 50, 3000, 65_536, 300_000, 2_000_000, 12_000_000];
  const total = sizes[random.below(sizes.length)] ?? 0;
  const resets = random.below(12) === 0;
  return {
    seed: random.below(2 ** 31),
    total,
    resetAt: resets ? random.below(total + 1) : undefined,
    slow: random.below(4) === 0,
  };
}

const startOf = (plan: Plan): number => plan.seed % NOISE_BYTES;

async function pause(random: Random): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, random.below(6)));
}

/** Sends what the plan says; true when all was sent and the end was said. */
async function send(socket: Socket, plan: Plan): Promise<boolean> {
  const random = seededRandom(plan.seed);
  let sent = 0;
  const until = plan.resetAt ?? plan.total;
  while (sent < until) {
    const size = Math.min(until - sent, [1, 10, 700, 16_384, 65_536, 250_000, 1_000_000][random.below(7)] ?? 1);
    const at = (startOf(plan) + sent) % NOISE_BYTES;
    sent += size;
    if (socket.destroyed) return false;
    if (!socket.write(noise.subarray(at, at + size))) {
      await new Promise<void>((resolve) => {
        const done = (): void => {
          socket.off("drain", done).off("close", done);
          resolve();
        };
        socket.on("drain", done).on("close", done);
      });
    }
    if (random.below(plan.slow ? 2 : 12) === 0) await pause(random);
  }
  if (plan.resetAt !== undefined) {
    socket.resetAndDestroy();
    return false;
  }
  socket.end();
  return !socket.destroyed;
}

interface Received {
  readonly bytes: number;
  readonly ended: boolean;
}

/** Reads and compares with what the other side's plan says; stops at the end or at a reset. */
async function receive(socket: Socket, options: { theirs: Plan; slow: boolean; what: string }): Promise<Received> {
  const { theirs, slow, what } = options;
  const random = seededRandom(theirs.seed + 1);
  let bytes = 0;
  let ended = false;
  await new Promise<void>((resolve, reject) => {
    socket.on("data", (chunk: Buffer) => {
      for (let done = 0; done < chunk.length;) {
        const at = (startOf(theirs) + bytes) % NOISE_BYTES;
        const size = Math.min(chunk.length - done, NOISE_BYTES);
        const wrong = chunk.compare(noise, at, at + size, done, done + size) !== 0;
        if (wrong) reject(new Error(`${what}: wrong bytes in ${bytes} to ${bytes + size}`));
        bytes += size;
        done += size;
      }
      if (random.below(slow ? 2 : 20) > 0) return;
      socket.pause();
      setTimeout(() => socket.resume(), random.below(8));
    });
    socket.on("end", () => {
      ended = true;
      resolve();
    });
    socket.on("close", () => {
      resolve();
    });
  });
  return { bytes, ended };
}

/** Longer runs and other seeds: node … test/conformance/hbone-integrity.test.ts SECONDS SEED */
const SOAK_MS = Number(process.argv[2] ?? 4) * 1000;
const FIRST_SEED = Number(process.argv[3] ?? 1);

for (const path of ["handles", "public"] as const) {
  describe(`checksums through two proxies (${path})`, () => {
    suite(path);
  });
}

function suite(path: "handles" | "public"): void {
  const folder = mkdtempSync(join(tmpdir(), "vt-hbone-integrity-"));
  const children: ChildProcess[] = [];
  const ports = { server: 0, client: 0 };
  const results = new Map<number, Promise<{ received: Received; sent: boolean }>>();

  /** The app's side of connection `seed`, which the first eight bytes name. */
  const app = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on("error", () => {});
    let head = Buffer.alloc(0);
    const onReadable = (): void => {
      const chunk: unknown = socket.read(8 - head.length) ?? socket.read();
      if (!Buffer.isBuffer(chunk)) return;
      head = Buffer.concat([head, chunk]);
      if (head.length < 8) return;
      socket.off("readable", onReadable);
      const seed = Number(head.toString());
      const theirs = planOf(seed, 0);
      const own = planOf(seed, 1);
      const received = receive(socket, { theirs, slow: own.slow, what: `${seed} up` });
      results.set(
        seed,
        Promise.all([received, send(socket, own)]).then(([all, sent]) => ({ received: all, sent })),
      );
      socket.resume();
    };
    socket.on("readable", onReadable);
  });

  async function launch(setup: Record<string, unknown>): Promise<void> {
    const file = join(folder, `${String(setup["role"])}.json`);
    writeFileSync(file, JSON.stringify(setup), { mode: 0o600 });
    const program = new URL("hbone-proxy.ts", import.meta.url).pathname;
    const child = spawn(process.execPath, ["--conditions=veil-source", "--disable-warning=DEP0111", program, file], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    children.push(child);
    await once(child.stdout, "data");
    child.stdout.resume();
  }

  before(async () => {
    await new Promise<void>((resolve) => app.listen(0, "127.0.0.1", resolve));
    const { client, server } = await identities();
    for (const name of ["server", "client"] as const) {
      const probe = createServer().listen(0, "127.0.0.1");
      await once(probe, "listening");
      ports[name] = (probe.address() as AddressInfo).port;
      await new Promise((resolve) => {
        probe.close(resolve);
      });
    }
    const target = `127.0.0.1:${(app.address() as AddressInfo).port}`;
    const common = { target, accepted: [testId("server")], peerPort: ports.server };
    await launch({ ...common, role: "server", path, listen: ports.server, identity: server });
    await launch({ ...common, role: "client", path, listen: ports.client, identity: client });
  });

  after(() => {
    for (const child of children) child.kill();
    app.close();
    rmSync(folder, { recursive: true, force: true });
  });

  async function connection(seed: number): Promise<void> {
    const socket = new Socket({ allowHalfOpen: true });
    socket.on("error", () => {});
    socket.connect(ports.client, "127.0.0.1");
    socket.write(String(seed));
    const [own, theirs] = [planOf(seed, 0), planOf(seed, 1)];
    const [down, sent] = await Promise.all([
      receive(socket, { theirs, slow: own.slow, what: `${seed} down` }),
      send(socket, own),
    ]);
    const far = await results.get(seed);
    results.delete(seed);
    const anyReset = own.resetAt !== undefined || theirs.resetAt !== undefined;
    if (anyReset) {
      if (far !== undefined)
        assert.ok(!(far.received.ended && down.ended && sent && far.sent), `${seed}: a reset got lost`);
      if (own.resetAt !== undefined)
        assert.equal(far?.received.ended ?? false, false, `${seed}: a reset looks like an end`);
      if (theirs.resetAt !== undefined) assert.equal(down.ended, false, `${seed}: a reset looks like an end`);
    } else {
      assert.deepEqual(far, { received: { bytes: own.total, ended: true }, sent: true }, `${seed} up`);
      assert.deepEqual({ down, sent }, { down: { bytes: theirs.total, ended: true }, sent: true }, `${seed} down`);
    }
    socket.destroy();
  }

  test("every byte arrives in order, every end is an end, every reset a reset, on many tunnels at a time", async () => {
    const endMs = performance.now() + SOAK_MS;
    let next = 10_000_000 + FIRST_SEED * 100_000;
    let count = 0;
    const worker = async (): Promise<void> => {
      while (performance.now() < endMs) {
        await connection(next++);
        count++;
      }
    };
    await Promise.all(Array.from({ length: 24 }, worker));
    assert.ok(count >= 24, `${count} connections`);
  });
}
