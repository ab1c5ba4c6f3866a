import { createSecureServer } from "node:http2";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { listenTcp } from "#linux";
import { formatSpiffeId } from "#model/spiffe-id";
import { IstioCertificateService } from "#proto";
import { parseCsr } from "#x509";
import type { Pod } from "../../test/netns/proxy-world.ts";
import { envoyConfig } from "./envoy.ts";
import { APP_PORTS, CLIENT_NODE, netnsOf, startApps, type Pair, type Place, type Site, type Tunnel } from "./place.ts";
import { inside, must, start } from "./processes.ts";

/** What is compared: each builds its place in a world of its own. */
export const variants: Readonly<Record<string, (site: Site) => Promise<Place>>> = {
  nothing: async (site) => ({ pairs: onePair(site), client: [], server: [], tunnel: undefined }),
  veil: async (site) => veil(site, { threads: 1 }),
  veil2: async (site) => veil(site, { threads: 2 }),
  ztunnel: async (site) => ztunnel(site, { threads: 2 }),
  ztunnel1: async (site) => ztunnel(site, { threads: 1 }),
  haproxy: async (site) => tunnelled(site, haproxy),
  stunnel: async (site) => tunnelled(site, stunnel),
  envoy: async (site) => tunnelled(site, envoy),
  "node-http2": async (site) => tunnelled(site, nodeHttp2),
};

const HBONE_PORT = 15008;
/** What Veil prefers, given to whoever lets it be chosen: the comparison is of proxies, not of ciphers. */
const SUITE = "TLS_AES_128_GCM_SHA256";
const HANDSHAKE_CLIENTS = 64;

function onePair(site: Site): readonly Pair[] {
  return [startApps(site, site.world.client, site.world.server)];
}

/** Where handshakes are measured, with client certificates of as many identities. */
async function tunnelOf({ world, folder }: Site, port: number): Promise<Tunnel> {
  const ids = Array.from({ length: HANDSHAKE_CLIENTS }, (_, index) =>
    formatSpiffeId({ trustDomain: "cluster.local", namespace: "shop", serviceAccount: `client-${index}` }),
  );
  const clients = await Promise.all(ids.map(async (id) => world.authority.identity(id)));
  const file = join(folder, "identities.json");
  writeFileSync(file, JSON.stringify({ clients }), { mode: 0o600 });
  return { netns: CLIENT_NODE, port, identitiesFile: file };
}

/** `veil proxy` on both nodes as it is shipped: agent, xDS, ZDS, records, metrics. Two threads serve two pods each. */
async function veil(site: Site, { threads }: { threads: number }): Promise<Place> {
  const { world } = site;
  const { a, b, client, plain, server, other } = world;
  const pairs =
    threads === 1
      ? [{ client, server }]
      : [
          { client, server },
          { client: plain, server: other },
        ];
  const pods = pairs.flatMap((pair) => [pair.client, pair.server]);
  world.publish(...pods);
  for (const pod of pods) await world.nodeOf(pod).certify(pod);
  for (const node of [a, b]) {
    node.readsRecords = false;
    await node.startAgent();
  }
  const flags = ["--threads", String(threads), ...(process.env["VEIL_PROXY_FLAGS"]?.split(" ") ?? [])];
  await Promise.all([a.startProxy(...flags), b.startProxy(...flags)]);
  for (const pod of pods) await world.enrol(pod);
  return {
    pairs: pairs.map((pair) => startApps(site, pair.client, pair.server)),
    client: [a.proxyPid],
    server: [b.proxyPid],
    tunnel: await tunnelOf(site, HBONE_PORT),
  };
}

