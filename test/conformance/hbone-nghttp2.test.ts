import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createServer, request as httpRequest, type Server } from "node:http";
import { Socket } from "node:net";
import { after, before, test } from "node:test";
import { promisify } from "node:util";
import { closed, digest, freePort, PeersWorld, portOf, until } from "./peers-world.ts";

// The programs of nghttp2. nghttp and nghttpd know no CONNECT: they are peers that frame, compress and pad in their own
// way, and get or give an error status. nghttpx, as a forward proxy, carries CONNECT both ways.

const run = promisify(execFile);
let world: PeersWorld;
/** A forward proxy of HTTP/1: connects to the app, whatever is asked for. */
let forward: Server;
const forwarded: string[] = [];

before(async () => {
  world = await PeersWorld.start();
  forward = createServer();
  forward.on("connect", (request, socket, head: Buffer) => {
    forwarded.push(request.url ?? "");
    const app = new Socket({ allowHalfOpen: true }).connect(portOf(world.app), "127.0.0.1", () => {
      socket.write("HTTP/1.1 200 OK\r\n\r\n");
      app.write(head);
      socket.pipe(app).pipe(socket);
    });
    for (const one of [app, socket]) one.on("error", () => app.destroy());
  });
  await new Promise<void>((resolve) => forward.listen(0, "127.0.0.1", resolve));
});
after(async () => {
  forward.closeAllConnections();
  forward.close();
  await world.stop();
});

test("nghttp, with padding, small windows and priorities, gets 400 for what is no CONNECT", async () => {
  const url = `https://127.0.0.1:${world.server.port}/`;
  const identity = ["--cert", world.file("client.pem"), "--key", world.file("client.key")];
  for (const options of [
    ["--window-bits=1", "--connection-window-bits=16"],
    ["--padding=255", "--header-table-size=0", "--weight=7"],
    ["--multiply=100", "--no-dep", "--data", world.file("roots.pem"), "--hexdump"],
    ["--expect-continue", "--max-concurrent-streams=1", "--trailer", "a: b", "--data", world.file("roots.pem")],
  ]) {
    const { stdout } = await run("nghttp", ["--verbose", "--no-verify-peer", ...identity, ...options, url]);
    assert.match(stdout, /:status: 400/, options.join(" "));
    assert.doesNotMatch(stdout, /recv GOAWAY frame(?![^]{0,200}NO_ERROR)/, options.join(" "));
  }
  assert.deepEqual(new Set(world.rejected.splice(0)), new Set(["HBONE_MALFORMED"]));
});

test("nghttpd answers CONNECT with an error status, which the connection's end names", async () => {
  const port = await freePort();
  const options = ["--verify-client", "--padding=200", "--window-bits=2", "--max-concurrent-streams=2"];
  const identity = [String(port), world.file("server.key"), world.file("server.pem")];
  await world.run("nghttpd", ["--address=127.0.0.1", "--htdocs", world.folder, ...options, ...identity], port);
  const outbound = world.outbound(port);
  const sockets = Array.from({ length: 5 }, () => world.dial(outbound));
  for (const socket of sockets) socket.end("hello");
  await Promise.all(sockets.map(closed));
  await until("all have ended", () => world.ended.length === 5);
  const ends = world.ended.splice(0).map(({ error }) => [error?.code, error?.details["status"]]);
  assert.deepEqual(
    ends,
    Array.from({ length: 5 }, () => ["HBONE_PEER_STATUS", 405]),
  );
});

test("tunnels of our pool go through nghttpx, which takes CONNECT and passes it to a forward proxy", async () => {
  const port = await freePort();
  const options = [
    "--conf=/dev/null",
    "--http2-proxy",
    "--no-ocsp",
    "--single-process",
    "--verify-client",
    "--workers=1",
    "--errorlog-file=/dev/stderr",
  ];
  await world.run(
    "nghttpx",
    [
      ...options,
      `--verify-client-cacert=${world.file("roots.pem")}`,
      `--frontend=127.0.0.1,${port}`,
      `--backend=127.0.0.1,${portOf(forward)}`,
      world.file("server.key"),
      world.file("server.pem"),
    ],
    port,
  );
  const outbound = world.outbound(port);
  for (const size of [1, 70_000, 3_000_000]) {
    const bytes = randomBytes(size);
    assert.equal(digest(await world.returned(bytes, world.dial(outbound))), digest(bytes), `${size} bytes`);
  }
  assert.deepEqual(new Set(forwarded), new Set([`127.0.0.1:${portOf(world.app)}`]));
});

test("nghttpx opens tunnels to our server for clients of HTTP/1", async () => {
  const port = await freePort();
  const options = [
    "--conf=/dev/null",
    "--http2-proxy",
    "--no-ocsp",
    "--single-process",
    "--insecure",
    "--workers=1",
    "--errorlog-file=/dev/stderr",
  ];
  await world.run(
    "nghttpx",
    [
      ...options,
      `--client-cert-file=${world.file("client.pem")}`,
      `--client-private-key-file=${world.file("client.key")}`,
      `--frontend=127.0.0.1,${port};no-tls`,
      `--backend=127.0.0.1,${world.server.port};;proto=h2;tls`,
    ],
    port,
  );
  world.asked.length = 0;
  for (const size of [1, 70_000, 3_000_000]) {
    const request = httpRequest({ host: "127.0.0.1", port, method: "CONNECT", path: "10.1.2.3:80" });
    request.end();
    const [answer, socket] = await once(request, "connect");
    assert.equal(answer.statusCode, 200);
    const bytes = randomBytes(size);
    assert.equal(digest(await world.returned(bytes, socket)), digest(bytes), `${size} bytes`);
  }
  assert.deepEqual(
    world.asked.map(({ authority }) => authority),
    ["10.1.2.3:80", "10.1.2.3:80", "10.1.2.3:80"],
  );
  assert.deepEqual(world.rejected, []);
});
