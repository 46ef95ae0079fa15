/** Errors: one type for requests, one for the start, and the way from SQLSTATE to HTTP status. */
import { STATUS_CODES } from 'node:http';
import type { z } from 'zod';

/** Configuration or schema error that an operator must fix; exit code 2. */
export class StartError extends Error {}

/** One invalid member of a body: its JSON pointer (RFC 6901) and what it must be. */
export type Fault = { pointer: string; detail: string };
type Extras = { details?: string; errors?: Fault[]; headers?: Record<string, string> };

/** The error that ends a request: an RFC 9457 problem with PostgREST's four members. */
export class Problem extends Error {
  status: number;
  code: string;
  hint: string | null;
  extras: Extras;
  constructor(status: number, code: string, detail: string, hint?: string, extras: Extras = {}) {
    super(detail);
    [this.status, this.code, this.hint, this.extras] = [status, code, hint ?? null, extras];
  }
}

/** The answer to a problem; `message` repeats `detail` for PostgREST's clients. */
export function problemAnswer({ status, code, message, hint, extras }: Problem) {
  const { details = null, errors, headers } = extras;
  const standard = { type: 'about:blank', title: STATUS_CODES[status], status, detail: message };
  const body = JSON.stringify({ ...standard, code, message, details, hint, errors });
  return { status, headers: { 'Content-Type': 'application/problem+json', ...headers }, body };
}

/** Codes of postgres.js and Node for a connection that broke after it was made. */
export const LOST = /^(CONNECTION_(CLOSED|DESTROYED)|ECONNRESET|EPIPE)$/;
/** The dialect refuses unknown columns, so these name what a statement of the service lacks. */
export const UNDECLARED = /^(42703|42P01)$/;

const TOO_SLOW = 'The database took too long; the statement was cancelled.';
/** Codes to status (PostgreSQL's manual, appendix A), with a text where PostgreSQL's is not shown. */
const STATUSES: [codes: RegExp, status: number, detail?: string][] = [
  [/^(23505|23503|23001)$/, 409],
  [/^(21000|22...|42601|23502|23514|42704|42803|42804|42846|42883|5400[01])$/, 400],
  [/^42501$/, 403, "The service's database role lacks this permission."],
  [/^57014$/, 504, TOO_SLOW],
  [/^0A000$/, 501],
  [UNDECLARED, 503, 'A table is not as it was declared.'],
  [/^53100$/, 503, 'The database cannot store more at the moment.'],
  [/^25006$/, 503, 'The database is read-only: a standby, or set so by its administrator.'],
  [/^(40001|40P01|55P03|53...|57P0.|08...|28...|3D000)$/, 503],
  [LOST, 503],
  // Codes of postgres.js and Node for a connection that could not be made
  [/^(CONNECT_TIMEOUT|CONNECTION_ENDED|ECONNREFUSED|ETIMEDOUT|ENOTFOUND|EAI_AGAIN)$/, 503],
];

/** The SQLSTATE or errno of an error, else ''. */
export function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : '';
}

/** Any error as a Problem; of an unknown one only the log has the details. */
export function toProblem(error: unknown): Problem {
  if (error instanceof Problem) return error;
  const code = codeOf(error);
  const [, status, detail] = STATUSES.find(([codes]) => codes.test(code)) ?? [];
  if (status === 503) return unavailable(detail);
  if (status === 409) return conflict(error as DatabaseError);
  if (status) return new Problem(status, code, detail ?? (error as Error).message);
  return new Problem(500, 'XX000', 'Internal error; the log has it under this X-Request-Id.');
}
type DatabaseError = Error & { code: string; detail?: string };

/**
 * The column is read from the start of PostgreSQL's detail, «Key (name)=(x) …», whatever its language
 * and the value. Of a foreign key the detail says which row is missing or still referenced.
 */
