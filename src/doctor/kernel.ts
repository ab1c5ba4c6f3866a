import { spawn } from "node:child_process";
import { once } from "node:events";
import { constants } from "node:fs";
import { open } from "node:fs/promises";
import type { Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import { nftRedirector } from "#enrolment";
import {
  connectTcp,
  listenTcp,
  openNetns,
  raiseLoopback,
  runCommand,
  runNft,
  type Netns,
  type SocketAddress,
} from "#linux";
import { voiceOf, type Finding } from "./finding.ts";

const voice = voiceOf("kernel");
const LOOPBACK = "127.0.0.1";
/** RFC 5737: nobody has it. */
const FOREIGN = "192.0.2.1";
const PROXY_MARK = 0x539;
const PROBE_PORT = 9;
const PATIENCE_MS = 10_000;
/** An image may have no shell. */
const IDLE = 'process.stdin.resume(); process.stdout.write("made")';

/** Something that the kernel has to do, tried in a network namespace that is thrown away. */
interface KernelProbe {
  /** As it stands in a sentence. */
  readonly feature: string;
  /** Why it can be done without; undefined: the data path needs it. */
  readonly optional?: string;
  readonly todo: string;
  /** Rejects, saying why, when the kernel cannot. */
  attempt(netns: Netns, clock: Clock): Promise<void>;
}

/** What the data path does, and what it may do. */
const PROBES: readonly KernelProbe[] = [
  {
    feature: "the redirection of a pod's connections (nft, policy routes)",
    todo: "run it as the agent runs (CAP_NET_ADMIN); load nf_tables, nft_redir, nft_ct and nft_chain_nat, or take a kernel that has them; nftables and iproute2 must be installed",
    attempt: async (netns) => {
      raiseLoopback(netns);
      await nftRedirector.install(netns, { inbound: true, dns: true });
    },
  },
  {
    feature: "original destinations of redirected connections (SO_ORIGINAL_DST)",
    todo: "load nf_conntrack and nf_nat, or take a kernel that has them",
    attempt: askOriginalDestination,
  },
  {
    feature: "sockets with the addresses of others (IP_TRANSPARENT) and marks",
    todo: "run it with CAP_NET_ADMIN; a kernel without IP_TRANSPARENT cannot keep the clients' addresses",
    attempt: bindForeignAddress,
  },
  {
    feature: "TUN devices",
    optional: "only an implementation of WireGuard outside the kernel needs them",
    todo: "load tun",
    attempt: async () => (await open("/dev/net/tun", constants.O_RDWR)).close(),
  },
  {
    feature: "WireGuard",
    optional: "only encryption between nodes needs it",
    todo: "load wireguard",
    attempt: (netns) => addWireGuard(netns),
  },
];

/** Tries each in one namespace that nobody else sees. Rejects never. */
export async function examineKernel(clock: Clock): Promise<readonly Finding[]> {
  if (process.getuid?.() !== 0) return [voice.notChecked("only root can try it")];
  try {
    await using scratch = await scratchNamespace();
    const findings: Finding[] = [];
    for (const probe of PROBES) findings.push(await tryProbe(probe, scratch.netns, clock));
    return findings;
  } catch (error) {
    return [
      voice.problem(
        `no network namespace can be made: ${messageOf(error)}`,
        "run it with CAP_SYS_ADMIN; the kernel must have network namespaces",
      ),
    ];
  }
}

async function tryProbe(probe: KernelProbe, netns: Netns, clock: Clock): Promise<Finding> {
  const { feature, optional, todo } = probe;
  try {
    await probe.attempt(netns, clock);
    return voice.ok(`${feature}: works`);
  } catch (error) {
    if (optional !== undefined) return voice.ok(`${feature}: not here; ${optional}`);
    return voice.problem(`${feature}: does not work here: ${messageOf(error)}`, todo);
  }
}

/** A namespace that lasts as long as a process that does nothing, which ends with this one at the latest. */
async function scratchNamespace(): Promise<AsyncDisposable & { readonly netns: Netns }> {
  const child = spawn("unshare", ["--net", process.execPath, "-e", IDLE], { stdio: "pipe" });
  const ended = Promise.withResolvers<never>();
  ended.promise.catch(() => {}); // also when nobody waits any more
  let complaint = "";
  child.stderr.on("data", (part: Buffer) => (complaint = (complaint + part.toString()).slice(0, 1000)));
  child.once("error", ended.reject);
  child.once("close", () => ended.reject(new Error(complaint.trim() || "unshare has ended")));
  const end = async (): Promise<void> => {
    child.stdin.end();
    if (child.exitCode === null && child.signalCode === null) await once(child, "close");
  };
  await Promise.race([once(child.stdout, "data"), ended.promise]);
  const netns = openNetns(`/proc/${child.pid}/ns/net`);
  return {
    netns,
    [Symbol.asyncDispose]: async () => {
      netns[Symbol.dispose]();
      await end();
    },
  };
}

async function askOriginalDestination(netns: Netns, clock: Clock): Promise<void> {
  const accepted = Promise.withResolvers<SocketAddress | undefined>();
  const listener = listenTcp({ netns, ip: LOOPBACK, port: 0 }, (socket) => {
    accepted.resolve(socket.originalDestination());
    socket.close();
  });
  try {
    raiseLoopback(netns);
    await runNft(
      `add table ip veil_probe
add chain ip veil_probe output { type nat hook output priority -101; }
add rule ip veil_probe output tcp dport ${PROBE_PORT} redirect to :${listener.port}
`,
      { netns },
    );
    const client = await connectTcp({ netns, ip: LOOPBACK, port: PROBE_PORT, timeoutMs: PATIENCE_MS, clock });
    const found = await accepted.promise;
    client.close();
    if (found?.port !== PROBE_PORT)
      throw new Error(`a connection to port ${PROBE_PORT} was taken for one to ${found?.port}`);
  } finally {
    listener.stop();
  }
}

async function bindForeignAddress(netns: Netns): Promise<void> {
  listenTcp({ netns, ip: FOREIGN, port: 0, transparent: true, mark: PROXY_MARK }, (socket) => socket.reset()).stop();
}

async function addWireGuard(netns: Netns): Promise<void> {
  const { status, stderr } = await runCommand({
    program: "ip",
    args: ["link", "add", "vt-wg", "type", "wireguard"],
    netns,
  });
  if (status !== 0) throw new Error(stderr.trim());
}
