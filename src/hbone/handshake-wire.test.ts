import assert from "node:assert/strict";
import { once } from "node:events";
import {
  connect as connectPlain,
  createServer as createPlain,
  type AddressInfo,
  type Server,
  type Socket,
} from "node:net";
import { after, before, describe, test } from "node:test";
import { connect, createServer } from "node:tls";
import { systemClock } from "#base/clock";
import { CodedError } from "#base/errors";
import { connectTcp, listenTcp, socketPath, useSocketPath, type ByteStream } from "#linux";
import type { TlsIdentity } from "#model/tls-identity";
import { allocate } from "./buffers.ts";
import { RecordStream } from "./record-stream.ts";
import { identities } from "./testing.ts";
import { handshakeAsClient, TlsAcceptor, type SecureStream } from "./tls.ts";
import { TrafficSecrets } from "./traffic-secrets.ts";

const clock = systemClock({ unref: true });
const timeoutMs = 30_000;

function options({ keyPem: key, chainPem: cert, rootsPem: ca }: TlsIdentity) {
  return { key, cert, ca, ALPNProtocols: ["h2"], checkServerIdentity: () => undefined };
}

/** Collects what comes, and answers it with itself. */
function echo(stream: ByteStream, onEnd: () => void = () => undefined): { text: () => string } {
  const buffer = allocate(64 * 1024);
  const parts: Buffer[] = [];
  const waiting: Buffer[] = [];
  let busy = false;
  const push = (): void => {
    for (let next = waiting[0]; !busy && next !== undefined; next = waiting[0]) {
      waiting.shift();
      busy = stream.write(next) === "pending";
    }
  };
  stream.start(
    {
      onRead: (count) => {
        const copy = Buffer.from(buffer.subarray(0, count));
        parts.push(copy);
        waiting.push(copy);
        setImmediate(push);
        return undefined;
      },
      onEnd: () => {
        stream.close();
        onEnd();
      },
      onWritten: () => {
        busy = false;
        push();
      },
      onBroken: (error) => {
        parts.push(Buffer.from(error.message));
        stream.close();
      },
    },
    buffer,
  );
  return { text: () => Buffer.concat(parts).toString() };
}

/** How bytes go through the middle: as they come, each byte alone, or all together once nothing has come for a while. */
type Cut = "as they come" | "byte by byte" | "together";