function conflict({ code, message, detail = '' }: DatabaseError): Problem {
  const [, inQuotes, bare] = /^[^("]*\((?:"((?:[^"]|"")+)"|(\w+))\)=\(/.exec(detail) ?? [];
  const name = inQuotes?.replaceAll('""', '"') ?? bare;
  const [why, fault] = code === '23505' ? [message, 'is taken'] : [detail || message, detail];
  const errors = name ? [{ pointer: pointer(name), detail: fault }] : [];
  return new Problem(409, code, why, undefined, { ...(detail && { details: detail }), errors });
}

export function unavailable(detail = 'The database is not available.', code = '08006'): Problem {
  return new Problem(503, code, detail, 'Try again.', { headers: { 'Retry-After': '1' } }); // s
}

export function tooSlow(): Problem {
  return new Problem(504, '57014', TOO_SLOW);
}

/** nginx's status for a client that disconnected: only the log and the metrics see it. */
export function clientLeft(): Problem {
  return new Problem(499, '57014', 'The client closed the connection.');
}

export function nothingHere(code = 'PGRST125'): Problem {
  const hint = 'GET /openapi.json lists the paths.';
  return new Problem(404, code, 'There is nothing at this path.', hint);
}

export function noRow(): Problem {
  const details = 'The result contains 0 rows';
  return new Problem(404, 'PGRST116', 'There is no row with this key.', undefined, { details });
}

export function notOne(rows: number): Problem {
  const details = `The result contains ${rows} rows`;
  const detail = 'Cannot coerce the result to a single JSON object';
  return new Problem(406, 'PGRST116', detail, undefined, { details });
}

/** PostgREST's error for `Prefer: max-affected`. */
export function tooMany(rows: number): Problem {
  const detail = 'Query result exceeds max-affected preference constraint';
  const details = `The query affects ${rows} rows`;
  return new Problem(400, 'PGRST124', detail, 'Nothing was changed.', { details });
}

export function preconditionFailed(): Problem {
  const hint = 'Read the row again for its present ETag.';
  return new Problem(412, 'PGRST100', 'The row does not match the precondition.', hint);
}

/** PostgREST's error for a range of rows that cannot be. */
export function badRange(details: string, headers: Record<string, string> = {}): Problem {
  const detail = 'Requested range not satisfiable';
  return new Problem(416, 'PGRST103', detail, undefined, { details, headers });
}

export function tooLarge(limit: number, what = 'body'): Problem {
  return new Problem(413, 'PGRST102', `The ${what} is larger than ${limit} bytes.`);
}

/** 409 for a create: the key exists, or the Idempotency-Key came with other content. */
export function keyTaken(idempotent?: string): Problem {
  if (!idempotent)
    return new Problem(409, '23505', 'There is a row with this key; nothing was created.');
  const detail = 'This Idempotency-Key was used before with other content.';
  return new Problem(409, '23505', detail, 'A new request needs a new key.');
}

export const MAX_FAULTS = 100; // in one answer; validation stops there
const NOT_SETTABLE = 'cannot be set';

/** 422 with each fault once in `errors`; PGRST204 is PostgREST's code for an unknown column. */
export function unprocessable(faults: Fault[]): Problem {
  const code = faults.some(({ detail }) => detail === NOT_SETTABLE) ? 'PGRST204' : '22023';
  const unique = new Map(faults.map((fault) => [`${fault.pointer} ${fault.detail}`, fault]));
  const detail = [...unique.keys()].slice(0, MAX_FAULTS).join('; ').slice(0, 500);
  const errors = [...unique.values()].slice(0, MAX_FAULTS);
  return new Problem(422, code, detail, undefined, { errors });
}

/** The issues of zod, one fault each; `base` is the pointer of the row. */
export function toFaults(error: z.ZodError, base: string): Fault[] {
  return error.issues.flatMap((issue) => {
    const at = base + issue.path.map((part) => pointer(String(part))).join('');
    if (issue.code !== 'unrecognized_keys') return [{ pointer: at, detail: issue.message }];
    const some = issue.keys.slice(0, MAX_FAULTS);
    return some.map((name) => ({ pointer: at + pointer(name), detail: NOT_SETTABLE }));
  });
}

/** The JSON pointer of a member (RFC 6901). */
export function pointer(name: string): string {
  return `/${name.replaceAll('~', '~0').replaceAll('/', '~1')}`;
}
