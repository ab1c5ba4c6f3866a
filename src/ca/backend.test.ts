import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { kubeError } from "#kube";
import { DirectoryBackend } from "./directory-backend.ts";
import { SecretBackend } from "./secret-backend.ts";
import { authorityBackendSuite, FakeSecrets } from "./testing.ts";

const folders: string[] = [];
after(() => {
  for (const folder of folders) rmSync(folder, { recursive: true });
});

authorityBackendSuite("a Secret", async () => {
  const secrets = new FakeSecrets();
  return {
    open: () => new SecretBackend({ client: secrets.client() }),
    damage: async (part, change) => {
      const data = secrets.objects.get("veil-system/veil-ca")?.data ?? {};
      data[part] = Buffer.from(change(Buffer.from(data[part] ?? "", "base64").toString())).toString("base64");
    },
    raw: async () => JSON.stringify([...secrets.objects]),
  };
});

function folder(): string {
  const path = mkdtempSync(join(tmpdir(), "vt-ca-"));
  folders.push(path);
  return path;
}

authorityBackendSuite("a directory", async () => {
  const path = join(folder(), "ca");
  const newest = (): string =>
    join(
      path,
      readdirSync(path)
        .filter((name) => name.startsWith("authority-"))
        .toSorted()
        .at(-1) ?? "",
    );
  return {
    open: () => new DirectoryBackend(path),
    damage: async (part, change) => {
      const parts: unknown = JSON.parse(readFileSync(newest(), "utf8"));
      assert.ok(typeof parts === "object" && parts !== null);
      const text = new Map<string, string>(Object.entries(parts)).get(part) ?? "";
      writeFileSync(newest(), JSON.stringify({ ...parts, [part]: change(text) }));
    },
    raw: async () => readFileSync(newest(), "utf8"),
  };
});

test("a Secret that cannot be read is not taken for one that does not exist", async () => {
  const secrets = new FakeSecrets();
  secrets.failure = kubeError("KUBE_FORBIDDEN", "secrets is forbidden");
  const backend = new SecretBackend({ client: secrets.client() });
  await assert.rejects(backend.load(), { code: "CA_STORE", message: /Secret veil-system\/veil-ca/ });
  secrets.failure = kubeError("KUBE_UNAVAILABLE", "no answer");
  await assert.rejects(backend.load(), { code: "CA_STORE" });
  assert.equal(secrets.objects.size, 0);
});

test("files of a directory are root's alone, a crashed draft is no authority, and a file that is not JSON is an error", async () => {
  const path = join(folder(), "ca");
  const backend = new DirectoryBackend(path);
  assert.equal(await backend.load(), undefined);
  assert.equal(statSync(path).mode & 0o777, 0o700);
  writeFileSync(join(path, ".draft-0123"), "half a key");
  assert.equal(await backend.load(), undefined);
  writeFileSync(join(path, "authority-1.json"), "{ half a");
  await assert.rejects(backend.load(), { code: "CA_UNREADABLE", message: /authority-1\.json/ });
});
