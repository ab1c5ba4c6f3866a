import assert from "node:assert/strict";
import { test } from "node:test";
import type { NetworkPolicy } from "./kinds.ts";
import { checkForeignPolicies, checkNetworkPolicies } from "./network-policies.ts";
import { judged, namespaceOf, podAt, said } from "./testing.ts";

const namespaces = [
  namespaceOf("shop", { "io.cilium/mtls-enabled": "true", team: "sales" }),
  namespaceOf("bank"),
  namespaceOf("plain", {}),
];
const pods = judged(
  [
    podAt("shop/web", { labels: { app: "web" }, ip: "10.0.0.1" }),
    podAt("shop/cart", { labels: { app: "cart" }, ip: "10.0.0.2", ports: { http: 8080, tunnel: 15008 } }),
    podAt("bank/teller", { labels: { app: "teller" }, ip: "10.0.1.1" }),
    podAt("plain/reader", { labels: { app: "reader" }, ip: "10.0.2.1" }),
  ],
  namespaces,
);

type Spec = NonNullable<NetworkPolicy["spec"]>;

function policy(spec: Spec, name = "policy", namespace = "shop"): NetworkPolicy {
  return { metadata: { name, namespace }, spec };
}

/** About shop/cart, with these rules for what comes in. */
function into(...ingress: NonNullable<Spec["ingress"]>): NetworkPolicy {
  return policy({ podSelector: { matchLabels: { app: "cart" } }, ingress });
}

/** Who cannot reach whom, in few words; undefined when nobody is kept away. */
function cutOf(...policies: NetworkPolicy[]): string | undefined {
  const problem = checkNetworkPolicies(policies, pods, namespaces).find(({ outcome }) => outcome === "problem");
  return /lets (.*), but not on TCP 15008/.exec(problem?.what ?? "")?.[1];
}

const app = (name: string) => ({ podSelector: { matchLabels: { app: name } } });
const http = { port: 8080 };
const hbone = { port: 15008, protocol: "TCP" };

/** A row, and its twin that lets the tunnel through. */
const ROWS: readonly (readonly [what: string, blocking: NetworkPolicy[], cut: string, open: NetworkPolicy[]])[] = [
  [
    "a port without 15008",
    [into({ from: [app("web")], ports: [http] })],
    "shop/web call shop/cart",
    [into({ from: [app("web")], ports: [http, hbone] })],
  ],
  [
    "a rule without peers is about everybody",
    [into({ ports: [http] })],
    "shop/web, shop/cart, bank/teller call shop/cart",
    [into({ from: [], ports: [] })],
  ],
  [
    "a range that ends below",
    [into({ from: [app("web")], ports: [{ port: 8000, endPort: 15007 }] })],
    "shop/web call shop/cart",
    [into({ from: [app("web")], ports: [{ port: 8000, endPort: 15008 }] })],
  ],
  [
    "a range that begins above",
    [into({ from: [app("web")], ports: [{ port: 15009, endPort: 20000 }] })],
    "shop/web call shop/cart",
    [into({ from: [app("web")], ports: [{ port: 15008, endPort: 20000 }] })],
  ],
  [
    "a named port",
    [into({ from: [app("web")], ports: [{ port: "http" }] })],
    "shop/web call shop/cart",
    [into({ from: [app("web")], ports: [{ port: "http" }, { port: "tunnel" }] })],
  ],
  [
    "15008 of another protocol",
    [into({ from: [app("web")], ports: [http, { port: 15008, protocol: "UDP" }] })],
    "shop/web call shop/cart",
    [into({ from: [app("web")], ports: [http, { protocol: "TCP" }] })],
  ],
  [
    "15008 for somebody else",
    [into({ from: [app("web")], ports: [http] }, { from: [app("cart")], ports: [hbone] })],
    "shop/web call shop/cart",
    [into({ from: [app("web")], ports: [http] }, { from: [{ podSelector: {} }], ports: [hbone] })],
  ],
  [
    "a podSelector alone means the policy's own namespace",
    [into({ from: [{ podSelector: {} }], ports: [http] })],
    "shop/web, shop/cart call shop/cart",
    [into({ from: [{ podSelector: {} }] })],
  ],
  [
    "namespaces by label",
    [into({ from: [{ namespaceSelector: { matchLabels: { team: "sales" } } }], ports: [http] })],
    "shop/web, shop/cart call shop/cart",
    [into({ from: [{ namespaceSelector: { matchLabels: { team: "sales" } } }], ports: [hbone, http] })],
  ],
  [
    "namespaces by their name, and pods in them",
    [
      into({
        from: [{ namespaceSelector: { matchLabels: { "kubernetes.io/metadata.name": "bank" } }, ...app("teller") }],
        ports: [http],
      }),
    ],
    "bank/teller call shop/cart",
    [into({ from: [{ namespaceSelector: {} }], ports: [hbone, http] })],
  ],
  [
    "labels by expression",
    [
      into({
        from: [{ podSelector: { matchExpressions: [{ key: "app", operator: "NotIn", values: ["cart"] }] } }],
        ports: [http],
      }),
    ],
    "shop/web call shop/cart",
    [
      into({
        from: [{ podSelector: { matchExpressions: [{ key: "app", operator: "Exists" }] } }],
        ports: [hbone, http],
      }),
    ],
  ],
  [
    "addresses, and exceptions from them",
    [into({ from: [{ ipBlock: { cidr: "10.0.0.0/16", except: ["10.0.0.0/24"] } }], ports: [http] })],
    "bank/teller call shop/cart",
    [into({ from: [{ ipBlock: { cidr: "10.0.0.0/16", except: ["10.0.0.0/24"] } }], ports: [http, hbone] })],
  ],
  [
    "what goes out",
    [
      policy({
        podSelector: { matchLabels: { app: "web" } },
        policyTypes: ["Egress"],
        egress: [{ to: [app("cart")], ports: [http] }],
      }),
    ],
    "shop/web call shop/cart",
    [
      policy({
        podSelector: { matchLabels: { app: "web" } },
        policyTypes: ["Egress"],
        egress: [{ to: [app("cart")], ports: [http, hbone] }],
      }),
    ],
  ],
  [
    "what goes out, without policyTypes",
    [
      policy({
        podSelector: { matchLabels: { app: "web" } },
        ingress: [{}],
        egress: [{ to: [app("cart")], ports: [{ port: "http" }] }],
      }),
    ],
    "shop/web call shop/cart",
    [
      policy({
        podSelector: { matchLabels: { app: "web" } },
        ingress: [{}],
        egress: [{ to: [app("cart")], ports: [{ port: "tunnel" }] }],
      }),
    ],
  ],
  [
    "several policies are added up",
    [
      into({ from: [app("web")], ports: [http] }),
      policy({ podSelector: { matchLabels: { app: "web" } }, ingress: [{ ports: [hbone] }] }, "elsewhere"),
    ],
    "shop/web call shop/cart",
    [into({ from: [app("web")], ports: [http] }), policy({ podSelector: {}, ingress: [{ ports: [hbone] }] }, "all")],
  ],
];

