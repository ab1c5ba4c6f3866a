import { request } from "node:http";
import { request as secureRequest } from "node:https";
import { connect as connectTls } from "node:tls";
import type { Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import { connectTcp, openNetns } from "#linux";

/** Where a role says whether it is ready. */
export interface ReadyEndpoint {
  /** Path of the network namespace in which to ask. */
  readonly netns: string;
  readonly ip: string;
  readonly port: number;
  readonly path: string;
  /** Asked over TLS when set, with this client certificate when it has one. */
  readonly tls?: { readonly cert?: string | undefined; readonly key?: string | undefined };
}

const DEADLINE_MS = 10_000;

/**
 * Asks a role whether it is ready, from inside its namespace. Answers undefined when it is, else why not.
 * The certificate is not looked at: the question is whether the role answers, and nothing secret is said.
 */
export async function findUnreadiness(endpoint: ReadyEndpoint, clock: Clock): Promise<string | undefined> {
  const { ip, port, path } = endpoint;
  try {
    using netns = openNetns(endpoint.netns);
    const connection = await connectTcp({ netns, ip, port, timeoutMs: DEADLINE_MS, clock });
    const plain = connection.toNetSocket();
    const { tls } = endpoint;
    const socket = tls === undefined ? plain : connectTls({ socket: plain, rejectUnauthorized: false, ...tls });
    const ask = tls === undefined ? request : secureRequest;
    const { status, body } = await new Promise<{ status: number; body: string }>((resolve, reject) => {
      const call = ask({ host: ip, port, path, createConnection: () => socket, timeout: DEADLINE_MS }, (response) => {
        let text = "";
        response.setEncoding("utf8").on("data", (part: string) => {
          if (text.length < MAX_BODY) text += part;
        });
        response.on("end", () => resolve({ status: response.statusCode ?? 0, body: text }));
        response.on("error", reject);
      });
      call.on("timeout", () => call.destroy(new Error(`no answer within ${DEADLINE_MS / 1000} s`)));
      call.on("error", reject);
      call.end();
    });
    return status >= 200 && status < 300 ? undefined : `answers ${status}${body === "" ? "" : `: ${oneLine(body)}`}`;
  } catch (error) {
    return messageOf(error);
  }
}

const MAX_BODY = 2_000;

function oneLine(text: string): string {
  return text.trim().replaceAll(/\s+/g, " ").slice(0, 200);
}
