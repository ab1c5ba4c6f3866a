/**
 * The one error class of Veil. A failure carries a stable code (`COMPONENT_WHAT`), facts for machines and its cause.
 * Every component declares its codes with {@link defineErrors}; `docs/errors.md` is generated from these tables.
 */
export class CodedError<Code extends string = string> extends Error {
  /** Stable identifier, for example `X509_TWO_URI_SANS`. Never reused for another meaning. */
  readonly code: Code;
  /** Facts about this occurrence (file, object, field, peer). Never secrets. */
  readonly details: Readonly<Record<string, unknown>>;

  constructor(code: Code, message: string, options: { details?: Record<string, unknown>; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "CodedError";
    this.code = code;
    this.details = options.details ?? {};
  }
}

/** What an operator should know about one code: the text of `docs/errors.md`. */
interface ErrorHint {
  /** When this happens, one lower-case sentence. */
  readonly when: string;
  /** What to do about it, one lower-case sentence. */
  readonly hint: string;
}

/** A component's table of codes. Keys are the codes. */
export type ErrorTable = Readonly<Record<string, ErrorHint>>;

/** All the tables of the program, by component; filled when a component's `errors.ts` is loaded. */
export const errorTables = new Map<string, ErrorTable>();

/**
 * Declares a component's failures and returns the function that makes them.
 * Throws when a component is declared twice: two tables of one name would hide codes from the documentation.
 */
export function defineErrors<const Table extends ErrorTable>(component: string, table: Table) {
  if (errorTables.has(component)) throw new Error(`errors of ${component} are declared twice`);
  errorTables.set(component, table);
  return (
    code: keyof Table & string,
    message: string,
    options: { details?: Record<string, unknown>; cause?: unknown } = {},
  ): CodedError => new CodedError(code, message, options);
}

/** Finds the first {@link CodedError} in a chain of causes. */
export function findCodedError(error: unknown): CodedError | undefined {
  for (let at = error, depth = 0; at instanceof Error && depth < 16; at = at.cause, depth++) {
    if (at instanceof CodedError) return at;
  }
  return undefined;
}

/** The message of anything that was thrown, with the messages of its causes, joined by `: `. */
export function messageOf(error: unknown): string {
  const parts: string[] = [];
  let at: unknown = error;
  for (let depth = 0; at !== undefined && at !== null && depth < 16; depth++) {
    const text = at instanceof Error ? at.message : typeof at === "string" ? at : JSON.stringify(at);
    if (text !== "" && !parts.some((part) => part.includes(text))) parts.push(text);
    at = at instanceof Error ? at.cause : undefined;
  }
  return parts.join(": ");
}

/** An error for an operator: its message, and on a second line what to do and the code, where there is one. */
export function explain(error: unknown): string {
  const coded = findCodedError(error);
  if (coded === undefined) return messageOf(error);
  const hint = [...errorTables.values()].map((table) => table[coded.code]).find((found) => found !== undefined);
  return `${messageOf(error)}\n      ${hint === undefined ? "" : `${hint.hint} `}(${coded.code})`;
}
