import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { systemClock } from "#base/clock";
import { CodedError } from "#base/errors";
import { connectTcp, listenTcp, type ByteStream, type TcpSocket } from "#linux";
import { allocate } from "../../src/hbone/buffers.ts";
import { RecordStream } from "../../src/hbone/record-stream.ts";
import { identities } from "../../src/hbone/testing.ts";
import { handshakeAsClient, TlsAcceptor, type SecureStream } from "../../src/hbone/tls.ts";

// Records of our own against the openssl program (another version than the one inside Node): data both ways, KeyUpdate from
// it with and without a wish for ours, tickets, close_notify.

const clock = systemClock({ unref: true });
const timeoutMs = 30_000;
const directory = mkdtempSync(join(tmpdir(), "vt-tls-"));
const children: ChildProcess[] = [];

before(async () => {
  const { client, server } = await identities();
  for (const [name, identity] of Object.entries({ client, server })) {
    const [leaf = "", ...others] = identity.chainPem.split(/(?=-----BEGIN)/);
    writeFileSync(join(directory, `${name}.pem`), leaf);
    writeFileSync(join(directory, `${name}-chain.pem`), others.join(""));
    writeFileSync(join(directory, `${name}.key`), identity.keyPem, { mode: 0o600 });
  }
  writeFileSync(join(directory, "roots.pem"), client.rootsPem);
});
after(() => {
  for (const child of children) child.kill("SIGKILL");
  rmSync(directory, { recursive: true });
});

/** The openssl program with an identity; `said` is all that it has printed. */
function openssl(
  words: readonly string[],
  name: string,
): { child: ChildProcess; said: () => string; say: (text: string) => void } {
  const identity = [
    "-cert",
    `${name}.pem`,
    "-cert_chain",
    `${name}-chain.pem`,
    "-key",
    `${name}.key`,
    "-CAfile",
    "roots.pem",
  ];
  // s_server prints through a buffer that is written out by lines only on request.
  const command = ["-oL", "openssl", ...words, ...identity, "-alpn", "h2", "-tls1_3"];
  const child = spawn("stdbuf", command, { cwd: directory });
  children.push(child);
  let said = "";
  for (const output of [child.stdout, child.stderr]) output.on("data", (bytes) => (said += String(bytes)));
  child.stdin.on("error", () => undefined);
  return { child, said: () => said, say: (text) => void child.stdin.write(text) };
}

async function until(what: string, condition: () => boolean, more: () => string): Promise<void> {
  for (let i = 0; i < 2000 && !condition(); i++) await new Promise((resolve) => setTimeout(resolve, 10));
  assert.ok(condition(), `never came: ${what}\n${more()}`);
}

/** Reads lines and answers each in capitals. */
class Shouter {
  heard = "";
  ended = false;
  broken: CodedError | undefined;
  readonly #buffer = allocate(64 * 1024);

  constructor(stream: ByteStream) {
    const owner = {
      onRead: (count: number) => {
        const line = Buffer.from(this.#buffer.subarray(0, count)).toString();
        this.heard += line;
        setImmediate(() => stream.write(Buffer.from(line.toUpperCase())));
        return undefined;
      },
      onEnd: () => {
        this.ended = true;
        stream.close();
      },
      onWritten: () => undefined,
      onBroken: (error: CodedError) => {
        this.broken = error;
        stream.close();
      },
    };
    stream.start(owner, this.#buffer);
  }
}

function established(result: SecureStream | CodedError): ByteStream {
  if (result instanceof CodedError) throw result;
  assert.ok(result.stream instanceof RecordStream);
  return result.stream;
}

/** Data, then each kind of KeyUpdate followed by data, both ways. */
async function converse(peer: ReturnType<typeof openssl>, shouter: Shouter): Promise<void> {
  for (const [command, line] of [
    ["", "one"],
    ["K\n", "two"],
    ["k\n", "three"],
    ["K\n", "four"],
  ] as const) {
    if (command !== "") {
      const done = (): number => [...peer.said().matchAll(/KEYUPDATE|SSL_do_handshake ->/g)].length; // of s_client, of s_server
      const before = done();
      peer.say(command); // a command is read alone
      await until("the KeyUpdate", () => done() > before, peer.said);
    }
    peer.say(`${line}\n`);
    await until(`${line} there`, () => shouter.heard.endsWith(`${line}\n`), peer.said);
    await until(`${line} back`, () => peer.said().includes(`${line.toUpperCase()}\n`), peer.said);
  }
  assert.equal(shouter.heard, "one\ntwo\nthree\nfour\n");
  assert.equal(shouter.broken, undefined);
}

test("openssl s_client talks to our server through its KeyUpdates and ends with close_notify", async () => {
  const { server } = await identities();
  const acceptor = new TlsAcceptor();
  let shouter: Shouter | undefined;
  const listener = listenTcp({ ip: "127.0.0.1", port: 0 }, (socket: TcpSocket) => {
    const onDone = (result: SecureStream | CodedError): void => {
      shouter = new Shouter(established(result));
    };
    acceptor.accept({ socket, identity: server, clock, timeoutMs, onDone });
  });
  const peer = openssl(["s_client", "-connect", `127.0.0.1:${listener.port}`], "client");
  await until("the session", () => shouter !== undefined, peer.said);
  assert.ok(shouter !== undefined);
  await converse(peer, shouter);
  peer.say("Q\n");
  await until("the end", () => shouter?.ended === true, peer.said);
  listener.stop();
});

test("openssl s_server talks to our client through its tickets and KeyUpdates", async () => {
  const { client } = await identities();
  const port = await freePort();
  const peer = openssl(["s_server", "-accept", `127.0.0.1:${port}`, "-Verify", "3", "-verify_return_error"], "server");
  await until("s_server", () => peer.said().includes("ACCEPT"), peer.said);
  const socket = await connectTcp({ ip: "127.0.0.1", port, timeoutMs, clock });
  const stream = established(
    await new Promise<SecureStream | CodedError>((resolve) => {
      handshakeAsClient({ socket, identity: client, clock, timeoutMs, onDone: resolve });
    }),
  );
  await converse(peer, new Shouter(stream));
  stream.shutdown();
  await until("our close_notify", () => /DONE|shutting down SSL|CONNECTION CLOSED/.test(peer.said()), peer.said);
});

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  return typeof address === "object" && address !== null ? address.port : 0;
}