/** ztunnel in dedicated mode in each pod, its workloads from a file, its certificates from an authority of this process. */
async function ztunnel(site: Site, { threads }: { threads: number }): Promise<Place> {
  const { world, folder } = site;
  const { client, server } = world;
  const program = process.env["ZTUNNEL"];
  if (program === undefined) throw new Error("say where ztunnel is: --ztunnel PATH");
  const rootsFile = join(folder, "roots.pem");
  writeFileSync(rootsFile, world.authority.root.pem);
  const file = join(folder, "workloads.yaml");
  const workload = ({ name, ip, node }: Pod): string =>
    `- { uid: Kubernetes//Pod/shop/${name}, name: ${name}, namespace: shop, serviceAccount: ${name}, workloadIps: ["${ip}"], protocol: HBONE, node: ${node}, network: "", services: {} }\n`;
  writeFileSync(file, `workloads:\n${workload(client)}${workload(server)}policies: []\nservices: []\n`);
  const pids: number[] = [];
  for (const pod of [client, server]) {
    await serveCertificates(site, pod);
    const { pid = 0 } = start([...inside(netnsOf(pod)), program, "proxy", "ztunnel"], {
      PROXY_MODE: "dedicated",
      PROXY_WORKLOAD_INFO: `shop/${pod.name}/${pod.name}`,
      NODE_NAME: pod.node,
      XDS_ADDRESS: "",
      LOCAL_XDS_PATH: file,
      CA_ADDRESS: `https://localhost:${CA_PORT}`,
      CA_ROOT_CA: rootsFile,
      AUTH_TOKEN: "none",
      PACKET_MARK: "1337",
      ZTUNNEL_WORKER_THREADS: String(threads),
    });
    pids.push(pid);
    await world.redirect(pod);
  }
  return {
    pairs: onePair(site),
    client: pids.slice(0, 1),
    server: pids.slice(1),
    tunnel: await tunnelOf(site, HBONE_PORT),
  };
}

const CA_PORT = 15012;

/** Istio's certificate service on a pod's loopback: signs what it is asked to. */
async function serveCertificates({ world }: Site, pod: Pod): Promise<void> {
  const { authority } = world;
  const { certificate, keyPair } = await authority.craft({ dnsNames: ["localhost"] });
  const key = keyPair.privateKey.export({ type: "pkcs8", format: "pem" });
  const handler = connectNodeAdapter({
    routes: (router) => {
      router.service(IstioCertificateService, {
        createCertificate: async ({ csr }) => {
          const { publicKeySpki, requestedUris } = parseCsr(csr, "ztunnel's request");
          const { certificate: leaf } = await authority.craft({ uris: requestedUris, publicKeySpki });
          return { certChain: [leaf.pem, authority.intermediate.pem, authority.root.pem] };
        },
      });
    },
  });
  const server = createSecureServer({ cert: certificate.pem + authority.intermediate.pem, key }, handler);
  listenTcp({ netns: pod.netns, ip: "127.0.0.1", port: CA_PORT }, (tcp) => {
    server.emit("connection", tcp.toNetSocket());
  });
}

/** Where a proxy that knows no redirection takes the client's connections, and where its peer listens. */
export interface TunnelPlan {
  readonly folder: string;
  readonly serverIp: string;
  /** One way per application: the port it has, the port its connections are redirected to, and that of the tunnel. */
  readonly ways: readonly {
    readonly name: string;
    readonly app: number;
    readonly local: number;
    readonly tunnel: number;
  }[];
  /** Credentials of both ends: a file with chain and key, and one each. */
  readonly clientPem: string;
  readonly serverPem: string;
  readonly rootsPem: string;
}

/** Commands of the two ends, and the port that handshakes are made with. */
interface TunnelCommands {
  readonly client: readonly string[];
  readonly server: readonly string[];
  readonly handshakePort: number;
}

async function tunnelled(site: Site, make: (plan: TunnelPlan) => TunnelCommands): Promise<Place> {
  const { world, folder } = site;
  const { client, server } = world;
  const [clientPem = "", serverPem = ""] = await Promise.all(
    [client, server].map(async ({ identity, name }) => {
      const { chainPem, keyPem } = await world.authority.identity(identity);
      const file = join(folder, `${name}.pem`);
      writeFileSync(file, chainPem + keyPem, { mode: 0o600 });
      writeFileSync(join(folder, `${name}.chain.pem`), chainPem);
      writeFileSync(join(folder, `${name}.key.pem`), keyPem, { mode: 0o600 });
      return file;
    }),
  );
  const rootsPem = join(folder, "roots.pem");
  writeFileSync(rootsPem, world.authority.root.pem);
  const ways = Object.entries(APP_PORTS).map(([name, app], at) => ({
    name,
    app,
    local: 15_001 + at,
    tunnel: 15_011 + at,
  }));
  const commands = make({ folder, serverIp: server.ip, ways, clientPem, serverPem, rootsPem });
  const redirects = ways.map(
    ({ app, local }) => `add rule inet bench out ip daddr ${server.ip} tcp dport ${app} redirect to :${local}`,
  );
  const chain = "{ type nat hook output priority -100; }";
  const rules = ["add table inet bench", `add chain inet bench out ${chain}`, ...redirects].join("\n");
  const script = join(folder, "redirect.nft");
  writeFileSync(script, rules);
  must([...inside(netnsOf(client)), "nft", "-f", script]);
  const { pid: serverPid = 0 } = start([...inside(netnsOf(server)), ...commands.server]);
  const { pid: clientPid = 0 } = start([...inside(netnsOf(client)), ...commands.client]);
  const tunnel = await tunnelOf(site, commands.handshakePort);
  return { pairs: onePair(site), client: [clientPid], server: [serverPid], tunnel };
}

