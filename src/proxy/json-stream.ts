import { setImmediate as turn } from "node:timers/promises";

/** What a member of a streamed object may be: a value, a list, or an object that is made member by member. */
export type StreamedValue =
  | { readonly value: unknown }
  | { readonly list: Iterable<unknown> }
  | { readonly members: Iterable<readonly [name: string, value: unknown]> };

/** Text that is made between two turns of the event loop: about 2 ms of work. */
const CHARACTERS_PER_TURN = 65_536;

/**
 * A JSON object as text, in parts, one element of a list or an object a line. However large it is, the event loop gets its
 * turn between the parts, and nothing is made before it is asked for.
 */
export async function* streamJson(members: readonly (readonly [string, StreamedValue])[]): AsyncGenerator<string> {
  let before = "{\n";
  for (const [name, streamed] of members) {
    yield `${before}${JSON.stringify(name)}: `;
    before = ",\n";
    if ("value" in streamed) yield JSON.stringify(streamed.value) ?? "null";
    else if ("list" in streamed) yield* streamItems("[]", streamed.list, toText);
    else yield* streamItems("{}", streamed.members, ([key, value]) => `${JSON.stringify(key)}: ${toText(value)}`);
  }
  yield "\n}\n";
}

async function* streamItems<T>(
  brackets: "[]" | "{}",
  items: Iterable<T>,
  format: (item: T) => string,
): AsyncGenerator<string> {
  let text = brackets.slice(0, 1);
  let isEmpty = true;
  for (const item of items) {
    text += `${isEmpty ? "\n" : ",\n"}${format(item)}`;
    isEmpty = false;
    if (text.length < CHARACTERS_PER_TURN) continue;
    yield text;
    text = "";
    await turn();
  }
  yield `${text}${isEmpty ? "" : "\n"}${brackets.slice(1)}`;
}

function toText(value: unknown): string {
  return JSON.stringify(value) ?? "null";
}
