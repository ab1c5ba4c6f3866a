import { deadline, type Clock } from "#base/clock";
import type { Log } from "#base/log";
import type { ResourceCache, ResourceUpdate } from "./cache.ts";
import type { Rejection, XdsClientOptions } from "./client-options.ts";
import type { XdsServer } from "./server.ts";

/** What lies between the client and the server of a relay. */
export interface RelayOptions {
  readonly cache: ResourceCache;
  readonly server: Pick<XdsServer, "whenAcknowledged" | "rejected">;
  readonly clock: Clock;
  readonly log: Log;
  /** Updates are confirmed upstream after this time even if some client below has not confirmed. Default 2000 ms. */
  readonly boundMs?: number;
}

/**
 * Makes the `onUpdate` of a relay's client: it puts the update into the cache, which the server serves, and confirms it
 * upstream when everyone below has confirmed it, or when the bound has passed. What someone below refuses is refused
 * upstream. It applies before its first `await`, so the client may have `pipeline` updates in work.
 */
export function relayUpdates(options: RelayOptions): XdsClientOptions["onUpdate"] {
  const { cache, server, clock, log, boundMs = 2000 } = options;
  return async (update: ResourceUpdate): Promise<readonly Rejection[]> => {
    const { typeUrl, upserts } = update;
    const revision = cache.apply(update);
    const bound = deadline(clock, boundMs, { reason: new Error("the bound for confirming an update has passed") });
    const behind = await server.whenAcknowledged({ typeUrl, revision }, bound.signal);
    bound.clear();
    if (behind.length > 0) log.warn({ behind, type: typeUrl }, "update confirmed upstream before all below have it");
    const refused = server.rejected(typeUrl);
    return upserts.flatMap(({ name }) => {
      const reason = refused.get(name);
      return reason === undefined ? [] : [{ name, reason }];
    });
  };
}
