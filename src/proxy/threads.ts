import type { RecordBatch } from "./record-queue.ts";
import type { Clock } from "#base/clock";
import { messageOf, type CodedError } from "#base/errors";
import type { AccessLevel } from "#model/access-log";
import type { SpiffeId } from "#model/spiffe-id";
import type { TlsIdentity } from "#model/tls-identity";
import type { PolicyChange } from "#policy";
import { proxyError } from "./errors.ts";
import type { Answer } from "./knowledge.ts";
import type { LookKind, PodPoolPeer, Slice, ThreadSamples } from "./looks.ts";
import type { FromThread, ToThread } from "./messages.ts";
import type { NameResolver } from "./names.ts";
import type { ThreadProfile } from "./pprof.ts";
import type { ProfileRequest } from "./profiler.ts";
import type { OpenConnection } from "./record.ts";
import type { LocalPod } from "./route.ts";
import type { PackedChange } from "./table.ts";

/** One data thread, seen from the main thread. */
export interface ThreadPort {
  post(message: ToThread): void;
  /** A batch of records has been taken: the next may come. */
  recordsTaken(): void;
  /** Called once, before anything is posted. */
  listen(handlers: { message: (message: FromThread) => void; exit: (error: unknown) => void }): void;
  terminate(): Promise<void>;
}

/** What the data threads are made of. */
export interface DataThreadsParts {
  readonly ports: readonly ThreadPort[];
  readonly clock: Clock;
  /** Answers who a name is. Never rejects. */
  readonly ask: (name: string) => Promise<Answer>;
  /** Looks hostnames up. */
  readonly resolve: NameResolver;
  /** Takes lines of the access log; resolves when the next may come. */
  readonly records: (batch: RecordBatch) => Promise<void>;
  /** A thread ended or does not answer: the process cannot go on. */
  readonly failed: (error: CodedError) => void;
}

/** A request that a thread has not answered for so long means that it never will. */
const ANSWER_MS = 30_000;
/** Connections, or peers of pools, that are listed for operators. */
const MAX_LISTED = 100_000;

interface Member {
  readonly port: ThreadPort;
  readonly pods: Map<string, LocalPod>;
  /** The label sets that the thread has told of, in the order of their values. */
  readonly series: Omit<ThreadSamples[number], "value">[];
  /** The end of the newest look of each kind. */
  readonly looks: Map<LookKind, Promise<void>>;
}

/**
 * The data threads of a node: all get every change of addresses, each pod belongs to one, and a certificate goes only to
 * the threads whose pods use it.
 */
export class DataThreads {
  readonly #parts: DataThreadsParts;
  readonly #members: readonly Member[];
  readonly #pending = new Map<number, (message: Extract<FromThread, { type: "done" }>) => void>();
  #lastSeq = 0;
  #isStopping = false;

  constructor(parts: DataThreadsParts) {
    this.#parts = parts;
    this.#members = parts.ports.map((port) => ({ port, pods: new Map(), series: [], looks: new Map() }));
  }

