import { constants, type X509Certificate } from "node:crypto";
import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import {
  connect,
  createSecureContext,
  createServer,
  TLSSocket,
  type ConnectionOptions,
  type SecureContext,
  type Server,
} from "node:tls";
import type { Clock } from "#base/clock";
import { CodedError } from "#base/errors";
import { refusedPeer, socketPath, publicTlsStream, TcpSocket, type ByteStream } from "#linux";
import { trustDomainOf, type SpiffeId } from "#model/spiffe-id";
import type { TlsIdentity } from "#model/tls-identity";
import { checkPeerLeaf, type PeerExpectation } from "#x509";
import { hboneError } from "./errors.ts";
import { HandshakeWire } from "./handshake-wire.ts";
import { peerRevoked, presentedCertificates, type PeerRevocations, type PeerWatch } from "./revocation.ts";

/** A TLS session whose peer is proven. */
export interface SecureStream {
  readonly stream: ByteStream;
  readonly peer: SpiffeId;
  /** Of whoever takes the stream: to be left at the session's end. */
  readonly watch?: PeerWatch | undefined;
}

/** What TLS is spoken over: a `TcpSocket`, or a tunnel. */
interface HandshakeSocket {
  toNetSocket(): Duplex;
  close(): void;
}

/** One handshake. */
export interface HandshakeOptions {
  /** Owned by the handshake. */
  readonly socket: HandshakeSocket;
  readonly identity: TlsIdentity;
  /** Who may answer; undefined: anyone of our trust domain. */
  readonly accepted?: readonly SpiffeId[] | undefined;
  /** Undefined: nobody knows of any. */
  readonly revocations?: PeerRevocations | undefined;
  readonly clock: Clock;
  readonly timeoutMs: number;
  /** Called exactly once. With an error, the connection is closed already. */
  readonly onDone: (result: SecureStream | CodedError) => void;
}

const PROFILE = {
  minVersion: "TLSv1.3",
  maxVersion: "TLSv1.3",
  ciphers: "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384",
  // The client sends a key for each group with a star: peers without the hybrid one need no second round.
  ecdhCurve: "*X25519MLKEM768:*X25519:P-256:P-384",
  secureOptions: constants.SSL_OP_NO_TICKET,
} as const;

/** Parsing keys and certificates costs a millisecond: once per identity object, which changes when it is renewed. */
const contexts = new WeakMap<TlsIdentity, SecureContext>();

function contextOf(identity: TlsIdentity): SecureContext {
  let context = contexts.get(identity);
  context ??= createSecureContext({ ...PROFILE, ...credentials(identity) });
  contexts.set(identity, context);
  return context;
}

/** The chain and the identity are judged by `judgePeer`, for both sides alike; before that nothing is handed out. */
const CLIENT_OPTIONS: ConnectionOptions = {
  ALPNProtocols: ["h2"],
  rejectUnauthorized: false,
  checkServerIdentity: () => undefined,
};

/** What makes records of our own out of a handshake over `socket`; undefined where the session stays Node's. */
function wireOver(socket: HandshakeSocket, isServer: boolean): HandshakeWire | undefined {
  if (!(socket instanceof TcpSocket) || socketPath() === "public") return undefined;
  return new HandshakeWire(socket, isServer);
}

/** Shakes hands as the client. No SNI, no resumption. The result of the call ends it early (nothing is reported then). */
export function handshakeAsClient(options: HandshakeOptions): () => void {
  const { identity, socket } = options;
  const handshake = new Handshake(options, "source");
  try {
    const secureContext = contextOf(identity);
    const wire = wireOver(socket, false);
    const plain = wire === undefined ? socket.toNetSocket() : wire.duplex;
    handshake.began(plain, wire);
    const secure = connect({ ...CLIENT_OPTIONS, socket: plain, secureContext });
    wire?.watch(secure);
    secure.on("error", (error) => {
      handshake.failed(handshakeError(error));
    });
    secure.on("secureConnect", () => {
      handshake.secured(secure);
    });
  } catch (cause) {
    handshake.failed(unusable(identity, cause));
  }
  return () => {
    handshake.cancel();
  };
}

