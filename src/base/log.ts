import { pino, type Logger } from "pino";

/** A structured logger: constant lower-case messages, facts in fields, never secrets. */
export type Log = Logger;

/** Levels from most to least talkative. */
export const LOG_LEVELS = ["trace", "debug", "info", "warn", "error", "fatal", "silent"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/**
 * The root logger of a process: one JSON object per line on standard error, with `role`.
 * Components get a child of it (`log.child({ component })`) as a constructor argument.
 */
export function createLog(role: string, level: LogLevel = "info"): Log {
  return pino(
    {
      base: { role },
      level,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    pino.destination({ dest: 2, sync: true }),
  );
}

/** A logger that says nothing, for tests. */
export function silentLog(): Log {
  return pino({ level: "silent" });
}
