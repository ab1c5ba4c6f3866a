import { chmodSync, copyFileSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { writeOciImage } from "../../tools/oci.ts";
import { must } from "../netns/harness.ts";
import { FOLDER } from "./layout.ts";
import { PAUSE_IMAGE } from "./node.ts";
import { BUSYBOX } from "./requirements.ts";

/** An image with the usual small programs. Without a command its containers wait for ever. */
export const BUSYBOX_IMAGE = "docker.io/local/busybox:1";

/** Writes the images that every cluster has, as tars; answers their paths. */
export async function makeImages(): Promise<string[]> {
  const folder = join(FOLDER, "images");
  const root = join(folder, "busybox");
  await fillRoot(root);
  const wait = { Entrypoint: ["/bin/sleep", "2000000000"], Env: ["PATH=/bin"] };
  const images = [
    { name: PAUSE_IMAGE, config: wait, file: join(folder, "pause.tar") },
    { name: BUSYBOX_IMAGE, config: { Cmd: wait.Entrypoint, Env: wait.Env }, file: join(folder, "busybox.tar") },
  ];
  for (const { name, config, file } of images) await writeOciImage({ root, name, config }, file);
  return images.map(({ file }) => file);
}

async function fillRoot(root: string): Promise<void> {
  for (const name of ["bin", "etc", "tmp"]) mkdirSync(join(root, name), { recursive: true });
  chmodSync(join(root, "tmp"), 0o1777);
  copyFileSync(BUSYBOX, join(root, "bin/busybox"));
  const names = (await must([BUSYBOX, "--list"])).split("\n").filter((name) => name !== "" && name !== "busybox");
  for (const name of names) symlinkSync("busybox", join(root, "bin", name));
  writeFileSync(join(root, "etc/passwd"), "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n");
  writeFileSync(join(root, "etc/group"), "root:x:0:\nnobody:x:65534:\n");
}
