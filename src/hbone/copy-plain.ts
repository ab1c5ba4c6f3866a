import type { TcpSocket } from "#linux";
import type { TunnelHandle, TunnelResult } from "./tunnel.ts";

/**
 * Copies between two plain sockets, in both directions, until both have ended (half-close is passed on), or one broke
 * (the other is reset). Owns both sockets. In the result, `sent` is from `a` to `b`.
 */
export function copyPlain(
  _a: TcpSocket,
  _b: TcpSocket,
  _options: { onEnd: (result: TunnelResult) => void },
): TunnelHandle {
  throw new Error("not there yet");
}
