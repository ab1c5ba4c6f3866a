import { LEFT_ANNOTATION } from "#model/leaving";
import { text, value, when, type Tree } from "./template.ts";
import { withTunnels } from "./workloads.ts";

const API = "admissionregistration.k8s.io/v1";
const ANNOTATION = "ambient.istio.io/redirection";
/** Where the API server puts the node to which a pod's token is bound. */
const NODE = "authentication.kubernetes.io/node-name";

const ofAgent = text`request.userInfo.username == 'system:serviceaccount:${value("namespace")}:veil-agent'`;
const notOfAgent = text`request.userInfo.username != 'system:serviceaccount:${value("namespace")}:veil-agent'`;
/** Annotations that agents change: the pods' that they are enrolled, their own pod's that they have left their node. */
const written = `k in ['${ANNOTATION}', '${LEFT_ANNOTATION}']`;
const annotations = (object: string): string =>
  `(has(${object}.metadata.annotations) ? ${object}.metadata.annotations : {})`;
const enrolled = (object: string): string =>
  `(has(${object}.metadata.annotations) && '${ANNOTATION}' in ${object}.metadata.annotations ? ${object}.metadata.annotations['${ANNOTATION}'] : '')`;
const others = (object: string): string =>
  `${annotations(object)}.all(k, ${written} || (k in ${annotations(other(object))} && ${annotations(object)}[k] == ${annotations(other(object))}[k]))`;

function other(object: string): string {
  return object === "object" ? "oldObject" : "object";
}

function same(part: string): string {
  return `(has(object.metadata.${part}) ? object.metadata.${part} : []) == (has(oldObject.metadata.${part}) ? oldObject.metadata.${part} : [])`;
}

/**
 * What role-based access cannot say: an agent changes pods of its own node only, and of them nothing but the annotation that says
 * that they are enrolled; and nobody else changes that annotation, from which the mesh takes who is reached by mutual TLS.
 */
export function admissionPolicies(): Tree[] {
  return [
    ...policy("veil-agent-own-node", {
      condition: { name: "is-agent", expression: ofAgent },
      validations: [
        {
          expression: `'${NODE}' in request.userInfo.extra && has(oldObject.spec.nodeName) && request.userInfo.extra['${NODE}'] == [oldObject.spec.nodeName]`,
          message: "an agent may change pods of its own node only, by a token that is bound to it",
        },
        {
          expression: `object.spec == oldObject.spec && (has(object.metadata.labels) ? object.metadata.labels : {}) == (has(oldObject.metadata.labels) ? oldObject.metadata.labels : {}) && ${same("ownerReferences")} && ${same("finalizers")} && ${others("object")} && ${others("oldObject")}`,
          message: `an agent may change nothing of a pod but its annotations ${ANNOTATION} and ${LEFT_ANNOTATION}`,
        },
      ],
    }),
    ...policy(
      "veil-tunnels-own-node",
      {
        condition: { name: "is-agent", expression: ofAgent },
        validations: [
          {
            expression: `'${NODE}' in request.userInfo.extra && request.userInfo.extra['${NODE}'] == [object.metadata.name]`,
            message: "an agent may publish keys of its own node only, by a token that is bound to it",
          },
        ],
      },
      TUNNEL_OBJECTS,
    ).map((tree) => when(withTunnels, tree)),
    ...policy("veil-redirection", {
      condition: { name: "is-not-agent", expression: notOfAgent },
      validations: [
        {
          expression: `${enrolled("object")} == ${enrolled("oldObject")}`,
          message: `only the agent of a pod's node may change its annotation ${ANNOTATION}`,
        },
      ],
    }),
  ];
}

/** Where agents publish keys and report on tunnels. */
const TUNNEL_OBJECTS = [
  {
    apiGroups: ["cilium.io"],
    apiVersions: ["v2"],
    operations: ["CREATE", "UPDATE"],
    resources: ["ciliumnodes", "ciliumnodes/status"],
  },
  {
    apiGroups: ["veil.dev"],
    apiVersions: ["v1alpha1"],
    operations: ["CREATE", "UPDATE"],
    resources: ["wireguardnodes", "wireguardnodes/status"],
  },
];
const PODS = [{ apiGroups: [""], apiVersions: ["v1"], operations: ["UPDATE"], resources: ["pods", "pods/status"] }];

interface PolicyParts {
  readonly condition: { readonly name: string; readonly expression: Tree };
  readonly validations: readonly { readonly expression: string; readonly message: string }[];
}

function policy(name: string, { condition, validations }: PolicyParts, resourceRules: Tree = PODS): Tree[] {
  return [
    {
      apiVersion: API,
      kind: "ValidatingAdmissionPolicy",
      metadata: { name },
      spec: {
        failurePolicy: "Fail",
        matchConstraints: { resourceRules },
        matchConditions: [condition],
        validations: validations.map((one) => ({ ...one, reason: "Forbidden" })),
      },
    },
    {
      apiVersion: API,
      kind: "ValidatingAdmissionPolicyBinding",
      metadata: { name },
      spec: { policyName: name, validationActions: ["Deny"] },
    },
  ];
}
