import { readValues, renderInstallation } from "#install";
import { selectsLabels, type EndpointSlice, type Namespace, type ServiceAccount } from "#kube";
import { someOf, voiceOf, type Finding } from "./finding.ts";
import type { AdmissionBinding, AdmissionPolicy, WebhookConfiguration } from "./kinds.ts";
import type { Labels } from "./pods.ts";

const voice = voiceOf("admission");
/** By which `veil apiserver`, which has no admission policies, holds an account to its own node. */
const NODE_BOUND = "veil.dev/node-bound";
const AGAIN = "install the chart of this version again (helm upgrade)";

/** What guards pods against agents of other nodes. */
export interface AdmissionParts {
  readonly namespace: string;
  /** Undefined: the API serves no kinds of that group. */
  readonly policies: readonly AdmissionPolicy[] | undefined;
  readonly bindings: readonly AdmissionBinding[];
  /** The agents' account. */
  readonly account: ServiceAccount | undefined;
}

/** Whether an agent, or somebody who has its token, can change no other pods than its node's. */
export function checkAdmission({ namespace, policies, bindings, account }: AdmissionParts): readonly Finding[] {
  if (policies === undefined) {
    if (account?.metadata?.annotations?.[NODE_BOUND] === "true")
      return [voice.ok("the API server itself holds agents to their own nodes")];
    const what = "the API has no ValidatingAdmissionPolicies: an agent could change pods of other nodes";
    return [voice.problem(what, "Kubernetes 1.30 or newer has them")];
  }
  const findings = expectedPolicies(namespace).flatMap((expected) => {
    const name = expected.metadata?.name ?? "";
    const found = policies.find(({ metadata }) => metadata?.name === name);
    return found === undefined
      ? [voice.problem(`there is no ValidatingAdmissionPolicy ${name}: agents are not held to their own nodes`, AGAIN)]
      : [...checkContent(found, expected), ...checkBinding(name, bindings)];
  });
  return findings.length > 0 ? findings : [voice.ok("both ValidatingAdmissionPolicies are there, bound, and deny")];
}

function expectedPolicies(namespace: string): readonly AdmissionPolicy[] {
  const objects = renderInstallation(readValues({ namespace }), "0") as AdmissionPolicy[]; // ours; told apart by their kind below
  return objects.filter(({ kind }) => kind === "ValidatingAdmissionPolicy");
}

function checkContent(found: AdmissionPolicy, expected: AdmissionPolicy): readonly Finding[] {
  const text = ({ spec }: AdmissionPolicy): string =>
    JSON.stringify([
      spec?.failurePolicy,
      spec?.matchConditions?.map(({ expression }) => expression),
      spec?.validations?.map(({ expression }) => expression),
    ]);
  if (text(found) === text(expected)) return [];
  return [
    voice.warning(
      `the ValidatingAdmissionPolicy ${found.metadata?.name} is not what this version installs`,
      `look who changed it; ${AGAIN}`,
    ),
  ];
}

function checkBinding(name: string, bindings: readonly AdmissionBinding[]): readonly Finding[] {
  const own = bindings.filter(({ spec }) => spec?.policyName === name);
  if (own.length === 0)
    return [voice.problem(`the ValidatingAdmissionPolicy ${name} is not bound: it does nothing`, AGAIN)];
  if (!own.some(({ spec }) => spec?.validationActions?.includes("Deny"))) {
    return [
      voice.problem(
        `the binding of ${name} does not deny: what it refuses happens all the same`,
        "set its validationActions to [Deny]",
      ),
    ];
  }
  if (own.every(({ spec }) => narrows(spec?.matchResources))) {
    return [voice.warning(`the binding of ${name} is for some objects only`, "take matchResources out of it")];
  }
  return [];
}

/** The API fills in empty selectors, which take nothing away. */
function narrows(resources: object | undefined): boolean {
  return Object.entries(resources ?? {}).some(
    ([field, value]) => field !== "matchPolicy" && JSON.stringify(value) !== "{}" && JSON.stringify(value) !== "[]",
  );
}

/** Webhooks that stand between agents and pods and have nobody behind them. */
export function checkWebhooks(
  configurations: readonly WebhookConfiguration[],
  slices: readonly EndpointSlice[],
  namespaces: readonly Namespace[],
): readonly Finding[] {
  return configurations.flatMap((configuration) =>
    (configuration.webhooks ?? []).flatMap((webhook) => {
      const service = webhook.clientConfig?.service;
      if (service === undefined || webhook.failurePolicy === "Ignore" || !(webhook.rules ?? []).some(isAboutPods))
        return [];
      if (slices.some((slice) => serves(slice, service))) return [];
      const names = namespaces
        .filter(({ metadata }) => selectsLabels(webhook.namespaceSelector ?? {}, namespaceLabels(metadata)))
        .map(({ metadata }) => metadata?.name ?? "");
      if (names.length === 0) return [];
      return [
        voice.problem(
          `the webhook ${webhook.name} of ${configuration.kind} ${configuration.metadata?.name} is asked about pods, and its service ${service.namespace}/${service.name} has no ready endpoint: pods of ${someOf(names)} cannot be made or enrolled`,
          "bring its service back, delete the configuration, or set failurePolicy: Ignore",
        ),
      ];
    }),
  );
}

function namespaceLabels(metadata: Namespace["metadata"]): Labels {
  return { "kubernetes.io/metadata.name": metadata?.name ?? "", ...metadata?.labels };
}

function isAboutPods(rule: {
  readonly apiGroups?: readonly string[];
  readonly resources?: readonly string[];
  readonly operations?: readonly string[];
}): boolean {
  const has = (list: readonly string[] | undefined, ...any: string[]): boolean =>
    list?.some((item) => any.includes(item)) === true;
  return (
    has(rule.apiGroups, "", "*") &&
    has(rule.resources, "pods", "*", "*/*") &&
    has(rule.operations, "CREATE", "UPDATE", "*")
  );
}

function serves(
  { metadata, endpoints }: EndpointSlice,
  service: { readonly namespace: string; readonly name: string },
): boolean {
  return (
    metadata?.namespace === service.namespace &&
    metadata.labels?.["kubernetes.io/service-name"] === service.name &&
    (endpoints ?? []).some(({ conditions }) => conditions?.ready !== false)
  );
}
