import type { IncomingMessage } from "node:http";
import type { Attributes } from "./authorizer.ts";
import { badRequest, forbidden } from "./status.ts";
import { AUTHENTICATED_GROUP, type User } from "./user.ts";

const SERVICE_ACCOUNT = /^system:serviceaccount:([^:]+):([^:]+)$/;

/**
 * Who a request is to be made as (`kubectl --as`): the caller, or whom the `Impersonate-*` headers name when the caller
 * may impersonate that user and each of the groups. Throws 400 and 403.
 */
export function impersonate(message: IncomingMessage, user: User, decide: (user: User, attributes: Attributes) => boolean): User {
  const name = message.headers["impersonate-user"];
  const group = message.headersDistinct["impersonate-group"] ?? [];
  const other = Object.keys(message.headers).find((header) => header.startsWith("impersonate-extra-") || header === "impersonate-uid");
  if (name === undefined && group.length === 0 && other === undefined) return user;
  if (typeof name !== "string" || name === "") throw badRequest("Impersonate-User: is needed to impersonate groups, UIDs or extras");
  if (other !== undefined) throw badRequest(`${other}: veil apiserver does not impersonate UIDs and extras`);
  const account = SERVICE_ACCOUNT.exec(name);
  const may = (resource: string, what: { name: string; namespace?: string }): void => {
    const attributes = { verb: "impersonate", group: "", resource, namespace: what.namespace ?? "", name: what.name, path: "", fieldSelector: "" };
    if (decide(user, attributes)) return;
    throw forbidden({ resource, name: what.name }, `User "${user.name}" cannot impersonate resource "${resource}" in API group "" at the cluster scope`);
  };
  if (account === null) may("users", { name });
  else may("serviceaccounts", { namespace: account[1] ?? "", name: account[2] ?? "" });
  for (const one of group) may("groups", { name: one });
  const implied = account === null ? [] : ["system:serviceaccounts", `system:serviceaccounts:${account[1] ?? ""}`];
  const groups = [...new Set([...group, ...(group.length === 0 ? implied : []), AUTHENTICATED_GROUP])];
  return { name, uid: "", groups, extra: {} };
}
