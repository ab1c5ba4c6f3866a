import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { after, before, describe, test } from "node:test";
import type { SpiffeId } from "#model/spiffe-id";
import { testId } from "../../src/hbone/testing.ts";
import { ensureEnvoy } from "../../tools/test-programs.ts";
import { closed, digest, freePort, PeersWorld, portOf, until } from "./peers-world.ts";

// Envoy opens tunnels to our server, and takes those of our pool: CONNECT over HTTP/2 with mutual TLS, SPIFFE identities
// judged on both sides.

const TYPES = "type.googleapis.com/envoy.extensions";
let world: PeersWorld;
let envoy: string;

before(async () => {
  [world, envoy] = await Promise.all([PeersWorld.start(), ensureEnvoy()]);
});
after(async () => {
  await world.stop();
});

function address(port: number): object {
  return { socket_address: { address: "127.0.0.1", port_value: port } };
}

function cluster(name: string, port: number): object {
  const endpoint = { endpoint: { address: address(port) } };
  return {
    name,
    type: "STATIC",
    connect_timeout: "5s",
    load_assignment: { cluster_name: name, endpoints: [{ lb_endpoints: [endpoint] }] },
  };
}

/** Our certificate, and whose we accept. */
function tls(kind: "Upstream" | "Downstream", name: string, accepted: SpiffeId): object {
  const certificate = {
    certificate_chain: { filename: world.file(`${name}.pem`) },
    private_key: { filename: world.file(`${name}.key`) },
  };
  const common = {
    alpn_protocols: ["h2"],
    tls_params: { tls_minimum_protocol_version: "TLSv1_3", tls_maximum_protocol_version: "TLSv1_3" },
    tls_certificates: [certificate],
    validation_context: {
      trusted_ca: { filename: world.file("roots.pem") },
      match_typed_subject_alt_names: [{ san_type: "URI", matcher: { exact: accepted } }],
    },
  };
  const required = kind === "Downstream" ? { require_client_certificate: true } : {};
  const type = `${TYPES}.transport_sockets.tls.v3.${kind}TlsContext`;
  return { name: "tls", typed_config: { "@type": type, common_tls_context: common, ...required } };
}

async function startEnvoy(port: number, resources: object): Promise<void> {
  const file = world.file(`envoy-${port}.json`);
  writeFileSync(file, JSON.stringify({ static_resources: resources }));
  const options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"];
  await world.run(envoy, [...options, "--config-path", file], port);
}

/** Takes plain connections and sends each through a tunnel to our server, whose identity must be `accepted`. */
async function envoyAsClient(accepted: SpiffeId): Promise<number> {
  const port = await freePort();
  const proxy = {
    "@type": `${TYPES}.filters.network.tcp_proxy.v3.TcpProxy`,
    stat_prefix: "out",
    cluster: "ours",
    tunneling_config: { hostname: "10.1.2.3:80", headers_to_add: [{ header: { key: "baggage", value: "k=v" } }] },
  };
  const protocol = {
    "@type": `${TYPES}.upstreams.http.v3.HttpProtocolOptions`,
    explicit_http_config: { http2_protocol_options: { allow_connect: true } },
  };
  const ours = {
    ...cluster("ours", world.server.port),
    transport_socket: tls("Upstream", "client", accepted),
    typed_extension_protocol_options: { [`${TYPES.split("/")[1]}.upstreams.http.v3.HttpProtocolOptions`]: protocol },
  };
  const filters = [{ name: "tcp", typed_config: proxy }];
  await startEnvoy(port, {
    listeners: [{ name: "plain", address: address(port), filter_chains: [{ filters }] }],
    clusters: [ours],
  });
  return port;
}

/** Takes tunnels from whoever is `accepted` and connects them to the app, or to what listens on another port. */
async function envoyAsServer(accepted: SpiffeId, to: number = portOf(world.app)): Promise<number> {
  const port = await freePort();
  const route = { cluster: "app", timeout: "0s", upgrade_configs: [{ upgrade_type: "CONNECT", connect_config: {} }] };
  const host = { name: "all", domains: ["*"], routes: [{ match: { connect_matcher: {} }, route }] };
  const manager = {
    "@type": `${TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager`,
    stat_prefix: "in",
    codec_type: "HTTP2",
    http2_protocol_options: { allow_connect: true },
    route_config: { virtual_hosts: [host] },
    http_filters: [{ name: "router", typed_config: { "@type": `${TYPES}.filters.http.router.v3.Router` } }],
  };
  const chain = {
    transport_socket: tls("Downstream", "server", accepted),
    filters: [{ name: "http", typed_config: manager }],
  };
  await startEnvoy(port, {
    listeners: [{ name: "tunnels", address: address(port), filter_chains: [chain] }],
    clusters: [cluster("app", to)],
  });
  return port;
}

