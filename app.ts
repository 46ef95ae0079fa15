/**
 * passengers: a CRUD API over one PostgreSQL table, whole in this file.
 *
 *     npm install && npm start                  on an embedded PostgreSQL
 *     DATABASE_URL=postgres://... node app.ts   on yours, with Node >= 22.18
 *     node app.ts token --sub me --expires 1h   prints a token signed by JWT_SECRET
 *
 * Read it from top to bottom; `grep '^// ---' app.ts` prints the table of contents. To serve
 * something else change the declaration in Resource: nothing below it knows the columns.
 */
import { isUtf8 } from 'node:buffer';
import cluster from 'node:cluster';
import { randomUUID } from 'node:crypto';
import { EventEmitter, once } from 'node:events';
import { readFileSync, realpathSync } from 'node:fs';
import {
  createServer,
  type IncomingMessage,
  type Server,
  type ServerResponse,
  STATUS_CODES,
} from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { pipeline, Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { getRequestListener } from '@hono/node-server';
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response';
import { type Context, Hono } from 'hono';
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
  DATABASE_URL: z.url({ protocol: /^postgres(ql)?$/, error: 'expected postgres://…' }).optional(),
  PGHOST: z.string().optional(),
  DATA_DIR: z.string().default('.data'),
  POOL_SIZE: whole(1, 100).default(8),
  WEB_CONCURRENCY: whole(1, 64).default(1),
  JWT_SECRET: words().refine(areLong, 'has a secret of less than 32 bytes').optional(),
  JWKS_URL: z.url({ protocol: /^https?$/, error: 'expected https://…' }).optional(),
  JWT_ISSUER: z.string().optional(),
  JWT_AUDIENCE: z.string().optional(),
  JWT_WRITE_SCOPE: z.string().optional(),
  AUTH: z.enum(['none', 'write', 'all']).optional(),
  CORS_ORIGIN: words().default([]),
  MAX_ROWS: whole(1, 100_000).default(1000),
  BODY_LIMIT: whole(1, 2 ** 30).default(2 ** 20),
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

/** Checks the environment; an empty variable counts as unset. Throws StartError. */
export function readConfig(environment: Record<string, string | undefined>): Config {
  const given = Object.entries(environment).filter(([, value]) => value !== '');
  const { data, error } = Config.safeParse(Object.fromEntries(given));
  const faults = error?.issues.map(({ path, message }) => `${path.join()} ${message}`) ?? [];
  if (!data) throw new StartError(faults.join('; '));
  const { JWT_SECRET, JWKS_URL, AUTH, DATABASE_URL, PGHOST } = data;
  const [keyed, production] = [JWT_SECRET || JWKS_URL, data.NODE_ENV === 'production'];
  if (environment.JWT_SECRET === '') faults.push('JWT_SECRET is empty');
  if (JWT_SECRET && JWKS_URL) faults.push('JWT_SECRET and JWKS_URL exclude each other');
  if (!keyed && AUTH && AUTH !== 'none') faults.push(`AUTH=${AUTH} needs JWT_SECRET or JWKS_URL`);
  if (production && !keyed && !AUTH) faults.push('JWT_SECRET, JWKS_URL or AUTH=none is required');
  if (production && !DATABASE_URL && !PGHOST) faults.push('DATABASE_URL is required in production');
  if (faults.length > 0) throw new StartError(faults.join('; '));
  return data;
}

function whole(least: number, most: number) {
  const error = `expected a whole number from ${least} to ${most}`;
  const number = z.number().min(least, error).max(most, error);
  return z
    .string()
    .regex(/^\d{1,15}$/, error)
    .transform(Number)
    .pipe(number);
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
// Another resource: change path, table, key, columns and sample; drop `legacy`.
// The DDL, the validator, the filters, the CSV header and the OpenAPI document follow.
export const passengers = resource({
  path: 'passengers',
  table: 'titanic',
  key: 'uuid',
  columns: {
    survived: boolean({ csv: 'Survived' }),
    passengerClass: integer(1, 3, { csv: 'Pclass' }),
    name: text(150, { csv: 'Name' }),
    sex: oneOf(['male', 'female'], { csv: 'Sex' }),
    age: number(0, 150, { csv: 'Age' }),
    siblingsOrSpousesAboard: integer(0, 20, {
      csv: 'Siblings/Spouses Aboard, Siblings_Spouses_Aboard, SibSp',
    }),
    parentsOrChildrenAboard: integer(0, 20, {
      csv: 'Parents/Children Aboard, Parents_Children_Aboard, Parch',
    }),
    fare: number(0, Number.MAX_VALUE, { csv: 'Fare' }),
  },
  sample: 'sample.csv',
  legacy: {
    list: '/passengerlist',
    create: '/postpassenger',
    read: '/getpassenger',
    replace: '/putpassenger',
    remove: '/deletepassenger',
  },
});

/** `csv`: its other names in a CSV header. `default` or `nullable`: a body may leave it out. */
type Options = { csv?: string; default?: unknown; nullable?: boolean };

/**
 * One column. `type` is written as PostgreSQL's format_type() prints it; `check` is SQL over the
 * quoted name and says what `schema` says; `expects` completes «must be …».
 */
export type Column = Options & {
  type: string;
  expects: string;
  schema: z.ZodType;
  check: (name: string) => string;
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

/** A declaration, its column names (key first), and its validators: of a whole row, of a part. */
export type Resource = Declaration & { names: string[]; row: z.ZodType<Row>; part: z.ZodType<Row> };

/** Completes a declaration. The key is a uuid column; where a body has none, the service makes it. */
export function resource(declaration: Declaration): Resource {
  const { key, columns } = declaration;
  const uuid = z.string(mustBe('a UUID')).transform(toUuid).refine(Boolean, mustBe('a UUID'));
  const row: Record<string, z.ZodType> = { [key]: uuid.optional() };
  const part = { ...row };
  for (const [name, column] of Object.entries(columns)) {
    const schema = column.nullable ? column.schema.nullable() : column.schema;
    const absent = column.default ?? (column.nullable ? null : undefined);
    row[name] = absent === undefined ? schema : schema.default(absent);
    part[name] = schema.optional();
  }
  const strict = (shape: typeof row) => z.strictObject(shape, 'must be an object');
  return { ...declaration, names: Object.keys(row), row: strict(row), part: strict(part) };
}

export function boolean(options: Options = {}): Column {
  const expects = 'true or false';
  const schema = z.boolean(mustBe(expects));
  return { ...options, type: 'boolean', expects, schema, check: () => 'true' };
}

/** A 32-bit integer within bounds. */
export function integer(least: number, most: number, options: Options = {}): Column {
  const expects = `a whole number from ${least} to ${most}`;
  const schema = z.int(mustBe(expects)).min(least, mustBe(expects)).max(most, mustBe(expects));
  const check = (name: string) => `${name} between ${least} and ${most}`;
  return { ...options, type: 'integer', expects, schema, check };
}

/** A double within bounds; NaN and the infinities are outside of any. */
export function number(least: number, most: number, options: Options = {}): Column {
  const expects = `a number from ${least}${most < Number.MAX_VALUE ? ` to ${most}` : ''}`;
  const schema = z.number(mustBe(expects)).min(least, mustBe(expects)).max(most, mustBe(expects));
  const check = (name: string) => `${name} between ${least} and ${most}`;
  return { ...options, type: 'double precision', expects, schema, check };
}

/** Text of 1 to `most` code points; blanks around it are removed. */
export function text(most: number, options: Options = {}): Column {
  const expects = `text of 1 to ${most} characters besides blanks around it`;
  const fits = (value: string) => isText(value) && [...value].length <= most;
  const schema = z.string(mustBe(expects)).trim().refine(fits, mustBe(expects));
  const check = (name: string) => `${name} <> '' and ${name} = btrim(${name}, E'${BLANKS}')`;
  return { ...options, type: `character varying(${most})`, expects, schema, check };
}

/** One of the given words. */
export function oneOf(values: string[], options: Options = {}): Column {
  const expects = values.join(' or ');
  const type = `character varying(${Math.max(...values.map((value) => value.length))})`;
  const check = (name: string) => `${name} in (${values.map(literal).join(', ')})`;
  return { ...options, type, expects, schema: z.enum(values, mustBe(expects)), check };
}

function mustBe(expects: string) {
  const error = ({ input }: { input?: unknown }) =>
    input === undefined ? `is missing; it must be ${expects}` : `must be ${expects}`;
  return { error };
}

/** PostgreSQL's text has no NUL and no half of a surrogate pair. */
function isText(value: string): boolean {
  return value !== '' && !value.includes('\0') && value.isWellFormed();
}

/** What String.prototype.trim() removes, for PostgreSQL's E''. */
const BLANKS =
  ' \\t\\n\\u000b\\f\\r\\u00a0\\u1680\\u2000\\u2001\\u2002\\u2003\\u2004\\u2005\\u2006\\u2007' +
  '\\u2008\\u2009\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000\\ufeff';

/** The canonical form of any UUID that PostgreSQL accepts (its manual, 8.12); undefined of others. */
export function toUuid(value: string): string | undefined {
  const bare = /^\{.*\}$/.test(value) ? value.slice(1, -1) : value;
  if (!/^(?:[0-9a-f]{4}-?){7}[0-9a-f]{4}$/i.test(bare)) return undefined;
  const hex = bare.replaceAll('-', '').toLowerCase();
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
}

function quoted(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

function literal(value: unknown): string {
  return `'${String(value).replaceAll("'", "''")}'`;
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
    this.status = status;
    this.code = code;
    this.hint = hint ?? null;
    this.extras = extras;
  }
}

/** What a handler answers, before the headers that every answer carries. */
type Answer = { status: number; headers: Record<string, string>; body: string | Readable | null };

function problemAnswer({ status, code, message, hint, extras }: Problem): Answer {
  const { details = null, errors, headers } = extras;
  const standard = { type: 'about:blank', title: STATUS_CODES[status], status, detail: message };
  const body = JSON.stringify({ ...standard, code, message, details, hint, errors });
  return { status, headers: { 'Content-Type': 'application/problem+json', ...headers }, body };
}

/** SQLSTATE to status (PostgreSQL's manual, appendix A); of others, and of 500, nothing is told. */
const SQLSTATES: [RegExp, number][] = [
  [/^(23505|23503)$/, 409],
  [/^(23502|23514|22...|42704|42803|42804|42846|42883)$/, 400],
  [/^42501$/, 403],
  [/^57014$/, 504],
  [/^(40001|40P01|55P03|25006|53...|57P0.|08...|28...|3D000)$/, 503],
];

/** Codes of the driver and of Node for a connection that was lost, or not made. */
const LOST = /^(CONNECTION_CLOSED|CONNECTION_DESTROYED|ECONNRESET|EPIPE)$/;
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
  if (status && error instanceof Error) return new Problem(status, code, error.message);
  return new Problem(500, 'XX000', 'Something went wrong here; the log tells, by the request id.');
}

function unavailable(): Problem {
  const headers = { 'Retry-After': '1' };
  return new Problem(503, '08006', 'The database is not available.', 'Try again.', { headers });
}

function tooSlow(): Problem {
  return new Problem(504, '57014', 'The database took too long and was told to stop.');
}

/** zod's issues, one fault each. */
function toFaults(error: z.ZodError, base: string): Fault[] {
  return error.issues.flatMap((issue) => {
    const at = base + issue.path.map((part) => pointer(String(part))).join('');
    if (issue.code !== 'unrecognized_keys') return [{ pointer: at, detail: issue.message }];
    return issue.keys.map((name) => ({ pointer: at + pointer(name), detail: 'is not a column' }));
  });
}

/** RFC 6901. */
function pointer(name: string): string {
  return `/${name.replaceAll('~', '~0').replaceAll('/', '~1')}`;
}

// --- Database -------------------------------------------------------------------

type Sql = postgres.Sql;
type Fragment = postgres.PendingQuery<postgres.Row[]>;
/** One line of a result: each value as the text that PostgreSQL printed, or null. */
type Result = Record<string, string | null>;
type Statement = (sql: Sql) => postgres.PendingQuery<Result[]>;
/** What postgres 3.4.9 keeps with a query: `state` once it is sent, `active` while it is run. */
type Pending = ReturnType<Statement> & { state?: { pid: number } | null; active?: boolean };

/** What may be done with a statement of unknown outcome: a keyed insert may be sent again. */
type Kind = 'read' | 'keyed' | 'write';

/** One request: who waits for its statements, as whom, the ms they took, whether one was repeated. */
export type Call = { sub: string; ms: number; repeated: boolean; outgoing?: ServerResponse };

/** One connection; it gets statements only while it is open, so that none waits for it to be made. */
type Client = { sql: Sql; open: boolean; inFlight: Set<Pending>; retire: () => void };

const IN_FLIGHT_PER_CLIENT = 64;
const STREAMS = 4;
const STREAM_ROWS = 500;

export type Database = ReturnType<typeof openDatabase>;

/**
 * POOL_SIZE connections, made at once and made again for ever, until end().
 *
 * Each is a client of postgres 3.4.9 of its own, thrown away when its connection closes: the queue
 * of one with many connections slows down for good under load, and one that reconnects hands the
 * error of its old connection to the first statement on the new one.
 */
export function openDatabase(config: Config, log: Logger) {
  const events = new EventEmitter().setMaxListeners(0);
  const numbers = { inFlight: 0, waiting: 0, streams: 0 };
  let state: 'starting' | 'up' | 'down' = 'starting';
  let ending = false;
  const clients = Array.from({ length: config.POOL_SIZE }, newClient);

  function newClient(): Client {
    const client = { sql: connect(config), open: false, inFlight: new Set<Pending>(), retire() {} };
    void keepOpen(client);
    return client;
  }

  async function keepOpen(client: Client): Promise<void> {
    for (let pause = 0; !ending; pause = Math.min(pause * 2 + 25, 500)) {
      await sleep(pause);
      const closed = new Promise<void>((resolve) => {
        client.retire = resolve;
        client.sql = connect(config, () => release(client));
      });
      try {
        await within(CONNECT_TIMEOUT + 500, client.sql`select 1`);
        client.open = true;
        pause = 0;
        change('up');
        await closed;
      } catch (error) {
        if (!clients.some(({ open }) => open)) change('down', codeOf(error));
      }
      client.open = false;
      void client.sql.end({ timeout: 0 });
    }
  }

  /** Its connection closed: takes back what the driver would send over a new one of its making. */
  function release(client: Client): void {
    client.open = false;
    for (const query of client.inFlight) if (!query.state) query.cancel();
    client.retire();
  }

  function change(to: 'up' | 'down', code?: string): void {
    if (state !== to) log[to === 'up' ? 'info' : 'warn']({ code }, `database ${to}`);
    state = to;
    events.emit('change');
  }

  function leastBusy(except?: Client): Client | undefined {
    let best: Client | undefined;
    for (const client of clients) {
      if (!client.open || client === except) continue;
      if (!best || client.inFlight.size < best.inFlight.size) best = client;
    }
    return best;
  }

  async function firstOpen(): Promise<Client> {
    numbers.waiting += 1;
    if (state !== 'down') await within(CONNECT_TIMEOUT, once(events, 'change')).catch(() => {});
    numbers.waiting -= 1;
    const client = leastBusy();
    if (!client) throw unavailable();
    return client;
  }

  /**
   * Runs one statement, and again where it is known not to have run, or may run twice.
   * Throws Problem 503 or 504 within DEADLINE, and what PostgreSQL says of the statement.
   */
  async function run(kind: Kind, call: Call, statement: Statement): Promise<Result[]> {
    if (numbers.inFlight >= config.POOL_SIZE * IN_FLIGHT_PER_CLIENT) throw unavailable();
    const started = performance.now();
    const elapsed = () => performance.now() - started;
    numbers.inFlight += 1;
    try {
      for (let tries = 3; ; tries -= 1) {
        const client = leastBusy() ?? (await firstOpen());
        const query: Pending = statement(client.sql);
        try {
          return await execute(client, query, DEADLINE - elapsed(), kind, call);
        } catch (error) {
          const late = elapsed() > LOCK_TIMEOUT;
          if (tries === 1 || late || !mayRepeat(kind, query, error)) throw error;
          call.repeated ||= LOST.test(codeOf(error));
        }
      }
    } finally {
      numbers.inFlight -= 1;
      call.ms += elapsed();
    }
  }

  /** Settles by the deadline; a reader that goes away takes its statement along. */
  function execute(client: Client, query: Pending, ms: number, kind: Kind, { outgoing }: Call) {
    return new Promise<Result[]>((resolve, reject) => {
      const expire = () => {
        reject(query.state ? tooSlow() : unavailable());
        if (query.state) client.retire();
        else query.cancel();
      };
      const leave = () => {
        reject(new Problem(499, '57014', 'The client went away.'));
        drop(client, query);
      };
      const timer = setTimeout(expire, ms);
      if (kind === 'read') outgoing?.once('close', leave);
      client.inFlight.add(query);
      query.then(resolve, reject).finally(() => {
        clearTimeout(timer);
        outgoing?.off('close', leave);
        client.inFlight.delete(query);
      });
    });
  }

  /** Stops what nobody waits for; where it stands behind others in the pipeline, it is left to run. */
  function drop(client: Client, query: Pending): void {
    const other = leastBusy(client);
    if (!query.state) query.cancel();
    else if (query.active && other) {
      other.sql`select pg_cancel_backend(${query.state.pid})`.catch(() => {});
    }
  }

  /** Lines in batches at constant memory, over a connection of their own. */
  async function* stream(statement: Statement): AsyncGenerator<Result[]> {
    if (numbers.streams >= STREAMS || state === 'down') throw unavailable();
    numbers.streams += 1;
    const sql = connect(config);
    try {
      yield* statement(sql).cursor(STREAM_ROWS);
    } finally {
      numbers.streams -= 1;
      void sql.end({ timeout: 0 });
    }
  }

  async function end(): Promise<void> {
    ending = true;
    await Promise.all(clients.map(({ sql }) => sql.end({ timeout: 1 })));
  }

  return { template: connect(config), run, stream, end, numbers };
}

/**
 * It was not sent, or the server undid it (also by a cancel that was meant for a neighbour), or it
 * was lost; a keyed insert that met its own key finds the row next time.
 */
function mayRepeat(kind: Kind, query: Pending, error: unknown): boolean {
  if (error instanceof Problem) return false;
  const code = codeOf(error);
  if (!query.state || /^(57P0.|57014|40001|40P01)$/.test(code)) return true;
  return (kind !== 'write' && LOST.test(code)) || (kind === 'keyed' && code === '23505');
}

/** Types whose values postgres 3.4.9 would turn: 'true' into false, JSON into JSON of JSON, … */
const TURNED = [16, 17, 20, 21, 23, 26, 114, 700, 701, 1082, 1114, 1184, 3802];

/** Text goes in and comes out as it is: PostgreSQL judges it, not the driver. */
function connect({ DATABASE_URL, DB_PREPARE }: Config, onclose = () => {}): Sql {
  const limits = { lock_timeout: LOCK_TIMEOUT, statement_timeout: STATEMENT_TIMEOUT };
  const pooled = DB_PREPARE === 'false'; // a pooler refuses the limits: the database has to set them
  const options = {
    max: 1,
    prepare: !pooled,
    fetch_types: false,
    connect_timeout: CONNECT_TIMEOUT / 1000,
    max_lifetime: null,
    connection: pooled ? {} : { ...limits, client_connection_check_interval: 1000 },
    types: { text: { to: 25, from: TURNED, serialize: String, parse: (value: string) => value } },
    onnotice: () => {},
    onclose,
  };
  return postgres(DATABASE_URL ?? '', options) as unknown as Sql;
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
export async function ensureTable(resource: Resource, { run }: Database): Promise<void> {
  const call: Call = { sub: '', ms: 0, repeated: false };
  for (const repaired of [false, true]) {
    const found = await run('read', call, (sql) => describeTable(sql, resource.table));
    const faults = compareTable(resource, found);
    const names = `table ${resource.table}: ${faults.map(({ fault }) => fault).join('; ')}`;
    const repairs = faults.flatMap(({ repair }) => repair ?? []);
    if (faults.length === 0) return;
    if (repaired || repairs.length < faults.length) throw new StartError(names);
    const lock = `select pg_advisory_xact_lock(hashtext(${literal(resource.table)}))`;
    const batch = [lock, ...repairs].join('; '); // one simple query is one transaction
    await run('write', call, (sql) => sql.unsafe(batch)).catch((error) => {
      throw codeOf(error) === '42501' ? new StartError(`${names}; the role may not add it`) : error;
    });
  }
}

function describeTable(sql: Sql, table: string): ReturnType<Statement> {
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
    const optional = column?.nullable || column?.default !== undefined;
    const add = `alter table ${quoted(table)} add column if not exists `;
    if (is && is !== type) faults.push({ fault: `${name} is ${is}, declared ${type}` });
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

function define(name: string, { type, nullable, check, default: initial }: Column): string {
  const preset = initial === undefined ? '' : ` default ${literal(initial)}`;
  const test = check(quoted(name));
  return `${quoted(name)} ${type}${nullable ? '' : ' not null'}${preset} check (${test})`;
}

// --- Query ----------------------------------------------------------------------

/** A test of a column, or a tree of tests. PostgreSQL reads `value` as the column's type. */
export type Filter =
  | { column: string; operator: string; modifier: string | undefined; value: string }
  | { tree: 'and' | 'or'; branches: Filter[] }
  | { not: Filter };

export type Order = { column: string; descending: boolean; nullsFirst: boolean };

/** A member of the answer: `column`, or all of the row for count(); `cast` is applied last. */
export type Member = {
  name: string;
  column?: string | undefined;
  inner?: string | undefined;
  aggregate?: string | undefined;
  cast?: string | undefined;
};

/** A list as it was asked for. `after`: the values of the row before it, in the terms of `order`. */
export type Query = {
  select?: Member[];
  filters: Filter[];
  order: Order[];
  limit?: number;
  offset: number;
  after?: (string | null)[];
};

/** PostgREST's operators (its manual, «Operators») in SQL. */
const OPERATORS = new Map(
  Object.entries({
    ...{
      eq: '=',
      neq: '<>',
      gt: '>',
      gte: '>=',
      lt: '<',
      lte: '<=',
      isdistinct: 'is distinct from',
    },
    ...{ like: 'like', ilike: 'ilike', match: '~', imatch: '~*', in: '= any', is: 'is' },
    ...{ fts: 'to_tsquery', plfts: 'plainto_tsquery', phfts: 'phraseto_tsquery' },
    wfts: 'websearch_to_tsquery',
  }),
);
const SEARCHING = /fts$/; // may have a (config)
const QUANTIFIED = /^(n?eq|[gl]te?|i?like|i?match)$/; // may have (any) or (all)
const TEXTUAL = /fts$|like$|match$/; // for text columns
const IS = /^(null|not_null|true|false|unknown)$/i;
const CASTS =
  /^(text|varchar|bool(ean)?|int(eger|2|4|8)?|(small|big)int|numeric|decimal|real|float[48]?|double precision|uuid|jsonb?|date|timestamp(tz)?)$/;
const DEEPEST = 10;
const MOST_MEMBERS = 50; // json_build_object() takes 100 arguments

const NAME = String.raw`("(?:[^"\\]|\\.)*"|(?:(?!->)[^\s".,:()*])+)`;
const CAST = String.raw`(?:::([\w ]+))?`;
const MEMBER = `(?:${NAME}:(?!:))?(?:(count)\\(\\)|${NAME}${CAST}(?:\\.(count|sum|avg|min|max)\\(\\))?)${CAST}`;
const PATTERNS = {
  member: new RegExp(MEMBER, 'ys'),
  order: new RegExp(`${NAME}(?:\\.(asc|desc))?(?:\\.nulls(first|last))?(?![^,])`, 'ys'),
  branch: new RegExp(`(not\\.)?(and|or)\\(|${NAME}\\.`, 'ys'),
  condition: /(not\.)?([a-z]+)(?:\((\w+)\))?\./y,
  item: /"((?:[^"\\]|\\.)*)"(?=[,)])|(\{[^{}]*\}(?=[,)])|[^,)]*)/sy,
  listed: /"((?:[^"\\]|\\.)*)"(?=[,)])|([^,)]*)/sy,
};