for (const [what, blocking, cut, open] of ROWS) {
  test(`${what}: found when it keeps tunnels away, and not when it lets them through`, () => {
    assert.equal(cutOf(...blocking), cut);
    assert.equal(cutOf(...open), undefined);
  });
}

test("rules that no enrolled pod is concerned by are left alone", () => {
  const harmless = [
    into({ from: [{ namespaceSelector: { matchLabels: { "kubernetes.io/metadata.name": "plain" } } }], ports: [http] }), // a caller without a tunnel
    policy({ podSelector: {}, ingress: [{ ports: [http] }] }, "other", "plain"),
    policy(
      {
        podSelector: {},
        policyTypes: ["Egress"],
        egress: [{}, { ports: [{ port: 53, protocol: "UDP" }, { port: 53 }] }],
      },
      "names",
    ),
    policy(
      {
        podSelector: { matchLabels: { app: "web" } },
        policyTypes: ["Egress"],
        ingress: [{ ports: [http] }],
        egress: [{}],
      },
      "types",
    ),
  ];
  for (const one of harmless) assert.equal(cutOf(one), undefined, one.metadata?.name);
  assert.equal(
    cutOf(policy({ podSelector: {}, policyTypes: ["Egress"], egress: [{ ports: [{ port: 53 }, { port: 54 }] }] })) ===
      undefined,
    false,
  );
});

test("a finding names policy and direction, and what to do", () => {
  const [finding] = checkNetworkPolicies([into({ from: [app("web")], ports: [http] })], pods, namespaces);
  assert.match(finding?.what ?? "", /^NetworkPolicy shop\/policy lets shop\/web call shop\/cart, but not on TCP 15008/);
  assert.match(finding?.todo ?? "", /^add port 15008 to that rule's ingress ports/);
});

test("pods that nobody may call are a warning, and without policies all is well", () => {
  const deny = policy({ podSelector: { matchLabels: { app: "cart" } }, policyTypes: ["Ingress"] }, "deny");
  assert.deepEqual(said(checkNetworkPolicies([deny], pods, namespaces)), [
    "warning: NetworkPolicies let nobody call 1 enrolled pod: shop/cart",
  ]);
  assert.deepEqual(said(checkNetworkPolicies([], pods, namespaces)), [
    "ok: none of 0 NetworkPolicies keeps 3 enrolled pods from TCP 15008 while it lets them talk",
  ]);
});

test("other plugins' policies are named when they have ports, of which 15008 is none", () => {
  const spec = (port: string) => ({ ingress: [{ toPorts: [{ ports: [{ port }] }] }] });
  const metadata = { name: "web", namespace: "shop" };
  assert.deepEqual(said(checkForeignPolicies("CiliumNetworkPolicy", [{ metadata, spec: spec("8080") }])), [
    "warning: 1 CiliumNetworkPolicy with ports, of which 15008 is none: shop/web",
  ]);
  assert.deepEqual(checkForeignPolicies("CiliumNetworkPolicy", [{ metadata, spec: spec("15008") }]), []);
  assert.deepEqual(
    checkForeignPolicies("CiliumNetworkPolicy", [{ metadata, spec: { ingress: [{ fromEndpoints: [{}] }] } }]),
    [],
  );
});
