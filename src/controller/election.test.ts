import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { FakeClock, type Clock } from "#base/clock";
import { silentLog } from "#base/log";
import { seededRandom, type Random } from "#base/random";
import { kubeError, type KubeClient, type Lease } from "#kube";
import { DEFAULT_ELECTION_TIMES, Election, type ElectionTimes } from "./election.ts";

const { leaseMs, retryMs } = DEFAULT_ELECTION_TIMES;

/** What may go wrong between one process and the API. */
interface Weather {
  /** Of a request on its way, and of its answer on the way back, at most. */
  latencyMs: number;
  /** Of all requests: not carried out, or carried out without an answer. */
  lost: number;
  down: boolean;
}

/** The API's one Lease, and what leaders have written. */
class LeaseApi {
  readonly world = new FakeClock(1_000_000);
  readonly random: Random;
  readonly weather: Weather = { latencyMs: 20, lost: 0, down: false };
  /** Writes of leaders: who, and who had the lease when the API carried it out. */
  readonly writes: { readonly by: string; readonly holder: string; readonly atMs: number }[] = [];
  lease: Lease | undefined;
  #version = 1;

  constructor(seed: number) {
    this.random = seededRandom(seed);
  }

  get holder(): string {
    return this.lease?.spec?.holderIdentity ?? "";
  }

