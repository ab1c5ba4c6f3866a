import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeClock } from "#base/clock";
import type { KubeClient, Pod } from "#kube";
import { leave } from "./leave.ts";

test("all agents are asked to leave, and waited for as long as one has not", async () => {
  const clock = new FakeClock();
  const asked: unknown[] = [];
  const left = new Set<string>();
  const agents = (): Pod[] =>
    ["node1", "node2"].map((nodeName) => ({
      metadata: { annotations: left.has(nodeName) ? { "veil.dev/left": "true" } : {} },
      spec: { nodeName, containers: [] },
    }));
  const client = {
    patch: (ref: { plural: string }, { name }: { name: string }, { body }: { body: unknown }) => {
      asked.push([ref.plural, name, body]);
      return Promise.resolve({});
    },
    list: () => Promise.resolve({ items: agents(), resourceVersion: "1" }),
  } as unknown as KubeClient; // what is called of it
  const notes: string[] = [];
  const { signal } = new AbortController();
  const done = leave({ client, namespace: "veil-system", note: (line) => void notes.push(line), clock, signal });
  await clock.advance(3000);
  left.add("node2");
  await clock.advance(1000);
  left.add("node1");
  await clock.advance(1000);
  await done;
  assert.deepEqual(asked, [["daemonsets", "veil-agent", { metadata: { annotations: { "veil.dev/leave": "true" } } }]]);
  assert.deepEqual(notes, [
    "waiting for the connections of node1, node2",
    "waiting for the connections of node1",
    "Veil has left 2 nodes",
  ]);
});
