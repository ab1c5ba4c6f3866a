import type { Socket } from "node:net";

/**
 * Calls `onMessage` for each DNS message of a TCP connection, which has its length before it (RFC 1035 section 4.2.2). Keeps at most one
 * unfinished message of 64 KiB.
 */
export function readMessages(socket: Socket, onMessage: (message: Buffer) => void): void {
  let rest: Buffer = Buffer.alloc(0);
  socket.on("data", (chunk: Buffer) => {
    rest = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
    while (rest.length >= 2 && rest.length >= 2 + rest.readUInt16BE(0)) {
      const end = 2 + rest.readUInt16BE(0);
      const message = rest.subarray(2, end);
      rest = rest.subarray(end);
      onMessage(message);
    }
  });
  socket.resume(); // it may have been paused where it was accepted
}

/** Sends a DNS message over TCP. */
export function writeMessage(socket: Socket, message: Buffer): void {
  const framed = Buffer.alloc(2 + message.length);
  framed.writeUInt16BE(message.length);
  message.copy(framed, 2);
  socket.write(framed);
}
