import { messageOf } from "#base/errors";
import type { ConfigMap, Secret } from "#kube";
import {
  AUTHORITY_SECRET,
  DEFAULT_TRUST_BUNDLE,
  ISSUER_PART,
  MANAGED_LABEL,
  ROOTS_PART,
} from "#model/authority-objects";
import { parseCertificates, verifyPath, type Certificate } from "#x509";
import { count, someOf, voiceOf, type Finding, type Known } from "./finding.ts";
import type { JudgedPod } from "./pods.ts";

const voice = voiceOf("certificates");
const DAY_MS = 86_400_000;
/** A root has to be replaced while both are trusted: that takes time. */
const ROOT_WARNING_MS = 30 * DAY_MS;
/** The issuer is renewed at half of its life, within a day: long after that, something holds it up. */
const ISSUER_OVERDUE = 2 / 3;

/** The public part of the authority. */
interface Authority {
  readonly roots: readonly Certificate[];
  readonly issuer: Certificate;
}

/** The authority's certificates: can they be read, do they belong together, for how long. */
export function checkAuthority(secret: Secret | undefined, namespace: string, nowMs: number): readonly Finding[] {
  const place = `Secret ${namespace}/${AUTHORITY_SECRET}`;
  if (secret === undefined) {
    return [
      voice.problem(
        `there is no ${place}: nothing signs certificates`,
        "the controller makes it when it starts; look at its log",
      ),
    ];
  }
  const authority = readAuthority(secret, place);
  if ("unknown" in authority) {
    return [
      voice.problem(
        `the authority cannot be used: ${authority.unknown}`,
        "put the Secret back from a backup; the controller makes none in its place (docs/security.md)",
      ),
    ];
  }
  const { roots, issuer } = authority.value;
  const findings = [...roots.flatMap((root) => checkRoot(root, nowMs)), ...checkIssuer(issuer, nowMs)];
  try {
    verifyPath([issuer], roots, {
      nowMs: Math.max(issuer.notBeforeMs, ...roots.map(({ notBeforeMs }) => notBeforeMs)),
      place,
    });
  } catch (error) {
    findings.push(
      voice.problem(`the issuer does not belong to the roots: ${messageOf(error)}`, `put ${place} back from a backup`),
    );
  }
  if (findings.length > 0) return findings;
  return [voice.ok(`root valid until ${dayOf(roots[0])}, issuer until ${dayOf(issuer)}, signed by it`)];
}

function readAuthority(secret: Secret, place: string): Known<Authority> {
  const textOf = (part: string): string => Buffer.from(secret.data?.[part] ?? "", "base64").toString("utf8");
  try {
    const roots = parseCertificates(textOf(ROOTS_PART), `${place}, ${ROOTS_PART}`);
    const [issuer] = parseCertificates(textOf(ISSUER_PART), `${place}, ${ISSUER_PART}`);
    if (roots.length === 0 || issuer === undefined) return { unknown: `${place} holds no certificate` };
    return { value: { roots, issuer } };
  } catch (error) {
    return { unknown: messageOf(error) };
  }
}

function checkRoot(root: Certificate, nowMs: number): readonly Finding[] {
  const todo = "replace the root at a time that suits you, as docs/security.md says";
  const life = expiry(root, nowMs);
  if (life !== undefined) return [voice.problem(`the root ${life}`, todo)];
  if (root.notAfterMs - nowMs >= ROOT_WARNING_MS) return [];
  return [voice.warning(`the root ${root.label} ends on ${dayOf(root)}`, todo)];
}

function checkIssuer(issuer: Certificate, nowMs: number): readonly Finding[] {
  const todo = "look at the log of the controller that leads: what keeps it from renewing the issuer";
  const life = expiry(issuer, nowMs);
  if (life !== undefined) return [voice.problem(`the issuer ${life}`, todo)];
  const overdueMs = issuer.notBeforeMs + (issuer.notAfterMs - issuer.notBeforeMs) * ISSUER_OVERDUE;
  if (nowMs < overdueMs) return [];
  return [voice.warning(`the issuer, due for renewal at half of its life, ends on ${dayOf(issuer)}`, todo)];
}