async function middle(port: number, cut: Cut): Promise<Server> {
  const pass = (from: Socket, to: Socket): void => {
    let held: Buffer[] = [];
    let timer: NodeJS.Timeout | undefined;
    const flush = (): void => {
      clearTimeout(timer);
      to.write(Buffer.concat(held));
      held = [];
    };
    from.on("data", (bytes: Buffer) => {
      if (cut === "as they come") to.write(bytes);
      else if (cut === "byte by byte") for (const byte of bytes) to.write(Uint8Array.of(byte));
      else {
        held.push(bytes);
        clearTimeout(timer);
        timer = setTimeout(flush, 50);
      }
    });
    from.on("end", flush); // before it ends the other one
    from.on("error", () => to.destroy());
    from.on("close", () => to.end());
  };
  const server = createPlain({ noDelay: true }, (socket) => {
    const far = connectPlain({ port, host: "127.0.0.1", noDelay: true });
    pass(socket, far);
    pass(far, socket);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  return server;
}

const portOf = (server: Server): number => (server.address() as AddressInfo).port; // it listens on TCP

async function readUntil(read: () => string, wanted: string): Promise<void> {
  for (let i = 0; i < 1500 && read() !== wanted; i++) await new Promise((resolve) => setTimeout(resolve, 10));
  assert.equal(read(), wanted);
}

describe("the moment between handshake and data", () => {
  const path = socketPath();
  before(() => {
    useSocketPath("handles");
  });
  after(() => {
    useSocketPath(path);
  });

  for (const cut of ["as they come", "byte by byte", "together"] as const) {
    test(`a client of Node's that speaks at once is heard from its first byte (bytes ${cut})`, async () => {
      const { client, server } = await identities();
      const acceptor = new TlsAcceptor();
      let seen: { text: () => string } | undefined;
      let made: SecureStream | CodedError | undefined;
      const listener = listenTcp({ ip: "127.0.0.1", port: 0 }, (socket) => {
        const onDone = (result: SecureStream | CodedError): void => {
          made = result;
          if (!(result instanceof CodedError)) seen = echo(result.stream);
        };
        acceptor.accept({ socket, identity: server, clock, timeoutMs, onDone });
      });
      const between = await middle(listener.port, cut);
      const socket = connect({ port: portOf(between), host: "127.0.0.1", ...options(client) });
      let answer = "";
      socket.on("data", (bytes) => (answer += String(bytes))).on("error", (error) => (answer = String(error)));
      socket.on("secureConnect", () => {
        socket.write("first "); // in its own record, in the segment of Finished where bytes go together
        socket.write("second ");
      });
      await readUntil(() => answer, "first second ");
      assert.ok(made !== undefined && !(made instanceof CodedError) && made.stream instanceof RecordStream);
      assert.equal(made.peer, client.id);
      assert.equal(seen?.text(), "first second ");
      socket.end("third");
      await readUntil(() => seen?.text() ?? "", "first second third");
      socket.destroy();
      between.close();
      listener.stop();
    });

    test(`a server of Node's, which sends tickets, is heard and hears (bytes ${cut})`, async () => {
      const { client, server } = await identities();
      let heard = "";
      const far = createServer({ ...options(server), requestCert: true }, (socket) => {
        socket.write("welcome ");
        socket.on("data", (bytes) => (heard += String(bytes))).on("error", () => undefined);
      }).listen(0, "127.0.0.1");
      await once(far, "listening");
      const between = await middle(portOf(far), cut);
      const socket = await connectTcp({ ip: "127.0.0.1", port: portOf(between), timeoutMs, clock });
      const made = await new Promise<SecureStream | CodedError>((resolve) => {
        handshakeAsClient({ socket, identity: client, clock, timeoutMs, onDone: resolve });
      });
      assert.ok(!(made instanceof CodedError) && made.stream instanceof RecordStream);
      const seen = echo(made.stream);
      await readUntil(seen.text, "welcome ");
      await readUntil(() => heard, "welcome ");
      made.stream.close();
      between.close();
      far.close();
    });
  }

  test("a peer that ends behind its last word ends behind it", async () => {
    const { client, server } = await identities();
    const far = createServer({ ...options(server), requestCert: true }, (socket) => {
      socket.on("error", () => undefined).end("all there is");
    }).listen(0, "127.0.0.1");
    await once(far, "listening");
    const between = await middle(portOf(far), "together");
    const socket = await connectTcp({ ip: "127.0.0.1", port: portOf(between), timeoutMs, clock });
    const made = await new Promise<SecureStream | CodedError>((resolve) => {
      handshakeAsClient({ socket, identity: client, clock, timeoutMs, onDone: resolve });
    });
    assert.ok(!(made instanceof CodedError));
    let ended = false;
    const seen = echo(made.stream, () => (ended = true));
    await readUntil(() => `${seen.text()} ${String(ended)}`, "all there is true");
    between.close();
    far.close();
  });
});

test("secrets are taken out of a line of the key log, which is wiped", () => {
  const secrets = new TrafficSecrets();
  const random = "ab".repeat(32);
  const line = Buffer.from(`CLIENT_TRAFFIC_SECRET_0 ${random} 00ff1A\n`);
  secrets.take(line);
  secrets.take(Buffer.from(`SERVER_TRAFFIC_SECRET_0 ${random} 0102`));
  const exporter = Buffer.from(`EXPORTER_SECRET ${random} 0304`);
  secrets.take(exporter);
  secrets.take(Buffer.from("no line at all"));
  assert.deepEqual(
    [[...(secrets.client ?? [])], [...(secrets.server ?? [])]],
    [
      [0, 255, 26],
      [1, 2],
    ],
  );
  assert.ok([...line, ...exporter].every((byte) => byte === 0));
  const { client } = secrets;
  secrets.wipe();
  assert.deepEqual([...(client ?? [])], [0, 0, 0]);
  assert.equal(secrets.server, undefined);
});
