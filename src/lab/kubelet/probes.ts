import { connect } from "node:net";
import { request as httpRequest } from "node:http";
import { request as httpsRequest } from "node:https";
import type { Container } from "#kube";
import { deadline, sleep, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";

export type Probe = NonNullable<Container["readinessProbe"]>;

/** What a probe needs of its pod. */
export interface ProbeTarget {
  readonly ip: string;
  readonly container: Container;
  /** Runs a command in the container; resolves with its exit code. */
  exec(command: readonly string[], signal: AbortSignal): Promise<number>;
}

/** A verdict that a threshold has brought. */
export interface ProbeReport {
  readonly ok: boolean;
  readonly message: string;
}

/** Counts answers against the thresholds of a probe. */
export class ProbeJudge {
  readonly #probe: Probe;
  #row = 0;
  #rowOk = false;
  verdict: boolean | undefined;

  constructor(probe: Probe) {
    this.#probe = probe;
  }

  /**
   * Takes one answer (why it failed, or undefined); returns a verdict when it changes the one before.
   * `starting`: failures do not count yet.
   */
  add(failure: string | undefined, starting: boolean): ProbeReport | undefined {
    const ok = failure === undefined;
    this.#row = ok === this.#rowOk ? this.#row + 1 : 1;
    this.#rowOk = ok;
    const { successThreshold = 1, failureThreshold = 3 } = this.#probe;
    const reached = ok ? this.#row >= successThreshold : !starting && this.#row >= failureThreshold;
    if (!reached || this.verdict === ok) return undefined;
    this.verdict = ok;
    return { ok, message: failure ?? "" };
  }
}

/** Until its first verdict a probe is asked this soon again, then ever slower up to its period: a start must not wait. */
const EAGER_MS = 10;
const EAGER_FACTOR = 1.5;

/** Asks a probe until the signal aborts; `report` is called when the verdict changes. */
export async function runProbe(
  probe: Probe,
  target: ProbeTarget,
  options: { clock: Clock; signal: AbortSignal; report: (verdict: ProbeReport) => void },
): Promise<void> {
  const { clock, signal, report } = options;
  const periodMs = Math.max(1, probe.periodSeconds ?? 10) * 1000;
  const judge = new ProbeJudge(probe);
  let delayMs = EAGER_MS;
  await pause(clock, (probe.initialDelaySeconds ?? 0) * 1000, signal);
  // Eager questions are no failures: a verdict "not ready" takes as long as with the probe's own period.
  const startingEndMs = clock.monotonic() + periodMs * Math.max(0, (probe.failureThreshold ?? 3) - 1);
  while (!signal.aborted) {
    const failure = await askOnce(probe, target, { clock, signal });
    if (signal.aborted) return;
    const verdict = judge.add(failure, judge.verdict === undefined && clock.monotonic() < startingEndMs);
    if (verdict !== undefined) report(verdict);
    delayMs = judge.verdict === undefined ? Math.min(periodMs, delayMs * EAGER_FACTOR) : periodMs;
    await pause(clock, delayMs, signal);
  }
}

async function pause(clock: Clock, delayMs: number, signal: AbortSignal): Promise<void> {
  await sleep(clock, delayMs, signal).catch(() => undefined); // aborted: the caller looks
}

/** Asks once. Resolves with why it failed, or with undefined. */
async function askOnce(
  probe: Probe,
  target: ProbeTarget,
  options: { clock: Clock; signal: AbortSignal },
): Promise<string | undefined> {
  const limit = deadline(options.clock, (probe.timeoutSeconds ?? 1) * 1000, {
    reason: new Error("no answer in time"),
    parent: options.signal,
  });
  try {
    await ask(probe, target, limit.signal);
    return undefined;
  } catch (error) {
    return messageOf(limit.signal.aborted ? limit.signal.reason : error);
  } finally {
    limit.clear();
  }
}

async function ask(probe: Probe, target: ProbeTarget, signal: AbortSignal): Promise<void> {
  if (probe.exec !== undefined) {
    const code = await target.exec(probe.exec.command ?? [], signal);
    if (code !== 0) throw new Error(`the command ended with ${code}`);
  } else if (probe.tcpSocket !== undefined) {
    const { host = target.ip, port } = probe.tcpSocket;
    await dial(host, portNumber(target.container, port), signal);
  } else if (probe.httpGet !== undefined) {
    await httpGet(probe.httpGet, target, signal);
  } else {
    throw new Error("a probe needs exec, tcpSocket or httpGet");
  }
}

/** A port given by number, or by the name that the container gives it. */
function portNumber(container: Container, port: number | string): number {
  const number = typeof port === "number" ? port : Number(port);
  if (Number.isInteger(number)) return number;
  const named = container.ports?.find(({ name }) => name === port)?.containerPort;
  if (named === undefined) throw new Error(`the container has no port called ${port}`);
  return named;
}

function dial(host: string, port: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host, port });
    const end = (settle: () => void) => (): void => {
      signal.removeEventListener("abort", onAbort);
      socket.destroy();
      settle();
    };
    const onAbort = end(() => reject(signal.reason));
    signal.addEventListener("abort", onAbort, { once: true });
    socket.once("connect", end(resolve));
    socket.once("error", (error) => end(() => reject(error))());
  });
}

function httpGet(get: NonNullable<Probe["httpGet"]>, target: ProbeTarget, signal: AbortSignal): Promise<void> {
  const { host = target.ip, path = "/", scheme = "HTTP", httpHeaders = [] } = get;
  const port = portNumber(target.container, get.port);
  const headers = Object.fromEntries(httpHeaders.map(({ name, value }) => [name, value]));
  const options = { host, port, path, headers: { "user-agent": "kube-probe/veil", ...headers }, signal, agent: false };
  return new Promise((resolve, reject) => {
    const request = scheme === "HTTPS" ? httpsRequest({ ...options, rejectUnauthorized: false }) : httpRequest(options);
    request.once("response", (response) => {
      response.resume();
      const status = response.statusCode ?? 500;
      request.destroy();
      if (status >= 200 && status < 400) resolve();
      else reject(new Error(`HTTP status ${status}`));
    });
    request.once("error", reject);
    request.end();
  });
}
