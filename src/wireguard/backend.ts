import type { SocketAddress } from "#linux";

/** What becomes of one peer of a device. */
export interface PeerChange {
  /** Base64. */
  readonly publicKey: string;
  /** Takes the peer away; everything else of the change is ignored then. */
  readonly remove?: boolean;
  readonly endpoint?: SocketAddress;
  /** 0: none. Default: as it is. */
  readonly keepaliveSeconds?: number;
  /** Exactly these prefixes from now on. Default: as they are. */
  readonly allowedIps?: readonly string[];
}

/**
 * What becomes of a device, in one transaction and in this order: peers away, key, port, mark, peers. Another order hangs
 * `wireguard-go` (a key that is set while a peer's handshake response is on its way).
 */
export interface DeviceChange {
  /** Removes all peers first. */
  readonly replacePeers?: boolean;
  /** 32 bytes, which the caller overwrites afterwards. */
  readonly privateKey?: Uint8Array;
  readonly listenPort?: number;
  /** SO_MARK of the packets that carry the tunnel. */
  readonly mark?: number;
  readonly peers?: readonly PeerChange[];
}

/** One peer as a device has it. */
export interface PeerState {
  readonly publicKey: string;
  readonly endpoint: SocketAddress | undefined;
  /** Unix milliseconds; 0: none yet. */
  readonly lastHandshakeMs: number;
  readonly receivedBytes: number;
  readonly sentBytes: number;
  readonly keepaliveSeconds: number;
  readonly allowedIps: readonly string[];
}

/** A device as it is. Its private key is never shown. */
export interface DeviceState {
  /** Undefined: it has no key yet. */
  readonly publicKey: string | undefined;
  readonly listenPort: number;
  readonly mark: number;
  readonly peers: readonly PeerState[];
}

/** What makes WireGuard devices and speaks with them: the kernel, or a program in user space. One suite of tests holds them all. */
export interface Backend {
  readonly kind: "kernel" | "userspace";
  /** Of the program, or of the kernel. */
  readonly version: string;
  /**
   * Makes a device, or finds the one that an earlier agent made; down, and without an address. `onGone` is called once when it does
   * not answer any more (its process has ended, its link was removed). Throws `WIREGUARD_BACKEND`.
   */
  open(device: string, onGone: () => void): Promise<"made" | "found">;
  /** Applies a change whole or not at all. Throws `WIREGUARD_DEVICE`. */
  configure(device: string, change: DeviceChange): Promise<void>;
  /** Throws `WIREGUARD_DEVICE`. */
  read(device: string): Promise<DeviceState>;
  /** Removes a device and what runs it. One that is not there is no failure. */
  remove(device: string): Promise<void>;
  /** Lets go of what is held; devices stay. */
  close(): void;
}
