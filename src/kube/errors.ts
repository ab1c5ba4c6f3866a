import { defineErrors, type CodedError } from "#base/errors";

/** Failures of the Kubernetes client. `details` carry `status` (the Status object) where the API answered. */
export const kubeError = defineErrors("kube", {
  KUBE_CONFIG_UNREADABLE: {
    when: "a kubeconfig, or a file that it names, could not be read",
    hint: "the message names the file; check --kubeconfig, KUBECONFIG and the file's permissions; a lab's: eval \"$(veil lab env)\"",
  },
  KUBE_CONFIG_INVALID: {
    when: "a kubeconfig is no YAML, or one of its fields is missing or of the wrong form",
    hint: "the message names the file and the field; correct it, or make a new file",
  },
  KUBE_CONFIG_UNSUPPORTED: {
    when: "a kubeconfig asks for a way to log in that Veil does not have (auth-provider plugins, a password; for controller and agent also exec programs)",
    hint: "use a kubeconfig with a client certificate, a token or a token file; commands such as doctor and why also run a user's exec program",
  },
  KUBE_LOGIN: {
    when: "the program that a kubeconfig's user logs in by could not be run, or gave no credentials",
    hint: "the message names the program and carries the kubeconfig's own word on how to install it; run it by hand, or log in anew (az login, aws sso login, gcloud auth login)",
  },
  KUBE_CONFIG_NOT_IN_CLUSTER: {
    when: "the credentials of a pod were looked for where there are none",
    hint: "run inside a pod with a service account, or give --kubeconfig",
  },
  KUBE_BAD_REQUEST: {
    when: "the API could not understand a request",
    hint: "the message is the API's own; the versions of Veil and of the API may not fit",
  },
  KUBE_UNAUTHORIZED: {
    when: "the API did not accept the credentials",
    hint: "the certificate or token may have expired, or belongs to another cluster",
  },
  KUBE_FORBIDDEN: {
    when: "the credentials do not allow a request",
    hint: "the message names user, verb and resource: grant them with a Role or ClusterRole and a binding",
  },
  KUBE_NOT_FOUND: {
    when: "an object or a kind does not exist",
    hint: "check name and namespace; for a custom resource, that its definition is installed",
  },
  KUBE_CONFLICT: {
    when: "an object has changed since it was read",
    hint: "read it again and repeat the change; Veil's own roles do that themselves",
  },
  KUBE_ALREADY_EXISTS: {
    when: "an object that was to be created exists",
    hint: "use the existing one, or delete it first",
  },
  KUBE_GONE: {
    when: "a watch asked for a version that the API no longer keeps",
    hint: "list again and watch from there; Veil's informers do that themselves",
  },
  KUBE_INVALID: {
    when: "the API refused an object because of its contents",
    hint: "the message names the fields that are wrong",
  },
  KUBE_TOO_MANY_REQUESTS: {
    when: "the API asks to come back later",
    hint: "nothing, when it passes; otherwise look at the load of the API server",
  },
  KUBE_UNAVAILABLE: {
    when: "the API could not be reached, or ended the connection",
    hint: "check that the API server runs and that address and port in the kubeconfig are right",
  },
  KUBE_TLS: {
    when: "the certificate of the API server, or ours, was not accepted",
    hint: "the kubeconfig may belong to another cluster, or a clock is wrong; compare certificate-authority-data",
  },
  KUBE_TIMEOUT: {
    when: "the API did not answer in time",
    hint: "look at the load of the API server and at the network between",
  },
  KUBE_PROTOCOL: {
    when: "the API sent something that is no Kubernetes answer",
    hint: "another program may listen at that address, or a proxy in between answers for it",
  },
  KUBE_SERVER: {
    when: "the API failed inside",
    hint: "the message is the API's own; look at its log",
  },
  KUBE_EXEC: {
    when: "a command in a pod could not be started",
    hint: "the message says why; check pod, container and command",
  },
});

/** What the API said about a failed request (`kind: Status`). */
export interface KubeStatus {
  readonly status?: string;
  readonly reason?: string;
  readonly message?: string;
  readonly code?: number;
  /** `details.causes`, unchecked. */
  readonly causes?: readonly unknown[];
}

/** Reads a Status (parsed JSON); parts that have the wrong form are left out. */
export function parseStatus(value: unknown): KubeStatus {
  if (typeof value !== "object" || value === null) return {};
  const { status, reason, message, code, details }: Record<string, unknown> = { ...value };
  const causes = typeof details === "object" && details !== null && "causes" in details ? details.causes : undefined;
  return {
    ...(typeof status === "string" ? { status } : {}),
    ...(typeof reason === "string" ? { reason } : {}),
    ...(typeof message === "string" ? { message } : {}),
    ...(typeof code === "number" ? { code } : {}),
    ...(Array.isArray(causes) ? { causes } : {}),
  };
}

/** Reads the body of an answer as a Status; of another program, its text becomes the message. */
export function parseStatusText(text: string): KubeStatus {
  try {
    return parseStatus(JSON.parse(text));
  } catch {
    return text.trim() === "" ? {} : { message: text.trim().slice(0, 500) };
  }
}

type KubeCode = Parameters<typeof kubeError>[0];

const BY_HTTP_STATUS: Readonly<Record<number, KubeCode>> = {
  400: "KUBE_BAD_REQUEST",
  401: "KUBE_UNAUTHORIZED",
  403: "KUBE_FORBIDDEN",
  404: "KUBE_NOT_FOUND",
  409: "KUBE_CONFLICT",
  410: "KUBE_GONE",
  422: "KUBE_INVALID",
  429: "KUBE_TOO_MANY_REQUESTS",
  503: "KUBE_UNAVAILABLE",
  504: "KUBE_TIMEOUT",
};

/** The error for an answer of the API with `httpStatus` >= 400 to `what` (`get /api/v1/...`). */
export function statusError(what: string, httpStatus: number, status: KubeStatus): CodedError {
  const code =
    status.reason === "AlreadyExists"
      ? "KUBE_ALREADY_EXISTS"
      : (BY_HTTP_STATUS[httpStatus] ?? (httpStatus >= 500 ? "KUBE_SERVER" : "KUBE_BAD_REQUEST"));
  const message = status.message ?? `the API answered with ${httpStatus}`;
  return kubeError(code, `${what} failed: ${message}`, { details: { httpStatus, status } });
}

const TLS_CODES =
  /^(ERR_SSL|ERR_TLS|CERT_|UNABLE_TO_|DEPTH_ZERO_|SELF_SIGNED_|HOSTNAME_MISMATCH|INVALID_CA|EPROTO|ERR_OSSL)/;

/** The error for a request that got no answer. `details.reachable` is false when no connection was made. */
export function transportError(what: string, cause: unknown): CodedError {
  const code = cause instanceof Error && "code" in cause ? String(cause.code) : "";
  const kind = TLS_CODES.test(code) ? "KUBE_TLS" : "KUBE_UNAVAILABLE";
  return kubeError(kind, `${what} got no answer`, { cause, details: { code } });
}

/** True when the failure has this code. */
export function isKubeError(error: unknown, code: KubeCode): error is CodedError {
  return error instanceof Error && "code" in error && error.code === code;
}
