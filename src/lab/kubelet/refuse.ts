import type { ServerResponse } from "node:http";

/** Answers with a reason as text. */
export function refuse(response: ServerResponse, status: number, message: string): void {
  response.writeHead(status, { "content-type": "text/plain" });
  response.end(`${message}\n`);
}
