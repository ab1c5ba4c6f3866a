import { Resolver } from "node:dns/promises";
import { findIp, type IpAddress } from "#base/ip";

/** What a hostname stands for. No addresses: it has none, or nobody could be asked. */
export interface NameAnswer {
  readonly addresses: readonly IpAddress[];
  /** How long the answer may be used. */
  readonly ttlMs: number;
}

/** Looks up hostnames of workloads that have no address. Never rejects. */
export type NameResolver = (hostname: string) => Promise<NameAnswer>;

/** For each server that is asked, and how often. */
const TIMEOUT_MS = 1_500;
const TRIES = 2;
/** An answer is kept at least and at most for so long, whatever its TTL. */
const LEAST_MS = 1_000;
const MOST_MS = 300_000;

/** Asks name servers for both families. `servers`: `ip:port` each; the default is what this machine's resolv.conf says. */
export function dnsResolver(servers?: readonly string[]): NameResolver {
  const resolver = new Resolver({ timeout: TIMEOUT_MS, tries: TRIES });
  if (servers !== undefined) resolver.setServers(servers);
  return async (hostname) => {
    const none: { address: string; ttl: number }[] = [];
    const [v4, v6] = await Promise.all([
      resolver.resolve4(hostname, { ttl: true }).catch(() => none),
      resolver.resolve6(hostname, { ttl: true }).catch(() => none),
    ]);
    const records = [...v4, ...v6];
    const ttlMs = 1_000 * Math.min(...records.map(({ ttl }) => ttl)); // Infinity without records
    return {
      addresses: records.flatMap(({ address }) => findIp(address) ?? []),
      ttlMs: records.length === 0 ? LEAST_MS : Math.min(Math.max(ttlMs, LEAST_MS), MOST_MS),
    };
  };
}

/** Hostnames whose addresses are remembered, on each data thread; beyond that the oldest is forgotten. */
const MAX_NAMES = 4096;

/** Answers about hostnames, until they are too old. */
export class NameCache {
  readonly #answers = new Map<string, { readonly addresses: readonly IpAddress[]; readonly untilMs: number }>();

  /** The addresses of a hostname at `monotonicMs`; undefined when it has to be looked up. */
  find(hostname: string, monotonicMs: number): readonly IpAddress[] | undefined {
    const answer = this.#answers.get(hostname);
    return answer !== undefined && answer.untilMs > monotonicMs ? answer.addresses : undefined;
  }

  /** Remembers an answer that was given at `monotonicMs`. */
  put(hostname: string, { addresses, ttlMs }: NameAnswer, monotonicMs: number): void {
    this.#answers.delete(hostname);
    this.#answers.set(hostname, { addresses, untilMs: monotonicMs + ttlMs });
    const [oldest] = this.#answers.keys();
    if (this.#answers.size > MAX_NAMES && oldest !== undefined) this.#answers.delete(oldest);
  }
}
