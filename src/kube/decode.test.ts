import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { CodedError } from "#base/errors";
import { inClusterConfig, loadKubeConfig, parseKubeConfig } from "./config.ts";
import { parseStatus, parseStatusText } from "./errors.ts";
import { exitCode } from "./exec.ts";
import { parseEvent, readLines } from "./watch.ts";

const GOOD = {
  "current-context": "c",
  contexts: [{ name: "c", context: { cluster: "k", user: "u", namespace: "shop" } }],
  clusters: [{ name: "k", cluster: { server: "https://127.0.0.1:6443", "certificate-authority-data": "QUJD" } }],
  users: [{ name: "u", user: { "client-certificate-data": "Yw==", "client-key-data": "aw==" } }],
};

function kubeCode(error: unknown): boolean {
  return error instanceof CodedError && error.code.startsWith("KUBE_");
}

test("a kubeconfig is read with its certificate", async () => {
  const config = await parseKubeConfig(JSON.stringify(GOOD), "/x/config");
  assert.equal(config.server, "https://127.0.0.1:6443");
  assert.equal(config.caPem, "ABC");
  assert.equal(config.namespace, "shop");
  assert.deepEqual(await config.credentials(), { certPem: "c", keyPem: "k" });
});

test("another context than the current one can be asked for", async () => {
  const other = { name: "other", context: { cluster: "k", namespace: "bank" } };
  const text = JSON.stringify({ ...GOOD, "current-context": undefined, contexts: [...GOOD.contexts, other] });
  assert.equal((await parseKubeConfig(text, "/x/config", { context: "other" })).namespace, "bank");
  await assert.rejects(parseKubeConfig(text, "/x/config", { context: "third" }), /contexts has no entry "third"/);
});

test("each mistake in a kubeconfig is named by file and field", async () => {
  const cases: [unknown, RegExp][] = [
    ["{", /no YAML/],
    ["hello", /is no mapping/],
    [{ ...GOOD, "current-context": undefined }, /current-context is missing/],
    [{ ...GOOD, "current-context": "other" }, /contexts has no entry "other"/],
    [{ ...GOOD, contexts: [{ name: "c", context: {} }] }, /contexts\[0\]\.context\.cluster is missing/],
    [{ ...GOOD, clusters: "none" }, /clusters is missing or no list/],
    [{ ...GOOD, clusters: [{ name: "k", cluster: {} }] }, /clusters\[0\]\.cluster\.server is missing/],
    [{ ...GOOD, clusters: [{ name: "k", cluster: { server: "http://x" } }] }, /cluster\.server is no https/],
    [{ ...GOOD, clusters: [{ name: "k", cluster: { server: 7 } }] }, /cluster\.server is no text/],
    [
      {
        ...GOOD,
        clusters: [{ name: "k", cluster: { server: "https://x", "certificate-authority-data": "%" } }],
      },
      /certificate-authority-data is no base64/,
    ],
    [{ ...GOOD, users: [{ name: "u", user: { "client-key-data": "aw==" } }] }, /client-certificate is missing/],
    [{ ...GOOD, users: [{ name: "u", user: { exec: {} } }] }, /users\[0\]\.user\.exec is not supported/],
  ];
  for (const [document, expected] of cases) {
    const text = typeof document === "string" ? document : JSON.stringify(document);
    await assert.rejects(parseKubeConfig(text, "/x/config"), (error: Error) => {
      assert.match(error.message, /^\/x\/config: /);
      assert.match(error.message, expected);
      return kubeCode(error);
    });
  }
  await assert.rejects(loadKubeConfig("/does/not/exist"), { code: "KUBE_CONFIG_UNREADABLE", message: /not\/exist/ });
});

