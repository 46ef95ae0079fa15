/**
 * passengers: a CRUD API over one PostgreSQL table, whole in this file.
 *
 *     npm install && npm start                  on an embedded PostgreSQL
 *     DATABASE_URL=postgres://... node app.ts   on yours, with Node >= 22.18
 *     node app.ts token --sub me --expires 1h   prints a token signed by JWT_SECRET
 *     node app.ts examples/orders.ts            serves another resource, as RESOURCE does
 *
 * Read it from top to bottom; `grep '^// ---' app.ts` prints the table of contents. To serve
 * something else change the declaration in Resource: nothing below it knows the columns.
 */
import { isUtf8 } from 'node:buffer';
import cluster from 'node:cluster';
import { randomUUID } from 'node:crypto';
import { on, once } from 'node:events';
import { readFileSync, realpathSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { createServer, type Server, type ServerResponse, STATUS_CODES } from 'node:http';
import { type AddressInfo, connect as dial, type Socket } from 'node:net';
import { PassThrough, pipeline, Readable, type Writable } from 'node:stream';
import { pipeline as finished } from 'node:stream/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { setFlagsFromString } from 'node:v8';
import { getRequestListener, type HttpBindings } from '@hono/node-server';
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response';
import { type Context, Hono } from 'hono';
import { parseAccept } from 'hono/utils/accept';
import * as jose from 'jose';
import { type Logger, pino } from 'pino';
import postgres from 'postgres';
import prometheus from 'prom-client';
import { v5 as uuidv5, v7 as uuidv7 } from 'uuid';
import { z } from 'zod';

// --- Config ---------------------------------------------------------------------

/** The environment, one line a variable; the README's table says what each is for. */
export const Config = z.object({
  PORT: whole(0, 65_535).default(8000),
  HOST: z.string().default('127.0.0.1'),
  BASE_PATH: z
    .string()
    .regex(/^(\/[\w.~-]+)*$/, 'expected /a/b')
    .default(''),
  RESOURCE: z.string().optional(),
  DATABASE_URL: z.url({ protocol: /^postgres(ql)?$/, error: 'expected postgres://…' }).optional(),
  PGHOST: z.string().optional(),
  DATA_DIR: z.string().default('.data'),
  POOL_SIZE: whole(1, 100).default(8),
  WEB_CONCURRENCY: whole(1, 64).default(1),
  JWT_SECRET: words().refine(areLong, 'is empty or has less than 32 bytes').optional(),
  JWKS_URL: z.url({ protocol: /^https?$/, error: 'expected https://…' }).optional(),
  JWT_ISSUER: z.string().optional(),
  JWT_AUDIENCE: z.string().optional(),
  JWT_WRITE_SCOPE: z.string().optional(),
  AUTH: z.enum(['none', 'write', 'all']).optional(),
  CORS_ORIGIN: words().default([]),
  MAX_ROWS: whole(1, 100_000).default(1000),
  BODY_LIMIT: whole(1, 2 ** 30).default(2 ** 20),
  CSV_LIMIT: whole(1, 2 ** 40).default(64 * 2 ** 20),
  DB_PREPARE: z.enum(['true', 'false']).default('true'),
  SHUTDOWN_GRACE: whole(0, 600).default(0),
  LOG_LEVEL: z.enum(['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent']).default('info'),
  APP_VERSION: z.string().default(packageVersion),
  APP_BRANCH: z.string().default(''),
  APP_COMMIT: z.string().default(''),
  NODE_ENV: z.string().default(''),
});
export type Config = z.infer<typeof Config>;

/** The time budget in ms, inner below outer. Outside of it nginx gives up at 5 s, a client at 6. */
const LOCK_TIMEOUT = 1000;
const CONNECT_TIMEOUT = 2000;
const STATEMENT_TIMEOUT = 3000;
const DEADLINE = 4000;

/** What an operator has to mend; the message names the variable or the table. Exit code 2. */
export class StartError extends Error {}

/** Checks the environment; an empty variable counts as unset, but for a secret. Throws StartError. */
export function readConfig(environment: Record<string, string | undefined>): Config {
  const isGiven = ([name, value]: [string, unknown]) => value || name === 'JWT_SECRET';
  const given = Object.fromEntries(Object.entries(environment).filter(isGiven));
  const { data, error } = Config.safeParse(given);
  const faults = error?.issues.map(({ path, message }) => `${path.join()} ${message}`) ?? [];
  if (!data) throw new StartError(faults.join('; '));
  const { JWT_SECRET, JWKS_URL, AUTH, DATABASE_URL, PGHOST } = data;
  const [keyed, production] = [JWT_SECRET || JWKS_URL, data.NODE_ENV === 'production'];
  if (JWT_SECRET && JWKS_URL) faults.push('JWT_SECRET and JWKS_URL exclude each other');
  if (!keyed && AUTH && AUTH !== 'none') faults.push(`AUTH=${AUTH} needs JWT_SECRET or JWKS_URL`);
  if (production && !keyed && !AUTH) faults.push('JWT_SECRET, JWKS_URL or AUTH=none is required');
  if (production && !DATABASE_URL && !PGHOST) faults.push('DATABASE_URL is required in production');
  if (faults.length > 0) throw new StartError(faults.join('; '));
  return data;
}

function whole(least: number, most: number) {
  const fits = (text: string) => /^\d{1,15}$/.test(text) && +text >= least && +text <= most;
  const text = z.string().refine(fits, `expected a whole number from ${least} to ${most}`);
  return text.transform(Number);
}

function words() {
  return z.string().transform((value) => value.split(',').map((word) => word.trim()));
}

function areLong(secrets: string[]): boolean {
  return secrets.every((secret) => Buffer.byteLength(secret) >= 32);
}

function packageVersion(): string {
  return JSON.parse(readFileSync(new URL('./package.json', import.meta.url), 'utf8')).version;
}

// --- Resource -------------------------------------------------------------------

// A column more: one line in `columns`, with a default or nullable where the table is in use.
// Another resource: change path, table, key and columns; drop `sample` and `legacy`.
// The DDL, the validator, the filters, the CSV header and the OpenAPI document follow.
export const passengers = resource({
  path: 'passengers',
  table: 'titanic',
  key: 'uuid',
  columns: {
    survived: boolean({ csv: 'Survived' }),
    passengerClass: integer(1, 3, { csv: 'Pclass' }),
    name: text(150, { csv: 'Name', example: 'Miss. Elisabeth Walton Allen' }),
    sex: oneOf(['male', 'female'], { csv: 'Sex', example: 'female' }),
    age: number(0, 150, { csv: 'Age', example: 29 }),
    siblingsOrSpousesAboard: integer(0, 20, {
      csv: 'Siblings/Spouses Aboard, Siblings_Spouses_Aboard, SibSp',
    }),
    parentsOrChildrenAboard: integer(0, 20, {
      csv: 'Parents/Children Aboard, Parents_Children_Aboard, Parch',
    }),
    fare: number(0, Number.MAX_VALUE, { csv: 'Fare', example: 211.3375 }),
  },
  sample: 'examples/passengers.csv',
  legacy: {
    list: '/passengerlist',
    create: '/postpassenger',
    read: '/getpassenger',
    replace: '/putpassenger',
    remove: '/deletepassenger',
  },
});

/**
 * `csv`: other names in a CSV header. `default`, `nullable`: a body may leave it out. `generated`:
 * the database makes it, a body may not. `unique`: 409 where it is taken. A function gives SQL.
 */
type Options = {
  csv?: string;
  default?: unknown;
  nullable?: boolean;
  generated?: () => string;
  unique?: boolean;
  example?: unknown;
};

/** SQL over a quoted column name. */
type Check = (name: string) => string;

/**
 * One column. `type` is written as PostgreSQL's format_type() prints it; `check` says what `schema`
 * says; `expects` completes «must be …»; `owner` is what the token's `sub` has to match.
 */
export type Column = Options & {
  type: string;
  expects: string;
  schema: z.ZodType;
  check: Check;
  owner?: RegExp;
};

/** Values by column name, as JSON has them. */
export type Row = Record<string, unknown>;

/** What one service serves. `sample`: a CSV file that a new embedded database begins with. */
type Declaration = {
  path: string;
  table: string;
  key: string;
  columns: Record<string, Column>;
  sample?: string;
  legacy?: Record<'list' | 'create' | 'read' | 'replace' | 'remove', string>;
};

export type Resource = ReturnType<typeof resource>;

/**
 * Completes a declaration with `names` (key first), those a body may set, those required in a whole
 * row, an example, the validators of a whole row and of a part. A key that lacks the service makes.
 */
export function resource(declaration: Declaration) {
  const { key, columns } = declaration;
  const id = uuid({ example: '0192f0c1-2f3a-7bcd-8123-456789abcdef' });
  const [row, part]: [Schemas, Schemas] = [{}, {}];
  const example: Row = { [key]: id.example };
  for (const [name, { schema, nullable, default: initial, ...column }] of Object.entries(columns)) {
    example[name] = column.example;
    if (column.generated || column.owner) continue;
    const valid = nullable ? schema.nullable() : schema;
    const absent = initial === undefined && nullable ? null : initial;
    part[name] = valid.optional();
    row[name] = absent === undefined ? valid : valid.default(absent);
    if (typeof initial === 'function') row[name] = schema.optional();
  }
  const names = Object.keys(example);
  const odd = Object.keys(columns).find((name) => name === key || !isColumnName(name));
  if (odd !== undefined) throw new StartError(`"${odd}" cannot be the name of a column`);
  const settable = Object.keys(row);
  const required = settable.filter((name) => !row[name]?.safeParse(undefined).success);
  const owner = names.find((name) => columns[name]?.owner);
  const strict = (columns: Schemas) =>
    z.strictObject({ [key]: id.schema.optional(), ...columns }, 'must be an object');
  const validators = { row: strict(row), part: strict(part) };
  return { ...declaration, ...validators, names, settable, required, owner, example };
}
type Schemas = Record<string, z.ZodType>;

/** None of the parameters that are no filters. */
function isColumnName(name: string): boolean {
  return !/^(|select|order|limit|offset|after|columns|on_conflict|(not\.)?(and|or)|not)$/.test(
    name,
  );
}

type Must = ReturnType<typeof mustBe>;

function mustBe(expects: string) {
  const error = ({ input }: { input?: unknown }) =>
    input === undefined ? `is missing; it must be ${expects}` : `must be ${expects}`;
  return { error };
}

/** A column of some kind; its schema says `expects` of all that does not fit. */
function column(
  ...[type, expects, schema, check, options]: [string, string, Make, Check, Options]
): Column {
  return { type, expects, schema: schema(mustBe(expects)), check, ...options };
}
type Make = (must: Must) => z.ZodType;

export function boolean(options?: Options): Column {
  const check: Check = (name) => `${name} in (true, false)`;
  return column('boolean', 'true or false', z.boolean, check, { example: true, ...options });
}

/** A 32-bit integer within bounds. */
export function integer(least: number, most: number, options?: Options): Column {
  const [expects, check] = [`a whole number from ${least} to ${most}`, between(least, most)];
  const schema: Make = (must) => z.int(must).min(least, must).max(most, must);
  return column('integer', expects, schema, check, { example: least, ...options });
}

/** A double within bounds; NaN and the infinities are outside of any. */
export function number(least: number, most: number, options?: Options): Column {
  const expects = `a number from ${least}${most < Number.MAX_VALUE ? ` to ${most}` : ''}`;
  const schema: Make = (must) => z.number(must).min(least, must).max(most, must);
  const usual = { example: least, ...options };
  return column('double precision', expects, schema, between(least, most), usual);
}

/** Text of 1 to `most` code points; blanks around it are removed. */
export function text(most: number, options?: Options): Column {
  const expects = `text of 1 to ${most} characters besides blanks around it`;
  const fits = (value: string) => value !== '' && isStorable(value) && [...value].length <= most;
  const bounds = { minLength: 1, maxLength: most }; // for the JSON schema, which sees no refine()
  const schema: Make = (must) => z.string(must).trim().refine(fits, must).meta(bounds);
  const check: Check = (name) => `${name} <> '' and ${name} = btrim(${name}, E'${BLANKS}')`;
  const usual = { example: 'some text', ...options };
  return column(`character varying(${most})`, expects, schema, check, usual);
}

/** One of the given words. */
export function oneOf(words: string[], options?: Options): Column {
  const type = `character varying(${Math.max(...words.map((word) => word.length))})`;
  const check: Check = (name) => `${name} in (${words.map(literal).join(', ')})`;
  const schema: Make = (must) => z.enum(words, must);
  return column(type, words.join(' or '), schema, check, { example: words[0], ...options });
}

/** A UUID in any form that PostgreSQL takes. */
export function uuid(options?: Options): Column {
  const schema: Make = (must) => z.string(must).transform(toUuid).refine(Boolean, must);
  const example = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11';
  return column('uuid', 'a UUID', schema, isKnown, { example, ...options });
}

/** Bounds, written as values of the column are. */
type Span = Options & { from?: string; to?: string };

/** A day, as 2026-01-31. */
export function date(options?: Span): Column {
  const bounds = { from: '0001-01-01', to: '9999-12-31' };
  const usual = { ...bounds, example: '2026-01-31', ...options };
  return span('date', 'a day, as 2026-01-31,', z.iso.date, usual);
}

/** A moment with its offset, as 2026-01-31T12:00:00Z. */
export function timestamp(options?: Span): Column {
  const bounds = { from: '0001-01-01T00:00:00Z', to: '9999-12-31T23:59:59Z' };
  const usual = { ...bounds, example: '2026-01-31T12:00:00+00:00', ...options };
  const schema = (must: Must) => z.iso.datetime({ offset: true, ...must });
  return span('timestamp with time zone', 'a moment, as 2026-01-31T12:00:00Z,', schema, usual);
}

/** PostgreSQL's offsets end before 16 hours, and its patience with fractions somewhere. */
function span(
  ...[type, what, schema, options]: [string, string, (must: Must) => z.ZodType<string>, Span]
): Column {
  const { from = '', to = '', ...others } = options;
  const isWithin = (at: number) => at >= Date.parse(from) && at <= Date.parse(to);
  const isZoned = (text: string) => text.length <= 40 && !/[+-](1[6-9]|2\d):\d\d$/.test(text);
  const fits = (text: string) => isWithin(Date.parse(text)) && isZoned(text);
  const make: Make = (must) => schema(must).refine(fits, must);
  return column(type, `${what} from ${from} to ${to}`, make, between(from, to), others);
}

/** JSON that fits the schema. The table checks its outermost type alone, so CSV cannot bring it. */
export function jsonb(schema: z.ZodType, example: unknown, options?: Options): Column {
  const type = String(z.toJSONSchema(schema, { io: 'input' }).type);
  const typed: Check = (name) => `jsonb_typeof(${name}) = ${literal(type)}`;
  const check = /^(array|object|string|number|boolean)$/.test(type) ? typed : isKnown;
  const make: Make = (must) => schema.refine((value) => isStorable(value), must);
  return column('jsonb', 'JSON of its schema', make, check, { example, ...options });
}

/** Whose the row is: the `sub` of the token that made it, never told by a body, never changed. */
export function owner(pattern: RegExp, options?: Options): Column {
  const like = column('text', `as ${pattern.source}`, z.string, isKnown, options ?? {});
  return { ...like, owner: pattern };
}

/** For `default` and `generated`: the time of the statement. */
export function now(): string {
  return 'now()';
}

function isKnown(name: string): string {
  return `${name} = ${name}`;
}

function between(least: unknown, most: unknown) {
  return (name: string) => `${name} between ${literal(least)} and ${literal(most)}`;
}

/** PostgreSQL has no NUL, no half of a surrogate pair, in JSON no infinity, and a stack that ends. */
function isStorable(value: unknown, depth = 0): boolean {
  if (typeof value === 'string') return !value.includes('\0') && value.isWellFormed();
  if (typeof value !== 'object') return typeof value !== 'number' || Number.isFinite(value);
  const inside = Object.entries(value ?? {}).flat();
  return depth < 100 && inside.every((one) => isStorable(one, depth + 1));
}

/** What String.prototype.trim() removes, for PostgreSQL's E''. */
const BLANKS =
  ' \\t\\n\\u000b\\f\\r\\u00a0\\u1680\\u2000\\u2001\\u2002\\u2003\\u2004\\u2005\\u2006\\u2007' +
  '\\u2008\\u2009\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000\\ufeff';

/** The canonical form of any UUID that PostgreSQL accepts (its manual, 8.12); undefined of others. */
export function toUuid(value: string): string | undefined {
  if (/^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(value)) return value;
  const bare = /^\{.*\}$/.test(value) ? value.slice(1, -1) : value;
  if (!/^(?:[0-9a-f]{4}-?){7}[0-9a-f]{4}$/i.test(bare)) return undefined;
  const hex = bare.replaceAll('-', '').toLowerCase();
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
}

function quoted(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

/** A value as PostgreSQL reads it from text. */
function toText(value: unknown): string {
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}

function toTextOrNull(value: unknown): string | null {
  return value === null || value === undefined ? null : toText(value);
}

function literal(value: unknown): string {
  return `'${toText(value).replaceAll("'", "''")}'`;
}

/** A column of the row `i`; `instead` where it lacks and the default is SQL. */
function given({ columns }: Resource, name: string, instead?: string): string {
  const initial = columns[name]?.default;
  if (typeof initial !== 'function') return `i.${quoted(name)}`;
  return `coalesce(i.${quoted(name)}, ${instead ?? initial()})`;
}

// --- Errors ---------------------------------------------------------------------

type Fault = { pointer: string; detail: string };
type Extras = { details?: string; errors?: Fault[]; headers?: Record<string, string> };

/** The one error that ends a request: RFC 9457 and PostgREST's four members in one body. */
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

/** What a handler answers, before the headers that every answer carries. */
type Answer = {
  status: number;
  headers: Record<string, string>;
  body: string | Buffer | Readable | null;
};

function problemAnswer({ status, code, message, hint, extras }: Problem): Answer {
  const { details = null, errors, headers } = extras;
  const standard = { type: 'about:blank', title: STATUS_CODES[status], status, detail: message };
  const body = JSON.stringify({ ...standard, code, message, details, hint, errors });
  return { status, headers: { 'Content-Type': 'application/problem+json', ...headers }, body };
}

/** SQLSTATE to status (PostgreSQL's manual, appendix A); of others, and of 500, nothing is told. */
const SQLSTATES: [RegExp, number][] = [
  [/^(23505|23503)$/, 409],
  [/^(21000|22...|42601|23502|23514|42703|42704|42803|42804|42846|42883)$/, 400],
  [/^42501$/, 403],
  [/^57014$/, 504],
  [/^(40001|40P01|55P03|25006|53...|57P0.|08...|28...|3D000)$/, 503],
];

/** Codes of the driver and of Node for a connection that was lost, or not made. */
const LOST = /^(CONNECTION_(CLOSED|DESTROYED)|ECONNRESET|EPIPE)$/;
const UNREACHABLE =
  /^(CONNECT_TIMEOUT|CONNECTION_ENDED|ECONNREFUSED|ETIMEDOUT|ENOTFOUND|EAI_AGAIN)$/;

function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : '';
}

export function toProblem(error: unknown): Problem {
  if (error instanceof Problem) return error;
  const code = codeOf(error);
  const status = SQLSTATES.find(([pattern]) => pattern.test(code))?.[1];
  if (status === 503 || LOST.test(code) || UNREACHABLE.test(code)) return unavailable();
  if (status === 504) return tooSlow();
  if (status === 403) return new Problem(403, code, 'The database role of the service may not.');
  if (status === 409) return conflict(error as postgres.PostgresError);
  if (status && error instanceof Error) return new Problem(status, code, error.message);
  return new Problem(500, 'XX000', 'Something went wrong here; the log tells, by the request id.');
}

/** The column stands in the detail, «Key (name)=(x) …», whatever its language. */
function conflict({ code, message, detail: details = '' }: postgres.PostgresError): Problem {
  const [, inQuotes, bare] = /\((?:"((?:[^"]|"")+)"|(\w+))\)=\(/.exec(details) ?? [];
  const name = inQuotes?.replaceAll('""', '"') ?? bare;
  const errors = name ? [{ pointer: pointer(name), detail: 'is taken' }] : [];
  return new Problem(409, code, message, undefined, { ...(details && { details }), errors });
}

