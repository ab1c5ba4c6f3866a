import assert from "node:assert/strict";
import { mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { delimiter, dirname, join, resolve } from "node:path";
import { ensureHelm, ensureKubectl } from "#apiserver";
import { makeImages, type Image } from "../../tools/image.ts";
import { must } from "../netns/harness.ts";
import type { TestCluster } from "./cluster.ts";
import { FOLDER } from "./layout.ts";

export const VEIL_NAMESPACE = "veil-system";
/** Where agents find the controller: the cluster has no DNS. */
export const CONTROLLER_ADDRESS = "10.96.0.50";
const CHECKOUT = resolve(import.meta.dirname, "../..");
/** This checkout's chart. */
export const CHART = join(CHECKOUT, "deploy/chart");
const TAG = "test";

/** Runs helm for the cluster; fails the test when it fails. */
export async function helm(cluster: TestCluster, ...words: string[]): Promise<string> {
  const program = await ensureHelm({ env: process.env });
  return must([program, ...words], { env: environment(cluster) });
}

/** Helm's own files go with the cluster. */
function environment(cluster: TestCluster): Record<string, string> {
  const home = join(FOLDER, "helm");
  return { KUBECONFIG: cluster.kubeconfig, HELM_CACHE_HOME: home, HELM_CONFIG_HOME: home, HELM_DATA_HOME: home };
}

/** Makes this checkout's image and brings it to all nodes. */
async function bringImage(cluster: TestCluster): Promise<void> {
  await bringImages(cluster, [{ tag: TAG, file: join(FOLDER, "images", "veil.tar") }]);
}

async function bringImages(cluster: TestCluster, images: readonly Image[]): Promise<void> {
  await makeImages(images);
  await importOnce(cluster, images);
}

async function importOnce(cluster: TestCluster, images: readonly Pick<Image, "file">[]): Promise<void> {
  for (const { file } of images) {
    await cluster.importImage(file);
    rmSync(file); // it would fill the memory file system
  }
}

/** A version of Veil: of this checkout under another name, or of another checkout. */
export interface Release {
  readonly version: string;
  /** The other checkout's folder, with its modules. */
  readonly checkout?: string;
}

/** Brings releases: charts that want the image of their own version, and the images on all nodes. Answers the charts' paths. */
export async function bringReleases(cluster: TestCluster, ...releases: Release[]): Promise<string[]> {
  const folder = join(FOLDER, "releases");
  mkdirSync(folder);
  const imageOf = ({ version }: Release): Image => {
    return { tag: version, version, file: join(folder, `image-${version}.tar`) };
  };
  await bringImages(cluster, releases.filter(({ checkout }) => checkout === undefined).map(imageOf));
  for (const release of releases) {
    const { version, checkout = CHECKOUT } = release;
    if (checkout !== CHECKOUT) {
      const { tag, file } = imageOf(release);
      await must([process.execPath, "--conditions=veil-source", join(checkout, "tools/image.ts"), tag, file]);
      await importOnce(cluster, [{ file }]);
    }
    const names = ["--version", version, "--app-version", version];
    await helm(cluster, "package", join(checkout, "deploy/chart"), ...names, "--destination", folder);
  }
  return releases.map(({ version }) => join(folder, `veil-${version}.tgz`));
}

/** Installs the chart of this checkout, with these values besides; ready on return. */
export async function installVeil(cluster: TestCluster, values: Readonly<Record<string, string>> = {}): Promise<void> {
  await bringImage(cluster);
  await helm(cluster, "install", "veil", CHART, ...valuesOf(values));
  await rolledOut(cluster);
}

/** The lines of a section of the README. */
export interface ReadmeLines {
  /** Runs the line that begins with these words, as it is written; fails the test when it fails, or is not there. */
  run(beginning: string): Promise<string>;
}

/**
 * The lines under "On a cluster", with what a reader has done before: the image is where nodes find it, and values.yaml names it.
 * `kubectl` and `helm` are on the path and talk to the cluster.
 */
export async function readmeLines(cluster: TestCluster): Promise<ReadmeLines> {
  await bringImage(cluster);
  const home = join(FOLDER, "reader");
  mkdirSync(home);
  symlinkSync(join(CHECKOUT, "deploy"), join(home, "deploy"));
  writeFileSync(join(home, "values.yaml"), `image: {tag: ${TAG}}\ncontroller: {clusterIP: ${CONTROLLER_ADDRESS}}\n`);
  const programs = [await ensureKubectl({ env: process.env }), await ensureHelm({ env: process.env })];
  const path = [...programs.map((program) => dirname(program)), process.env["PATH"]].join(delimiter);
  const section = readFileSync(join(CHECKOUT, "README.md"), "utf8")
    .split("\n## ")
    .find((text) => text.startsWith("On a cluster\n"));
  const lines = /```sh\n(.*?)```/s.exec(section ?? "")?.[1]?.split("\n") ?? [];
  return {
    run(beginning) {
      const line = lines.find((one) => one.startsWith(beginning));
      assert.ok(line, `the README has no line ${beginning} …`);
      return must(["sh", "-c", `cd ${home} && ${line}`], { env: { ...environment(cluster), PATH: path } });
    },
  };
}

/** Waits until all of Veil runs as it was asked for last. */
export async function rolledOut(cluster: TestCluster): Promise<void> {
  const workloads = await cluster.kubectl("-n", VEIL_NAMESPACE, "get", "deployments,daemonsets", "-o", "name");
  const names = workloads.split("\n").filter(Boolean);
  await cluster.kubectl("-n", VEIL_NAMESPACE, "rollout", "status", "--timeout=300s", ...names);
}

function valuesOf(values: Readonly<Record<string, string>>): string[] {
  const all = { "image.tag": TAG, "controller.clusterIP": CONTROLLER_ADDRESS, ...values };
  return Object.entries(all).flatMap(([path, value]) => ["--set", `${path}=${value}`]);
}