  store(lease: Lease): Lease {
    this.lease = { ...lease, metadata: { ...lease.metadata, resourceVersion: String(++this.#version) } };
    return structuredClone(this.lease);
  }

  /** Carries out `work` after a while, and answers after another, if at all. */
  request<T>(at: Machine, work: () => T, { signal, lateMs = 0 }: { signal: AbortSignal; lateMs?: number }): Promise<T> {
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    const { latencyMs, lost } = this.weather;
    const isCut = this.weather.down || at.isCut;
    const [isLost, isUnanswered] = [this.random.unit() < lost, this.random.unit() < lost];
    this.world.after(this.random.unit() * latencyMs, () => {
      if (isCut || isLost) return;
      let answer: () => void;
      try {
        const result = work();
        answer = () => resolve(result);
      } catch (error) {
        answer = () => reject(error);
      }
      if (!isUnanswered) this.world.after(lateMs + this.random.unit() * latencyMs, () => at.whenAwake(answer));
    });
    return promise;
  }

  clientOf(at: Machine): Pick<KubeClient, "find" | "create" | "replace"> {
    // The election asks for leases alone.
    return {
      find: (_: unknown, { signal }: { signal: AbortSignal }) =>
        this.request(at, () => structuredClone(this.lease), { signal }),
      create: (_: unknown, lease: Lease, { signal }: { signal: AbortSignal }) =>
        this.request(
          at,
          () => {
            if (this.lease !== undefined) throw kubeError("KUBE_ALREADY_EXISTS", "there is one");
            return this.store(lease);
          },
          { signal },
        ),
      replace: (_: unknown, lease: Lease, { signal }: { signal: AbortSignal }) =>
        this.request(
          at,
          () => {
            const isNewest = lease.metadata?.resourceVersion === this.lease?.metadata?.resourceVersion;
            if (!isNewest) throw kubeError("KUBE_CONFLICT", "it has changed");
            return this.store(lease);
          },
          { signal, lateMs: at.lateMs },
        ),
    } as unknown as Pick<KubeClient, "find" | "create" | "replace">;
  }
}

/** A machine whose clock shows anything and runs at a rate of its own; it may stand still, or lose its network. */
class Machine implements Clock {
  isCut = false;
  awakeAtMs = 0;
  /** So much later than others' the answers to its renewals come. */
  lateMs = 0;
  readonly #world: FakeClock;
  readonly #rate: number;
  readonly #offsetMs: number;

  constructor(world: FakeClock, { rate, offsetMs }: { rate: number; offsetMs: number }) {
    this.#world = world;
    this.#rate = rate;
    this.#offsetMs = offsetMs;
  }

  now(): number {
    return this.#world.now() + this.#offsetMs;
  }

  monotonic(): number {
    return this.#world.monotonic() * this.#rate;
  }

  after(delayMs: number, callback: () => void): () => void {
    let isOff = false;
    const cancel = this.#world.after(delayMs / this.#rate, () => this.whenAwake(() => isOff || callback()));
    return () => {
      isOff = true;
      cancel();
    };
  }

  whenAwake(callback: () => void): void {
    const leftMs = this.awakeAtMs - this.#world.monotonic();
    if (leftMs <= 0) callback();
    else if (leftMs < Infinity) this.#world.after(leftMs, () => this.whenAwake(callback));
  }
}

/** A process that stands for election, and writes all the time while it leads. */
class Replica {
  readonly machine: Machine;
  readonly election: Election;
  readonly identity: string;
  readonly #api: LeaseApi;

  constructor(
    api: LeaseApi,
    identity: string,
    {
      rate = 1,
      offsetMs = 0,
      times = DEFAULT_ELECTION_TIMES,
    }: { rate?: number; offsetMs?: number; times?: ElectionTimes } = {},
  ) {
    this.#api = api;
    this.identity = identity;
    this.machine = new Machine(api.world, { rate, offsetMs });
    this.election = new Election({
      client: api.clientOf(this.machine),
      namespace: "veil-system",
      identity,
      times,
      clock: this.machine,
      random: api.random,
      log: silentLog(),
    });
    void this.election.start();
    this.#work();
  }

  #work(): void {
    const { machine, identity: by } = this;
    const api = this.#api;
    machine.after(100, () => {
      this.#work();
      if (!this.election.leading) return;
      // On its way for less than a margin's rest: what takes longer, the object's version has to refuse.
      const write = (): Promise<unknown> =>
        new Promise<void>((resolve) => {
          api.world.after(api.random.unit() * 500, () => {
            if (!api.weather.down && !machine.isCut) {
              api.writes.push({ by, holder: api.holder, atMs: api.world.now() });
            }
            machine.whenAwake(resolve);
          });
        });
      void this.election.whileLeading(write).catch(() => undefined);
    });
  }

  /** Never does anything again. */
  kill(): void {
    this.machine.awakeAtMs = Infinity;
  }
}

async function until(api: LeaseApi, what: () => boolean, ms: number): Promise<number> {
  const began = api.world.now();
  while (!what()) {
    assert.ok(api.world.now() - began < ms, `not within ${ms} ms: ${what.toString()}`);
    await api.world.advance(20);
  }
  return api.world.now() - began;
}

const fault = fc.record({
  kind: fc.constantFrom("cut", "freeze", "kill", "stop", "down", "slow", "lossy", "calm"),
  who: fc.nat(2),
  forMs: fc.integer({ min: 100, max: 20_000 }),
});
const clockOf = fc.record({
  rate: fc.double({ min: 0.87, max: 1.13, noNaN: true }),
  offsetMs: fc.integer({ min: -(10 ** 9), max: 10 ** 9 }),
});

test("no two lead, and nothing is written after the next has begun, whatever clocks, processes and network do", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer(),
      fc.tuple(clockOf, clockOf, clockOf),
      fc.array(fault, { minLength: 3, maxLength: 12 }),
      async (seed, clocks, faults) => {
        const api = new LeaseApi(seed);
        let made = 0;
        const replicas = clocks.map((clock) => new Replica(api, `replica-${made++}`, clock));
        const step = async (ms: number): Promise<void> => {
          for (let left = ms; left > 0; left -= 50) {
            await api.world.advance(50);
            assert.ok(replicas.filter(({ election }) => election.leading).length <= 1, "two lead");
          }
        };
        for (const { kind, who, forMs } of faults) {
          const replica = replicas[who] ?? assert.fail();
          if (kind === "cut") replica.machine.isCut = true;
          if (kind === "freeze") replica.machine.awakeAtMs = api.world.monotonic() + forMs;
          if (kind === "kill") replica.kill();
          if (kind === "stop") void replica.election.drain(2_000);
          if (kind === "down") api.weather.down = true;
          if (kind === "slow") api.weather.latencyMs = 4_000;
          if (kind === "lossy") api.weather.lost = 0.5;
          await step(forMs);
          replica.machine.isCut = false;
          Object.assign(api.weather, { latencyMs: 20, lost: 0, down: false });
          if (kind === "kill" || kind === "stop") {
            replica.kill();
            replicas[who] = new Replica(api, `replica-${made++}`, clocks[who]);
          }
        }
        await step(20_000); // a frozen one wakes before that
        assert.equal(replicas.filter(({ election }) => election.leading).length, 1, "somebody leads again");
        for (const { by, holder } of api.writes) assert.equal(by, holder);
        for (const replica of replicas) replica.kill();
      },
    ),
    { numRuns: 60 },
  );
});

test("a leader that holds on for longer than others wait makes two: the test above would see them", async () => {
  const api = new LeaseApi(6);
  const times = { leaseMs: 4_000, renewMs: 12_000, retryMs };
  const first = new Replica(api, "first", { times });
  await until(api, () => first.election.leading, 1_000);
  const second = new Replica(api, "second", { times });
  await api.world.advance(3_000);
  first.machine.awakeAtMs = api.world.monotonic() + 6_000;
  await until(api, () => first.election.leading && second.election.leading, 15_000);
  await until(api, () => api.writes.some(({ by, holder }) => by !== holder), 15_000);
});

