import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdir, mkdtemp, rename, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import { pipeline } from "node:stream/promises";
import { promisify } from "node:util";

const run = promisify(execFile);

/** An image of one layer, to be written as a tar that `ctr images import` takes. */
export interface OciImage {
  /** The folder that becomes the image's root. */
  readonly root: string;
  /** With registry and tag, as `docker.io/local/veil:dev`: Kubernetes looks for names of this form. */
  readonly name: string;
  /** `Entrypoint`, `Env`, `User` and the like (OCI image specification, `config`). */
  readonly config: Readonly<Record<string, unknown>>;
}

/** What all files in the tars carry, so that the same content is the same image to the byte. */
const SAME_EVERYWHERE = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--format=ustar"];
const MEDIA = "application/vnd.oci.image";

/**
 * Writes an image as an OCI layout in a tar, without Docker. Modes and links of the folder are kept; owners and times are not, and
 * the same folder gives the same bytes. Answers the manifest's digest.
 */
export async function writeOciImage(image: OciImage, file: string): Promise<string> {
  const work = await mkdtemp(join(tmpdir(), "veil-oci-"));
  try {
    const blobs = join(work, "blobs/sha256");
    await mkdir(blobs, { recursive: true });
    const layer = await layerOf(image.root, blobs);
    const config = await jsonBlob(blobs, `${MEDIA}.config.v1+json`, {
      architecture: process.arch === "x64" ? "amd64" : process.arch,
      os: "linux",
      config: image.config,
      rootfs: { type: "layers", diff_ids: [layer.digest] },
      history: [{ created_by: "veil tools/oci.ts" }],
    });
    const manifest = { schemaVersion: 2, mediaType: `${MEDIA}.manifest.v1+json`, config, layers: [layer] };
    const found = await jsonBlob(blobs, manifest.mediaType, manifest);
    const annotations = {
      "io.containerd.image.name": image.name,
      "org.opencontainers.image.ref.name": image.name.slice(image.name.lastIndexOf(":") + 1),
    };
    const index = { schemaVersion: 2, manifests: [{ ...found, annotations }] };
    await writeFile(join(work, "index.json"), JSON.stringify(index));
    await writeFile(join(work, "oci-layout"), '{"imageLayoutVersion":"1.0.0"}');
    const unfinished = join(dirname(resolve(file)), `.${basename(file)}.${process.pid}`);
    await run("tar", ["-cf", unfinished, ...SAME_EVERYWHERE, "-C", work, "blobs", "index.json", "oci-layout"]);
    await rename(unfinished, file);
    return found.digest;
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

interface Descriptor {
  readonly mediaType: string;
  readonly digest: string;
  readonly size: number;
}

async function layerOf(root: string, blobs: string): Promise<Descriptor> {
  const unnamed = join(blobs, "layer");
  await run("tar", ["-cf", unnamed, ...SAME_EVERYWHERE, "-C", root, "."]);
  const hash = createHash("sha256");
  await pipeline(createReadStream(unnamed), hash);
  const digest = hash.digest("hex");
  await rename(unnamed, join(blobs, digest));
  const { size } = await stat(join(blobs, digest));
  return { mediaType: `${MEDIA}.layer.v1.tar`, digest: `sha256:${digest}`, size };
}

async function jsonBlob(blobs: string, mediaType: string, value: unknown): Promise<Descriptor> {
  const text = JSON.stringify(value);
  const digest = createHash("sha256").update(text).digest("hex");
  await writeFile(join(blobs, digest), text);
  return { mediaType, digest: `sha256:${digest}`, size: Buffer.byteLength(text) };
}
