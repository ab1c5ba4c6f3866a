import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { gunzipSync } from "node:zlib";
import { fromBinary } from "@bufbuild/protobuf";
import { FakeClock, systemClock } from "#base/clock";
import { ProfileSchema, type Profile } from "#proto";
import { proxyConfig } from "./config.ts";
import type { FromThread } from "./messages.ts";
import { encodePprof, type ThreadProfile } from "./pprof.ts";
import { ProfilePages } from "./profile-page.ts";
import { recordProfile } from "./profiler.ts";
import { startWorker } from "./worker-port.ts";

const clock = systemClock();
const never = new AbortController().signal;
const time = { startMs: 1_700_000_000_000, durationMs: 200, interval: 1_000 };

/** Keeps a processor busy until it is told to stop. */
async function busyForTheTest(signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    for (let i = 0, x = 0; i < 2e6; i++) x += Math.sqrt(i + x);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

const kept: object[] = [];

async function allocateForTheTest(signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    for (let i = 0; i < 1_000; i++) kept.push({ some: i, words: String(i) });
    await new Promise((resolve) => setImmediate(resolve));
  }
}

async function during<T>(work: (signal: AbortSignal) => Promise<void>, recorded: () => Promise<T>): Promise<T> {
  const stop = new AbortController();
  const working = work(stop.signal);
  try {
    return await recorded();
  } finally {
    stop.abort(new Error("recorded"));
    await working;
  }
}

function decode(bytes: Uint8Array): Profile {
  return fromBinary(ProfileSchema, gunzipSync(bytes));
}

/** How much of the second value of all samples stands below a function, by name and thread. */
function below(profile: Profile, functionName: string): { share: number; thread: string } {
  const { stringTable, location, sample } = profile;
  const functions = new Map(profile.function.map(({ id, name }) => [id, stringTable[name]]));
  const names = new Map(location.map(({ id, line }) => [id, functions.get(line[0]?.functionId ?? 0)]));
  let [all, own, thread] = [0, 0, ""];
  for (const { locationId, value, label } of sample) {
    all += Number(value[1]);
    if (!locationId.some((id) => names.get(id) === functionName)) continue;
    own += Number(value[1]);
    thread = `${stringTable[label[0]?.key ?? 0]}=${stringTable[label[0]?.str ?? 0]}`;
  }
  return { share: own / all, thread };
}

describe("a profile", () => {
  it("of processor time shows where it went, on which thread", async () => {
    const recorded = await during(busyForTheTest, async () =>
      recordProfile({ kind: "cpu", durationMs: 200, interval: 1_000 }, "main", { clock, signal: never }),
    );
    const profile = decode(await encodePprof([recorded], time));
    const { share, thread } = below(profile, "busyForTheTest");
    assert.ok(share > 0.1, `only ${share} of the time`);
    assert.equal(thread, "thread=main");
    const [, cpu] = profile.sampleType;
    assert.deepEqual(
      [profile.stringTable[cpu?.type ?? 0], profile.stringTable[cpu?.unit ?? 0]],
      ["cpu", "nanoseconds"],
    );
    assert.equal(profile.period, 1_000_000n);
    assert.equal(profile.timeNanos, 1_700_000_000_000_000_000n);
  });

  it("of memory shows who allocated what stays", async () => {
    const recorded = await during(allocateForTheTest, async () =>
      recordProfile({ kind: "heap", durationMs: 200, interval: 4_096 }, "main", { clock, signal: never }),
    );
    kept.length = 0;
    const { share } = below(decode(await encodePprof([recorded], time)), "allocateForTheTest");
    assert.ok(share > 0.1, `only ${share} of the memory`);
  });

  it("of several threads keeps them apart", async () => {
    const one = (thread: string): ThreadProfile => ({
      kind: "cpu",
      thread,
      profile: {
        startTime: 0,
        endTime: 3,
        nodes: [
          node(1, "(root)", [2, 4]),
          node(2, `work of ${thread}`, [3]),
          node(3, "inner", []),
          node(4, "(idle)", []),
        ],
        samples: [3, 2, 4, 4],
        timeDeltas: [0, 100, 50, 1_000],
      },
    });
    const node = (id: number, functionName: string, children: number[]) => ({
      id,
      callFrame: { functionName, scriptId: "1", url: "file:///x.ts", lineNumber: 4, columnNumber: 0 },
      children,
    });
    const profile = decode(await encodePprof([one("a"), one("b")], time));
    assert.deepEqual(below(profile, "work of a"), { share: 0.5, thread: "thread=a" });
    assert.deepEqual(below(profile, "inner").share, 2 / 3);
    assert.equal(profile.sample.length, 4, "idle time is none");
    assert.ok(profile.stringTable.includes("/x.ts"));
    assert.equal(profile.location[0]?.line[0]?.line, 5);
  });

  it("is recorded by a data thread of itself", async () => {
    const port = startWorker({ config: proxyConfig({ node: "node1" }) });
    const { promise, resolve, reject } = Promise.withResolvers<FromThread>();
    port.listen({ message: resolve, exit: reject });
    port.post({
      type: "profile",
      seq: 1,
      thread: "data-1",
      request: { kind: "cpu", durationMs: 20, interval: 1_000 },
    });
    const done = await promise;
    promise.catch(() => undefined);
    await port.terminate();
    assert.ok(done.type === "done" && done.profile?.kind === "cpu" && done.profile.thread === "data-1");
    assert.ok(done.profile.profile.nodes.length > 0);
  });

  it("is recorded one at a time, and stops when whoever asked has gone", async () => {
    const fake = new FakeClock();
    const pages = new ProfilePages({
      clock: fake,
      record: async (request, signal) => [await recordProfile(request, "main", { clock: fake, signal })],
    });
    const ask = (query: string, signal = never) => {
      const request = { method: "GET", path: "/", query: new URLSearchParams(query), accept: "", signal };
      return pages.show("cpu", request);
    };
    for (const wrong of ["seconds=0", "seconds=301", "seconds=x", "frequency=0", "frequency=1001"]) {
      assert.equal((await ask(wrong)).status, 400, wrong);
    }
    const gone = new AbortController();
    const first = ask("seconds=300", gone.signal);
    assert.equal((await ask("")).status, 409);
    gone.abort(new Error("gone"));
    await assert.rejects(first, /gone/);
    const turned = async (answer: ReturnType<typeof ask>) => {
      let over = false;
      void answer.finally(() => (over = true));
      for (const isOver = () => over; !isOver();) await fake.advance(1_000);
      return answer;
    };
    const page = await turned(ask("seconds=1&format=v8&thread=main"));
    assert.ok(typeof page.body === "string");
    assert.match(page.body, /"nodes":\[/);
    assert.equal((await turned(ask("seconds=1&thread=other"))).status, 400);
  });
});
