import { resources } from "#kube";
import { INSTALLED, PLUGIN_ACCOUNT } from "#install";
import { AUTHORITY_SECRET } from "#model/authority-objects";
import { wireguardResources } from "#wireguard";
import { accessQuestions, checkAccess, type AccessAnswer, type AccessQuestion, type AccessScope } from "./access.ts";
import { checkAdmission, checkWebhooks } from "./admission.ts";
import { allKnown, ApiFacts, type DoctorClient } from "./api-facts.ts";
import { checkAuthority, checkBundles } from "./certificates.ts";
import { checkEnrolment } from "./enrolled-pods.ts";
import { voiceOf, withFacts, type CheckName, type Finding, type Known } from "./finding.ts";
import { doctorKinds, FOREIGN_POLICIES } from "./kinds.ts";
import { checkNeighbours } from "./neighbours.ts";
import { checkForeignPolicies, checkNetworkPolicies } from "./network-policies.ts";
import { judgePods } from "./pods.ts";
import { checkProbes } from "./probe-policies.ts";
import { checkReadiness } from "./readiness.ts";
import { readSettings } from "./settings.ts";
import { checkVersions } from "./versions.ts";
import { checkWireguard } from "./wireguard.ts";

/** What a cluster is examined with. */
export interface ClusterOptions {
  readonly client: DoctorClient;
  /** Where Veil is installed. */
  readonly namespace: string;
  /** This program's. */
  readonly version: string;
  readonly nowMs: number;
  /** After it, what is still unknown stays unknown. */
  readonly signal: AbortSignal;
}

type Facts = Awaited<ReturnType<typeof gather>>;

/** Looks at all of an installation that the API shows, and says what is wrong. Changes nothing. Never rejects. */
export async function examineCluster(options: ClusterOptions): Promise<readonly Finding[]> {
  const api = new ApiFacts(options.client, options.signal);
  const facts = await gather(api, options.namespace);
  return [
    ...checkRoles(facts, options),
    ...checkPolicies(facts),
    ...checkCertificates(facts, options),
    ...checkGuards(facts, options),
    ...(await examineAccess(api, facts, options.namespace)),
    ...checkAround(facts, options),
  ];
}

async function gather(api: ApiFacts, namespace: string) {
  const [pods, namespaces, nodes, daemonSets, deployments, events] = await Promise.all([
    api.list(resources.pods),
    api.list(resources.namespaces),
    api.list(resources.nodes),
    api.list(resources.daemonSets),
    api.list(resources.deployments),
    api.list(resources.events, { fieldSelector: "reason=VeilNotEnrolled" }),
  ]);
  const settings = readSettings(daemonSets, namespace);
  const bundle = { fieldSelector: `metadata.name=${settings.trustBundle}` };
  const [policies, foreign, bundles, secret, ciliumConfig, account, plugin] = await Promise.all([
    api.list(doctorKinds.networkPolicies),
    Promise.all(FOREIGN_POLICIES.map(async (ref) => [ref.kind, await api.list(ref)] as const)),
    api.list(resources.configMaps, bundle),
    api.find(resources.secrets, AUTHORITY_SECRET, namespace),
    api.find(resources.configMaps, "cilium-config", "kube-system"),
    api.find(resources.serviceAccounts, INSTALLED.agent.account, namespace),
    api.find(resources.serviceAccounts, PLUGIN_ACCOUNT, namespace),
  ]);
  const [felix, calico, admissionPolicies, bindings, mutating, validating, slices] = await Promise.all([
    api.list(doctorKinds.felixConfigurations),
    api.list(doctorKinds.calicoClusters),
    api.listIfServed(doctorKinds.admissionPolicies),
    api.list(doctorKinds.admissionBindings),
    api.list(doctorKinds.mutatingWebhooks),
    api.list(doctorKinds.validatingWebhooks),
    api.list(resources.endpointSlices),
  ]);
  const judged: Known<ReturnType<typeof judgePods>> =
    "unknown" in pods
      ? pods
      : "unknown" in namespaces
        ? namespaces
        : { value: judgePods(pods.value, namespaces.value, { ...settings, namespace }) };
  return {
    settings,
    judged,
    namespaces,
    nodes,
    daemonSets,
    deployments,
    events,
    policies,
    foreign,
    bundles,
    secret,
    ciliumConfig,
    felix,
    calico,
    account,
    plugin,
    admissionPolicies,
    bindings,
    mutating,
    validating,
    slices,
    ...(await gatherTunnels(api)),
  };
}

/** Looks at the tunnels between nodes alone. Changes nothing. Never rejects. */
export async function examineTunnels(
  options: Pick<ClusterOptions, "client" | "nowMs" | "signal">,
): Promise<readonly Finding[]> {
  const api = new ApiFacts(options.client, options.signal);
  const [nodes, tunnels] = await Promise.all([api.list(resources.nodes), gatherTunnels(api)]);
  return checkTunnels({ nodes, ...tunnels }, options.nowMs);
}

type TunnelFacts = Pick<Facts, "nodes" | "reports" | "rotations">;

function checkTunnels({ nodes, reports, rotations }: TunnelFacts, nowMs: number): readonly Finding[] {
  return withFacts(about("wireguard", "tunnels between nodes"), { nodes, reports, rotations }, (known) =>
    checkWireguard({ ...known, nowMs }),
  );
}

