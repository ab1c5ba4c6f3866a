import { existsSync, mkdirSync, readFileSync, realpathSync, statSync } from "node:fs";
import type { Container, Pod } from "#kube";
import type { Clock } from "#base/clock";
import type { MountPlan } from "./container-plan.ts";
import { underRun } from "./container-script.ts";
import { needField, type ContentKind, type ContentReader, type DownwardFacts } from "./environment.ts";
import { kubeletError } from "./errors.ts";
import { findJsonFile, writeFileWhole, type PodFiles } from "./pod-files.ts";

/** Where contents of volumes come from. */
export interface VolumeSources extends ContentReader {
  token(
    pod: Pod,
    request: { audience: string | undefined; expirationSeconds: number },
  ): Promise<{ token: string; expiresMs: number }>;
}

type PodSpec = NonNullable<Pod["spec"]>;
type Volume = NonNullable<PodSpec["volumes"]>[number];
type Projected = NonNullable<NonNullable<Volume["projected"]>["sources"]>[number];
type ObjectSource = { name?: string; optional?: boolean; items?: readonly Item[] };
type Item = { key: string; path: string };

const DEFAULT_TOKEN_SECONDS = 3600;
/** Contents that can change are written again this often, if nothing of theirs expires before. */
const REFRESH_MS = 10_000;

/**
 * Writes the contents of all volumes of a pod, files one by one and each whole. Called again, it writes what has changed.
 * Resolves with the time (milliseconds since the epoch) at which to call it again; undefined: never.
 * Throws `KUBELET_VOLUME` or `KUBELET_UNSUPPORTED`, naming volume and object.
 */
export async function fillVolumes(
  facts: DownwardFacts,
  files: PodFiles,
  parts: { sources: VolumeSources; clock: Clock },
): Promise<number | undefined> {
  const changing: number[] = [];
  for (const volume of facts.pod.spec?.volumes ?? []) {
    const folder = files.volume(volume.name);
    if (volume.hostPath !== undefined) {
      makeHostPath(volume);
      continue;
    }
    mkdirSync(folder, { recursive: true });
    if (volume.emptyDir !== undefined) continue;
    const filler = new Filler(facts, folder, parts);
    await filler.volume(volume);
    changing.push(Math.min(filler.expiresMs, parts.clock.now() + REFRESH_MS));
  }
  return changing.length === 0 ? undefined : Math.min(...changing);
}

function makeHostPath(volume: Volume): void {
  const { path = "", type = "" } = volume.hostPath ?? {};
  if (type === "DirectoryOrCreate") mkdirSync(path, { recursive: true });
  if (!existsSync(path)) {
    throw kubeletError("KUBELET_VOLUME", `volume ${volume.name}: ${path} does not exist on this node`);
  }
}

/** Fills one folder from its sources. */
class Filler {
  /** When the first of what was written must be renewed. */
  expiresMs = Number.POSITIVE_INFINITY;
  readonly #facts: DownwardFacts;
  readonly #folder: string;
  readonly #parts: { sources: VolumeSources; clock: Clock };

  constructor(facts: DownwardFacts, folder: string, parts: { sources: VolumeSources; clock: Clock }) {
    this.#facts = facts;
    this.#folder = folder;
    this.#parts = parts;
  }

  async volume(volume: Volume): Promise<void> {
    const { name, secret, configMap, projected, downwardAPI } = volume;
    if (secret !== undefined) {
      return this.#objects(name, { secret: { ...secret, name: secret.secretName ?? "" } });
    }
    if (configMap !== undefined) return this.#objects(name, { configMap });
    if (downwardAPI !== undefined) return this.#objects(name, { downwardAPI });
    if (projected === undefined) {
      throw kubeletError(
        "KUBELET_UNSUPPORTED",
        `volume ${name}: only secret, configMap, projected, downwardAPI, emptyDir and hostPath volumes`,
      );
    }
    for (const source of projected.sources ?? []) await this.#objects(name, source);
  }

  async #objects(name: string, source: Projected): Promise<void> {
    if (source.configMap !== undefined) await this.#object(name, "configMap", source.configMap);
    if (source.secret !== undefined) await this.#object(name, "secret", source.secret);
    if (source.serviceAccountToken !== undefined) await this.#token(source.serviceAccountToken);
    for (const item of source.downwardAPI?.items ?? []) {
      const value = needField(this.#facts, item.fieldRef?.fieldPath ?? "", `volume ${name}`);
      this.#put(item.path, Buffer.from(value));
    }
  }

