import { collectGarbage } from "#linux";
import { findCodedError, messageOf } from "#base/errors";
import type { Clock } from "#base/clock";
import type { IpAddress } from "#base/ip";
import type { Random } from "#base/random";
import { formatLost } from "#model/access-log";
import { decodeCrl } from "#x509";
import { Admissions } from "./admissions.ts";
import type { ProxyConfig } from "./config.ts";
import { Knowledge } from "./knowledge.ts";
import { Looks } from "./looks.ts";
import type { FromThread, ToThread } from "./messages.ts";
import type { Network } from "./network.ts";
import type { ThreadContext } from "./pod-context.ts";
import { PeerRevocationLists } from "./peer-revocations.ts";
import { memoryReader, Pressure } from "./pressure.ts";
import { PodProxy } from "./pod-proxy.ts";
import { recordProfile } from "./profiler.ts";
import { RecordQueue } from "./record-queue.ts";
import { FlowLog } from "./record.ts";

/** What a data thread is made of. */
export interface DataThreadParts {
  readonly config: ProxyConfig;
  readonly clock: Clock;
  readonly random: Random;
  readonly network: Network;
  /** To the main thread. */
  readonly post: (message: FromThread) => void;
  /** How many `records` messages the main thread has done with, as a 32-bit number. */
  readonly recordsTaken: () => number;
}

/**
 * One data thread: some of the node's pods, and all that is known. It does what the main thread's messages say, in
 * order, and never looks anything up by itself.
 */
export class DataThread {
  readonly #parts: DataThreadParts;
  readonly #knowledge: Knowledge;
  readonly #flows: FlowLog;
  readonly #records: RecordQueue;
  readonly #admissions: Admissions;
  readonly #revocations: PeerRevocationLists | undefined;
  readonly #looks: Looks;
  readonly #context: ThreadContext;
  readonly #pods = new Map<string, PodProxy>();
  /** Those that drain. */
  readonly #leaving = new Set<PodProxy>();