/** Bytes of all sizes, one after another and many at a time, come back through the port. */
async function carriesBytes(port: number): Promise<void> {
  for (const size of [1, 16_384, 70_000, 9_000_000]) {
    const bytes = randomBytes(size);
    assert.equal(digest(await world.echoed(bytes, world.dial(port))), digest(bytes), `${size} bytes`);
  }
  const many = Array.from({ length: 40 }, () => randomBytes(20_000));
  const echoes = await Promise.all(many.map(async (bytes) => world.echoed(bytes, world.dial(port))));
  assert.deepEqual(echoes.map(digest), many.map(digest));
}

describe("Envoy as the client", () => {
  test("bytes of all sizes come back, and its headers arrive", async () => {
    const port = await envoyAsClient(testId("server"));
    await carriesBytes(port);
    assert.equal(world.asked.length, 44);
    assert.ok(world.asked.every(({ authority }) => authority === "10.1.2.3:80"));
    assert.equal(world.asked[0]?.headers.get("baggage"), "k=v");
    await until("all tunnels have ended", () => world.inbound.length === 44);
    assert.deepEqual(
      world.inbound.filter(({ error }) => error !== undefined),
      [],
    );
    assert.deepEqual(world.rejected, []);
  });

  test("with another identity than it expects it opens no tunnel", async () => {
    const port = await envoyAsClient(testId("somebody-else"));
    const before = world.asked.length;
    const socket = world.dial(port);
    socket.write("x");
    socket.resume();
    await closed(socket);
    assert.equal(world.asked.length, before);
    await until("our server sees the handshake fail", () => world.rejected.length > 0);
  });
});

describe("Envoy as the server", () => {
  test("bytes of all sizes come back", async () => {
    const peer = await envoyAsServer(testId("client"));
    await carriesBytes(world.outbound(peer));
    await until("all tunnels have ended", () => world.ended.length === 44);
    assert.deepEqual(
      world.ended.filter(({ error }) => error !== undefined),
      [],
    );
    const refused = world.dial(world.outbound(peer, testId("somebody-else")));
    refused.write("x");
    await closed(refused);
    assert.equal(world.ended.at(-1)?.error?.code, "X509_UNEXPECTED_IDENTITY");
  });

  test("where it does not accept our identity the connection is refused with that reason", async () => {
    const peer = await envoyAsServer(testId("somebody-else"));
    const socket = world.dial(world.outbound(peer));
    socket.write("x");
    await closed(socket);
    assert.equal(world.ended.at(-1)?.error?.code, "HBONE_SESSION_REFUSED");
  });
});

describe("Envoy as the gateway of another network", () => {
  test("ends the outer tunnel and hands the inner one on unread: bytes of all sizes come back", async () => {
    const [asked, inbound] = [world.asked.length, world.inbound.length];
    const gateway = await envoyAsServer(testId("client"), world.server.port);
    await carriesBytes(world.outbound(gateway, testId("server"), testId("server")));
    await until("all tunnels have ended", () => world.inbound.length === inbound + 44);
    assert.ok(world.inbound.slice(inbound).every(({ error }) => error === undefined));
    const inner = world.asked.slice(asked);
    assert.ok(inner.every(({ headers }) => headers.get("x-forwarded-network") === "west"));
  });

  test("leads to nobody but whom the service names", async () => {
    const asked = world.asked.length;
    const gateway = await envoyAsServer(testId("client"), world.server.port);
    const refused = world.dial(world.outbound(gateway, testId("server"), testId("somebody-else")));
    refused.write("x");
    await closed(refused);
    assert.equal(world.ended.at(-1)?.error?.code, "X509_UNEXPECTED_IDENTITY");
    assert.equal(world.asked.length, asked);
  });
});
