import type { Clock } from "#base/clock";
import { isV6, type IpAddress } from "#base/ip";
import type { Random } from "#base/random";
import { listenUdp, type Netns, type SocketAddress, type UdpListener } from "#linux";

/** UDP port of echoes, inside of the tunnels. */
const ECHO_PORT = 51873;
const [QUESTION, ANSWER] = ["veil?", "veil!"] as const;
const NONCE_BYTES = 8;
const MESSAGE_BYTES = QUESTION.length + 2 * NONCE_BYTES;
/** Of IP and UDP around a message. */
const HEADER_BYTES = { v4: 28, v6: 48 } as const;
/** Echoes under way at once; further ones count as lost. */
const MAX_PENDING = 20_000;

/** Where echoes of one device go out and come in. */
export interface EchoOptions {
  readonly netns: Netns;
  readonly device: string;
  /** The node's own: one of each family at most. */
  readonly addresses: readonly IpAddress[];
  readonly clock: Clock;
  readonly random: Random;
}

/**
 * Asks other nodes for an echo through one device, and answers theirs through the device on which they came. Both ends are tied to
 * their devices, so that an answer proves the way there and the way back of that slot. Who asks is a peer of the device, for its
 * addresses are checked by WireGuard, and an answer is as long as its question.
 */
export class Echo implements Disposable {
  readonly #options: EchoOptions;
  readonly #sockets: { readonly v6: boolean; readonly socket: UdpListener }[] = [];
  readonly #pending = new Map<string, (answered: boolean) => void>();

  /** Throws as `listenUdp` does. */
  constructor(options: EchoOptions) {
    this.#options = options;
    const { netns, device, addresses } = options;
    for (const ip of addresses) {
      const v6 = isV6(ip);
      const onMessage = (bytes: Buffer, from: SocketAddress): void => this.#hear(bytes, { v6, from });
      const socket = listenUdp({ netns, device, ip, port: ECHO_PORT }, { onMessage, onError: () => {} }); // a lost echo is asked again
      this.#sockets.push({ v6, socket });
    }
  }

  /** True when an answer came within the deadline. The packet is `packetBytes` long, with its headers, when they are enough. */
  ask(
    ip: IpAddress,
    { deadlineMs, packetBytes }: { readonly deadlineMs: number; readonly packetBytes: number },
  ): Promise<boolean> {
    const { clock, random } = this.#options;
    const socket = this.#socketFor(isV6(ip));
    if (socket === undefined || this.#pending.size >= MAX_PENDING) return Promise.resolve(false);
    const nonce = random.hex(NONCE_BYTES);
    return new Promise((resolve) => {
      const settle = (answered: boolean): void => {
        this.#pending.delete(nonce);
        cancel();
        resolve(answered);
      };
      const cancel = clock.after(deadlineMs, () => settle(false));
      this.#pending.set(nonce, settle);
      const bytes = packetBytes - HEADER_BYTES[isV6(ip) ? "v6" : "v4"];
      socket.send(messageOf(QUESTION, nonce, bytes), { ip, port: ECHO_PORT });
    });
  }

  [Symbol.dispose](): void {
    for (const { socket } of this.#sockets) socket.close();
    for (const settle of this.#pending.values()) settle(false);
  }

  #hear(bytes: Buffer, { v6, from }: { v6: boolean; from: SocketAddress }): void {
    if (bytes.length < MESSAGE_BYTES) return;
    const text = bytes.toString("latin1", 0, MESSAGE_BYTES);
    const nonce = text.slice(QUESTION.length);
    if (text.startsWith(ANSWER)) this.#pending.get(nonce)?.(true);
    else if (text.startsWith(QUESTION)) this.#socketFor(v6)?.send(messageOf(ANSWER, nonce, bytes.length), from);
  }

  #socketFor(v6: boolean): UdpListener | undefined {
    return this.#sockets.find((each) => each.v6 === v6)?.socket;
  }
}

/** Filled up to so many bytes, where they are more than it needs. */
function messageOf(kind: typeof QUESTION | typeof ANSWER, nonce: string, bytes: number): Buffer {
  const message = Buffer.alloc(Math.max(bytes, MESSAGE_BYTES));
  message.write(kind + nonce, "latin1");
  return message;
}
