/** One reason of a refused object: which field, and why. */
export interface Cause {
  readonly reason:
    | "FieldValueInvalid"
    | "FieldValueRequired"
    | "FieldValueNotSupported"
    | "FieldValueForbidden"
    | "FieldValueDuplicate"
    | "FieldValueTypeInvalid";
  readonly field: string;
  readonly message: string;
}

/** Which resource and object a failure is about. */
export interface Subject {
  readonly group?: string;
  readonly resource?: string;
  readonly kind?: string;
  readonly name?: string;
}

/** `meta.k8s.io/v1` Status, as clients read it. */
export interface StatusBody {
  readonly kind: "Status";
  readonly apiVersion: "v1";
  readonly metadata: Record<string, never>;
  readonly status: "Success" | "Failure";
  readonly message?: string;
  readonly reason?: string;
  readonly details?: Record<string, unknown>;
  readonly code: number;
}

/** A request that was refused; its body is what the client gets. */
export class StatusError extends Error {
  readonly body: StatusBody;

  constructor(code: number, reason: string, options: { message: string; details?: Record<string, unknown> }) {
    super(options.message);
    this.name = "StatusError";
    this.body = {
      kind: "Status",
      apiVersion: "v1",
      metadata: {},
      status: "Failure",
      message: options.message,
      reason,
      ...(options.details && { details: options.details }),
      code,
    };
  }
}

function detailsOf(subject: Subject, more: Record<string, unknown> = {}): Record<string, unknown> {
  const { name, group, kind, resource } = subject;
  return { ...(name && { name }), ...(group && { group }), kind: kind ?? resource ?? "", ...more };
}

function quoted(subject: Subject): string {
  const resource = subject.group ? `${subject.resource}.${subject.group}` : (subject.resource ?? "");
  return `${resource} "${subject.name ?? ""}"`;
}

/** 400: the request cannot be read. */
export function badRequest(message: string): StatusError {
  return new StatusError(400, "BadRequest", { message });
}

/** 401: nobody is known behind the credentials. */
export function unauthorized(message = "Unauthorized"): StatusError {
  return new StatusError(401, "Unauthorized", { message });
}

/** 403: the user may not. */
export function forbidden(subject: Subject, why: string): StatusError {
  const message = `${quoted(subject)} is forbidden: ${why}`.replace(' "" is', " is");
  return new StatusError(403, "Forbidden", { message: message.trim(), details: detailsOf(subject) });
}

/** 404: no such object. */
export function notFound(subject: Subject): StatusError {
  return new StatusError(404, "NotFound", { message: `${quoted(subject)} not found`, details: detailsOf(subject) });
}

/** 404: no such path, resource or subresource here; `what` says what was asked for. */
export function notServed(what: string): StatusError {
  const message = `the server could not find the requested resource: ${what}`;
  return new StatusError(404, "NotFound", { message, details: { causes: [{ reason: "NotServed", message: what }] } });
}

/** 405. */
export function methodNotAllowed(subject: Subject, verb: string): StatusError {
  const message = `${verb} is not supported on resources of kind "${subject.resource ?? ""}"`;
  return new StatusError(405, "MethodNotAllowed", { message, details: detailsOf(subject) });
}

/** 409: the name is taken. */
export function alreadyExists(subject: Subject): StatusError {
  const message = `${quoted(subject)} already exists`;
  return new StatusError(409, "AlreadyExists", { message, details: detailsOf(subject) });
}

/** 409: somebody was faster, or the object is in no state for this. */
export function conflict(subject: Subject, why?: string): StatusError {
  const reason = why ?? "the object has been modified; please apply your changes to the latest version and try again";
  const message = `Operation cannot be fulfilled on ${quoted(subject)}: ${reason}`;
  return new StatusError(409, "Conflict", { message, details: detailsOf(subject) });
}

/** 410: the revision asked for is no longer kept. */
export function expired(message: string): StatusError {
  return new StatusError(410, "Expired", { message });
}

/** 413. */
export function tooLarge(limitBytes: number): StatusError {
  const message = `Request entity too large: limit is ${limitBytes}`;
  return new StatusError(413, "RequestEntityTooLarge", { message });
}

/** 415. */
export function unsupportedMediaType(message: string): StatusError {
  return new StatusError(415, "UnsupportedMediaType", { message });
}

/** 422: fields of the object are wrong; all of them are listed. */
export function invalid(subject: Subject, causes: readonly Cause[]): StatusError {
  const list = causes.map((cause) => `${cause.field}: ${cause.message}`);
  const kind = subject.group ? `${subject.kind}.${subject.group}` : (subject.kind ?? "");
  const message = `${kind} "${subject.name ?? ""}" is invalid: ${list.length === 1 ? list[0] : `[${list.join(", ")}]`}`;
  return new StatusError(422, "Invalid", { message, details: detailsOf(subject, { causes }) });
}

/** 500: our own failure; the message holds no internals. */
export function internalError(message: string): StatusError {
  return new StatusError(500, "InternalError", {
    message: `Internal error occurred: ${message}`,
    details: { causes: [{ message }] },
  });
}

/** 503: try again later. */
export function unavailable(message: string): StatusError {
  return new StatusError(503, "ServiceUnavailable", { message });
}

/** The answer to a deletion that left nothing behind. */
export function success(subject: Subject, uid: string): StatusBody {
  const details = { name: subject.name, ...(subject.group && { group: subject.group }), kind: subject.resource, uid };
  return { kind: "Status", apiVersion: "v1", metadata: {}, status: "Success", details, code: 200 };
}

const REQUIRED = "Required value";

/** A cause: the field must be set. */
export function required(field: string, why = ""): Cause {
  return { reason: "FieldValueRequired", field, message: why === "" ? REQUIRED : `${REQUIRED}: ${why}` };
}

/** A cause: the field's value cannot be used. */
export function invalidValue(field: string, value: unknown, why: string): Cause {
  return { reason: "FieldValueInvalid", field, message: `Invalid value: ${show(value)}: ${why}` };
}

/** A cause: the field's value is not one of those that are possible. */
export function unsupportedValue(field: string, value: unknown, possible: readonly string[]): Cause {
  const list = possible.map((one) => `"${one}"`).join(", ");
  return {
    reason: "FieldValueNotSupported",
    field,
    message: `Unsupported value: ${show(value)}: supported values: ${list}`,
  };
}

/** A cause: the field may not be set, or not be changed. */
export function forbiddenValue(field: string, why: string): Cause {
  return { reason: "FieldValueForbidden", field, message: `Forbidden: ${why}` };
}

function show(value: unknown): string {
  const text = JSON.stringify(value) ?? "null";
  return text.length > 200 ? `${text.slice(0, 200)}…` : text;
}
