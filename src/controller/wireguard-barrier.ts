import { hash } from "node:crypto";
import { every, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { Random } from "#base/random";
import type { Service } from "#base/service";
import { Informer, isKubeError, resources, warningEvent, type KubeClient } from "#kube";
import {
  claimOf,
  decide,
  defaultIntervalMs,
  FIRST_GENERATION,
  findIntervalMs,
  PeerDirectory,
  ROTATION_NAME,
  slotOf,
  wireguardResources,
  type BarrierVerdict,
  type CiliumNode,
  type Participant,
  type WireGuardNode,
  type WireGuardRotation,
} from "#wireguard";
import type { LeaderClient } from "./leader-client.ts";

/** How often it is looked whether the next generation may begin. */
const LOOK_MS = 100;
/** Who is waited for is named when it lasts longer than a rotation does. */
const NAMED_MS = 5_000;
/** A node that holds the rotation for so long after its time is warned of. */
const HELD_MS = 60_000;
/** Names that the status carries. */
const MAX_NAMES = 50;
/** Events that were written are remembered up to this many. */
const MAX_TOLD = 10_000;

/** What the barrier is made of. */
export interface WireguardBarrierOptions {
  readonly client: KubeClient;
  /** Writes while this replica leads, and not else. */
  readonly leader: Pick<LeaderClient, "leading" | "create" | "patch">;
  /** Whether a key without Veil's annotation counts as a node's. */
  readonly foreignKeys: boolean;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
}

type Status = Required<NonNullable<WireGuardRotation["status"]>>;

/**
 * The barrier of the rotation of keys: reads what all nodes publish and report, and says to which generation they come, in
 * `WireGuardRotation/cluster`. Only the replica that leads writes; while none does nothing rotates, and traffic goes on.
 */
export class WireguardBarrier implements Service {
  readonly name = "wireguard barrier";
  readonly #options: WireguardBarrierOptions;
  readonly #peers = new PeerDirectory("");
  readonly #claims: Informer<CiliumNode>;
  readonly #reports: Informer<WireGuardNode>;
  readonly #rotations: Informer<WireGuardRotation>;
  readonly #told = new Set<string>();
  /** Since when the running generation is, on this replica's own clock. */
  #seen = { generation: -1, sinceMs: 0 };
  #isWriting = false;
  #stopLooking = (): void => {};

  constructor(options: WireguardBarrierOptions) {
    const { client, clock, random, log, foreignKeys } = options;
    this.#options = options;
    const shared = { client, clock, random, log, optional: true };
    this.#claims = new Informer({ ...shared, ref: wireguardResources.ciliumNodes });
    this.#reports = new Informer({ ...shared, ref: wireguardResources.wireguardNodes });
    this.#rotations = new Informer({ ...shared, ref: wireguardResources.wireguardRotations });
    this.#claims.on({
      upserted: (object) => this.#peers.upsert(claimOf(object, foreignKeys)),
      deleted: ({ metadata }) => this.#peers.remove(metadata?.name ?? ""),
    });
  }

  /** Does not wait for the API: nothing else of the controller needs the barrier. */
  start(signal: AbortSignal): Promise<void> {
    for (const informer of this.#informers) void informer.start(signal).catch(() => undefined); // ended by the signal
    this.#stopLooking = every(this.#options.clock, LOOK_MS, () => void this.#look());
    return Promise.resolve();
  }

  async drain(deadlineMs: number): Promise<void> {
    this.#stopLooking();
    await Promise.all(this.#informers.map((informer) => informer.drain(deadlineMs)));
  }

  get #informers(): readonly Pick<Informer<never>, "start" | "drain" | "synced" | "connected">[] {
    return [this.#claims, this.#reports, this.#rotations];
  }

  async #look(): Promise<void> {
    const { leader, log } = this.#options;
    if (this.#isWriting || !leader.leading) return;
    // What is not fresh may hide a node that has come: nothing is begun on it.
    if (!this.#informers.every((informer) => informer.synced && informer.connected)) return;
    const reports = this.#reports.list();
    if (reports.length === 0) return;
    this.#isWriting = true;
    try {
      await this.#lookAt(reports);
    } catch (error) {
      if (!isKubeError(error, "KUBE_CONFLICT")) {
        log.warn({ error: messageOf(error) }, "the rotation of keys cannot go on yet, trying again");
      }
    } finally {
      this.#isWriting = false;
    }
  }

  async #lookAt(reports: readonly WireGuardNode[]): Promise<void> {
    const { clock, leader } = this.#options;
    const rotation = this.#rotations.get(ROTATION_NAME);
    if (rotation === undefined) {
      const metadata = { name: ROTATION_NAME };
      await leader.create(wireguardResources.wireguardRotations, { metadata, spec: { interval: "auto" } });
      return;
    }
    const generation = rotation.status?.generation ?? this.#firstGeneration();
    const nowMs = clock.monotonic();
    if (this.#seen.generation !== generation) this.#seen = { generation, sinceMs: nowMs };
    const participants = this.#participants(reports, generation);
    const intervalMs = findIntervalMs(rotation.spec?.interval ?? "auto") ?? defaultIntervalMs(participants.length);
    const oneSlot = this.#peers.peers.filter(({ hasSlots }) => !hasSlots).map(({ node }) => node);
    const forMs = nowMs - this.#seen.sinceMs;
    const verdict = decide({ generation, forMs, intervalMs, participants, oneSlot });
    this.#warn(verdict, forMs - intervalMs);
    const isEarly = verdict.phase === "moving" && forMs < NAMED_MS;
    const told = isEarly ? { ...verdict, waitingFor: [] } : verdict;
    await this.#write(rotation, this.#statusOf(rotation, { verdict: told, intervalMs, nodes: participants.length }));
  }

  /** Where nobody has said a generation: that on which half of the nodes are. A node alone cannot push it. */
  #firstGeneration(): number {
    const sending = this.#peers.peers.filter(({ hasSlots }) => hasSlots).map((peer) => peer.sending);
    return Math.max(FIRST_GENERATION, sending.toSorted((a, b) => a - b)[sending.length >> 1] ?? 0);
  }

  /** Who has reported, or published keys with slots; who is refused holds nobody. */
  #participants(reports: readonly WireGuardNode[], generation: number): Participant[] {
    const refused = new Set(this.#peers.refusals.map(({ node }) => node));
    const found = new Map<string, WireGuardNode | undefined>();
    for (const { node, hasSlots } of this.#peers.peers) if (hasSlots) found.set(node, undefined);
    for (const report of reports) found.set(report.metadata?.name ?? "", report);
    return [...found]
      .filter(([node]) => !refused.has(node))
      .map(([node, report]) => {
        const key = this.#peers.find(node)?.keys[slotOf(generation)];
        const { done = -1, problems = [] } = report?.status ?? {};
        return {
          node,
          done,
          hasPublished: (key?.generation ?? -1) >= generation,
          missing: problems.map((one) => one.node),
        };
      });
  }

  #statusOf(
    { status }: WireGuardRotation,
    { verdict, intervalMs, nodes }: { verdict: BarrierVerdict; intervalMs: number; nodes: number },
  ): Status {
    const { generation, phase, waitingFor } = verdict;
    const since = status?.generation === generation ? status.since : undefined;
    return {
      generation,
      phase,
      nodes,
      intervalSeconds: intervalMs / 1000,
      since: since ?? new Date(this.#options.clock.now()).toISOString(),
      waitingFor: waitingFor.slice(0, MAX_NAMES).map(({ node, reason }) => ({ node, reason })),
      refused: this.#peers.refusals.slice(0, MAX_NAMES).map(({ node, reason, message }) => ({ node, reason, message })),
    };
  }

  async #write({ metadata, status: before }: WireGuardRotation, status: Status): Promise<void> {
    const names = Object.keys(status).toSorted();
    if (
      before !== undefined &&
      JSON.stringify(before, names.concat(FIELDS)) === JSON.stringify(status, names.concat(FIELDS))
    )
      return;
    const { leader, log } = this.#options;
    const body = { metadata: { resourceVersion: metadata?.resourceVersion }, status };
    await leader.patch(
      wireguardResources.wireguardRotations,
      { name: ROTATION_NAME },
      { type: "merge", subresource: "status", body },
    );
    if (before?.generation !== status.generation)
      log.info({ generation: status.generation }, "nodes come to a new generation of keys");
  }

  #warn({ waitingFor }: BarrierVerdict, lateMs: number): void {
    for (const { node, reason, message } of this.#peers.refusals) {
      this.#tell(node, { reason: "VeilTunnelRefused", message: `no tunnel to node ${node}: ${message} (${reason})` });
    }
    if (lateMs < HELD_MS) return;
    for (const { node, reason } of waitingFor) {
      this.#tell(node, {
        reason: "VeilRotationHeld",
        message: `keys do not rotate, as they wait for node ${node} (${reason})`,
      });
    }
  }

  /** Says it on the node's CiliumNode, once. */
  #tell(node: string, { reason, message }: { readonly reason: string; readonly message: string }): void {
    const { client, clock, log } = this.#options;
    const uid = this.#claims.get(node)?.metadata?.uid ?? "";
    const key = hash("sha256", `${uid}\0${node}\0${message}`, "hex").slice(0, 16);
    if (this.#told.has(key) || this.#told.size >= MAX_TOLD) return;
    this.#told.add(key);
    log.warn({ node, reason, problem: message }, "a node's tunnels need attention");
    const event = warningEvent({
      name: `veil-wireguard.${key}`,
      namespace: "default",
      about: { apiVersion: "cilium.io/v2", kind: "CiliumNode", name: node, uid },
      reason,
      message,
      source: { component: "veil-controller" },
      timeMs: clock.now(),
    });
    client.create(resources.events, event).catch((error: unknown) => {
      log.debug({ error: messageOf(error) }, "event not written: it is there, or the api is away");
    });
  }
}

/** Of the entries of the status's lists. */
const FIELDS = ["node", "reason", "message"];