/** Where a parser stands in the text of one parameter. */
type Reader = { resource: Resource; parameter: string; text: string; at: number };

/** Moves over what the sticky pattern matches here, or fails with what was expected here. */
function take(reader: Reader, pattern: RegExp, what: string): RegExpExecArray {
  pattern.lastIndex = reader.at;
  const found = pattern.exec(reader.text);
  if (!found) throw expected(reader, what);
  reader.at += found[0].length;
  return found;
}

function isNext(reader: Reader, text: string): boolean {
  const found = reader.text.startsWith(text, reader.at);
  if (found) reader.at += text.length;
  return found;
}

/** PGRST100, PostgREST's error for what its grammar does not know. */
function expected({ parameter, text, at }: Reader, what: string): Problem {
  const found = at < text.length ? JSON.stringify(text.slice(at, at + 12)) : 'end';
  const details = `unexpected ${found} at position ${at + 1} of ${text.slice(0, 200)}`;
  const detail = `The parameter ${parameter} could not be read.`;
  return new Problem(400, 'PGRST100', detail, `expected ${what}`, { details });
}

/** Items between commas, until something else follows. */
function takeList<T>(reader: Reader, item: () => T): T[] {
  const items = [item()];
  while (isNext(reader, ',')) items.push(item());
  return items;
}

