import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { sleep, systemClock } from "#base/clock";
import { resources } from "#kube";
import type { TestCluster } from "./cluster.ts";
import { VEIL_NAMESPACE } from "./veil.ts";

const clock = systemClock();
const LOOK_MS = 200;

/** A line of a proxy's log in JSON, as far as tests read it: something that is said, or the record of a connection (`message`). */
export interface LogLine {
  readonly time: string;
  readonly msg?: string;
  readonly message?: string;
  readonly direction?: "inbound" | "outbound";
  readonly duration?: string;
  readonly error?: string;
  readonly reason?: string;
  readonly deadlineMs?: number;
  readonly "src.workload"?: string;
}

/** What one proxy has written. */
export interface ProxyLog {
  readonly pod: string;
  readonly node: string;
  readonly image: string;
  readonly lines: LogLine[];
}

/**
 * Follows the logs of all proxies that run or come, to their end: Kubernetes removes them with their pods. Ends with its disposal.
 */
export class ProxyLogs implements AsyncDisposable {
  readonly #cluster: TestCluster;
  readonly #logs = new Map<string, ProxyLog>();
  readonly #ends: (() => void)[] = [];
  readonly #over = new AbortController();
  readonly #watching: Promise<void>;

  constructor(cluster: TestCluster) {
    this.#cluster = cluster;
    this.#watching = this.#watch();
  }

  /** Of the proxies of an image that ends with these words. */
  of(tag: string): readonly ProxyLog[] {
    return [...this.#logs.values()].filter(({ image }) => image.endsWith(tag));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#over.abort();
    await this.#watching;
    for (const end of this.#ends) end();
  }

  async #watch(): Promise<void> {
    while (!this.#over.signal.aborted) {
      await this.#look().catch(() => undefined); // an API that does not answer is asked again
      await sleep(clock, LOOK_MS, this.#over.signal).catch(() => undefined); // aborted: the loop ends
    }
  }

  async #look(): Promise<void> {
    const { items } = await this.#cluster.client.list(resources.pods, {
      namespace: VEIL_NAMESPACE,
      labelSelector: "app=ztunnel",
    });
    for (const { metadata, spec, status } of items) {
      const pod = metadata?.name ?? "";
      if (this.#logs.has(pod) || status?.containerStatuses?.[0]?.state?.running === undefined) continue;
      const log: ProxyLog = { pod, node: spec?.nodeName ?? "", image: spec?.containers[0]?.image ?? "", lines: [] };
      this.#logs.set(pod, log);
      this.#follow(log, `/var/log/pods/${VEIL_NAMESPACE}_${pod}_${metadata?.uid}/proxy/0.log`);
    }
  }

  /** The file stays readable for whoever has it open. Each line begins with what the container runtime says of it. */
  #follow({ node, lines }: ProxyLog, file: string): void {
    const follow = [...this.#cluster.node(node).enter, "tail", "-n", "+1", "-f", file];
    const child = spawn("setpriv", ["--pdeathsig", "KILL", ...follow], { stdio: ["ignore", "pipe", "ignore"] });
    this.#ends.push(() => child.kill("SIGKILL"));
    createInterface({ input: child.stdout }).on("line", (line) => {
      const json = line.slice(line.indexOf("{"));
      if (json.startsWith("{") && json.endsWith("}")) lines.push(JSON.parse(json) as LogLine); // our own program's
    });
  }
}

/** When the connection of a record began, milliseconds since the epoch. */
export function startMs({ time, duration = "" }: LogLine): number {
  return Date.parse(time) - Number.parseInt(duration, 10);
}
