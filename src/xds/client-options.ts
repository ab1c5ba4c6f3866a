import type { Transport } from "@connectrpc/connect";
import type { BackoffOptions } from "#base/backoff";
import type { Clock } from "#base/clock";
import type { Log } from "#base/log";
import type { CellSet } from "#base/metrics";
import type { Random } from "#base/random";
import type { ResourceUpdate } from "./cache.ts";
import type { SubscriptionMode } from "./client-type.ts";

/** A resource that the receiver of an update could not accept. */
export interface Rejection {
  readonly name: string;
  readonly reason: string;
}

/** What an {@link XdsClient} follows, from whom, and who takes it. */
export interface XdsClientOptions {
  readonly name?: string;
  readonly transport: Transport;
  readonly node: { readonly id: string; readonly metadata?: Readonly<Record<string, string>> };
  readonly types: readonly { readonly typeUrl: string; readonly mode: SubscriptionMode }[];
  /**
   * Takes an update, all of it or all but what it rejects, and resolves when it is in force: only then is it acknowledged.
   * A throw rejects the whole update. Called in the order of arrival, one after the other (but see `pipeline`).
   */
  readonly onUpdate: (update: ResourceUpdate) => Promise<readonly Rejection[] | void> | readonly Rejection[] | void;
  /** Told when the server is there (its first response came) and when it is gone. */
  readonly onConnection?: (connected: boolean) => void;
  /**
   * How many updates may be in `onUpdate` at once. Above 1, `onUpdate` is called before the promises of earlier calls have
   * settled: it must then apply what it gets before its first `await`. Acknowledgements keep their order. Default 1.
   */
  readonly pipeline?: number;
  /** Default: 10 ms, doubled up to 15 s. */
  readonly reconnect?: BackoffOptions;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  /** Cells of {@link xdsMetrics}. */
  readonly metrics?: CellSet;
}
