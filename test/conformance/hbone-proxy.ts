/**
 * One proxy of tunnels without what surrounds it, as a process: `client` takes plain connections on a port and sends each through a
 * tunnel to one target, `server` takes tunnels and connects to the target. Started by `hbone-integrity.test.ts`.
 */
import { readFileSync } from "node:fs";
import { systemClock } from "#base/clock";
import { messageOf } from "#base/errors";
import { findHostPort, formatHostPort } from "#base/ip";
import { systemRandom } from "#base/random";
import { HbonePool, HboneServer, type InboundTunnel } from "#hbone";
import { connectTcp, listenTcp, useSocketPath } from "#linux";
import type { SpiffeId } from "#model/spiffe-id";
import type { TlsIdentity } from "#model/tls-identity";

interface Setup {
  readonly role: "client" | "server";
  readonly path: "handles" | "public";
  readonly listen: number;
  /** Client: the server proxy's port. */
  readonly peerPort: number;
  /** Where connections end: `ip:port`. */
  readonly target: string;
  readonly identity: TlsIdentity;
  readonly accepted: readonly SpiffeId[];
}

const setup = JSON.parse(readFileSync(process.argv[2] ?? "", "utf8")) as Setup; // written by the test
const clock = systemClock();
useSocketPath(setup.path);

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

async function serve(tunnel: InboundTunnel): Promise<void> {
  const { host = "", port = 0 } = findHostPort(tunnel.authority) ?? {};
  try {
    const socket = await connectTcp({ ip: host, port, timeoutMs: 60_000, clock });
    tunnel.accept(socket, { onEnd: () => {} });
  } catch {
    tunnel.refuse(503);
  }
}

if (setup.role === "server") {
  const server = new HboneServer({
    ip: "127.0.0.1",
    port: setup.listen,
    certificate: () => setup.identity,
    clock,
    onTunnel: (tunnel) => {
      void serve(tunnel);
    },
    onRejected: ({ error }) => {
      say(`rejected: ${messageOf(error)}`);
    },
  });
  server.start();
} else {
  const pool = new HbonePool({ clock, random: systemRandom, certificate: () => setup.identity });
  listenTcp({ ip: "127.0.0.1", port: setup.listen }, (socket) => {
    const { remote } = socket;
    pool.open({
      source: setup.identity.id,
      accepted: setup.accepted,
      ip: "127.0.0.1",
      port: setup.peerPort,
      authority: setup.target,
      headers: {
        baggage: "k8s.cluster.name=Kubernetes,k8s.namespace.name=bench,k8s.pod.name=client,service.name=client",
        forwarded: `for="${formatHostPort(remote.ip, remote.port)}"`,
      },
      socket,
      onEnd: ({ error }) => {
        // Load generators end their connections by resets.
        if (error !== undefined && !["LINUX_SOCKET", "HBONE_STREAM_RESET"].includes(error.code))
          say(`tunnel: ${messageOf(error)}`);
      },
    });
  });
}
say("ready");
