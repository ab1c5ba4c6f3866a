import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { FakeClock } from "#base/clock";
import { CodedError } from "#base/errors";
import { kubeError, type TokenVerdict } from "#kube";
import { CallerAuthenticator } from "./caller.ts";
import { agentVerdict } from "./testing.ts";

const TOKEN = "eyJh.eyJz.c2ln";
const bearer = (token: string): Headers => new Headers({ authorization: `Bearer ${token}` });

function setUp(answer: () => TokenVerdict = () => agentVerdict("node1")) {
  const clock = new FakeClock();
  const asked: { token: string; audiences: readonly string[] }[] = [];
  const reviewer = {
    reviewToken: async (token: string, audiences: readonly string[]) => {
      asked.push({ token, audiences });
      return answer();
    },
  };
  return { clock, asked, authenticator: new CallerAuthenticator({ reviewer, clock }) };
}

test("a good token names account, pod and node", async () => {
  const { authenticator, asked } = setUp();
  assert.deepEqual(await authenticator.authenticate(bearer(TOKEN)), {
    namespace: "veil-system",
    serviceAccount: "veil-agent",
    node: "node1",
    podName: "veil-agent-node1",
    podUid: "uid-node1",
  });
  assert.deepEqual(asked, [{ token: TOKEN, audiences: ["istio-ca"] }]);
});

test("each bad header is refused with its own code, and the API server is not bothered", async () => {
  const cases: [header: string | undefined, code: string][] = [
    [undefined, "CA_TOKEN_MISSING"],
    ["Basic dTpw", "CA_TOKEN_SCHEME"],
    [TOKEN, "CA_TOKEN_SCHEME"],
    ["Bearer", "CA_TOKEN_MALFORMED"],
    ["Bearer not-a-token", "CA_TOKEN_MALFORMED"],
    ["Bearer a.b", "CA_TOKEN_MALFORMED"],
    ["Bearer a.b.c.d", "CA_TOKEN_MALFORMED"],
    [`Bearer ${TOKEN} more`, "CA_TOKEN_MALFORMED"],
    [`Bearer ${"a".repeat(16_384)}.b.c`, "CA_TOKEN_MALFORMED"],
  ];
  const { authenticator, asked } = setUp();
  for (const [header, code] of cases) {
    const headers = new Headers(header === undefined ? {} : { authorization: header });
    await assert.rejects(authenticator.authenticate(headers), { code }, header ?? "none");
  }
  assert.equal(asked.length, 0);
});

test("each bad verdict is refused with its own code", async () => {
  const extra = agentVerdict("node1").extra;
  const without = (name: string) =>
    Object.fromEntries(Object.entries(extra).filter(([key]) => key !== `authentication.kubernetes.io/${name}`));
  const cases: [changes: Partial<TokenVerdict>, code: string][] = [
    [{ authenticated: false, error: "token has expired" }, "CA_TOKEN_REJECTED"],
    [{ authenticated: false, error: "token audiences [x] is invalid for the target audiences" }, "CA_TOKEN_AUDIENCE"],
    [{ audiences: [] }, "CA_TOKEN_AUDIENCE"],
    [{ audiences: ["https://kubernetes.default.svc"] }, "CA_TOKEN_AUDIENCE"],
    [{ username: "system:node:node1" }, "CA_TOKEN_NOT_SERVICE_ACCOUNT"],
    [{ username: "system:serviceaccount:a:b:c" }, "CA_TOKEN_NOT_SERVICE_ACCOUNT"],
    [{ username: "x:system:serviceaccount:a:b" }, "CA_TOKEN_NOT_SERVICE_ACCOUNT"],
    [{ groups: ["system:authenticated"] }, "CA_TOKEN_NOT_SERVICE_ACCOUNT"],
    [{ extra: {} }, "CA_TOKEN_NOT_BOUND"],
    [{ extra: without("node-name") }, "CA_TOKEN_NOT_BOUND"],
    [{ extra: without("pod-uid") }, "CA_TOKEN_NOT_BOUND"],
    [{ extra: { ...extra, "authentication.kubernetes.io/node-name": ["node1", "node2"] } }, "CA_TOKEN_NOT_BOUND"],
  ];
  for (const [changes, code] of cases) {
    const { authenticator } = setUp(() => agentVerdict("node1", changes));
    await assert.rejects(authenticator.authenticate(bearer(TOKEN)), { code }, JSON.stringify(changes));
  }
});

test("an API server that cannot be asked is not a refusal of the token", async () => {
  const { authenticator } = setUp(() => {
    throw kubeError("KUBE_UNAVAILABLE", "no answer");
  });
  await assert.rejects(authenticator.authenticate(bearer(TOKEN)), { code: "CA_REVIEW_UNAVAILABLE" });
});

test("a good verdict is kept for ten seconds and shared by those who ask at once; a bad one is not", async () => {
  let good = true;
  const { authenticator, asked, clock } = setUp(() => agentVerdict("node1", { authenticated: good }));
  await Promise.all([1, 2, 3].map(() => authenticator.authenticate(bearer(TOKEN))));
  assert.equal(asked.length, 1);
  good = false;
  await clock.advance(9_999);
  await authenticator.authenticate(bearer(TOKEN));
  await clock.advance(1);
  for (const times of [2, 3]) {
    await assert.rejects(authenticator.authenticate(bearer(TOKEN)), { code: "CA_TOKEN_REJECTED" });
    assert.equal(asked.length, times);
  }
});

test("a token is never kept as it is, nor more than a bounded number of verdicts", async () => {
  const { authenticator, asked } = setUp();
  for (let i = 0; i < 1500; i++) await authenticator.authenticate(bearer(`a.b.${i}`));
  await authenticator.authenticate(bearer("a.b.1499"));
  assert.equal(asked.length, 1500);
  await authenticator.authenticate(bearer("a.b.0"));
  assert.equal(asked.length, 1501);
});

test("no header and no verdict makes anything but a caller or a refusal, and no refusal repeats the token", async () => {
  const text = fc.string({ unit: "grapheme-ascii", maxLength: 60 });
  const verdicts = fc.record({
    authenticated: fc.boolean(),
    username: fc.oneof(text, fc.constant("system:serviceaccount:a:b")),
    uid: text,
    groups: fc.array(fc.oneof(text, fc.constant("system:serviceaccounts"))),
    extra: fc.dictionary(text, fc.array(text)),
    audiences: fc.array(fc.oneof(text, fc.constant("istio-ca"))),
    error: text,
  });
  await fc.assert(
    fc.asyncProperty(fc.oneof(text, fc.constant(`Bearer ${TOKEN}`)), verdicts, async (header, verdict) => {
      const { authenticator } = setUp(() => verdict);
      try {
        const caller = await authenticator.authenticate(new Headers({ authorization: header }));
        assert.ok(verdict.authenticated && verdict.audiences.includes("istio-ca") && caller.node !== "");
      } catch (error) {
        assert.ok(error instanceof CodedError && error.code.startsWith("CA_TOKEN_"), String(error));
        assert.ok(!error.message.includes(TOKEN));
      }
    }),
  );
});
