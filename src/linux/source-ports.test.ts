import assert from "node:assert/strict";
import { test } from "node:test";
import { systemClock } from "#base/clock";
import { BORROWED_PORTS, skipSources } from "./socket-options.ts";
import { connectTcp, listenTcp, type TcpSocket } from "./tcp.ts";

const RUN = 100;

test("a connection finds a source port behind a long run of those that others hold", async () => {
  const accepted: TcpSocket[] = [];
  const listener = listenTcp({ ip: "127.0.0.1", port: 0 }, (socket) => accepted.push(socket));
  const clock = systemClock({ unref: true });
  const connect = async (): Promise<TcpSocket> =>
    connectTcp({ sourceIp: "127.0.0.9", ip: "127.0.0.1", port: listener.port, timeoutMs: 10_000, clock });
  const held: TcpSocket[] = [];
  try {
    for (let i = 0; i < RUN; i++) held.push(await connect());
    skipSources(BORROWED_PORTS.count - RUN); // the next one is the first of those again
    await assert.doesNotReject(async () => held.push(await connect()));
  } finally {
    listener.stop();
    for (const socket of [...held, ...accepted]) socket.reset();
  }
});
