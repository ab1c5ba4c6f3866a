import { join, resolve } from "node:path";
import { ensureHelm } from "#apiserver";
import { makeImage } from "../../tools/image.ts";
import { must } from "../netns/harness.ts";
import type { TestCluster } from "./cluster.ts";
import { FOLDER } from "./layout.ts";

export const VEIL_NAMESPACE = "veil-system";
/** Where agents find the controller: the cluster has no DNS. */
const CONTROLLER_ADDRESS = "10.96.0.50";
const CHART = resolve(import.meta.dirname, "../../deploy/chart");
const TAG = "test";
/** What runs on each node and before it, as `kubectl rollout status` takes them. */
const WORKLOADS = ["deployment/veil-controller", "daemonset/veil-agent", "daemonset/ztunnel"];

/** Runs helm for the cluster; fails the test when it fails. */
export async function helm(cluster: TestCluster, ...words: string[]): Promise<string> {
  const program = await ensureHelm({ env: process.env });
  const home = join(FOLDER, "helm"); // its own files go with the cluster
  const env = { KUBECONFIG: cluster.kubeconfig, HELM_CACHE_HOME: home, HELM_CONFIG_HOME: home, HELM_DATA_HOME: home };
  return must([program, ...words], { env });
}

/** Brings this checkout's image to the nodes and installs the chart of this checkout, with these values besides; ready on return. */
export async function installVeil(cluster: TestCluster, values: Readonly<Record<string, string>> = {}): Promise<void> {
  const tar = join(FOLDER, "images", "veil.tar");
  await makeImage(TAG, tar);
  await cluster.importImage(tar);
  await helm(cluster, "install", "veil", CHART, ...valuesOf(values));
  await rolledOut(cluster);
}

/** Waits until all of Veil runs as it was asked for last. */
export async function rolledOut(cluster: TestCluster): Promise<void> {
  await cluster.kubectl("-n", VEIL_NAMESPACE, "rollout", "status", "--timeout=300s", ...WORKLOADS);
}

function valuesOf(values: Readonly<Record<string, string>>): string[] {
  const all = { "image.tag": TAG, "controller.clusterIP": CONTROLLER_ADDRESS, ...values };
  return Object.entries(all).flatMap(([path, value]) => ["--set", `${path}=${value}`]);
}