const LATER = { headers: { 'Retry-After': '1' } };

function unavailable(detail = 'The database is not available.'): Problem {
  return new Problem(503, '08006', detail, 'Try again.', LATER);
}

function gone(): Problem {
  return new Problem(499, '57014', 'The client went away.');
}

function tooSlow(): Problem {
  return new Problem(504, '57014', 'The database took too long and was told to stop.');
}

/** zod's issues, one fault each. */
function toFaults(error: z.ZodError, base: string): Fault[] {
  return error.issues.flatMap((issue) => {
    const at = base + issue.path.map((part) => pointer(String(part))).join('');
    if (issue.code !== 'unrecognized_keys') return [{ pointer: at, detail: issue.message }];
    return issue.keys.map((name) => ({ pointer: at + pointer(name), detail: 'cannot be set' }));
  });
}

/** RFC 6901. */
function pointer(name: string): string {
  return `/${name.replaceAll('~', '~0').replaceAll('/', '~1')}`;
}

// --- Database -------------------------------------------------------------------

/** SQL text in which NUL stands for each value: PostgreSQL gets them apart from each other. */
export class Sql {
  text: string;
  values: unknown[];
  constructor(text: string, values: unknown[] = []) {
    this.text = text;
    this.values = values;
  }
}

/** The one way to write SQL: what is put in is bound as a value, unless it is Sql itself. */
export function sql(texts: TemplateStringsArray, ...parts: unknown[]): Sql {
  const made = new Sql(texts[0] ?? '');
  for (const [at, part] of parts.entries()) {
    made.text += (part instanceof Sql ? part.text : '\0') + texts[at + 1];
    if (part instanceof Sql) made.values.push(...part.values);
    else made.values.push(part);
  }
  return made;
}

function joined(parts: Sql[], by = new Sql(', ')): Sql {
  const text = parts.map((part) => part.text).join(by.text);
  return new Sql(
    text,
    parts.flatMap(({ values }) => values),
  );
}

/** An identifier. */
function name(text: string): Sql {
  return new Sql(quoted(text));
}

function names(all: string[], prefix = ''): Sql {
  return new Sql(all.map((one) => prefix + quoted(one)).join(', '));
}

/** A word of a constant table of this file, never a caller's. */
function word(text: string): Sql {
  return new Sql(text);
}

/** One line of a result: each value as the text that PostgreSQL printed, or null. */
type Result = Record<string, string | null>;
/** What postgres 3.4.9 keeps with a query: `state` once it is sent, `active` while it is run. */
type Pending = postgres.PendingQuery<Result[]> & {
  state?: { pid: number } | null;
  active?: boolean;
  options?: { simple?: boolean };
  resolve?: (stream: Writable) => void;
  reject?: (error: unknown) => void;
};

/** What may be done with a statement of unknown outcome: a keyed insert may be sent again. */
type Kind = 'read' | 'keyed' | 'write';

/** One request: who waits for its statements, as whom, the ms they took, whether one was repeated. */
export type Call = { sub: string; ms: number; repeated: boolean; outgoing?: ServerResponse };

/** A statement on its way; `sent` once a connection has it. */
type Attempt = { kind: Kind; call: Call; statement: Sql; raw: boolean; sent?: Sent };
type Sent = { client: Client; query: Pending; at: number };

/**
 * One connection; it gets statements only while it is open, so that none waits for it to be made.
 * `dismissed`: the server ended it between two statements. retire() gives it up.
 */
type Client = {
  sql: postgres.Sql;
  open: boolean;
  dismissed: boolean;
  inFlight: Set<Pending>;
  closed: Promise<void>;
  retire: () => void;
};

const RETURNING = sql`returning t.*, t.xmin::text as "#"`;
const IN_FLIGHT_PER_CLIENT = 64;
const PIPELINED = 2; // on a connection: by 1 PostgreSQL has to wait, more stand behind slow ones
const MOST_SHAPES = 256; // of statements that stay prepared
const STREAMS = 4;
const STREAM_ROWS = 200;

/**
 * POOL_SIZE connections, made at once and made again for ever, until end().
 *
 * Each is a client of postgres 3.4.9 of its own, thrown away when its connection closes: the queue
 * of one with many connections slows down for good under load, and one that reconnects hands the
 * error of its old connection to the first statement on the new one.
 */
export class Database {
  readonly numbers = { inFlight: 0, streams: 0 };
  /** Those who wait for a connection, in the order of asking. */
  readonly queue = new Set<(client?: Client) => void>();
  /** Told of each group of requests that became one statement. */
  observe: (work: string, requests: number) => void = () => {};
  private config: Config;
  private log: Logger;
  private state: 'starting' | 'up' | 'down' = 'starting';
  private ending = false;
  private clients = new Set<Client>();
  private shapes = new Map<string, string>();

  constructor(config: Config, log: Logger) {
    this.config = config;
    this.log = log;
    for (let count = 0; count < config.POOL_SIZE; count += 1) void this.keepOpen();
  }

  private async keepOpen(): Promise<void> {
    for (let pause = 0; !this.ending; pause = Math.min(pause * 2 + 25, 500)) {
      const client = openClient(this.config);
      this.clients.add(client);
      try {
        await within(CONNECT_TIMEOUT + 500, client.sql`select 1`);
        client.open = true;
        pause = 0;
        this.change('up');
        await client.closed;
      } catch (error) {
        const refused = !LOST.test(codeOf(error)) && ![...this.clients].some(({ open }) => open);
        if (refused) this.change('down', codeOf(error));
      }
      client.open = false;
      this.clients.delete(client);
      void client.sql.end({ timeout: 0 });
      await sleep(pause);
    }
  }

  private change(to: 'up' | 'down', code?: string): void {
    if (this.state !== to) this.log[to === 'up' ? 'info' : 'warn']({ code }, `database ${to}`);
    this.state = to;
    this.advance();
  }

  private leastBusy(except?: Client): Client | undefined {
    let best: Client | undefined;
    for (const client of this.clients) {
      if (!client.open || client === except) continue;
      if (!best || client.inFlight.size < best.inFlight.size) best = client;
    }
    return best;
  }

  /** Lets those begin for whom a connection has room; refuses them where none can be had. */
  private advance(): void {
    for (const begin of this.queue) {
      const client = this.leastBusy();
      if (client ? client.inFlight.size >= PIPELINED : this.state !== 'down') return;
      this.queue.delete(begin);
      begin(client);
    }
  }

  /** Lets a request wait for the database; past the cap it is refused at once. */
  admit<T>(call: Call, answer: () => Promise<T>): Promise<T> {
    const { numbers } = this;
    const most = this.config.POOL_SIZE * IN_FLIGHT_PER_CLIENT;
    if (numbers.inFlight >= most) return Promise.reject(unavailable());
    const started = performance.now();
    const leave = () => {
      numbers.inFlight -= 1;
      call.ms += performance.now() - started;
    };
    numbers.inFlight += 1;
    const answered = answer();
    answered.then(leave, leave);
    return answered;
  }

  /**
   * Runs one statement, and again where it is known not to have run, or may run twice. Throws
   * Problem 503 or 504 within DEADLINE from `since` on, and what PostgreSQL says of the statement.
   */
  async run(kind: Kind, call: Call, statement: Sql, since = performance.now(), raw = false) {
    const elapsed = () => performance.now() - since;
    for (let tries = this.config.POOL_SIZE + 2; ; tries -= 1) {
      const begun = elapsed();
      if (begun > DEADLINE) throw unavailable();
      const attempt: Attempt = { kind, call, statement, raw };
      try {
        return await this.execute(attempt, DEADLINE - begun);
      } catch (error) {
        const { client, query } = attempt.sent ?? {};
        const unread = client?.dismissed && !query?.options?.simple;
        const met = codeOf(error) === '23505' && tries <= this.config.POOL_SIZE; // not its own row
        const mayRun = !met && mayRepeat(unread ? 'read' : kind, query, error);
        const now = elapsed();
        const stray = codeOf(error) === '57014' && now - begun < STATEMENT_TIMEOUT; // a neighbour's
        const last = tries === 1 || (now > LOCK_TIMEOUT && !stray) || !mayRun;
        const told = error instanceof Problem || query?.state || codeOf(error) !== '57014';
        if (last) throw told ? error : unavailable(); // what release() took back was never sent
        call.repeated ||= LOST.test(codeOf(error));
      }
    }
  }

  /** Keeps a statement prepared unless its text is one too many: each stays in every connection. */
  private send(driver: postgres.Sql, { text, values }: Sql): Pending {
    const prepare = this.shapes.has(text) || this.shapes.size < MOST_SHAPES;
    let at = 0;
    const numbered = this.shapes.get(text) ?? text.replace(/\0/g, () => `$${++at}`);
    if (prepare) this.shapes.set(text, numbered);
    return driver.unsafe(numbered, values as never[], { prepare });
  }

  /**
   * Sends it by the first connection that has room, in the order of asking. Settles by the deadline;
   * a reader that goes away takes it along. A connection that hangs is given up: by then PostgreSQL
   * would have stopped the statement. Behind one that failed between its rows, postgres 3.4.9 counts
   * on from there, and its result begins with holes (its issue 1181).
   */
  private execute(attempt: Attempt, ms: number): Promise<Result[]> {
    const { kind, call, statement, raw } = attempt;
    const outgoing = kind === 'read' ? call.outgoing : undefined;
    return new Promise((resolve, reject) => {
      const end = () => {
        clearTimeout(timer);
        outgoing?.off('close', leave);
        this.queue.delete(begin);
        attempt.sent?.client.inFlight.delete(attempt.sent.query);
        this.advance();
      };
      const expire = () => {
        const { sent } = attempt;
        reject(sent?.query.state ? tooSlow() : unavailable());
        if (!sent) return end();
        const rest = sent.query.state ? sent.at + DEADLINE - performance.now() : 0;
        timer = setTimeout(sent.client.retire, rest);
      };
      const leave = () => {
        reject(gone());
        if (attempt.sent) this.drop(attempt.sent);
        else end();
      };
      const begin = (client?: Client) => {
        if (!client) return expire();
        const query = this.send(client.sql, statement);
        if (raw) query.raw();
        attempt.sent = { client, query, at: performance.now() };
        client.inFlight.add(query);
        const whole = (rows: Result[]) => resolve(rows.filter(Boolean));
        query.then(whole, reject).finally(end);
      };
      let timer = setTimeout(expire, ms);
      outgoing?.once('close', leave);
      this.queue.add(begin);
      this.advance();
    });
  }

  /**
   * Stops what nobody waits for; where it stands behind another on its connection, it is left to run.
   * By a connection that is there, for one that is made anew comes late and stops what came next.
   */
  private drop({ client, query }: Sent): void {
    const other = this.leastBusy(client);
    const pid = query.active && query.state?.pid;
    if (pid && other) other.sql`select pg_cancel_backend(${pid})`.catch(() => {});
    else if (pid || !query.state) Promise.resolve(query.cancel() as unknown).catch(() => {});
  }

  /** A connection of its own for what takes longer than a request may; at most STREAMS at once. */
  private async *borrow(call?: Call): AsyncGenerator<postgres.Sql> {
    if (this.numbers.streams >= STREAMS || this.state === 'down') throw unavailable();
    this.numbers.streams += 1;
    const sql = connect(this.config, 0);
    const leave = () => void sql.end({ timeout: 0 });
    call?.outgoing?.once('close', leave);
    try {
      yield sql;
    } finally {
      this.numbers.streams -= 1;
      call?.outgoing?.off('close', leave);
      leave();
    }
  }

  /**
   * Lines in batches at constant memory. By a callback: the iterator of postgres 3.4.9 ends as if all
   * had been read where the connection is lost between two batches.
   */
  async *stream(call: Call, statement: Sql): AsyncGenerator<Result[]> {
    for await (const driver of this.borrow(call)) {
      const batches = new PassThrough({ objectMode: true, highWaterMark: 1 });
      const take = async (batch: Result[]) => {
        if (!batches.write(batch)) await new Promise((ready) => batches.once('drain', ready));
      };
      const read = this.send(driver, statement).cursor(STREAM_ROWS, take);
      read.then(
        () => batches.end(),
        (error) => batches.destroy(error),
      );
      const each = batches[Symbol.asyncIterator]();
      for (;;) {
        const { done, value } = await within(DEADLINE, each.next());
        if (done) return;
        yield value;
      }
    }
  }

  /**
   * COPY … FROM STDIN, fed at the pace of the server; all of it or nothing is stored. postgres 3.4.9
   * tells an error to the query alone where it comes behind the last byte, fails the stream where it
   * comes before anybody has it, and writes until the stream is closed.
   * The caller may be slow; the server has DEADLINE for each piece, else this throws Problem 504.
   */
  async copy(statement: string, bytes: AsyncIterable<Buffer>): Promise<void> {
    for await (const driver of this.borrow()) {
      const query: Pending = driver.unsafe(statement);
      let closed: Promise<unknown> | undefined;
      const refused = new Promise<never>((_, reject) => {
        query.reject = reject;
      });
      const opened = new Promise<Writable>((resolve) => {
        query.resolve = (stream) => {
          closed ??= new Promise((close) => stream.on('error', () => {}).once('close', close));
          resolve(stream);
        };
      });
      let timer: NodeJS.Timeout | undefined;
      const expect = () => {
        timer = setTimeout(() => query.reject?.(tooSlow()), DEADLINE);
      };
      const pieces = async function* watched() {
        for await (const piece of bytes) {
          expect();
          yield piece;
          clearTimeout(timer); // it was taken: now the caller is waited for
        }
        expect();
      };
      expect();
      void query.writable();
      const writable = await Promise.race([opened, refused]).finally(() => clearTimeout(timer));
      await Promise.race([refused, finished(Readable.from(pieces()), writable)]).finally(() => {
        clearTimeout(timer);
        writable.destroy();
        return closed;
      });
    }
  }

  async end(): Promise<void> {
    this.ending = true;
    await Promise.all([...this.clients].map(({ sql }) => sql.end({ timeout: 1 })));
  }
}

/** When it closes, what was not sent is taken back: the driver would make another one for it. */
function openClient(config: Config): Client {
  let retire = () => {};
  const closed = new Promise<void>((resolve) => {
    retire = resolve;
  });
  const dismiss = () => {
    client.open = false;
    client.dismissed = true;
  };
  const release = () => {
    client.open = false;
    for (const query of client.inFlight) if (!query.state) query.cancel();
    retire();
  };
  const sql = connect(config, STATEMENT_TIMEOUT, release, dismiss);
  const inFlight = new Set<Pending>();
  const client: Client = { sql, open: false, dismissed: false, inFlight, closed, retire };
  return client;
}

/**
 * It was not sent, or the server undid it (also by a cancel that was meant for a neighbour), or it
 * was lost; a keyed insert that met its own key finds the row next time.
 */
function mayRepeat(kind: Kind, query: Pending | undefined, error: unknown): boolean {
  if (error instanceof Problem) return false;
  const code = codeOf(error);
  if (!query?.state || /^(57P0.|57014|40001|40P01)$/.test(code)) return true;
  return (kind !== 'write' && LOST.test(code)) || (kind === 'keyed' && code === '23505');
}

/** Types whose values postgres 3.4.9 would turn: 'true' into false, JSON into JSON of JSON, … */
const TURNED = [16, 17, 20, 21, 23, 26, 114, 700, 701, 1082, 1114, 1184, 3802];

/** Text goes in and comes out as it is: PostgreSQL judges it, not the driver. */
function connect(
  { DATABASE_URL, DB_PREPARE }: Config,
  timeout = STATEMENT_TIMEOUT,
  onclose = () => {},
  ondismissed = () => {},
): postgres.Sql {
  const limits = { lock_timeout: LOCK_TIMEOUT, statement_timeout: timeout };
  const pooled = DB_PREPARE === 'false'; // a pooler refuses the limits: the database has to set them
  const options = {
    ...{ max: 1, prepare: !pooled, fetch_types: false, max_lifetime: null, onclose },
    connect_timeout: CONNECT_TIMEOUT / 1000,
    connection: pooled ? {} : { ...limits, client_connection_check_interval: 1000 },
    types: { text: { to: 25, from: TURNED, serialize: String, parse: (value: string) => value } },
    onnotice: () => {},
    socket: dialler(ondismissed),
  };
  return postgres(DATABASE_URL ?? '', options) as unknown as postgres.Sql;
}

const DISMISSED = /\0VFATAL\0C57P01\0/;

/**
 * Makes the sockets of postgres 3.4.9, which keeps to itself what the server said before it closed.
 * Tells of a FATAL 57P01 where no BindComplete, which comes before any execution, stands behind the
 * last ReadyForQuery. (Under TLS the driver takes this listener off: there a lost write is in doubt.)
 */
function dialler(ondismissed: () => void) {
  let tries = 0;
  return ({ host, port, path }: { host: string[]; port: number[]; path?: string }) => {
    const [name = '', number = 0] = [host[tries % host.length], port[tries % port.length]];
    const socket = path ? dial(path) : dial(number, name);
    let [at, begun, head] = [0, true, Buffer.of()];
    socket.on('data', (data: Buffer) => {
      const bytes = head.length > 0 ? Buffer.concat([head, data]) : data;
      while (at + 5 <= bytes.length) {
        const type = String.fromCharCode(bytes[at] ?? 0);
        const end = at + 1 + bytes.readUInt32BE(at + 1);
        if (type === 'Z') begun = false;
        else if (!'1tTnESN'.includes(type)) begun = true;
        else if (type === 'E' && !begun && DISMISSED.test(bytes.toString('latin1', at, end)))
          ondismissed();
        at = end;
      }
      head = Buffer.from(bytes.subarray(at));
      at = Math.max(at - bytes.length, 0);
    });
    tries += 1;
    return Object.assign(socket, { host: name, port: number });
  };
}

