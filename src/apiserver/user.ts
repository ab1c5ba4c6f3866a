/** Who makes a request, as authentication found it. */
export interface User {
  readonly name: string;
  readonly uid: string;
  readonly groups: readonly string[];
  readonly extra: Readonly<Record<string, readonly string[]>>;
}

/** The group whose members may do everything. */
export const MASTERS_GROUP = "system:masters";
/** The group of all nodes' credentials. */
export const NODES_GROUP = "system:nodes";
/** The group of everybody who was authenticated. */
export const AUTHENTICATED_GROUP = "system:authenticated";
/** The start of a node's user name. */
const NODE_USER_PREFIX = "system:node:";

/** The server itself, for what its own controllers do. */
export const SERVER_USER: User = {
  name: "system:apiserver",
  uid: "",
  groups: [MASTERS_GROUP, AUTHENTICATED_GROUP],
  extra: {},
};

/** The node whose credentials these are; undefined for everybody else. */
export function nodeOf(user: User): string | undefined {
  if (!user.name.startsWith(NODE_USER_PREFIX) || !user.groups.includes(NODES_GROUP)) return undefined;
  return user.name.slice(NODE_USER_PREFIX.length);
}
