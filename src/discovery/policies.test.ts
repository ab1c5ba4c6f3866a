import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { Authorization, AuthorizationMatch } from "#model/authorization";
import { decodeAuthorization } from "#proto";
import { PolicyDiscovery } from "./policies.ts";
import type { AuthorizationPolicy, PeerAuthentication } from "./security-kinds.ts";

const ROOT = "istio-system";
const STRICT = `${ROOT}/istio_converted_static_strict`;

type Peer = Omit<NonNullable<PeerAuthentication["spec"]>, "mtls" | "portLevelMtls"> & {
  mode?: string;
  ports?: Record<number, string>;
  namespace?: string;
  name?: string;
  at?: string;
};

function peer({
  mode,
  ports,
  namespace = "shop",
  name = "pa",
  at = "2026-01-01T00:00:00Z",
  ...spec
}: Peer): PeerAuthentication {
  const portLevelMtls = Object.fromEntries(Object.entries(ports ?? {}).map(([port, of]) => [port, { mode: of }]));
  return {
    metadata: { name, namespace, creationTimestamp: at },
    spec: { ...spec, ...(mode !== undefined && { mtls: { mode } }), ...(ports !== undefined && { portLevelMtls }) },
  };
}

const selector = { matchLabels: { app: "a" } };
const mesh = (mode: string): Peer => ({ mode, namespace: ROOT, name: "mesh" });
const ofNamespace = (mode: string): Peer => ({ mode, name: "all" });

/** A policy as one word a rule: the ports, and whether it is about who has no identity. */
function inWords({ action, scope, rules }: Authorization): string[] {
  const word = (match: AuthorizationMatch): string =>
    [
      match.destinationPorts.length > 0 ? `port ${match.destinationPorts.join()}` : "",
      match.notDestinationPorts.length > 0 ? `not port ${match.notDestinationPorts.join()}` : "",
      match.notPrincipals.length > 0 ? "nobody" : "",
    ]
      .filter(Boolean)
      .join(" & ");
  return rules.map((rule) => `${action} ${scope}: ${rule.map((clause) => clause.map(word).join(" | ")).join(" AND ")}`);
}

/** What is published beside the static policy, and what a workload of `shop` with `app=a` lists. */
function outcome(...peers: readonly Peer[]): { published: string[]; listed: readonly string[] } {
  const policies = new PolicyDiscovery(ROOT, () => {});
  for (const one of peers) policies.upsertPeerAuthentication(peer(one));
  const published = policies.flush().upserts.flatMap(({ name, value }) => {
    const decoded = decodeAuthorization(name, value);
    assert.ok("policy" in decoded, "what is published can be read");
    return name === STRICT ? [] : inWords(decoded.policy);
  });
  return { published, listed: policies.listOf("shop", { app: "a", more: "x" }) };
}