/** Parses the parameters of a list. Throws Problem 400 that tells what was expected where. */
export function parseQuery(resource: Resource, parameters: Iterable<[string, string]>): Query {
  const query: Query = { filters: [], order: [], offset: 0 };
  const seen = new Set<string>();
  for (const [key, text] of parameters) {
    const parameter = key.replace(/\[\d{1,4}\]$/, '');
    const reader = { resource, parameter, text, at: 0 };
    const read = SINGLE.get(parameter);
    if (text.includes('\0')) throw expected({ ...reader, at: text.indexOf('\0') }, 'no NUL');
    if (read && seen.has(parameter)) throw expected(reader, `${parameter} once`);
    if (read) Object.assign(query, read(reader));
    else query.filters.push(readFilter(reader));
    take(reader, /$/y, 'nothing more');
    seen.add(parameter);
  }
  return completeOrder(resource, query);
}

/** The parameters that are no filters; each may stand once. */
const SINGLE = new Map<string, (reader: Reader) => Partial<Query>>([
  ['select', (reader) => (reader.text ? { select: readSelect(reader) } : {})],
  ['order', (reader) => ({ order: takeList(reader, () => readOrder(reader)) })],
  ['limit', (reader) => ({ limit: readWhole(reader) })],
  ['offset', (reader) => ({ offset: readWhole(reader) })],
  ['after', (reader) => ({ after: readCursor(reader) })],
]);

function readWhole(reader: Reader): number {
  return Number(take(reader, /\d{1,9}(?!\d)/y, 'a whole number of up to 9 digits')[0]);
}

/** A cursor is the JSON of its values in base64url. */
function readCursor(reader: Reader): (string | null)[] {
  const [text] = take(reader, /[\w-]+/y, 'a cursor');
  const shape = z.preprocess(toJson, z.array(z.string().nullable()));
  return shape.safeParse(Buffer.from(text, 'base64url').toString()).data ?? [];
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
  const descending = direction === 'desc';
  const nullsFirst = nulls ? nulls === 'first' : descending;
  return { column: knownColumn(reader.resource, name), descending, nullsFirst };
}

function readSelect(reader: Reader): Member[] {
  const all = reader.resource.names.map((name) => ({ name, column: name }));
  const members = takeList(reader, () => (isNext(reader, '*') ? all : [readMember(reader)])).flat();
  if (members.length > MOST_MEMBERS) throw expected(reader, `at most ${MOST_MEMBERS} columns`);
  return members;
}

/** `alias:column::cast.aggregate()::cast`, of which all but the column or `count()` may lack. */
function readMember(reader: Reader): Member {
  const found = take(reader, PATTERNS.member, 'a column, alias:column, column::type or count()');
  const [, alias, count, name = '', inner, of, cast] = found;
  if (isNext(reader, '(')) throw noRelation(reader.resource, name);
  for (const type of [inner, cast]) {
    if (type && !CASTS.test(type)) throw expected(reader, `a type of ${CASTS.source}`);
  }
  const column = count ? undefined : knownColumn(reader.resource, name);
  const aggregate = count ?? of;
  const shown = alias ? unquoted(alias) : (aggregate ?? column ?? '');
  return {
    name: shown,
    column,
    inner: aggregate ? inner : undefined,
    aggregate,
    cast: aggregate ? cast : inner,
  };
}

function noRelation({ table }: Resource, name: string): Problem {
  const detail = `Could not find a relationship between '${table}' and '${name.replace(/!.*/, '')}'`;
  return new Problem(400, 'PGRST200', detail, 'This service has one table and embeds nothing.');
}

function knownColumn({ table, names }: Resource, text: string): string {
  const name = unquoted(text);
  if (names.includes(name)) return name;
  const detail = `column ${table}.${name} does not exist`;
  throw new Problem(400, '42703', detail, `The columns are ${names.join(', ')}.`);
}

