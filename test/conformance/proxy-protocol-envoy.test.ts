import assert from "node:assert/strict";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { parseIp, type IpAddress } from "#base/ip";
import { parseSpiffeId } from "#model/spiffe-id";
import { encodeProxyHeader } from "../../src/proxy/proxy-protocol.ts";
import { ensureEnvoy } from "../../tools/test-programs.ts";
import { freePort, PeersWorld } from "./peers-world.ts";

// Envoy, which waypoints are made of, reads the header that goes in front of what a waypoint's application gets.

const TYPES = "type.googleapis.com/envoy.extensions";
const PEER_TLV = 0xd0;
let world: PeersWorld;
let port = 0;

before(async () => {
  let envoy: string;
  [world, envoy, port] = await Promise.all([PeersWorld.start(), ensureEnvoy(), freePort()]);
  const header = (key: string, value: string): object => ({ header: { key, value } });
  const host = {
    name: "all",
    domains: ["*"],
    routes: [
      {
        match: { prefix: "/" },
        direct_response: { status: 200 },
        response_headers_to_add: [
          header("source", "%DOWNSTREAM_REMOTE_ADDRESS%"),
          header("destination", "%DOWNSTREAM_LOCAL_ADDRESS%"),
          header("peer", "%FILTER_STATE(envoy.network.proxy_protocol.tlv:FIELD:peer)%"),
        ],
      },
    ],
  };
  const manager = {
    "@type": `${TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager`,
    stat_prefix: "waypoint",
    codec_type: "HTTP1",
    route_config: { virtual_hosts: [host] },
    http_filters: [{ name: "router", typed_config: { "@type": `${TYPES}.filters.http.router.v3.Router` } }],
  };
  const listener = {
    name: "waypoint",
    address: { socket_address: { address: "127.0.0.1", port_value: port } },
    listener_filters: [
      {
        name: "proxy_protocol",
        typed_config: {
          "@type": `${TYPES}.filters.listener.proxy_protocol.v3.ProxyProtocol`,
          tlv_location: "FILTER_STATE",
          rules: [{ tlv_type: PEER_TLV, on_tlv_present: { key: "peer" } }],
        },
      },
    ],
    filter_chains: [{ filters: [{ name: "http", typed_config: manager }] }],
  };
  const file = world.file("envoy-waypoint.json");
  writeFileSync(file, JSON.stringify({ static_resources: { listeners: [listener] } }));
  const options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"];
  await world.run(envoy, [...options, "--config-path", file], port);
});

after(async () => {
  await world.stop();
});

async function headersSeen(source: IpAddress, destination: IpAddress): Promise<string> {
  const peer = parseSpiffeId("spiffe://cluster.local/ns/shop/sa/client");
  const ends = { source: { ip: source, port: 4000 }, destination: { ip: destination, port: 8080 } };
  const socket = world.dial(port);
  socket.write(encodeProxyHeader({ ...ends, peer }));
  socket.write("GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n");
  let answer = "";
  socket.on("data", (part: Buffer) => (answer += part.toString()));
  await once(socket, "end");
  socket.destroy();
  const value = (name: string): string => new RegExp(`^${name}: (.*)\r$`, "m").exec(answer)?.[1] ?? answer;
  return [value("source"), value("destination"), value("peer")].join(" ");
}

test("Envoy reads both ends and the caller's identity, in both families", async () => {
  const peer = "spiffe://cluster.local/ns/shop/sa/client";
  const four = await headersSeen(parseIp("10.1.0.1"), parseIp("10.96.0.1"));
  assert.equal(four, `10.1.0.1:4000 10.96.0.1:8080 ${peer}`);
  const six = await headersSeen(parseIp("fd00::1"), parseIp("fd00:96::1"));
  assert.equal(six, `[fd00::1]:4000 [fd00:96::1]:8080 ${peer}`);
});
