import type { CellSet } from "#base/metrics";
import type { PoolPeer } from "#hbone";
import type { PodProxy } from "./pod-proxy.ts";
import type { FlowLog, OpenConnection } from "./record.ts";

/**
 * What the main thread may see of a data thread. A look is taken in slices, one message each, so that connections get
 * their turn in between, however much there is to see.
 */
export type LookKind = "alive" | "samples" | "connections" | "pool";

/** What was counted. */
export type ThreadSamples = ReturnType<CellSet["snapshot"]>;

/** One slice of a look. */
export interface Slice {
  /** Label sets that the main thread has not seen yet, in the order of `values`. */
  readonly series?: readonly Omit<ThreadSamples[number], "value">[];
  /** The values of all label sets; only in the last slice of `samples`. */
  readonly values?: Float64Array;
  readonly connections?: readonly OpenConnection[];
  readonly pool?: readonly PodPoolPeer[];
}

/** A peer of a pod's pool, or, without `peer`, how many sessions other proxies have to the pod. */
export interface PodPoolPeer {
  readonly podUid: string;
  readonly inboundSessions: number;
  readonly peer: PoolPeer | undefined;
}

/** How much one slice may hold. */
const SLICE = 500;
/** Connections that are counted in one slice: about a tenth of a microsecond each. */
const COUNTED = 4_000;

/** What a look is taken at. */
export interface Sight {
  readonly flows: FlowLog;
  readonly pods: () => Iterable<PodProxy>;
  /** Puts numbers that are kept elsewhere into their cells. */
  readonly measure: () => void;
}

/** The looks at one data thread: at most one of a kind at a time, a new one ends the one before. */
export class Looks {
  readonly #sight: Sight;
  readonly #running = new Map<LookKind, Iterator<Slice, undefined>>();

  constructor(sight: Sight) {
    this.#sight = sight;
  }

  /** The next slice; undefined after the last. `known`: how many label sets the main thread has, in the first message. */
  next(kind: LookKind, known: number | undefined): Slice | undefined {
    const slices = known === undefined ? this.#running.get(kind) : this.#begin(kind, known);
    this.#running.delete(kind);
    const { value } = slices?.next() ?? {};
    if (slices !== undefined && value !== undefined) this.#running.set(kind, slices);
    return value;
  }

  #begin(kind: LookKind, known: number): Iterator<Slice, undefined> {
    const { flows } = this.#sight;
    if (kind === "alive") return [].values();
    if (kind === "samples") return sampleSlices(this.#sight, known);
    if (kind === "connections") return inSlices(flows.connections(), SLICE, (connections) => ({ connections }));
    return inSlices(poolPeers(this.#sight), SLICE, (pool) => ({ pool }));
  }
}

function* sampleSlices({ flows, measure }: Sight, known: number): Generator<Slice, undefined> {
  yield* inSlices(flows.counting(), COUNTED, () => ({}));
  measure();
  for (let from = known; ; from += SLICE) {
    const series = flows.cells.series(from, SLICE);
    // No series can come between the last ones and their values: both are of one slice.
    if (series.length < SLICE) {
      yield { series, values: flows.cells.values() };
      return;
    }
    yield { series };
  }
}

function* poolPeers({ pods }: Sight): Generator<PodPoolPeer> {
  for (const proxy of pods()) {
    const { inboundSessions } = proxy;
    const { podUid } = proxy.pod;
    yield { podUid, inboundSessions, peer: undefined };
    for (const peer of proxy.peers()) yield { podUid, inboundSessions, peer };
  }
}

function* inSlices<T>(all: Iterable<T>, most: number, make: (items: T[]) => Slice): Generator<Slice, undefined> {
  let items: T[] = [];
  for (const item of all) {
    items.push(item);
    if (items.length < most) continue;
    yield make(items);
    items = [];
  }
  if (items.length > 0) yield make(items);
}