function unquoted(text: string): string {
  return text.startsWith('"') ? text.slice(1, -1).replace(/\\(.)/gs, '$1') : text;
}

/** `column=op.value`, or a tree under `and`, `or`, `not.and`, `not.or`. */
function readFilter(reader: Reader): Filter {
  const { parameter, resource, text } = reader;
  if (!/^(not\.)?(and|or)$/.test(parameter)) {
    return readCondition(reader, knownColumn(resource, parameter), false);
  }
  reader.text = parameter + text;
  return readBranch(reader, 1);
}

function readBranch(reader: Reader, depth: number): Filter {
  const what = 'and(, or(, or a column and "."';
  const [, not, tree, name = ''] = take(reader, PATTERNS.branch, what);
  if (!tree) return readCondition(reader, knownColumn(reader.resource, name), true);
  if (depth > DEEPEST) throw expected(reader, `at most ${DEEPEST} levels`);
  const branches = takeList(reader, () => readBranch(reader, depth + 1));
  take(reader, /\)/y, '"," or ")"');
  const filter = { tree: tree === 'and' ? 'and' : 'or', branches } as const;
  return not ? { not: filter } : filter;
}

/** What follows a column: `op.value`, `not.op.value`, `op(any).{a,b}`, `fts(config).value`. */
function readCondition(reader: Reader, column: string, inTree: boolean): Filter {
  const start = { ...reader };
  const what = `[not.]operator. with one of ${[...OPERATORS.keys()].join(', ')}`;
  const [, not, operator = '', modifier] = take(reader, PATTERNS.condition, what);
  const quantifier = /^(any|all)$/.test(modifier ?? '');
  const fits = !modifier || SEARCHING.test(operator) || (QUANTIFIED.test(operator) && quantifier);
  if (!OPERATORS.has(operator) || !fits) throw expected(start, what);
  const type = reader.resource.columns[column]?.type ?? 'uuid';
  if (TEXTUAL.test(operator) && !/^(text|character)/.test(type)) {
    throw new Problem(
      400,
      '42883',
      `operator does not exist: ${type} ${operator}`,
      'It is for text.',
    );
  }
  const value = readValue(reader, operator, quantifier, inTree);
  const filter = { column, operator, modifier, value };
  return not ? { not: filter } : filter;
}

/** Alone, a value is the rest of the parameter; in a tree it ends at "," or ")", unless quoted. */
function readValue(reader: Reader, operator: string, many: boolean, inTree: boolean): string {
  if (operator === 'in') return readListed(reader);
  const start = { ...reader };
  const value = inTree ? readItem(reader, PATTERNS.item) : take(reader, /.*/sy, 'a value')[0];
  if (operator === 'is' && !IS.test(value)) throw expected(start, IS.source);
  if (many && !/^\{.*\}$/s.test(value)) throw expected(start, '"{", values between commas, "}"');
  return /like$/.test(operator) ? value.replaceAll('*', '%') : value;
}

/** `(a,"b")` as an array literal of PostgreSQL. */
function readListed(reader: Reader): string {
  take(reader, /\(/y, '"("');
  if (isNext(reader, ')')) return '{}';
  const items = takeList(reader, () => readItem(reader, PATTERNS.listed));
  take(reader, /\)/y, '"," or ")"');
  return `{${items.map((item) => `"${item.replace(/["\\]/g, '\\$&')}"`).join(',')}}`;
}

function readItem(reader: Reader, pattern: RegExp): string {
  const [, inQuotes, bare = ''] = take(reader, pattern, 'a value');
  return inQuotes === undefined ? bare : inQuotes.replace(/\\(.)/gs, '$1');
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
  const hint = 'Follow the link rel="next" of the page before, in the same order.';
  throw new Problem(400, 'PGRST100', 'The parameter after is no cursor of this list.', hint);
}

function isGrouped({ select = [] }: Query): boolean {
  return select.some(({ aggregate }) => aggregate);
}

function groupedBy({ select = [] }: Query): string[] {
  return select.flatMap(({ aggregate, column }) => (aggregate || !column ? [] : column));
}

/** A row as JSON text, with its version in the database (xmin) for the ETag. */
export type Stored = { body: string; version: string; created?: boolean };

/** One page of a list: how many rows, their JSON between commas, the cursor behind them. */
export type Page = {
  rows: number;
  body: string;
  more: boolean;
  next: string;
  total: number | undefined;
};

/** The versions of If-Match; `*` and undefined allow any. */
type Versions = string[] | '*' | undefined;

export type Store = ReturnType<typeof createStore>;

/** The statements of the service, one a request; identifiers come from the declaration alone. */
export function createStore(resource: Resource, database: Database) {
  const { template: sql, run } = database;
  const raw = (text: string) => sql.unsafe(text) as unknown as Fragment;
  const list = (names: string[], of = '') => raw(names.map((name) => of + quoted(name)).join(', '));
  const columns = new Map(resource.names.map((name) => [name, raw(`t.${quoted(name)}`)]));
  const column = (name: string) => columns.get(name) ?? raw('null');
  const [all, settable] = [resource.names, Object.keys(resource.columns)];
  const [table, key] = [raw(quoted(resource.table)), raw(quoted(resource.key))];
  const row = sql`(select row_to_json(r) from (select ${list(all, 't.')}) r)::text`;
  const stored = sql`t.xmin::text as version, ${row} as body`;
  const toStored = (result?: Result): Stored | undefined =>
    result?.body ? { body: result.body, version: result.version ?? '' } : undefined;

  async function ping(call: Call): Promise<void> {
    await run('read', call, (sql) => sql`select 1`);
  }

  async function read(uuid: string, call: Call): Promise<Stored | undefined> {
    const [found] = await run('read', call, (sql) => {
      return sql`select ${stored} from ${table} t where t.${key} = ${uuid}`;
    });
    return toStored(found);
  }

  /** Inserts all rows, or none where a key is taken: then those there, `same` as wanted or not. */
  async function create(rows: Row[], call: Call) {
    const same = sql`row(${list(settable, 't.')}) is not distinct from row(${list(settable, 'i.')})`;
    const results = await run(
      'keyed',
      call,
      (sql) => sql`
      with input as (select * from json_populate_recordset(null::${table}, ${JSON.stringify(rows)})),
      there as (select ${stored}, ${same} as same from ${table} t join input i using (${key})),
      made as (
        insert into ${table} as t (${list(all)}) select ${list(all)} from input
        where not exists (select from there) returning ${stored}, null::boolean as same
      )
      select * from made union all select * from there`,
    );
    return results.map((one) => ({ body: '', version: '', ...toStored(one), same: one.same }));
  }

  /** Creates, or replaces unless `createOnly`; undefined where that forbids it. */
  async function put(row: Row, createOnly: boolean, call: Call): Promise<Stored | undefined> {
    const replace = sql`update set (${list(settable)}) = row(${list(settable, 'excluded.')})`;
    const [result] = await run(
      'write',
      call,
      (sql) => sql`
      insert into ${table} as t (${list(all)})
      select ${list(all)} from json_populate_record(null::${table}, ${JSON.stringify(row)})
      on conflict (${key}) do ${createOnly ? sql`nothing` : replace}
      returning ${stored}, t.xmax = 0 as created`,
    );
    const made = toStored(result);
    return made && { ...made, created: result?.created === 't' };
  }

  /** Sets what the part has and leaves the rest, all within the statement (RFC 7396). */
  function merge(uuid: string, part: Row, versions: Versions, call: Call) {
    const source = sql`json_populate_record(t, ${JSON.stringify(part)})`;
    const set = sql`set (${list(settable)}) = (select ${list(settable)} from ${source})`;
    return change(sql`update ${table} t ${set}`, uuid, versions, call);
  }

  function remove(uuid: string, versions: Versions, call: Call) {
    return change(sql`delete from ${table} t`, uuid, versions, call);
  }

  /** `found`: there was such a row; `stored`: it had one of the versions and was changed. */
  async function change(action: Fragment, uuid: string, versions: Versions, call: Call) {
    const known = Array.isArray(versions) ? sql`and t.xmin::text = any(${`{${versions}}`})` : sql``;
    const [result] = await run(
      'write',
      call,
      (sql) => sql`
      with found as (select from ${table} t where t.${key} = ${uuid}),
      changed as (${action} where t.${key} = ${uuid} ${known} returning ${stored})
      select (select count(*) from found) as found, version, body
      from (select) as one left join changed on true`,
    );
    return { found: result?.found === '1', stored: toStored(result) };
  }

  /** One page, with bodies unless it is for HEAD, with the total when `count`. */
  async function page(
    query: Query,
    limit: number,
    bodies: boolean,
    count: boolean,
    call: Call,
  ): Promise<Page> {
    const { after, ...whole } = query;
    const values = query.order.map((by) => sql`${column(by.column)}::text`);
    const next = isGrouped(query) ? sql`''` : sql`json_build_array(${commas(values)})::text`;
    const body = bodies
      ? sql`string_agg(${member(query)}, ',') filter (where "#" <= ${limit})`
      : sql`''`;
    const total = count ? sql`(select count(*) from ${source(whole, null, 0)} t)` : sql`null`;
    const [result] = await run(
      'read',
      call,
      (sql) => sql`
      select count(*) as rows, ${body} as body, max(${next}) filter (where "#" = ${limit}) as next,
        ${total} as total
      from (select row_number() over () as "#", t.* from ${source(query, limit + 1, query.offset)} t) t`,
    );
    const rows = Number(result?.rows);
    return {
      rows: Math.min(rows, limit),
      body: result?.body ?? '',
      more: limit > 0 && rows > limit,
      next: Buffer.from(result?.next ?? '').toString('base64url'),
      total: count ? Number(result?.total) : undefined,
    };
  }

  /** All rows of a list as JSON texts, in batches. */
  async function* stream(query: Query): AsyncGenerator<string[]> {
    const rows = source(query, query.limit ?? null, query.offset);
    const batches = database.stream((sql) => sql`select ${member(query)} as body from ${rows} t`);
    for await (const batch of batches) yield batch.map(({ body }) => body ?? '');
  }

  /** The rows of a list as a table; groups have the columns c0, c1, … in the order of `select`. */
  function source(query: Query, limit: number | null, offset: number): Fragment {
    const { select = [], filters, order, after } = query;
    const groups = isGrouped(query) ? groupedBy(query).map(column) : [];
    const members = select.map((one, at) => sql`${expression(one)} as ${raw(`c${at}`)}`);
    const tests = [...filters.map(test), ...(after ? [behind(order, after)] : [])];
    return sql`(
      select ${isGrouped(query) ? commas(members) : sql`t.*`} from ${table} t
      ${tests.length > 0 ? sql`where ${joined(tests, sql`and`)}` : sql``}
      ${groups.length > 0 ? sql`group by ${commas(groups)}` : sql``}
      ${order.length > 0 ? sql`order by ${commas(order.map(direction))}` : sql``}
      limit ${limit} offset ${offset})`;
  }

  /** A row of source() as JSON text. Names are bound as values: they may be the caller's. */
  function member(query: Query): Fragment {
    if (!query.select) return row;
    const value = (one: Member, at: number) =>
      isGrouped(query) ? raw(`t.c${at}`) : expression(one);
    const members = query.select.map((one, at) => sql`${one.name}::text, ${value(one, at)}`);
    return sql`json_build_object(${commas(members)})::text`;
  }

  function expression({ column: name, inner, aggregate, cast }: Member): Fragment {
    const as = (of: Fragment, type?: string) => (type ? sql`${of}::${raw(type)}` : of);
    const plain = name ? as(column(name), inner) : sql`*`;
    return as(aggregate ? sql`${raw(aggregate)}(${plain})` : plain, cast);
  }

  function direction({ column: name, descending, nullsFirst }: Order): Fragment {
    const nulls = nullsFirst ? 'nulls first' : 'nulls last';
    return sql`${column(name)} ${raw(`${descending ? 'desc' : 'asc'} ${nulls}`)}`;
  }

  function test(filter: Filter): Fragment {
    if ('not' in filter) return sql`not (${test(filter.not)})`;
    if ('tree' in filter) return sql`(${joined(filter.branches.map(test), raw(filter.tree))})`;
    const { operator, modifier, value } = filter;
    const [left, by] = [column(filter.column), raw(OPERATORS.get(operator) ?? '')];
    if (operator === 'is') return sql`${left} is ${raw(value.replace('_', ' '))}`;
    if (operator === 'in') return sql`${left} ${by}(${value})`;
    if (!SEARCHING.test(operator)) {
      return modifier ? sql`${left} ${by} ${raw(modifier)}(${value})` : sql`${left} ${by} ${value}`;
    }
    const config = modifier ? sql`${modifier}::text::regconfig, ` : sql``;
    return sql`to_tsvector(${config}${left}) @@ ${by}(${config}${value})`;
  }

  /** Keyset: behind the given values in the given order. */
  function behind(order: Order[], values: (string | null)[]): Fragment {
    return order.reduceRight((rest, by, at) => {
      const [left, value = null] = [column(by.column), values[at]];
      const same = value === null ? sql`${left} is null` : sql`${left} = ${value}`;
      return sql`(${past(by, left, value)} or (${same} and ${rest}))`;
    }, sql`false` as Fragment);
  }

  function past(
    { descending, nullsFirst, column: name }: Order,
    left: Fragment,
    value: string | null,
  ) {
    if (value === null) return nullsFirst ? sql`${left} is not null` : sql`false`;
    const further = sql`${left} ${raw(descending ? '<' : '>')} ${value}`;
    return nullsFirst || name === resource.key ? further : sql`${further} or ${left} is null`;
  }

  function joined(parts: Fragment[], by: Fragment): Fragment[] {
    return parts.flatMap((part, at) => (at > 0 ? [by, part] : [part]));
  }

  function commas(parts: Fragment[]): Fragment[] {
    return joined(parts, sql`,`);
  }

  return { ping, read, create, put, merge, remove, page, stream };
}

