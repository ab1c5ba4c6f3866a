/** One end of the `node-http2` variant as a process: CONNECT tunnels over Node's own HTTP/2 and its streams. */
import { readFileSync } from "node:fs";
import { connect as connectHttp2, createSecureServer, constants, type ClientHttp2Session } from "node:http2";
import { connect, createServer } from "node:net";
import type { Duplex } from "node:stream";
import type { TunnelPlan } from "./variants.ts";

const plan = JSON.parse(readFileSync(process.argv[2] ?? "", "utf8")) as TunnelPlan & { end: "client" | "server" }; // written by variants.ts
const [way] = plan.ways;
const pem = readFileSync(plan.end === "client" ? plan.clientPem : plan.serverPem, "utf8");
const tls = {
  cert: pem,
  key: pem,
  ca: readFileSync(plan.rootsPem, "utf8"),
  ciphers: "TLS_AES_128_GCM_SHA256",
  minVersion: "TLSv1.3" as const,
};
const settings = { initialWindowSize: 4 << 20, maxFrameSize: 1 << 20, maxConcurrentStreams: 20_000, enablePush: false };
const SESSION_WINDOW_BYTES = 16 << 20;

function join(one: Duplex, other: Duplex): void {
  one.pipe(other).pipe(one);
  one.on("error", () => other.destroy());
  other.on("error", () => one.destroy());
  one.on("close", () => other.destroy());
  other.on("close", () => one.destroy());
}

function serve(): void {
  const server = createSecureServer({ ...tls, requestCert: true, rejectUnauthorized: true, settings });
  server.on("session", (session) => session.setLocalWindowSize(SESSION_WINDOW_BYTES));
  server.on("stream", (stream, headers) => {
    const port = Number(headers[":authority"]?.split(":").at(-1));
    const app = connect({ port, host: "127.0.0.1", noDelay: true, allowHalfOpen: true }, () => {
      stream.respond({ ":status": 200 });
      join(stream, app);
    });
    app.on("error", () => stream.close(constants.NGHTTP2_CONNECT_ERROR));
    stream.on("error", () => undefined);
  });
  server.on("tlsClientError", () => undefined);
  server.listen(way?.tunnel, "0.0.0.0");
}

function dial(): void {
  let session: ClientHttp2Session | undefined;
  const current = (): ClientHttp2Session => {
    if (session === undefined || session.closed || session.destroyed) {
      const made = connectHttp2(`https://${plan.serverIp}:${way?.tunnel}`, {
        ...tls,
        settings,
        checkServerIdentity: () => undefined,
      });
      made.on("connect", () => made.setLocalWindowSize(SESSION_WINDOW_BYTES));
      made.on("error", () => undefined);
      session = made;
    }
    return session;
  };
  for (const { app, local } of plan.ways) {
    createServer({ allowHalfOpen: true, noDelay: true, pauseOnConnect: true }, (socket) => {
      socket.on("error", () => undefined);
      const stream = current().request({ ":method": "CONNECT", ":authority": `${plan.serverIp}:${app}` });
      stream.on("error", () => socket.destroy());
      stream.on("response", (headers) => {
        if (headers[":status"] === 200) join(socket, stream);
        else socket.destroy();
      });
    }).listen(local, "0.0.0.0");
  }
}

if (plan.end === "server") serve();
else dial();
