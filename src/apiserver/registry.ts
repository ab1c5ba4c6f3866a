import { BUILTIN_COLUMNS, NAME_COLUMN, AGE_COLUMN } from "./columns.ts";
import { apiVersionOf, NO_RULES, resourceOf, type Kind } from "./kinds.ts";
import { BUILTIN_RULES } from "./rules/builtin.ts";
import { builtinSchema } from "./schema/builtin.ts";

const STORED_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/** One line for each built-in kind: group/version, plural, kind; then what differs from the usual. */
interface Row {
  readonly shortNames?: readonly string[];
  readonly categories?: readonly string[];
  readonly cluster?: true;
  readonly subresources?: readonly string[];
  readonly fields?: readonly string[];
  readonly verbs?: readonly string[];
}

const CREATE_ONLY = { verbs: ["create"] };
const BUILTIN: Readonly<Record<string, Row>> = {
  "v1 pods Pod": {
    shortNames: ["po"],
    categories: ["all"],
    subresources: ["status", "log", "exec", "attach", "portforward", "binding", "eviction"],
    fields: [
      "spec.nodeName",
      "spec.restartPolicy",
      "spec.schedulerName",
      "spec.serviceAccountName",
      "spec.hostNetwork",
      "status.phase",
      "status.podIP",
      "status.nominatedNodeName",
    ],
  },
  "v1 namespaces Namespace": {
    shortNames: ["ns"],
    cluster: true,
    subresources: ["status", "finalize"],
    fields: ["status.phase"],
  },
  "v1 nodes Node": { shortNames: ["no"], cluster: true, subresources: ["status"], fields: ["spec.unschedulable"] },
  "v1 services Service": {
    shortNames: ["svc"],
    categories: ["all"],
    subresources: ["status"],
    fields: ["spec.clusterIP", "spec.type"],
  },
  "v1 configmaps ConfigMap": { shortNames: ["cm"] },
  "v1 secrets Secret": { fields: ["type"] },
  "v1 serviceaccounts ServiceAccount": { shortNames: ["sa"], subresources: ["token"] },
  "v1 events Event": {
    shortNames: ["ev"],
    fields: [
      "involvedObject.kind",
      "involvedObject.namespace",
      "involvedObject.name",
      "involvedObject.uid",
      "involvedObject.apiVersion",
      "involvedObject.resourceVersion",
      "involvedObject.fieldPath",
      "reason",
      "reportingComponent",
      "source",
      "type",
    ],
  },
  "apps/v1 deployments Deployment": { shortNames: ["deploy"], categories: ["all"], subresources: ["status", "scale"] },
  "apps/v1 daemonsets DaemonSet": { shortNames: ["ds"], categories: ["all"], subresources: ["status"] },
  "apps/v1 replicasets ReplicaSet": {
    shortNames: ["rs"],
    categories: ["all"],
    subresources: ["status", "scale"],
    fields: ["status.replicas"],
  },
  "coordination.k8s.io/v1 leases Lease": {},
  "discovery.k8s.io/v1 endpointslices EndpointSlice": {},
  "apiextensions.k8s.io/v1 customresourcedefinitions CustomResourceDefinition": {
    shortNames: ["crd", "crds"],
    categories: ["api-extensions"],
    cluster: true,
    subresources: ["status"],
  },
  "rbac.authorization.k8s.io/v1 roles Role": {},
  "rbac.authorization.k8s.io/v1 rolebindings RoleBinding": {},
  "rbac.authorization.k8s.io/v1 clusterroles ClusterRole": { cluster: true },
  "rbac.authorization.k8s.io/v1 clusterrolebindings ClusterRoleBinding": { cluster: true },
  "authentication.k8s.io/v1 tokenreviews TokenReview": { cluster: true, ...CREATE_ONLY },
  "authentication.k8s.io/v1 selfsubjectreviews SelfSubjectReview": { cluster: true, ...CREATE_ONLY },
  "authorization.k8s.io/v1 subjectaccessreviews SubjectAccessReview": { cluster: true, ...CREATE_ONLY },
  "authorization.k8s.io/v1 localsubjectaccessreviews LocalSubjectAccessReview": CREATE_ONLY,
  "authorization.k8s.io/v1 selfsubjectaccessreviews SelfSubjectAccessReview": { cluster: true, ...CREATE_ONLY },
  "authorization.k8s.io/v1 selfsubjectrulesreviews SelfSubjectRulesReview": { cluster: true, ...CREATE_ONLY },
};

const USUAL = { shortNames: [], categories: [], verbs: STORED_VERBS, subresources: [], fields: [] };

function builtinKind([name, row]: readonly [string, Row]): Kind {
  const [, group = "", version = "", plural = "", kind = ""] = /^(?:(\S+)\/)?(\S+) (\S+) (\S+)$/.exec(name) ?? [];
  const resource = resourceOf({ plural, group });
  const { shortNames, categories, verbs, subresources, fields } = { ...USUAL, ...row };
  const namespaced = row.cluster !== true;
  return {
    group,
    version,
    kind,
    plural,
    singular: kind.toLowerCase(),
    shortNames,
    categories,
    namespaced,
    verbs,
    subresources,
    schema: builtinSchema(kind),
    columns: BUILTIN_COLUMNS[resource] ?? [NAME_COLUMN, AGE_COLUMN],
    selectableFields: ["metadata.name", ...(namespaced ? ["metadata.namespace"] : []), ...fields],
    rules: BUILTIN_RULES[resource] ?? NO_RULES,
    custom: false,
    ...(subresources.includes("scale") && {
      scale: { specPath: ".spec.replicas", statusPath: ".status.replicas", selectorPath: undefined },
    }),
  };
}

/** A kind as the store sees it: all served versions share the resource. */
export interface Resource {
  readonly resource: string;
  /** The served versions, the preferred one first. */
  readonly versions: readonly Kind[];
  /** The version in which objects are kept. */
  readonly storage: Kind;
}

/** All kinds that are served now: the built-in ones and those of CustomResourceDefinitions. */
export class Registry {
  readonly #builtin = new Map<string, Resource>();
  #custom = new Map<string, Resource>();
  /** Grows with every change, so that discovery documents can be cached. */
  generation = 0;

  constructor() {
    for (const row of Object.entries(BUILTIN)) {
      const kind = builtinKind(row);
      this.#builtin.set(resourceOf(kind), { resource: resourceOf(kind), versions: [kind], storage: kind });
    }
  }

  /** The kind behind a path; undefined when this version of it is not served. */
  find(group: string, version: string, plural: string): Kind | undefined {
    return this.resource(resourceOf({ group, plural }))?.versions.find((kind) => kind.version === version);
  }

  /** The kind with this name in this version; undefined when it is not served. */
  findByKind(apiVersion: string, kind: string): Kind | undefined {
    return this.kinds().find((one) => one.kind === kind && apiVersionOf(one) === apiVersion);
  }

  resource(resource: string): Resource | undefined {
    return this.#builtin.get(resource) ?? this.#custom.get(resource);
  }

  resources(): readonly Resource[] {
    return [...this.#builtin.values(), ...this.#custom.values()];
  }

  kinds(): readonly Kind[] {
    return this.resources().flatMap(({ versions }) => versions);
  }

  /** Replaces all custom kinds. */
  setCustom(resources: readonly Resource[]): void {
    this.#custom = new Map(resources.map((resource) => [resource.resource, resource]));
    this.generation++;
  }
}