// --- Auth -----------------------------------------------------------------------

type Caller = { sub: string; scopes: string[]; expires: number };
const MOST_CALLERS = 1000;
const JWKS_COOLDOWN = 30_000;
const ASYMMETRIC = ['RS256', 'ES256', 'EdDSA', 'Ed25519'];

export type Authorize = ReturnType<typeof createAuth>;

/** Tells who calls by the bearer token. Throws Problem 401, 403, or 503 where no key could be had. */
export function createAuth(config: Config, log: Logger) {
  const { JWT_SECRET = [], JWKS_URL, JWT_WRITE_SCOPE } = config;
  const mode = config.AUTH ?? (JWT_SECRET.length > 0 || JWKS_URL ? 'all' : 'none');
  const secrets = JWT_SECRET.map((secret) => () => Buffer.from(secret));
  const keys: jose.JWTVerifyGetKey[] = JWKS_URL ? [fetchedKeys(JWKS_URL, log)] : secrets;
  const callers = new Map<string, Caller>();
  const options: jose.JWTVerifyOptions = {
    algorithms: JWKS_URL ? ASYMMETRIC : ['HS256'],
    requiredClaims: ['exp', 'sub'],
    clockTolerance: 5,
    ...(config.JWT_ISSUER && { issuer: config.JWT_ISSUER }),
    ...(config.JWT_AUDIENCE && { audience: config.JWT_AUDIENCE }),
  };

  async function verify(token: string): Promise<Caller> {
    const tries = keys.map((key) => jose.jwtVerify(token, key, options));
    const { payload } = await Promise.any(tries).catch(({ errors }: AggregateError) => {
      const problem = errors.find((error) => error instanceof Problem);
      const expired = errors.some((error) => error instanceof jose.errors.JWTExpired);
      throw (
        problem ??
        (expired
          ? unauthorized('PGRST303', 'JWT expired')
          : unauthorized('PGRST301', 'JWT invalid'))
      );
    });
    const scopes = String(payload.scope ?? '').split(' ');
    return { sub: String(payload.sub), scopes, expires: (Number(payload.exp) + 5) * 1000 };
  }

  /** The caller's `sub`; '' where no token is needed. */
  return async function authorize(authorization: string | null, writes: boolean): Promise<string> {
    if (mode === 'none' || (mode === 'write' && !writes)) return '';
    const token = /^Bearer +([\w.~+/=-]+)$/i.exec(authorization ?? '')?.[1];
    if (!token) throw unauthorized('PGRST302', 'A token is needed here');
    let caller = callers.get(token);
    if (!caller || caller.expires < Date.now()) {
      caller = await verify(token);
      if (callers.size >= MOST_CALLERS) callers.clear();
      callers.set(token, caller);
    }
    if (!writes || !JWT_WRITE_SCOPE || caller.scopes.includes(JWT_WRITE_SCOPE)) return caller.sub;
    const hint = `Writing needs a token of scope ${JWT_WRITE_SCOPE}.`;
    throw new Problem(403, '42501', 'The token does not allow to write.', hint);
  };
}

/** RFC 6750, 3: an error is named only where a token was sent. */
function unauthorized(code: string, detail: string): Problem {
  const why = code === 'PGRST302' ? '' : ` error="invalid_token", error_description="${detail}"`;
  const headers = { 'WWW-Authenticate': `Bearer realm="api"${why}` };
  return new Problem(401, code, detail, 'Send "Authorization: Bearer <token>".', { headers });
}

/** Keys that go on while their source is away; it is asked for an unknown one once per cooldown. */
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
    const headers = { 'Retry-After': '1' };
    throw new Problem(503, 'PGRST300', 'The keys for tokens could not be had.', 'Try again.', {
      headers,
    });
  };
}

/** `token --sub me --scope write --expires 1h`: prints one signed by the first JWT_SECRET. */
async function printToken({ JWT_SECRET, JWT_ISSUER, JWT_AUDIENCE }: Config, args: string[]) {
  const [secret] = JWT_SECRET ?? [];
  if (!secret) throw new StartError('JWT_SECRET is needed to sign a token');
  const options = { sub: TEXT, scope: TEXT, expires: TEXT };
  const { sub = 'me', scope, expires = '1h' } = parseArgs({ args, options }).values;
  const token = new jose.SignJWT(scope ? { scope } : {}).setProtectedHeader({ alg: 'HS256' });
  if (JWT_ISSUER) token.setIssuer(JWT_ISSUER);
  if (JWT_AUDIENCE) token.setAudience(JWT_AUDIENCE);
  token.setSubject(sub).setIssuedAt().setExpirationTime(expires);
  process.stdout.write(`${await token.sign(Buffer.from(secret))}\n`);
}
const TEXT = { type: 'string' } as const;

// --- Routes ---------------------------------------------------------------------

/** What @hono/node-server gives to a handler, and what begin() adds to it. */
type Exchange = {
  incoming: IncomingMessage;
  outgoing: ServerResponse;
  call: Call;
  id: string;
  route: string;
  started: number;
};
type Ctx = Context<{ Bindings: Exchange }>;
type App = Hono<{ Bindings: Exchange }>;
type Route = [method: string, path: string, handler: (c: Ctx) => Answer | Promise<Answer>];

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

const OPEN = ['/hello', '/zero', '/healthz', '/readyz', '/openapi.json', '/docs', '*'];
const METHODS = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'];
const OBJECT = 'application/vnd.pgrst.object+json';
const MAX_HEAD = 128 * 1024; // bytes of a request's head, and of its target: 800 UUIDs in in.(…)

