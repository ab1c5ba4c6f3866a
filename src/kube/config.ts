import { readFile } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { parse } from "yaml";
import { formatHostPort } from "#base/ip";
import { kubeError } from "./errors.ts";
import { LOGIN_VERSIONS, programCredentials, type KubeCredentials, type LoginProgram } from "./login-program.ts";

/** Where the API is and how to log in. */
export interface KubeConfig {
  /** Where this came from, for messages: a file, or `in-cluster`. */
  readonly source: string;
  /** `https://host:port`, without a path. */
  readonly server: string;
  /** PEM of the roots for the API's certificate; undefined: the system's. */
  readonly caPem: string | undefined;
  readonly insecureSkipTlsVerify: boolean;
  /** Name to check in the API's certificate instead of the server's host. */
  readonly tlsServerName: string | undefined;
  /** The namespace that commands use when none is given. */
  readonly namespace: string;
  /** Asked for each request: token files are read again, since they are renewed in place. */
  credentials(): Promise<KubeCredentials>;
}

type Fields = Readonly<Record<string, unknown>>;

/** Reads one mapping of a kubeconfig; every complaint names file and field. */
class Section {
  readonly #file: string;
  readonly #path: string;
  readonly #fields: Fields;

  constructor(file: string, path: string, value: unknown) {
    this.#file = file;
    this.#path = path;
    if (typeof value !== "object" || value === null || Array.isArray(value)) throw this.#wrong(path, "is no mapping");
    this.#fields = { ...value };
  }

  has(field: string): boolean {
    return this.#fields[field] !== undefined && this.#fields[field] !== null;
  }

  text(field: string): string | undefined {
    if (!this.has(field)) return undefined;
    const value = this.#fields[field];
    if (typeof value !== "string") throw this.#wrong(`${this.#path}.${field}`, "is no text");
    return value === "" ? undefined : value;
  }

  needText(field: string): string {
    const value = this.text(field);
    if (value === undefined) throw this.#wrong(`${this.#path}.${field}`, "is missing");
    return value;
  }

  flag(field: string): boolean {
    const value = this.#fields[field] ?? false;
    if (typeof value !== "boolean") throw this.#wrong(`${this.#path}.${field}`, "is neither true nor false");
    return value;
  }

