import { sleep, type Clock } from "#base/clock";

/** What a member of a streamed object may be: a value, a list, or an object that is made member by member. */
export type StreamedValue =
  | { readonly value: unknown }
  | { readonly list: Iterable<unknown> }
  | { readonly members: Iterable<readonly [name: string, value: unknown]> };

/** Text that is made between two turns of the event loop: about 2 ms of work. */
const CHARACTERS_PER_TURN = 65_536;
/**
 * Rest between two turns. Where the kernel shares processors among groups, the connections of this process pay for what its main thread takes, even
 * at a lower priority.
 */
const REST_MS = 3;

/**
 * A JSON object as text, in parts, one element of a list or an object a line. However large it is, the thread works for less
 * than half of the time, the event loop gets its turn between the parts, and nothing is made before it is asked for.
 */
export async function* streamJson(
  members: readonly (readonly [string, StreamedValue])[],
  clock: Clock,
): AsyncGenerator<string> {
  const rest = async (): Promise<void> => sleep(clock, REST_MS);
  let before = "{\n";
  for (const [name, streamed] of members) {
    yield `${before}${JSON.stringify(name)}: `;
    before = ",\n";
    if ("value" in streamed) yield JSON.stringify(streamed.value) ?? "null";
    else if ("list" in streamed) yield* streamItems({ brackets: "[]", items: streamed.list, format: toText, rest });
    else {
      const format = ([key, value]: readonly [string, unknown]): string => `${JSON.stringify(key)}: ${toText(value)}`;
      yield* streamItems({ brackets: "{}", items: streamed.members, format, rest });
    }
  }
  yield "\n}\n";
}

interface Items<T> {
  readonly brackets: "[]" | "{}";
  readonly items: Iterable<T>;
  readonly format: (item: T) => string;
  readonly rest: () => Promise<void>;
}

async function* streamItems<T>({ brackets, items, format, rest }: Items<T>): AsyncGenerator<string> {
  let text = brackets.slice(0, 1);
  let isEmpty = true;
  for (const item of items) {
    text += `${isEmpty ? "\n" : ",\n"}${format(item)}`;
    isEmpty = false;
    if (text.length < CHARACTERS_PER_TURN) continue;
    yield text;
    text = "";
    await rest();
  }
  yield `${text}${isEmpty ? "" : "\n"}${brackets.slice(1)}`;
}

function toText(value: unknown): string {
  return JSON.stringify(value) ?? "null";
}
