import { promisify } from "node:util";
import { gzip } from "node:zlib";
import type { HeapProfiler, Profiler } from "node:inspector";
import { create, toBinary } from "@bufbuild/protobuf";
import { ProfileSchema } from "#proto";

/** What V8 recorded on one thread: of time, or of memory that was allocated meanwhile and is still in use. */
export type ThreadProfile =
  | { readonly kind: "cpu"; readonly thread: string; readonly profile: Profiler.Profile }
  | { readonly kind: "heap"; readonly thread: string; readonly profile: HeapProfiler.SamplingHeapProfile };

/** When and for how long it was recorded. */
export interface ProfileTime {
  readonly startMs: number;
  readonly durationMs: number;
  /** Between two samples: microseconds, or bytes. */
  readonly interval: number;
}

/**
 * Profiles of threads as one gzipped profile of `go tool pprof` (google/pprof, proto/profile.proto). Each sample carries
 * the label `thread`.
 */
export async function encodePprof(profiles: readonly ThreadProfile[], time: ProfileTime): Promise<Uint8Array> {
  const isHeap = profiles[0]?.kind === "heap";
  const builder = new Builder();
  for (const profile of profiles) {
    if (profile.kind === "cpu") addCpu(builder, profile.thread, profile.profile);
    else addHeap(builder, profile.thread, profile.profile);
  }
  const [count, amount, unit] = isHeap ? ["inuse_objects", "inuse_space", "bytes"] : ["samples", "cpu", "nanoseconds"];
  const message = create(ProfileSchema, {
    sampleType: [
      { type: builder.text(count), unit: builder.text("count") },
      { type: builder.text(amount), unit: builder.text(unit) },
    ],
    periodType: { type: builder.text(isHeap ? "space" : "cpu"), unit: builder.text(unit) },
    period: BigInt(isHeap ? time.interval : time.interval * 1_000),
    timeNanos: BigInt(Math.round(time.startMs)) * 1_000_000n,
    durationNanos: BigInt(Math.round(time.durationMs * 1_000)) * 1_000n,
    sample: builder.samples,
    location: builder.locations,
    function: builder.functions,
    stringTable: [...builder.texts.keys()],
  });
  return promisify(gzip)(toBinary(ProfileSchema, message));
}

/** Where code is, as V8 names it; lines count from 0. */
interface Frame {
  readonly functionName: string;
  readonly url: string;
  readonly lineNumber: number;
}

/** A place in a stack: the numbers of its locations, innermost first, and of the label of its thread. */
interface Stack {
  readonly location: number;
  readonly parent: Stack | undefined;
}

/** The tables of a profile. Equal texts, functions and places have one entry each. */
class Builder {
  readonly texts = new Map<string, number>([["", 0]]);
  readonly functions: { id: number; name: number; systemName: number; filename: number }[] = [];
  readonly locations: { id: number; line: { functionId: number; line: number }[] }[] = [];
  readonly samples: { locationId: number[]; value: bigint[]; label: { key: number; str: number }[] }[] = [];
  readonly #known = new Map<string, number>();

  text(text: string): number {
    const known = this.texts.get(text) ?? this.texts.size;
    this.texts.set(text, known);
    return known;
  }

  /** The number of a place in the code. */
  location({ functionName, url, lineNumber }: Frame): number {
    const name = functionName === "" ? "(anonymous)" : functionName;
    const key = `${name}\0${url}\0${lineNumber}`;
    const known = this.#known.get(key);
    if (known !== undefined) return known;
    const id = this.locations.length + 1;
    const text = this.text(name);
    this.functions.push({ id, name: text, systemName: text, filename: this.text(url.replace(/^file:\/\//, "")) });
    this.locations.push({ id, line: [{ functionId: id, line: Math.max(0, lineNumber + 1) }] });
    this.#known.set(key, id);
    return id;
  }

  add(thread: string, stack: Stack, values: readonly [count: number, amount: number]): void {
    const locationId: number[] = [];
    for (let at: Stack | undefined = stack; at !== undefined; at = at.parent) locationId.push(at.location);
    this.samples.push({
      locationId,
      value: values.map((value) => BigInt(Math.round(value))),
      label: [{ key: this.text("thread"), str: this.text(thread) }],
    });
  }
}

function addCpu(builder: Builder, thread: string, profile: Profiler.Profile): void {
  const spent = new Map<number, { count: number; microseconds: number }>();
  const { samples = [], timeDeltas = [] } = profile;
  samples.forEach((node, i) => {
    const before = spent.get(node) ?? { count: 0, microseconds: 0 };
    // The time up to the next sample was spent where this one was taken.
    const microseconds = before.microseconds + Math.max(0, timeDeltas[i + 1] ?? 0);
    spent.set(node, { count: before.count + 1, microseconds });
  });
  const nodes = new Map(profile.nodes.map((node) => [node.id, node]));
  const walk = (id: number, parent: Stack | undefined): void => {
    const node = nodes.get(id);
    if (node === undefined) return;
    const { functionName } = node.callFrame;
    const stack = functionName === "(root)" ? undefined : { location: builder.location(node.callFrame), parent };
    const own = spent.get(id);
    // Time in which the thread waited is none that it took.
    if (own !== undefined && stack !== undefined && functionName !== "(idle)") {
      builder.add(thread, stack, [own.count, own.microseconds * 1_000]);
    }
    for (const child of node.children ?? []) walk(child, stack);
  };
  const [root] = profile.nodes;
  if (root !== undefined) walk(root.id, undefined);
}

function addHeap(builder: Builder, thread: string, { head }: HeapProfiler.SamplingHeapProfile): void {
  const walk = (node: HeapProfiler.SamplingHeapProfileNode, parent: Stack | undefined): void => {
    const isRoot = node.callFrame.functionName === "(root)";
    const stack = isRoot ? undefined : { location: builder.location(node.callFrame), parent };
    if (stack !== undefined && node.selfSize > 0) builder.add(thread, stack, [1, node.selfSize]);
    for (const child of node.children) walk(child, stack);
  };
  walk(head, undefined);
}
