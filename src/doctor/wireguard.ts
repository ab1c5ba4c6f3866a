import type { Node } from "#kube";
import { ROTATION_NAME, type WireGuardNode, type WireGuardRotation } from "#wireguard";
import { count, someOf, voiceOf, type Finding } from "./finding.ts";

const voice = voiceOf("wireguard");

/** What the API tells of tunnels between nodes. */
export interface TunnelFacts {
  readonly nodes: readonly Node[];
  /** What agents report. */
  readonly reports: readonly WireGuardNode[];
  readonly rotations: readonly WireGuardRotation[];
  readonly nowMs: number;
}

type Status = NonNullable<WireGuardNode["status"]>;
type Problem = NonNullable<Status["problems"]>[number];

/** A rotation that is late by so much is held by somebody. */
const LATE_MS = 60_000;
const OPEN_PORTS =
  "open UDP 51871 and 51872 between the nodes, in both directions: security groups, host firewalls, network policies for hosts";
const TAKEN =
  "see to it that each node's CiliumNode tells what is the node's own, and delete the one that nobody owns; the others stay up";

/** What to do about each reason that agents and the controller give. */
const TODO: Readonly<Record<string, string>> = {
  NotProven: OPEN_PORTS,
  BigPacketsLost:
    'let ICMP "fragmentation needed" through, or set the MTU of the nodes\' interfaces to what the path between them carries',
  PeerBehind: "look at the agent of that node: does it run, and does it reach the API",
  NoOwnKey: "look at the log of that node's agent: why it cannot make a key",
  NoGeneration: "look at the controller: does one run and lead",
  DeviceFailed: "look at the log of that node's agent, and at `veil doctor --node` there",
  NotPublished: "look at the agent of that node: does it run, and does it reach the API",
  NotDone: OPEN_PORTS,
  KeyDuplicate:
    "restart the agent of the node that is to have another key; a disk image must not carry a running node's state",
  KeyInvalid: "restart that node's agent, which publishes its key anew; find out who else writes to its CiliumNode",
  KeyZero: "restart that node's agent, which publishes its key anew; find out who else writes to its CiliumNode",
  KeySmallOrder: "somebody has forged that key: find out who may write that node's CiliumNode",
  RecordInvalid: "restart that node's agent, which publishes its keys anew; find out who else writes to its CiliumNode",
  AddressMissing: "give the Node an InternalIP (kubelet --node-ip, or the cloud's controller)",
  AddressInvalid: TAKEN,
  AddressDuplicate: TAKEN,
  EndpointSelf: TAKEN,
  CidrInvalid: TAKEN,
  CidrTooWide: TAKEN,
  CidrOverlap: TAKEN,
};
const TODO_ELSE = "look at the logs of that node's agent and of the controller";

/** Whether all nodes have tunnels to each other and their keys rotate; where they are not wanted, that they are off. */
export function checkWireguard(facts: TunnelFacts): readonly Finding[] {
  const { rotations, reports } = facts;
  const rotation = rotations.find(({ metadata }) => metadata?.name === ROTATION_NAME);
  if (reports.length === 0) {
    return rotation === undefined
      ? [voice.ok("tunnels between nodes are off: what mTLS does not carry leaves nodes as it is")]
      : [voice.problem("no node reports its tunnels", "look at the agents: do they run, and with --wireguard on")];
  }
  const findings = [...silentNodes(facts), ...problemsOf(facts), ...rotationOf(rotation, facts.nowMs)];
  const problems = findings.some(({ outcome }) => outcome === "problem");
  return problems ? findings : [...findings, voice.ok(summaryOf(reports, rotation))];
}

function summaryOf(reports: readonly WireGuardNode[], rotation: WireGuardRotation | undefined): string {
  const { generation, intervalSeconds } = rotation?.status ?? {};
  const backends = [...new Set(reports.map(({ status }) => `${status?.backend} ${status?.version}`))];
  const keys =
    generation === undefined ? "" : `, keys of generation ${generation}, a new one each ${intervalSeconds} s`;
  return `${count(reports.length, "node")} with tunnels (${someOf(backends)})${keys}`;
}

function silentNodes({ nodes, reports }: TunnelFacts): Finding[] {
  const told = new Set(reports.map(({ metadata }) => metadata?.name));
  const silent = nodes.map(({ metadata }) => metadata?.name ?? "").filter((name) => !told.has(name));
  if (silent.length === 0) return [];
  return [
    voice.problem(
      `${count(silent.length, "node")} report no tunnels: ${someOf(silent)}`,
      "look at the agents of those nodes: do they run, and with --wireguard on",
    ),
  ];
}

/** One finding for a reason and the node that it is about, however many other nodes say it. */
function problemsOf({ reports, rotations }: TunnelFacts): Finding[] {
  const said = new Map<string, { readonly problem: Problem; readonly by: string[] }>();
  const hear = (by: string, problem: Problem): void => {
    const about = problem.node === "" ? by : problem.node;
    const key = `${problem.reason} ${about}`;
    const known = said.get(key) ?? { problem: { ...problem, node: about }, by: [] };
    known.by.push(by);
    said.set(key, known);
  };
  for (const { metadata, status } of reports) {
    for (const problem of status?.problems ?? []) hear(metadata?.name ?? "", problem);
  }
  for (const problem of rotations.flatMap(({ status }) => status?.refused ?? [])) hear("the controller", problem);
  const findings = [...said.values()].map(({ problem: { node, reason, message }, by }) =>
    voice.problem(`node ${node}: ${message} (${reason}, says ${someOf(by)})`, TODO[reason] ?? TODO_ELSE),
  );
  const oneSlot = [...new Set(reports.flatMap(({ status }) => status?.oneSlot ?? []))].toSorted();
  if (oneSlot.length === 0) return findings;
  return [
    ...findings,
    voice.warning(
      `${count(oneSlot.length, "node")} with one key that never changes, for which all others keep theirs: ${someOf(oneSlot)}`,
      "run Veil's agent with tunnels on those nodes, too",
    ),
  ];
}

function rotationOf(rotation: WireGuardRotation | undefined, nowMs: number): Finding[] {
  if (rotation?.status?.since === undefined) {
    return [voice.problem("no controller has begun to rotate keys", "look at the controller: does one run and lead")];
  }
  const { generation, since, intervalSeconds = 0, waitingFor = [] } = rotation.status;
  const lateMs = nowMs - Date.parse(since) - intervalSeconds * 1_000;
  if (waitingFor.length === 0 || lateMs < LATE_MS) return [];
  const names = waitingFor.map(({ node, reason }) => `${node} (${reason})`);
  const minutes = Math.round(lateMs / 60_000);
  return [
    voice.problem(
      `keys stay at generation ${generation}, ${count(minutes, "minute")} late, and wait for ${someOf(names)}; traffic goes on`,
      TODO[waitingFor[0]?.reason ?? ""] ?? TODO_ELSE,
    ),
  ];
}
