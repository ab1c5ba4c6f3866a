import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import fc from "fast-check";
import { FakeClock } from "#base/clock";
import { CodedError } from "#base/errors";
import { findKubeConfig, loadKubeConfig } from "./config.ts";
import { decodeCredentials, LOGIN_VERSIONS, programCredentials } from "./login-program.ts";

const directory = mkdtempSync(join(tmpdir(), "vt-kube-"));
after(() => rmSync(directory, { recursive: true }));
const [V1] = LOGIN_VERSIONS;

/** A program beside the kubeconfig that counts its calls, keeps what it was told, and answers with the file `answer`. */
function writeProgram(): void {
  const lines = [
    "#!/bin/sh",
    "cd ${0%/*}",
    "echo x >>calls",
    'echo "$KUBERNETES_EXEC_INFO" >told',
    'echo "$1 $CLUSTER" >>told',
    "cat answer",
  ];
  writeFileSync(join(directory, "login"), `${lines.join("\n")}\n`);
  chmodSync(join(directory, "login"), 0o755);
}

function answer(status: object): void {
  writeFileSync(join(directory, "answer"), JSON.stringify({ apiVersion: V1, kind: "ExecCredential", status }));
}

function kubeconfig(exec: object): string {
  const file = join(directory, "config");
  const document = {
    "current-context": "c",
    contexts: [{ name: "c", context: { cluster: "k", user: "u" } }],
    clusters: [{ name: "k", cluster: { server: "https://127.0.0.1:6443" } }],
    users: [{ name: "u", user: { exec } }],
  };
  writeFileSync(file, JSON.stringify(document));
  return file;
}

const calls = (): number => readFileSync(join(directory, "calls"), "utf8").length / 2;

test("a user of a kubeconfig logs in by the program that it names, as AKS, EKS and GKE do", async () => {
  writeProgram();
  answer({ token: "one" });
  const env = [{ name: "CLUSTER", value: "blue" }];
  const exec = {
    apiVersion: V1,
    command: "./login",
    args: ["get-token"],
    env,
    interactiveMode: "Never",
    provideClusterInfo: true,
  };
  const path = process.env["PATH"];
  const config = await findKubeConfig({ PATH: path }, kubeconfig(exec));
  assert.deepEqual(await config.credentials(), { token: "one" });
  assert.deepEqual(await config.credentials(), { token: "one" });
  assert.equal(calls(), 1);
  const [info = "", words] = readFileSync(join(directory, "told"), "utf8").split("\n");
  assert.equal(words, "get-token blue");
  assert.deepEqual(JSON.parse(info), {
    apiVersion: V1,
    kind: "ExecCredential",
    spec: { interactive: false, cluster: { server: "https://127.0.0.1:6443", "insecure-skip-tls-verify": false } },
  });
  await assert.rejects(loadKubeConfig(kubeconfig(exec)), { code: "KUBE_CONFIG_UNSUPPORTED", message: /user\.exec/ });
});

test("it is asked again when its credentials have run out, or when it failed", async () => {
  writeProgram();
  writeFileSync(join(directory, "calls"), "");
  const clock = new FakeClock();
  const program = {
    place: "config: users[0].user.exec",
    apiVersion: V1,
    command: join(directory, "login"),
    args: [],
    env: { PATH: process.env["PATH"] },
    interactive: false,
    cluster: undefined,
    installHint: undefined,
  };
  const credentials = programCredentials(program, clock);
  writeFileSync(join(directory, "answer"), "sorry");
  await assert.rejects(credentials(), { code: "KUBE_LOGIN", message: /no JSON/ });
  answer({
    clientCertificateData: "c",
    clientKeyData: "k",
    expirationTimestamp: new Date(clock.now() + 60_000).toISOString(),
  });
  assert.deepEqual(await credentials(), { certPem: "c", keyPem: "k" });
  await clock.advance(49_000);
  await Promise.all([credentials(), credentials()]);
  assert.equal(calls(), 2);
  await clock.advance(1_000);
  answer({ token: "newer" });
  assert.deepEqual(await credentials(), { token: "newer" });
  assert.equal(calls(), 3);
});

test("what is wrong with the program or its description is named, with the word on how to install it", async () => {
  const good = { apiVersion: V1, command: "vt-no-such-program", installHint: "get it from the shop" };
  const missing = await findKubeConfig({ PATH: "/nowhere" }, kubeconfig(good));
  await assert.rejects(missing.credentials(), {
    code: "KUBE_LOGIN",
    message: /users\[0\]\.user\.exec: vt-no-such-program .*ENOENT; get it from the shop/,
  });
  const fails = await findKubeConfig({ PATH: process.env["PATH"] }, kubeconfig({ ...good, command: "false" }));
  await assert.rejects(fails.credentials(), { code: "KUBE_LOGIN", message: /it ended with 1/ });
  const cases: [object, RegExp][] = [
    [{ ...good, apiVersion: "client.authentication.k8s.io/v1alpha1" }, /user\.exec\.apiVersion is not one of/],
    [{ apiVersion: V1 }, /user\.exec\.command is missing/],
    [{ ...good, args: "get-token" }, /user\.exec\.args is no list/],
    [{ ...good, args: [7] }, /user\.exec\.args\[0\] is no text/],
    [{ ...good, env: [{ value: "x" }] }, /user\.exec\.env\[0\]\.name is missing/],
  ];
  for (const [exec, message] of cases) {
    await assert.rejects(findKubeConfig({}, kubeconfig(exec)), { code: "KUBE_CONFIG_INVALID", message });
  }
});

test("any answer is read, or refused with the one code", () => {
  const status = fc.oneof(fc.jsonValue(), fc.record({ token: fc.jsonValue(), expirationTimestamp: fc.jsonValue() }));
  const text = fc.oneof(
    fc.string(),
    status.map((value) => JSON.stringify({ apiVersion: V1, status: value })),
  );
  fc.assert(
    fc.property(text, (given) => {
      try {
        const { credentials } = decodeCredentials(given, { place: "here", command: "login", apiVersion: V1 });
        assert.ok(credentials.token !== undefined || credentials.certPem !== undefined);
      } catch (error) {
        assert.ok(error instanceof CodedError && error.code === "KUBE_LOGIN", String(error));
      }
    }),
  );
});
