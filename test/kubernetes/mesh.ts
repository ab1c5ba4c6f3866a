import assert from "node:assert/strict";
import type { Pod } from "#kube";
import { findAccessRecord } from "#model/access-log";
import type { FlowRecord } from "#model/flow";
import { eventually } from "../netns/harness.ts";
import type { TestCluster } from "./cluster.ts";
import { BUSYBOX_IMAGE } from "./images.ts";
import { CHART, helm, rolledOut, VEIL_NAMESPACE } from "./veil.ts";

/** What servers of these tests answer; nobody else says it. */
export const ANSWER = "an-answer-about-green-umbrellas";
export const WEB_PORT = 8080;
const REDIRECTION = "ambient.istio.io/redirection";

/** Where a pod is to be. Without a node it runs where the scheduler wants it. */
export interface PodPlace {
  readonly namespace: string;
  readonly name: string;
  readonly node?: string;
  /** Default: `default`. */
  readonly account?: string;
}

/** A namespace; `enrolled` ones have the label. */
export function namespaceOf(name: string, enrolled: boolean): object {
  const labels = enrolled ? { "istio.io/dataplane-mode": "ambient" } : {};
  return { apiVersion: "v1", kind: "Namespace", metadata: { name, labels } };
}

/** A pod that answers HTTP on {@link WEB_PORT}. `container` and `spec` say what is different. */
export function podOf({ namespace, name, node, account }: PodPlace, container: object = {}, spec: object = {}): object {
  const main = { name: "main", image: BUSYBOX_IMAGE, command: ["sh", "-c", serve()], ...container };
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { namespace, name, labels: { app: name } },
    spec: {
      ...(node !== undefined && { nodeName: node }),
      ...(account !== undefined && { serviceAccountName: account }),
      terminationGracePeriodSeconds: 0,
      containers: [main],
      ...spec,
    },
  };
}

/** A script that answers HTTP; `beside` runs first. */
export function serve(beside = ""): string {
  return `mkdir /www; echo ${ANSWER} >/www/index.html; ${beside} exec httpd -f -p ${WEB_PORT} -h /www`;
}

/** Applies objects in namespaces that may have been made just now: their default accounts come a moment later. */
export async function applySoon(cluster: TestCluster, objects: readonly object[]): Promise<void> {
  await eventually("objects to be accepted", async () => {
    await cluster.apply(objects);
    return true;
  });
}

/** Asks a URL in a pod: what was answered, or undefined when nothing was. */
export async function askFrom(cluster: TestCluster, pod: string, url: string): Promise<string | undefined> {
  const [namespace = "", name = ""] = pod.split("/");
  const { code, stdout } = await cluster.execPod(namespace, name, "timeout", "5", "wget", "-qO-", url);
  return code === 0 ? stdout.trim() : undefined;
}

/** The address of a pod, once it is ready. */
export async function addressOf(cluster: TestCluster, pod: string): Promise<string> {
  const [namespace = "", name = ""] = pod.split("/");
  const { status } = await cluster.readyPod(namespace, name);
  assert.ok(status?.podIP);
  return status.podIP;
}

/** Whether a pod says that it is enrolled. */
export function isEnrolled({ metadata }: Pod): boolean {
  return metadata?.annotations?.[REDIRECTION] === "enabled";
}

/** The service account that a pod runs under. */
export function accountOf({ spec }: Pod): string {
  return spec?.serviceAccountName ?? "default";
}

/** Waits until a pod says that it is enrolled. */
export async function enrolledPod(cluster: TestCluster, pod: string): Promise<void> {
  const [namespace = "", name = ""] = pod.split("/");
  await eventually(`${pod} to be enrolled`, async () => {
    return isEnrolled(await cluster.readyPod(namespace, name)) || undefined;
  });
}

/** Changes the mode of the mesh, as an operator does. */
export async function setMode(cluster: TestCluster, mode: "permissive" | "strict"): Promise<void> {
  await helm(cluster, "upgrade", "veil", CHART, "--reuse-values", "--set", `mode=${mode}`);
  await rolledOut(cluster);
}

/** What all proxies have recorded. */
export async function accessRecords(cluster: TestCluster): Promise<FlowRecord[]> {
  const all = await cluster.kubectl("-n", VEIL_NAMESPACE, "logs", "-l", "app=ztunnel", "--tail=-1");
  return all.split("\n").flatMap((line) => findAccessRecord(line) ?? []);
}
