import type { Cidr } from "#base/ip";

/** What the parts of the server need to know about the whole. */
export interface ServerConfig {
  /** Where ClusterIPs come from. */
  readonly serviceCidr: Cidr;
  /** Under which address clients inside the cluster reach this server (behind the Service `kubernetes`). */
  readonly advertise: { readonly host: string; readonly port: number };
  /** `iss` of service account tokens, and the audience of tokens that name none. */
  readonly issuer: string;
}

/** The issuer of a cluster without a name of its own. */
export const DEFAULT_ISSUER = "https://kubernetes.default.svc.cluster.local";

/** Largest request body; etcd's limit is in the same range. */
export const MAX_BODY_BYTES = 3 * 1024 * 1024;
/** Most items on one page of a list, whatever the client asks for. */
export const MAX_PAGE_ITEMS = 10_000;
/** Bytes that may wait for a slow watcher before its watch is ended; it resumes where it was. */
export const MAX_WATCH_BACKLOG_BYTES = 16 * 1024 * 1024;
/** Requests that may run at once, without watches and streams. */
export const MAX_REQUESTS = 1024;
/** Watches and streams that may be open at once. */
export const MAX_STREAMS = 4096;