/** Shakes hands as the server of one listener; a client certificate is required. */
export class TlsAcceptor {
  /** One `tls.Server` per identity object; it never listens, connections are handed to it. */
  readonly #servers = new WeakMap<TlsIdentity, Server>();
  /** By the client's address: a TLS socket is recognised by it. */
  readonly #byAddress = new Map<string, Handshake>();
  readonly #pending = new Set<Handshake>();

  /** Handshakes under way. */
  get size(): number {
    return this.#pending.size;
  }

  accept(options: Omit<HandshakeOptions, "socket"> & { readonly socket: TcpSocket }): void {
    const { identity, socket } = options;
    let key = "";
    const onDone = (result: SecureStream | CodedError): void => {
      this.#pending.delete(handshake);
      if (this.#byAddress.get(key) === handshake) this.#byAddress.delete(key);
      options.onDone(result);
    };
    const handshake = new Handshake({ ...options, onDone }, "destination");
    this.#pending.add(handshake);
    try {
      const wire = wireOver(socket, true);
      if (wire !== undefined) {
        acceptOverWire(wire, identity, handshake);
        return;
      }
      let server = this.#servers.get(identity);
      if (server === undefined) {
        server = this.#makeServer(identity);
        this.#servers.set(identity, server);
      }
      const plain = socket.toNetSocket();
      handshake.began(plain);
      key = keyOf(plain);
      this.#byAddress.set(key, handshake);
      server.emit("connection", plain);
    } catch (cause) {
      handshake.failed(unusable(identity, cause));
    }
  }

  /** Ends all handshakes under way with `error`. */
  close(error: CodedError): void {
    for (const handshake of this.#pending) handshake.failed(error);
  }

  #makeServer(identity: TlsIdentity): Server {
    const server = createServer({
      ...PROFILE,
      ...credentials(identity),
      ALPNProtocols: ["h2"],
      requestCert: true,
      rejectUnauthorized: false,
    });
    server.on("secureConnection", (secure) => {
      const handshake = this.#byAddress.get(keyOf(secure));
      if (handshake === undefined) secure.destroy();
      else handshake.secured(secure);
    });
    server.on("tlsClientError", (error, secure) => {
      this.#byAddress.get(keyOf(secure))?.failed(handshakeError(error));
    });
    return server;
  }
}

function acceptOverWire(wire: HandshakeWire, identity: TlsIdentity, handshake: Handshake): void {
  const secureContext = contextOf(identity);
  handshake.began(wire.duplex, wire);
  const secure = new TLSSocket(wire.duplex, {
    isServer: true,
    secureContext,
    ALPNProtocols: ["h2"],
    requestCert: true,
    rejectUnauthorized: false,
  });
  wire.watch(secure);
  secure.once("secure", () => {
    handshake.secured(secure);
  });
  for (const event of ["_tlsError", "error"]) {
    secure.on(event, (error: Error) => {
      handshake.failed(handshakeError(error));
    });
  }
}

function credentials({ chainPem, keyPem, rootsPem }: TlsIdentity): { cert: string; key: string; ca: string } {
  return { cert: chainPem, key: keyPem, ca: rootsPem };
}

function keyOf(socket: Socket): string {
  return `${socket.remoteAddress} ${socket.remotePort} ${socket.localAddress}`;
}

/** One handshake under way: its time, and that it ends once. */
class Handshake {
  readonly #options: HandshakeOptions;
  readonly #reporter: "source" | "destination";
  readonly #cancelTimer: () => void;
  #plain: Duplex | undefined;
  #wire: HandshakeWire | undefined;
  #watched: PeerWatch | undefined;
  #over = false;

