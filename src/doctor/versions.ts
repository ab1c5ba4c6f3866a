import { INSTALLED, type InstalledRole } from "#install";
import { count, voiceOf, type Finding } from "./finding.ts";
import type { JudgedPod } from "./pods.ts";

const voice = voiceOf("versions");
const ROLES = Object.keys(INSTALLED) as InstalledRole[]; // the keys of the table of just that type
const APPS: ReadonlySet<string> = new Set(Object.values(INSTALLED).map(({ app }) => app));

interface Version {
  readonly text: string;
  readonly major: number;
  readonly minor: number;
}

/** Whether the roles' versions, as their images say them, are at most one minor apart, and this program's with them. */
export function checkVersions(pods: readonly JudgedPod[], namespace: string, own: string): readonly Finding[] {
  const images = imagesOf(pods, namespace);
  if (images.length === 0) return [voice.notChecked(`no pod of Veil runs in namespace ${namespace}`)];
  const tags = [...new Set(images.map(({ image }) => tagOf(image)))];
  const versions = tags.flatMap((tag) => findVersion(tag) ?? []);
  if (versions.length < tags.length) return [withoutVersions(images)];
  const findings = checkSkew(versions, images);
  const [program] = [findVersion(own)].flatMap((found) => found ?? []);
  if (program !== undefined && versions.some((one) => isTooFar(program, one))) {
    findings.push(
      voice.warning(
        `this program is ${own}, the cluster runs ${tags.join(", ")}: what it says may not be about them`,
        "run the doctor of the cluster's version",
      ),
    );
  }
  return findings.length > 0 ? findings : [voice.ok(`all ${count(images.length, "container")} run ${tags.join("")}`)];
}

interface RunningImage {
  readonly role: string;
  readonly image: string;
}

function imagesOf(pods: readonly JudgedPod[], namespace: string): RunningImage[] {
  return pods
    .filter((one) => one.namespace === namespace && APPS.has(one.labels["app"] ?? ""))
    .flatMap(({ pod }) => pod.spec?.containers ?? [])
    .flatMap(({ name, image }) =>
      ROLES.some((role) => role === name) && image !== undefined ? [{ role: name, image }] : [],
    );
}

function withoutVersions(images: readonly RunningImage[]): Finding {
  const different = [...new Set(images.map(({ image }) => image))];
  if (different.length === 1) return voice.ok(`all ${count(images.length, "container")} run ${different.join("")}`);
  return voice.notChecked(
    `the images ${different.join(", ")} do not say their versions: the roles may be one minor version apart`,
  );
}

function checkSkew(versions: readonly Version[], images: readonly RunningImage[]): Finding[] {
  if (versions.length < 2) return [];
  const shown = ROLES.map((role) => {
    const tags = new Set(images.filter((one) => one.role === role).map(({ image }) => tagOf(image)));
    return `${role} ${[...tags].join(" and ")}`;
  }).join(", ");
  if (versions.some((one) => versions.some((other) => isTooFar(one, other)))) {
    return [
      voice.problem(
        `the roles are more than one minor version apart: ${shown}`,
        "finish the upgrade, or go back; one minor version at a time (docs/upgrade.md)",
      ),
    ];
  }
  return [
    voice.warning(`several versions run: ${shown}`, "nothing, while an upgrade is under way; otherwise finish it"),
  ];
}

function isTooFar(one: Version, other: Version): boolean {
  return one.major !== other.major || Math.abs(one.minor - other.minor) > 1;
}

/** What is behind the name of an image; a digest counts as one. */
function tagOf(image: string): string {
  return /[:@]([^/]+)$/.exec(image)?.[1] ?? "";
}

function findVersion(text: string): Version | undefined {
  const match = /^v?(\d+)\.(\d+)\.\d+(?:[-+].*)?$/.exec(text);
  return match === null ? undefined : { text, major: Number(match[1]), minor: Number(match[2]) };
}
