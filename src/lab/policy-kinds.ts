import type { CustomResourceDefinition } from "#kube";

const text = { type: "string" } as const;
const texts = { type: "array", items: text } as const;
const labels = { type: "object", additionalProperties: text } as const;
const selector = { type: "object", properties: { matchLabels: labels } } as const;
const target = {
  type: "object",
  required: ["kind", "name"],
  properties: { group: text, kind: text, name: text, namespace: text },
} as const;

function object(properties: Record<string, object>, required: readonly string[] = []): object {
  return { type: "object", properties, ...(required.length > 0 && { required }) };
}

function list(items: object): object {
  return { type: "array", items };
}

function textFields(...names: readonly string[]): Record<string, object> {
  return Object.fromEntries(
    names.flatMap((name) => [
      [name, texts],
      [`not${name[0]?.toUpperCase()}${name.slice(1)}`, texts],
    ]),
  );
}

const source = object(
  textFields("principals", "requestPrincipals", "namespaces", "serviceAccounts", "ipBlocks", "remoteIpBlocks"),
);
const operation = object(textFields("hosts", "ports", "methods", "paths"));
const condition = object({ key: text, values: texts, notValues: texts }, ["key"]);

const authorizationPolicy = object({
  selector,
  targetRef: target,
  targetRefs: list(target),
  action: { type: "string", enum: ["ALLOW", "DENY", "AUDIT", "CUSTOM"] },
  provider: object({ name: text }),
  rules: list(object({ from: list(object({ source })), to: list(object({ operation })), when: list(condition) })),
});

const mtls = object({ mode: { type: "string", enum: ["UNSET", "DISABLE", "PERMISSIVE", "STRICT"] } });
const peerAuthentication = object({
  selector,
  mtls,
  portLevelMtls: { type: "object", additionalProperties: mtls },
});

/**
 * The kinds in which users write policies, for an API that nobody has installed them in: names, versions and fields are
 * Istio's (`security.istio.io`), so that manifests written for it apply as they are.
 */
export const POLICY_KINDS: readonly CustomResourceDefinition[] = [
  definition("AuthorizationPolicy", "authorizationpolicies", authorizationPolicy),
  definition("PeerAuthentication", "peerauthentications", peerAuthentication),
];

function definition(kind: string, plural: string, spec: object): CustomResourceDefinition {
  const group = "security.istio.io";
  const status = { type: "object", "x-kubernetes-preserve-unknown-fields": true };
  const version = (name: string) => ({
    name,
    served: true,
    storage: name === "v1",
    schema: { openAPIV3Schema: { type: "object", properties: { spec, status } } },
    subresources: { status: {} },
  });
  return {
    metadata: { name: `${plural}.${group}` },
    spec: {
      group,
      scope: "Namespaced",
      names: { kind, plural, singular: kind.toLowerCase(), listKind: `${kind}List` },
      versions: [version("v1"), version("v1beta1")],
    },
  };
}