/** The routes of a service. */
function routesOf(service: Service): Route[] {
  const { resource, metrics } = service;
  const { legacy } = resource;
  const rows = rowHandlers(service);
  const bases = [`/${resource.path}`, `/rest/v1/${resource.path}`];
  const legacyRoutes: Route[] = legacy
    ? [
        ['GET', legacy.list, rows.listAll],
        ['POST', legacy.create, rows.create],
        ['GET', `${legacy.read}/:key`, rows.read],
        ['PUT', `${legacy.replace}/:key`, rows.replace],
        ['DELETE', `${legacy.remove}/:key`, rows.remove],
      ]
    : [];
  return [
    ['GET', '/hello', () => json('{"message":"ok"}')],
    ['GET', '/zero', () => json('{"0":""}')],
    ...bases.flatMap((base): Route[] => [
      ['GET', base, rows.list],
      ['POST', base, rows.create],
      ['GET', `${base}/:key`, rows.read],
      ['PUT', `${base}/:key`, rows.replace],
      ['PATCH', `${base}/:key`, rows.merge],
      ['DELETE', `${base}/:key`, rows.remove],
    ]),
    ...legacyRoutes,
    ['GET', '/healthz', () => json('{"status":"alive"}')],
    ['GET', '/readyz', (c) => ready(c, service)],
    [
      'GET',
      '/metrics',
      async () => ({ status: 200, headers: metrics.headers, body: await metrics.print() }),
    ],
  ];
}

/** The service behind one fetch(): its routes, and what every answer carries. */
export function createApp(service: Service): App {
  const { config, authorize, metrics, life, log } = service;
  const app: App = new Hono();
  for (const [method, route, handler] of routesOf(service)) {
    app.on(method, route, async (c) => {
      begin(c, route);
      const writes = method !== 'GET';
      if (!OPEN.includes(route))
        c.env.call.sub = await authorize(c.req.raw.headers.get('authorization'), writes);
      return finish(c, await handler(c));
    });
  }
  app.options('*', (c) => {
    begin(c, 'OPTIONS');
    return finish(c, describe(c, service, methodsAt(c)));
  });
  app.notFound((c) => {
    begin(c, 'unmatched');
    return finish(c, problemAnswer(noRoute(c, methodsAt(c))));
  });
  app.onError((error, c) => {
    const problem = toProblem(error);
    const { id } = c.env;
    if (problem.status === 500)
      log.error({ id, code: codeOf(error), stack: error.stack }, 'failed');
    else if (problem.status > 500) log.warn({ id, code: codeOf(error) }, 'failed');
    return finish(c, problemAnswer(problem));
  });
  return app;

  function methodsAt(c: Ctx): string[] {
    const found = METHODS.slice(0, -1).filter((method) => {
      return app.router.match(method.replace('HEAD', 'GET'), c.req.path)[0].length > 0;
    });
    return found.length > 0 ? [...found, 'OPTIONS'] : [];
  }

  function begin(c: Ctx, route: string): void {
    const { incoming, outgoing } = c.env;
    const call: Call = { sub: '', ms: 0, repeated: false, outgoing };
    const id = requestId(incoming.headers['x-request-id']);
    Object.assign(c.env, { call, id, route, started: performance.now() });
    if ((incoming.url?.length ?? 0) > MAX_HEAD)
      throw new Problem(414, 'PGRST100', 'The URI is too long.');
    const bytes = incoming.rawHeaders.reduce((sum, part) => sum + part.length, 0);
    if (bytes > MAX_HEAD) throw new Problem(431, 'PGRST100', 'The header is too large.');
  }

  /** The headers that every answer carries, and its share of the metrics. */
  function finish(c: Ctx, { status, headers: own, body }: Answer): Response {
    const { call, id, route, started, incoming, outgoing } = c.env;
    const ms = performance.now() - started;
    metrics.observe(c.req.method, route, status, ms);
    log.debug({ id, method: c.req.method, url: incoming.url, status, ms }, 'answered');
    const headers: Record<string, string> = { ...own, 'X-Request-Id': id };
    headers['Server-Timing'] = `db;dur=${call.ms.toFixed(1)}, total;dur=${ms.toFixed(1)}`;
    if (typeof body === 'string') headers['Content-Length'] = String(Buffer.byteLength(body));
    if (incoming.headers.origin)
      Object.assign(headers, crossOrigin(config, incoming.headers.origin));
    if (life.stopping) headers.Connection = 'close';
    if (!(body instanceof Readable)) return new Response(body, { status, headers });
    outgoing.writeHead(status, headers);
    pipeline(
      body,
      outgoing,
      (error) => error && log.warn({ id, code: codeOf(error) }, 'broken off'),
    );
    return RESPONSE_ALREADY_SENT;
  }
}

/** The caller's id where it is harmless in a header and in a log, else a new one. */
function requestId(given: string | string[] | undefined): string {
  return typeof given === 'string' && /^[\w.:/+=-]{1,128}$/.test(given) ? given : randomUUID();
}

function crossOrigin({ CORS_ORIGIN }: Config, origin: string): Record<string, string> {
  const allowed = CORS_ORIGIN.find((one) => one === '*' || one === origin);
  if (!allowed) return { Vary: 'Origin' };
  const exposed = 'Content-Range, ETag, Link, Location, Preference-Applied, X-Request-Id';
  return {
    Vary: 'Origin',
    'Access-Control-Allow-Origin': allowed,
    'Access-Control-Expose-Headers': exposed,
    'Access-Control-Allow-Methods': METHODS.join(', '),
    'Access-Control-Allow-Headers':
      'Authorization, Content-Type, Prefer, Range, Range-Unit, If-Match, If-None-Match, Idempotency-Key, ' +
      'Accept-Profile, Content-Profile, apikey, x-client-info, x-retry-count, x-request-id',
    'Access-Control-Max-Age': '86400',
  };
}

/** OPTIONS: which service this is; to a preflight (Fetch standard, 4.9) the headers alone. */
function describe(c: Ctx, { config, resource }: Service, methods: string[]): Answer {
  const headers = { Allow: methods.join(', ') || 'OPTIONS' };
  const { incoming } = c.env;
  if (incoming.headers['access-control-request-method'])
    return { status: 204, headers, body: null };
  const { APP_VERSION: version, APP_BRANCH: branch, APP_COMMIT: commit } = config;
  const about = { name: resource.path, version, branch, commit, uri: incoming.url, methods };
  return json(JSON.stringify(about), headers);
}

function noRoute(c: Ctx, methods: string[]): Problem {
  const { path, method } = c.req;
  const { url = '' } = c.env.incoming;
  if (!isDecodable(url))
    return new Problem(400, 'PGRST100', 'The path is not percent-encoded text.');
  const headers = { Allow: methods.join(', ') };
  const hint =
    methods.length > 0 ? `Use ${headers.Allow}.` : 'GET /openapi.json names what there is.';
  if (methods.length > 0)
    return new Problem(405, 'PGRST117', `There is no ${method} here.`, hint, { headers });
  const code = /^\/rest\/v1\/rpc\//.test(path)
    ? 'PGRST202'
    : /^\/rest\/v1\//.test(path)
      ? 'PGRST205'
      : 'PGRST125';
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
  return { status, headers: { 'Content-Type': 'application/json', ...headers }, body };
}

function rowHandlers({ config, resource, store }: Service) {
  async function list(c: Ctx): Promise<Answer> {
    const type = negotiate(c, ['application/json', OBJECT]);
    const query = parseQuery(resource, parametersOf(c));
    const limit = Math.min(query.limit ?? config.MAX_ROWS, config.MAX_ROWS);
    const [bodies, count] = [c.req.method !== 'HEAD', preferences(c).has('count')];
    return pageAnswer(c, type, query, await store.page(query, limit, bodies, count, c.env.call));
  }

  async function listAll(c: Ctx): Promise<Answer> {
    const headers = { 'Content-Type': negotiate(c, ['application/json']) };
    const batches = store.stream(parseQuery(resource, parametersOf(c)));
    const first = await batches.next(); // a fault up to here is still answered as one
    return { status: 200, headers, body: Readable.from(arrayOf(first.value ?? [], batches)) };
  }

  async function read(c: Ctx): Promise<Answer> {
    negotiate(c, ['application/json', OBJECT]);
    const stored = (await store.read(keyOf(c), c.env.call)) ?? noRow();
    const tags = tagsOf(c, 'if-none-match', /^(?:W\/)?"(\d+)"$/);
    if (tags !== '*' && !tags?.includes(stored.version)) return json(stored.body, tag(stored));
    return { status: 304, headers: tag(stored), body: null };
  }

  async function create(c: Ctx): Promise<Answer> {
    const body = await readJson(c, config.BODY_LIMIT);
    const many = Array.isArray(body);
    const keyed = idempotentKey(c, many);
    const rows = validate(resource.row, many ? body : [body], many);
    const shape = shapeOf(c, many || preferences(c).has('return') ? 'array' : 'object');
    if (shape === 'object' && rows.length !== 1) throw notOne(rows.length);
    for (const row of rows) row[resource.key] = keyed ?? row[resource.key] ?? uuidv7();
    const made = await store.create(rows, c.env.call);
    const repeated = keyed || c.env.call.repeated;
    if (made.some(({ same }) => same === 'f' || (same && !repeated))) throw taken(keyed);
    const [only] = rows.length === 1 ? made : [];
    const location = `${baseOf(c, resource)}/${rows[0]?.[resource.key]}`;
    return writeAnswer(c, 201, made, shape, {
      ...(only && { Location: location, ...tag(only) }),
      ...(keyed && only?.same && { 'Idempotent-Replayed': 'true' }),
    });
  }

  async function replace(c: Ctx): Promise<Answer> {
    const uuid = keyOf(c);
    const [row = {}] = validate(resource.row, [await readJson(c, config.BODY_LIMIT)], false);
    nameSame(resource, row, uuid);
    const versions = tagsOf(c, 'if-match', /^"(\d+)"$/);
    const createOnly = c.req.raw.headers.get('if-none-match') === '*';
    const put = versions
      ? (await store.merge(uuid, row, versions, c.env.call)).stored
      : await store.put(row, createOnly, c.env.call);
    const { created = false, ...stored } = put ?? preconditionFailed();
    const location = created ? { Location: `${baseOf(c, resource)}/${uuid}` } : {};
    const headers = { ...tag(stored), ...location };
    return writeAnswer(c, created ? 201 : 200, [stored], shapeOf(c, 'object'), headers);
  }

  async function merge(c: Ctx): Promise<Answer> {
    const uuid = keyOf(c);
    const body = await readJson(c, config.BODY_LIMIT, 'application/merge-patch+json');
    const [part = {}] = validate(resource.part, [body], false);
    nameSame(resource, part, uuid);
    const versions = tagsOf(c, 'if-match', /^"(\d+)"$/);
    const { found, stored } = await store.merge(uuid, part, versions, c.env.call);
    const changed = stored ?? (found && versions ? preconditionFailed() : noRow());
    return writeAnswer(c, 200, [changed], shapeOf(c, 'object'), tag(changed));
  }

  async function remove(c: Ctx): Promise<Answer> {
    const versions = tagsOf(c, 'if-match', /^"(\d+)"$/);
    const { found, stored } = await store.remove(keyOf(c), versions, c.env.call);
    const removed = stored ?? (found && versions ? preconditionFailed() : noRow());
    return writeAnswer(c, 200, [removed], shapeOf(c, 'nothing'), {});
  }

  return { list, listAll, read, create, replace, merge, remove };
}

