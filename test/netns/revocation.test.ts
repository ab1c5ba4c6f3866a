import assert from "node:assert/strict";
import { rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { connect as connectTls } from "node:tls";
import { formatSpiffeId } from "#model/spiffe-id";
import { parseCertificates, type Certificate } from "#x509";
import { dial, listen, ProxyWorld, say, until, type Node, type Pod } from "./proxy-world.ts";

const PORT = 8080;
/** The file has to be quiet for two seconds. */
const PATIENCE_MS = 60_000;

let world: ProxyWorld;

function crlPath(node: Node): string {
  return join(world.folder, `${node.name}.crl`);
}

/** Puts a list into a node's file, as a whole, as Kubernetes does. */
async function revoke(node: Node, ...certificates: readonly Certificate[]): Promise<void> {
  const path = crlPath(node);
  await writeFile(`${path}.new`, await world.authority.crl(certificates));
  await rename(`${path}.new`, path);
}

/** The certificate that a pod's proxy presents. */
function leafOf(pod: Pod): Certificate {
  const [leaf] = parseCertificates(world.nodeOf(pod).certificates.get(pod.identity)?.chainPem ?? "", pod.name);
  assert.ok(leaf);
  return leaf;
}

async function recorded(node: Node, since: number, expected: string): Promise<void> {
  const words = (): string[] =>
    node.records.slice(since).map(({ direction, verdict, reason }) => `${direction} ${verdict} ${reason}`);
  await until(`a record ${expected} among ${words().join(", ")}`, () => words().includes(expected), PATIENCE_MS);
}

before(async () => {
  world = await ProxyWorld.create();
  const { a, b, client, server } = world;
  world.publish(client, server);
  for (const [node, pod] of [
    [a, client],
    [b, server],
  ] as const) {
    node.env = { CRL_PATH: crlPath(node) };
    await node.certify(pod);
    await node.startAgent();
  }
  await Promise.all([a.startProxy(), b.startProxy()]);
  await Promise.all([world.enrol(client), world.enrol(server)]);
  listen(server, PORT, (socket) => socket.pipe(socket));
});

after(async () => {
  await world[Symbol.asyncDispose]();
});

describe("a certificate that is revoked", () => {
  for (const side of ["inbound", "outbound"] as const) {
    it(`ends running connections and refuses new ones ${side}, until the workload has another`, async () => {
      const { client, server } = world;
      const [node, peer] = side === "inbound" ? [world.b, client] : [world.a, server];
      const running = await world.hold("hello");
      const since = node.records.length;
      const closed = new Promise((resolve) => running.once("close", resolve));
      await revoke(node, leafOf(peer));
      await closed;
      await recorded(node, since, `${side} forwarded certificate_revoked`);
      assert.equal(await say(client, { ip: server.ip, port: PORT }, "anybody?"), "refused");
      await recorded(node, since, `${side} refused certificate_revoked`);
      const reporter = side === "inbound" ? "destination" : "source";
      const rejections = new RegExp(`istio_crl_policy_rejections_total\\{reporter="${reporter}"\\} [1-9]`);
      assert.match(await node.get(15_020, "/metrics"), rejections);
      await world.nodeOf(peer).certify(peer);
      const isServed = async () => (await say(client, { ip: server.ip, port: PORT }, "again")) === "again";
      await until("served with another certificate", isServed, PATIENCE_MS);
    });
  }
});

describe("a peer of another trust domain", () => {
  it("is refused in its handshake, with a record", async () => {
    const { authority, b, plain, server } = world;
    const foreign = await authority.identity(
      formatSpiffeId({ trustDomain: "elsewhere.org", namespace: "shop", serviceAccount: "client" }),
    );
    const since = b.records.length;
    const { chainPem: cert, keyPem: key } = foreign;
    const socket = await dial(plain, server.ip, 15_008);
    const tls = connectTls({ socket, cert, key, ALPNProtocols: ["h2"], rejectUnauthorized: false });
    tls.on("error", () => undefined);
    tls.resume();
    await new Promise((resolve) => tls.once("close", resolve));
    await recorded(b, since, "inbound refused wrong_identity");
    const { detail } = b.records.slice(since).find(({ reason }) => reason === "wrong_identity") ?? {};
    assert.match(detail ?? "", /X509_WRONG_TRUST_DOMAIN/);
  });
});