/** The promise, or Problem 503 when it takes longer. */
async function within<T>(ms: number, promise: PromiseLike<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(unavailable()), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/**
 * Creates the table or its missing columns, under an advisory lock; issues no DDL where all is
 * there. Throws StartError that names what differs, Problem while the database is away.
 */
export async function ensureTable(resource: Resource, database: Database): Promise<void> {
  const call: Call = { sub: '', ms: 0, repeated: false };
  for (const repaired of [false, true]) {
    const found = await database.run('read', call, describeTable(resource.table));
    const faults = compareTable(resource, found);
    const names = `table ${resource.table}: ${faults.map(({ fault }) => fault).join('; ')}`;
    const repairs = faults.flatMap(({ repair }) => repair ?? []);
    if (faults.length === 0) return;
    if (repaired || repairs.length < faults.length) throw new StartError(names);
    const lock = `select pg_advisory_xact_lock(hashtext(${literal(resource.table)}))`;
    const batch = [lock, ...repairs].join('; '); // one simple query is one transaction
    await database.run('write', call, new Sql(batch)).catch((error) => {
      throw codeOf(error) === '42501' ? new StartError(`${names}; the role may not add it`) : error;
    });
  }
}

function describeTable(table: string): Sql {
  return sql`
    select attname as name, format_type(atttypid, atttypmod) as type, exists (
      select from pg_index where indrelid = attrelid and indisunique and indkey::text = attnum::text
    ) as unique, attnotnull and not atthasdef and attidentity = '' as required
    from pg_attribute
    where attrelid = to_regclass(${quoted(table)}) and attnum > 0 and not attisdropped`;
}

/** Each difference in words, with the DDL that mends it where there is one. */
function compareTable({ table, key, names, columns }: Resource, found: Result[]) {
  const faults: { fault: string; repair?: string }[] = [];
  const there = new Map(found.map((column) => [column.name, column]));
  const definitions = Object.entries(columns).map(([name, column]) => define(name, column));
  const all = [`${quoted(key)} uuid primary key`, ...definitions].join(', ');
  const create = `create table if not exists ${quoted(table)} (${all})`;
  if (found.length === 0) return [{ fault: 'is missing', repair: create }];
  if (there.get(key)?.unique !== 't') faults.push({ fault: `${key} has no unique index` });
  for (const name of names) {
    const [column, is] = [columns[name], there.get(name)?.type];
    const type = column?.type ?? 'uuid';
    const optional = column?.nullable || column?.generated || column?.default !== undefined;
    const unique = !column?.unique || there.get(name)?.unique === 't';
    const add = `alter table ${quoted(table)} add column if not exists `;
    if (is && is !== type) faults.push({ fault: `${name} is ${is}, declared ${type}` });
    else if (is && !unique) faults.push({ fault: `${name} has no unique index` });
    else if (!is && !(column && optional)) faults.push({ fault: `${name} is missing` });
    else if (!is && column)
      faults.push({ fault: `${name} is missing`, repair: add + define(name, column) });
    there.delete(name);
  }
  for (const { name, required } of there.values()) {
    if (required === 't') faults.push({ fault: `${name} must be filled and is not declared` });
  }
  return faults;
}

function define(name: string, column: Column): string {
  const { type, nullable, check, unique, generated, default: initial = generated } = column;
  const value = typeof initial === 'function' ? initial() : literal(initial);
  const preset = initial === undefined ? '' : ` default ${value}`;
  const rest = `${nullable ? '' : ' not null'}${preset}${unique ? ' unique' : ''}`;
  return `${quoted(name)} ${type}${rest} check (${check(quoted(name))})`;
}

// --- Query ----------------------------------------------------------------------

/** A test of a column, or a tree of tests. PostgreSQL reads `value` as the column's type. */
export type Filter =
  | { column: string; operator: string; modifier: string | undefined; value: string }
  | { tree: 'and' | 'or'; branches: Filter[] }
  | { not: Filter };

export type Order = { column: string; descending: boolean; nullsFirst: boolean };

/** A member of the answer: `column`, or all of the row for count(); `cast` is applied last. */
export type Member = { name: string; column?: string | undefined } & {
  [optional in 'inner' | 'aggregate' | 'cast']?: string | undefined;
};

/** A list as it was asked for. `after`: the values of the row before it, in the terms of `order`. */
export type Query = {
  select?: Member[] | undefined;
  filters: Filter[];
  order: Order[];
  limit?: number;
  offset: number;
  after?: (string | null)[];
  columns?: string[];
  on_conflict?: string[];
};

/** PostgREST's operators (its manual, «Operators») in SQL, one line a class. */
const OPERATORS = new Map([
  ...Object.entries({ eq: '=', neq: '<>', gt: '>', gte: '>=', lt: '<', lte: '<=' }),
  ...Object.entries({ isdistinct: 'is distinct from' }),
  ...Object.entries({ like: 'like', ilike: 'ilike', match: '~', imatch: '~*' }),
  ...Object.entries({ in: '= any', is: 'is' }),
  ...Object.entries({ fts: 'to_tsquery', plfts: 'plainto_tsquery' }),
  ...Object.entries({ phfts: 'phraseto_tsquery', wfts: 'websearch_to_tsquery' }),
]);
const SEARCHING = /fts$/;
const TEXTUAL = /fts$|like$|match$/; // for text columns
const OPERATOR = [...OPERATORS.keys()].join('|');
const MODIFIER = String.raw`(?<=fts\()\w+|(?<=(?:eq|[gl]te?|like|match)\()(?:any|all)`;
const BRACES = /^\{.*\}$/s;
const IS = /^(null|not_null|true|false|unknown)$/i;
const CASTS =
  /^(text|varchar|bool(ean)?|int(eger|2|4|8)?|(small|big)int|numeric|decimal|real|float[48]?|double precision|uuid|jsonb?|date|timestamp(tz)?)$/;
const DEEPEST = 10;
const MOST_MEMBERS = 50; // json_build_object() takes 100 arguments
const MOST_ROWS = 2 ** 31;
const LINE = ', \n ';
const GROUPS = { most: 128, width: 2 };
const UNDONE = /^(2[^58]|4|55)/; // SQLSTATE of what a row of its own may be the reason for

const NAME = String.raw`("(?:[^"\\]|\\.)*"|(?:(?!->)[^\s".,:()*])+)`;
const AGGREGATE = String.raw`(?:\.(count|sum|avg|min|max)\(\))?`;
const CAST = String.raw`(?:::([\w ]+))?`;
const PATTERNS = {
  name: new RegExp(NAME, 'ys'),
  member: new RegExp(`(?:${NAME}:(?!:))?(?:(count)\\(\\)|${NAME}${CAST}${AGGREGATE})${CAST}`, 'ys'),
  order: new RegExp(`${NAME}(?:\\.(asc|desc))?(?:\\.nulls(first|last))?`, 'ys'),
  branch: new RegExp(` *(?:((?:not\\.)?(?:and|or))(?= *\\()|${NAME})`, 'ys'),
  condition: new RegExp(`(not\\.)?(${OPERATOR})(?:\\((${MODIFIER})\\))?\\.`, 'y'),
  item: /"(?:[^"\\]|\\.)*"(?=[,)])|\{[^{}]*\}(?=[,)])|[^,)]*/sy,
  listed: /"(?:[^"\\]|\\.)*"(?=[,)])|[^,)]*/sy,
};

const ONE_TABLE = 'This service has one table and embeds nothing.';
/** What the grammar refuses, with PostgREST's codes; `$` is what was found, then comes a hint. */
const REFUSALS = {
  column: [400, '42703', 'column $ does not exist'],
  field: [422, 'PGRST204', 'column $ does not exist'],
  path: [400, '42883', 'operator does not exist: -> in a list of $', 'Name a column alone.'],
  embedding: [400, 'PGRST108', "'$' is not an embedded resource in this request", ONE_TABLE],
  relation: [400, 'PGRST200', 'Could not find a relationship between $', ONE_TABLE],
  operator: [400, '42883', 'operator does not exist: $', 'It is for text.'],
  syntax: [400, 'PGRST100', 'The parameter $ could not be read.'],
  place: [400, 'PGRST100', 'The parameter $ has no meaning here.'],
  cursor: [400, 'PGRST100', 'The parameter $ is no cursor of this list.'],
  header: [400, 'PGRST204', 'The header of the CSV $.'],
} as const;
type Refusal = keyof typeof REFUSALS;

function decline(kind: Refusal, found: string, hint?: string, extras?: Extras): never {
  const [status, code, detail, usual] = REFUSALS[kind];
  const told = detail.replace('$', () => found);
  throw new Problem(status, code, told, hint ?? usual, extras);
}

/** Where the reading of one parameter stands. */
type Reader = { resource: Resource; parameter: string; text: string; at: number };

/** PGRST100, PostgREST's error for what its grammar does not know. */
function expected({ parameter, text, at, resource }: Reader, what: string): never {
  if (text.startsWith('->', at)) decline('path', resource.table);
  const found = at < text.length ? JSON.stringify(text.slice(at, at + 12)) : 'end';
  const details = `unexpected ${found} at position ${at + 1} of ${text.slice(0, 200)}`;
  decline('syntax', parameter, `expected ${what}`, { details });
}

/** Moves over what the sticky pattern matches here, where it does. */
function skip(reader: Reader, pattern: RegExp): RegExpExecArray | null {
  pattern.lastIndex = reader.at;
  const found = pattern.exec(reader.text);
  reader.at += found?.[0].length ?? 0;
  return found;
}

function take(reader: Reader, pattern: RegExp, what: string): RegExpExecArray {
  return skip(reader, pattern) ?? expected(reader, what);
}

/** Items between commas, until something else follows. */
function takeList<T>(reader: Reader, item: (reader: Reader) => T): T[] {
  const items = [item(reader)];
  while (skip(reader, / *,/y)) items.push(item(reader));
  return items;
}

/** The parameters that are no filters; each may stand once. */
const SINGLE = new Map<string, (reader: Reader) => Partial<Query>>([
  ['select', (reader) => (reader.text === '' ? {} : { select: readSelect(reader) })],
  ['order', (reader) => ({ order: takeList(reader, readOrder) })],
  ['limit', (reader) => ({ limit: readWhole(reader) })],
  ['offset', (reader) => ({ offset: readWhole(reader) })],
  ['after', (reader) => ({ after: readCursor(reader) })],
  ['columns', (reader) => ({ columns: takeList(reader, () => readColumn(reader, 'field')) })],
  ['on_conflict', (reader) => ({ on_conflict: takeList(reader, () => readColumn(reader)) })],
]);

/** Parses parameters, of those allowed. Throws Problem 400 that tells what was expected where. */
export function parseQuery(
  resource: Resource,
  parameters: Iterable<[string, string]>,
  allowed = ['filter', 'select', 'order', 'limit', 'offset', 'after'],
): Query {
  const query: Query = { filters: [], order: [], offset: 0 };
  const seen = new Set<string>();
  for (const [key, text] of parameters) {
    const parameter = key.replace(/\[\d{1,4}\]$/, '');
    const reader = { resource, parameter, text, at: 0 };
    const read = SINGLE.get(parameter);
    if (text.includes('\0')) expected({ ...reader, at: text.indexOf('\0') }, 'no NUL');
    if (read && seen.has(parameter)) expected(reader, `${parameter} once`);
    if (read) Object.assign(query, read(reader));
    else query.filters.push(readFilter(reader));
    take(reader, /$/y, 'nothing more');
    const hint = `Here can stand: ${allowed.join(', ') || 'none'}.`;
    if (!allowed.includes(read ? parameter : 'filter')) decline('place', parameter, hint);
    seen.add(parameter);
  }
  return completeOrder(resource, query);
}

function columnNamed({ table, names }: Resource, text: string, kind: Refusal = 'column') {
  const name = unquoted(text);
  if (names.includes(name)) return name;
  if (text.includes('->')) decline('path', table);
  const [embedded = '', more] = text.split(/[.(]/);
  if (more !== undefined) decline('embedding', embedded);
  return decline(kind, `${table}.${name}`, `The columns are ${names.join(', ')}.`);
}

function unquoted(text: string): string {
  const inQuotes = /^"((?:[^"\\]|\\.)*)"$/s.exec(text)?.[1];
  return inQuotes?.replace(/\\(.)/gs, '$1') ?? text;
}

function readColumn(reader: Reader, kind?: Refusal): string {
  return columnNamed(reader.resource, take(reader, PATTERNS.name, 'a column')[0], kind);
}

function readWhole(reader: Reader): number {
  return Number(take(reader, /\d{1,9}(?!\d)/y, 'a whole number of up to 9 digits')[0]);
}

/** A cursor is the JSON of its values in base64url. */
function readCursor(reader: Reader): (string | null)[] {
  const [text] = take(reader, /[\w-]+/y, 'a cursor');
  const values = toJson(Buffer.from(text, 'base64url'));
  const isText = (one: unknown) => one === null || typeof one === 'string';
  return Array.isArray(values) && values.every(isText) ? values : [];
}

function toJson(text: unknown): unknown {
  try {
    return JSON.parse(String(text));
  } catch {
    return undefined;
  }
}