  constructor(options: HandshakeOptions, reporter: "source" | "destination") {
    this.#options = options;
    this.#reporter = reporter;
    const { clock, timeoutMs } = options;
    this.#cancelTimer = clock.after(timeoutMs, () => {
      // When this thread was held up, the handshake may be about to end: first a look at the sockets.
      setImmediate(() => {
        this.failed(hboneError("HBONE_TLS_TIMEOUT", `no TLS handshake within ${timeoutMs} ms`));
      });
    });
  }

  /** The connection belongs to `plain` now. */
  began(plain: Duplex, wire?: HandshakeWire): void {
    this.#plain = plain;
    this.#wire = wire;
    plain.on("error", () => {}); // the TLS socket reports it
    plain.on("close", () => {
      if (!this.#over)
        this.failed(hboneError("HBONE_TLS_HANDSHAKE", "the connection was closed during the TLS handshake"));
    });
  }

  secured(secure: TLSSocket): void {
    if (this.#over) return;
    const { identity, accepted } = this.#options;
    const certificate = secure.getPeerX509Certificate();
    const peer = judgePeer(secure, certificate, { trustDomain: trustDomainOf(identity.id), accepted });
    if (peer instanceof CodedError || certificate === undefined) {
      this.failed(peer instanceof CodedError ? peer : noCertificate());
      return;
    }
    const watch = this.#watch(certificate);
    if (watch === "revoked") {
      this.failed(peerRevoked());
      return;
    }
    this.#watched = watch;
    if (this.#wire === undefined) {
      this.#taken(publicTlsStream(secure), peer);
      return;
    }
    this.#wire.handOver(secure, (stream) => {
      if (!this.#over) this.#taken(stream, peer);
    });
  }

  #taken(stream: ByteStream | CodedError, peer: SpiffeId): void {
    if (stream instanceof CodedError) this.failed(stream);
    else this.#end({ stream, peer, watch: this.#watched });
  }

  #watch(leaf: X509Certificate): PeerWatch | "revoked" | undefined {
    const { revocations, identity } = this.#options;
    if (revocations === undefined) return undefined;
    const certificates = presentedCertificates(leaf);
    return revocations.admit({ certificates, identity, reporter: this.#reporter }) ?? "revoked";
  }

  failed(error: CodedError): void {
    if (this.#over) return;
    this.#destroy();
    this.#end(error);
  }

  cancel(): void {
    if (this.#over) return;
    this.#over = true;
    this.#cancelTimer();
    this.#destroy();
  }

  #destroy(): void {
    this.#watched?.leave();
    if (this.#plain === undefined) this.#options.socket.close();
    else this.#plain.destroy();
  }

  #end(result: SecureStream | CodedError): void {
    this.#over = true;
    this.#cancelTimer();
    this.#options.onDone(result);
  }
}

/**
 * The one place where a TLS peer is judged, client or server: protocol, chain (OpenSSL's verdict), then the SPIFFE rules.
 * Whatever is not proven is refused.
 */
function judgePeer(
  socket: TLSSocket,
  certificate: X509Certificate | undefined,
  expected: PeerExpectation,
): SpiffeId | CodedError {
  if (socket.alpnProtocol !== "h2") return hboneError("HBONE_TLS_NO_ALPN", "the peer did not agree on ALPN h2");
  if (certificate === undefined) return noCertificate();
  const reason = refusedPeer(socket);
  try {
    if (reason === undefined) return checkPeerLeaf(certificate.raw, expected);
    if (reason === "INVALID_PURPOSE") checkPeerLeaf(certificate.raw, expected); // names the rule; refused in any case
  } catch (error) {
    if (error instanceof CodedError) return error;
    return hboneError("HBONE_TLS_UNTRUSTED", "the peer's certificate cannot be read", { cause: error });
  }
  return chainError(reason, certificate);
}

function noCertificate(): CodedError {
  return hboneError("HBONE_TLS_NO_CERTIFICATE", "the peer presented no certificate");
}

function chainError(reason: string, { subject, issuer }: X509Certificate): CodedError {
  const details = { reason, subject, issuer };
  if (reason === "CERT_HAS_EXPIRED" || reason === "CERT_NOT_YET_VALID") {
    return hboneError("HBONE_TLS_EXPIRED", `the peer's certificate is not valid now (${reason})`, { details });
  }
  return hboneError("HBONE_TLS_UNTRUSTED", `the peer's certificate is not trusted (${reason})`, { details });
}

function handshakeError(cause: Error): CodedError {
  const reason = "code" in cause ? String(cause.code) : "";
  if (reason.endsWith("NO_APPLICATION_PROTOCOL")) {
    return hboneError("HBONE_TLS_NO_ALPN", "the peer did not agree on ALPN h2", { cause, details: { reason } });
  }
  return hboneError("HBONE_TLS_HANDSHAKE", `the TLS handshake failed: ${cause.message}`, {
    cause,
    details: { reason },
  });
}

function unusable(identity: TlsIdentity, cause: unknown): CodedError {
  return hboneError("HBONE_NO_CERTIFICATE", `the certificate of ${identity.id} cannot be used`, { cause });
}