  constructor(parts: DataThreadParts) {
    this.#parts = parts;
    const { config, clock, random, network, post } = parts;
    this.#knowledge = new Knowledge({
      clock,
      random,
      config,
      ask: (name) => {
        post({ type: "ask", name });
      },
      resolve: (hostname) => {
        this.#flows.cells.bind("istio_on_demand_dns_total", {}).value++;
        post({ type: "resolve", hostname });
      },
    });
    const format = config.accessFormat;
    this.#records = new RecordQueue(
      (batch) => {
        post({ type: "records", batch });
      },
      { formatLost: (count) => formatLost(format, count, clock.now()), clock, taken: parts.recordsTaken },
    );
    const { recordsRequired } = config;
    const write = (line: string, isOwed: boolean): void => {
      this.#records.push(line, isOwed && recordsRequired);
    };
    this.#flows = new FlowLog(clock, write, format);
    this.#admissions = new Admissions(this.#knowledge.policies, clock);
    this.#looks = new Looks({
      flows: this.#flows,
      pods: () => this.#pods.values(),
      measure: () => {
        this.#measure();
      },
    });
    this.#revocations = config.crlFile === undefined ? undefined : new PeerRevocationLists(clock, this.#flows.cells);
    const pressure = new Pressure({
      clock,
      memory: memoryReader(config.memoryLimitBytes),
      collect: collectGarbage,
      isLogStalled: () => recordsRequired && this.#records.isFull,
    });
    const judges = { admissions: this.#admissions, revocations: this.#revocations, pressure };
    const fed = { knowledge: this.#knowledge, flows: this.#flows, ...judges };
    this.#context = { config, clock, random, network, ...fed };
  }

  /** Does what a message says. Failures of a request are its answer; nothing else fails. */
  handle(message: ToThread): void {
    if ("seq" in message) this.#request(message);
    else this.#note(message);
  }

  #note(message: Exclude<ToThread, { seq: number }>): void {
    switch (message.type) {
      case "answer":
        this.#knowledge.answer(message.name, message.answer);
        return;
      case "resolved":
        this.#knowledge.putName(message.hostname, message.answer);
        return;
      case "certificateDrop":
        this.#knowledge.dropCertificate(message.id);
        return;
      case "accessLevel":
        this.#flows.level = message.level;
        return;
      case "collect":
        collectGarbage();
    }
  }

  #request(message: Extract<ToThread, { seq: number }>): void {
    switch (message.type) {
      case "look":
        this.#parts.post({
          type: "done",
          seq: message.seq,
          slice: this.#looks.next(message.kind, message.known),
        });
        return;
      case "podDrop":
        this.#finish(message.seq, this.#dropPod(message.podUid, message.drainMs));
        return;
      case "profile":
        void this.#profile(message);
        return;
      case "drain":
        this.#finish(message.seq, this.#drain(message.drainMs));
        return;
      case "addresses":
      case "policies":
      case "crls":
      case "podAdd":
      case "certificate":
        this.#answer(message);
    }
  }

  /** Requests that are done when this returns. */
  #answer(message: Extract<ToThread, { type: "addresses" | "policies" | "crls" | "podAdd" | "certificate" }>): void {
    try {
      if (message.type === "podAdd") this.#addPod(message);
      else if (message.type === "certificate") this.#putCertificate(message);
      else if (message.type === "policies") this.#putPolicies(message);
      else if (message.type === "crls") this.#revocations?.apply(message.crls.map((der) => decodeCrl(der)));
      else this.#putAddresses(message);
      this.#parts.post({ type: "done", seq: message.seq });
    } catch (error) {
      this.#fail(message.seq, error);
    }
  }

  #putAddresses({ change, synced }: Extract<ToThread, { type: "addresses" }>): void {
    const owners = change.removes.length === 0 ? undefined : this.#peerOwners();
    this.#knowledge.apply(change);
    if (synced) this.#knowledge.markSynced();
    // An open session to an address that has another owner now would hold the next connection until it is found dead.
    const gone = new Set([...(owners ?? [])].filter(([ip, uid]) => this.#ownerOf(ip) !== uid).map(([ip]) => ip));
    if (gone.size > 0) for (const proxy of this.#pods.values()) proxy.peersGone(gone);
  }

  /** Whose the addresses are to which there are sessions. */
  #peerOwners(): ReadonlyMap<IpAddress, string | undefined> {
    const addresses = [...this.#pods.values()].flatMap((proxy) => [...proxy.peerAddresses()]);
    return new Map(addresses.map((ip) => [ip, this.#ownerOf(ip)]));
  }

  #ownerOf(ip: IpAddress): string | undefined {
    return this.#knowledge.table.findWorkloadByIp(this.#parts.config.network, ip)?.uid;
  }

  #addPod({ pod, netnsFd, old }: Extract<ToThread, { type: "podAdd" }>): void {
    const netns = this.#parts.network.adoptNetns(netnsFd);
    const before = this.#pods.get(pod.podUid);
    if (before?.netnsKey === netns.key) {
      netns[Symbol.dispose](); // it is served already, through a descriptor of its own
      return;
    }
    // The pod was started anew under its uid: what is left of the old one cannot reach anybody any more.
    if (before !== undefined) void this.#leave(before, 0);
    this.#pods.delete(pod.podUid);
    const podSinceMs = old ? -Infinity : this.#parts.clock.monotonic();
    const proxy = new PodProxy(this.#context, { ...pod, podSinceMs }, netns);
    proxy.start();
    this.#pods.set(pod.podUid, proxy);
  }

  #putCertificate({ identity }: Extract<ToThread, { type: "certificate" }>): void {
    const changed = this.#knowledge.putCertificate(identity);
    for (const proxy of this.#pods.values()) {
      if (proxy.pod.identity === identity.id) proxy.certificateChanged(changed);
    }
  }

  #putPolicies({ change }: Extract<ToThread, { type: "policies" }>): void {
    this.#knowledge.policies.apply(change);
    this.#admissions.changed();
  }

  async #dropPod(podUid: string, drainMs: number): Promise<void> {
    const proxy = this.#pods.get(podUid);
    this.#pods.delete(podUid);
    if (proxy !== undefined) await this.#leave(proxy, drainMs);
  }

  async #leave(proxy: PodProxy, drainMs: number): Promise<void> {
    this.#leaving.add(proxy);
    await proxy.drain(drainMs);
    this.#leaving.delete(proxy);
  }

  /** All pods; with no time left also those that drain already. */
  async #drain(drainMs: number): Promise<void> {
    const broken = drainMs > 0 ? [] : [...this.#leaving].map((proxy) => proxy.breakOff());
    const pods = [...this.#pods.keys()];
    await Promise.all([...broken, ...pods.map((podUid) => this.#dropPod(podUid, drainMs))]);
    this.#records.flush();
  }

  async #profile({ seq, thread, request }: Extract<ToThread, { type: "profile" }>): Promise<void> {
    const { clock, post } = this.#parts;
    try {
      const profile = await recordProfile(request, thread, { clock, signal: new AbortController().signal });
      post({ type: "done", seq, profile });
    } catch (error) {
      this.#fail(seq, error);
    }
  }

  #finish(seq: number, work: Promise<void>): void {
    work.then(
      () => {
        this.#parts.post({ type: "done", seq });
      },
      (error: unknown) => {
        this.#fail(seq, error);
      },
    );
  }

  #fail(seq: number, error: unknown): void {
    const code = findCodedError(error)?.code ?? "PROXY_THREAD";
    this.#parts.post({ type: "done", seq, error: { code, message: messageOf(error) } });
  }

  #measure(): void {
    const { cells } = this.#flows;
    cells.bind("veil_proxy_held_connections", {}).value = this.#knowledge.held;
    cells.bind("veil_proxy_records_dropped_total", {}).value = this.#records.dropped;
  }
}
