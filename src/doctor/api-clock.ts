import { request } from "node:https";
import type { Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import { LEAF_BACKDATE_MS } from "#ca";
import type { KubeConfig } from "#kube";
import { voiceOf, type Finding } from "./finding.ts";

const voice = voiceOf("clock");
/** Beyond it something is wrong with how the clock is kept; beyond the certificates' backdating, they are refused. */
const WARNING_MS = 5000;
/** The header has no fractions. */
const HEADER_STEP_MS = 1000;

/** What the API server's clock said, and this one's before and after. */
export interface ClockReading {
  readonly beforeMs: number;
  readonly serverMs: number;
  readonly afterMs: number;
}

/** Asks the API server for the time. Any answer has it: no right is needed. */
export async function examineClock(config: KubeConfig, clock: Clock, signal: AbortSignal): Promise<readonly Finding[]> {
  try {
    return [checkClock(await readClock(config, clock, signal))];
  } catch (error) {
    return [
      voice.notChecked(`the API server does not say the time: ${messageOf(signal.aborted ? signal.reason : error)}`),
    ];
  }
}

/** Whether this clock is right enough, as far as can be said from one answer. */
export function checkClock({ beforeMs, serverMs, afterMs }: ClockReading): Finding {
  const behindMs = Math.max(serverMs - afterMs, 0);
  const aheadMs = Math.max(beforeMs - (serverMs + HEADER_STEP_MS), 0);
  const offMs = Math.max(behindMs, aheadMs);
  const what = `this node's clock is ${Math.round(offMs / 1000)} s ${behindMs > 0 ? "behind" : "ahead of"} the API server's`;
  const todo = "let both take the time from the same servers (chrony, systemd-timesyncd)";
  if (offMs > LEAF_BACKDATE_MS) return voice.problem(`${what}: certificates are not valid yet, or not any more`, todo);
  if (offMs > WARNING_MS) return voice.warning(what, todo);
  return voice.ok("this node's clock and the API server's agree");
}

function readClock(config: KubeConfig, clock: Clock, signal: AbortSignal): Promise<ClockReading> {
  const { caPem, insecureSkipTlsVerify, tlsServerName } = config;
  const tls = {
    rejectUnauthorized: !insecureSkipTlsVerify,
    ...(caPem === undefined ? {} : { ca: caPem }),
    ...(tlsServerName === undefined ? {} : { servername: tlsServerName }),
  };
  return new Promise((resolve, reject) => {
    let beforeMs = clock.now();
    const asked = request(new URL("/version", config.server), { ...tls, agent: false, signal }, (answer) => {
      const afterMs = clock.now();
      const serverMs = Date.parse(answer.headers.date ?? "");
      answer.resume();
      if (Number.isNaN(serverMs)) reject(new Error("its answer has no date"));
      else resolve({ beforeMs, serverMs, afterMs });
    });
    asked.on("error", reject);
    asked.on("socket", (socket) => socket.once("secureConnect", () => (beforeMs = clock.now())));
    asked.end();
  });
}
