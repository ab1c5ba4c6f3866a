import type { ContainerFiles } from "./pod-files.ts";

/** Something that a container sees at a path. */
export interface MountPlan {
  /** A file or folder of the node. */
  readonly source: string;
  readonly target: string;
  readonly readOnly: boolean;
  readonly isFolder: boolean;
}

/** Everything that a start of a container needs, decided. */
export interface ContainerPlan {
  readonly files: ContainerFiles;
  readonly attempt: number;
  /** The pod's own namespaces; undefined: those of the node. */
  readonly sandbox: { readonly netns: string; readonly uts: string } | undefined;
  readonly hostPid: boolean;
  readonly command: readonly string[];
  readonly environment: Readonly<Record<string, string>>;
  /** Variables by which any process of the container can be found in /proc. Part of `environment` too. */
  readonly marks: Readonly<Record<string, string>>;
  readonly workingDir: string;
  readonly mounts: readonly MountPlan[];
}
