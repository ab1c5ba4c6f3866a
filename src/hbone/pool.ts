import { every, type Clock } from "#base/clock";
import type { CodedError } from "#base/errors";
import { Occasion } from "#base/occasion";
import type { Random } from "#base/random";
import type { SpiffeId } from "#model/spiffe-id";
import type { TlsIdentity } from "#model/tls-identity";
import { ClientSession, type ClientTunnel } from "./client-session.ts";
import { dialSession } from "./dial.ts";
import { hboneError } from "./errors.ts";
import { InnerOpening } from "./inner.ts";
import { DEFAULT_LIMITS, type HboneLimits } from "./limits.ts";
import type { OpenRequest, TunnelRequest } from "./open-request.ts";
import type { PeerRevocations } from "./revocation.ts";
import type { TunnelHandle, TunnelResult } from "./tunnel.ts";

/** What the pool is made of. */
export interface HbonePoolOptions {
  readonly clock: Clock;
  readonly random: Random;
  /** The certificate in force for an identity of this node; undefined refuses with `HBONE_NO_CERTIFICATE`. */
  readonly certificate: (id: SpiffeId) => TlsIdentity | undefined;
  readonly limits?: Partial<HboneLimits> | undefined;
  readonly revocations?: PeerRevocations | undefined;
}

/** A peer of the pool, for operators. */
export interface PoolPeer {
  readonly source: SpiffeId;
  readonly accepted: readonly SpiffeId[];
  readonly ip: string;
  readonly port: number;
  /** `open`: whether it takes further tunnels. */
  readonly sessions: readonly { readonly tunnels: number; readonly open: boolean }[];
  /** Connections that wait for a handshake, and whether one is under way. */
  readonly waiting: number;
  readonly dialling: boolean;
}

/** When less than this share of a session's tunnels is left to a peer, the next session is opened. */
const AHEAD = 0.25;
/** How long broken sessions have for telling their peers. */
const LAST_WORDS_MS = 2000;

/** Sessions to one peer under one key, and who waits for the next. */
interface Peer {
  readonly key: string;
  readonly to: Pick<PoolPeer, "source" | "accepted" | "ip" | "port">;
  sessions: ClientSession[];
  waiting: Opening[];
  cancelDial: (() => void) | undefined;
}

/**
 * The sessions that this thread's pods have opened, shared by (namespace, source identity, accepted identities, address,
 * source address). The first request for a peer shakes hands, others wait for it; a session that is full, was told to go
 * away, or whose certificate was renewed takes no new tunnels and ends with its last.
 */
export class HbonePool {
  readonly #options: HbonePoolOptions;
  readonly #limits: HboneLimits;
  readonly #peers = new Map<string, Peer>();
  #stopSweep: (() => void) | undefined;
  #draining = false;
  readonly #emptied = new Occasion();

  constructor(options: HbonePoolOptions) {
    this.#options = options;
    this.#limits = { ...DEFAULT_LIMITS, ...options.limits };
  }

  /** Sessions that are open. */
  get sessions(): number {
    let count = 0;
    for (const peer of this.#peers.values()) count += peer.sessions.filter((session) => !session.closed).length;
    return count;
  }

  /** What it holds now, for operators. Peers may come and go while it is walked. */
  *peers(): Generator<PoolPeer> {
    for (const { to, sessions, waiting, cancelDial } of this.#peers.values()) {
      const seen = sessions.map(({ tunnels, hasRoom: open }) => ({ tunnels, open }));
      yield { ...to, sessions: seen, waiting: waiting.length, dialling: cancelDial !== undefined };
    }
  }

  open(request: OpenRequest): TunnelHandle {
    if (request.inner === undefined) return this.#open(request);
    const open = (outer: TunnelRequest): TunnelHandle => this.#open(outer);
    return new InnerOpening({ ...this.#options, limits: this.#limits, open }, request, request.inner);
  }

  #open(request: TunnelRequest): TunnelHandle {
    const opening = new Opening(request, this.#placeAgain);
    if (this.#draining) opening.failSoon(hboneError("HBONE_DRAINING", "the proxy shuts down"));
    else this.#place(opening);
    return opening;
  }

  readonly #placeAgain = (opening: Opening): void => {
    this.#place(opening);
  };

  #place(opening: Opening): void {
    const peer = this.#peerOf(opening.request);
    const session = peer.sessions.find((candidate) => candidate.hasRoom);
    if (session !== undefined) {
      opening.begin(session);
      this.#dialAhead(peer, opening.request);
      return;
    }
    if (peer.waiting.length >= this.#limits.waitingPerPeer) {
      opening.failSoon(hboneError("HBONE_LIMIT", `${peer.waiting.length} connections wait for a session to this peer`));
      return;
    }
    peer.waiting.push(opening);
    if (peer.cancelDial === undefined) this.#dial(peer, opening.request);
  }

  /** Opens the next session before the last one is full: nobody is to wait for a handshake because it is the hundredth. */
  #dialAhead(peer: Peer, request: TunnelRequest): void {
    if (peer.cancelDial !== undefined) return;
    const most = peer.sessions.find(({ peerStreams }) => peerStreams !== undefined)?.peerStreams ?? 0;
    const room = peer.sessions.reduce((sum, session) => sum + session.room, 0);
    if (room < Math.floor(most * AHEAD)) this.#dial(peer, request);
  }

  #peerOf(request: TunnelRequest): Peer {
    const key = keyOf(request);
    let peer = this.#peers.get(key);
    if (peer === undefined) {
      const { source, accepted, ip, port } = request;
      const to = { source, accepted, ip, port };
      peer = { key, to, sessions: [], waiting: [], cancelDial: undefined };
      this.#peers.set(key, peer);
    }
    return peer;
  }

