/** Caps and times of sessions. */
export interface HboneLimits {
  /** For the TCP connection to a peer. */
  readonly connectTimeoutMs: number;
  /** For the TLS handshake, on both sides. */
  readonly handshakeTimeoutMs: number;
  /** How long a peer waits that comes before the workload's certificate. */
  readonly certificateWaitMs: number;
  /** A session that is silent for this long is pinged. */
  readonly pingIntervalMs: number;
  /** A pinged session that stays silent for this long is dead. */
  readonly pingTimeoutMs: number;
  /** A peer that has not acknowledged our settings for this long is given up at the next look. */
  readonly settingsTimeoutMs: number;
  /** A client's session without tunnels is closed after this time. */
  readonly idleMs: number;
  /** Tunnels that a client opens on one session (less when the peer allows less). */
  readonly streamsPerSession: number;
  /** Tunnels that a server lets one session have. */
  readonly streamsPerPeer: number;
  /** Largest header list of a request, and of an answer. */
  readonly serverHeaderBytes: number;
  readonly clientHeaderBytes: number;
  /** What a peer may cost in 10 s that carries nothing: 1 for a frame, 2 for a stream. */
  readonly nuisancePoints: number;
  /** Connections that may wait for one handshake. */
  readonly waitingPerPeer: number;
  /** Sessions that one inbound listener has, and handshakes that it has under way. */
  readonly sessionsPerListener: number;
  readonly handshakesPerListener: number;
}

/** As upstream has them, where upstream has them. */
export const DEFAULT_LIMITS: HboneLimits = {
  connectTimeoutMs: 10_000,
  handshakeTimeoutMs: 10_000,
  certificateWaitMs: 5000,
  pingIntervalMs: 10_000,
  pingTimeoutMs: 20_000,
  settingsTimeoutMs: 10_000,
  idleMs: 300_000,
  streamsPerSession: 100,
  streamsPerPeer: 200,
  serverHeaderBytes: 64 * 1024,
  clientHeaderBytes: 16 * 1024,
  nuisancePoints: 10_000,
  waitingPerPeer: 1024,
  sessionsPerListener: 4096,
  handshakesPerListener: 512,
};