function readOrder(reader: Reader): Order {
  const what = 'a column, .asc or .desc, .nullsfirst or .nullslast';
  const [, name = '', direction, nulls] = take(reader, PATTERNS.order, what);
  if (skip(reader, /\(/y)) decline('embedding', name);
  if (skip(reader, /(?=\.)/y)) expected(reader, what);
  const descending = direction === 'desc';
  const nullsFirst = nulls ? nulls === 'first' : descending;
  return { column: columnNamed(reader.resource, name), descending, nullsFirst };
}

function readSelect(reader: Reader): Member[] {
  const all = reader.resource.names.map((name) => ({ name, column: name }));
  const members = takeList(reader, () => (skip(reader, /\*/y) ? all : [readMember(reader)])).flat();
  if (members.length > MOST_MEMBERS) expected(reader, `at most ${MOST_MEMBERS} columns`);
  return members;
}

/** `alias:column::cast.aggregate()::cast`, of which all but the column or `count()` may lack. */
function readMember(reader: Reader): Member {
  const spread = skip(reader, /\.\.\./y);
  const found = take(reader, PATTERNS.member, 'a column, alias:column, column::type or count()');
  const [, alias, count, name = '', inner, of, cast] = found;
  const relation = `'${reader.resource.table}' and '${name.replace(/!.*/, '')}'`;
  if (spread || skip(reader, /\(/y)) decline('relation', relation);
  for (const type of [inner, cast]) {
    if (type && !CASTS.test(type)) expected(reader, `a type of ${CASTS.source}`);
  }
  const column = count ? undefined : columnNamed(reader.resource, name);
  const aggregate = count ?? of;
  return { name: unquoted(alias ?? aggregate ?? name), column, inner, aggregate, cast };
}

/** `column=op.value`, or a tree under `and`, `or`, `not.and`, `not.or`. */
function readFilter(reader: Reader): Filter {
  const { parameter, resource } = reader;
  if (/^(not\.)?(and|or)$/.test(parameter)) return readTree(reader, parameter, 1);
  return readCondition(reader, columnNamed(resource, parameter), false);
}

/** What follows `and`, `or`, `not.and` or `not.or`: `(…,…)`. */
function readTree(reader: Reader, head: string, depth: number): Filter {
  take(reader, / *\(/y, '"("');
  if (depth > DEEPEST) expected(reader, `at most ${DEEPEST} levels`);
  const branches = takeList(reader, () => readBranch(reader, depth));
  take(reader, / *\)/y, '"," or ")"');
  const filter = { tree: head.endsWith('and') ? 'and' : 'or', branches } as const;
  return head.startsWith('not') ? { not: filter } : filter;
}

function readBranch(reader: Reader, depth: number): Filter {
  const [, head, name = ''] = take(reader, PATTERNS.branch, 'and(, or(, or a column and "."');
  if (head) return readTree(reader, head, depth + 1);
  take(reader, /\./y, '"." and an operator');
  return readCondition(reader, columnNamed(reader.resource, name), true);
}

/** What follows a column: `op.value`, `not.op.value`, `op(any).{a,b}`, `fts(config).value`. */
function readCondition(reader: Reader, column: string, inTree: boolean): Filter {
  const what = `[not.]operator. with one of ${[...OPERATORS.keys()].join(', ')}`;
  const [, not, operator = '', modifier] = take(reader, PATTERNS.condition, what);
  const type = reader.resource.columns[column]?.type ?? 'uuid';
  if (!isFor(type, operator)) decline('operator', `${type} ${operator}`);
  const shape = modifier && !SEARCHING.test(operator) ? BRACES : operator === 'is' ? IS : /^/;
  const start = { ...reader };
  const value = operator === 'in' ? readListed(reader) : readValue(reader, inTree);
  if (!shape.test(value)) expected(start, shape.source);
  const wanted = /like$/.test(operator) ? value.replaceAll('*', '%') : value;
  const filter = { column, operator, modifier, value: wanted };
  return not ? { not: filter } : filter;
}

function isFor(type: string, operator: string): boolean {
  return !TEXTUAL.test(operator) || /^(text|character)/.test(type);
}

/** Alone, a value is the rest of the parameter; in a tree it ends at "," or ")", unless quoted. */
function readValue(reader: Reader, inTree: boolean): string {
  if (!inTree) return take(reader, /.*/sy, 'a value')[0];
  return unquoted(take(reader, PATTERNS.item, 'a value')[0]);
}

/** `(a,"b")` as an array literal of PostgreSQL. */
function readListed(reader: Reader): string {
  take(reader, /\(/y, '"("');
  const item = () => unquoted(take(reader, PATTERNS.listed, 'a value')[0]);
  const items = skip(reader, /(?=\))/y) ? [] : takeList(reader, item);
  take(reader, /\)/y, '"," or ")"');
  return toArray(items);
}

/** Makes the order total: by the key at last, in groups by what they are grouped by. */
function completeOrder({ key }: Resource, query: Query): Query {
  const { order, after } = query;
  for (const column of isGrouped(query) ? groupedBy(query) : [key]) {
    if (order.some((by) => by.column === column)) continue;
    order.push({ column, descending: false, nullsFirst: false });
  }
  const fits = !isGrouped(query) && after?.length === order.length && toUuid(after.at(-1) ?? '');
  if (!after || fits) return query;
  return decline('cursor', 'after', 'Follow the link rel="next" of the page before, in its order.');
}

function isGrouped({ select = [] }: { select?: Member[] | undefined }): boolean {
  return select.some(({ aggregate }) => aggregate);
}

function groupedBy({ select = [] }: Query): string[] {
  return select.flatMap(({ aggregate, column }) => (aggregate || !column ? [] : column));
}

/** A row as JSON text, with its version in the database (xmin) for the ETag. */
export type Stored = { body: string; version: string };

/**
 * What a write did. `created`: some of its rows are new. Of a create, `taken`: a key was there;
 * `same`: all that was there is as it was wanted. `found`: the row of the key is there.
 */
export type Written = Stored &
  Record<'created' | 'taken' | 'same' | 'found', boolean> & { rows: number };

/** What a write has to keep to, or nothing is changed: at most `most` rows, exactly one, `select`. */
export type Terms = { select?: Member[] | undefined; single?: boolean; most?: number | undefined };

/** What of a list is wanted at once: rows at most, their bodies (not for HEAD), how many in all. */
export type Wanted = { limit: number; body: boolean; count: boolean };

/** One page of a list: how many rows, their JSON array, the cursor behind them. */
export type Page = { rows: number; body: Buffer; more: boolean; next: string; total?: number };

/** The versions of If-Match; `*` and undefined allow any. */
type Versions = string[] | '*' | undefined;

/** A request for one row, and one for a page; others of their kind may go along. */
type Ask = { uuid: string; call: Call; row?: Row };
/** A value as the bytes that PostgreSQL sent. */
type Raw = Buffer | null | undefined;
type PageAsk = { query: Query; wanted: Wanted; statement: Sql; call: Call };

/** The statements of the service, one a request or a group of requests. */
export class Store {
  private resource: Resource;
  private database: Database;
  private table: Sql;
  private key: Sql;
  private row: Sql;
  private all: Sql;
  private settable: Sql;
  private values: Sql;
  private none: Sql; // a row of the table's type; null::name could be a type of that name
  private identity: Sql;
  private reads = this.together('read', (asks: Ask[], since) => this.readAll(asks, since));
  private creates = this.together('create', (asks: Ask[], since) => this.createAll(asks, since));
  private replaces = this.together('replace', (asks: Ask[], since) => this.replaceAll(asks, since));
  private removes = this.together('delete', (asks: Ask[], since) => this.removeAll(asks, since));
  private pages = share(
    this.grouping('list', (asks: PageAsk[], since) => this.readPages(asks, since)),
  );

  constructor(resource: Resource, database: Database) {
    this.resource = resource;
    this.database = database;
    this.table = name(resource.table);
    this.key = name(resource.key);
    this.row = sql`(select row_to_json(r) from (select ${names(resource.names, 't.')}) r)::text`;
    this.all = names(resource.names);
    this.settable = names(resource.settable);
    const made = (one: string) => resource.columns[one]?.generated?.() ?? given(resource, one);
    this.values = new Sql(resource.names.map(made).join(', '));
    this.none = sql`(select t from ${this.table} t where false)`;
    const { owner } = resource;
    this.identity = owner
      ? sql`t.${this.key} || ' ' || t.${name(owner)}`
      : sql`t.${this.key}::text`;
  }

  ping(call: Call): Promise<unknown> {
    return this.database.run('read', call, sql`select 1`);
  }

  read(uuid: string, call: Call): Promise<Stored | undefined> {
    return this.database.admit(call, () => this.reads({ uuid, call }));
  }

  /** Inserts the row; where its key is taken, nothing. */
  create(row: Row, call: Call): Promise<Written> {
    const ask = this.ask(row, call);
    return this.database.admit(call, async () => {
      for (let tries = 2; ; tries -= 1) {
        const made = await this.creates(ask); // no row: its key came in between
        if (made.rows > 0 || tries === 0) return made;
      }
    });
  }

  /** Inserts the row, or puts it in the place of the one with its key. */
  replace(row: Row, call: Call): Promise<Written> {
    return this.database.admit(call, () => this.replaces(this.ask(row, call)));
  }

  /** Inserts all rows, or none where a key is taken; the flag tells whether by what was wanted. */
  createMany(rows: Row[], terms: Terms, call: Call): Promise<Written> {
    return this.write('keyed', this.creation(this.owned(rows, call), true), terms, call);
  }

  /** Inserts rows; where the key is taken, `set` columns replace what is there, or nothing does. */
  upsert(rows: Row[], set: string[], terms: Terms, call: Call): Promise<Written> {
    return this.write('write', this.replacement(this.owned(rows, call), set), terms, call);
  }

  /** Sets what the part has and leaves the rest, all within the statement (RFC 7396). */
  merge(uuid: string, part: Row, versions: Versions, call: Call): Promise<Written> {
    const action = sql`update ${this.table} t set ${this.setFrom(sql`${JSON.stringify(part)}`)}`;
    return this.change(action, this.only(uuid, versions), {}, call, uuid);
  }

  /** The same part for all rows that pass, or each of the given rows for its own. */
  mergeMany(part: Row | Row[], filters: Filter[], terms: Terms, call: Call): Promise<Written> {
    const json = sql`${JSON.stringify(part)}`;
    const tests = filters.map(test);
    if (!Array.isArray(part)) {
      return this.change(sql`update ${this.table} t set ${this.setFrom(json)}`, tests, terms, call);
    }
    const from = sql`${this.setFrom(sql`i.value`)} from json_array_elements(${json}) i`;
    const own = sql`t.${this.key} = (i.value->>${this.resource.key})::uuid`;
    return this.change(sql`update ${this.table} t set ${from}`, [own, ...tests], terms, call);
  }

  remove(uuid: string, versions: Versions, call: Call): Promise<Written> {
    if (!Array.isArray(versions))
      return this.database.admit(call, () => this.removes({ uuid, call }));
    return this.change(sql`delete from ${this.table} t`, this.only(uuid, versions), {}, call, uuid);
  }

  removeMany(filters: Filter[], terms: Terms, call: Call): Promise<Written> {
    return this.change(sql`delete from ${this.table} t`, filters.map(test), terms, call);
  }

  /** One page. Equal ones that are asked for at the same time are one statement. */
  page(query: Query, wanted: Wanted, call: Call): Promise<Page> {
    const statement = this.paging(query, wanted, call);
    const key = JSON.stringify(statement);
    return this.database.admit(call, () => this.pages(key, { query, wanted, statement, call }));
  }

  /** All rows of a list, in batches: as JSON texts, or as CSV lines. */
  async *stream(query: Query, csv: boolean, call: Call): AsyncGenerator<string[]> {
    const { select = this.resource.names.map((name): Member => ({ name, column: name })) } = query;
    const values = select.map((one, at) => sql`${shownOf(query, one, at)} as ${name(`c${at}`)}`);
    const wanted = csv ? joined(values) : sql`${this.member(query)} as body`;
    const rows = this.source(query, query.limit ?? null, query.offset, call);
    const lineOf = (one: Result) => (csv ? csvLine(Object.values(one)) : (one.body ?? ''));
    let header = csv ? [csvLine(select.map((one) => one.name))] : [];
    for await (const batch of this.database.stream(call, sql`select ${wanted} from ${rows} t`)) {
      yield [...header, ...batch.map(lineOf)];
      header = [];
    }
    if (header.length > 0) yield header; // not before the statement has begun: it may yet fail
  }

  /**
   * COPYs CSV in. What COPY does not check is checked in its WHERE, where a cast that fails names
   * the column. Throws 400 or 409 with line and column.
   */
  async copy(csv: CsvReader): Promise<void> {
    const tests = Object.entries(this.resource.columns).map(([column, { nullable, check }]) => {
      const fails = `(${check(quoted(column))}) is ${nullable ? 'false' : 'not true'}`;
      const message = `${literal(`!${column}`)} || coalesce(left(${quoted(column)}::text, 0), '')`;
      return `when ${fails} then (${message})::int is null`; // not constant, or it failed at once
    });
    const into = `copy ${this.table.text} (${csv.columns.map(quoted).join(', ')})`;
    const statement = `${into} from stdin (format csv) where case ${tests.join(' ')} else true end`;
    await this.database.copy(statement, csv.lines).catch((error) => {
      throw badLine(this.resource, error);
    });
  }

  private ask(row: Row, call: Call): Ask {
    return { uuid: String(row[this.resource.key]), row: this.owned([row], call)[0] ?? row, call };
  }

  /** The rows as their caller's; a body does not tell whose they are. */
  private owned(rows: Row[], { sub }: Call): Row[] {
    const { owner } = this.resource;
    return owner ? rows.map((row) => ({ ...row, [owner]: sub })) : rows;
  }

  /** The test that a row is the caller's. */
  private own({ sub }: Call): Sql[] {
    const { owner } = this.resource;
    return owner ? [sql`t.${name(owner)} = ${sub}`] : [];
  }

  /** The test that a row is one that was asked for, by its owner; planned once for any number. */
  private oneOf(asks: Ask[]): Sql {
    const uuids = toArray(asks.map(({ uuid }) => uuid));
    const keyed = sql`t.${this.key} = any((select ${uuids}::uuid[])::uuid[])`;
    const ids = toArray(asks.map((ask) => this.idOf(ask)));
    return this.resource.owner ? sql`${keyed} and ${this.identity} = any(${ids})` : keyed;
  }

  private idOf({ uuid, call }: Ask): string {
    return this.resource.owner ? `${uuid} ${call.sub}` : uuid;
  }

  private together<O>(work: string, run: Grouping<Ask, O>['run']) {
    const keyOf = work === 'read' ? () => undefined : ({ uuid }: Ask) => uuid;
    return group({ ...this.grouping(work, run), keyOf });
  }

  private grouping<I extends { call: Call }, O>(work: string, run: Grouping<I, O>['run']) {
    return {
      ...GROUPS,
      refuse: ({ call }: I) => call.outgoing?.destroyed && gone(),
      isApart: (error: unknown) => UNDONE.test(codeOf(error)),
      observe: (requests: number) => this.database.observe(work, requests),
      run,
    };
  }

  private async readAll(asks: Ask[], since: number): Promise<(Stored | undefined)[]> {
    const { table, identity, row } = this;
    const statement = sql`
      select ${identity} as id, t.xmin::text as version, ${row} as body
      from ${table} t where ${this.oneOf(asks)}`;
    const found = await this.database.run('read', callOf(asks), statement, since);
    const rows = new Map(found.map((one) => [one.id, one as Stored]));
    return asks.map((ask) => rows.get(this.idOf(ask)));
  }

  private createAll(asks: Ask[], since: number): Promise<Written[]> {
    return this.writeAll('keyed', asks, this.creation(rowsOf(asks), false), since);
  }

  private replaceAll(asks: Ask[], since: number): Promise<Written[]> {
    const ctes = this.replacement(rowsOf(asks), this.resource.names);
    return this.writeAll('write', asks, ctes, since);
  }

  private removeAll(asks: Ask[], since: number): Promise<Written[]> {
    const removed = sql`delete from ${this.table} t where ${this.oneOf(asks)}`;
    const ctes = sql`changed as (${removed} ${RETURNING}, null::boolean as flag)`;
    return this.writeAll('write', asks, ctes, since);
  }

  /** Runs the CTEs for a group; of each ask what became of its row. */
  private async writeAll(kind: Kind, asks: Ask[], ctes: Sql, since: number): Promise<Written[]> {
    const call = callOf(asks);
    const statement = sql`
      with ${ctes} select ${this.identity} as id, "#" as version, ${this.row} as body, flag
      from changed t`;
    const results = await this.database.run(kind, call, statement, since);
    for (const ask of asks) ask.call.repeated ||= call.repeated;
    const rows = new Map(results.map((one) => [one.id, one]));
    return asks.map((ask) => writtenOf(rows.get(this.idOf(ask))));
  }

  /** `changed` are the rows made, and those that were there, with a flag: as they were wanted. */
  private creation(rows: Row[], together: boolean): Sql {
    const { table, key, all } = this;
    const free = sql`where not exists (select from there)`;
    const { settable, owner } = this.resource;
    const keyed = sql`t.${key} = i.${key}`;
    const mine = owner ? sql`${keyed} and t.${name(owner)} = i.${name(owner)}` : keyed;
    const there = (one: string) => given(this.resource, one, `t.${quoted(one)}`);
    const wanted = new Sql(settable.map(there).join(', '));
    return sql`
      input as (select * from json_populate_recordset(${this.none}, ${JSON.stringify(rows)})),
      there as (
        select t.*, row(${names(settable, 't.')}) is not distinct from row(${wanted}) as flag
        from input i cross join lateral ( -- by the index, whatever the planner thinks of it
          select t.*, t.xmin::text as "#" from ${table} t where ${mine} limit 1
        ) t
      ),
      made as (
        insert into ${table} as t (${all}) select ${this.values} from input i
        ${together ? free : sql`on conflict (${key}) do nothing`} ${RETURNING}, null::boolean as flag
      ),
      changed as (select * from made union all select * from there)`;
  }

  /** `changed` are the rows written, with a flag: they are new. */
  private replacement(rows: Row[], to: string[]): Sql {
    const { table, key, all, resource } = this;
    const set = to.filter((one) => one === resource.key || resource.settable.includes(one));
    const owner = name(resource.owner ?? resource.key); // nobody takes the row of another
    const update = sql`update set (${names(set)}) = row(${names(set, 'excluded.')})
      where t.${owner} = excluded.${owner}`;
    return sql`changed as (
      insert into ${table} as t (${all})
      select ${this.values} from json_populate_recordset(${this.none}, ${JSON.stringify(rows)}) i
      on conflict (${key}) do ${set.length > 0 ? update : sql`nothing`} ${RETURNING}, t.xmax = 0 as flag
    )`;
  }

  private setFrom(json: Sql): Sql {
    return sql`(${this.settable}) = (select ${this.settable} from json_populate_record(t, ${json}))`;
  }

  private only(uuid: string, versions: Versions): Sql[] {
    const known = Array.isArray(versions) ? [sql`t.xmin::text = any(${`{${versions}}`})`] : [];
    return [sql`t.${this.key} = ${uuid}`, ...known];
  }

  private change(action: Sql, tests: Sql[], terms: Terms, call: Call, uuid?: string) {
    const mine = where([...tests, ...this.own(call)]);
    const changed = sql`${action} ${mine} ${RETURNING}, null::boolean as flag`;
    return this.write('write', sql`changed as (${changed})`, terms, call, uuid);
  }

  /** Runs the CTEs, of which `changed` are the rows written; a failing term makes all of it fail. */
  private async write(
    kind: Kind,
    ctes: Sql,
    terms: Terms,
    call: Call,
    uuid?: string,
  ): Promise<Written> {
    const { single = false, most = MOST_ROWS } = terms;
    const broken = sql`count(*) > ${most} or (${single} and count(*) <> 1)`;
    const same = where([sql`t.${this.key} = ${uuid ?? null}`, ...this.own(call)]);
    const found = sql`(select count(*) from ${this.table} t ${same})`;
    const statement = sql`
      with ${ctes}
      select count(*) as rows, string_agg(${this.member(terms)}, ',') as body, min("#") as version,
        bool_and(flag) as every, bool_or(flag) as flag, ${uuid ? found : sql`null`} as found,
        case when ${broken} then ('!' || count(*))::int end as term
      from changed t`;
    const answer = this.database.admit(call, () => this.database.run(kind, call, statement));
    const [result] = await answer.catch((error) => {
      const rows = Number(/"!(\d+)"/.exec(error.message)?.[1]);
      if (codeOf(error) !== '22P02' || Number.isNaN(rows)) throw error;
      throw single && rows !== 1 ? notOne(rows) : tooMany(rows);
    });
    return writtenOf(result);
  }

  /** Equal asks, one page; its rows are passed on as the bytes that PostgreSQL sent. */
  private async readPages(asks: PageAsk[], since: number): Promise<Page[]> {
    const [{ query, wanted, statement }] = asks as [PageAsk];
    const results = await this.database.run('read', callOf(asks), statement, since, true);
    const [count, total, next, bytes] = Object.values(results[0] ?? {}) as unknown as Raw[];
    const found = Number(count);
    const beyond = found > wanted.limit;
    const more = beyond && wanted.limit > 0;
    const body = beyond ? withoutLast(bytes) : bytes;
    const page = {
      rows: beyond ? wanted.limit : found,
      body: body ?? Buffer.from('[]'),
      ...{ more, next: more ? cursorOf(query, body, next) : '' },
      ...(wanted.count && { total: Number(total) }),
    };
    return asks.map(() => page);
  }

  /** One row more than wanted tells that there are more. */
  private paging(query: Query, { limit, body, count }: Wanted, call: Call): Sql {
    const { after, ...whole } = query;
    const seen = isGrouped(query) || (body && !query.select); // else the cursor is in no row
    const values = query.order.map(({ column }) => sql`t.${name(column)}::text`);
    const next = seen ? sql`null` : sql`(array_agg(json_build_array(${joined(values)})))[${limit}]`;
    return sql`
      select count(*),
        ${count ? sql`(select count(*) from ${this.source(whole, null, 0, call)} t)` : sql`null`},
        ${next}, ${body ? this.array(query) : sql`null`}
      from ${this.source(query, limit + 1, query.offset, call)} t`;
  }

  /**
   * The rows of a list as a table; groups have the columns c0, c1, … in the order of `select`. A
   * limit is no value: PostgreSQL would take it for a tenth of the table, and plan each time anew.
   */
  private source(query: Query, limit: number | null, offset: number, call: Call): Sql {
    const { select = [], filters, order, after } = query;
    const groups = isGrouped(query) ? groupedBy(query).map((column) => sql`t.${name(column)}`) : [];
    const members = select.map((one, at) => sql`${expression(one)} as ${name(`c${at}`)}`);
    const tests = [...this.own(call), ...filters.map(test)];
    if (after) tests.push(behind(this.resource, order, after));
    return sql`(
      select ${isGrouped(query) ? joined(members) : this.all} from ${this.table} t ${where(tests)}
      ${groups.length > 0 ? sql`group by ${joined(groups)}` : sql``}
      ${order.length > 0 ? sql`order by ${joined(order.map(direction))}` : sql``}
      ${limit === null ? sql`` : sql`limit ${word(String(limit))}`}
      ${offset === 0 ? sql`` : sql`offset ${offset}`})`;
  }

  /** The rows of source() as one JSON array, with the same between them: LINE. */
  private array(query: Query): Sql {
    if (!query.select) return sql`json_agg(t)`; // the fastest there is
    return sql`'[' || string_agg(${this.member(query)}, E', \n ') || ']'`;
  }

  /** A row of source() as JSON text. Names are bound as values: they may be the caller's. */
  private member(query: Pick<Terms, 'select'>): Sql {
    if (!query.select) return this.row;
    const members = query.select.map(
      (one, at) => sql`${one.name}::text, ${shownOf(query, one, at)}`,
    );
    return sql`json_build_object(${joined(members)})::text`;
  }
}

/** A lone ask is cancelled when its client leaves; of many only who left goes without an answer. */
function callOf(asks: { call: Call }[]): Call {
  const { outgoing } = asks[0]?.call ?? {};
  return { sub: '', ms: 0, repeated: false, ...(asks.length === 1 && outgoing && { outgoing }) };
}

/** By key, so that two groups lock their rows in the same order. */
function rowsOf(asks: Ask[]): Row[] {
  const sorted = asks.toSorted((a, b) => (a.uuid < b.uuid ? -1 : 1));
  return sorted.map(({ row = {} }) => row);
}

/** An array literal of PostgreSQL. */
function toArray(items: string[]): string {
  return `{${items.map((item) => `"${item.replace(/["\\]/g, '\\$&')}"`).join(',')}}`;
}

