import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { systemClock } from "#base/clock";
import { parseIp } from "#base/ip";
import { silentLog } from "#base/log";
import { CellSet } from "#base/metrics";
import { systemRandom } from "#base/random";
import { CniInstaller, cniMetrics, CniServer } from "#cni";
import { DEFAULT_TIMES, Enrolment, enrolmentMetrics, nftRedirector } from "#enrolment";
import { openNetns } from "#linux";
import { formatSpiffeId } from "#model/spiffe-id";
import { testWorkload } from "../../src/proxy/testing.ts";
import { ensureCniPlugin } from "../../tools/cni-plugin.ts";
import { ensureCnitool } from "../../tools/test-programs.ts";
import { run as execute, type Outcome } from "./harness.ts";
import { listen, netnsPath, ProxyWorld, run, type Pod } from "./proxy-world.ts";

const ADDRESS = "10.201.1.50";
const POD = "a-starting";
const NETWORK = "pods";
/** Path of the namespace of the pod that starts. */
export const STARTING = netnsPath(POD);
const ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=starting;K8S_POD_UID=uid-starting";

/** A configuration of Debian's bridge and host-local, into which the installer has chained Veil's plugin, or not. */
export type Chain = "with" | "without";

/** A world whose node `a` starts pods as a container runtime does: with the CNI project's own tool, one pod at a time. */
export class CniWorld implements AsyncDisposable {
  readonly proxies: ProxyWorld;
  readonly #cnitool: string;
  readonly #enrolment: Enrolment;
  readonly #server: CniServer;
  readonly #installer: CniInstaller;
  #starting: Pod | undefined;

  /** `server` of the world answers on port 8080 with `heard` and what it heard. */
  static async create(): Promise<CniWorld> {
    const [cnitool, plugin] = await Promise.all([ensureCnitool(), ensureCniPlugin()]);
    const world = new CniWorld(await ProxyWorld.createEnrolled(), { cnitool, plugin });
    listen(world.proxies.server, 8080, (socket) => {
      let heard = "";
      socket.on("data", (part) => (heard += part.toString()));
      socket.on("end", () => socket.end(`heard ${heard}`));
    });
    writeNetworks(world.proxies.folder);
    await world.#installer.start(new AbortController().signal);
    await world.#enrolment.synced();
    await world.startAgent();
    return world;
  }

  private constructor(proxies: ProxyWorld, programs: { readonly cnitool: string; readonly plugin: string }) {
    this.proxies = proxies;
    this.#cnitool = programs.cnitool;
    const handed = (): Pod => this.#starting ?? proxies.plain;
    const enrolment = new Enrolment({
      zds: {
        open: () => undefined,
        declare: () => undefined,
        add: () => proxies.a.handOver(handed()),
        remove: () => proxies.a.takeBack(handed()),
      },
      redirector: nftRedirector,
      probes: {
        declare: () => undefined,
        allow: () => Promise.resolve(),
        forbid: () => Promise.resolve(),
        write: () => Promise.resolve(),
      },
      finder: { find: () => undefined },
      announcer: { announce: () => Promise.resolve(), confirmPlain: () => Promise.resolve([]) },
      controllerReachable: () => true,
      clock: systemClock(),
      random: systemRandom,
      log: silentLog(),
      cells: new CellSet(enrolmentMetrics),
      times: DEFAULT_TIMES,
      dnsCapture: true,
    });
    this.#enrolment = enrolment;
    const host = {
      add: enrolment.enrolStarting.bind(enrolment),
      check: enrolment.checkStarted.bind(enrolment),
      pending: () => [],
    };
    const path = join(proxies.folder, "cni.sock");
    const shared = { log: silentLog(), cells: new CellSet(cniMetrics) };
    this.#server = new CniServer({ path, host, ...shared });
    this.#installer = new CniInstaller({
      confDir: join(proxies.folder, "with"),
      binDir: join(proxies.folder, "bin"),
      plugin: programs.plugin,
      entry: { socket: path, namespace: "veil-system", strict: false, credentials: undefined },
      credentials: () => Promise.resolve(""),
      clock: systemClock(),
      ...shared,
    });
  }

  async startAgent(): Promise<void> {
    await this.#server.start(new AbortController().signal);
  }

  async stopAgent(): Promise<void> {
    await this.#server.drain(0);
  }

  /** A pod that has a namespace, and nothing in it yet; the API knows it, with these labels. */
  async makeStarting(labels: Readonly<Record<string, string>>): Promise<Pod> {
    const { a, b } = this.proxies;
    run("ip", "netns", "add", STARTING.replace("/run/netns/", ""));
    const [uid, name] = ["uid-starting", "starting"];
    const made: Pod = {
      name,
      uid,
      node: "a",
      ip: ADDRESS,
      ip6: "",
      netns: openNetns(STARTING),
      identity: formatSpiffeId({ trustDomain: "cluster.local", namespace: "shop", serviceAccount: name }),
      workload: (tunnelProtocol) =>
        testWorkload(name, ADDRESS, { tunnelProtocol, node: "a", addresses: [parseIp(ADDRESS)] }),
    };
    await a.certify(made);
    for (const node of [a, b]) await node.impose([made.workload("none")]);
    this.#starting = made;
    const facts = { serviceAccount: name, hostNetwork: false, phase: "Pending", annotations: {} };
    this.#enrolment.upsertPod({ uid, name, namespace: "shop", labels, ...facts });
    return made;
  }

  /** Ends that pod, however far it has come. */
  async removeStarting(): Promise<void> {
    this.#enrolment.removePod("uid-starting");
    if (this.#starting === undefined) return;
    await this.cni("del", "without"); // gives the address back
    await this.proxies.a.takeBack(this.#starting);
    this.#starting.netns[Symbol.dispose]();
    this.#starting = undefined;
    run("ip", "netns", "del", STARTING.replace("/run/netns/", ""));
  }

  /** Runs the CNI project's tool on node a. */
  async cni(command: "add" | "check" | "del", chain: Chain): Promise<Outcome> {
    const { folder } = this.proxies;
    const env = {
      NETCONFPATH: join(folder, chain),
      CNI_PATH: `/usr/lib/cni:${join(folder, "bin")}`,
      CNI_ARGS: ARGS,
      CNI_IFNAME: "eth0",
    };
    return execute(["nsenter", `--net=${netnsPath("a")}`, this.#cnitool, command, NETWORK, STARTING], { env });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.removeStarting();
    await this.stopAgent();
    await this.#installer.drain(0);
    await this.#enrolment.drain(0);
    await this.proxies[Symbol.asyncDispose]();
  }
}

/** The same network in two folders. */
function writeNetworks(folder: string): void {
  const ranges = [[{ subnet: "10.201.1.0/24", rangeStart: ADDRESS, rangeEnd: ADDRESS, gateway: "10.201.1.1" }]];
  const ipam = { type: "host-local", dataDir: join(folder, "ipam"), ranges, routes: [{ dst: "0.0.0.0/0" }] };
  const network = { cniVersion: "1.0.0", name: NETWORK, plugins: [{ type: "bridge", bridge: "pods", ipam }] };
  mkdirSync(join(folder, "bin"));
  for (const chain of ["with", "without"] satisfies Chain[]) {
    mkdirSync(join(folder, chain));
    writeFileSync(join(folder, chain, "10-pods.conflist"), JSON.stringify(network));
  }
}
