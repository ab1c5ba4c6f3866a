import type { Socket } from "node:net";
import type { Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import { connectTcp, openNetns } from "#linux";
import { kubeletError } from "./errors.ts";

const CONNECT_TIMEOUT_MS = 5_000;
const LOOPBACKS = ["127.0.0.1", "::1"];

/**
 * Connects to a port on a loopback address of a network namespace; undefined: the kubelet's own, its node's. Rejects with
 * `KUBELET_PORT_FORWARD` when nobody listens on either family.
 */
export async function dialPort(to: {
  readonly netns: string | undefined;
  readonly port: number;
  readonly clock: Clock;
}): Promise<Socket> {
  const { port, clock } = to;
  const reasons: string[] = [];
  try {
    using netns = to.netns === undefined ? undefined : openNetns(to.netns);
    for (const ip of LOOPBACKS) {
      try {
        const connected = await connectTcp({ netns, ip, port, clock, timeoutMs: CONNECT_TIMEOUT_MS, sameHost: true });
        const socket = connected.toNetSocket();
        socket.allowHalfOpen = true;
        return socket;
      } catch (error) {
        reasons.push(messageOf(error));
      }
    }
  } catch (error) {
    reasons.push(messageOf(error));
  }
  throw kubeletError("KUBELET_PORT_FORWARD", `cannot reach port ${port} of the pod: ${reasons.join("; ")}`);
}