function writtenOf(result: Result = {}): Written {
  const { rows = result.id ? 1 : 0, body, version, flag, every = flag, found } = result;
  return {
    ...{ rows: Number(rows), body: body ?? '', version: version ?? '' },
    ...{ created: flag === 't', taken: flag !== null, same: every === 't', found: found === '1' },
  };
}

/** Where the last row of an array begins: PostgreSQL's JSON has LINE between rows alone. */
function startOfLast(array: Buffer): number {
  const at = array.lastIndexOf(LINE);
  return at < 0 ? 1 : at + LINE.length;
}

/** The array without its last row, in place. */
function withoutLast(array: Raw): Raw {
  const end = array?.lastIndexOf(LINE) ?? -1;
  if (!array || end < 0) return undefined;
  array[end] = 0x5d; // "]"
  return array.subarray(0, end + 1);
}

/** The order's values in the last row of a page; of groups there are none. */
function cursorOf(query: Query, body: Raw, next: Raw): string {
  if (isGrouped(query)) return '';
  const last =
    next || !body ? {} : JSON.parse(body.toString('utf8', startOfLast(body), body.length - 1));
  const values = query.order.map(({ column }) => toTextOrNull(last[column]));
  return (next ?? Buffer.from(JSON.stringify(values))).toString('base64url');
}

function where(tests: Sql[]): Sql {
  return tests.length > 0 ? sql`where ${joined(tests, sql` and `)}` : sql``;
}

function shownOf(query: Pick<Query, 'select'>, one: Member, at: number): Sql {
  return isGrouped(query) ? sql`t.${name(`c${at}`)}` : expression(one);
}

function expression({ column, inner, aggregate, cast }: Member): Sql {
  const as = (of: Sql, type?: string) => (type ? sql`${of}::${word(type)}` : of);
  const plain = column ? as(sql`t.${name(column)}`, inner) : sql`*`;
  return as(aggregate ? sql`${word(aggregate)}(${plain})` : plain, cast);
}

function direction({ column, descending, nullsFirst }: Order): Sql {
  const words = `${descending ? 'desc' : 'asc'} nulls ${nullsFirst ? 'first' : 'last'}`;
  return sql`t.${name(column)} ${word(words)}`;
}

function test(filter: Filter): Sql {
  if ('not' in filter) return sql`not (${test(filter.not)})`;
  if ('tree' in filter)
    return sql`(${joined(filter.branches.map(test), word(` ${filter.tree} `))})`;
  const { operator, modifier, value } = filter;
  const [left, by] = [sql`t.${name(filter.column)}`, word(OPERATORS.get(operator) ?? '')];
  if (operator === 'is') return sql`${left} is ${word(value.replace('_', ' '))}`;
  if (operator === 'in') return sql`${left} ${by}(${value})`;
  const config = modifier ? sql`${modifier}::text::regconfig, ` : sql``;
  if (SEARCHING.test(operator))
    return sql`to_tsvector(${config}${left}) @@ ${by}(${config}${value})`;
  return modifier ? sql`${left} ${by} ${word(modifier)}(${value})` : sql`${left} ${by} ${value}`;
}

