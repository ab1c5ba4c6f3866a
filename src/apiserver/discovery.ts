import { createHash } from "node:crypto";
import type { Kind } from "./kinds.ts";
import type { Registry } from "./registry.ts";

/** The version of Kubernetes whose API this is. */
export const KUBERNETES_VERSION = { major: "1", minor: "34", gitVersion: "v1.34.5+veil" };

const AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

const API_VERSIONS = { kind: "APIVersions", versions: ["v1"], serverAddressByClientCIDRs: [] };

/** What a subresource takes and gives, when that is another kind. */
const SUBRESOURCE_KINDS: Readonly<
  Record<string, { group: string; version: string; kind: string; verbs: readonly string[] }>
> = {
  scale: { group: "autoscaling", version: "v1", kind: "Scale", verbs: ["get", "patch", "update"] },
  token: { group: "authentication.k8s.io", version: "v1", kind: "TokenRequest", verbs: ["create"] },
  binding: { group: "", version: "v1", kind: "Binding", verbs: ["create"] },
  eviction: { group: "policy", version: "v1", kind: "Eviction", verbs: ["create"] },
  exec: { group: "", version: "v1", kind: "PodExecOptions", verbs: ["create", "get"] },
  attach: { group: "", version: "v1", kind: "PodAttachOptions", verbs: ["create", "get"] },
  portforward: { group: "", version: "v1", kind: "PodPortForwardOptions", verbs: ["create", "get"] },
};

function subresource(
  kind: Kind,
  name: string,
): { verbs: readonly string[]; responseKind: { group: string; version: string; kind: string } } {
  const special = SUBRESOURCE_KINDS[name];
  const { verbs, ...responseKind } = special ?? {
    verbs: name === "log" ? ["get"] : name === "finalize" ? ["update"] : ["get", "patch", "update"],
    group: kind.group,
    version: kind.version,
    kind: kind.kind,
  };
  return { verbs, responseKind };
}

/** The discovery documents: which groups, versions and kinds are served. */
export class Discovery {
  readonly #registry: Registry;

  constructor(registry: Registry) {
    this.#registry = registry;
  }

  /**
   * The document of a path, undefined for other paths: `/api`, `/apis`, `/api/v1`, `/apis/GROUP[/VERSION]`.
   * For the first two in the aggregated form when the client takes it.
   */
  find(path: string, accept: string): { contentType: string; body: unknown } | undefined {
    const [root, first, second, more] = path.split("/").filter((part) => part !== "");
    if ((root !== "api" && root !== "apis") || more !== undefined) return undefined;
    if (first === undefined) {
      const aggregated = /g=apidiscovery\.k8s\.io;v=v2;as=APIGroupDiscoveryList/.test(accept.replaceAll(" ", ""));
      if (aggregated) return { contentType: AGGREGATED, body: this.#aggregated(root === "api") };
      return wrap(root === "api" ? API_VERSIONS : this.#groupList());
    }
    if (root === "api") return second === undefined ? wrap(this.#resourceList("", first)) : undefined;
    if (!this.#groups().includes(first)) return undefined;
    if (second !== undefined) return wrap(this.#resourceList(first, second));
    return wrap({ kind: "APIGroup", apiVersion: "v1", ...this.#group(first) });
  }

  #groupList(): unknown {
    return { kind: "APIGroupList", apiVersion: "v1", groups: this.#groups().map((group) => this.#group(group)) };
  }

  #groups(): readonly string[] {
    return [...new Set(this.#registry.kinds().map((kind) => kind.group))].filter((group) => group !== "");
  }

  #versions(group: string): readonly string[] {
    const kinds = this.#registry.kinds().filter((kind) => kind.group === group);
    return [...new Set(kinds.map((kind) => kind.version))].sort(compareVersions);
  }

  #group(name: string): Record<string, unknown> {
    const versions = this.#versions(name).map((version) => ({ groupVersion: `${name}/${version}`, version }));
    return { name, versions, preferredVersion: versions[0] };
  }

  #resourceList(group: string, version: string): unknown {
    const kinds = this.#registry.kinds().filter((kind) => kind.group === group && kind.version === version);
    if (kinds.length === 0) return undefined;
    const resources = kinds.flatMap((kind) => [
      {
        name: kind.plural,
        singularName: kind.singular,
        namespaced: kind.namespaced,
        kind: kind.kind,
        verbs: kind.verbs,
        ...(kind.shortNames.length > 0 && { shortNames: kind.shortNames }),
        ...(kind.categories.length > 0 && { categories: kind.categories }),
        storageVersionHash: createHash("sha256")
          .update(`${kind.group}/${kind.version}/${kind.kind}`)
          .digest("base64")
          .slice(0, 12),
      },
      ...kind.subresources.map((name) => {
        const { verbs, responseKind } = subresource(kind, name);
        return {
          name: `${kind.plural}/${name}`,
          singularName: "",
          namespaced: kind.namespaced,
          ...responseKind,
          verbs,
        };
      }),
    ]);
    return {
      kind: "APIResourceList",
      apiVersion: "v1",
      groupVersion: group === "" ? version : `${group}/${version}`,
      resources,
    };
  }

  #aggregated(core: boolean): unknown {
    const items = (core ? [""] : this.#groups()).map((group) => ({
      metadata: { ...(group !== "" && { name: group }), creationTimestamp: null },
      versions: this.#versions(group).map((version) => ({
        version,
        freshness: "Current",
        resources: this.#registry
          .kinds()
          .filter((kind) => kind.group === group && kind.version === version)
          .map(aggregatedResource),
      })),
    }));
    return { kind: "APIGroupDiscoveryList", apiVersion: "apidiscovery.k8s.io/v2", metadata: {}, items };
  }
}

function aggregatedResource(kind: Kind): unknown {
  return {
    resource: kind.plural,
    responseKind: { group: kind.group, version: kind.version, kind: kind.kind },
    scope: kind.namespaced ? "Namespaced" : "Cluster",
    singularResource: kind.singular,
    verbs: kind.verbs,
    ...(kind.shortNames.length > 0 && { shortNames: kind.shortNames }),
    ...(kind.categories.length > 0 && { categories: kind.categories }),
    ...(kind.subresources.length > 0 && {
      subresources: kind.subresources.map((name) => ({ subresource: name, ...subresource(kind, name) })),
    }),
  };
}

function wrap(body: unknown): { contentType: string; body: unknown } | undefined {
  return body === undefined ? undefined : { contentType: "application/json", body };
}

/** Kubernetes' order of versions: stable before beta before alpha, higher numbers first. */
export function compareVersions(a: string, b: string): number {
  const rank = (version: string): [number, number, number] => {
    const match = /^v(\d+)(?:(alpha|beta)(\d+))?$/.exec(version);
    if (match === null) return [3, 0, 0];
    return [match[2] === undefined ? 0 : match[2] === "beta" ? 1 : 2, -Number(match[1]), -Number(match[3] ?? 0)];
  };
  const [x, y] = [rank(a), rank(b)];
  return x[0] - y[0] || x[1] - y[1] || x[2] - y[2] || (a < b ? -1 : 1);
}
