import { spawn } from "node:child_process";
import { deadline, systemClock, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import { kubeError } from "./errors.ts";

/** What a request authenticates itself with. */
export interface KubeCredentials {
  readonly token?: string;
  readonly certPem?: string;
  readonly keyPem?: string;
}

/** A program that a kubeconfig names, which gives credentials (client-go's credential plugins, `user.exec`). */
export interface LoginProgram {
  /** The kubeconfig and the field, for messages. */
  readonly place: string;
  readonly apiVersion: LoginVersion;
  /** A path, or a name that is looked for on the path. */
  readonly command: string;
  readonly args: readonly string[];
  /** Its whole environment. */
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Whether it may ask the user something. */
  readonly interactive: boolean;
  /** What it is told of the cluster, where the kubeconfig wants that. */
  readonly cluster: object | undefined;
  /** How the kubeconfig says that it is installed. */
  readonly installHint: string | undefined;
}

export const LOGIN_VERSIONS = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"] as const;
type LoginVersion = (typeof LOGIN_VERSIONS)[number];

/** A user may have to log in meanwhile. */
const PATIENCE_MS = 120_000;
const MAX_ANSWER_BYTES = 1 << 20;
/** Credentials are not used to their last moment. */
const EARLY_MS = 10_000;

/**
 * Asks a program for credentials, and asks it again when those have run out: what client-go does, but for a 401 before that time.
 * The answer rejects with `KUBE_LOGIN`.
 */
export function programCredentials(
  program: LoginProgram,
  clock: Clock = systemClock(),
): () => Promise<KubeCredentials> {
  let known: { readonly credentials: Promise<KubeCredentials>; readonly endMs: Promise<number> } | undefined;
  return async () => {
    if (known !== undefined && clock.now() >= (await known.endMs)) known = undefined;
    if (known === undefined) {
      const answer = run(program, clock).then((text) => decodeCredentials(text, program));
      known = {
        credentials: answer.then(({ credentials }) => credentials),
        endMs: answer.then(({ endMs }) => endMs - EARLY_MS).catch(() => 0), // a failure is tried again
      };
    }
    return known.credentials;
  };
}

async function run(program: LoginProgram, clock: Clock): Promise<string> {
  const { apiVersion, command, args, env, interactive, cluster, installHint } = program;
  const info = { apiVersion, kind: "ExecCredential", spec: { interactive, cluster } };
  const { signal, clear } = deadline(clock, PATIENCE_MS, { reason: new Error(`no answer in ${PATIENCE_MS / 1000} s`) });
  const child = spawn(command, [...args], {
    env: { ...env, KUBERNETES_EXEC_INFO: JSON.stringify(info) },
    stdio: [interactive ? "inherit" : "ignore", "pipe", "inherit"],
    signal,
  });
  const chunks: Buffer[] = [];
  let bytes = 0;
  child.stdout?.on("data", (chunk: Buffer) => {
    bytes += chunk.length;
    if (bytes <= MAX_ANSWER_BYTES) chunks.push(chunk);
    else child.kill();
  });
  try {
    const status = await new Promise<number | null>((resolve, reject) => {
      child.once("error", (error) => reject(signal.aborted ? signal.reason : error));
      child.once("close", resolve);
    });
    if (status !== 0) throw new Error(`it ended with ${status ?? "a signal"}`);
  } catch (cause) {
    const hint = installHint === undefined ? "" : `; ${installHint.trim()}`;
    throw failure(program, `${messageOf(cause)}${hint}`, cause);
  } finally {
    clear();
  }
  return Buffer.concat(chunks).toString("utf8");
}

/** Reads an `ExecCredential`. Throws `KUBE_LOGIN`. `endMs` is Infinity where it names none. */
export function decodeCredentials(
  text: string,
  program: Pick<LoginProgram, "place" | "command" | "apiVersion">,
): { readonly credentials: KubeCredentials; readonly endMs: number } {
  let answer: unknown;
  try {
    answer = JSON.parse(text);
  } catch (cause) {
    throw failure(program, "its answer is no JSON", cause);
  }
  const version = member(answer, "apiVersion");
  if (version !== program.apiVersion) throw failure(program, `its answer is not ${program.apiVersion}`);
  const status = member(answer, "status");
  const field = (name: string): string | undefined => {
    const value = member(status, name);
    if (value === undefined || value === null || value === "") return undefined;
    if (typeof value !== "string") throw failure(program, `status.${name} of its answer is no text`);
    return value;
  };
  const [token, certPem, keyPem] = [field("token"), field("clientCertificateData"), field("clientKeyData")];
  if ((certPem === undefined) !== (keyPem === undefined) || (token ?? certPem) === undefined) {
    throw failure(program, "its answer holds neither a token nor a certificate with its key");
  }
  const end = field("expirationTimestamp");
  const endMs = end === undefined ? Number.POSITIVE_INFINITY : Date.parse(end);
  if (Number.isNaN(endMs)) throw failure(program, "status.expirationTimestamp of its answer is no time");
  const certificate = certPem === undefined || keyPem === undefined ? {} : { certPem, keyPem };
  return { credentials: { ...certificate, ...(token === undefined ? {} : { token }) }, endMs };
}

function member(value: unknown, name: string): unknown {
  return typeof value === "object" && value !== null ? Reflect.get(value, name) : undefined;
}

function failure({ place, command }: Pick<LoginProgram, "place" | "command">, why: string, cause?: unknown): Error {
  const message = `${place}: ${command} gave no credentials: ${why}`;
  return kubeError("KUBE_LOGIN", message, { cause, details: { command } });
}