/** Keyset: behind the given values in the given order. */
function behind({ key }: Resource, order: Order[], values: (string | null)[]): Sql {
  return order.reduceRight((rest, { column, descending, nullsFirst }, at) => {
    const [left, value = null] = [sql`t.${name(column)}`, values[at]];
    const further = sql`${left} ${word(descending ? '<' : '>')} ${value}`;
    const past = nullsFirst || column === key ? further : sql`${further} or ${left} is null`;
    const [beyond, same] =
      value === null
        ? [nullsFirst ? sql`${left} is not null` : sql`false`, sql`${left} is null`]
        : [past, sql`${left} = ${value}`];
    return sql`(${beyond} or (${same} and ${rest}))`;
  }, sql`false`);
}
function csvLine(values: (string | null)[]): string {
  const field = (value: string | null) =>
    value === '' || /[",\r\n]/.test(value ?? '') ? `"${value?.replaceAll('"', '""')}"` : value;
  return `${values.map(field).join(',')}\n`;
}

/** CSV for COPY: the columns of its header, then its lines as a stream, counted. */
export type CsvReader = { columns: string[]; lines: AsyncIterable<Buffer>; rows: number };

/**
 * Reads the header, gives each row its owner, and a key where it has none. Bytes pass as latin1, one character
 * each, so that PostgreSQL judges the encoding. Throws 400 for the header, 413 past the limit.
 */
export async function readCsv(
  resource: Resource,
  bytes: AsyncIterable<Buffer>,
  limit: number,
  sub = '',
): Promise<CsvReader> {
  const batches = splitCsv(bytes, limit);
  const { value: [header = '', ...first] = [] } = await batches.next();
  const columns = readHeader(resource, Buffer.from(header, 'latin1').toString());
  const keyed = columns.includes(resource.key);
  const made = [...(resource.owner ? [resource.owner] : []), ...(keyed ? [] : [resource.key])];
  const reader = { columns: [...made, ...columns], rows: 0, lines: lines() };
  const owner = Buffer.from(csvLine([sub]).slice(0, -1)).toString('latin1');
  const own = resource.owner ? `${owner},` : '';
  return reader;

  async function* lines(): AsyncGenerator<Buffer> {
    yield withKeys(first);
    for await (const batch of batches) yield withKeys(batch);
  }

  function withKeys(records: string[]): Buffer {
    reader.rows += records.length;
    const withKey = (record: string) => `${own}${keyed ? '' : `${uuidv7()},`}${record}\n`;
    const lines = records.map(withKey);
    return Buffer.from(lines.join(''), 'latin1');
  }
}

/** The columns that the titles mean. Throws 400 unless they make whole rows. */
function readHeader(resource: Resource, header: string): string[] {
  const { key, settable, columns, required } = resource;
  const names = [key, ...settable.filter((name) => columns[name]?.type !== 'jsonb')];
  const refused = (what: string) => decline('header', what, `It names columns: ${names.join(',')}`);
  const titles = header.replace(/^\ufeff/, '').split(',');
  const found = titles.map((text) => {
    const title = text.trim().replace(/^"(.*)"$/, '$1');
    const isNamed = (name: string) =>
      name === title || columns[name]?.csv?.split(', ').includes(title);
    const known = names.find(isNamed);
    return known ?? refused(`has ${JSON.stringify(title.slice(0, 50))}, which is no column`);
  });
  const twice = found.filter((name, at) => found.indexOf(name) !== at);
  if (twice.length > 0) refused(`has ${twice} twice`);
  const missing = required.filter((name) => !found.includes(name));
  if (missing.length > 0) refused(`lacks ${missing.join(', ')}`);
  return found;
}

/** Records of CSV (RFC 4180), those of a chunk at a time: they end at line breaks outside quotes. */
async function* splitCsv(bytes: AsyncIterable<Buffer>, limit: number): AsyncGenerator<string[]> {
  let [open, size, inQuotes] = ['', 0, false];
  for await (const chunk of bytes) {
    size += chunk.length;
    if (size > limit) throw new Problem(413, 'PGRST102', `The CSV is larger than ${limit} bytes.`);
    const [text, records]: [string, string[]] = [chunk.toString('latin1'), []];
    let start = 0;
    for (const { 0: mark, index } of text.matchAll(/["\n]/g)) {
      if (mark === '"') inQuotes = !inQuotes;
      if (mark === '"' || inQuotes) continue;
      records.push((open + text.slice(start, index)).replace(/\r$/, ''));
      [open, start] = ['', index + 1];
    }
    open += text.slice(start);
    if (records.length > 0) yield records;
  }
  if (open !== '') yield [open];
}

/** COPY tells the line, counted without the header, and the column. */
function badLine({ columns }: Resource, error: Error & { where?: string }): unknown {
  const [, line, at] = /, line (\d+)(?:, column (\w+))?/.exec(error.where ?? '') ?? [];
  if (!line) return error;
  const { status, code, message, extras } = toProblem(error);
  const failed = /"!(\w+)"/.exec(message)?.[1];
  const name = failed ?? at;
  const details = `line ${Number(line) + 1}${name ? `, column ${name}` : ''}`;
  const detail = `${details}: ${failed ? `${failed} must be ${columns[failed]?.expects}` : message}`;
  const to = name ? pointer(name) : extras.errors?.[0]?.pointer;
  const errors = to ? [{ pointer: to, detail }] : [];
  return new Problem(status, code, detail, 'Nothing was stored.', { details, errors });
}

// --- Grouping -------------------------------------------------------------------

/** How items are answered together. */
export type Grouping<I, O> = {
  /** Items of a group at most, and groups under way at once. */
  most: number;
  width: number;
  /** Items of one key are never in one group. */
  keyOf?: (item: I) => unknown;
  /** An error for an item that is not to be run any more. */
  refuse: (item: I) => unknown;
  /** Tells whether the error left nothing behind, so that each item may be tried alone. */
  isApart: (error: unknown) => boolean;
  observe: (items: number) => void;
  /** Outputs in the order of the items; `since` is when the first of them came, in ms. */
  run: (items: I[], since: number) => Promise<O[]>;
};

type Waiter<I, O> = {
  item: I;
  since: number;
  resolve: (output: O) => void;
  reject: (error: unknown) => void;
};

/**
 * Answers items in groups. What comes while `width` groups are under way goes into the next, so
 * that each is answered by a run that began after it came; a lone one does not wait for others.
 */
export function group<I, O>(grouping: Grouping<I, O>): (item: I) => Promise<O> {
  const { width } = grouping;
  const waiting: Waiter<I, O>[] = [];
  let [running, due] = [0, false];

  const start = async (): Promise<void> => {
    const batch = takeBatch(waiting, grouping);
    due = false;
    running += 1;
    schedule(); // more wait than one group takes
    if (batch.length > 0) await settle(batch, grouping);
    running -= 1;
    schedule();
  };

  /** A lone one begins at once, others behind what else this turn of the event loop brings. */
  const schedule = (): void => {
    if (due || running >= width || waiting.length === 0) return;
    due = true;
    if (running === 0 && waiting.length === 1) void start();
    else setImmediate(start);
  };

  return (item) =>
    new Promise((resolve, reject) => {
      waiting.push({ item, since: performance.now(), resolve, reject });
      schedule();
    });
}

/** Runs a batch; where it failed and left nothing behind, each of it alone. */
async function settle<I, O>(batch: Waiter<I, O>[], grouping: Grouping<I, O>): Promise<void> {
  const { observe, run, isApart } = grouping;
  observe(batch.length);
  const items = batch.map(({ item }) => item);
  try {
    const outputs = await run(items, batch[0]?.since ?? 0);
    for (const [at, one] of batch.entries()) one.resolve(outputs[at] as O);
  } catch (error) {
    const apart = batch.length > 1 && isApart(error);
    if (apart) await Promise.all(batch.map((one) => settle([one], grouping)));
    else for (const one of batch) one.reject(error);
  }
}

/** Takes the oldest out of those who wait, but for those whose key is in the batch already. */
function takeBatch<I, O>(waiting: Waiter<I, O>[], grouping: Grouping<I, O>): Waiter<I, O>[] {
  const batch = new Map<unknown, Waiter<I, O>>();
  for (const one of waiting.splice(0)) {
    const key = grouping.keyOf?.(one.item) ?? one;
    const refusal = grouping.refuse(one.item);
    if (refusal) one.reject(refusal);
    else if (batch.size < grouping.most && !batch.has(key)) batch.set(key, one);
    else waiting.push(one);
  }
  return [...batch.values()];
}

/** Gives all who ask the same while an answer is under way the next one, which is one run. */
export function share<I, O>(grouping: Grouping<I, O>): (key: string, item: I) => Promise<O> {
  const groups = new Map<string, { ask: (item: I) => Promise<O>; asking: number }>();
  return async (key, item) => {
    const shared = groups.get(key) ?? { ask: group({ ...grouping, width: 1 }), asking: 0 };
    groups.set(key, shared);
    shared.asking += 1;
    try {
      return await shared.ask(item);
    } finally {
      shared.asking -= 1;
      if (shared.asking === 0) groups.delete(key);
    }
  };
}

// --- Auth -----------------------------------------------------------------------

type Caller = { sub: string; scopes: string[]; expires: number };
const MOST_CALLERS = 1000;
const JWKS_COOLDOWN = 30_000;
const CLOCK_TOLERANCE = 5; // s
const ASYMMETRIC = ['RS256', 'ES256', 'EdDSA', 'Ed25519'];

export type Authorize = ReturnType<typeof createAuth>;

/** Tells who calls by the bearer token. Throws Problem 401, 403, or 503 where no key could be had. */
export function createAuth(config: Config, log: Logger, { owner = '', columns }: Resource) {
  const { JWT_SECRET = [], JWKS_URL, JWT_WRITE_SCOPE, JWT_ISSUER, JWT_AUDIENCE } = config;
  const secrets = JWT_SECRET.map((secret) => () => Buffer.from(secret));
  const keys: jose.JWTVerifyGetKey[] = JWKS_URL ? [fetchedKeys(JWKS_URL, log)] : secrets;
  const callers = new Map<string, Caller>();
  const pattern = columns[owner]?.owner;
  if (pattern && !needsToken(config, false))
    throw new StartError(`AUTH=all with JWT_SECRET or JWKS_URL is required: rows have a ${owner}`);
  const options: jose.JWTVerifyOptions = {
    algorithms: JWKS_URL ? ASYMMETRIC : ['HS256'],
    requiredClaims: ['exp', 'sub'],
    clockTolerance: CLOCK_TOLERANCE,
    ...(JWT_ISSUER && { issuer: JWT_ISSUER }),
    ...(JWT_AUDIENCE && { audience: JWT_AUDIENCE }),
  };

  /** The caller's `sub`; '' where no token is needed. */
  return async function authorize(authorization: string | null, writes: boolean): Promise<string> {
    if (!needsToken(config, writes)) return '';
    let caller = callers.get(authorization ?? '');
    if (!authorization || !caller || caller.expires < Date.now()) {
      const token = /^Bearer +([\w.~+/=-]+)$/i.exec(authorization ?? '')?.[1];
      if (!authorization || !token) throw unauthorized('PGRST302');
      caller = await verify(token, keys, options);
      const hint = `The sub of the token has to match ${pattern?.source}.`;
      if (pattern && !pattern.test(caller.sub))
        throw new Problem(403, '42501', 'The token is of nobody who can own rows.', hint);
      if (callers.size >= MOST_CALLERS) callers.clear();
      callers.set(authorization, caller);
    }
    if (!writes || !JWT_WRITE_SCOPE || caller.scopes.includes(JWT_WRITE_SCOPE)) return caller.sub;
    const hint = `Writing needs a token of scope ${JWT_WRITE_SCOPE}.`;
    throw new Problem(403, '42501', 'The token does not allow to write.', hint);
  };
}

/** By whichever key fits: while secrets are rotated there are two. */
async function verify(
  token: string,
  keys: jose.JWTVerifyGetKey[],
  options: jose.JWTVerifyOptions,
): Promise<Caller> {
  const tries = keys.map((key) => jose.jwtVerify(token, key, options));
  const { payload } = await Promise.any(tries).catch(({ errors }: AggregateError) => {
    const expired = errors.some((error) => error instanceof jose.errors.JWTExpired);
    const problem = errors.find((error) => error instanceof Problem);
    throw problem ?? unauthorized(expired ? 'PGRST303' : 'PGRST301');
  });
  const scopes = String(payload.scope ?? '').split(' ');
  const expires = (Number(payload.exp) + CLOCK_TOLERANCE) * 1000;
  return { sub: String(payload.sub), scopes, expires };
}

function needsToken({ AUTH, JWT_SECRET, JWKS_URL }: Config, writes: boolean): boolean {
  const mode = AUTH ?? (JWT_SECRET || JWKS_URL ? 'all' : 'none');
  return mode === 'all' || (mode === 'write' && writes);
}

const UNAUTHORIZED = {
  PGRST301: 'JWT invalid',
  PGRST302: 'A token is needed here',
  PGRST303: 'JWT expired',
};

/** RFC 6750, 3: an error is named only where a token was sent. */
function unauthorized(code: keyof typeof UNAUTHORIZED): Problem {
  const detail = UNAUTHORIZED[code];
  const why = code === 'PGRST302' ? '' : ` error="invalid_token", error_description="${detail}"`;
  const headers = { 'WWW-Authenticate': `Bearer realm="api"${why}` };
  return new Problem(401, code, detail, 'Send "Authorization: Bearer <token>".', { headers });
}

/** Keys that go on while their source is away (jose's own do not); asked for once per cooldown. */
function fetchedKeys(url: string, log: Logger): jose.JWTVerifyGetKey {
  let keys: jose.JWTVerifyGetKey | undefined;
  let fetching: Promise<void> = Promise.resolve();
  let next = 0;

  async function refresh(): Promise<void> {
    next = Date.now() + (keys ? JWKS_COOLDOWN : 1000);
    const response = await fetch(url, { signal: AbortSignal.timeout(CONNECT_TIMEOUT) });
    keys = jose.createLocalJWKSet((await response.json()) as jose.JSONWebKeySet);
    next = Date.now() + JWKS_COOLDOWN;
  }

  return async (header, token) => {
    const known = await Promise.resolve(keys?.(header, token)).catch(() => undefined);
    if (known) return known;
    if (Date.now() >= next) {
      fetching = refresh().catch((error) => log.warn({ error: String(error) }, 'JWKS_URL failed'));
    }
    await fetching;
    if (keys) return keys(header, token);
    throw new Problem(503, 'PGRST300', 'No key for tokens could be had.', 'Try again.', LATER);
  };
}

/** `token --sub me --scope write --expires 1h`: prints one signed by the first JWT_SECRET. */
async function printToken({ JWT_SECRET, JWT_ISSUER, JWT_AUDIENCE }: Config, args: string[]) {
  const [secret] = JWT_SECRET ?? [];
  if (!secret) throw new StartError('JWT_SECRET is needed to sign a token');
  const options = { sub: TEXT, scope: TEXT, expires: TEXT };
  const { sub = 'me', scope, expires = '1h' } = parseArgs({ args, options }).values;
  const of = { ...(JWT_ISSUER && { iss: JWT_ISSUER }), ...(JWT_AUDIENCE && { aud: JWT_AUDIENCE }) };
  const token = new jose.SignJWT({ sub, ...of, ...(scope && { scope }) });
  token.setProtectedHeader({ alg: 'HS256' }).setIssuedAt().setExpirationTime(expires);
  process.stdout.write(`${await token.sign(Buffer.from(secret))}\n`);
}
const TEXT = { type: 'string' } as const;

// --- Routes ---------------------------------------------------------------------

/** What createApp() needs; main() makes it. */
export type Service = {
  config: Config;
  resource: Resource;
  store: Store;
  authorize: Authorize;
  metrics: Metrics;
  log: Logger;
  life: Life;
};

/** One request, read once, and what it takes. `key`: what the path has for :key, or for :file. */
type Visit = HttpBindings & {
  route: Route;
  headers: Record<string, string | undefined>;
  path: string;
  key: string;
  query: Query;
  prefer: Preferences;
  call: Call;
  id: string;
  started: number;
};
type Handler = (service: Service, visit: Visit) => Answer | Promise<Answer>;
type Ctx = Context<{ Bindings: HttpBindings }>;
type App = Hono<{ Bindings: HttpBindings }>;

/** `of`: rows, the same as PostgREST has them, or the service. `plain`: the query of no parameters. */
type Route = {
  method: string;
  path: string;
  handler: Handler;
  of: keyof typeof TAGS;
  secured: boolean;
  plain: Query;
  summary: string;
  takes: string[];
  allowed: string[];
  body: string;
  statuses: string[];
  answer: string;
};
/** `takes`: parameters, those with a capital are headers. `shows`: `body > statuses answer`. */
type Line = [string, path: string, Handler, summary: string, takes: string, shows: string];

const JSON_TYPE = 'application/json';
const PATCH = 'application/merge-patch+json';
const OBJECT = 'application/vnd.pgrst.object+json';
const CSV = 'text/csv';
const NDJSON = 'application/x-ndjson';
/** The types of a body, or of an answer, the first for any Accept; by the names that `shows` has. */
const MEDIA: Record<string, string[]> = {
  ...{ new: [JSON_TYPE, CSV], whole: [JSON_TYPE], part: [JSON_TYPE, PATCH] },
  ...{ parts: [JSON_TYPE, PATCH], row: [JSON_TYPE, OBJECT], made: [JSON_TYPE, OBJECT] },
  ...{ rows: [JSON_TYPE, OBJECT, CSV, NDJSON], all: [JSON_TYPE, CSV, NDJSON] },
};

const PAGE = 'filter select order limit offset after';
const ROWS: Line[] = [
  ['GET', '', list, 'List rows', `${PAGE} Range`, '> 200 206 rows'],
  [
    'POST',
    '',
    create,
    'Create rows',
    'select columns on_conflict Idempotency-Key',
    'new > 201 200 made',
  ],
  ['PATCH', '', mergeMany, 'Change rows', 'filter select columns', 'parts > 200 204 made'],
  ['DELETE', '', removeMany, 'Delete rows', 'filter select', '> 200 204 made'],
  ['GET', '/:key', read, 'Read a row', 'If-None-Match', '> 200 304 row'],
  ['PUT', '/:key', replace, 'Put a row', 'If-Match If-None-Match', 'whole > 200 201 204 row'],
  ['PATCH', '/:key', merge, 'Change a row', 'If-Match', 'part > 200 204 row'],
  ['DELETE', '/:key', remove, 'Delete a row', 'If-Match', '> 200 204 row'],
];
const HEADER = /^[A-Z]/;
const LIST: Line = ['GET', '', listAll, 'Stream rows', PAGE, '> 200 all'];
const SERVICE: Line[] = [
  ['GET', '/hello', show, 'Say ok', '', '> 200 {"message":"ok"}'],
  ['GET', '/zero', show, 'Say nothing', '', '> 200 {"0":""}'],
  ['GET', '/healthz', show, 'The process answers', '', '> 200 {"status":"alive"}'],
  ['GET', '/readyz', ready, 'The database answers too', '', '> 200 {"status":"ready"}'],
  ['GET', '/metrics', measure, 'Metrics for Prometheus', '', '> 200 text/plain'],
  ['GET', '/openapi.json', document, 'This document', '', '> 200 application/json'],
  ['GET', '/docs', page, 'This document as a page', '', '> 200 text/html'],
  ['GET', '/docs/:file', file, 'A file of the page', '', '> 200 text/*'],
];
const PROBES = ['/healthz', '/readyz', '/metrics']; // who asks stands beside, and knows no BASE_PATH
const TAGS = { rows: 'As they are', PostgREST: "With its clients' defaults", service: 'Itself' };
const METHODS = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'];
const MAX_HEAD = 128 * 1024; // bytes of a request's head, and of its target: 800 UUIDs in in.(…)

/** Every route of a service, those of python-crud-api among them. */
function routesOf(service: Service): Route[] {
  const { path, legacy } = service.resource;
  const named: Record<string, Handler> = { list: listAll, create, read, replace, remove };
  const below = (of: Route['of'], base: string, lines: Line[]) =>
    lines.map((line) => toRoute(service, of, base, line));
  return [
    ...below('service', '', SERVICE),
    ...below('rows', `/${path}`, ROWS),
    ...below('PostgREST', `/rest/v1/${path}`, ROWS),
    ...Object.entries<string>(legacy ?? {}).flatMap(([name, base]) => {
      return below(
        'rows',
        base,
        [...ROWS, LIST].filter(([, , handler]) => handler === named[name]),
      );
    }),
  ];
}

function toRoute({ config, resource }: Service, of: Route['of'], base: string, line: Line): Route {
  const [method, at, handler, summary, words, shows] = line;
  const [, body = '', statuses = '', answer = ''] = /^(\w*) ?> ([\d ]+) (.+)$/.exec(shows) ?? [];
  const takes = `${words}${of === 'service' ? '' : ' Prefer'}`.match(/\S+/g) ?? [];
  const allowed = takes.filter((name) => !HEADER.test(name));
  const open = of === 'service' && at !== '/metrics';
  return {
    ...{ method, path: base + at, handler, of, summary, takes, body, answer },
    statuses: statuses.split(' '),
    secured: !open && needsToken(config, method !== 'GET'),
    allowed,
    plain: parseQuery(resource, [], allowed),
  };
}

/** The service behind one fetch(); what is not in its table is described, or refused. */
export function createApp(service: Service): App {
  const app: App = new Hono();
  const methodsAt = ({ path }: Visit) =>
    METHODS.filter((method) => {
      const as = method.replace('HEAD', 'GET');
      return as !== 'OPTIONS' && app.router.match(as, path)[0].length > 0;
    });
  const other = (path: string, handler: Handler) =>
    toRoute(service, 'service', '', ['', path, handler, '', '', '']);
  const options = other('OPTIONS', (_, visit) => describe(service, visit, methodsAt(visit)));
  const unmatched = other('unmatched', (_, visit) => refuseRoute(service, visit, methodsAt(visit)));
  for (const route of routesOf(service)) {
    const paths = new Set([service.config.BASE_PATH + route.path]);
    if (PROBES.includes(route.path)) paths.add(route.path);
    app.on(route.method, [...paths], (c) => respond(service, c, route));
  }
  app.options('*', (c) => respond(service, c, options));
  app.notFound((c) => respond(service, c, unmatched));
  return app;
}

/** Whatever comes of a request is answered, an error too. */
async function respond(service: Service, c: Ctx, route: Route): Promise<Response> {
  const visit = begin(c, route);
  try {
    await admit(service, visit);
    return send(service, visit, await route.handler(service, visit));
  } catch (error) {
    const found = toProblem(error);
    const problem = visit.outgoing.destroyed && found.status !== 500 ? gone() : found;
    const told = { id: visit.id, code: codeOf(error) };
    const stack = error instanceof Error ? error.stack?.replace(error.message, '') : undefined;
    if (problem.status === 500) service.log.error({ ...told, stack }, 'failed');
    else if (problem.status > 500) service.log.warn(told, 'failed');
    return send(service, visit, problemAnswer(problem));
  }
}

function begin({ env: { incoming, outgoing }, req }: Ctx, route: Route): Visit {
  const headers = incoming.headers as Visit['headers']; // Set-Cookie alone is an array
  const { path } = req;
  const key = req.param('key') ?? req.param('file') ?? '';
  const call = { sub: '', ms: 0, repeated: false, outgoing };
  const [id, started] = [requestId(headers['x-request-id']), performance.now()];
  const [query, prefer] = [route.plain, {}];
  return { incoming, outgoing, headers, route, path, key, query, prefer, call, id, started };
}

/** The caller's id where it is harmless in a header and in a log, else a new one. */
function requestId(given?: string): string {
  return given && /^[\w.:/+=-]{1,128}$/.test(given) ? given : randomUUID();
}

/** Lets in who may, and reads what every route of rows has in common. Throws Problem. */
async function admit({ authorize, resource, life }: Service, visit: Visit): Promise<void> {
  const { incoming, headers, route, call } = visit;
  const { url = '', rawHeaders } = incoming;
  const bytes = rawHeaders.reduce((sum, part) => sum + part.length, 0);
  if (url.length > MAX_HEAD) throw new Problem(414, 'PGRST100', 'The URI is too long.');
  if (bytes > MAX_HEAD) throw new Problem(431, 'PGRST100', 'The header is too large.');
  const profile = headers['accept-profile'] ?? headers['content-profile'] ?? 'public';
  if (profile !== 'public')
    throw new Problem(406, 'PGRST106', 'Invalid schema', 'There is public alone.');
  if (route.secured)
    call.sub = await authorize(headers.authorization ?? null, route.method !== 'GET');
  if (route.of === 'service') return;
  if (!life.prepared) throw unavailable();
  if (visit.key) visit.key = toKey(visit.key);
  if (url.includes('?')) visit.query = parseQuery(resource, parametersOf(visit), route.allowed);
  if (headers.prefer) visit.prefer = parsePrefer(headers.prefer);
}

/** Adds the headers that every answer carries, and counts it. */
function send(service: Service, visit: Visit, { status, headers: own, body }: Answer) {
  const { config, metrics, life, log } = service;
  const { call, id, route, started, incoming, outgoing } = visit;
  const { method = '', url } = incoming;
  const ms = performance.now() - started;
  metrics.observe(method, route.path, status, ms);
  if (log.isLevelEnabled('debug')) log.debug({ id, method, url, status, ms }, 'answered');
  const headers: Record<string, string> = { ...own, 'X-Request-Id': id };
  headers['Server-Timing'] = `db;dur=${call.ms.toFixed(1)}, total;dur=${ms.toFixed(1)}`;
  if (body !== null && !(body instanceof Readable))
    headers['Content-Length'] = String(Buffer.byteLength(body));
  if (visit.headers.origin) Object.assign(headers, crossOrigin(config, visit.headers.origin));
  if (life.stopping) headers.Connection = 'close';
  if (!(body instanceof Readable))
    return new Response(body as BodyInit | null, { status, headers });
  outgoing.writeHead(status, headers);
  pipeline(body, outgoing, (error) => error && log.warn({ id, code: codeOf(error) }, 'broken off'));
  return RESPONSE_ALREADY_SENT;
}

const CORS = {
  'Access-Control-Expose-Headers':
    'Content-Range, ETag, Link, Location, Preference-Applied, X-Request-Id',
  'Access-Control-Allow-Methods': METHODS.join(', '),
  'Access-Control-Allow-Headers':
    'Authorization, Content-Type, Prefer, Range, Range-Unit, If-Match, If-None-Match, ' +
    'Idempotency-Key, Accept-Profile, Content-Profile, apikey, x-client-info, x-retry-count, ' +
    'x-request-id',
  'Access-Control-Max-Age': '86400',
};

function crossOrigin({ CORS_ORIGIN }: Config, origin: string): Record<string, string> {
  const allowed = CORS_ORIGIN.find((one) => one === '*' || one === origin);
  const told = allowed && { ...CORS, 'Access-Control-Allow-Origin': allowed };
  return { Vary: 'Origin', ...told };
}

/** OPTIONS: which service this is; to a preflight (Fetch standard, 4.9) the headers alone. */
function describe({ config, resource }: Service, visit: Visit, found: string[]): Answer {
  const methods = found.length > 0 ? [...found, 'OPTIONS'] : [];
  const headers = { Allow: methods.join(', ') || 'OPTIONS' };
  if (visit.headers['access-control-request-method']) return { status: 204, headers, body: null };
  const { APP_VERSION: version, APP_BRANCH: branch, APP_COMMIT: commit } = config;
  const uri = visit.incoming.url;
  const about = { name: resource.path, version, branch, commit, uri, methods };
  return json(JSON.stringify(about), headers);
}

/** Throws 405 where other methods are known, else 404 with PostgREST's code. */
function refuseRoute({ config }: Service, { incoming, path }: Visit, found: string[]): never {
  const Allow = [...found, 'OPTIONS'].join(', ');
  const [, below = '/'] = /^\/rest\/v1\/(.*)$/s.exec(path.slice(config.BASE_PATH.length)) ?? [];
  const known = [/^$/, /^rpc\/[^/]+$/, /^[^/]+$/].findIndex((pattern) => pattern.test(below));
  const code = ['PGRST126', 'PGRST202', 'PGRST205'][known] ?? 'PGRST125';
  if (!isDecodable(incoming.url ?? ''))
    throw new Problem(400, 'PGRST100', 'The path is not percent-encoded text.');
  if (found.length === 0) throw nothingHere(code);
  const detail = `There is no ${incoming.method} here.`;
  throw new Problem(405, 'PGRST117', detail, `Use ${Allow}.`, { headers: { Allow } });
}

function nothingHere(code = 'PGRST125'): Problem {
  const hint = 'GET /openapi.json names what there is.';
  return new Problem(404, code, 'There is nothing at this path.', hint);
}

function isDecodable(url: string): boolean {
  try {
    return !decodeURIComponent(url.replace(/\?.*/s, '')).includes('\0');
  } catch {
    return false;
  }
}

function json(body: string, headers: Record<string, string> = {}, status = 200): Answer {
  return { status, headers: { 'Content-Type': JSON_TYPE, ...headers }, body };
}

/** What the table shows. */
function show(_: Service, { route }: Visit): Answer {
  return json(route.answer);
}

async function list(service: Service, visit: Visit): Promise<Answer> {
  const [type, query] = [negotiate(visit), withRange(visit)];
  const body = visit.incoming.method !== 'HEAD';
  if (body && (type === CSV || type === NDJSON)) return streamed(service, visit, type, query);
  const limit = Math.min(query.limit ?? Infinity, service.config.MAX_ROWS);
  const wanted = { limit, body, count: 'count' in visit.prefer };
  const page = await service.store.page(query, wanted, visit.call);
  return toPage(visit, type, query, page);
}

function listAll(service: Service, visit: Visit): Promise<Answer> {
  return streamed(service, visit, negotiate(visit), visit.query);
}

async function streamed({ store }: Service, visit: Visit, type: string, query: Query) {
  const headers = { 'Content-Type': type };
  const batches = store.stream(query, type === CSV, visit.call);
  const { value = [] } = await batches.next(); // a fault up to here is still answered as one
  if (visit.incoming.method !== 'HEAD' && !visit.outgoing.destroyed)
    return { status: 200, headers, body: Readable.from(join(value, batches, type)) };
  await batches.return(undefined);
  return { status: 200, headers, body: null };
}

/** What stands before, between and behind rows; a line of CSV has its own end. */
const AROUND: Record<string, [string, string, string]> = {
  [JSON_TYPE]: ['[', ',', ']'],
  [NDJSON]: ['', '\n', '\n'],
};

async function* join(first: string[], rest: AsyncIterable<string[]>, type: string) {
  const [open, comma, close] = AROUND[type] ?? ['', '', ''];
  yield open + first.join(comma);
  for await (const batch of rest) yield comma + batch.join(comma);
  if (open || first.length > 0) yield close;
}

async function read({ store }: Service, visit: Visit): Promise<Answer> {
  negotiate(visit);
  const stored = await store.read(visit.key, visit.call);
  if (!stored) throw noRow();
  const tags = tagsOf(visit, 'if-none-match', /^(?:W\/)?"(\d+)"$/);
  if (tags !== '*' && !tags?.includes(stored.version)) return json(stored.body, tag(stored));
  return { status: 304, headers: tag(stored), body: null };
}

async function create(service: Service, visit: Visit): Promise<Answer> {
  if (mediaType(visit) === CSV) return copy(service, visit);
  const { resource, store } = service;
  const { rows, row, many, named } = await readRows(service, visit, resource.row);
  const keyed = idempotentKey(visit, many);
  const terms = termsOf(visit, many);
  for (const one of rows) one[resource.key] = keyed ?? one[resource.key] ?? uuidv7();
  if (visit.prefer.resolution) return upsert(service, visit, rows, named, terms);
  const alone = !many && !visit.query.select && terms.most === undefined;
  const made = alone
    ? await store.create(row, visit.call)
    : await store.createMany(rows, terms, visit.call);
  const mine = made.same && (keyed || visit.call.repeated);
  if (made.taken && !mine) throw taken(keyed);
  return written(visit, made, terms, 201, {
    ...(rows.length === 1 && { Location: locationOf(service, visit, rows[0]), ...tag(made) }),
    ...(keyed && made.taken && { 'Idempotent-Replayed': 'true' }),
  });
}

async function upsert(
  { resource: { key }, store }: Service,
  visit: Visit,
  rows: Row[],
  named: string[],
  terms: Shown,
): Promise<Answer> {
  const hint = `on_conflict can be ${key} alone.`;
  if (String(visit.query.on_conflict ?? key) !== key)
    throw new Problem(400, '42P10', 'There is no unique index on these columns.', hint);
  const merged = visit.prefer.resolution === 'merge-duplicates' ? named : [];
  const made = await store.upsert(rows, merged, terms, visit.call);
  return written(visit, made, terms, made.created ? 201 : 200);
}

async function copy({ config, resource, store }: Service, visit: Visit): Promise<Answer> {
  const bytes = bytesOf(visit);
  try {
    const csv = await readCsv(resource, bytes, config.CSV_LIMIT, visit.call.sub);
    await store.copy(csv);
    return { status: 201, headers: { 'Content-Range': `*/${csv.rows}` }, body: null };
  } finally {
    void bytes.return?.();
  }
}

async function replace(service: Service, visit: Visit): Promise<Answer> {
  const { resource, store } = service;
  const { key, headers, call } = visit;
  const { row } = await readRows(service, visit, resource.row);
  const terms = termsOf(visit);
  const versions = tagsOf(visit, 'if-match');
  const only = headers['if-none-match'] === '*';
  const stored = versions
    ? await store.merge(key, row, versions, call)
    : await (only ? store.upsert([row], [], {}, call) : store.replace(row, call));
  if (stored.rows === 0) throw only || versions ? preconditionFailed() : noRow();
  const location = stored.created && { Location: locationOf(service, visit, row) };
  return written(visit, stored, terms, location ? 201 : 200, { ...tag(stored), ...location });
}

async function merge(service: Service, visit: Visit): Promise<Answer> {
  const { key, call } = visit;
  const { row } = await readRows(service, visit, service.resource.part);
  const terms = termsOf(visit);
  const stored = changed(await service.store.merge(key, row, tagsOf(visit, 'if-match'), call));
  return written(visit, stored, terms, 200, tag(stored));
}

async function mergeMany(service: Service, visit: Visit): Promise<Answer> {
  const { resource, store } = service;
  const { rows, row, many } = await readRows(service, visit, resource.part);
  const terms = termsOf(visit);
  const detail = many ? 'is missing; it tells which row this is for' : 'cannot be set for many';
  const faults = rows.flatMap((one, at) => {
    const fault = { pointer: (many ? `/${at}` : '') + pointer(resource.key), detail };
    return Boolean(one[resource.key]) === many ? [] : [fault];
  });
  if (faults.length > 0) throw unprocessable(faults);
  if (!many) guardAll(visit);
  const stored = await store.mergeMany(many ? rows : row, visit.query.filters, terms, visit.call);
  return written(visit, stored, terms);
}

async function remove({ store }: Service, visit: Visit): Promise<Answer> {
  const terms = termsOf(visit);
  const versions = tagsOf(visit, 'if-match');
  return written(visit, changed(await store.remove(visit.key, versions, visit.call)), terms);
}

async function removeMany({ store }: Service, visit: Visit): Promise<Answer> {
  const terms = termsOf(visit);
  guardAll(visit);
  return written(visit, await store.removeMany(visit.query.filters, terms, visit.call), terms);
}

/** RFC 9110, 13.2.1: what is not there is 404, whatever the precondition. */
function changed(made: Written): Written {
  if (made.rows > 0) return made;
  throw made.found ? preconditionFailed() : noRow();
}

/** What a write keeps to, and how it shows its rows. */
type Shown = Terms & { shape: 'object' | 'array' | 'nothing' };

/** As `Prefer` and Accept visit, else as is natural; below /rest/v1 nothing, as PostgREST does. */
function termsOf(visit: Visit, many = false): Shown {
  const { query, prefer, route, key, incoming } = visit;
  if (isGrouped(query)) throw new Problem(400, 'PGRST100', 'A write shows rows, no aggregates.');
  const most = prefer['max-affected'] ? Number(prefer['max-affected']) : undefined;
  const silent = incoming.method === 'DELETE' || (incoming.method === 'PATCH' && !key);
  let shape: Shown['shape'] = many ? 'array' : 'object';
  if (prefer.return === 'representation')
    shape = negotiate(visit) === OBJECT || key ? 'object' : 'array';
  else if (prefer.return || silent || route.of === 'PostgREST') shape = 'nothing';
  return { shape, select: query.select, single: shape === 'object', most };
}

/** Nobody changes a whole table by a forgotten filter. */
function guardAll({ query, prefer }: Visit): void {
  if (query.filters.length > 0 || prefer['max-affected']) return;
  const hint = 'Add a filter, or "Prefer: handling=strict, max-affected=N" to mean all rows.';
  throw new Problem(400, '21000', 'Without a filter this would change every row.', hint);
}

const MOST_FAULTS = 100;

function unprocessable(faults: Fault[], code = '22023'): Problem {
  const errors = faults.slice(0, MOST_FAULTS);
  const detail = errors.map((fault) => `${fault.pointer} ${fault.detail}`).join('; ');
  return new Problem(422, code, detail.slice(0, 500), undefined, { errors });
}

function noRow(): Problem {
  const details = 'The result contains 0 rows';
  return new Problem(404, 'PGRST116', 'There is no row with this key.', undefined, { details });
}

function notOne(rows: number): Problem {
  const details = `The result contains ${rows} rows`;
  const detail = 'Cannot coerce the result to a single JSON object';
  return new Problem(406, 'PGRST116', detail, undefined, { details });
}

/** PostgREST's «max-affected». */
function tooMany(rows: number): Problem {
  const detail = 'Query result exceeds max-affected preference constraint';
  const details = `The query affects ${rows} rows`;
  return new Problem(400, 'PGRST124', detail, 'Nothing was changed.', { details });
}

function preconditionFailed(): Problem {
  const hint = 'Read it again for its ETag and decide anew.';
  return new Problem(412, 'PGRST100', 'The row is not as the precondition wants it.', hint);
}

function taken(keyed: string | undefined): Problem {
  if (!keyed)
    return new Problem(409, '23505', 'There is a row with this key; nothing was created.');
  const detail = 'This Idempotency-Key came before with other content.';
  return new Problem(409, '23505', detail, 'A new request needs a new key.');
}

function pastEnd(offset: number, total: number): Problem {
  const details = `An offset of ${offset} was requested, but there are only ${total} rows.`;
  const extras = { details, headers: { 'Content-Range': `*/${total}` } };
  return new Problem(416, 'PGRST103', 'Requested range not satisfiable', undefined, extras);
}

/** The key in a path, as PostgreSQL would read it. Throws 400. */
function toKey(given: string): string {
  const uuid = toUuid(given);
  if (uuid) return uuid;
  const detail = `invalid input syntax for type uuid: ${JSON.stringify(given.slice(0, 50))}`;
  throw new Problem(400, '22P02', detail, 'A key looks like 0192f0c1-2f3a-7bcd-8123-456789abcdef.');
}

function locationOf({ config, resource }: Service, { route }: Visit, row: Row = {}): string {
  const base = route.of === 'PostgREST' ? '/rest/v1' : '';
  return `${config.BASE_PATH}${base}/${resource.path}/${row[resource.key]}`;
}

const NAMESPACE = '6c1f7c54-5d2a-4b0e-9a55-2f1f0a3c8d10';

/** The row's UUID, made of the Idempotency-Key and the caller, so that a repetition finds the row. */
function idempotentKey({ headers, call }: Visit, many: boolean): string | undefined {
  const key = headers['idempotency-key'];
  if (key === undefined) return undefined;
  const detail = 'An Idempotency-Key has 1 to 255 characters, for one object.';
  if (!key || key.length > 255 || many) throw new Problem(400, 'PGRST100', detail);
  return uuidv5(JSON.stringify([call.sub, key]), NAMESPACE);
}

/** The rows of a body as the declaration wants them; one below a path with a key, which it gets. */
async function readRows({ config, resource }: Service, visit: Visit, schema: z.ZodType<Row>) {
  const { key, query } = visit;
  const body = await readJson(visit, config.BODY_LIMIT);
  const many = Array.isArray(body) && !key;
  const bodies: unknown[] = many ? body : [body];
  const named = query.columns ?? [...new Set(bodies.flatMap((one) => Object.keys(Object(one))))];
  const picked = bodies.map((one) => pick(one, query.columns));
  const rows = validate(schema, picked, many);
  const [row = {}] = rows;
  if (key) row[resource.key] ??= key;
  const fault = { pointer: pointer(resource.key), detail: 'differs from the key in the path' };
  if (key && row[resource.key] !== key) throw unprocessable([fault]);
  return { rows, row, many, named };
}

/** `columns=a,b`: of each row these alone. */
function pick(row: unknown, columns: string[] | undefined): unknown {
  if (!columns || !row || typeof row !== 'object') return row;
  return Object.fromEntries(Object.entries(row).filter(([name]) => columns.includes(name)));
}

/** Throws 422 with every fault of all rows. */
function validate(schema: z.ZodType<Row>, rows: unknown[], many: boolean): Row[] {
  const results = rows.map((row) => schema.safeParse(row));
  const faults = results.flatMap(({ error }, at) => {
    return error ? toFaults(error, many ? `/${at}` : '') : [];
  });
  const issues = results.flatMap(({ error }) => error?.issues ?? []);
  const unknown = issues.some(({ code }) => code === 'unrecognized_keys');
  if (faults.length > 0) throw unprocessable(faults, unknown ? 'PGRST204' : '22023');
  return results.map(({ data }) => data ?? {});
}

/** The type of the body without its parameters. Throws 415 where it is encoded. */
function mediaType({ headers }: Visit): string {
  const { 'content-type': type = '', 'content-encoding': coding = 'identity' } = headers;
  if (coding === 'identity') return type.replace(/;.*/s, '').trim().toLowerCase();
  throw new Problem(415, 'PGRST102', `A body in ${coding} is not read here.`, 'Send it as it is.');
}

/** The body as JSON. Throws 400, 413, 415. */
async function readJson(visit: Visit, limit: number): Promise<unknown> {
  const [type, known = []] = [mediaType(visit), MEDIA[visit.route.body]];
  const hint = `Send "Content-Type: ${JSON_TYPE}".`;
  if (!known.includes(type)) throw new Problem(415, 'PGRST102', `No ${type} here.`, hint);
  const tooLarge = () => new Problem(413, 'PGRST102', `The body is larger than ${limit} bytes.`);
  if (Number(visit.headers['content-length'] ?? 0) > limit) throw tooLarge();
  const bytes = await readBytes(visit, limit);
  if (!bytes) throw tooLarge();
  const value = isUtf8(bytes) ? toJson(bytes) : undefined;
  if (value === undefined) throw new Problem(400, 'PGRST102', 'The body is not JSON in UTF-8.');
  return value;
}

/** The body, or undefined where it is longer. By events: an iterator costs twice as much. */
function readBytes({ incoming }: Visit, limit: number): Promise<Buffer | undefined> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let size = 0;
    const settle = (bytes: Buffer | undefined) => {
      incoming.off('data', take).off('end', end).off('error', reject);
      resolve(bytes);
    };
    const end = () => settle(Buffer.concat(chunks));
    const take = (chunk: Buffer) => {
      size += chunk.length;
      if (size > limit) settle(undefined);
      else chunks.push(chunk);
    };
    if (incoming.errored) reject(incoming.errored);
    incoming.on('data', take).on('end', end).on('error', reject);
  });
}

