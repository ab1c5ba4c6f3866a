import { pino, type Logger } from "pino";

/** A structured logger: constant lower-case messages, facts in fields, never secrets. */
export type Log = Logger;

/** Levels from most to least talkative. */
export const LOG_LEVELS = ["trace", "debug", "info", "warn", "error", "fatal", "silent"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** Bytes of lines that wait for a full disk to have room; further lines are lost. */
const MAX_WAITING_BYTES = 1024 * 1024;

/**
 * The root logger of a process: one JSON object per line on standard error, with `role`. A line that cannot be written
 * waits for the next one, and never fails whoever writes it.
 * Components get a child of it (`log.child({ component })`) as a constructor argument.
 */
export function createLog(role: string, level: LogLevel = "info"): Log {
  const destination = pino.destination({ dest: 2, sync: true, maxLength: MAX_WAITING_BYTES });
  destination.on("error", () => undefined); // unheard, it would be thrown at whoever logs
  return pino(
    {
      base: { role },
      level,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    destination,
  );
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