  /** The entry called `name` of a kubeconfig list such as `clusters: [{ name, cluster }]`. */
  entry(list: string, member: string, name: string): Section {
    const items = this.#fields[list];
    if (!Array.isArray(items)) throw this.#wrong(list, "is missing or no list");
    for (const [index, item] of items.entries()) {
      const entry = new Section(this.#file, `${list}[${index}]`, item);
      if (entry.text("name") !== name) continue;
      return new Section(this.#file, `${list}[${index}].${member}`, entry.#fields[member]);
    }
    throw this.#wrong(list, `has no entry "${name}"`);
  }

  section(field: string): Section {
    return new Section(this.#file, `${this.#path}.${field}`, this.#fields[field]);
  }

  /** The elements of a list; none when it is left out. */
  list(field: string): readonly unknown[] {
    const value = this.#fields[field] ?? [];
    if (!Array.isArray(value)) throw this.#wrong(`${this.#path}.${field}`, "is no list");
    return value;
  }

  texts(field: string): readonly string[] {
    return this.list(field).map((value, index) => {
      if (typeof value !== "string") throw this.#wrong(`${this.#path}.${field}[${index}]`, "is no text");
      return value;
    });
  }

  sections(field: string): readonly Section[] {
    return this.list(field).map((value, index) => new Section(this.#file, `${this.#path}.${field}[${index}]`, value));
  }

  /** The contents of `field` (a path, relative to the kubeconfig) or of `field-data` (base64). */
  async content(field: string): Promise<string | undefined> {
    const data = this.text(`${field}-data`);
    if (data !== undefined) {
      if (!/^[A-Za-z0-9+/\s]+=*\s*$/.test(data)) throw this.#wrong(`${this.#path}.${field}-data`, "is no base64");
      return Buffer.from(data, "base64").toString("utf8");
    }
    const path = this.text(field);
    return path === undefined ? undefined : readText(this.filePath(path), `${this.#file}: ${this.#path}.${field}`);
  }

  get place(): string {
    return `${this.#file}: ${this.#path}`;
  }

  filePath(path: string): string {
    return resolve(dirname(this.#file), path);
  }

  wrongField(field: string, why: string): Error {
    return this.#wrong(`${this.#path}.${field}`, why);
  }

  unsupported(field: string): Error {
    return kubeError("KUBE_CONFIG_UNSUPPORTED", `${this.#file}: ${this.#path}.${field} is not supported`, {
      details: { file: this.#file, field: `${this.#path}.${field}` },
    });
  }

  #wrong(field: string, why: string): Error {
    return kubeError("KUBE_CONFIG_INVALID", `${this.#file}: ${field} ${why}`, { details: { file: this.#file, field } });
  }
}

async function readText(path: string, namedBy?: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (cause) {
    const where = namedBy === undefined ? path : `${path} (named by ${namedBy})`;
    throw kubeError("KUBE_CONFIG_UNREADABLE", `cannot read ${where}`, { cause, details: { file: path } });
  }
}

/** Which part of a kubeconfig is taken, and how. */
export interface KubeConfigOptions {
  /** Default: the file's current one. */
  readonly context?: string | undefined;
  /**
   * The environment for a program that the user logs in by. Without it such a user is refused: what runs unattended runs no program
   * that a file names.
   */
  readonly loginEnv?: Readonly<Record<string, string | undefined>>;
}

/**
 * Reads a kubeconfig file and takes one context of it.
 * Throws `KUBE_CONFIG_UNREADABLE`, `KUBE_CONFIG_INVALID` and `KUBE_CONFIG_UNSUPPORTED`, naming file and field.
 */
export async function loadKubeConfig(path: string, options: KubeConfigOptions = {}): Promise<KubeConfig> {
  return parseKubeConfig(await readText(path), path, options);
}

/** Reads the text of a kubeconfig; relative paths in it are relative to `file`. Throws as {@link loadKubeConfig}. */
export async function parseKubeConfig(
  text: string,
  file: string,
  options: KubeConfigOptions = {},
): Promise<KubeConfig> {
  let document: unknown;
  try {
    document = parse(text, { maxAliasCount: 100 });
  } catch (cause) {
    throw kubeError("KUBE_CONFIG_INVALID", `${file}: no YAML`, { cause, details: { file } });
  }
  const root = new Section(file, "the file", document);
  const contextName = options.context ?? root.text("current-context");
  if (contextName === undefined) throw root.wrongField("current-context", "is missing");
  const context = root.entry("contexts", "context", contextName);
  const cluster = root.entry("clusters", "cluster", context.needText("cluster"));
  const userName = context.text("user");
  const user = userName === undefined ? undefined : root.entry("users", "user", userName);
  const place = {
    server: parseServer(cluster),
    caPem: await cluster.content("certificate-authority"),
    insecureSkipTlsVerify: cluster.flag("insecure-skip-tls-verify"),
    tlsServerName: cluster.text("tls-server-name"),
  };
  const login =
    user?.has("exec") && options.loginEnv ? parseLogin(user.section("exec"), place, options.loginEnv) : undefined;
  return {
    source: file,
    ...place,
    namespace: context.text("namespace") ?? "default",
    credentials:
      user === undefined ? async () => ({}) : login === undefined ? await parseUser(user) : programCredentials(login),
  };
}

/** Reads `user.exec`: https://kubernetes.io/docs/reference/config-api/client-authentication.v1/ and client-go's ExecConfig. */
function parseLogin(
  exec: Section,
  place: Pick<KubeConfig, "server" | "caPem" | "insecureSkipTlsVerify" | "tlsServerName">,
  env: Readonly<Record<string, string | undefined>>,
): LoginProgram {
  const apiVersion = LOGIN_VERSIONS.find((version) => version === exec.text("apiVersion"));
  if (apiVersion === undefined) throw exec.wrongField("apiVersion", `is not one of ${LOGIN_VERSIONS.join(", ")}`);
  const command = exec.needText("command");
  const mode = exec.text("interactiveMode") ?? "IfAvailable";
  const isTerminal = process.stdin.isTTY;
  if (mode === "Always" && !isTerminal) throw exec.wrongField("interactiveMode", "is Always, and there is no terminal");
  const { server, caPem, insecureSkipTlsVerify, tlsServerName } = place;
  const cluster = {
    server,
    "tls-server-name": tlsServerName,
    "insecure-skip-tls-verify": insecureSkipTlsVerify,
    "certificate-authority-data": caPem === undefined ? undefined : Buffer.from(caPem).toString("base64"),
  };
  return {
    place: exec.place,
    apiVersion,
    command: command.includes("/") ? exec.filePath(command) : command,
    args: exec.texts("args"),
    env: {
      ...env,
      ...Object.fromEntries(exec.sections("env").map((one) => [one.needText("name"), one.text("value")])),
    },
    interactive: mode !== "Never" && isTerminal,
    cluster: exec.flag("provideClusterInfo") ? cluster : undefined,
    installHint: exec.text("installHint"),
  };
}

function parseServer(cluster: Section): string {
  const text = cluster.needText("server");
  const url = URL.parse(text);
  if (url === null || url.protocol !== "https:" || (url.pathname !== "/" && url.pathname !== "")) {
    throw cluster.wrongField("server", `is no https://host:port address: "${text}"`);
  }
  return url.origin;
}

async function parseUser(user: Section): Promise<() => Promise<KubeCredentials>> {
  for (const field of ["exec", "auth-provider", "username", "as"]) if (user.has(field)) throw user.unsupported(field);
  const certPem = await user.content("client-certificate");
  const keyPem = await user.content("client-key");
  if ((certPem === undefined) !== (keyPem === undefined)) {
    throw user.wrongField(certPem === undefined ? "client-certificate" : "client-key", "is missing");
  }
  const certificate = certPem === undefined || keyPem === undefined ? {} : { certPem, keyPem };
  const token = user.text("token");
  if (token !== undefined) return async () => ({ ...certificate, token });
  const tokenFile = user.text("tokenFile");
  if (tokenFile === undefined) return async () => certificate;
  const path = user.filePath(tokenFile);
  return async () => ({ ...certificate, token: (await readText(path)).trim() });
}

/** Where a pod finds its own credentials. */
export const SERVICE_ACCOUNT_DIRECTORY = "/var/run/secrets/kubernetes.io/serviceaccount";

/**
 * The configuration of a process inside a pod, from `KUBERNETES_SERVICE_HOST` and `_PORT` and the mounted service
 * account. Throws `KUBE_CONFIG_NOT_IN_CLUSTER` or `KUBE_CONFIG_UNREADABLE`.
 */
export async function inClusterConfig(
  env: Readonly<Record<string, string | undefined>>,
  directory = SERVICE_ACCOUNT_DIRECTORY,
): Promise<KubeConfig> {
  const host = env["KUBERNETES_SERVICE_HOST"] ?? "";
  const port = env["KUBERNETES_SERVICE_PORT"] ?? "";
  if (host === "" || !/^\d+$/.test(port)) {
    throw kubeError(
      "KUBE_CONFIG_NOT_IN_CLUSTER",
      "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: this process runs in no pod",
    );
  }
  const caPem = await readText(`${directory}/ca.crt`);
  const namespace = await readText(`${directory}/namespace`).catch(() => "default");
  await readText(`${directory}/token`); // says early what would fail later
  return {
    source: "in-cluster",
    server: `https://${formatHostPort(host, Number(port))}`,
    caPem,
    insecureSkipTlsVerify: false,
    tlsServerName: undefined,
    namespace: namespace.trim(),
    credentials: async () => ({ token: (await readText(`${directory}/token`)).trim() }),
  };
}

/**
 * What commands use: the file given by flag, else `KUBECONFIG`, else a pod's own credentials (unless a context is asked for, which
 * only a file has), else `~/.kube/config`. A file may name a program to log in by, as those of AKS, EKS and GKE do: it is run.
 */
export async function findKubeConfig(
  env: Readonly<Record<string, string | undefined>>,
  flag?: string,
  context?: string,
): Promise<KubeConfig> {
  const path = flag ?? env["KUBECONFIG"];
  const options = { context, loginEnv: env };
  if (path !== undefined && path !== "") return loadKubeConfig(path, options);
  if (env["KUBERNETES_SERVICE_HOST"] !== undefined && context === undefined) return inClusterConfig(env);
  return loadKubeConfig(`${env["HOME"] ?? "/root"}/.kube/config`, options);
}
