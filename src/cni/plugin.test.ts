import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { CodedError } from "#base/errors";
import { answerPlugin, type PluginHost } from "./plugin.ts";
import { CNI_VERSIONS, decodePluginRequest } from "./request.ts";

const never = new AbortController().signal;
const RESULT = { cniVersion: "1.0.0", interfaces: [{ name: "eth0" }], ips: [{ address: "10.1.0.2/24" }], dns: {} };
const CONFIG = { cniVersion: "1.0.0", name: "net", type: "veil-cni", prevResult: RESULT };
const ENV = {
  CNI_COMMAND: "ADD",
  CNI_CONTAINERID: "0a1b",
  CNI_NETNS: "/run/netns/x",
  CNI_IFNAME: "eth0",
  CNI_ARGS: "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-1;K8S_POD_UID=u-1",
};

interface Given {
  readonly env?: Readonly<Record<string, unknown>>;
  readonly config?: Readonly<Record<string, unknown>>;
}

function bodyOf({ env = {}, config = {} }: Given): string {
  return JSON.stringify({ env: { ...ENV, ...env }, config: JSON.stringify({ ...CONFIG, ...config }) });
}

/** A host that notes what it is asked. */
function hostOf(options: { failure?: Error; pending?: readonly string[] } = {}): PluginHost & { asked: unknown[] } {
  const { failure, pending = [] } = options;
  const asked: unknown[] = [];
  const take = async (what: unknown): Promise<void> => {
    asked.push(what);
    if (failure !== undefined) throw failure;
  };
  return { asked, add: (pod) => take(pod), check: (pod) => take(pod), pending: () => pending };
}

/** The number and the message of the error that a request gets; undefined when it ends well. */
async function errorOf(given: Given, host = hostOf()): Promise<[number, string] | undefined> {
  const { text, failure } = await answerPlugin(bodyOf(given), host, never);
  if (failure === undefined) return undefined;
  const { code, msg, cniVersion, details } = JSON.parse(text) as Record<string, unknown>; // of answerPlugin itself
  assert.ok(CNI_VERSIONS.includes(String(cniVersion)));
  assert.equal(typeof details, "string");
  return [Number(code), String(msg)];
}

test("a pod that may start gets the result of the plugins before, in each version", async () => {
  for (const cniVersion of CNI_VERSIONS) {
    const host = hostOf();
    const { text, failure, command } = await answerPlugin(bodyOf({ config: { cniVersion } }), host, never);
    assert.deepEqual([command, failure, JSON.parse(text)], ["ADD", undefined, { ...RESULT, cniVersion }]);
    assert.deepEqual(host.asked, [{ namespace: "shop", name: "cart-1", uid: "u-1", netnsPath: "/run/netns/x" }]);
  }
});

test("a pod that may not start gets the reason; what passes by itself is to be tried again", async () => {
  for (const [code, number] of [
    ["ENROLMENT_CNI_TIMEOUT", 11],
    ["ENROLMENT_CNI_UNKNOWN_POD", 11],
    ["ENROLMENT_KERNEL", 100],
  ] as const) {
    const refused = await errorOf({}, hostOf({ failure: new CodedError(code, "because") }));
    assert.deepEqual(refused, [number, `${code}: because`]);
  }
  assert.deepEqual(await errorOf({}, hostOf({ failure: new Error("bug") })), [100, "CNI_UNEXPECTED: bug"]);
});

