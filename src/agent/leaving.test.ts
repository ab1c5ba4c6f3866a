import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeClock } from "#base/clock";
import { silentLog } from "#base/log";
import type { PodStatus } from "#enrolment";
import type { DaemonSet, InformerListener, KubeClient } from "#kube";
import { Leaving } from "./leaving.ts";

/** A node with one pod, its CNI plugin and the API, as leaving sees them. */
function node() {
  const clock = new FakeClock();
  const seen = { kept: true, removed: false, leaving: false, state: "enrolled", knows: true, broken: false };
  const said: unknown[] = [];
  let tell = (_object: DaemonSet): void => {};
  const leaving = new Leaving({
    client: {
      patch: (_ref: unknown, { name }: { name: string }, { body }: { body: unknown }) => {
        if (seen.broken) return Promise.reject(new Error("the api is away"));
        said.push([name, body]);
        return Promise.resolve({});
      },
    } as unknown as KubeClient, // what is called of it
    agents: {
      on: (listener: InformerListener<DaemonSet>) => {
        tell = (object) => listener.upserted?.(object, undefined);
        return () => {};
      },
      start: () => Promise.resolve(),
      drain: () => Promise.resolve(),
    },
    own: { name: "veil-agent-x", namespace: "veil-system" },
    enrolment: {
      leave: (asked) => (seen.leaving = asked),
      list: () => [{ state: seen.state } as PodStatus], // only its state is looked at
    },
    knowsPods: () => seen.knows,
    installer: {
      keep: (kept) => (seen.kept = kept),
      get removed() {
        return seen.removed;
      },
    },
    clock,
    log: silentLog(),
  });
  const annotate = (value: string | undefined): void =>
    tell({ metadata: { annotations: value === undefined ? {} : { "veil.dev/leave": value } } });
  return { clock, seen, said, leaving, annotate };
}

const left = (value: string | null): unknown => [
  "veil-agent-x",
  { metadata: { annotations: { "veil.dev/left": value } } },
];

test("it is left when no pod is redirected and the plugin is gone, and only then", async () => {
  const { clock, seen, said, leaving, annotate } = node();
  await leaving.start(new AbortController().signal);
  annotate(undefined);
  await clock.advance(5000);
  assert.deepEqual([seen.kept, seen.leaving, leaving.asked, said], [true, false, false, []]);
  annotate("true");
  assert.deepEqual([seen.kept, seen.leaving, leaving.asked], [false, true, true]);
  for (const change of [{ removed: true }, { state: "draining" }, { state: "plain", knows: false }]) {
    Object.assign(seen, change);
    await clock.advance(1000);
    assert.deepEqual(said, [], JSON.stringify(change));
  }
  Object.assign(seen, { knows: true, broken: true });
  await clock.advance(1000);
  seen.broken = false;
  await clock.advance(1000);
  assert.deepEqual(said, [left("true")], "said once the api takes it, and once");
  annotate(undefined);
  assert.deepEqual([seen.kept, seen.leaving], [true, false]);
  await clock.advance(1000);
  assert.deepEqual(said, [left("true"), left(null)]);
  await leaving.drain(0);
});
