import type { RecordBatch } from "./record-queue.ts";
import type { AccessLevel } from "#model/access-log";
import type { SpiffeId } from "#model/spiffe-id";
import type { TlsIdentity } from "#model/tls-identity";
import type { PolicyChange } from "#policy";
import type { ProxyConfig } from "./config.ts";
import type { Answer } from "./knowledge.ts";
import type { NameAnswer } from "./names.ts";
import type { LookKind, Slice } from "./looks.ts";
import type { ThreadProfile } from "./pprof.ts";
import type { ProfileRequest } from "./profiler.ts";
import type { LocalPod } from "./route.ts";
import type { PackedChange } from "./table.ts";

/**
 * What the main thread and a data thread say to each other. Messages arrive in the order in which they were sent, and
 * each is handled before the next: "done" of a later request means that all earlier messages are in force.
 */

/** What a data thread is started with. */
export interface ThreadStart {
  readonly config: ProxyConfig;
}

/** From the main thread. Requests carry `seq` and are answered by `done` with the same. */
export type ToThread =
  | {
      readonly type: "addresses";
      readonly seq: number;
      readonly change: PackedChange;
      /** True when the first snapshot is complete with this change. */
      readonly synced: boolean;
    }
  /** Running connections are judged again, a little later. */
  | { readonly type: "policies"; readonly seq: number; readonly change: PolicyChange }
  /** The revocation lists in force from now on, in DER. */
  | { readonly type: "crls"; readonly seq: number; readonly crls: readonly Uint8Array[] }
  /** Serve a pod; the namespace's descriptor belongs to the thread from here on. `old`: handed over before this process began. */
  | {
      readonly type: "podAdd";
      readonly seq: number;
      readonly pod: LocalPod;
      readonly netnsFd: number;
      readonly old: boolean;
    }
  | { readonly type: "podDrop"; readonly seq: number; readonly podUid: string; readonly drainMs: number }
  | { readonly type: "certificate"; readonly seq: number; readonly identity: TlsIdentity }
  | { readonly type: "certificateDrop"; readonly id: SpiffeId }
  | { readonly type: "answer"; readonly name: string; readonly answer: Answer }
  | { readonly type: "resolved"; readonly hostname: string; readonly answer: NameAnswer }
  /** The next slice of a look; `known` begins a new one. */
  | { readonly type: "look"; readonly seq: number; readonly kind: LookKind; readonly known: number | undefined }
  /** Record what the thread does; the answer comes after the request's time. */
  | { readonly type: "profile"; readonly seq: number; readonly thread: string; readonly request: ProfileRequest }
  | { readonly type: "drain"; readonly seq: number; readonly drainMs: number }
  /** How loud a line of the access log must be to be written. */
  | { readonly type: "accessLevel"; readonly level: AccessLevel }
  /** Collect garbage now: nobody waits for anything. */
  | { readonly type: "collect" };

/** From a data thread. */
export type FromThread =
  | {
      readonly type: "done";
      readonly seq: number;
      readonly error?: { readonly code: string; readonly message: string } | undefined;
      /** The answer to a look; undefined after its last slice. */
      readonly slice?: Slice | undefined;
      readonly profile?: ThreadProfile | undefined;
    }
  /** A connection is held: who is `name`? Answered by `answer`. */
  | { readonly type: "ask"; readonly name: string }
  /** A connection is held: which addresses has `hostname`? Answered by `resolved`. */
  | { readonly type: "resolve"; readonly hostname: string }
  /** Lines of the access log. The next batch comes when this one is counted as taken (mailbox.ts). */
  | { readonly type: "records"; readonly batch: RecordBatch };
