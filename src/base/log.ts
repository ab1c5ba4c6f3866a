import { pino, type Logger } from "pino";
import { systemClock } from "./clock.ts";

/** A structured logger: constant lower-case messages, facts in fields, never secrets. */
export type Log = Logger;

/** Levels from most to least talkative. */
export const LOG_LEVELS = ["trace", "debug", "info", "warn", "error", "fatal", "silent"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** Bytes of lines that wait until they can be written; further lines are lost, and counted. */
const MAX_WAITING_BYTES = 1024 * 1024;
/** Until the next try, when no further line comes. */
const RETRY_MS = 200;

/** Writes some of the bytes, without waiting for anybody: how many. Throws when nothing can be written now. */
export type WriteNow = (bytes: Uint8Array) => number;

/**
 * The root logger of a process: one JSON object per line, with `role`. A line is written at once; when it cannot be (a full
 * disk, a reader that stalls) it waits, and neither fails whoever logs nor makes them wait.
 * Components get a child of it (`log.child({ component })`) as a constructor argument.
 */
export function createLog(role: string, write: WriteNow, level: LogLevel = "info"): Log {
  const output = new LogOutput(write, (count) => {
    log.warn({ count }, "lines of the log were lost");
  });
  const log = pino(
    {
      base: { role },
      level,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    output,
  );
  return log;
}

/** Lines on their way. */
class LogOutput {
  readonly #write: WriteNow;
  readonly #onLost: (count: number) => void;
  readonly #clock = systemClock({ unref: true });
  readonly #waiting: Uint8Array[] = [];
  #waitingBytes = 0;
  #lost = 0;
  #cancelRetry: (() => void) | undefined;

  /** `onLost` hears how many lines were lost, once lines are taken again. */
  constructor(write: WriteNow, onLost: (count: number) => void) {
    this.#write = write;
    this.#onLost = onLost;
  }

  write(line: string): void {
    if (this.#waitingBytes < MAX_WAITING_BYTES) {
      const bytes = Buffer.from(line);
      this.#waiting.push(bytes);
      this.#waitingBytes += bytes.length;
    } else {
      this.#lost++;
    }
    this.#writeWaiting();
  }

  #writeWaiting(): void {
    this.#cancelRetry?.();
    this.#cancelRetry = undefined;
    try {
      for (let [line] = this.#waiting; line !== undefined; [line] = this.#waiting) {
        const count = this.#write(line);
        this.#waitingBytes -= count;
        if (count < line.length) this.#waiting[0] = line.subarray(count);
        else this.#waiting.shift();
      }
    } catch {
      this.#cancelRetry = this.#clock.after(RETRY_MS, () => this.#writeWaiting());
      return;
    }
    const lost = this.#lost;
    this.#lost = 0;
    if (lost > 0) this.#onLost(lost);
  }
}

/** A logger that says nothing, for tests. */
export function silentLog(): Log {
  return pino({ level: "silent" });
}

/** Scopes that may have a level of their own. */
const MAX_SCOPES = 64;
const SCOPE = /^[\w.:-]{1,100}$/;

/**
 * The levels of a process's logger and of its scopes (components, by name), which can be changed while it runs by
 * directives as upstream's proxies take them: `debug`, or `xds=debug,access=off,info`.
 */
export class LogScopes {
  readonly #root: Log;
  readonly #initial: string;
  readonly #children = new Map<string, Log>();
  readonly #levels = new Map<string, string>();
  readonly #listeners = new Set<() => void>();

  constructor(root: Log) {
    this.#root = root;
    this.#initial = root.level;
  }

  /** The logger of a component; asked for once per name. */
  child(component: string): Log {
    const child = this.#root.child({ component });
    child.level = this.level(component);
    this.#children.set(component, child);
    return child;
  }

  /** The level in force for a scope. */
  level(scope: string): string {
    return this.#levels.get(scope) ?? this.#root.level;
  }

  /**
   * Puts directives in force on top of those before: a level alone is everybody's who has none of its own, `scope=level` or
   * `scope:level` that scope's. With `reset` they replace all those before. Returns what is wrong with them, in which case
   * nothing has changed.
   */
  change(directives: string, options: { readonly reset?: boolean } = {}): string | undefined {
    const parsed = directives.split(",").map((directive) => parseDirective(directive.trim()));
    const wrong = parsed.find((one) => typeof one === "string");
    if (wrong !== undefined) return wrong;
    const good = parsed.filter((one) => typeof one !== "string");
    const before = options.reset === true ? [] : this.#levels.keys();
    const scopes = new Set([...before, ...good.flatMap(({ scope }) => scope ?? [])]);
    if (scopes.size > MAX_SCOPES) return `at most ${MAX_SCOPES} scopes have a level of their own`;
    if (options.reset === true) this.#restore();
    for (const { scope, level } of good) {
      if (scope === undefined) this.#root.level = level;
      else this.#levels.set(scope, level);
    }
    this.#apply();
    return undefined;
  }

  /** Back to what the process was started with. */
  reset(): void {
    this.#restore();
    this.#apply();
  }

  /** Calls `listener` after each change. */
  onChange(listener: () => void): void {
    this.#listeners.add(listener);
  }

  /** The levels as directives that would make them so. */
  format(): string {
    const named = [...this.#levels].map(([scope, level]) => `${scope}=${wordOf(level)}`);
    return [...named, wordOf(this.#root.level)].join(",");
  }

  #restore(): void {
    this.#root.level = this.#initial;
    this.#levels.clear();
  }

  #apply(): void {
    for (const [component, child] of this.#children) child.level = this.level(component);
    for (const listener of this.#listeners) listener();
  }
}

function parseDirective(text: string): { readonly scope: string | undefined; readonly level: string } | string {
  const [, scope, word = ""] = /^(?:(.*)[=:])?(\w*)$/.exec(text) ?? [];
  const level = word === "off" ? "silent" : word;
  if (!LOG_LEVELS.some((known) => known === level)) return `"${text}" has no level: ${WORDS.join(", ")}`;
  if (scope !== undefined && !SCOPE.test(scope)) return `"${text}" names no scope`;
  return { scope, level };
}

const WORDS = LOG_LEVELS.map(wordOf);

/** Upstream's word for silence. */
function wordOf(level: string): string {
  return level === "silent" ? "off" : level;
}