function expiry(certificate: Certificate, nowMs: number): string | undefined {
  const { label, notBeforeMs } = certificate;
  if (nowMs < notBeforeMs)
    return `${label} is valid from ${new Date(notBeforeMs).toISOString()} only: this clock is behind, or the one that made it ahead`;
  return nowMs >= certificate.notAfterMs ? `${label} has expired on ${dayOf(certificate)}` : undefined;
}

/** The bundles in the namespaces: those with enrolled pods have one, and it holds the authority's roots. */
export function checkBundles(
  bundles: readonly ConfigMap[],
  pods: readonly JudgedPod[],
  { secret, name = DEFAULT_TRUST_BUNDLE }: { readonly secret: Known<Secret | undefined>; readonly name?: string },
): readonly Finding[] {
  const findings = [...checkForeign(bundles, name), ...checkMissing(bundles, pods, name)];
  const own = bundles.filter((bundle) => !isForeign(bundle));
  const expected =
    "unknown" in secret || secret.value === undefined ? undefined : readAuthority(secret.value, "the authority");
  const roots = expected !== undefined && "value" in expected ? rootsText(expected.value.roots) : undefined;
  const texts = new Map(own.map((bundle) => [bundle.metadata?.namespace ?? "", bundleText(bundle)]));
  const reference = roots ?? mostCommon([...texts.values()]);
  const different = [...texts].filter(([, text]) => text !== reference).map(([namespace]) => namespace);
  if (different.length > 0) {
    const what = roots === undefined ? "what most hold" : "the authority's roots";
    findings.push(
      voice.problem(
        `the trust bundle (ConfigMap ${name}) does not hold ${what} in ${count(different.length, "namespace")}: ${someOf(different)}`,
        "the controller that leads writes them; look at its log. One that is deleted is made anew",
      ),
    );
  }
  if (findings.length > 0) return findings;
  return [
    voice.ok(
      `the trust bundle is ${roots === undefined ? "the same" : "the authority's roots"} in ${count(own.length, "namespace")}`,
    ),
  ];
}

function isForeign({ metadata }: ConfigMap): boolean {
  return metadata?.labels?.[MANAGED_LABEL] === undefined;
}

function checkForeign(bundles: readonly ConfigMap[], name: string): Finding[] {
  const foreign = bundles.filter(isForeign).map(({ metadata }) => metadata?.namespace ?? "");
  if (foreign.length === 0) return [];
  return [
    voice.warning(
      `somebody else's ConfigMap ${name} is in ${count(foreign.length, "namespace")}: ${someOf(foreign)}`,
      "nothing, where another mesh serves that namespace; otherwise delete it: the controller makes its own",
    ),
  ];
}

function checkMissing(bundles: readonly ConfigMap[], pods: readonly JudgedPod[], name: string): Finding[] {
  const having = new Set(bundles.map(({ metadata }) => metadata?.namespace));
  const wanting = pods.filter(({ eligibility }) => eligibility.eligible).map(({ namespace }) => namespace);
  const missing = [...new Set(wanting)].filter((namespace) => !having.has(namespace));
  if (missing.length === 0) return [];
  return [
    voice.problem(
      `there is no trust bundle (ConfigMap ${name}) in ${someOf(missing)}, where pods are enrolled`,
      "look whether a controller leads, and at its log",
    ),
  ];
}

function bundleText(bundle: ConfigMap): string {
  try {
    return rootsText(parseCertificates(bundle.data?.[ROOTS_PART] ?? "", `ConfigMap ${bundle.metadata?.namespace}`));
  } catch (error) {
    return `unreadable: ${messageOf(error)}`;
  }
}

/** As a set: their order means nothing. */
function rootsText(roots: readonly Certificate[]): string {
  return roots
    .map(({ pem }) => pem)
    .toSorted()
    .join("");
}

function mostCommon(texts: readonly string[]): string | undefined {
  const counts = new Map<string, number>();
  for (const text of texts) counts.set(text, (counts.get(text) ?? 0) + 1);
  return [...counts].toSorted(([, a], [, b]) => b - a)[0]?.[0];
}

function dayOf(certificate: Certificate | undefined): string {
  return new Date(certificate?.notAfterMs ?? 0).toISOString().slice(0, 10);
}