/** Whoever stops reading leaves the connection open for the answer, and by return() for the next. */
function bytesOf({ incoming }: Visit): AsyncIterator<Buffer> & AsyncIterable<Buffer> {
  return incoming.iterator({ destroyOnReturn: false });
}

function parametersOf({ incoming }: Visit): URLSearchParams {
  return new URLSearchParams(/\?(.*)/s.exec(incoming.url ?? '')?.[1]);
}

/** The type of the route's answer that Accept likes best (RFC 9110, 12.5.1). Throws 406. */
function negotiate({ headers, route }: Visit): string {
  const offered = MEDIA[route.answer] ?? [];
  if (offered[0] && (!headers.accept || headers.accept === '*/*')) return offered[0];
  for (const { type, q, params } of parseAccept(headers.accept?.toLowerCase() ?? '*/*')) {
    const known = Object.keys(params).every((name) => name === 'q' || name === 'charset');
    const prefix = type.replace(/^\*\/\*$/, '').replace(/\*$/, '');
    const fits = (offer: string) =>
      type.endsWith('*') ? offer.startsWith(prefix) : offer === type;
    const found = offered.find(fits);
    if (found && known && q > 0) return found;
  }
  const hint = `There is ${offered.join(', ')}.`;
  throw new Problem(406, 'PGRST107', 'There is no such media type.', hint);
}

/** The preferences that are known (RFC 7240; PostgREST, «Prefer Header»), and which were given. */
const PREFERENCES: Record<string, RegExp> = {
  return: /^(minimal|headers-only|representation)$/,
  count: /^(exact|planned|estimated)$/,
  resolution: /^(merge|ignore)-duplicates$/,
  missing: /^(default|null)$/,
  handling: /^(strict|lenient)$/,
  'max-affected': /^\d{1,9}$/,
  tx: /^commit$/,
};

type Preferences = { [name: string]: string | undefined };

/** The known ones by name. Throws 400 for the others where `handling=strict`. */
function parsePrefer(header: string): Preferences {
  const parts = header.split(/[,;]/).map((part) => part.trim());
  const given: Preferences = {};
  const unknown = parts.filter((part) => {
    const [name = '', value = ''] = part.split('=');
    const known = Object.hasOwn(PREFERENCES, name) && PREFERENCES[name]?.test(value);
    if (known) given[name] ??= value;
    return part && !known;
  });
  if (given.handling !== 'strict' || unknown.length === 0) return given;
  const details = `Invalid preferences: ${unknown.join(', ')}`;
  const detail = 'Invalid preferences given with handling=strict';
  throw new Problem(400, 'PGRST122', detail, undefined, { details });
}

function applied(preferences: Preferences): Record<string, string> {
  const pairs = Object.entries(preferences).map((pair) => pair.join('='));
  return pairs.length > 0 ? { 'Preference-Applied': pairs.join(', ') } : {};
}

/** `*`, or the versions in a precondition's tags of this pattern; undefined without the header. */
function tagsOf({ headers }: Visit, name: string, pattern = /^"(\d+)"$/): Versions {
  const value = headers[name]?.trim();
  if (value === undefined || value === '*') return value;
  return value.split(',').flatMap((one) => pattern.exec(one.trim())?.[1] ?? []);
}

function tag({ version }: { version: string }): { ETag: string } {
  return { ETag: `"${version}"` };
}

function written(
  { prefer, incoming, key }: Visit,
  { rows, body }: Written,
  { shape }: Shown,
  status = 200,
  own: Record<string, string> = {},
): Answer {
  const headers: Record<string, string> = { ...own, ...applied(prefer) };
  const range = incoming.method === 'PATCH' && rows > 0 ? `0-${rows - 1}` : '*';
  if (!key) headers['Content-Range'] = `${range}/${prefer.count ? rows : '*'}`;
  if (shape === 'nothing') return { status: status === 200 ? 204 : status, headers, body: null };
  return json(shape === 'array' ? `[${body}]` : body, headers, status);
}

/** A page with its Content-Range and a link to the next. Throws 406, or 416 past the end. */
function toPage(visit: Visit, type: string, { offset }: Query, page: Page): Answer {
  const { rows, total, body, more } = page;
  if (type === OBJECT && rows !== 1) throw notOne(rows);
  if (total !== undefined && offset > total) throw pastEnd(offset, total);
  const range = rows > 0 ? `${offset}-${offset + rows - 1}` : '*';
  const headers = {
    'Content-Type': type,
    'Content-Range': `${range}/${total ?? '*'}`,
    ...applied(visit.prefer),
    ...(more && { Link: linkToNext(visit, offset, page) }),
  };
  const status = total !== undefined && rows < total ? 206 : 200;
  const empty = visit.incoming.method === 'HEAD';
  return { status, headers, body: empty ? null : type === OBJECT ? body.subarray(1, -1) : body };
}

/** RFC 8288, relative. Groups have no key to go on from: theirs goes by offset. */
function linkToNext(visit: Visit, offset: number, { next, rows }: Page): string {
  const parameters = parametersOf(visit);
  parameters.delete('offset');
  parameters.set(next ? 'after' : 'offset', next || String(offset + rows));
  return `<${visit.path}?${parameters}>; rel="next"`;
}

/** `Range: 0-9` with `Range-Unit: items` does what limit and offset do. Throws 416. */
function withRange({ headers, query }: Visit): Query {
  const { range = '', 'range-unit': unit } = headers;
  const [, from, to] = /^(?:items=)?(\d{1,9})-(\d{1,9})?$/.exec(range) ?? [];
  if (unit !== 'items' || query.limit !== undefined || query.offset > 0 || !from) return query;
  const offset = Number(from);
  if (to === undefined) return { ...query, offset };
  if (Number(to) < offset) throw pastEnd(offset, 0);
  return { ...query, offset, limit: Number(to) - offset + 1 };
}

// --- OpenAPI --------------------------------------------------------------------

const [TREE, STRING] = ['`(column.operator.value,or(…))`, up to 10 levels', { type: 'string' }];
const PREFERRED = 'return=representation, count=exact, max-affected=1';
const TREES = ['and', 'or', 'not.and', 'not.or'];
const WHOLE = { schema: { type: 'integer', minimum: 0 } };
const FILES = ['swagger-ui.css', 'swagger-ui-bundle.js', 'start.js'];
/** What they are for, the filters aside; those with a capital are headers. */
const PARAMETERS: Record<string, [description: string, more?: object]> = {
  select: ['`column`, `alias:column`, `column::type`, `count()`, `column.avg()`'],
  order: ['`column.desc.nullslast,column`'],
  limit: ['Rows at most', WHOLE],
  offset: ['Rows to leave out', WHOLE],
  after: ['The cursor of `Link: rel="next"`'],
  ...Object.fromEntries(TREES.map((name) => [name, [TREE]])),
  Prefer: ['`return=minimal`: no rows', { example: PREFERRED }],
  columns: ['Names between commas; others in the body are left out'],
  on_conflict: ['The key, for `Prefer: resolution=…-duplicates`'],
  Range: ['`0-9` with `Range-Unit: items`, as limit and offset'],
  'If-Match': ['The ETag that the row must have'],
  'If-None-Match': ['The ETag that is known; `*` where none may be'],
  'Idempotency-Key': ['Sent again with the same body, it creates nothing more'],
};

function refer(to: string) {
  return { $ref: `#/components/${to}` };
}

function document(service: Service): Answer {
  const { config, resource } = service;
  const contents = contentsOf(resource);
  const paths: Record<string, Record<string, object>> = {};
  for (const route of routesOf(service)) {
    const at = route.path.replace(/:(\w+)/g, '{$1}');
    const operation = describeOperation(resource, route, contents);
    paths[at] = { ...paths[at], [route.method.toLowerCase()]: operation };
  }
  const license = { name: 'MIT', identifier: 'MIT' };
  const description = 'HEAD answers wherever GET does; OPTIONS names the service and the methods.';
  const info = { title: resource.path, version: config.APP_VERSION, license, description };
  const content = { 'application/problem+json': { schema: refer('schemas/Problem') } };
  const bearer = { type: 'http', scheme: 'bearer', bearerFormat: 'JWT' };
  const components = {
    ...{ schemas: describeRows(resource), parameters: describeParameters(resource) },
    responses: { Problem: { description: 'What went wrong', content } },
    ...(needsToken(config, true) && { securitySchemes: { bearer } }),
  };
  const tags = Object.entries(TAGS).map(([name, description]) => ({ name, description }));
  const servers = [{ url: config.BASE_PATH || '/' }];
  return json(JSON.stringify({ openapi: '3.1.1', info, servers, tags, paths, components }));
}

function describeOperation({ names }: Resource, route: Route, contents: Record<string, object>) {
  const { method, path, summary, of, takes, body, statuses, answer, secured } = route;
  const example = () => ({
    [JSON_TYPE]: { schema: { type: 'object' }, example: JSON.parse(answer) },
  });
  const content = contents[answer] ?? (answer.startsWith('{') ? example() : { [answer]: {} });
  const responses = statuses.map((status) => {
    const empty = status === '204' || status === '304';
    return [status, { description: STATUS_CODES[status], ...(!empty && { content }) }];
  });
  const filters = [...names.map((name) => `column.${name}`), ...TREES];
  const parameters = [...(path.match(/(?<=:)\w+/) ?? []), ...takes];
  const failures = { '4XX': refer('responses/Problem'), '5XX': refer('responses/Problem') };
  return {
    ...{ summary, tags: [of], security: secured ? [{ bearer: [] }] : [] },
    operationId: [method.toLowerCase(), ...(path.match(/\w+/g) ?? [])].join('_'),
    parameters: parameters
      .flatMap((name) => (name === 'filter' ? filters : name))
      .map((name) => refer(`parameters/${name}`)),
    ...(body && { requestBody: { required: true, content: contents[body] } }),
    responses: { ...Object.fromEntries(responses), ...failures },
  };
}

