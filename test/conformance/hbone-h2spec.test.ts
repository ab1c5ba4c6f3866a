import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer, type AddressInfo, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { connect as connectTls } from "node:tls";
import { systemClock } from "#base/clock";
import { HboneServer } from "#hbone";
import { identities } from "../../src/hbone/testing.ts";
import { ensureH2spec } from "../../tools/test-programs.ts";

// h2spec judges our server. It knows no client certificates, so that a relay with one stands in between and passes bytes
// on; it sends GET and POST, which our server answers with 400. What does not apply to such answers is listed in
// docs/http2.md: exactly those cases may fail or be skipped.

const clock = systemClock({ unref: true });
const folder = mkdtempSync(join(tmpdir(), "vt-http2-h2spec-"));
const sockets = new Set<Socket>();
let server: HboneServer;
let relay: Server;

before(async () => {
  const { client, server: identity } = await identities();
  server = new HboneServer({
    ip: "127.0.0.1",
    port: 0,
    certificate: () => identity,
    clock,
    onTunnel: (tunnel) => {
      tunnel.refuse(503);
    },
  });
  server.start();
  relay = createServer({ allowHalfOpen: true }, (plain) => {
    const secure = connectTls({
      host: "127.0.0.1",
      port: server.port,
      key: client.keyPem,
      cert: client.chainPem,
      ca: client.rootsPem,
      checkServerIdentity: () => undefined,
      ALPNProtocols: ["h2"],
    });
    plain.pipe(secure).pipe(plain);
    for (const [one, other] of [
      [plain, secure],
      [secure, plain],
    ] as const) {
      sockets.add(one);
      one.on("error", () => {});
      one.on("close", () => other.destroy());
    }
  });
  await new Promise<void>((resolve) => relay.listen(0, "127.0.0.1", resolve));
});

after(async () => {
  for (const socket of sockets) socket.destroy();
  relay.close();
  await server.drain(0);
  rmSync(folder, { recursive: true });
});

/** Runs cases (all of them when none is named); the result says by case (`http2/6.9.1/2`) how it ended. */
async function h2spec(timeoutSeconds: number, cases: readonly string[] = []): Promise<Map<string, string>> {
  const report = join(folder, "report.xml");
  const { port } = relay.address() as AddressInfo; // it listens on TCP
  const options = ["--strict", "--port", String(port), "--timeout", String(timeoutSeconds), "--junit-report", report];
  const child = spawn(await ensureH2spec(), [...options, ...cases], { stdio: "ignore" });
  await once(child, "exit");
  const counts = new Map<string, number>();
  const outcomes = new Map<string, string>();
  const xml = readFileSync(report, "utf8");
  for (const [, section = "", rest = ""] of xml.matchAll(/<testcase package="([^"]*)"[^>]*>([\s\S]*?)<\/testcase>/g)) {
    const number = (counts.get(section) ?? 0) + 1;
    counts.set(section, number);
    const outcome = /<(skipped|failure|error)/.exec(rest)?.[1] ?? "passed";
    outcomes.set(`${section}/${number}`, outcome === "passed" || outcome === "skipped" ? outcome : "failed");
  }
  return outcomes;
}

/** The rows of the table of what does not apply: case, then what h2spec makes of it. */
function exceptions(): Map<string, string> {
  const text = readFileSync(new URL("../../docs/http2.md", import.meta.url), "utf8");
  const rows = text.matchAll(/^\| `((?:generic|http2|hpack)\/[\d./]+)` \| (failed|skipped) \|/gm);
  return new Map([...rows].map(([, id = "", outcome = ""]) => [id, outcome]));
}

test("h2spec passes, but for the cases that docs/http2.md names", async () => {
  const outcomes = await h2spec(2);
  const expected = exceptions();
  // A busy machine may have made one late: alone, and with time, it passes or fails for good.
  for (const [id, outcome] of outcomes) {
    if (outcome === "passed" || expected.has(id)) continue;
    const again = await h2spec(15, [id]);
    outcomes.set(id, [...again.values()].find((one) => one !== "passed") ?? "passed");
  }
  assert.ok(outcomes.size >= 140, `only ${outcomes.size} cases ran`);
  const others = new Map([...outcomes].filter(([, outcome]) => outcome !== "passed"));
  assert.deepEqual(others, expected);
});
