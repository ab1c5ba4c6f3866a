import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Pod, ProxyWorld } from "../../test/netns/proxy-world.ts";
import { inside, must, start } from "./processes.ts";

/** Ports of the applications in each server's pod. */
export const APP_PORTS = { bytes: 5201, http: 8080 } as const;

/** A client's pod and a server's pod on two nodes, with applications in the latter. Plain data: it crosses processes. */
export interface Pair {
  /** Paths of the pods' network namespaces. */
  readonly clientNetns: string;
  readonly serverNetns: string;
  readonly serverIp: string;
}

/** Where handshakes with the server's proxy can be made, and by whom. */
export interface Tunnel {
  /** From where nothing is redirected: the client's node. */
  readonly netns: string;
  readonly port: number;
  /** A file with client certificates: `{ rootsPem, clients: [{ chainPem, keyPem }] }`. */
  readonly identitiesFile: string;
}

/** What one variant offers to the rows of the table. */
export interface Place {
  readonly pairs: readonly Pair[];
  /** Processes that carry the traffic on either side; what they start counts, too. */
  readonly client: readonly number[];
  readonly server: readonly number[];
  readonly tunnel: Tunnel | undefined;
}

/** A world and what variants put into it. */
export interface Site {
  readonly world: ProxyWorld;
  readonly folder: string;
}

/** The path of a pod's namespace. */
export function netnsOf(pod: Pod): string {
  return `/run/netns/vt-proxy-${process.pid}-${pod.node}-${pod.name}`;
}

/** The path of the client's node's namespace. */
export const CLIENT_NODE = `/run/netns/vt-proxy-${process.pid}-a`;

/** Starts the applications of a pair. */
export function startApps({ folder }: Site, client: Pod, server: Pod): Pair {
  const pair = { clientNetns: netnsOf(client), serverNetns: netnsOf(server), serverIp: server.ip };
  for (const netns of [pair.clientNetns, pair.serverNetns]) tune(netns);
  const config = join(folder, `nginx-${server.name}.conf`);
  const here = join(folder, `nginx-${server.name}`);
  must(["mkdir", "-p", here]);
  must(["truncate", "-s", "8G", join(here, "big")]);
  writeFileSync(
    config,
    `daemon off; user root; worker_processes 1; worker_rlimit_nofile 60000; pid ${here}/pid; error_log /dev/null;
     events { worker_connections 30000; }
     http { access_log off; keepalive_requests 1000000000; keepalive_timeout 1h; client_body_temp_path ${here}/b; proxy_temp_path ${here}/p;
       fastcgi_temp_path ${here}/f; uwsgi_temp_path ${here}/u; scgi_temp_path ${here}/s;
       server { listen 0.0.0.0:${APP_PORTS.http} backlog=4096; root ${here}; location = / { return 200 "0123456789abcdef"; } } }`,
  );
  start([...inside(pair.serverNetns), "nginx", "-c", config, "-e", "/dev/null"]);
  start([...inside(pair.serverNetns), "iperf3", "-s", "-p", String(APP_PORTS.bytes)]);
  return pair;
}

/** Many short connections: ports for all of them, and none waits for two minutes before it is used again. */
function tune(netns: string): void {
  const settings = ["net.ipv4.ip_local_port_range=16384 65535", "net.ipv4.tcp_tw_reuse=1"];
  must([...inside(netns), "sysctl", "-qw", ...settings]);
}
