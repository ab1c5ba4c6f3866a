import type { IncomingMessage } from "node:http";
import type { Attributes } from "./authorizer.ts";
import { badRequest, forbidden } from "./status.ts";
import { AUTHENTICATED_GROUP, type User } from "./user.ts";

const SERVICE_ACCOUNT = /^system:serviceaccount:([^:]+):([^:]+)$/;

/**
 * Who a request is to be made as (`kubectl --as`): the caller, or whom the `Impersonate-*` headers name when the caller
 * may impersonate that user and each of the groups. Throws 400 and 403.
 */
export function impersonate(
  message: IncomingMessage,
  user: User,
  decide: (user: User, attributes: Attributes) => boolean,
): User {
  const name = message.headers["impersonate-user"];
  const group = message.headersDistinct["impersonate-group"] ?? [];
  const other = Object.keys(message.headers).find(
    (header) => header.startsWith("impersonate-extra-") || header === "impersonate-uid",
  );
  if (other !== undefined) throw badRequest(`${other}: veil apiserver does not impersonate UIDs and extras`);
  if (name === undefined && group.length === 0) return user;
  if (typeof name !== "string" || name === "") throw badRequest("Impersonate-User: is needed to impersonate groups");
  const [, namespace, account] = SERVICE_ACCOUNT.exec(name) ?? [];
  const own = namespace === undefined ? { resource: "users", namespace: "", name } : accountTarget(namespace, account);
  requireAllowed(user, own, decide);
  for (const one of group) requireAllowed(user, { resource: "groups", namespace: "", name: one }, decide);
  const implied = namespace === undefined ? [] : ["system:serviceaccounts", `system:serviceaccounts:${namespace}`];
  const groups = new Set([...(group.length === 0 ? implied : group), AUTHENTICATED_GROUP]);
  return { name, uid: "", groups: [...groups], extra: {} };
}

function accountTarget(namespace: string, name = ""): Target {
  return { resource: "serviceaccounts", namespace, name };
}

interface Target {
  readonly resource: string;
  readonly namespace: string;
  readonly name: string;
}

function requireAllowed(user: User, target: Target, decide: (user: User, attributes: Attributes) => boolean): void {
  if (decide(user, { ...target, verb: "impersonate", group: "", path: "", fieldSelector: "" })) return;
  const { resource, name } = target;
  const why = `User "${user.name}" cannot impersonate resource "${resource}" in API group "" at the cluster scope`;
  throw forbidden({ resource, name }, why);
}
