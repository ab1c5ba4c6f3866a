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
  let before = "{\n";
  for (const [name, streamed] of members) {
    yield `${before}${JSON.stringify(name)}: `;
    before = ",\n";
    for (const part of partsOf(streamed)) {
      yield part;
      if (part.length >= CHARACTERS_PER_TURN) await sleep(clock, REST_MS);
    }
  }
  yield "\n}\n";
}

function partsOf(streamed: StreamedValue): Iterable<string> {
  if ("value" in streamed) return [toText(streamed.value)];
  if ("list" in streamed) return streamItems("[]", streamed.list, toText);
  return streamItems("{}", streamed.members, ([key, value]) => `${JSON.stringify(key)}: ${toText(value)}`);
}

function* streamItems<T>(brackets: "[]" | "{}", items: Iterable<T>, format: (item: T) => string): Generator<string> {
  let text = brackets.slice(0, 1);
  let isEmpty = true;
  for (const item of items) {
    text += `${isEmpty ? "\n" : ",\n"}${format(item)}`;
    isEmpty = false;
    if (text.length < CHARACTERS_PER_TURN) continue;
    yield text;
    text = "";
  }
  yield `${text}${isEmpty ? "" : "\n"}${brackets.slice(1)}`;
}

function toText(value: unknown): string {
  return JSON.stringify(value) ?? "null";
}
