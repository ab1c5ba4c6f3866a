import { readFileSync } from "node:fs";
import type { TunnelPlan } from "./variants.ts";

const STREAM_WINDOW_BYTES = 4 << 20;
const SESSION_WINDOW_BYTES = 16 << 20;
const MOST_TUNNELS = 20_000;
const TYPES = "type.googleapis.com/envoy.extensions";

const http2 = {
  allow_connect: true,
  initial_stream_window_size: STREAM_WINDOW_BYTES,
  initial_connection_window_size: SESSION_WINDOW_BYTES,
  max_concurrent_streams: MOST_TUNNELS,
};
const limits = {
  thresholds: [{ max_connections: MOST_TUNNELS, max_pending_requests: MOST_TUNNELS, max_requests: MOST_TUNNELS }],
};

function address(ip: string, port: number): unknown {
  return { socket_address: { address: ip, port_value: port } };
}

function cluster(name: string, ip: string, port: number): Record<string, unknown> {
  const endpoint = { endpoint: { address: address(ip, port) } };
  return {
    name,
    type: "STATIC",
    connect_timeout: "5s",
    circuit_breakers: limits,
    load_assignment: { cluster_name: name, endpoints: [{ lb_endpoints: [endpoint] }] },
  };
}

function tls(kind: "Upstream" | "Downstream", { clientPem, serverPem, rootsPem }: TunnelPlan): unknown {
  const pem = readFileSync(kind === "Upstream" ? clientPem : serverPem, "utf8");
  const common = {
    alpn_protocols: ["h2"],
    tls_params: { tls_minimum_protocol_version: "TLSv1_3", tls_maximum_protocol_version: "TLSv1_3" },
    tls_certificates: [{ certificate_chain: { inline_string: pem }, private_key: { inline_string: pem } }],
    validation_context: { trusted_ca: { inline_string: readFileSync(rootsPem, "utf8") } },
  };
  const more = kind === "Downstream" ? { require_client_certificate: true } : {};
  const type = `${TYPES}.transport_sockets.tls.v3.${kind}TlsContext`;
  return { name: "tls", typed_config: { "@type": type, common_tls_context: common, ...more } };
}

/** Takes connections on a port of each application and sends them through tunnels to the server's Envoy. */
function client(plan: TunnelPlan): unknown {
  const [first] = plan.ways;
  const listeners = plan.ways.map(({ name, app, local }) => ({
    name,
    address: address("0.0.0.0", local),
    filter_chains: [
      {
        filters: [
          {
            name: "tcp",
            typed_config: {
              "@type": `${TYPES}.filters.network.tcp_proxy.v3.TcpProxy`,
              stat_prefix: name,
              cluster: "peer",
              idle_timeout: "0s",
              tunneling_config: { hostname: `${plan.serverIp}:${app}` },
            },
          },
        ],
      },
    ],
  }));
  const protocol = {
    "@type": `${TYPES}.upstreams.http.v3.HttpProtocolOptions`,
    explicit_http_config: { http2_protocol_options: http2 },
  };
  const peer = {
    ...cluster("peer", plan.serverIp, first?.tunnel ?? 0),
    transport_socket: tls("Upstream", plan),
    typed_extension_protocol_options: { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol },
  };
  return { listeners, clusters: [peer] };
}

/** Takes tunnels and connects them to the application that they name. */
function server(plan: TunnelPlan): unknown {
  const hosts = plan.ways.map(({ name, app }) => ({
    name,
    domains: [`${plan.serverIp}:${app}`],
    routes: [
      {
        match: { connect_matcher: {} },
        route: { cluster: name, timeout: "0s", upgrade_configs: [{ upgrade_type: "CONNECT", connect_config: {} }] },
      },
    ],
  }));
  const manager = {
    "@type": `${TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager`,
    stat_prefix: "tunnels",
    codec_type: "HTTP2",
    http2_protocol_options: http2,
    stream_idle_timeout: "0s",
    route_config: { virtual_hosts: hosts },
    http_filters: [{ name: "router", typed_config: { "@type": `${TYPES}.filters.http.router.v3.Router` } }],
  };
  const listener = {
    name: "tunnels",
    address: address("0.0.0.0", plan.ways[0]?.tunnel ?? 0),
    filter_chains: [{ transport_socket: tls("Downstream", plan), filters: [{ name: "http", typed_config: manager }] }],
  };
  return { listeners: [listener], clusters: plan.ways.map(({ name, app }) => cluster(name, "127.0.0.1", app)) };
}

/** The configuration of one end. */
export function envoyConfig(end: "client" | "server", plan: TunnelPlan): unknown {
  return { static_resources: end === "client" ? client(plan) : server(plan) };
}