test("files beside a kubeconfig are found, and a token file is read again for each request", async (t) => {
  const directory = mkdtempSync(join(tmpdir(), "vt-kube-"));
  t.after(() => rmSync(directory, { recursive: true }));
  writeFileSync(join(directory, "token"), "one\n");
  writeFileSync(
    join(directory, "config"),
    JSON.stringify({ ...GOOD, users: [{ name: "u", user: { tokenFile: "token" } }] }),
  );
  const config = await loadKubeConfig(join(directory, "config"));
  assert.deepEqual(await config.credentials(), { token: "one" });
  writeFileSync(join(directory, "token"), "two");
  assert.deepEqual(await config.credentials(), { token: "two" });
});

test("a pod's own credentials are read from where they are mounted", async (t) => {
  const directory = mkdtempSync(join(tmpdir(), "vt-kube-"));
  t.after(() => rmSync(directory, { recursive: true }));
  const env = { KUBERNETES_SERVICE_HOST: "10.96.0.1", KUBERNETES_SERVICE_PORT: "443" };
  await assert.rejects(inClusterConfig({}, directory), { code: "KUBE_CONFIG_NOT_IN_CLUSTER" });
  await assert.rejects(inClusterConfig(env, directory), { code: "KUBE_CONFIG_UNREADABLE", message: /ca\.crt/ });
  writeFileSync(join(directory, "ca.crt"), "CA");
  writeFileSync(join(directory, "namespace"), "veil-system\n");
  writeFileSync(join(directory, "token"), "t");
  const config = await inClusterConfig(env, directory);
  assert.equal(config.server, "https://10.96.0.1:443");
  assert.equal(config.namespace, "veil-system");
});

test("no text is a kubeconfig by accident, and none breaks the reader", async () => {
  const mutated = fc.tuple(fc.nat(), fc.string({ maxLength: 4 })).map(([at, piece]) => {
    const text = JSON.stringify(GOOD);
    const place = at % text.length;
    return text.slice(0, place) + piece + text.slice(place + 1);
  });
  await fc.assert(
    fc.asyncProperty(
      fc.oneof(
        fc.string(),
        mutated,
        fc.jsonValue().map((value) => JSON.stringify(value)),
      ),
      async (text) => {
        await parseKubeConfig(text, "/x/config").catch((error: unknown) => assert.ok(kubeCode(error), String(error)));
      },
    ),
  );
});

test("watch lines are joined however they arrive", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.jsonValue().map((value) => JSON.stringify(value))),
      fc.array(fc.nat(40)),
      async (lines, cuts) => {
        const bytes = Buffer.from(lines.map((line) => `${line}\n`).join(""));
        async function* chunks(): AsyncGenerator<Uint8Array> {
          let at = 0;
          for (const cut of cuts) {
            yield bytes.subarray(at, at + cut);
            at += cut;
          }
          yield bytes.subarray(at);
        }
        const seen: string[] = [];
        for await (const line of readLines(chunks())) seen.push(line);
        assert.deepEqual(seen, lines);
      },
    ),
  );
});

test("any line of a watch is an event or a coded error", () => {
  const eventLike = fc.record({
    type: fc.oneof(fc.constantFrom("ADDED", "ERROR", "BOOKMARK"), fc.string()),
    object: fc.jsonValue(),
  });
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        eventLike.map((value) => JSON.stringify(value)),
      ),
      (line) => {
        try {
          assert.equal(typeof parseEvent("/x", line).object, "object");
        } catch (error) {
          assert.ok(kubeCode(error), String(error));
        }
      },
    ),
  );
  const gone = JSON.stringify({ type: "ERROR", object: { kind: "Status", code: 410, message: "too old" } });
  assert.throws(() => parseEvent("/x", gone), { code: "KUBE_GONE" });
});

test("the end of an exec session is read from its Status", () => {
  assert.equal(exitCode("exec", { status: "Success" }), 0);
  const causes = [{ reason: "ExitCode", message: "7" }];
  assert.equal(exitCode("exec", parseStatus({ status: "Failure", details: { causes } })), 7);
  assert.throws(() => exitCode("exec", {}), { code: "KUBE_EXEC" });
  assert.deepEqual(parseStatusText("oops"), { message: "oops" });
  fc.assert(fc.property(fc.jsonValue(), (value) => assert.equal(typeof parseStatus(value), "object")));
});