function noRow(): never {
  const details = 'The result contains 0 rows';
  throw new Problem(404, 'PGRST116', 'There is no row with this key.', undefined, { details });
}

function notOne(rows: number): Problem {
  const details = `The result contains ${rows} rows`;
  const detail = 'Cannot coerce the result to a single JSON object';
  return new Problem(406, 'PGRST116', detail, undefined, { details });
}

function preconditionFailed(): never {
  const hint = 'Read it again for its ETag and decide anew.';
  throw new Problem(412, 'PGRST100', 'The row is not as the precondition wants it.', hint);
}

function taken(keyed: string | undefined): Problem {
  if (!keyed)
    return new Problem(409, '23505', 'There is a row with this key; nothing was created.');
  const detail = 'This Idempotency-Key came before with other content.';
  return new Problem(409, '23505', detail, 'A new request needs a new key.');
}

/** The path of the resource, plain or below /rest/v1 as the request came. */
function baseOf(c: Ctx, { path }: Resource): string {
  return isStrict(c) ? `/rest/v1/${path}` : `/${path}`;
}

/** Below /rest/v1 a write is answered as PostgREST does it: with nothing, unless asked. */
function isStrict(c: Ctx): boolean {
  return c.env.route.startsWith('/rest/v1');
}

/** The key in the path. Throws 400 unless PostgreSQL would take it for a UUID. */
function keyOf(c: Ctx): string {
  const given = c.req.param('key') ?? '';
  const uuid = toUuid(given);
  if (uuid) return uuid;
  const detail = `invalid input syntax for type uuid: ${JSON.stringify(given.slice(0, 50))}`;
  throw new Problem(400, '22P02', detail, 'A key looks like 0192f0c1-2f3a-7bcd-8123-456789abcdef.');
}

/** Gives the row the key of the path. Throws 422 where it names another. */
function nameSame({ key }: Resource, row: Row, uuid: string): void {
  const errors = [{ pointer: pointer(key), detail: 'differs from the key in the path' }];
  row[key] ??= uuid;
  if (row[key] !== uuid)
    throw new Problem(422, '22023', 'The body is of another row.', undefined, { errors });
}

const NAMESPACE = '6c1f7c54-5d2a-4b0e-9a55-2f1f0a3c8d10';

/** The row's UUID, made of the Idempotency-Key and the caller, so that a repetition finds the row. */
function idempotentKey(c: Ctx, many: boolean): string | undefined {
  const key = c.req.raw.headers.get('idempotency-key');
  if (key === null) return undefined;
  const fits = key.length > 0 && key.length <= 255 && !many;
  if (!fits)
    throw new Problem(
      400,
      'PGRST100',
      'An Idempotency-Key has 1 to 255 characters, for one object.',
    );
  return uuidv5(JSON.stringify([c.env.call.sub, key]), NAMESPACE);
}

/** The rows as the declaration wants them. Throws 422 with every fault of all rows. */
function validate(schema: z.ZodType<Row>, rows: unknown[], many: boolean): Row[] {
  const results = rows.map((row) => schema.safeParse(row));
  const errors = results.flatMap(({ error }, at) =>
    error ? toFaults(error, many ? `/${at}` : '') : [],
  );
  if (errors.length === 0) return results.map(({ data }) => data ?? {});
  const detail = errors.map((fault) => `${fault.pointer} ${fault.detail}`).join('; ');
  const unknown = results.some(({ error }) =>
    error?.issues.some(({ code }) => code === 'unrecognized_keys'),
  );
  const code = unknown ? 'PGRST204' : '22023';
  throw new Problem(422, code, detail.slice(0, 500), undefined, { errors: errors.slice(0, 100) });
}

/** The body as JSON. Throws 400, 413, 415. */
async function readJson(c: Ctx, limit: number, other = 'application/json'): Promise<unknown> {
  const { 'content-type': type = 'none', 'content-encoding': coding = 'identity' } =
    c.env.incoming.headers;
  const media = type.split(';')[0]?.trim().toLowerCase();
  const hint = 'Send "Content-Type: application/json" and no Content-Encoding.';
  const fits = (media === 'application/json' || media === other) && coding === 'identity';
  if (!fits)
    throw new Problem(415, 'PGRST102', `No body of type ${media}, coding ${coding} here.`, hint);
  const bytes = await readBody(c.env.incoming, limit);
  const value = isUtf8(bytes) ? toJson(bytes) : undefined;
  if (value === undefined) throw new Problem(400, 'PGRST102', 'The body is not JSON in UTF-8.');
  return value;
}