/** What MEDIA names, with a schema and an example for each type. */
function contentsOf({ key, settable, example }: Resource) {
  const fresh = Object.fromEntries(settable.map((name) => [name, example[name]]));
  const [row, whole, part] = ['Row', 'NewRow', 'Part'].map((name) => refer(`schemas/${name}`));
  const many = (items?: object) => ({ type: 'array', items });
  const either = (schema?: object) => ({ anyOf: [schema, many(schema)] });
  const csv = csvLine(Object.keys(fresh)) + csvLine(Object.values(fresh).map(toText));
  const rows = { schema: many(row), example: [example] };
  const shown: Record<string, object> = {
    ...{ rows, all: rows, row: { schema: row, example } },
    made: { schema: either(row), example: [example] },
    new: { schema: either(whole), examples: { one: { value: fresh }, many: { value: [fresh] } } },
    whole: { schema: whole, example: { [key]: example[key], ...fresh } },
    part: { schema: part, example: fresh },
    parts: { schema: either(part), example: fresh },
  };
  const text: Record<string, object> = {
    [OBJECT]: { schema: row, example },
    [CSV]: { schema: STRING, example: csv },
    [NDJSON]: { schema: STRING },
  };
  const contents = Object.entries(MEDIA).map(([name, types]) => {
    return [name, Object.fromEntries(types.map((type) => [type, text[type] ?? shown[name]]))];
  });
  return Object.fromEntries(contents);
}

/** JSON Schemas of what the validators take, and of what is answered. */
function describeRows({ key, columns, row, part }: Resource) {
  const nullable = Object.entries(columns).map(([name, { schema }]) => [name, schema.nullable()]);
  const Row = z.object({ [key]: z.string(), ...Object.fromEntries(nullable) });
  const [text, maybe] = [z.string(), z.string().nullable()];
  const errors = z.array(z.object({ pointer: text, detail: text })).optional();
  const Problem = z.object({
    ...{ type: text, title: text, status: z.int(), detail: text, code: text, message: text },
    ...{ details: maybe, hint: maybe, errors },
  });
  const schemas = Object.entries({ Row, NewRow: row, Part: part, Problem }).map(([name, type]) => {
    const { $schema, ...schema } = z.toJSONSchema(type, { io: 'input' });
    return [name, schema];
  });
  return Object.fromEntries(schemas);
}

function describeParameters({ key, names, columns, example }: Resource) {
  const filters = names.map((name) => {
    const { type = 'uuid', expects = 'a UUID' } = columns[name] ?? {};
    const operators = [...OPERATORS.keys()].filter((operator) => isFor(type, operator)).join('|');
    const pattern = `^(not\\.)?(${operators})(\\(\\w+\\))?\\.`;
    const schema = { ...STRING, pattern, examples: [`eq.${toText(example[name])}`] };
    return [`column.${name}`, { in: 'query', name, description: `Is ${expects}`, schema }];
  });
  const others = Object.entries(PARAMETERS).map(([name, [description, more]]) => {
    const place = HEADER.test(name) ? 'header' : 'query';
    return [name, { in: place, name, description, schema: STRING, ...more }];
  });
  const inPath = { in: 'path', required: true, schema: STRING };
  const row = { ...inPath, name: 'key', description: key, example: example[key] };
  const file = { ...inPath, name: 'file', schema: { ...STRING, enum: FILES } };
  return { ...Object.fromEntries([...filters, ...others]), key: row, file };
}

const START = "SwaggerUIBundle({ url: 'openapi.json', dom_id: 'main', validatorUrl: null });\n";
const POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; " +
  "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/** Loads nothing from another host. */
function page({ resource }: Service): Answer {
  const headers = { 'Content-Type': 'text/html; charset=utf-8', 'Content-Security-Policy': POLICY };
  const body = `<!doctype html><html lang="en"><meta charset="utf-8">
    <meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
    <title>${resource.path}</title><link rel="stylesheet" href="docs/swagger-ui.css"><main></main>
    <script src="docs/swagger-ui-bundle.js"></script><script src="docs/start.js"></script></html>`;
  return { status: 200, headers, body };
}

async function file(_: Service, { key: name }: Visit): Promise<Answer> {
  if (!FILES.includes(name)) throw nothingHere();
  const path = () => fileURLToPath(import.meta.resolve(`swagger-ui-dist/${name}`));
  const body = name === 'start.js' ? START : await readFile(path(), 'utf8');
  const type = `text/${name.endsWith('css') ? 'css' : 'javascript'}; charset=utf-8`;
  const kept = { 'Cache-Control': 'public, max-age=86400', 'X-Content-Type-Options': 'nosniff' };
  return { status: 200, headers: { 'Content-Type': type, ...kept }, body };
}

// --- Ops ------------------------------------------------------------------------

/** Where the process is in its life; readiness follows it. */
export type Life = { stopping: boolean; prepared: boolean };

/** The table is as declared, the database answers within a second, and the end is not near. */
async function ready(service: Service, visit: Visit): Promise<Answer> {
  const { store, life } = service;
  if (life.stopping || !life.prepared) throw unavailable();
  await within(1000, store.ping(visit.call));
  return show(service, visit);
}

async function measure({ metrics }: Service): Promise<Answer> {
  return { status: 200, headers: metrics.headers, body: await metrics.print() };
}

const BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5];

export type Metrics = ReturnType<typeof createMetrics>;

/** Prometheus metrics of this process; among workers print() sums over all of them. */
export function createMetrics(config: Config, database: Database) {
  const { numbers } = database;
  const register = new prometheus.Registry();
  const registers = [register];
  prometheus.collectDefaultMetrics({ register });
  const gauge = (name: string, help: string, value: () => number) => {
    const collect = () => made.set(value());
    const made: prometheus.Gauge = new prometheus.Gauge({ name, help, registers, collect });
  };
  gauge('db_statements_in_flight', 'Requests that wait for the database.', () => numbers.inFlight);
  gauge('db_statements_waiting', 'Statements without a connection.', () => database.queue.size);
  gauge('db_streams', 'Lists that are streamed now.', () => numbers.streams);
  const { APP_VERSION: version, APP_BRANCH: branch, APP_COMMIT: commit } = config;
  const build = { version, branch, commit };
  const named = { name: 'build_info', help: 'Always 1.', labelNames: Object.keys(build) };
  new prometheus.Gauge({ ...named, registers }).set(build, 1);
  const duration = new prometheus.Histogram({
    ...{ name: 'http_request_duration_seconds', buckets: BUCKETS, registers },
    ...{ help: 'From the head of a request to its answer.' },
    labelNames: ['method', 'route', 'status'],
  });
  const batch = new prometheus.Histogram({
    ...{ name: 'db_batch_size', help: 'Requests that one statement answered.', registers },
    ...{ labelNames: ['work'], buckets: [1, 2, 4, 8, 16, 32, 64, 128] },
  });
  database.observe = (work, requests) => batch.observe({ work }, requests);
  if (cluster.isWorker) {
    new prometheus.AggregatorRegistry(); // answers what the primary's clusterMetrics() asks
    prometheus.AggregatorRegistry.setRegistries(register);
  }
  return {
    headers: { 'Content-Type': register.contentType },
    print: () => (cluster.isWorker ? askPrimary() : register.metrics()),
    observe: (method: string, route: string, status: number, ms: number) =>
      duration.observe({ method, route, status }, ms / 1000),
  };
}

/** The metrics of all workers in one text; null where a worker hangs, or has died. */
async function askPrimary(): Promise<string> {
  const messages = on(process, 'message');
  process.send?.({ ask: 'metrics' });
  for await (const [{ metrics }] of messages) {
    if (metrics) return metrics;
    if (metrics === null) break;
  }
  throw unavailable('A worker does not answer.');
}

// --- Start ----------------------------------------------------------------------

/** Runs the service until a signal ends it. Rejects with StartError where it cannot work. */
export async function main(usual: Resource, args: string[], environment: NodeJS.ProcessEnv) {
  const config = readConfig(environment);
  const command = args.indexOf('token');
  if (command >= 0) return printToken(config, args.slice(command + 1));
  const [file = config.RESOURCE] = args;
  const resource = file ? await importResource(file) : usual;
  const log = openLog(config.LOG_LEVEL);
  process.on('SIGUSR1', () => {}); // Node would open its debugger
  setFlagsFromString('--max-semi-space-size=2'); // or the garbage of a streamed list adds 60 MB
  const ended = untilSignal();
  const given = config.DATABASE_URL || config.PGHOST;
  const embedded = given ? undefined : await embed(config, resource, log);
  const start = cluster.isPrimary && config.WEB_CONCURRENCY > 1 ? supervise : serve;
  const service = await start(config, resource, log);
  if (embedded) process.stderr.write(embedded.greet(service.url));
  try {
    await Promise.race([ended, service.failed]);
  } finally {
    log.info('stopping');
    await service.stop();
    await embedded?.stop();
  }
}

/** The default export of a file, which is named as seen from the working directory. */
async function importResource(file: string): Promise<Resource> {
  const { default: found } = await import(pathToFileURL(file).href).catch(({ message }) => {
    throw new StartError(`RESOURCE ${file} cannot be imported: ${message}`);
  });
  if (found?.row instanceof z.ZodType) return found;
  throw new StartError(`RESOURCE ${file} has no default export that resource() made`);
}

/** Resolves at the first signal; the second ends the process, but npm makes two of one Ctrl-C. */
function untilSignal(): Promise<void> {
  return new Promise((resolve) => {
    let asked = Number.POSITIVE_INFINITY;
    const end = (signal: string) => {
      const window = signal === 'SIGINT' ? 500 : 0;
      if (performance.now() > asked + window) process.exit(1);
      asked = Math.min(asked, performance.now());
      resolve();
    };
    const hear = cluster.isWorker ? () => {} : end; // a worker hears its primary alone
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP']) process.on(signal, hear);
    process.on('message', ({ ask }: { ask?: string }) => ask === 'stop' && resolve());
  });
}

type Running = { url: string; failed: Promise<never>; stop: () => Promise<void> };

/** Serves in this process. */
async function serve(config: Config, resource: Resource, log: Logger): Promise<Running> {
  const life: Life = { stopping: false, prepared: false };
  const database = new Database(config, log);
  const store = new Store(resource, database);
  const metrics = createMetrics(config, database);
  const authorize = createAuth(config, log, resource);
  const app = createApp({ config, resource, store, authorize, metrics, log, life });
  const server = createHttpServer(app);
  const sockets = new Set<Socket>();
  server.on('connection', (socket: Socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
  });
  await Promise.race([tryTable(resource, database, life), sleep(500)]); // ready when it listens
  await listen(server, config);
  const url = urlOf(server.address() as AddressInfo);
  log.info({ url }, 'listening');
  const stop = async () => {
    life.stopping = true;
    await sleep(config.SHUTDOWN_GRACE * 1000);
    const idle = setInterval(() => closeIdle(server, sockets), 50);
    const closed = within(DEADLINE + 1000, once(server.close(), 'close'));
    await closed.catch(() => server.closeAllConnections());
    clearInterval(idle);
    await database.end();
  };
  return { url, failed: prepare(resource, database, life), stop };
}

/** Also those that have sent nothing yet: Node takes them for clients in the middle of a request. */
function closeIdle(server: Server, sockets: Set<Socket>): void {
  server.closeIdleConnections();
  for (const socket of sockets) if (socket.bytesRead === 0) socket.destroy();
}

/** Keeps WEB_CONCURRENCY workers on the port, each a process of its own; a dead one is replaced. */
async function supervise(config: Config, _: Resource, log: Logger): Promise<Running> {
  const summed = new prometheus.AggregatorRegistry();
  const { DATABASE_URL } = config;
  cluster.schedulingPolicy = cluster.SCHED_NONE; // Node loses what it hands to a worker that dies
  const fork = () => cluster.fork(DATABASE_URL ? { DATABASE_URL } : {});
  let stopping = false;
  const failed = new Promise<never>((_, reject) => {
    cluster.on('exit', ({ process: { pid } }, code) => {
      if (code === 2) reject(new StartError(`worker ${pid} cannot start`));
      if (stopping || code === 2) return;
      log.error({ worker: pid, code }, 'worker died');
      fork();
    });
  });
  cluster.on('message', async (worker, { ask }: { ask?: string }) => {
    if (ask !== 'metrics') return;
    const metrics = await summed.clusterMetrics().catch(() => null);
    worker.send({ metrics }, () => {});
  });
  for (let count = 0; count < config.WEB_CONCURRENCY; count += 1) fork();
  const listening = once(cluster, 'listening').then(([, address]) => urlOf(address));
  const stop = () => {
    stopping = true;
    return stopWorkers(DEADLINE + 1500 + config.SHUTDOWN_GRACE * 1000);
  };
  return { url: await Promise.race([listening, failed]), failed, stop };
}

/** Asks them to end until they have, since one that starts does not hear yet; ends them after `ms`. */
async function stopWorkers(ms: number): Promise<void> {
  const end = performance.now() + ms;
  for (;;) {
    const living = Object.values(cluster.workers ?? {}).filter((one) => one?.isDead() === false);
    if (living.length === 0) return;
    for (const worker of living) {
      if (performance.now() > end) worker?.process.kill('SIGKILL');
      else worker?.send({ ask: 'stop' }, () => {});
    }
    await sleep(50);
  }
}

/** Tries until the table is there; rejects where it cannot be served. */
async function prepare(resource: Resource, database: Database, life: Life): Promise<never> {
  while (!life.prepared && !life.stopping) {
    await tryTable(resource, database, life);
    if (!life.prepared) await sleep(100);
  }
  return new Promise(() => {});
}

async function tryTable(resource: Resource, database: Database, life: Life): Promise<void> {
  try {
    await ensureTable(resource, database);
    life.prepared = true;
  } catch (error) {
    if (error instanceof StartError || toProblem(error).status < 503) throw error;
  }
}

function urlOf({ address, port }: { address: string; port: number }): string {
  return `http://${address.includes(':') ? `[${address}]` : address}:${port}`;
}

/** Node's errors of requests that never reach the app; it would answer them without a body. */
const CLIENT_ERRORS: Record<string, [number, string]> = {
  HPE_INVALID_METHOD: [405, 'There is no such method.'],
  HPE_HEADER_OVERFLOW: [431, 'The head of the request is too large.'],
  ERR_HTTP_REQUEST_TIMEOUT: [408, 'The request did not arrive in time.'],
};

const LIMITS = {
  ...{ headersTimeout: 10_000, requestTimeout: 60_000, keepAliveTimeout: 75_000 },
  ...{ connectionsCheckingInterval: 1000, maxHeaderSize: 2 * MAX_HEAD, requireHostHeader: false },
};

function createHttpServer(app: App): Server {
  const errorHandler = () => {
    const { status, headers, body } = refusal(400, 'The Host or the target is not valid.');
    return new Response(String(body), { status, headers });
  };
  const server = createServer(LIMITS, getRequestListener(app.fetch, { errorHandler }));
  server.timeout = 30_000; // for a connection on which nothing moves, as a list that nobody reads on
  server.on('connect', (_, socket: Socket) => refuse(socket, 405, 'There is no such method.'));
  server.on('checkExpectation', ({ socket, method }) =>
    refuse(socket, 417, 'Only 100-continue is known.', method === 'HEAD'),
  );
  server.on('clientError', ({ code = '' }: NodeJS.ErrnoException, socket: Socket) => {
    refuse(socket, ...(CLIENT_ERRORS[code] ?? [400, 'This is not valid HTTP.']));
  });
  return server;
}

function refusal(status: number, detail: string): Answer {
  const Allow = METHODS.join(', ');
  const told = {
    'X-Request-Id': randomUUID(),
    'Server-Timing': 'total;dur=0',
    Connection: 'close',
  };
  const headers = status === 405 ? { ...told, Allow } : told;
  return problemAnswer(new Problem(status, 'PGRST100', detail, undefined, { headers }));
}

function refuse(socket: Socket, status: number, detail: string, isHead = false): void {
  if (socket.writableEnded) return; // heard again for what comes behind the fault
  if (!socket.writable) return void socket.destroy();
  const { headers, body } = refusal(status, detail);
  headers['Content-Length'] = String(Buffer.byteLength(String(body)));
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n${lines.join('')}\r\n${isHead ? '' : body}`,
  );
  socket.resume(); // a reset for what was not read would take the answer along
  setTimeout(() => socket.destroy(), 500).unref();
}

async function listen(server: Server, { PORT, HOST }: Config): Promise<void> {
  server.listen(PORT, HOST);
  await once(server, 'listening').catch(({ code }: NodeJS.ErrnoException) => {
    throw new StartError(`PORT ${PORT} on HOST ${HOST} cannot be had (${code}); set another PORT`);
  });
}

/** Starts an embedded PostgreSQL for want of a DATABASE_URL; a new one gets the sample. */
async function embed(config: Config, resource: Resource, log: Logger) {
  const { startEmbedded, readSample, welcome } = await import('./test/embedded.ts').catch(() => {
    throw new StartError('DATABASE_URL is required here');
  });
  const embedded = await startEmbedded(config.DATA_DIR).catch((error) => {
    throw error.name === 'EmbeddedError' ? new StartError(error.message) : error;
  });
  config.DATABASE_URL = embedded.url;
  const database = new Database({ ...config, POOL_SIZE: 1 }, log);
  const store = new Store(resource, database);
  const call: Call = { sub: '', ms: 0, repeated: false };
  await ensureTable(resource, database);
  if (embedded.fresh && resource.sample)
    await store.createMany(await readSample(resource), {}, call);
  const wanted = { limit: 1, body: true, count: false };
  const { body } = await store.page(parseQuery(resource, []), wanted, call);
  await database.end();
  const { key, path } = resource;
  const [first = {}] = JSON.parse(String(body));
  const greet = (url: string) => welcome(url, path, embedded.home, key, first);
  return { stop: embedded.stop, greet };
}

function openLog(level: string): Logger {
  const formatters = { level: (name: string) => ({ level: name }) };
  return pino({ level, base: { pid: process.pid }, formatters });
}

function fail(error: unknown): never {
  const known = error instanceof StartError;
  openLog('info').fatal(known ? {} : { error }, known ? error.message : 'ended by an error');
  process.exit(known ? 2 : 1);
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  process.on('uncaughtException', fail);
  main(passengers, process.argv.slice(2), process.env).then(() => process.exit(0), fail);
}
