import { Backoff } from "#base/backoff";
import { sleep, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { Random } from "#base/random";
import type { Service as Role } from "#base/service";
import { Informer, KubeClient, resources, type EndpointSlice, type KubeConfig, type Service } from "#kube";
import { runCommand, tryCommand } from "../commands.ts";
import { DnsServer } from "./dns-server.ts";
import { virtualPorts } from "./endpoints.ts";
import { ClusterNames } from "./names.ts";
import { parseChains, serviceRules, TABLE } from "./nft-rules.ts";

/** What the services of a node are given. They must run inside the node's network namespace. */
export interface ServiceNetworkOptions {
  readonly config: KubeConfig;
  /** The node's own address. */
  readonly address: string;
  readonly serviceCidr: string;
  readonly dns: string;
  readonly log: Log;
  readonly clock: Clock;
  readonly random: Random;
}

/** Changes that come within this time become one transaction. */
const GATHER_MS = 10;
const RETRY = { initialMs: 100, maxMs: 5_000 };

/** Services on one node: addresses that lead to a ready endpoint, and names that lead to addresses. */
export class ServiceNetwork implements Role {
  readonly name = "service-network";
  readonly #options: ServiceNetworkOptions;
  readonly #client: KubeClient;
  readonly #services: Informer<Service>;
  readonly #slices: Informer<EndpointSlice>;
  readonly #dns: DnsServer;
  readonly #stop = new AbortController();
  readonly #backoff: Backoff;
  #names: ClusterNames | undefined;
  #written = "";
  #dirty = false;
  #writing = false;

  constructor(options: ServiceNetworkOptions) {
    this.#options = options;
    this.#client = new KubeClient(options);
    this.#backoff = new Backoff(RETRY, options.random);
    this.#services = new Informer({ ...options, client: this.#client, ref: resources.services });
    this.#slices = new Informer({ ...options, client: this.#client, ref: resources.endpointSlices });
    this.#dns = new DnsServer(options.dns, () => this.#currentNames(), options.log);
  }

  /** Resolves when names and addresses of all services that there are now can be used. */
  async start(signal: AbortSignal): Promise<void> {
    try {
      await runCommand(["ip", "address", "replace", `${this.#options.dns}/32`, "dev", "lo"]);
      await Promise.all([this.#services.start(signal), this.#slices.start(signal)]);
      await this.#dns.start();
      await this.#write();
    } catch (error) {
      await this.drain(0);
      throw error;
    }
    // Only now: there is one writer at any time.
    const changed = (): void => this.#change();
    for (const informer of [this.#services, this.#slices]) informer.on({ upserted: changed, deleted: changed });
  }

  /** Leaves the rules: connections of pods go on. */
  async drain(deadlineMs: number): Promise<void> {
    this.#stop.abort();
    await this.#dns.drain(deadlineMs);
    await Promise.all([this.#services.drain(deadlineMs), this.#slices.drain(deadlineMs)]);
    this.#client.close();
  }

  #currentNames(): ClusterNames {
    this.#names ??= new ClusterNames({ services: this.#services.list(), slices: this.#slices.list() });
    return this.#names;
  }

  #change(): void {
    this.#names = undefined;
    this.#dirty = true;
    if (!this.#writing) void this.#writeSoon();
  }

  async #writeSoon(): Promise<void> {
    this.#writing = true;
    const { signal } = this.#stop;
    while (this.#dirty && !signal.aborted) {
      await sleep(this.#options.clock, GATHER_MS, signal).catch(() => undefined);
      this.#dirty = false;
      try {
        if (!signal.aborted) await this.#write();
        this.#backoff.reset();
      } catch (error) {
        this.#dirty = true;
        this.#options.log.error({ error: messageOf(error) }, "rules of services cannot be written, trying again");
        await sleep(this.#options.clock, this.#backoff.next(), signal).catch(() => undefined);
      }
    }
    this.#writing = false;
  }

  async #write(): Promise<void> {
    const { serviceCidr, dns, address } = this.#options;
    const ports = virtualPorts(this.#services.list(), this.#slices.list()).filter(({ ip }) => ip !== dns);
    const wanted = JSON.stringify(ports);
    if (wanted === this.#written) return;
    const { stdout } = await tryCommand(["nft", "-j", "list", "chains", "ip"]);
    const frame = { serviceCidr, dns, nodeAddress: address };
    await runCommand(["nft", "-f", "-"], serviceRules(ports, frame, parseChains(stdout)));
    this.#written = wanted;
    this.#options.log.debug({ table: TABLE, ports: ports.length }, "rules of services written");
  }
}
