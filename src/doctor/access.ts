import {
  CLUSTER_RULES,
  INSIDE_RULES,
  INSTALLED,
  PLUGIN_ACCOUNT,
  PLUGIN_RULES,
  type AccessRule,
  type InstalledRole,
} from "#install";
import { count, someOf, voiceOf, type Finding } from "./finding.ts";

const voice = voiceOf("access");

/** One question to the API: what an account may do. */
export interface AccessQuestion {
  /** The account's name, in Veil's namespace. */
  readonly account: string;
  /** Undefined: in the whole cluster. */
  readonly namespace: string | undefined;
  readonly group: string;
  readonly resource: string;
  readonly subresource: string | undefined;
  readonly name: string | undefined;
  readonly verb: string;
  /** What the answer has to be. */
  readonly expected: boolean;
}

/** A question with the API's answer. */
export interface AccessAnswer {
  readonly question: AccessQuestion;
  readonly allowed: boolean;
}

/** Which roles' accounts there are to ask about. */
export interface AccessScope {
  readonly namespace: string;
  /** In the agents' pods the controller has their account. */
  readonly controllerInAgents: boolean;
  /** Whether the CNI plugin is installed, which has an account of its own. */
  readonly plugin: boolean;
}

/** All that the roles' code needs, one by one; and what none of them may. */
export function accessQuestions({ namespace, controllerInAgents, plugin }: AccessScope): readonly AccessQuestion[] {
  const accountOf = (role: InstalledRole): string =>
    INSTALLED[role === "controller" && controllerInAgents ? "agent" : role].account;
  const needed = (["controller", "agent"] as const).flatMap((role) => [
    ...questionsOf(accountOf(role), CLUSTER_RULES[role], undefined),
    ...questionsOf(accountOf(role), INSIDE_RULES[role], namespace),
  ]);
  const accounts = [...new Set([accountOf("controller"), accountOf("agent"), INSTALLED.proxy.account])];
  const secrets = {
    group: "",
    resource: "secrets",
    subresource: undefined,
    name: undefined,
    namespace: undefined,
    verb: "list",
    expected: false,
  };
  return [
    ...needed,
    ...(plugin ? questionsOf(PLUGIN_ACCOUNT, PLUGIN_RULES, undefined) : []),
    ...accounts.map((account) => ({ ...secrets, account })),
  ];
}

function questionsOf(account: string, rules: readonly AccessRule[], namespace: string | undefined): AccessQuestion[] {
  return rules.flatMap(({ apiGroups, resources, resourceNames, verbs }) =>
    apiGroups.flatMap((group) =>
      resources.flatMap((path) =>
        verbs.flatMap((verb) =>
          (resourceNames ?? [undefined]).map((name) => {
            const [resource = "", subresource] = path.split("/");
            return { account, namespace, group, resource, subresource, name, verb, expected: true };
          }),
        ),
      ),
    ),
  );
}

/** Whether each role may do what it has to, and nothing may read Secrets of the whole cluster. */
export function checkAccess(answers: readonly AccessAnswer[]): readonly Finding[] {
  const wrong = answers.filter(({ question, allowed }) => allowed !== question.expected);
  const findings = [...new Set(wrong.map(({ question }) => question.account))].flatMap((account) => {
    const own = wrong.filter(({ question }) => question.account === account).map(({ question }) => question);
    const missing = own.filter(({ expected }) => expected).map(nameOf);
    const excess = own.filter(({ expected }) => !expected).map(nameOf);
    return [
      ...(missing.length === 0
        ? []
        : [
            voice.problem(
              `the account ${account} may not ${someOf(missing, 5)}`,
              "install the chart of this version again (helm upgrade); its roles and bindings are named as the account",
            ),
          ]),
      ...(excess.length === 0
        ? []
        : [
            voice.warning(
              `the account ${account} may ${someOf(excess)}, which no role of Veil needs`,
              "look which binding gives it that (kubectl auth can-i --list --as=…), and take it away",
            ),
          ]),
    ];
  });
  if (findings.length > 0) return findings;
  const accounts = new Set(answers.map(({ question }) => question.account));
  return [
    voice.ok(
      `${count(accounts.size, "account")} may do what the roles need: ${count(answers.length, "question")} asked`,
    ),
  ];
}

function nameOf({ verb, group, resource, subresource, name, namespace }: AccessQuestion): string {
  const kind = `${resource}${subresource === undefined ? "" : `/${subresource}`}${group === "" ? "" : `.${group}`}`;
  return `${verb} ${kind}${name === undefined ? "" : ` "${name}"`}${namespace === undefined ? "" : ` in ${namespace}`}`;
}
