/**
 * Makes full handshakes with a server's proxy, several at a time, each with the certificate of another identity, and hangs up.
 *
 *     handshakes.ts IP PORT AT_A_TIME SECONDS IDENTITIES_FILE     one JSON line: how many were made, in how many seconds
 */
import { readFileSync } from "node:fs";
import { connect, createSecureContext } from "node:tls";

const [ip = "", port = "", atATime = "", seconds = "", file = ""] = process.argv.slice(2);
const { clients } = JSON.parse(readFileSync(file, "utf8")) as { clients: { chainPem: string; keyPem: string }[] }; // of variants.ts
const contexts = clients.map(({ chainPem, keyPem }) =>
  createSecureContext({ cert: chainPem, key: keyPem, minVersion: "TLSv1.3" }),
);
const endMs = performance.now() + Number(seconds) * 1000;
let [made, failed, next] = [0, 0, 0];

async function shake(): Promise<boolean> {
  const secureContext = contexts[next++ % contexts.length];
  return new Promise((resolve) => {
    const socket = connect({
      host: ip,
      port: Number(port),
      secureContext,
      ALPNProtocols: ["h2"],
      rejectUnauthorized: false,
    });
    let isSecure = false;
    socket.once("secureConnect", () => {
      isSecure = true;
      socket.end(); // the server has to read our last flight before it reads the end
    });
    socket.on("error", () => undefined);
    socket.once("close", () => resolve(isSecure));
    socket.resume();
  });
}

async function shakeOn(): Promise<void> {
  while (performance.now() < endMs) {
    if (await shake()) made++;
    else failed++;
  }
}

const startMs = performance.now();
await Promise.all(Array.from({ length: Number(atATime) }, shakeOn));
process.stdout.write(`${JSON.stringify({ made, failed, seconds: (performance.now() - startMs) / 1000 })}\n`);
