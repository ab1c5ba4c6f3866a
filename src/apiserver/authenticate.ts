import type { IncomingMessage } from "node:http";
import { TLSSocket } from "node:tls";
import { unauthorized } from "./status.ts";
import type { TokenIssuer } from "./tokens.ts";
import { AUTHENTICATED_GROUP, type User } from "./user.ts";

const certificateUsers = new WeakMap<TLSSocket, User>();

/**
 * Who makes a request: a client certificate of our authority (CN is the user, each O a group) or a service account
 * token. Throws 401 for everything else; there is no anonymous access.
 */
export function authenticate(message: IncomingMessage, tokens: TokenIssuer): User {
  const authorization = message.headers.authorization;
  if (authorization !== undefined) return authenticateToken(authorization, tokens);
  const user = message.socket instanceof TLSSocket ? certificateUser(message.socket) : undefined;
  if (user === undefined) throw unauthorized();
  return user;
}

function authenticateToken(authorization: string, tokens: TokenIssuer): User {
  const token = /^Bearer +([^\s]+)$/i.exec(authorization)?.[1];
  if (token === undefined) throw unauthorized("Unauthorized: the Authorization header holds no bearer token");
  const verdict = tokens.verify(token, []);
  if (verdict.user === undefined) throw unauthorized(`Unauthorized: ${verdict.problem}`);
  return verdict.user;
}

function certificateUser(socket: TLSSocket): User | undefined {
  const known = certificateUsers.get(socket);
  if (known !== undefined) return known;
  if (!socket.authorized) return undefined;
  const { subject } = socket.getPeerCertificate();
  const name = firstOf(subject?.CN);
  if (name === undefined || name === "") return undefined;
  const groups: unknown = subject.O;
  const list = Array.isArray(groups) ? groups.map(String) : typeof groups === "string" ? [groups] : [];
  const user = { name, uid: "", groups: [...list, AUTHENTICATED_GROUP], extra: {} };
  certificateUsers.set(socket, user);
  return user;
}

function firstOf(value: unknown): string | undefined {
  if (Array.isArray(value)) return value.length === 1 ? String(value[0]) : undefined;
  return typeof value === "string" ? value : undefined;
}