/** A TLS connection for each connection. */
function haproxy({ folder, serverIp, ways, clientPem, serverPem, rootsPem }: TunnelPlan): TunnelCommands {
  const head = `global\n nbthread 1\n maxconn 9900\n tune.ssl.cachesize 0\n ssl-default-bind-ciphersuites ${SUITE}\n ssl-default-server-ciphersuites ${SUITE}
defaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n`;
  const write = (end: string, sections: readonly string[]): readonly string[] => {
    const file = join(folder, `haproxy-${end}.cfg`);
    writeFileSync(file, head + sections.join(""));
    return ["haproxy", "-db", "-f", file];
  };
  const tls = (pem: string): string => `ssl crt ${pem} ca-file ${rootsPem} verify required`;
  return {
    client: write(
      "client",
      ways.map(
        ({ name, local, tunnel }) =>
          `listen ${name}\n bind 0.0.0.0:${local}\n server peer ${serverIp}:${tunnel} no-ssl-reuse ${tls(clientPem)}\n`,
      ),
    ),
    server: write(
      "server",
      ways.map(
        ({ name, app, tunnel }) =>
          `listen ${name}\n bind 0.0.0.0:${tunnel} ${tls(serverPem)} no-tls-tickets\n server app 127.0.0.1:${app}\n`,
      ),
    ),
    handshakePort: ways.at(-1)?.tunnel ?? 0,
  };
}

/** A TLS connection and a thread for each connection. */
function stunnel({ folder, serverIp, ways, clientPem, serverPem, rootsPem }: TunnelPlan): TunnelCommands {
  const write = (end: string, pem: string, sections: readonly string[]): readonly string[] => {
    const file = join(folder, `stunnel-${end}.conf`);
    const head = `foreground = yes\npid =\ndebug = 0\ncert = ${pem}\nCAfile = ${rootsPem}\nverifyChain = yes\nrequireCert = yes
sslVersion = TLSv1.3\nciphersuites = ${SUITE}\nsocket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n`;
    writeFileSync(file, head + sections.join(""));
    return ["stunnel", file];
  };
  return {
    client: write(
      "client",
      clientPem,
      ways.map(
        ({ name, local, tunnel }) =>
          `[${name}]\nclient = yes\naccept = 0.0.0.0:${local}\nconnect = ${serverIp}:${tunnel}\n`,
      ),
    ),
    server: write(
      "server",
      serverPem,
      ways.map(({ name, app, tunnel }) => `[${name}]\naccept = 0.0.0.0:${tunnel}\nconnect = 127.0.0.1:${app}\n`),
    ),
    handshakePort: ways.at(-1)?.tunnel ?? 0,
  };
}

/** CONNECT over HTTP/2, both ends. */
function envoy(plan: TunnelPlan): TunnelCommands {
  const program = process.env["ENVOY"] ?? "envoy";
  const command = (end: "client" | "server"): readonly string[] => {
    const file = join(plan.folder, `envoy-${end}.json`);
    writeFileSync(file, JSON.stringify(envoyConfig(end, plan)));
    const id = end === "client" ? "1" : "2";
    return [
      program,
      "-c",
      file,
      "--concurrency",
      "2",
      "--base-id",
      `${process.pid}${id}`,
      "-l",
      process.env["DEBUG"] === undefined ? "off" : "info",
    ];
  };
  return { client: command("client"), server: command("server"), handshakePort: plan.ways[0]?.tunnel ?? 0 };
}

/** CONNECT over Node's own HTTP/2, one session. */
function nodeHttp2(plan: TunnelPlan): TunnelCommands {
  const program = new URL("node-http2.ts", import.meta.url).pathname;
  const command = (end: "client" | "server"): readonly string[] => {
    const file = join(plan.folder, `node-http2-${end}.json`);
    writeFileSync(file, JSON.stringify({ ...plan, end }));
    return [process.execPath, program, file];
  };
  return { client: command("client"), server: command("server"), handshakePort: plan.ways[0]?.tunnel ?? 0 };
}