test("a leader that is killed is followed within 15 s, whenever that happens", async () => {
  const took: number[] = [];
  for (let seed = 0; seed < 40; seed++) {
    const api = new LeaseApi(seed);
    const [first, second] = [new Replica(api, "first"), new Replica(api, "second")];
    await until(api, () => first.election.leading || second.election.leading, 1_000);
    await api.world.advance(5_000 + api.random.unit() * 5_000);
    const [leader, other] = first.election.leading ? [first, second] : [second, first];
    leader.kill();
    took.push(await until(api, () => other.election.leading, 15_000));
    other.kill();
  }
  assert.ok(Math.min(...took) >= leaseMs - retryMs - 100, "nobody is followed while it may lead");
});

test("a leader that is told to stop is followed with the next look, after its work has ended", async () => {
  const api = new LeaseApi(1);
  const first = new Replica(api, "first");
  await until(api, () => first.election.leading, 1_000);
  const second = new Replica(api, "second");
  await api.world.advance(5_000);
  const work = Promise.withResolvers<void>();
  const working = first.election.whileLeading(() => work.promise);
  const draining = first.election.drain(2_000);
  assert.equal(first.election.leading, false, "nothing new begins");
  await assert.rejects(
    first.election.whileLeading(async () => {}),
    { code: "CONTROLLER_NOT_LEADING" },
  );
  await api.world.advance(500);
  assert.equal(api.holder, "first", "its work goes on");
  work.resolve();
  await working;
  await until(api, () => second.election.leading, 2.2 * retryMs + 200);
  await draining;
});

test("work that does not end keeps the lease from being let go: it runs out", async () => {
  const api = new LeaseApi(2);
  const first = new Replica(api, "first");
  await until(api, () => first.election.leading, 1_000);
  const second = new Replica(api, "second");
  await api.world.advance(3_000);
  void first.election.whileLeading(() => new Promise(() => {}));
  void first.election.drain(2_000);
  await api.world.advance(leaseMs - 2 * retryMs);
  assert.equal(second.election.leading, false);
  await until(api, () => second.election.leading, 15_000);
});

test("a leader that is cut off ends before another begins, and its work is told", async () => {
  const api = new LeaseApi(3);
  const first = new Replica(api, "first");
  await until(api, () => first.election.leading, 1_000);
  const second = new Replica(api, "second");
  await api.world.advance(3_000);
  let told: unknown;
  void first.election.whileLeading(
    (signal) =>
      new Promise<void>((resolve) => {
        signal.addEventListener("abort", () => {
          told = signal.reason;
          resolve();
        });
      }),
  );
  first.machine.isCut = true;
  await until(api, () => !first.election.leading, DEFAULT_ELECTION_TIMES.renewMs + retryMs);
  assert.equal((told as { code: string }).code, "CONTROLLER_NOT_LEADING");
  assert.equal(second.election.leading, false);
  await until(api, () => second.election.leading, 15_000);
  first.machine.isCut = false;
  await api.world.advance(10_000);
  assert.equal(first.election.leading, false, "the lease is the other's");
});

test("times that stand in the lease mean nothing: only that it changes", async () => {
  for (const renewTime of ["1970-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z"]) {
    const api = new LeaseApi(4);
    const spec = { holderIdentity: "gone", leaseDurationSeconds: 9, renewTime, leaseTransitions: 3 };
    api.store({ metadata: { name: "veil-controller", namespace: "veil-system" }, spec });
    const { election } = new Replica(api, "first");
    await api.world.advance(leaseMs - 100);
    assert.equal(election.leading, false);
    await until(api, () => election.leading, 1_000);
    assert.equal(api.lease?.spec?.leaseTransitions, 4);
  }
});

test("a lease that somebody deletes is its holder's all the same, whoever looks first", async () => {
  for (let seed = 0; seed < 20; seed++) {
    const api = new LeaseApi(seed);
    const first = new Replica(api, "first");
    await until(api, () => first.election.leading, 1_000);
    const second = new Replica(api, "second");
    await api.world.advance(5_000);
    api.lease = undefined;
    for (let round = 0; round < 100; round++) {
      await api.world.advance(100);
      assert.deepEqual([first.election.leading, second.election.leading], [true, false]);
    }
    assert.equal(api.holder, "first", "it made a new one");
    for (const one of [first, second]) one.kill();
  }
});

test("a renewal counts from when it was sent: that its answer is late makes no term longer", async () => {
  for (let seed = 0; seed < 20; seed++) {
    const api = new LeaseApi(seed);
    const first = new Replica(api, "first", { rate: 0.9 });
    await until(api, () => first.election.leading, 1_000);
    const second = new Replica(api, "second", { rate: 1.12 });
    await api.world.advance(5_000);
    first.machine.lateMs = 2_600;
    const { resourceVersion } = api.lease?.metadata ?? {};
    await until(api, () => api.lease?.metadata?.resourceVersion !== resourceVersion, 3_000);
    first.machine.isCut = true;
    while (!second.election.leading) {
      await api.world.advance(20);
      assert.ok(!(first.election.leading && second.election.leading), `two lead with seed ${seed}`);
    }
    for (const one of [first, second]) one.kill();
  }
});
