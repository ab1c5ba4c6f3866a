/** Whether a client follows all resources of a type, or only those that it asks for. */
export type SubscriptionMode = "wildcard" | "on-demand";

/** What a client remembers of one type from stream to stream. */
export class ClientType {
  readonly typeUrl: string;
  readonly mode: SubscriptionMode;
  /** True once a response has been taken. */
  answered = false;
  /**
   * Versions of the resources that the receiver holds, by name. Empty when it holds another version than the server's last
   * (it refused that), or may (the stream ended while it worked): the server then sends it again, or says that it is gone.
   * Bounded by what the server publishes.
   */
  readonly #versions = new Map<string, string>();

  constructor(typeUrl: string, mode: SubscriptionMode) {
    this.typeUrl = typeUrl;
    this.mode = mode;
  }

  /** The versions by name, for the first request of a stream. */
  get versions(): Readonly<Record<string, string>> {
    return Object.fromEntries(this.#versions);
  }

  holds(name: string): boolean {
    return this.#versions.has(name);
  }

  accepted(name: string, version: string): void {
    this.#versions.set(name, version);
  }

  unsure(name: string): void {
    this.#versions.set(name, "");
  }

  removed(name: string): void {
    this.#versions.delete(name);
  }
}
