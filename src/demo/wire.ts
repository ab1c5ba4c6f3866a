import { startCapture, type Capture, type Packet } from "#capture";
import type { Clock } from "#base/clock";
import type { Captures } from "./evidence.ts";

/** One interface that is watched. */
export interface Place {
  readonly kind: keyof Captures;
  /** Path of the network namespace. */
  readonly netns: string;
  readonly interface: string;
}

/** Captures that run until `stop`, which may be called once; disposing ends them without a result. */
export interface Wire extends AsyncDisposable {
  stop(): Promise<Captures>;
}

/** Starts tcpdump at all places at once. When one does not start, the others are ended and its error is thrown. */
export async function watchWire(places: readonly Place[], clock: Clock): Promise<Wire> {
  const stack = new AsyncDisposableStack();
  const running: { kind: keyof Captures; capture: Capture }[] = [];
  const started = await Promise.allSettled(
    places.map(async ({ kind, netns, interface: name }) => {
      running.push({ kind, capture: stack.use(await startCapture({ netns, interface: name, filter: "tcp", clock })) });
    }),
  );
  const failure = started.find((result) => result.status === "rejected");
  if (failure !== undefined) {
    await stack.disposeAsync();
    throw failure.reason;
  }
  return {
    async stop() {
      const parts = await Promise.all(
        running.map(async ({ kind, capture }) => ({ kind, packets: await capture.stop() })),
      );
      const of = (kind: keyof Captures): Packet[] =>
        parts.flatMap((part) => (part.kind === kind ? part.packets : [])).toSorted((a, b) => a.timeUs - b.timeUs);
      return { underlay: of("underlay"), pods: of("pods") };
    },
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
}
