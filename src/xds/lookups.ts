import type { CachedResource } from "./cache.ts";
import { fail } from "./errors.ts";

/** Questions for single resources that may wait at once; further ones are refused. */
const MAX_LOOKUPS = 4096;

/** What a response said, after its receiver took it. */
export interface Outcome {
  readonly accepted: readonly CachedResource[];
  readonly rejected: readonly { readonly name: string; readonly aliases: readonly string[]; readonly reason: string }[];
  readonly removed: readonly string[];
}

interface Question {
  readonly typeUrl: string;
  readonly name: string;
}

interface Lookup extends Question {
  waiting: number;
  readonly answer: PromiseWithResolvers<CachedResource | undefined>;
}

/**
 * The open questions of a client, by type and name. One question on the wire, however many callers wait for it; when
 * the last of them leaves, it is taken back.
 */
export class Lookups {
  readonly #wire: { ask(typeUrl: string, name: string): void; release(typeUrl: string, name: string): void };
  readonly #open = new Map<string, Lookup>();
  #closed = false;

  constructor(wire: { ask(typeUrl: string, name: string): void; release(typeUrl: string, name: string): void }) {
    this.#wire = wire;
  }

  /** The names of a type that are asked for: to be asked again on a new stream. */
  names(typeUrl: string): readonly string[] {
    return [...this.#open.values()].filter((lookup) => lookup.typeUrl === typeUrl).map((lookup) => lookup.name);
  }

  async find(question: Question, signal: AbortSignal): Promise<CachedResource | undefined> {
    if (signal.aborted || this.#closed) throw noAnswer(question.name, signal.reason);
    const lookup = this.#join(question);
    const left = Promise.withResolvers<never>();
    const onAbort = (): void => left.reject(noAnswer(question.name, signal.reason));
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      return await Promise.race([lookup.answer.promise, left.promise]);
    } finally {
      signal.removeEventListener("abort", onAbort);
      this.#leave(lookup);
    }
  }

  /** Gives the questions that a response answers their answers. Resources come before removals. */
  answer(typeUrl: string, { accepted, rejected, removed }: Outcome): void {
    if (this.#open.size === 0) return;
    for (const resource of accepted) {
      for (const name of [resource.name, ...resource.aliases]) {
        this.#take(typeUrl, name)?.answer.resolve(resource);
      }
    }
    for (const { name, aliases, reason } of rejected) {
      for (const asked of [name, ...aliases]) {
        this.#take(typeUrl, asked)?.answer.reject(fail("XDS_REJECTED", `"${name}" was refused: ${reason}`));
      }
    }
    for (const name of removed) {
      const lookup = this.#take(typeUrl, name);
      if (lookup === undefined) continue;
      lookup.answer.resolve(undefined);
      this.#wire.release(typeUrl, name); // nobody needs to hear when it appears: whoever wants it asks again
    }
  }

  /** Ends all questions without an answer and takes no new ones. */
  close(): void {
    this.#closed = true;
    for (const lookup of this.#open.values()) lookup.answer.reject(noAnswer(lookup.name, "the client stops"));
    this.#open.clear();
  }

  #join(question: Question): Lookup {
    const key = `${question.typeUrl} ${question.name}`;
    let lookup = this.#open.get(key);
    if (lookup === undefined) {
      if (this.#open.size >= MAX_LOOKUPS) {
        throw fail(
          "XDS_TOO_MANY_LOOKUPS",
          `"${question.name}" is not looked up: ${MAX_LOOKUPS} questions wait already`,
        );
      }
      lookup = { ...question, waiting: 0, answer: Promise.withResolvers() };
      lookup.answer.promise.catch(() => undefined); // whoever waits sees it; it may come when nobody does any more
      this.#open.set(key, lookup);
      this.#wire.ask(question.typeUrl, question.name);
    }
    lookup.waiting++;
    return lookup;
  }

  #leave(lookup: Lookup): void {
    lookup.waiting--;
    const key = `${lookup.typeUrl} ${lookup.name}`;
    if (lookup.waiting > 0 || this.#open.get(key) !== lookup) return;
    this.#open.delete(key);
    this.#wire.release(lookup.typeUrl, lookup.name);
  }

  #take(typeUrl: string, name: string): Lookup | undefined {
    const key = `${typeUrl} ${name}`;
    const lookup = this.#open.get(key);
    this.#open.delete(key);
    return lookup;
  }
}

function noAnswer(name: string, cause: unknown): Error {
  return fail("XDS_NO_ANSWER", `nobody said in time what "${name}" is`, { cause, details: { name } });
}