describe("PeerAuthentication", () => {
  const CONVERTED = ["shop/converted_peer_authentication_pa"];
  const exceptFor = (port: number): string[] => [`deny workload: nobody AND not port ${port}`];
  const inheritedExceptFor = (port: number): string[] => [`deny workload: not port ${port} AND nobody`];
  const only = (...ports: number[]): string[] => ports.map((port) => `deny workload: port ${port} & nobody`);
  const rows: readonly (readonly [string, readonly Peer[], readonly string[], readonly string[]])[] = [
    ["strict for the namespace", [ofNamespace("STRICT")], [], [STRICT]],
    ["permissive for the namespace", [ofNamespace("PERMISSIVE")], [], []],
    ["disabled for the namespace, which lets plaintext in as permissive does", [ofNamespace("DISABLE")], [], []],
    ["strict for the mesh", [mesh("STRICT")], [], [STRICT]],
    ["strict for the workload", [{ selector, mode: "STRICT" }], [], [STRICT]],
    ["strict, a port strict", [{ selector, mode: "STRICT", ports: { 8080: "STRICT" } }], [], [STRICT]],
    [
      "strict, a port permissive",
      [{ selector, mode: "STRICT", ports: { 9090: "PERMISSIVE" } }],
      exceptFor(9090),
      CONVERTED,
    ],
    ["strict, a port disabled", [{ selector, mode: "STRICT", ports: { 9090: "DISABLE" } }], exceptFor(9090), CONVERTED],
    [
      "strict, one port each",
      [{ selector, mode: "STRICT", ports: { 9090: "STRICT", 8080: "PERMISSIVE" } }],
      exceptFor(8080),
      CONVERTED,
    ],
    ["permissive, a port strict", [{ selector, mode: "PERMISSIVE", ports: { 9090: "STRICT" } }], only(9090), CONVERTED],
    [
      "permissive, one port each",
      [{ selector, mode: "PERMISSIVE", ports: { 9090: "STRICT", 8080: "PERMISSIVE" } }],
      only(9090),
      CONVERTED,
    ],
    ["disabled, a port strict", [{ selector, mode: "DISABLE", ports: { 9090: "STRICT" } }], only(9090), CONVERTED],
    ["unset, a port strict", [{ selector, mode: "UNSET", ports: { 8080: "STRICT" } }], only(8080), CONVERTED],
    ["permissive, a port permissive", [{ selector, mode: "PERMISSIVE", ports: { 8080: "PERMISSIVE" } }], [], []],
    ["permissive mesh, a port permissive", [mesh("PERMISSIVE"), { selector, ports: { 9090: "PERMISSIVE" } }], [], []],
    [
      "permissive mesh, strict namespace, a port permissive",
      [mesh("PERMISSIVE"), ofNamespace("STRICT"), { selector, ports: { 9090: "PERMISSIVE" } }],
      inheritedExceptFor(9090),
      CONVERTED,
    ],
    [
      "permissive mesh and namespace, ports strict",
      [mesh("PERMISSIVE"), ofNamespace("PERMISSIVE"), { selector, ports: { 9090: "STRICT", 8080: "STRICT" } }],
      only(8080, 9090),
      CONVERTED,
    ],
    [
      "permissive mesh, unset namespace, one port each",
      [mesh("PERMISSIVE"), ofNamespace("UNSET"), { selector, ports: { 9090: "STRICT", 8080: "PERMISSIVE" } }],
      only(9090),
      CONVERTED,
    ],
    [
      "strict mesh, a port permissive",
      [mesh("STRICT"), { selector, ports: { 9090: "PERMISSIVE" } }],
      inheritedExceptFor(9090),
      CONVERTED,
    ],
    [
      "strict mesh, a port disabled",
      [mesh("STRICT"), { selector, ports: { 9090: "DISABLE" } }],
      inheritedExceptFor(9090),
      CONVERTED,
    ],
    [
      "strict mesh, permissive namespace, a port strict",
      [mesh("STRICT"), ofNamespace("PERMISSIVE"), { selector, ports: { 9090: "STRICT" } }],
      only(9090),
      CONVERTED,
    ],
    [
      "strict mesh, one port each",
      [mesh("STRICT"), { selector, ports: { 9090: "PERMISSIVE", 8080: "STRICT" } }],
      inheritedExceptFor(9090),
      CONVERTED,
    ],
    ["strict mesh, unset namespace, nothing of its own", [mesh("STRICT"), ofNamespace("UNSET")], [], [STRICT]],
    ["strict mesh, permissive namespace", [mesh("STRICT"), ofNamespace("PERMISSIVE")], [], []],
    ["strict mesh, permissive workload", [mesh("STRICT"), { selector, mode: "PERMISSIVE" }], [], []],
    ["ports without a selector, which are ignored", [{ mode: "PERMISSIVE", ports: { 9090: "STRICT" } }], [], []],
    [
      "ports in the root namespace, which are ignored",
      [{ selector, mode: "PERMISSIVE", ports: { 9090: "STRICT" }, namespace: ROOT }],
      [],
      [],
    ],
    ["a workload of another label", [{ selector: { matchLabels: { app: "b" } }, mode: "STRICT" }], [], []],
    ["another namespace", [{ mode: "STRICT", namespace: "bank" }], [], []],
    ["a mode that is not known, which lets no plaintext in", [ofNamespace("STRICTER")], [], [STRICT]],
  ];
  for (const [name, peers, published, listed] of rows) {
    it(`: ${name}`, () => {
      assert.deepEqual(outcome(...peers), { published, listed });
    });
  }

  it("of one level: the oldest counts, and of one age the first by name", () => {
    const old = { mode: "STRICT", name: "old", at: "2025-01-01T00:00:00Z" };
    assert.deepEqual(outcome({ mode: "PERMISSIVE", name: "new" }, old).listed, [STRICT]);
    assert.deepEqual(outcome({ mode: "PERMISSIVE", name: "b" }, { mode: "STRICT", name: "a" }).listed, [STRICT]);
  });
});

