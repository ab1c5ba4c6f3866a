import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { CodedError } from "#base/errors";
import { deriveList, findSource, isOwn, ownNameFor, PLUGIN_NAME, type PluginEntry } from "./chain.ts";

const ENTRY: PluginEntry = { socket: "/run/veil/cni.sock", namespace: "veil-system", strict: false, credentials: "/c" };
const OWN = { type: PLUGIN_NAME, ...ENTRY };

interface List {
  readonly [field: string]: unknown;
  readonly plugins: readonly { readonly type: string }[];
}

function derive(text: string, options: { name?: string; existing?: string; entry?: PluginEntry } = {}): List {
  const { name = "10-net.conflist", existing, entry = ENTRY } = options;
  return JSON.parse(deriveList({ name, text }, existing, entry)) as List; // our own text
}

function listOf(...types: string[]): string {
  return JSON.stringify({ cniVersion: "1.0.0", name: "net", plugins: types.map((type) => ({ type })) });
}

const typesOf = ({ plugins }: List): string[] => plugins.map(({ type }) => type);

test("the first file by name counts, as for the container runtime; ours comes before it", () => {
  assert.equal(findSource(["99-b.conf", "10-a.conflist", "05-notes.txt", "10-a-veil.conflist"]), "10-a.conflist");
  assert.equal(findSource(["README", "x-veil.conflist"]), undefined);
  const name = fc
    .tuple(
      fc.string({ unit: fc.constantFrom("a", "0", "z", "9", ".", "-"), minLength: 1, maxLength: 12 }),
      fc.constantFrom("conf", "conflist", "json"),
    )
    .map((parts) => parts.join("."));
  fc.assert(
    fc.property(fc.array(name, { minLength: 1 }), (names) => {
      const source = findSource(names);
      if (source === undefined) return assert.ok(names.every(isOwn));
      const own = ownNameFor(source);
      assert.ok(isOwn(own));
      const first = [...names.filter((other) => !isOwn(other)), own].toSorted()[0];
      assert.equal(first, own);
    }),
  );
});

test("our entry is last, everything else stays as it is", () => {
  const source = { cniVersion: "0.4.0", name: "k8s", disableCheck: true, plugins: [{ type: "bridge", mtu: 1400 }] };
  const list = derive(JSON.stringify(source));
  assert.deepEqual(list, { ...source, "veil.dev/source": ["bridge"], plugins: [...source.plugins, OWN] });
});

/** What network plugins write, as far as it differs: name of the file, version, types. */
const WRITTEN: readonly (readonly [file: string, cniVersion: string, types: string[]])[] = [
  ["10-azure.conflist", "0.3.0", ["azure-vnet", "portmap"]],
  ["05-cilium.conflist", "0.3.1", ["cilium-cni"]],
  ["10-calico.conflist", "0.3.1", ["calico", "portmap", "bandwidth"]],
  ["10-aws.conflist", "0.4.0", ["aws-cni", "egress-cni", "portmap"]],
  ["10-flannel.conflist", "1.0.0", ["flannel", "portmap"]],
];

for (const [name, cniVersion, types] of WRITTEN) {
  test(`${name} is followed by ours`, () => {
    const plugins = types.map((type) => ({ type, capabilities: { portMappings: true } }));
    const list = derive(JSON.stringify({ cniVersion, name: "net", plugins }), { name });
    assert.deepEqual([list["cniVersion"], list.plugins], [cniVersion, [...plugins, OWN]]);
    assert.equal([name, ownNameFor(name)].toSorted()[0], ownNameFor(name));
  });
}

test("a single plugin becomes a list", () => {
  const conf = { cniVersion: "0.3.1", name: "net", type: "ptp", ipam: { type: "host-local" } };
  const list = derive(JSON.stringify(conf), { name: "10-net.conf" });
  const plugins = [conf, OWN];
  assert.deepEqual(list, { cniVersion: "0.3.1", name: "net", "veil.dev/source": ["ptp"], plugins });
});

test("a list that carries our entry already, and settings that have changed, leave one entry with the new settings", () => {
  const existing = deriveList({ name: "a.conflist", text: listOf("bridge", PLUGIN_NAME, "portmap") }, undefined, ENTRY);
  const list = derive(listOf("bridge", "portmap"), { existing, entry: { ...ENTRY, strict: true } });
  assert.deepEqual(typesOf(list), ["bridge", "portmap", PLUGIN_NAME]);
  assert.deepEqual(list.plugins[2], { ...OWN, strict: true });
});

test("what another program has chained into our list is kept, and what leaves the source leaves", () => {
  const before = derive(listOf("bridge", "bandwidth"));
  const edited = JSON.stringify({ ...before, plugins: [...before.plugins, { type: "istio-cni" }] });
  const list = derive(listOf("bridge", "portmap"), { existing: edited });
  assert.deepEqual(typesOf(list), ["bridge", "portmap", "istio-cni", PLUGIN_NAME]);
  assert.deepEqual(derive(listOf("bridge"), { existing: "{" }).plugins.length, 2);
});

test("what is no configuration is refused, with the file and what is wrong", () => {
  for (const [name, text, code, said] of [
    ["10-a.conflist", "{", "CNI_CONFIG_INVALID", /10-a.conflist is no JSON/],
    ["10-a.conflist", "[]", "CNI_CONFIG_INVALID", /no JSON object/],
    ["10-a.conflist", '{"cniVersion":"0.2.0"}', "CNI_CONFIG_VERSION", /0.3.0/],
    ["10-a.conflist", '{"cniVersion":"1.0.0"}', "CNI_CONFIG_INVALID", /no name/],
    ["10-a.conflist", '{"cniVersion":"1.0.0","name":"a","plugins":[]}', "CNI_CONFIG_INVALID", /no plugins/],
    [
      "10-a.conflist",
      '{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"b"},{}]}',
      "CNI_CONFIG_INVALID",
      /plugins\[1\]/,
    ],
    ["10-a.conf", '{"cniVersion":"1.0.0","name":"a"}', "CNI_CONFIG_INVALID", /no type/],
  ] as const) {
    assert.throws(() => deriveList({ name, text }, undefined, ENTRY), { code, message: said });
  }
});

test("any text is derived from, the same each time, or refused with a code of this component", () => {
  const plugin = fc.record({ type: fc.string() }, { requiredKeys: [] });
  const list = fc.record({
    cniVersion: fc.constantFrom("1.0.0", "0.4.0", "9"),
    name: fc.string(),
    plugins: fc.array(plugin),
    more: fc.json(),
  });
  const text = fc.oneof(
    fc.string({ unit: "binary" }),
    fc.json(),
    list.map((made) => JSON.stringify(made)),
  );
  fc.assert(
    fc.property(fc.constantFrom("a.conf", "a.conflist"), text, fc.option(text), (name, source, existing) => {
      try {
        const once = deriveList({ name, text: source }, existing ?? undefined, ENTRY);
        assert.deepEqual((JSON.parse(once) as List).plugins.at(-1), OWN);
        assert.equal(deriveList({ name, text: source }, once, ENTRY), once);
      } catch (error) {
        assert.ok(error instanceof CodedError && error.code.startsWith("CNI_CONFIG_"), String(error));
      }
    }),
  );
});
