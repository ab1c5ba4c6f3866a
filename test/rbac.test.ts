import assert from "node:assert/strict";
import { globSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { test } from "node:test";
import { securityKinds } from "#discovery";
import {
  CLUSTER_RULES,
  INSIDE_RULES,
  PLUGIN_RULES,
  WIREGUARD_RULES,
  type AccessRule,
  type InstalledRole,
} from "#install";
import { gatewayResources, istioNetworkingResources, resources, type ResourceRef } from "#kube";
import { wireguardResources } from "#wireguard";

const source = resolve(import.meta.dirname, "../src");
/** The components whose calls of the API a role makes. */
const COMPONENTS: Readonly<Record<InstalledRole, readonly string[]>> = {
  controller: ["controller", "ca", "discovery"],
  agent: ["agent", "enrolment", "identity", "wireguard"],
  proxy: ["proxy", "hbone", "dns", "l7"],
};

const TABLES: Readonly<Record<string, Readonly<Record<string, ResourceRef>>>> = {
  resources,
  gatewayResources,
  istioNetworkingResources,
  securityKinds,
  wireguardResources,
};
const VERBS: Readonly<Record<string, readonly string[]>> = {
  find: ["get"],
  get: ["get"],
  list: ["list"],
  create: ["create"],
  replace: ["update"],
  patch: ["patch"],
  delete: ["delete"],
};

const textOf = (component: string): string =>
  globSync(`${component}/**/*.ts`, { cwd: source })
    .filter((file) => !/(\.test|\/testing)\.ts$/.test(file))
    .map((file) => readFileSync(join(source, file), "utf8"))
    .join("\n");

function nameOf(table: string, kind: string): string {
  const ref = TABLES[table]?.[kind];
  assert.ok(ref, `${table}.${kind}`);
  return ref.group === "" ? ref.plural : `${ref.plural}.${ref.group}`;
}

/** `verb resource[/subresource]` of every call in the sources. A kind that is named in any other way counts as one that is followed. */
function askedFor(role: InstalledRole): string[] {
  const text = COMPONENTS[role].map(textOf).join("\n");
  const asked = new Set<string>();
  const called = new Set<number>();
  const tables = Object.keys(TABLES).join("|");
  for (const call of text.matchAll(
    new RegExp(`\\.(\\w+)\\(\\s*(${tables})\\.(\\w+),((?:(?!\\.\\w+\\().){0,240})`, "gs"),
  )) {
    const [, method = "", table = "", kind = "", rest = ""] = call;
    const verbs = VERBS[method];
    if (verbs === undefined) continue;
    called.add(call.index + call[0].indexOf(`${table}.${kind}`));
    const subresource = /^[^;]*?subresource: "(\w+)"/s.exec(rest)?.[1];
    for (const verb of verbs)
      asked.add(`${verb} ${nameOf(table, kind)}${subresource === undefined ? "" : `/${subresource}`}`);
  }
  for (const use of text.matchAll(new RegExp(`(?<![\\w.])(${tables})\\.(\\w+)`, "g"))) {
    if (called.has(use.index)) continue;
    for (const verb of ["list", "watch"]) asked.add(`${verb} ${nameOf(use[1] ?? "", use[2] ?? "")}`);
  }
  for (const [, kinds = "", table = ""] of text.matchAll(new RegExp(`const \\{ ([\\w, ]+) \\} = (${tables});`, "g"))) {
    for (const kind of kinds.split(", "))
      for (const verb of ["list", "watch"]) asked.add(`${verb} ${nameOf(table, kind)}`);
  }
  if (/\bclient\.createToken\(/.test(text)) asked.add("create serviceaccounts/token");
  if (/\.reviewToken\(/.test(text)) asked.add("create tokenreviews.authentication.k8s.io");
  for (const method of ["exec", "logs", "request"]) {
    assert.doesNotMatch(
      text,
      new RegExp(`\\bclient\\.${method}\\(`),
      `${role}: ${method} is no call that this test knows`,
    );
  }
  return [...asked].toSorted();
}

/** What the CNI plugin asks the API for: paths as they stand in its source. */
function pluginReads(): string[] {
  const source = readFileSync(resolve(import.meta.dirname, "../deploy/cni/labels.go"), "utf8");
  const reads = [...source.matchAll(/"(?:\/api\/v1)?\/(\w+)\/"/g)].map(([, kind = ""]) => kind);
  assert.ok(reads.length > 0);
  return reads;
}

function granted(rules: readonly AccessRule[]): string[] {
  const all = rules.flatMap((rule) =>
    rule.apiGroups.flatMap((group) =>
      rule.resources.flatMap((resource) => {
        const [plural = "", subresource] = resource.split("/");
        const name = group === "" ? plural : `${plural}.${group}`;
        return rule.verbs.map((verb) => `${verb} ${name}${subresource === undefined ? "" : `/${subresource}`}`);
      }),
    ),
  );
  return [...new Set(all)].toSorted();
}

test("the CNI plugin may do what it asks for, and nothing else", () => {
  assert.deepEqual(
    granted(PLUGIN_RULES),
    pluginReads()
      .map((kind) => `get ${kind}`)
      .toSorted(),
  );
});

for (const role of ["controller", "agent", "proxy"] as const) {
  test(`the ${role} may do what its code asks for, and nothing else`, () => {
    assert.deepEqual(
      granted([...CLUSTER_RULES[role], ...WIREGUARD_RULES[role], ...INSIDE_RULES[role]]),
      askedFor(role),
    );
  });

  test(`the ${role} touches no Secret outside of Veil's namespace, and no rule of its has a wildcard`, () => {
    const words = [...CLUSTER_RULES[role], ...WIREGUARD_RULES[role], ...INSIDE_RULES[role]].flatMap((rule) => [
      ...rule.resources,
      ...rule.verbs,
      ...rule.apiGroups,
    ]);
    assert.ok(!words.includes("*"));
    assert.ok(!CLUSTER_RULES[role].some((rule) => rule.resources.some((name) => name.startsWith("secrets"))));
  });
}

test("Secrets and ConfigMaps are read and changed by name alone", () => {
  const rules = [...Object.values(CLUSTER_RULES), ...Object.values(INSIDE_RULES)].flat();
  const named = rules.filter(({ resources }) => resources.includes("secrets") || resources.includes("configmaps"));
  assert.ok(named.length >= 4);
  for (const rule of named) {
    const onlyCreates = rule.verbs.every((verb) => verb === "create");
    assert.equal(rule.resourceNames === undefined, onlyCreates, JSON.stringify(rule));
  }
});
