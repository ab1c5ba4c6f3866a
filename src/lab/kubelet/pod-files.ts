import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";

/**
 * Where the kubelet keeps what must outlive it: one folder per pod, named by its UID.
 *
 *     <state>/netns/<uid>                    the pod's network namespace (a bind mount; the agent finds it here)
 *     <state>/uts/<uid>                      its hostname
 *     <state>/pods/<uid>/pod.json            the object, its address and its host interface
 *     <state>/pods/<uid>/volumes/<name>/     what is mounted into containers
 *     <state>/pods/<uid>/containers/<container>/run.json    the latest attempt
 *     <state>/pods/<uid>/containers/<container>/<n>.pid     the process as the node sees it: written by itself before it becomes the command
 *     <state>/pods/<uid>/containers/<container>/<n>.exit    its exit code; <n>.err: why it did not start; <n>.log: what it printed
 */
export interface PodFiles {
  readonly uid: string;
  readonly folder: string;
  readonly netns: string;
  readonly uts: string;
  readonly manifest: string;
  /** Is there when the pod may run: enrolled, or not to be enrolled. */
  readonly enrolled: string;
  /** Is there when all volumes have been filled once. */
  readonly filled: string;
  readonly resolvConf: string;
  readonly hosts: string;
  volume(name: string): string;
  container(name: string): ContainerFiles;
}

/** The files of one container. */
export interface ContainerFiles {
  readonly folder: string;
  readonly run: string;
  attempt(number: number): { pid: string; exit: string; error: string; log: string; script: string; runMount: string };
}

/** The files of a pod below a kubelet's state folder. */
export function podFiles(state: string, uid: string): PodFiles {
  const folder = `${state}/pods/${uid}`;
  return {
    uid,
    folder,
    netns: `${state}/netns/${uid}`,
    uts: `${state}/uts/${uid}`,
    manifest: `${folder}/pod.json`,
    enrolled: `${folder}/enrolled`,
    filled: `${folder}/filled`,
    resolvConf: `${folder}/resolv.conf`,
    hosts: `${folder}/hosts`,
    volume: (name) => `${folder}/volumes/${name}`,
    container: (name) => containerFiles(`${folder}/containers/${name}`),
  };
}

function containerFiles(folder: string): ContainerFiles {
  return {
    folder,
    run: `${folder}/run.json`,
    attempt: (number) => ({
      pid: `${folder}/${number}.pid`,
      exit: `${folder}/${number}.exit`,
      error: `${folder}/${number}.err`,
      log: `${folder}/${number}.log`,
      script: `${folder}/${number}.sh`,
      runMount: `${folder}/run`,
    }),
  };
}

/** UIDs of all pods that have a folder. */
export function knownPods(state: string): string[] {
  try {
    return readdirSync(`${state}/pods`);
  } catch {
    return [];
  }
}

/** Writes a file so that a reader, also one after a crash, sees the old or the new content. Makes its folder. */
export function writeFileWhole(path: string, content: string | Uint8Array, mode = 0o644): void {
  const part = `${path}.part`;
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(part, content, { mode });
  renameSync(part, path);
}

/** The text of a file; undefined when it is not there. */
export function findText(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}

/** A JSON file of the kubelet itself; undefined when it is missing or no JSON. */
export function findJsonFile(path: string): unknown {
  try {
    return JSON.parse(readFileSync(path, "utf8"));
  } catch {
    return undefined;
  }
}

/** Removes a file or a folder; what is not there is no failure. */
export function removePath(path: string): void {
  rmSync(path, { recursive: true, force: true });
}
