import { mkdirSync } from "node:fs";
import { dirname } from "node:path";
import type { Clock } from "#base/clock";
import { CodedError, messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { CellSet } from "#base/metrics";
import type { Service } from "#base/service";
import { listenSeqpacket, openNetns, type Netns, type SeqpacketConnection, type SeqpacketListener } from "#linux";
import { enrolmentError } from "./errors.ts";
import { ZdsConnection } from "./zds-connection.ts";
import type { ZdsRequest } from "./zds-codec.ts";

/** Proxies connected at once; the oldest gives way to a further one. Two are usual during an upgrade. */
const MAX_ZDS_CONNECTIONS = 16;
/** Between two connections that are taken: upstream's five a second, so that a proxy that keeps dying costs little. */
const ACCEPT_PAUSE_MS = 200;

/** A pod as the proxy is told about it. The server holds a descriptor of its own of the namespace. */
export interface ZdsPod {
  readonly uid: string;
  readonly name: string;
  readonly namespace: string;
  readonly serviceAccount: string;
  /** Undefined: this agent has not found it; a proxy that serves the pod already is told to keep it. */
  readonly netns: Netns | undefined;
}

interface Entry {
  readonly pod: ZdsPod;
}

interface Peer {
  readonly connection: ZdsConnection;
  /** What this proxy has said of each entry: its objection, or nothing. */
  readonly answers: Map<Entry, string>;
  /** What is still to be said, newest word per pod. */
  readonly todo: Map<string, "add" | "del">;
  /** Pods whose removal was said, and not answered. */
  readonly removing: Set<string>;
  wake: () => void;
  hasSnapshot: boolean;
}

/** Where the server listens and what it needs. */
export interface ZdsServerOptions {
  /** Default of the field: `/var/run/ztunnel/ztunnel.sock`. */
  readonly path: string;
  readonly clock: Clock;
  readonly log: Log;
  /** Cells of `enrolmentMetrics`. */
  readonly cells: CellSet;
}

/**
 * Hands the node's pods to the node's proxy over ZDS (`facts/ambient.md` §4.1): each proxy that connects gets all of them, then every
 * change. Speaks to an unmodified ztunnel.
 *
 * During an upgrade two proxies are connected: what is new goes to the one that came last, what is taken away to both. When
 * the last one goes before the other, the other gets what it has missed.
 *
 * Nothing is sent before `open`: a proxy drops the pods that the first snapshot does not name, so the agent must know its pods first.
 */
export class ZdsServer implements Service {
  readonly name = "zds";
  readonly #options: ZdsServerOptions;
  readonly #entries = new Map<string, Entry>();
  readonly #peers: Peer[] = [];
  readonly #opened = Promise.withResolvers<void>();
  #listener: SeqpacketListener | undefined;
  #changed = Promise.withResolvers<void>();

  constructor(options: ZdsServerOptions) {
    this.#options = options;
  }

  /** How many proxies are connected. */
  get connections(): number {
    return this.#peers.length;
  }

  start(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const { path, clock } = this.#options;
    mkdirSync(dirname(path), { recursive: true });
    this.#listener = listenSeqpacket({ path, clock, pauseMs: ACCEPT_PAUSE_MS }, (socket) => void this.#serve(socket));
    return Promise.resolve();
  }

  /** The agent knows its pods now: proxies get their snapshot. */
  open(): void {
    this.#opened.resolve();
  }

  /** Closes all connections. The proxies keep what they have: pods stay enrolled while the agent is away. */
  drain(_deadlineMs: number): Promise<void> {
    this.#listener?.close();
    for (const { connection } of this.#peers) connection.close();
    for (const uid of this.#entries.keys()) this.#forget(uid);
    return Promise.resolve();
  }

  /** Puts a pod into the snapshot, without waiting for anybody. */
  declare(pod: ZdsPod): void {
    const known = this.#entries.get(pod.uid)?.pod.netns?.key;
    if (known !== undefined && known === pod.netns?.key) return;
    this.#forget(pod.uid);
    const netns = pod.netns === undefined ? undefined : openNetns(`/proc/self/fd/${pod.netns.fd}`);
    this.#entries.set(pod.uid, { pod: { ...pod, netns } });
    this.#say(this.#latest, pod.uid, "add");
  }

  /**
   * Hands a pod over and resolves when the newest proxy serves it; while there is none, that may take long.
   * Rejects with `ENROLMENT_PROXY_REFUSED` when the proxy objects (call again to ask again), or with the signal's reason.
   */
  async add(pod: ZdsPod, signal: AbortSignal): Promise<void> {
    this.declare(pod);
    if (!["", undefined].includes(this.#answerFor(pod.uid))) this.#say(this.#latest, pod.uid, "add");
    for (;;) {
      signal.throwIfAborted();
      const isDue = this.#latest?.todo.has(pod.uid) ?? true;
      const objection = isDue ? undefined : this.#answerFor(pod.uid);
      if (objection === "") return;
      if (objection !== undefined) {
        throw enrolmentError("ENROLMENT_PROXY_REFUSED", `the proxy cannot serve the pod: ${objection}`);
      }
      await this.#change(signal);
    }
  }

  /** The proxy that serves what is new. */
  get #latest(): Peer | undefined {
    return this.#peers.at(-1);
  }

  /** What the latest proxy has said of a pod. */
  #answerFor(uid: string): string | undefined {
    const entry = this.#entries.get(uid);
    return entry && this.#latest?.answers.get(entry);
  }

  /** Takes a pod away from all proxies, which end its connections. Resolves when they have answered or are gone. */
  async remove(uid: string, signal: AbortSignal): Promise<void> {
    if (!this.#forget(uid)) return;
    for (const peer of this.#peers) this.#say(peer, uid, "del");
    const isDue = ({ todo, removing }: Peer): boolean => todo.get(uid) === "del" || removing.has(uid);
    while (this.#peers.some(isDue)) await this.#change(signal);
  }

  /** Resolves at the next answer, connection or disconnection. */
  async #change(signal: AbortSignal): Promise<void> {
    const aborted = Promise.withResolvers<void>();
    const onAbort = (): void => aborted.resolve();
    signal.addEventListener("abort", onAbort, { once: true });
    if (!signal.aborted) await Promise.race([this.#changed.promise, aborted.promise]);
    signal.removeEventListener("abort", onAbort);
    signal.throwIfAborted();
  }

  #forget(uid: string): boolean {
    const entry = this.#entries.get(uid);
    if (entry === undefined) return false;
    entry.pod.netns?.[Symbol.dispose]();
    for (const { answers } of this.#peers) answers.delete(entry);
    return this.#entries.delete(uid);
  }

  #notify(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }

  #say(peer: Peer | undefined, uid: string, what: "add" | "del"): void {
    if (peer === undefined) return;
    const entry = this.#entries.get(uid);
    if (entry !== undefined) peer.answers.delete(entry);
    peer.todo.delete(uid); // so that the newest word comes last
    peer.todo.set(uid, what);
    peer.wake();
  }

  /** One proxy, from its hello to its end. Never rejects. */
  async #serve(socket: SeqpacketConnection): Promise<void> {
    const { log, clock, cells } = this.#options;
    const connection = new ZdsConnection(socket, { clock, log });
    try {
      await connection.greet();
      await Promise.race([this.#opened.promise, connection.ended]);
      if (connection.closed) return;
    } catch (error) {
      log.warn({ reason: messageOf(error) }, "program at the zds socket refused");
      return;
    }
    const said = { answers: new Map(), todo: new Map(), removing: new Set<string>() };
    const peer: Peer = { connection, ...said, wake: () => {}, hasSnapshot: false };
    if (this.#peers.length >= MAX_ZDS_CONNECTIONS) this.#peers[0]?.connection.close();
    this.#peers.push(peer);
    cells.bind("veil_zds_connections", {}).value = this.#peers.length;
    log.info({ pods: this.#entries.size }, "proxy connected");
    try {
      await this.#sendSnapshot(peer);
      log.info({ pods: this.#entries.size }, "proxy has its snapshot");
      await this.#sendChanges(peer);
    } catch (error) {
      this.#giveUp(connection, error);
    }
    log.info({}, "proxy disconnected");
    this.#peers.splice(this.#peers.indexOf(peer), 1);
    cells.bind("veil_zds_connections", {}).value = this.#peers.length;
    this.#catchUp();
    this.#notify();
  }

  /** The proxy that is the latest again gets what it has missed while another one was. */
  #catchUp(): void {
    const peer = this.#latest;
    if (peer?.hasSnapshot !== true) return;
    for (const [uid, entry] of this.#entries) if (!peer.answers.has(entry)) this.#say(peer, uid, "add");
  }

  /** All pods, one after the other without waiting for the answers, which are all there at the end. */
  async #sendSnapshot(peer: Peer): Promise<void> {
    const answers: Promise<void>[] = [];
    for (const uid of this.#entries.keys()) {
      await peer.connection.whenRoom();
      const answer = this.#sendPod(peer, uid);
      answer.catch(() => undefined); // looked at below
      answers.push(answer);
    }
    await Promise.all(answers);
    await ask(peer, { kind: "snapshot-sent" });
    peer.hasSnapshot = true;
    this.#notify();
  }

  async #sendChanges(peer: Peer): Promise<void> {
    const { connection, todo } = peer;
    while (!connection.closed) {
      const [next] = todo;
      if (next === undefined) {
        const { promise, resolve } = Promise.withResolvers<void>();
        peer.wake = resolve;
        await Promise.race([promise, connection.ended]);
        continue;
      }
      const [uid, what] = next;
      const answer = what === "add" ? this.#sendPod(peer, uid) : this.#sendRemoval(peer, uid);
      answer.catch((error: unknown) => this.#giveUp(connection, error));
      await connection.whenRoom();
    }
  }

  #giveUp(connection: ZdsConnection, error: unknown): void {
    if (!connection.closed) this.#options.log.warn({ reason: messageOf(error) }, "proxy given up");
    connection.close();
  }

  /** Sends one pod as it is now. Only a broken connection makes it throw. */
  async #sendPod(peer: Peer, uid: string): Promise<void> {
    if (peer.todo.get(uid) === "add") peer.todo.delete(uid);
    const entry = this.#entries.get(uid);
    if (entry === undefined) return;
    const { netns, name, namespace, serviceAccount } = entry.pod;
    if (netns === undefined && peer.hasSnapshot) return; // `keep` belongs into the snapshot
    const objection =
      netns === undefined
        ? await ask(peer, { kind: "keep", uid })
        : await ask(peer, { kind: "add", uid, name, namespace, serviceAccount }, netns);
    if (this.#entries.get(uid) === entry) peer.answers.set(entry, objection);
    if (objection !== "") this.#options.log.warn({ pod: name, namespace, objection }, "proxy refused a pod");
    this.#notify();
  }

  async #sendRemoval(peer: Peer, uid: string): Promise<void> {
    peer.todo.delete(uid);
    peer.removing.add(uid);
    try {
      await ask(peer, { kind: "del", uid });
    } finally {
      peer.removing.delete(uid);
    }
    this.#notify();
  }
}

/** Asks; an answer that does not come in time is an objection, so that it is asked again later. */
async function ask(peer: Peer, request: ZdsRequest, netns?: Netns): Promise<string> {
  try {
    return await peer.connection.ask(request, netns);
  } catch (error) {
    if (error instanceof CodedError && error.code === "ENROLMENT_ZDS_TIMEOUT") return error.message;
    throw error;
  }
}