describe("the discovery of policies", () => {
  const policy = (name: string, more: AuthorizationPolicy = {}): AuthorizationPolicy => ({
    spec: { action: "DENY", rules: [{}], selector, ...more.spec },
    metadata: { name, namespace: "shop", ...more.metadata },
  });

  it("publishes what changed, once, and withdraws what went", () => {
    const policies = new PolicyDiscovery(ROOT, () => {});
    policies.upsertAuthorizationPolicy(policy("a"));
    policies.upsertAuthorizationPolicy(policy("b"));
    const names = ({ upserts }: ReturnType<PolicyDiscovery["flush"]>): string[] => upserts.map(({ name }) => name);
    assert.deepEqual(names(policies.flush()), ["shop/a", "shop/b"]);
    policies.upsertAuthorizationPolicy(policy("a", { metadata: { labels: { new: "label" } } }));
    assert.deepEqual(names(policies.flush()), []);
    policies.upsertAuthorizationPolicy(policy("a", { spec: { rules: [] } }));
    policies.removeAuthorizationPolicy(policy("b"));
    const last = policies.flush();
    assert.deepEqual([names(last), last.removes], [["shop/a"], ["shop/b"]]);
    assert.equal(policies.dirty, false);
    policies.upsertPeerAuthentication(peer({ mode: "PERMISSIVE" }));
    assert.deepEqual(names(policies.flush()), [STRICT], "it is there before somebody lists it");
    policies.removePeerAuthentication(peer({}));
    assert.deepEqual(policies.flush().removes, [STRICT]);
  });

  it("lists for a workload what selects it, of its own namespace and of the root namespace", () => {
    const told: (string | undefined)[] = [];
    const policies = new PolicyDiscovery(ROOT, (namespace) => told.push(namespace));
    policies.upsertAuthorizationPolicy(policy("own"));
    policies.upsertAuthorizationPolicy(policy("other", { spec: { selector: { matchLabels: { app: "b" } } } }));
    policies.upsertAuthorizationPolicy(policy("root", { metadata: { namespace: ROOT } }));
    policies.upsertAuthorizationPolicy(policy("bank", { metadata: { namespace: "bank" } }));
    policies.upsertPeerAuthentication(peer({ mode: "STRICT" }));
    assert.deepEqual(policies.listOf("shop", { app: "a" }), [STRICT, `${ROOT}/root`, "shop/own"]);
    assert.deepEqual(policies.listOf("shop", {}), [STRICT]);
    assert.deepEqual(told, ["shop", "shop", undefined, "bank", "shop"]);
  });

  it("says of each changed policy what is enforced, and reports what is not", () => {
    const policies = new PolicyDiscovery(ROOT, () => {});
    policies.upsertAuthorizationPolicy(policy("good"));
    policies.upsertAuthorizationPolicy(policy("audit", { spec: { action: "AUDIT" } }));
    policies.upsertAuthorizationPolicy(policy("waypoint", { spec: { targetRefs: [{}] } }));
    const { verdicts, problems } = policies.flush();
    assert.deepEqual(
      verdicts.map(({ object, sent, problem }) => [object.metadata?.name, sent, problem !== undefined]),
      [
        ["good", true, false],
        ["audit", false, true],
      ],
    );
    assert.deepEqual(
      problems.map(({ object }) => object),
      ["AuthorizationPolicy shop/audit"],
    );
    assert.deepEqual(policies.flush().verdicts, []);
  });

  it("denies everything that an object may be about that it cannot read", () => {
    const policies = new PolicyDiscovery(ROOT, () => {});
    const rules = [{ from: [{ source: { principals: 7 } }] }] as unknown as NonNullable<
      AuthorizationPolicy["spec"]
    >["rules"];
    policies.upsertAuthorizationPolicy(policy("odd", { spec: { action: "ALLOW", ...(rules && { rules }) } }));
    const { upserts, verdicts } = policies.flush();
    const [{ name, value } = { name: "", value: new Uint8Array() }] = upserts;
    const decoded = decodeAuthorization(name, value);
    assert.deepEqual("policy" in decoded ? inWords(decoded.policy) : [], ["deny workload: "]);
    assert.match(verdicts[0]?.problem ?? "", /cannot be read .* denies everything/);
  });
});