async function gatherTunnels(api: ApiFacts) {
  const [reports, rotations] = await Promise.all([
    api.list(wireguardResources.wireguardNodes),
    api.list(wireguardResources.wireguardRotations),
  ]);
  return { reports, rotations };
}

function about(check: CheckName, what: string) {
  return { voice: voiceOf(check), what };
}

function checkRoles(facts: Facts, { namespace, version, nowMs }: ClusterOptions): Finding[] {
  const { judged: pods, namespaces, nodes, daemonSets, deployments, events } = facts;
  return [
    ...withFacts(about("readiness", "the roles"), { pods, nodes, daemonSets, deployments }, (parts) =>
      checkReadiness({ namespace, ...parts }),
    ),
    ...withFacts(about("versions", "the roles' images"), { pods }, (parts) =>
      checkVersions(parts.pods, namespace, version),
    ),
    ...withFacts(about("enrolment", "the pods"), { pods, namespaces, events }, (parts) =>
      checkEnrolment(parts, parts.events, nowMs),
    ),
  ];
}

function checkPolicies({ judged: pods, namespaces, policies, foreign }: Facts): Finding[] {
  return [
    ...withFacts(about("network policies", "NetworkPolicies"), { policies, pods, namespaces }, (parts) => [
      ...checkNetworkPolicies(parts.policies, parts.pods, parts.namespaces),
      ...checkProbes(parts.policies, parts.pods),
    ]),
    ...checkForeign(foreign),
  ];
}

/** One reason why they cannot be looked at is said once. */
function checkForeign(foreign: Facts["foreign"]): Finding[] {
  const reasons = new Map(
    foreign.flatMap(([kind, found]) => ("unknown" in found ? [[found.unknown, kind] as const] : [])),
  );
  const voice = voiceOf("network policies");
  return [
    ...foreign.flatMap(([kind, found]) => ("value" in found ? checkForeignPolicies(kind, found.value) : [])),
    ...[...reasons].map(([reason, kind]) => voice.notChecked(`policies of other network plugins (${kind}): ${reason}`)),
  ];
}

function checkCertificates(facts: Facts, { namespace, nowMs }: ClusterOptions): Finding[] {
  const { secret, bundles, judged: pods, settings } = facts;
  return [
    ...withFacts(about("certificates", "the authority"), { secret }, (parts) =>
      checkAuthority(parts.secret, namespace, nowMs),
    ),
    ...withFacts(about("certificates", "the trust bundles"), { bundles, pods }, (parts) =>
      checkBundles(parts.bundles, parts.pods, { secret, name: settings.trustBundle }),
    ),
  ];
}

function checkGuards(facts: Facts, { namespace }: ClusterOptions): Finding[] {
  const { admissionPolicies: policies, bindings, account, mutating, validating, slices, namespaces } = facts;
  return [
    ...withFacts(about("admission", "ValidatingAdmissionPolicies"), { policies, bindings, account }, (parts) =>
      checkAdmission({ namespace, ...parts }),
    ),
    ...withFacts(about("admission", "webhooks"), { mutating, validating, slices, namespaces }, (parts) =>
      checkWebhooks([...parts.mutating, ...parts.validating], parts.slices, parts.namespaces),
    ),
  ];
}

function checkAround(facts: Facts, { namespace, nowMs }: ClusterOptions): readonly Finding[] {
  const { judged: pods, namespaces, ciliumConfig, felix, calico } = facts;
  const parts = { pods, namespaces, ciliumConfig, felix, calico };
  return [
    ...withFacts(about("neighbours", "what else is installed"), parts, (known) =>
      checkNeighbours({ namespace, ...known }),
    ),
    ...checkTunnels(facts, nowMs),
  ];
}

async function examineAccess(api: ApiFacts, facts: Facts, namespace: string): Promise<readonly Finding[]> {
  const { daemonSets, plugin } = facts;
  const scope: Known<AccessScope> =
    "unknown" in daemonSets
      ? daemonSets
      : "unknown" in plugin
        ? plugin
        : {
            value: {
              namespace,
              plugin: plugin.value !== undefined,
              controllerInAgents: daemonSets.value.some(
                ({ metadata, spec }) =>
                  metadata?.namespace === namespace &&
                  metadata.name === INSTALLED.agent.app &&
                  spec?.template.spec?.containers.some(({ name }) => name === "controller"),
              ),
            },
          };
  const answers =
    "unknown" in scope
      ? scope
      : await allKnown(accessQuestions(scope.value), (question) => api.look(() => askAccess(api, question, namespace)));
  return withFacts(about("access", "the roles' rights"), { answers }, (parts) => checkAccess(parts.answers));
}

/** Asks the API what an account may do, as it decides it itself. */
async function askAccess(api: ApiFacts, question: AccessQuestion, namespace: string): Promise<AccessAnswer> {
  const { account, expected: _, ...resourceAttributes } = question;
  const user = `system:serviceaccount:${namespace}:${account}`;
  const groups = ["system:serviceaccounts", `system:serviceaccounts:${namespace}`, "system:authenticated"];
  const { allowed } = await api.ask("/apis/authorization.k8s.io/v1/subjectaccessreviews", {
    apiVersion: "authorization.k8s.io/v1",
    kind: "SubjectAccessReview",
    spec: { user, groups, resourceAttributes },
  });
  return { question, allowed: allowed === true };
}
