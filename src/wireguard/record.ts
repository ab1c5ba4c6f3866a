import type { Slot } from "./slots.ts";

/** A slot's key as its node publishes it. */
export interface SlotKey {
  /** Of the cluster; a key of generation *g* is in slot *g mod 2*. */
  readonly generation: number;
  /** 32 bytes in base64. */
  readonly publicKey: string;
  readonly port: number;
}

/** What a node publishes of itself: the keys of its slots, and the generation on which it sends to all its peers. */
export interface NodeRecord {
  readonly keys: Readonly<Record<Slot, SlotKey | undefined>>;
  readonly sending: number;
}

/** Public key of slot 0, whose port everybody knows: what other software reads. Cilium's name. */
export const KEY_ANNOTATION = "network.cilium.io/wg-pub-key";
/** Both slots, with generation and port, as JSON. */
export const RECORD_ANNOTATION = "veil.dev/wireguard";

/** Longer texts are refused unread. */
const MAX_RECORD_CHARACTERS = 2048;

/** Writes {@link RECORD_ANNOTATION}. */
export function formatRecord({ keys, sending }: NodeRecord): string {
  const slots = ([0, 1] as const).flatMap((slot) => {
    const key = keys[slot];
    return key === undefined ? [] : [{ slot, ...key }];
  });
  return JSON.stringify({ slots, sending });
}

/** Reads {@link RECORD_ANNOTATION}; a text is what is wrong with it. Whether the keys can be used is not looked at. */
export function parseRecord(text: string): NodeRecord | string {
  if (text.length > MAX_RECORD_CHARACTERS) return `is longer than ${MAX_RECORD_CHARACTERS} characters`;
  const { slots, sending } = fieldsOf(findJson(text));
  if (!Array.isArray(slots) || slots.length === 0) return "has no list of slots";
  if (!isGeneration(sending)) return "has no generation on which the node sends";
  const keys: Record<Slot, SlotKey | undefined> = { 0: undefined, 1: undefined };
  for (const entry of slots) {
    const key = parseKey(entry);
    if (typeof key === "string") return key;
    if (keys[key.slot] !== undefined) return `names slot ${key.slot} twice`;
    keys[key.slot] = { generation: key.generation, publicKey: key.publicKey, port: key.port };
  }
  if (keys[0]?.port === keys[1]?.port) return "has one port for both slots";
  return { keys, sending };
}

function parseKey(entry: unknown): (SlotKey & { readonly slot: Slot }) | string {
  const { slot, generation, publicKey, port } = fieldsOf(entry);
  if (slot !== 0 && slot !== 1) return "names a slot that is neither 0 nor 1";
  if (!isGeneration(generation)) return `slot ${slot} has no generation`;
  if (typeof publicKey !== "string") return `slot ${slot} has no public key`;
  if (!isPort(port)) return `slot ${slot} has no port`;
  return { slot, generation, publicKey, port };
}

function findJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function fieldsOf(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null ? { ...value } : {};
}

function isGeneration(value: unknown): value is number {
  return Number.isSafeInteger(value) && Number(value) >= 0;
}

function isPort(value: unknown): value is number {
  return Number.isInteger(value) && Number(value) > 0 && Number(value) < 65_536;
}