  async #object(volume: string, kind: ContentKind, ref: ObjectSource): Promise<void> {
    const namespace = this.#facts.pod.metadata?.namespace ?? "default";
    const { name = "", optional = false, items } = ref;
    const data = await this.#parts.sources.content(kind, namespace, name);
    if (data === undefined && !optional) {
      throw kubeletError("KUBELET_VOLUME", `volume ${volume}: there is no ${kind} ${namespace}/${name}`);
    }
    this.#write(volume, data ?? {}, items);
  }

  /** Writes a token, unless the one that is there has more than a fifth of its life before it. */
  async #token(request: { path: string; audience?: string; expirationSeconds?: number }): Promise<void> {
    const { clock, sources } = this.#parts;
    const expirationSeconds = request.expirationSeconds ?? DEFAULT_TOKEN_SECONDS;
    // Beside the volume, out of the container's sight.
    const note = `${this.#folder}.${request.path.replaceAll("/", "_")}.renew`;
    const known = findJsonFile(note);
    if (typeof known === "number" && known > clock.now() && existsSync(`${this.#folder}/${request.path}`)) {
      this.expiresMs = Math.min(this.expiresMs, known);
      return;
    }
    const { token, expiresMs } = await sources.token(this.#facts.pod, {
      audience: request.audience,
      expirationSeconds,
    });
    const renewMs = clock.now() + Math.max(1_000, (expiresMs - clock.now()) * 0.8);
    this.#put(request.path, Buffer.from(token));
    writeFileWhole(note, JSON.stringify(renewMs));
    this.expiresMs = Math.min(this.expiresMs, renewMs);
  }

  #write(name: string, data: Readonly<Record<string, Buffer>>, items: readonly Item[] | undefined): void {
    for (const { key, path } of items ?? Object.keys(data).map((key) => ({ key, path: key }))) {
      const value = data[key];
      if (value === undefined) throw kubeletError("KUBELET_VOLUME", `volume ${name}: there is no key ${key}`);
      this.#put(path, value);
    }
  }

  #put(path: string, content: Buffer): void {
    if (path.split("/").includes("..")) throw kubeletError("KUBELET_VOLUME", `a volume cannot have the path ${path}`);
    const file = `${this.#folder}/${path}`;
    if (existsSync(file) && readFileSync(file).equals(content)) return;
    writeFileWhole(file, content);
  }
}

/** What a container sees where. Throws `KUBELET_UNSUPPORTED` when a path would have to be made on the machine itself. */
export function containerMounts(pod: Pod, container: Container, files: PodFiles): MountPlan[] {
  const volumes = new Map((pod.spec?.volumes ?? []).map((volume) => [volume.name, volume]));
  const mounts = (container.volumeMounts ?? []).map((mount) => {
    const volume = volumes.get(mount.name);
    if (volume === undefined) throw kubeletError("KUBELET_VOLUME", `there is no volume ${mount.name}`);
    const root = volume.hostPath?.path ?? files.volume(volume.name);
    const source = mount.subPath === undefined ? root : `${root}/${mount.subPath}`;
    return planMount(source, mount.mountPath, mount.readOnly === true);
  });
  return [...mounts.filter((mount) => !isSame(mount)), ...nameFiles(files)];
}

/** resolv.conf and hosts, over the machine's own. */
function nameFiles(files: PodFiles): MountPlan[] {
  return [
    [files.resolvConf, "/etc/resolv.conf"],
    [files.hosts, "/etc/hosts"],
  ].flatMap(([source = "", path = ""]) => {
    const target = realPath(path);
    return target === undefined ? [] : [{ source, target, readOnly: false, isFolder: false }];
  });
}

function planMount(source: string, target: string, readOnly: boolean): MountPlan {
  const isFolder = existsSync(source) && statSync(source).isDirectory();
  if (underRun(target) !== undefined) return { source, target, readOnly, isFolder };
  const real = realPath(target);
  if (real === undefined) {
    throw kubeletError(
      "KUBELET_UNSUPPORTED",
      `volumeMounts: ${target} does not exist on this machine; only paths under /run may be new`,
    );
  }
  return { source, target: real, readOnly, isFolder };
}

/** A part of the machine that the container sees anyway, at that very path. */
function isSame(mount: MountPlan): boolean {
  return underRun(mount.target) === undefined && mount.source === mount.target && !mount.readOnly;
}

function realPath(path: string): string | undefined {
  try {
    return realpathSync(path);
  } catch {
    return undefined;
  }
}
