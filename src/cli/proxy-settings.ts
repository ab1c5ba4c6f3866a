import { InvalidArgumentError } from "commander";

/** Threads from a number, a share of `cpus` (`50%`, rounded up), or 0 for all of them, as upstream's `ZTUNNEL_WORKER_THREADS`. */
export function parseThreads(text: string, cpus: number): number {
  const [, number, percent = ""] = /^(\d{1,4}(?:\.\d+)?)(%?)$/.exec(text) ?? [];
  const value = Number(number);
  if (percent === "%" && value > 0 && value <= 100) return Math.max(1, Math.ceil((cpus * value) / 100));
  if (percent === "" && Number.isInteger(value)) return value === 0 ? cpus : value;
  throw new InvalidArgumentError("It is no whole number and no share such as 50%.");
}

/** Milliseconds from `300ms`, `5s`, `1m30s`, `2h`; a number alone is seconds. */
export function parseDurationMs(text: string): number {
  if (/^\d{1,9}$/.test(text)) return Number(text) * 1000;
  const parts = [...text.matchAll(/(\d{1,9})(ms|s|m|h)/g)];
  const isWhole = parts.length > 0 && parts.map(([part]) => part).join("") === text;
  if (!isWhole) throw new InvalidArgumentError("It is no duration such as 5s or 1m30s.");
  const units: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 };
  return parts.reduce((sum, [, count, unit = ""]) => sum + Number(count) * (units[unit] ?? 0), 0);
}

const DRAIN_MS = 5_000;

/** How long connections may go on at the end when nobody says so: what the pod's grace period (seconds) leaves, where that is known. */
export function drainMsWithin(grace: string | undefined): number {
  if (grace === undefined || !/^\d{1,9}$/.test(grace)) return DRAIN_MS;
  const seconds = Number(grace);
  return 1000 * Math.max(1, seconds > 10 ? seconds - 5 : seconds - 1);
}