test("a container that is no pod passes, half a pod's name does not", async () => {
  const host = hostOf();
  assert.equal(await errorOf({ env: { CNI_ARGS: undefined } }, host), undefined);
  assert.equal(await errorOf({ env: { CNI_ARGS: "IgnoreUnknown=1;lonely" } }, host), undefined);
  assert.deepEqual(host.asked, []);
  for (const CNI_ARGS of ["K8S_POD_NAME=a", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=B", 7])
    assert.equal((await errorOf({ env: { CNI_ARGS } }, host))?.[0], 4);
});

test("what the specification asks of each command is checked, and the field is named", async () => {
  const rows: readonly [Given, number, RegExp][] = [
    [{ env: { CNI_COMMAND: "VERSION" } }, 4, /CNI_COMMAND/],
    [{ env: { CNI_CONTAINERID: "" } }, 4, /CNI_CONTAINERID/],
    [{ env: { CNI_CONTAINERID: "-a" } }, 4, /CNI_CONTAINERID/],
    [{ env: { CNI_NETNS: "" } }, 4, /CNI_NETNS/],
    [{ env: { CNI_NETNS: "relative" } }, 4, /CNI_NETNS/],
    [{ env: { CNI_IFNAME: "sixteen-letters-" } }, 4, /CNI_IFNAME/],
    [{ env: { CNI_COMMAND: "DEL", CNI_IFNAME: undefined } }, 4, /CNI_IFNAME/],
    [{ config: { cniVersion: "0.2.0" } }, 1, /cniVersion/],
    [{ config: { cniVersion: undefined } }, 1, /cniVersion/],
    [{ config: { strict: "yes" } }, 6, /strict/],
    [{ config: { prevResult: [] } }, 6, /prevResult/],
    [{ config: { prevResult: undefined } }, 7, /prevResult/],
    [{ env: { CNI_COMMAND: "CHECK" }, config: { prevResult: undefined } }, 7, /prevResult/],
  ];
  for (const [given, number, named] of rows) {
    const [code, message] = (await errorOf(given)) ?? [0, ""];
    assert.equal(code, number, JSON.stringify(given));
    assert.match(message, named);
  }
});

test("DEL and GC always end well, also when there is no namespace any more", async () => {
  const host = hostOf({ failure: new Error("asked"), pending: ["informers"] });
  assert.equal(await errorOf({ env: { CNI_COMMAND: "DEL", CNI_NETNS: "" } }, host), undefined);
  assert.equal(await errorOf({ env: { CNI_COMMAND: "GC", CNI_CONTAINERID: undefined } }, host), undefined);
});

test("CHECK asks whether the pod is enrolled", async () => {
  const env = { CNI_COMMAND: "CHECK" };
  assert.equal(await errorOf({ env }), undefined);
  const failure = new CodedError("ENROLMENT_NOT_IN_PLACE", "rules are gone");
  assert.deepEqual(await errorOf({ env }, hostOf({ failure })), [100, "ENROLMENT_NOT_IN_PLACE: rules are gone"]);
});

test("STATUS fails only in strict mode: a node that is not ready loses its pods", async () => {
  const env = { CNI_COMMAND: "STATUS", CNI_CONTAINERID: undefined, CNI_NETNS: undefined, CNI_IFNAME: undefined };
  const host = hostOf({ pending: ["informers"] });
  assert.equal(await errorOf({ env, config: { prevResult: undefined } }, host), undefined);
  const config = { prevResult: undefined, strict: true };
  assert.deepEqual(await errorOf({ env, config }, host), [50, "CNI_NOT_READY: the agent waits for informers"]);
  assert.equal(await errorOf({ env, config }), undefined);
});

test("any text is decoded or refused with a code of this component", () => {
  const value = fc.oneof(fc.string(), fc.json(), fc.constant(undefined), fc.integer());
  const env = fc.record(Object.fromEntries(Object.keys(ENV).map((name) => [name, value])));
  const near = fc
    .record({
      env,
      config: fc.oneof(
        value,
        fc.object().map((extra) => JSON.stringify({ ...CONFIG, ...extra })),
      ),
    })
    .map((made) => JSON.stringify(made));
  fc.assert(
    fc.property(fc.oneof(fc.string({ unit: "binary" }), fc.json(), near), (body) => {
      try {
        decodePluginRequest(body);
      } catch (error) {
        assert.ok(error instanceof CodedError && error.code.startsWith("CNI_"), String(error));
      }
    }),
  );
});