async function readBody(incoming: IncomingMessage, limit: number): Promise<Buffer> {
  const tooLarge = new Problem(413, 'PGRST102', `The body is larger than ${limit} bytes.`);
  if (Number(incoming.headers['content-length'] ?? 0) > limit) throw tooLarge;
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of incoming.iterator({ destroyOnReturn: false })) {
    size += chunk.length;
    if (size > limit) throw tooLarge;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

function parametersOf(c: Ctx): URLSearchParams {
  return new URLSearchParams(/\?(.*)/s.exec(c.env.incoming.url ?? '')?.[1]);
}

/** The offered type that Accept likes best (RFC 9110, 12.5.1). Throws 406. */
function negotiate(c: Ctx, offered: string[]): string {
  const wanted = (c.req.raw.headers.get('accept') ?? '*/*')
    .toLowerCase()
    .split(',')
    .map((part) => {
      const [type = '', ...parameters] = part.split(';').map((piece) => piece.trim());
      const quality = parameters.find((parameter) => parameter.startsWith('q='))?.slice(2) ?? 1;
      return { type, quality: Number(quality) };
    });
  for (const { type, quality } of wanted.sort((a, b) => b.quality - a.quality)) {
    const range = type.endsWith('/*') ? type.slice(0, -1) : `${type};`;
    const found = offered.find((offer) => type === '*/*' || `${offer};`.startsWith(range));
    if (found && quality > 0) return found;
  }
  throw new Problem(
    406,
    'PGRST107',
    'There is no such media type.',
    `There is ${offered.join(', ')}.`,
  );
}

/** RFC 7240; of `return=minimal, count=exact` each by its name. Unknown ones are passed over. */
function preferences(c: Ctx): Map<string, string> {
  const parts = (c.req.raw.headers.get('prefer') ?? '').split(/[,;]/);
  return new Map(
    parts.flatMap((part) => (part.trim() ? [part.trim().split('=') as [string, string]] : [])),
  );
}

/** `*`, or the versions in a precondition's tags of this pattern; undefined without the header. */
function tagsOf(c: Ctx, header: string, pattern: RegExp): Versions {
  const value = c.req.raw.headers.get(header);
  if (value === null) return undefined;
  return value.trim() === '*'
    ? '*'
    : value.split(',').flatMap((one) => pattern.exec(one.trim())?.[1] ?? []);
}

function tag({ version }: { version: string }): { ETag: string } {
  return { ETag: `"${version}"` };
}

type Shape = 'object' | 'array' | 'nothing';

/** How a write shows its rows: as `Prefer: return` and Accept ask, else as is natural or strict. */
function shapeOf(c: Ctx, natural: Shape): Shape {
  const asked = preferences(c).get('return');
  if (!asked) return isStrict(c) ? 'nothing' : natural;
  if (asked !== 'representation') return 'nothing';
  const type = negotiate(c, ['application/json', OBJECT]);
  return natural === 'array' && type !== OBJECT ? 'array' : 'object';
}

function writeAnswer(
  c: Ctx,
  status: number,
  rows: Stored[],
  shape: Shape,
  headers: Record<string, string>,
): Answer {
  const asked = preferences(c).get('return');
  if (asked) headers['Preference-Applied'] = `return=${asked}`;
  if (shape === 'nothing') return { status: status === 200 ? 204 : status, headers, body: null };
  const bodies = rows.map(({ body }) => body).join(',');
  return json(shape === 'array' ? `[${bodies}]` : bodies, headers, status);
}

/** A page with its Content-Range and a link to the next. Throws 406, or 416 past the end. */
function pageAnswer(c: Ctx, type: string, query: Query, page: Page): Answer {
  const { rows, total, body } = page;
  if (type === OBJECT && rows !== 1) throw notOne(rows);
  const range = rows > 0 ? `${query.offset}-${query.offset + rows - 1}` : '*';
  const headers = { 'Content-Type': type, 'Content-Range': `${range}/${total ?? '*'}` };
  if (total !== undefined && query.offset > total) {
    const details = `An offset of ${query.offset} was requested, but there are only ${total} rows.`;
    throw new Problem(416, 'PGRST103', 'Requested range not satisfiable', undefined, {
      details,
      headers: { 'Content-Range': `*/${total}` },
    });
  }
  return {
    status: total !== undefined && rows < total ? 206 : 200,
    headers: page.more ? { ...headers, Link: linkToNext(c, query, page) } : headers,
    body: type === OBJECT ? body : `[${body}]`,
  };
}

/** RFC 8288, relative. Groups have no key to go on from: theirs goes by offset. */
function linkToNext(c: Ctx, query: Query, { next, rows }: Page): string {
  const parameters = parametersOf(c);
  parameters.delete('offset');
  parameters.set(next ? 'after' : 'offset', next || String(query.offset + rows));
  return `<${c.req.path}?${parameters}>; rel="next"`;
}

async function* arrayOf(first: string[], rest: AsyncIterable<string[]>): AsyncGenerator<string> {
  yield `[${first}`;
  for await (const batch of rest) yield `,${batch}`;
  yield ']';
}

// --- Ops ------------------------------------------------------------------------

/** Where the process is in its life; readiness follows it. */
export type Life = { stopping: boolean; prepared: boolean };

/** The table is as declared, the database answers within a second, and the end is not near. */
async function ready(c: Ctx, { store, life }: Service): Promise<Answer> {
  if (life.stopping || !life.prepared) throw unavailable();
  await within(1000, store.ping(c.env.call));
  return json('{"status":"ready"}');
}

export type Metrics = ReturnType<typeof createMetrics>;

/** Prometheus metrics of this process; among workers print() sums over all of them. */
export function createMetrics(config: Config, { numbers }: Database) {
  const register = new prometheus.Registry();
  const registers = [register];
  prometheus.collectDefaultMetrics({ register });
  const gauge = (name: string, help: string, value: () => number) =>
    new prometheus.Gauge({
      name,
      help,
      registers,
      collect() {
        this.set(value());
      },
    });
  gauge('db_statements_in_flight', 'Statements that a request waits for.', () => numbers.inFlight);
  gauge('db_statements_waiting', 'Of these, those without a connection.', () => numbers.waiting);
  gauge('db_streams', 'Lists that are streamed now.', () => numbers.streams);
  const { APP_VERSION: version, APP_BRANCH: branch, APP_COMMIT: commit } = config;
  const build = {
    name: 'build_info',
    help: 'Always 1.',
    labelNames: ['version', 'branch', 'commit'],
  };
  new prometheus.Gauge({ ...build, registers }).set({ version, branch, commit }, 1);
  const duration = new prometheus.Histogram({
    name: 'http_request_duration_seconds',
    help: 'From the head of a request to its answer.',
    labelNames: ['method', 'route', 'status'],
    buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5],
    registers,
  });
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

/** The metrics of all workers in one text. */
function askPrimary(): Promise<string> {
  return new Promise((resolve) => {
    const hear = ({ metrics }: { metrics?: string }) => {
      if (metrics === undefined) return;
      process.off('message', hear);
      resolve(metrics);
    };
    process.on('message', hear);
    process.send?.({ ask: 'metrics' });
  });
}

// --- Start ----------------------------------------------------------------------

/** Runs the service until a signal ends it. Rejects with StartError where it cannot work. */
export async function main(resource: Resource, args: string[], environment: NodeJS.ProcessEnv) {
  const config = readConfig(environment);
  if (args[0] === 'token') return printToken(config, args.slice(1));
  const formatters = { level: (level: string) => ({ level }) };
  const log = pino({ level: config.LOG_LEVEL, base: { pid: process.pid }, formatters });
  process.on('SIGUSR1', () => {}); // Node would open its debugger
  const ended = untilSignal();
  const embedded =
    config.DATABASE_URL || config.PGHOST ? undefined : await embed(config, resource, log);
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

/** Resolves at the first SIGTERM or SIGINT; the second ends the process. A worker hears its primary. */
function untilSignal(): Promise<void> {
  return new Promise((resolve) => {
    const again = () => process.exit(1);
    const end = () => {
      process.on('SIGTERM', again).on('SIGINT', again);
      resolve();
    };
    process.once('SIGTERM', cluster.isWorker ? () => {} : end);
    process.once('SIGINT', cluster.isWorker ? () => {} : end);
    process.on('message', ({ ask }: { ask?: string }) => ask === 'stop' && resolve());
  });
}

type Running = { url: string; failed: Promise<never>; stop: () => Promise<void> };

/** Serves in this process. */
async function serve(config: Config, resource: Resource, log: Logger): Promise<Running> {
  const life: Life = { stopping: false, prepared: false };
  const database = openDatabase(config, log);
  const store = createStore(resource, database);
  const metrics = createMetrics(config, database);
  const authorize = createAuth(config, log);
  const server = createHttpServer(
    createApp({ config, resource, store, authorize, metrics, log, life }),
  );
  await listen(server, config);
  const url = urlOf(server.address() as AddressInfo);
  log.info({ url }, 'listening');
  const stop = async () => {
    life.stopping = true;
    await sleep(config.SHUTDOWN_GRACE * 1000);
    const idle = setInterval(() => server.closeIdleConnections(), 50);
    await within(DEADLINE + 1000, once(server.close(), 'close')).catch(() =>
      server.closeAllConnections(),
    );
    clearInterval(idle);
    await database.end();
  };
  return { url, failed: prepare(resource, database, life), stop };
}

/** Keeps WEB_CONCURRENCY workers on the port, each a process of its own; a dead one is replaced. */
async function supervise(config: Config, _: Resource, log: Logger): Promise<Running> {
  const summed = new prometheus.AggregatorRegistry();
  const { DATABASE_URL } = config;
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
    if (ask === 'metrics') worker.send({ metrics: await summed.clusterMetrics() });
  });
  for (let count = 0; count < config.WEB_CONCURRENCY; count += 1) fork();
  const listening = once(cluster, 'listening').then(([, address]) => urlOf(address));
  const stop = async () => {
    stopping = true;
    const workers = Object.values(cluster.workers ?? {}).filter((worker) => worker !== undefined);
    for (const worker of workers) worker.send({ ask: 'stop' });
    await Promise.all(workers.map((worker) => once(worker, 'exit')));
  };
  return { url: await Promise.race([listening, failed]), failed, stop };
}

/** Tries until the table is there; rejects where it cannot be served. */
async function prepare(resource: Resource, database: Database, life: Life): Promise<never> {
  while (!life.prepared && !life.stopping) {
    await ensureTable(resource, database).then(
      () => {
        life.prepared = true;
      },
      (error) => {
        if (error instanceof StartError || toProblem(error).status < 503) throw error;
      },
    );
    if (!life.prepared) await sleep(100);
  }
  return new Promise(() => {});
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

function createHttpServer(app: App): Server {
  const timeouts = { headersTimeout: 10_000, requestTimeout: 60_000, keepAliveTimeout: 75_000 };
  const options = {
    ...timeouts,
    connectionsCheckingInterval: 1000,
    maxHeaderSize: 2 * MAX_HEAD,
    requireHostHeader: false,
  };
  const errorHandler = () => {
    const { status, headers, body } = refusal(
      400,
      'The Host or the target of the request is not valid.',
    );
    return new Response(body as string, { status, headers });
  };
  const server = createServer(options, getRequestListener(app.fetch, { errorHandler }));
  server.on('connect', (_, socket: Socket) => refuse(socket, 405, 'There is no such method.'));
  server.on('checkExpectation', ({ socket }) => refuse(socket, 417, 'Only 100-continue is known.'));
  server.on('clientError', ({ code = '' }: NodeJS.ErrnoException, socket: Socket) => {
    refuse(socket, ...(CLIENT_ERRORS[code] ?? [400, 'This is not valid HTTP.']));
  });
  return server;
}

function refusal(status: number, detail: string): Answer {
  const allow = status === 405 ? { Allow: METHODS.join(', ') } : {};
  const headers = {
    ...allow,
    'X-Request-Id': randomUUID(),
    'Server-Timing': 'total;dur=0',
    Connection: 'close',
  };
  return problemAnswer(new Problem(status, 'PGRST100', detail, undefined, { headers }));
}

function refuse(socket: Socket, status: number, detail: string): void {
  if (socket.writableEnded) return; // heard again for what comes behind the fault
  if (!socket.writable) return void socket.destroy();
  const { headers, body } = refusal(status, detail);
  headers['Content-Length'] = String(Buffer.byteLength(String(body)));
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
  socket.end(`HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n${lines.join('')}\r\n${body}`);
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
  const { startEmbedded, readSample, welcome } = await import('./embedded.ts');
  const embedded = await startEmbedded(config.DATA_DIR).catch((error) => {
    throw error.name === 'EmbeddedError' ? new StartError(error.message) : error;
  });
  config.DATABASE_URL = embedded.url;
  const database = openDatabase({ ...config, POOL_SIZE: 1 }, log);
  const store = createStore(resource, database);
  const call: Call = { sub: '', ms: 0, repeated: false };
  await ensureTable(resource, database);
  if (embedded.fresh && resource.sample) await store.create(await readSample(resource), call);
  const { body } = await store.page(parseQuery(resource, []), 1, true, false, call);
  await database.end();
  const { key, path } = resource;
  const greet = (url: string) => welcome(url, path, embedded.home, key, JSON.parse(body || '{}'));
  return { stop: embedded.stop, greet };
}

function fail(error: unknown): never {
  const known = error instanceof StartError;
  pino().fatal(known ? {} : { error }, known ? error.message : 'ended by an error');
  process.exit(known ? 2 : 1);
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  process.on('uncaughtException', fail);
  main(passengers, process.argv.slice(2), process.env).then(() => process.exit(0), fail);
}
