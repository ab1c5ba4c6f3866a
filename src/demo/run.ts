import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { V1Pod } from "@kubernetes/client-node";
import { sleep, type Clock } from "#base/clock";
import { findAccessRecord } from "#model/access-log";
import type { FlowRecord } from "#model/flow";
import type { Progress } from "#lab";
import { demoError } from "./errors.ts";
import { identitiesOf, isSuccess, judge } from "./judge.ts";
import { Kubectl } from "./kubectl.ts";
import { CAST, ENROLLED, LABEL, manifest } from "./manifest.ts";
import type { DemoReport } from "./report.ts";
import { watchWire, type Place } from "./wire.ts";

/** The cluster that the demo plays on. */
export interface DemoLab {
  readonly name: string;
  readonly kubeconfig: string;
  /** Nodes: name, path of the network namespace, interface of the underlay. */
  readonly nodes: readonly { readonly name: string; readonly netns: string; readonly underlay: string }[];
}

/** What the demo needs. */
export interface DemoOptions {
  readonly lab: DemoLab;
  /** The pinned kubectl. */
  readonly kubectl: string;
  /** The start script, which the pods run too. */
  readonly program: string;
  readonly clock: Clock;
  readonly signal: AbortSignal;
  readonly progress: Progress;
}

/** How long each side of the label is watched. */
const BEFORE_MS = 1_500;
const AFTER_MS = 3_000;
const WAIT_MS = 120_000;
const POLL_MS = 100;
/** Annotation by which the lab's kubelet tells a pod's interface on the node. */
const VETH = "veil.dev/veth";

/** Plays the demo on a lab that is up. The lab stays up. Throws `DEMO_KUBECTL`, `DEMO_WAIT` or `CAPTURE_*`. */
export async function runDemo(options: DemoOptions): Promise<DemoReport> {
  const { clock, signal, lab, progress } = options;
  const startMs = clock.monotonic();
  const kubectl = new Kubectl({ path: options.kubectl, kubeconfig: lab.kubeconfig, signal });
  await using folder = await temporaryFolder();
  progress.note("starting two services and their clients in two namespaces, and a visitor outside");
  await kubectl.apply(manifest(options.program), async (text) => {
    const file = join(folder.path, "cast.json");
    await writeFile(file, text);
    return file;
  });
  const podsBefore = await waitForCast(kubectl, options);
  await using wire = await watchWire(placesOf(podsBefore, lab), clock);

  progress.note("before: watching the wire with tcpdump");
  const beforeUs = clock.now() * 1000;
  await sleep(clock, BEFORE_MS, signal);
  const command = ["label", "namespace", ...ENROLLED, LABEL, "--overwrite"];
  progress.note(`kubectl ${command.join(" ")}`);
  const labelUs = clock.now() * 1000;
  await kubectl.run(...command);
  await waitForEnrolment(kubectl, options);

  progress.note("after: watching the wire with tcpdump");
  await sleep(clock, AFTER_MS, signal);
  const endUs = clock.now() * 1000;
  const judgement = judge({
    podsBefore,
    captures: await wire.stop(),
    podsAfter: await castPods(kubectl),
    clientLogs: await clientLogs(kubectl),
    records: await accessRecords(kubectl),
    moments: { beforeUs, labelUs, endUs },
  });
  return {
    lab: { name: lab.name, nodes: lab.nodes.map(({ name }) => name) },
    command: `kubectl ${command.join(" ")}`,
    ...judgement,
    proven: judgement.checks.every(({ seen }) => seen),
    seconds: (clock.monotonic() - startMs) / 1000,
  };
}

async function castPods(kubectl: Kubectl): Promise<Map<string, V1Pod>> {
  const { items } = await kubectl.json<{ items: V1Pod[] }>("get", "pods", "-A");
  const named = items.map((pod): [string, V1Pod] => [`${pod.metadata?.namespace}/${pod.metadata?.name}`, pod]);
  const cast = new Set(CAST.map(({ namespace, name }) => `${namespace}/${name}`));
  return new Map(named.filter(([name]) => cast.has(name)));
}

async function clientLogs(kubectl: Kubectl): Promise<Map<string, string[]>> {
  const clients = CAST.filter(({ calls }) => calls !== undefined);
  const read = async (namespace: string, name: string): Promise<[string, string[]]> => {
    const text = await kubectl.run("logs", "-n", namespace, name);
    return [`${namespace}/${name}`, text.split("\n").filter((line) => line !== "")];
  };
  return new Map(await Promise.all(clients.map(({ namespace, name }) => read(namespace, name))));
}

async function waitForCast(kubectl: Kubectl, options: DemoOptions): Promise<Map<string, V1Pod>> {
  return waitFor("all pods of the demo to be ready and their clients to be answered", options, async () => {
    const pods = await castPods(kubectl);
    if (pods.size !== CAST.length || ![...pods.values()].every(isReady)) return undefined;
    const answered = [...(await clientLogs(kubectl)).values()].every((lines) => lines.some(isSuccess));
    return answered ? pods : undefined;
  });
}

function isReady(pod: V1Pod): boolean {
  return pod.status?.conditions?.some(({ type, status }) => type === "Ready" && status === "True") ?? false;
}

/** Enrolled when the records of each labelled pair show mutual TLS. */
async function waitForEnrolment(kubectl: Kubectl, options: DemoOptions): Promise<void> {
  const clients = CAST.filter(
    ({ namespace, calls }) => calls !== undefined && ENROLLED.some((name) => name === namespace),
  );
  await waitFor("connections of both namespaces to be encrypted", options, async () => {
    const records = await accessRecords(kubectl);
    return clients.every((client) => identitiesOf(client, records).encryption === "mutual_tls") ? true : undefined;
  });
}

/** The access records of all proxies, by the logs of their pods; lines that are none are left out. */
async function accessRecords(kubectl: Kubectl): Promise<FlowRecord[]> {
  const text = await kubectl.run("logs", "-n", "veil-system", "-l", "app=ztunnel", "--tail=-1", "--prefix=false");
  const records = text.split("\n").flatMap((line) => findAccessRecord(line) ?? []);
  return records.toSorted((a, b) => a.timeMs - b.timeMs);
}

function placesOf(pods: ReadonlyMap<string, V1Pod>, lab: DemoLab): Place[] {
  const ofPods = [...pods].map(([name, pod]): Place => {
    const veth = pod.metadata?.annotations?.[VETH];
    const node = lab.nodes.find((other) => other.name === pod.spec?.nodeName);
    if (veth === undefined || node === undefined)
      throw demoError("DEMO_WAIT", `the lab does not tell the interface of pod ${name}`);
    return { kind: "pods", netns: node.netns, interface: veth };
  });
  return [
    ...lab.nodes.map(({ netns, underlay }): Place => ({ kind: "underlay", netns, interface: underlay })),
    ...ofPods,
  ];
}

async function waitFor<T>(what: string, options: DemoOptions, look: () => Promise<T | undefined>): Promise<T> {
  const endMs = options.clock.monotonic() + WAIT_MS;
  for (;;) {
    options.signal.throwIfAborted();
    const found = await look();
    if (found !== undefined) return found;
    if (options.clock.monotonic() > endMs) throw demoError("DEMO_WAIT", `waited ${WAIT_MS / 1000} s for ${what}`);
    await sleep(options.clock, POLL_MS, options.signal);
  }
}

async function temporaryFolder(): Promise<AsyncDisposable & { path: string }> {
  const path = await mkdtemp(join(tmpdir(), "veil-demo-"));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}
