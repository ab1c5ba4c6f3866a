import { STATUS_CODES, type IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
import type { KubeletProxy } from "./kubelet.ts";
import type { Registry } from "./registry.ts";
import type { Router } from "./router.ts";
import { badRequest, notServed } from "./status.ts";

const STREAMS = new Set(["exec", "attach", "portforward"]);

/** Answers requests that leave HTTP (exec, attach, port-forward): checks them like all others, then tunnels them. */
export class UpgradeHandler {
  readonly #router: Router;
  readonly #registry: Registry;
  readonly #kubelet: KubeletProxy;

  constructor(options: { router: Router; registry: Registry; kubelet: KubeletProxy }) {
    this.#router = options.router;
    this.#registry = options.registry;
    this.#kubelet = options.kubelet;
  }

  /** Never rejects: failures are answered with a Status in place of the upgrade. */
  async answer(message: IncomingMessage, socket: Duplex, head: Buffer): Promise<void> {
    const onEarlyError = (): void => void socket.destroy();
    socket.once("error", onEarlyError);
    try {
      const { info } = this.#router.admit(message);
      const { target } = info;
      if (target === undefined || !STREAMS.has(target.subresource)) throw badRequest("this path takes no upgrade");
      if (this.#registry.find(target.group, target.version, target.plural)?.plural !== "pods") {
        throw notServed(`${target.plural} have no ${target.subresource}`);
      }
      await this.#kubelet.tunnel({ info, message, socket, head });
    } catch (error) {
      const { body } = this.#router.statusOf(error, message);
      const text = JSON.stringify(body);
      const line = `HTTP/1.1 ${body.code} ${STATUS_CODES[body.code] ?? ""}`;
      socket.end(
        `${line}\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(text)}\r\nConnection: close\r\n\r\n${text}`,
      );
    }
  }
}