  #dial(peer: Peer, request: TunnelRequest): void {
    const identity = this.#options.certificate(request.source);
    if (identity === undefined) {
      this.#dialFailed(peer, hboneError("HBONE_NO_CERTIFICATE", `there is no certificate for ${request.source} yet`));
      return;
    }
    const { clock, revocations } = this.#options;
    peer.cancelDial = dialSession({ request, identity, revocations, clock, limits: this.#limits }, (result) => {
      peer.cancelDial = undefined;
      if (!("stream" in result)) {
        this.#dialFailed(peer, result);
        return;
      }
      const session = new ClientSession({
        secure: result,
        source: request.source,
        clock,
        random: this.#options.random,
        limits: this.#limits,
        peerStreams: peer.sessions.find(({ peerStreams }) => peerStreams !== undefined)?.peerStreams,
        onChanged: () => {
          this.#sessionChanged(peer, session);
        },
      });
      peer.sessions.push(session);
      this.#stopSweep ??= every(clock, Math.max(this.#limits.idleMs / 4, 1), () => {
        this.#sweep();
      });
      session.start();
      if (this.#draining) session.retire();
      this.#serve(peer, session);
    });
  }

  /** Gives a new session to those who wait; when they are more than it takes, dials another. */
  #serve(peer: Peer, session: ClientSession): void {
    while (session.hasRoom) {
      const opening = peer.waiting.shift();
      if (opening === undefined) break;
      if (!opening.over) opening.begin(session);
    }
    const [next] = peer.waiting;
    if (next !== undefined && peer.cancelDial === undefined) this.#dial(peer, next.request);
    this.#forgetEmpty(peer);
  }

  #dialFailed(peer: Peer, error: CodedError): void {
    const { waiting } = peer;
    peer.waiting = [];
    for (const opening of waiting) opening.failSoon(error);
    this.#forgetEmpty(peer);
  }

  #sessionChanged(peer: Peer, session: ClientSession): void {
    if (session.closed) peer.sessions = peer.sessions.filter((other) => other !== session);
    this.#forgetEmpty(peer);
  }

  #forgetEmpty(peer: Peer): void {
    if (peer.sessions.length > 0 || peer.waiting.length > 0 || peer.cancelDial !== undefined) return;
    if (this.#peers.get(peer.key) === peer) this.#peers.delete(peer.key);
    if (this.#peers.size > 0) return;
    this.#stopSweep?.();
    this.#stopSweep = undefined;
    this.#emptied.happen();
  }

  #sweep(): void {
    const since = this.#options.clock.monotonic() - this.#limits.idleMs;
    for (const session of this.#allSessions()) if (session.idleSince(since)) session.retire();
  }

  #allSessions(): ClientSession[] {
    return [...this.#peers.values()].flatMap((peer) => peer.sessions);
  }

  /** No new tunnels; ends when the last has ended, or breaks what is left at the deadline. */
  async drain(deadlineMs: number): Promise<void> {
    this.#draining = true;
    for (const session of this.#allSessions()) session.retire();
    if (deadlineMs > 0) await this.#untilEmpty(deadlineMs);
    const error = hboneError("HBONE_DRAINING", "the proxy shuts down");
    for (const peer of this.#peers.values()) {
      peer.cancelDial?.();
      peer.cancelDial = undefined;
      this.#dialFailed(peer, error);
    }
    for (const session of this.#allSessions()) session.fail(error);
    await this.#untilEmpty(LAST_WORDS_MS);
  }

  async #untilEmpty(deadlineMs: number): Promise<void> {
    if (this.#peers.size === 0) return;
    await this.#emptied.within(this.#options.clock, deadlineMs);
  }

  /** A certificate was renewed: new tunnels of `id` use new sessions, running ones stay. */
  certificateChanged(id: SpiffeId): void {
    this.#replace((peer) => peer.to.source === id);
  }

  /** These addresses are somebody else's now, or nobody's: new tunnels there use new sessions, running ones stay. */
  peersGone(ips: ReadonlySet<string>): void {
    for (const { to, sessions } of this.#peers.values()) {
      if (ips.has(to.ip)) for (const session of sessions) session.retire();
    }
  }

  /** The trusted roots changed: all new tunnels use new sessions, so that peers are judged anew. */
  trustChanged(): void {
    this.#replace(() => true);
  }

  /** Handshakes under way begin again: they would end with what was in force before. Who waits for one goes on waiting. */
  #replace(affected: (peer: Peer) => boolean): void {
    for (const peer of [...this.#peers.values()].filter(affected)) {
      for (const session of peer.sessions) session.retire();
      peer.cancelDial?.();
      peer.cancelDial = undefined;
      const [first] = peer.waiting;
      if (first !== undefined) this.#dial(peer, first.request);
      this.#forgetEmpty(peer);
    }
  }
}

function keyOf({ netns, source, accepted, ip, port, sourceIp }: TunnelRequest): string {
  return `${netns?.key ?? ""} ${source} ${accepted.join(",")} ${ip} ${port} ${sourceIp ?? ""}`;
}

/** One request on its way to a session and through it. */
class Opening implements TunnelHandle {
  readonly request: TunnelRequest;
  /** Ended, before or after it had a tunnel. */
  over = false;
  readonly #retry: (opening: Opening) => void;
  #tunnel: ClientTunnel | undefined;
  #tries = 0;
  /** Only where the request has a signal. */
  readonly #onAbort: (() => void) | undefined;

  constructor(request: TunnelRequest, retry: (opening: Opening) => void) {
    this.request = request;
    this.#retry = retry;
    const { signal } = request;
    if (signal === undefined) return;
    this.#onAbort = () => {
      this.abort(hboneError("HBONE_ABORTED", "whoever asked for the tunnel gave up", { cause: signal.reason }));
    };
    signal.addEventListener("abort", this.#onAbort, { once: true });
    if (signal.aborted) setImmediate(this.#onAbort);
  }

  get bytes(): { readonly sent: number; readonly received: number } {
    return this.#tunnel?.bytes ?? { sent: 0, received: 0 };
  }

  begin(session: ClientSession): void {
    this.#tries++;
    this.#tunnel = session.open(this.request, (result) => {
      const { error } = result;
      const retriable = error !== undefined && this.#tunnel?.retriable === true && !this.over;
      // A session that went stale unseen, or is full, has lost nothing of this connection: once more, on another one.
      if (retriable && this.#tries === 1) {
        this.#tunnel = undefined;
        this.#retry(this);
        return;
      }
      if (retriable) this.request.socket.reset();
      this.#end(result);
    });
  }

  /** Ends without a tunnel. The caller of `open` hears of it after `open` has returned. */
  failSoon(error: CodedError): void {
    setImmediate(() => {
      this.abort(error);
    });
  }

  abort(error: CodedError): void {
    if (this.over) return;
    const tunnel = this.#tunnel;
    if (tunnel === undefined) {
      this.request.socket.reset();
      this.#end({ bytesSent: 0, bytesReceived: 0, error });
      return;
    }
    tunnel.forbidRetry();
    tunnel.abort(error);
  }

  #end(result: TunnelResult): void {
    if (this.over) return;
    this.over = true;
    if (this.#onAbort !== undefined) this.request.signal?.removeEventListener("abort", this.#onAbort);
    this.request.onEnd(result);
  }
}
