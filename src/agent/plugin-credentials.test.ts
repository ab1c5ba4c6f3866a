import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeClock } from "#base/clock";
import { kubeError } from "#kube";
import { PluginCredentials } from "./plugin-credentials.ts";

const HOUR = 3_600_000;

function made(account: string | undefined) {
  const clock = new FakeClock();
  const asked: unknown[] = [];
  const state = { away: false };
  const client = {
    config: {
      source: "test",
      server: "https://api:443",
      caPem: "roots",
      insecureSkipTlsVerify: false,
      tlsServerName: undefined,
      namespace: "veil-system",
      credentials: () => Promise.resolve({ token: "the agent's own" }),
    },
    createToken: (namespace: string, name: string, { expirationSeconds = 0 }: { expirationSeconds?: number }) => {
      if (state.away) return Promise.reject(kubeError("KUBE_UNAVAILABLE", "the api is away"));
      asked.push([namespace, name]);
      return Promise.resolve({ token: `token ${asked.length}`, expiresMs: clock.now() + expirationSeconds * 1000 });
    },
  };
  const credentials = new PluginCredentials({ client, namespace: "veil-system", account, clock });
  const token = async (): Promise<unknown> => (JSON.parse(await credentials.text()) as { token: unknown }).token;
  return { clock, asked, state, credentials, token };
}

test("the plugin has a token of its own account, and another one at half of its life", async () => {
  const { clock, asked, credentials, token } = made("veil-cni");
  assert.deepEqual(JSON.parse(await credentials.text()), { server: "https://api:443", ca: "roots", token: "token 1" });
  await clock.advance(11 * HOUR);
  assert.equal(await token(), "token 1");
  await clock.advance(HOUR);
  assert.equal(await token(), "token 2");
  assert.deepEqual(asked, [
    ["veil-system", "veil-cni"],
    ["veil-system", "veil-cni"],
  ]);
});

test("while the API is away the token stays as long as it lives", async () => {
  const { clock, state, token } = made("veil-cni");
  assert.equal(await token(), "token 1");
  state.away = true;
  await clock.advance(23 * HOUR);
  assert.equal(await token(), "token 1");
  await clock.advance(HOUR);
  await assert.rejects(token(), { code: "KUBE_UNAVAILABLE" });
});

test("without an account it has what the agent has", async () => {
  const { asked, token } = made(undefined);
  assert.equal(await token(), "the agent's own");
  assert.deepEqual(asked, []);
});