  /** Begins to listen to the threads. */
  start(): void {
    for (const { port } of this.#members) {
      port.listen({
        message: (message) => {
          this.#handle(port, message);
        },
        exit: (error) => {
          if (!this.#isStopping)
            this.#parts.failed(proxyError("PROXY_THREAD", `a data thread ended: ${messageOf(error)}`));
        },
      });
    }
  }

  /** Applies a change everywhere; resolves when it is in force everywhere. */
  async addresses(change: PackedChange, synced: boolean): Promise<void> {
    await this.#all((seq) => ({ type: "addresses", seq, change, synced }));
  }

  /** Puts policies in force for new connections everywhere; running ones are judged again a little later. */
  async policies(change: PolicyChange): Promise<void> {
    await this.#all((seq) => ({ type: "policies", seq, change }));
  }

  /** Puts revocation lists in force everywhere; running sessions are judged a little later. */
  async crls(crls: readonly Uint8Array[]): Promise<void> {
    await this.#all((seq) => ({ type: "crls", seq, crls }));
  }

  /** Serves a pod from now on; the descriptor is the thread's. Rejects with `PROXY_LISTEN`. */
  async addPod(pod: LocalPod, netns: { readonly fd: number; readonly old: boolean }): Promise<void> {
    const member = this.#memberOf(pod.podUid) ?? this.#leastBusy();
    member.pods.set(pod.podUid, pod);
    try {
      await this.#request(member, (seq) => ({ type: "podAdd", seq, pod, netnsFd: netns.fd, old: netns.old }));
    } catch (error) {
      member.pods.delete(pod.podUid);
      throw error;
    }
  }

  /** Serves a pod no more. Resolves when its last connection has ended, after `drainMs` at the latest. */
  async dropPod(podUid: string, drainMs: number): Promise<void> {
    const member = this.#memberOf(podUid);
    const pod = member?.pods.get(podUid);
    if (member === undefined || pod === undefined) return;
    member.pods.delete(podUid);
    await this.#request(member, (seq) => ({ type: "podDrop", seq, podUid, drainMs }));
    const isUsed = [...member.pods.values()].some(({ identity }) => identity === pod.identity);
    if (!isUsed) member.port.post({ type: "certificateDrop", id: pod.identity });
  }

  /** The identities of the pods that are served. */
  identities(): readonly SpiffeId[] {
    return [...new Set(this.#members.flatMap(({ pods }) => [...pods.values()].map(({ identity }) => identity)))];
  }

  /** A new or renewed certificate; resolves when it is in force. */
  async certificate(identity: TlsIdentity): Promise<void> {
    const users = this.#members.filter(({ pods }) => [...pods.values()].some(({ identity: id }) => id === identity.id));
    await Promise.all(users.map((member) => this.#request(member, (seq) => ({ type: "certificate", seq, identity }))));
  }

  /** How loud a line of the access log must be from now on. */
  setAccessLevel(level: AccessLevel): void {
    for (const { port } of this.#members) port.post({ type: "accessLevel", level });
  }

  /** Resolves when all threads have answered: they are alive. */
  async ping(): Promise<void> {
    await this.#all((seq) => ({ type: "look", seq, kind: "alive", known: 0 }));
  }

  /** What was counted, of all threads together. */
  async samples(): Promise<ThreadSamples> {
    return (await Promise.all(this.#members.map(async (member) => this.#samplesOf(member)))).flat();
  }

  /** Records what the threads do, named `data-1` and so on. */
  async profile(request: ProfileRequest): Promise<readonly ThreadProfile[]> {
    const answers = this.#members.map(async (member, i) =>
      this.#request(member, (seq) => ({ type: "profile", seq, thread: `data-${i + 1}`, request })),
    );
    return (await Promise.all(answers)).flatMap(({ profile }) => profile ?? []);
  }

  /** The connections that are open, at most {@link MAX_LISTED}. */
  async connections(): Promise<readonly OpenConnection[]> {
    return this.#list("connections", ({ connections }) => connections);
  }

  /** What the pools of the pods hold, at most {@link MAX_LISTED} entries. */
  async pool(): Promise<readonly PodPoolPeer[]> {
    return this.#list("pool", ({ pool }) => pool);
  }

  /** Drains all pods within `deadlineMs`; called again with 0, breaks what still drains. */
  async drain(deadlineMs: number): Promise<void> {
    await this.#all((seq) => ({ type: "drain", seq, drainMs: deadlineMs }));
  }

  /** Ends the threads, after they have been drained. */
  async end(): Promise<void> {
    this.#isStopping = true;
    await Promise.all(this.#members.map(({ port }) => port.terminate()));
  }

  /** Label sets cross over once, then only their values do. */
  async #samplesOf(member: Member): Promise<ThreadSamples> {
    let values: Float64Array = new Float64Array();
    for await (const slice of this.#look(member, "samples")) {
      member.series.push(...(slice.series ?? []));
      values = slice.values ?? values;
    }
    return member.series.flatMap((series, i) => {
      const value = values[i];
      return value === undefined ? [] : { ...series, value };
    });
  }

  async #list<T>(kind: LookKind, read: (slice: Slice) => readonly T[] | undefined): Promise<readonly T[]> {
    const list: T[] = [];
    for (const member of this.#members) {
      for await (const slice of this.#look(member, kind)) {
        list.push(...(read(slice) ?? []));
        if (list.length >= MAX_LISTED) return list;
      }
    }
    return list;
  }

  /** Takes a look in slices; looks of one kind wait for each other. */
  async *#look(member: Member, kind: LookKind): AsyncGenerator<Slice> {
    const before = member.looks.get(kind);
    const { promise, resolve } = Promise.withResolvers<void>();
    member.looks.set(kind, promise);
    await before;
    try {
      let known: number | undefined = member.series.length;
      for (;;) {
        const { slice } = await this.#request(member, (seq) => ({ type: "look", seq, kind, known }));
        known = undefined;
        if (slice === undefined) return;
        yield slice;
      }
    } finally {
      resolve();
    }
  }

  #memberOf(podUid: string): Member | undefined {
    return this.#members.find(({ pods }) => pods.has(podUid));
  }

  #leastBusy(): Member {
    const [first, ...others] = this.#members;
    if (first === undefined) throw proxyError("PROXY_THREAD", "there is no data thread");
    return others.reduce((least, member) => (member.pods.size < least.pods.size ? member : least), first);
  }

  async #all(make: (seq: number) => ToThread): Promise<readonly Extract<FromThread, { type: "done" }>[]> {
    return Promise.all(this.#members.map((member) => this.#request(member, make)));
  }

  async #request(member: Member, make: (seq: number) => ToThread): Promise<Extract<FromThread, { type: "done" }>> {
    const seq = ++this.#lastSeq;
    const message = make(seq);
    const { promise, resolve } = Promise.withResolvers<Extract<FromThread, { type: "done" }>>();
    this.#pending.set(seq, resolve);
    const patienceMs = ANSWER_MS + expectedMs(message);
    const cancel = this.#parts.clock.after(patienceMs, () => {
      this.#parts.failed(
        proxyError("PROXY_THREAD", `a data thread has not answered "${message.type}" in ${patienceMs} ms`),
      );
    });
    member.port.post(message);
    const done = await promise;
    cancel();
    if (done.error !== undefined) {
      const { code, message: text } = done.error;
      throw proxyError(code === "PROXY_LISTEN" || code === "PROXY_LIMIT" ? code : "PROXY_THREAD", text);
    }
    return done;
  }

  #handle(port: ThreadPort, message: FromThread): void {
    if (message.type === "done") {
      this.#pending.get(message.seq)?.(message);
      this.#pending.delete(message.seq);
    } else if (message.type === "records") {
      void this.#parts.records(message.batch).then(() => {
        port.recordsTaken();
      });
    } else if (message.type === "resolve") void this.#resolve(port, message.hostname);
    else void this.#answer(port, message.name);
  }

  async #resolve(port: ThreadPort, hostname: string): Promise<void> {
    port.post({ type: "resolved", hostname, answer: await this.#parts.resolve(hostname) });
  }

  async #answer(port: ThreadPort, name: string): Promise<void> {
    port.post({ type: "answer", name, answer: await this.#parts.ask(name) });
  }
}

/** How long a request takes when all goes well. */
function expectedMs(message: ToThread): number {
  if ("drainMs" in message) return message.drainMs;
  return message.type === "profile" ? message.request.durationMs : 0;
}
