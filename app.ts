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
import { readFile } from 'node:fs/promises';
import {
  createServer,
  type IncomingMessage,
  type Server,
  type ServerResponse,
  STATUS_CODES,
} from 'node:http';
import { type AddressInfo, connect as dial, type Socket } from 'node:net';
import { pipeline, Readable } from 'node:stream';
import { pipeline as finished } from 'node:stream/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { setFlagsFromString } from 'node:v8';
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
// Another resource: change path, table, key, columns, sample and example; drop `legacy`.
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
  sample: 'examples/passengers.csv',
  example: {
    uuid: '0192f0c1-2f3a-7bcd-8123-456789abcdef',
    survived: true,
    passengerClass: 1,
    name: 'Miss. Elisabeth Walton Allen',
    sex: 'female',
    age: 29,
    siblingsOrSpousesAboard: 0,
    parentsOrChildrenAboard: 0,
    fare: 211.3375,
  },
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

/**
 * What one service serves. `sample`: a CSV file that a new embedded database begins with.
 * `example`: the row that /openapi.json shows.
 */
type Declaration = {
  path: string;
  table: string;
  key: string;
  columns: Record<string, Column>;
  sample?: string;
  example: Row;
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
  return {
    ...options,
    type: 'boolean',
    expects,
    schema,
    check: (name) => `${name} or not ${name}`,
  };
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
  const bounds = { minLength: 1, maxLength: most }; // for the JSON schema, which sees no refine()
  const schema = z.string(mustBe(expects)).trim().refine(fits, mustBe(expects)).meta(bounds);
  const check = (name: string) => `${name} <> '' and ${name} = btrim(${name}, E'${BLANKS}')`;
  return { ...options, type: `character varying(${most})`, expects, schema, check };
}

/** One of the given words. */
export function oneOf(values: string[], options: Options = {}): Column {
  const expects = values.join(' or ');
  const type = `character varying(${Math.max(...values.map((value) => value.length))})`;
  const check = (name: string) => values.map((one) => `${name} = ${literal(one)}`).join(' or ');
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
  [/^(21000|22...|42601|23502|23514|42703|42704|42803|42804|42846|42883)$/, 400],
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

function unavailable(detail = 'The database is not available.'): Problem {
  const headers = { 'Retry-After': '1' };
  return new Problem(503, '08006', detail, 'Try again.', { headers });
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
type Pending = ReturnType<Statement> & {
  state?: { pid: number } | null;
  active?: boolean;
  options?: { prepare?: boolean; simple?: boolean };
  reject?: (error: unknown) => void;
};

/** What may be done with a statement of unknown outcome: a keyed insert may be sent again. */
type Kind = 'read' | 'keyed' | 'write';

/** One request: who waits for its statements, as whom, the ms they took, whether one was repeated. */
export type Call = { sub: string; ms: number; repeated: boolean; outgoing?: ServerResponse };

/** One connection; it gets statements only while it is open, so that none waits for it to be made. */
type Client = { sql: Sql; open: boolean; inFlight: Set<Pending>; retire: () => void };

const IN_FLIGHT_PER_CLIENT = 64;
const STREAMS = 4;
const STREAM_ROWS = 200;

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
  const dismissed = new WeakSet<Sql>(); // connections that the server ended between two statements
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
        const sql = connect(
          config,
          () => release(client),
          STATEMENT_TIMEOUT,
          () => {
            client.open = false;
            dismissed.add(sql);
          },
        );
        client.sql = sql;
      });
      try {
        await within(CONNECT_TIMEOUT + 500, client.sql`select 1`);
        client.open = true;
        pause = 0;
        change('up');
        await closed;
      } catch (error) {
        const refused = !LOST.test(codeOf(error)) && !clients.some(({ open }) => open);
        if (refused) change('down', codeOf(error));
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

  function leastBusy(): Client | undefined {
    let best: Client | undefined;
    for (const client of clients) {
      if (!client.open) continue;
      if (!best || client.inFlight.size < best.inFlight.size) best = client;
    }
    return best;
  }

  /** Waits while connections are being made, not while the database refuses them. */
  async function firstOpen(): Promise<Client> {
    const end = performance.now() + CONNECT_TIMEOUT;
    numbers.waiting += 1;
    while (!leastBusy() && state !== 'down' && performance.now() < end) {
      await within(end - performance.now(), once(events, 'change')).catch(() => {});
    }
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
      for (let tries = config.POOL_SIZE + 2; ; tries -= 1) {
        const client = leastBusy() ?? (await firstOpen());
        const { sql } = client;
        const query: Pending = statement(sql);
        try {
          return await execute(client, query, DEADLINE - elapsed(), kind, call);
        } catch (error) {
          const late = elapsed() > LOCK_TIMEOUT;
          const unread = dismissed.has(sql) && !query.options?.simple;
          const last = tries === 1 || late || !mayRepeat(unread ? 'read' : kind, query, error);
          if (last) throw query.state || codeOf(error) !== '57014' ? error : unavailable();
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
        drop(query);
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

  /**
   * Stops what nobody waits for, by a connection that the driver makes for it; where it stands behind
   * others in the pipeline, it is left to run.
   */
  function drop(query: Pending): void {
    const cancelled: unknown = query.state && !query.active ? undefined : query.cancel();
    Promise.resolve(cancelled).catch(() => {});
  }

  /** A connection of its own for what takes longer than a request may; at most STREAMS at once. */
  async function* borrow(call?: Call): AsyncGenerator<Sql> {
    if (numbers.streams >= STREAMS || state === 'down') throw unavailable();
    numbers.streams += 1;
    const sql = connect(config, undefined, 0);
    const leave = () => void sql.end({ timeout: 0 });
    call?.outgoing?.once('close', leave);
    try {
      yield sql;
    } finally {
      numbers.streams -= 1;
      call?.outgoing?.off('close', leave);
      leave();
    }
  }

  /** Lines in batches at constant memory. */
  async function* stream(call: Call, statement: Statement): AsyncGenerator<Result[]> {
    for await (const sql of borrow(call)) {
      const batches = statement(sql).cursor(STREAM_ROWS)[Symbol.asyncIterator]();
      for (;;) {
        const { done, value } = await within(DEADLINE, batches.next());
        if (done) return;
        yield value;
      }
    }
  }

  /**
   * COPY … FROM STDIN, fed at the pace of the server; all of it or nothing is stored. postgres 3.4.9
   * tells an error behind the last byte to the query alone, and writes until the stream is closed.
   * The caller may be slow; the server has DEADLINE for each piece, else this throws Problem 504.
   */
  async function copy(statement: string, bytes: AsyncIterable<Buffer>): Promise<void> {
    for await (const sql of borrow()) {
      const query: Pending = sql.unsafe(statement);
      let timer: NodeJS.Timeout | undefined;
      const refused = new Promise<never>((_, reject) => {
        query.reject = reject;
      });
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
      const writable = await Promise.race([query.writable(), refused]).finally(() =>
        clearTimeout(timer),
      );
      const closed = once(writable, 'close');
      await Promise.race([finished(Readable.from(pieces()), writable), refused]).finally(() => {
        clearTimeout(timer);
        writable.destroy();
        return closed;
      });
    }
  }

  async function end(): Promise<void> {
    ending = true;
    await Promise.all(clients.map(({ sql }) => sql.end({ timeout: 1 })));
  }

  return { template: connect(config), run, stream, copy, end, numbers };
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
function connect(
  config: Config,
  onclose = () => {},
  timeout = STATEMENT_TIMEOUT,
  ondismissed = () => {},
): Sql {
  const { DATABASE_URL, DB_PREPARE } = config;
  const limits = { lock_timeout: LOCK_TIMEOUT, statement_timeout: timeout };
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
    socket: dialler(ondismissed),
  };
  return postgres(DATABASE_URL ?? '', options) as unknown as Sql;
}

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
const DISMISSED = /\0VFATAL\0C57P01\0/;

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
  columns?: string[];
  on_conflict?: string[];
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
const MOST_SHAPES = 256; // of list statements that stay prepared

const NAME = String.raw`("(?:[^"\\]|\\.)*"|(?:(?!->)[^\s".,:()*])+)`;
const CAST = String.raw`(?:::([\w ]+))?`;
const MEMBER = `(?:${NAME}:(?!:))?(?:(count)\\(\\)|${NAME}${CAST}(?:\\.(count|sum|avg|min|max)\\(\\))?)${CAST}`;
const PATTERNS = {
  name: new RegExp(NAME, 'ys'),
  member: new RegExp(MEMBER, 'ys'),
  order: new RegExp(`${NAME}(?:\\.(asc|desc))?(?:\\.nulls(first|last))?`, 'ys'),
  branch: new RegExp(` *(?:(not\\.)?(and|or) *\\(|${NAME})`, 'ys'),
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
function expected({ parameter, text, at, resource }: Reader, what: string): Problem {
  if (text.startsWith('->', at)) return noPath(resource.table);
  const found = at < text.length ? JSON.stringify(text.slice(at, at + 12)) : 'end';
  const details = `unexpected ${found} at position ${at + 1} of ${text.slice(0, 200)}`;
  const detail = `The parameter ${parameter} could not be read.`;
  return new Problem(400, 'PGRST100', detail, `expected ${what}`, { details });
}

/** Items between commas, until something else follows. */
function takeList<T>(reader: Reader, item: () => T, comma = /,/y): T[] {
  const items = [item()];
  for (;;) {
    comma.lastIndex = reader.at;
    if (!comma.test(reader.text)) return items;
    reader.at = comma.lastIndex;
    items.push(item());
  }
}

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
    if (text.includes('\0')) throw expected({ ...reader, at: text.indexOf('\0') }, 'no NUL');
    if (read && seen.has(parameter)) throw expected(reader, `${parameter} once`);
    if (!allowed.includes(read ? parameter : 'filter')) throw notHere(resource, reader, allowed);
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
  ['columns', (reader) => ({ columns: readColumns(reader, 422, 'PGRST204') })],
  ['on_conflict', (reader) => ({ on_conflict: readColumns(reader, 400, '42703') })],
]);

function notHere(resource: Resource, { parameter }: Reader, allowed: string[]): Problem {
  if (!SINGLE.has(parameter) && !/^(not\.)?(and|or)$/.test(parameter))
    knownColumn(resource, parameter);
  const hint = `Here can stand: ${allowed.join(', ') || 'none'}.`;
  return new Problem(400, 'PGRST100', `The parameter ${parameter} has no meaning here.`, hint);
}

function readColumns(reader: Reader, status: number, code: string): string[] {
  const name = () => take(reader, PATTERNS.name, 'a column')[1] ?? '';
  return takeList(reader, name).map((one) => knownColumn(reader.resource, one, status, code));
}

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
  if (isNext(reader, '(')) throw noEmbedding(name);
  if (reader.text.startsWith('.', reader.at)) throw expected(reader, what);
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
  const spread = isNext(reader, '...');
  const found = take(reader, PATTERNS.member, 'a column, alias:column, column::type or count()');
  const [, alias, count, name = '', inner, of, cast] = found;
  if (spread || isNext(reader, '(')) throw noRelation(reader.resource, name);
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

function knownColumn({ table, names }: Resource, text: string, status = 400, code = '42703') {
  const name = unquoted(text);
  if (names.includes(name)) return name;
  if (text.includes('->')) throw noPath(table);
  const [embedded, more] = text.split(/[.(]/);
  if (more !== undefined) throw noEmbedding(embedded ?? '');
  const detail = `column ${table}.${name} does not exist`;
  throw new Problem(status, code, detail, `The columns are ${names.join(', ')}.`);
}

function noPath(table: string): Problem {
  const detail = `operator does not exist: no column of ${table} is json, as -> wants it`;
  return new Problem(400, '42883', detail, 'Name a column alone.');
}

function noEmbedding(name: string): Problem {
  const detail = `'${name}' is not an embedded resource in this request`;
  return new Problem(400, 'PGRST108', detail, 'This service has one table and embeds nothing.');
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
  if (!/^ *\(/.test(text)) throw expected(reader, '"("');
  reader.text = parameter + text;
  return readBranch(reader, 1);
}

function readBranch(reader: Reader, depth: number): Filter {
  const what = 'and(, or(, or a column and "."';
  const [, not, tree, name = ''] = take(reader, PATTERNS.branch, what);
  if (!tree) take(reader, /\./y, '"." and an operator');
  if (!tree) return readCondition(reader, knownColumn(reader.resource, name), true);
  if (depth > DEEPEST) throw expected(reader, `at most ${DEEPEST} levels`);
  const branches = takeList(reader, () => readBranch(reader, depth + 1), / *,/y);
  take(reader, / *\)/y, '"," or ")"');
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
  if (!isFor(type, operator)) {
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

function isFor(type: string, operator: string): boolean {
  return !TEXTUAL.test(operator) || /^(text|character)/.test(type);
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

function isGrouped({ select = [] }: { select?: Member[] | undefined }): boolean {
  return select.some(({ aggregate }) => aggregate);
}

function groupedBy({ select = [] }: Query): string[] {
  return select.flatMap(({ aggregate, column }) => (aggregate || !column ? [] : column));
}

/** A row as JSON text, with its version in the database (xmin) for the ETag. */
export type Stored = { body: string; version: string };

/**
 * What a write did. `created`: some of its rows are new. For create(), `taken`: a key was there;
 * `same`: all that was there is as it was wanted. `found`: the row of the key is there.
 */
export type Written = Stored & {
  rows: number;
  created: boolean;
  taken: boolean;
  same: boolean;
  found: boolean;
};

/** What a write has to keep to, or nothing is changed: at most `most` rows, exactly one, `select`. */
export type Terms = { select?: Member[] | undefined; single?: boolean; most?: number | undefined };

/** One page of a list: how many rows, their JSON between commas, the cursor behind them. */
export type Page = { rows: number; body: string; more: boolean; next: string; total?: number };

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
  const returning = sql`returning t.*, t.xmin::text as "#"`;

  async function ping(call: Call): Promise<void> {
    await run('read', call, (sql) => sql`select 1`);
  }

  async function read(uuid: string, call: Call): Promise<Stored | undefined> {
    const [found] = await run('read', call, (sql) => {
      return sql`select t.xmin::text as version, ${row} as body from ${table} t where t.${key} = ${uuid}`;
    });
    return found && { body: found.body ?? '', version: found.version ?? '' };
  }

  /** Inserts all rows, or none where a key is taken; the flag tells whether by what was wanted. */
  function create(rows: Row[], terms: Terms, call: Call): Promise<Written> {
    const same = sql`row(${list(settable, 't.')}) is not distinct from row(${list(settable, 'i.')})`;
    const ctes = sql`
      input as (select * from json_populate_recordset(null::${table}, ${JSON.stringify(rows)})),
      there as (select t.*, t.xmin::text as "#", ${same} as flag from ${table} t join input i using (${key})),
      made as (
        insert into ${table} as t (${list(all)}) select ${list(all)} from input
        where not exists (select from there) ${returning}, null::boolean as flag
      ),
      changed as (select * from made union all select * from there)`;
    return write('keyed', ctes, terms, call);
  }

  /** Inserts rows; where the key is taken, `set` columns replace what is there, or nothing does. */
  function upsert(rows: Row[], set: string[], terms: Terms, call: Call): Promise<Written> {
    const update = sql`update set (${list(set)}) = row(${list(set, 'excluded.')})`;
    const ctes = sql`
      changed as (
        insert into ${table} as t (${list(all)})
        select ${list(all)} from json_populate_recordset(null::${table}, ${JSON.stringify(rows)})
        on conflict (${key}) do ${set.length > 0 ? update : sql`nothing`} ${returning}, t.xmax = 0 as flag
      )`;
    return write('write', ctes, terms, call);
  }

  /** Sets what the part has and leaves the rest, all within the statement (RFC 7396). */
  function merge(uuid: string, part: Row, versions: Versions, call: Call): Promise<Written> {
    const source = sql`json_populate_record(t, ${JSON.stringify(part)})`;
    const set = sql`set (${list(settable)}) = (select ${list(settable)} from ${source})`;
    return change(sql`update ${table} t ${set}`, byKey(uuid, versions), {}, call, uuid);
  }

  function remove(uuid: string, versions: Versions, call: Call): Promise<Written> {
    return change(sql`delete from ${table} t`, byKey(uuid, versions), {}, call, uuid);
  }

  /** The same part for all rows that pass, or each of the given rows for its own. */
  function mergeMany(
    parts: Row | Row[],
    filters: Filter[],
    terms: Terms,
    call: Call,
  ): Promise<Written> {
    const each = Array.isArray(parts);
    const part = each ? sql`i.value` : sql`${JSON.stringify(parts)}`;
    const set = sql`(${list(settable)}) = (select ${list(settable)} from json_populate_record(t, ${part}))`;
    const from = each ? sql`from json_array_elements(${JSON.stringify(parts)}) i` : sql``;
    const own = each ? [sql`t.${key} = (i.value->>${resource.key})::uuid`] : [];
    const action = sql`update ${table} t set ${set} ${from}`;
    return change(action, [...own, ...filters.map(test)], terms, call);
  }

  function removeMany(filters: Filter[], terms: Terms, call: Call): Promise<Written> {
    return change(sql`delete from ${table} t`, filters.map(test), terms, call);
  }

  function byKey(uuid: string, versions: Versions): Fragment[] {
    const known = Array.isArray(versions) ? [sql`t.xmin::text = any(${`{${versions}}`})`] : [];
    return [sql`t.${key} = ${uuid}`, ...known];
  }

  function change(action: Fragment, tests: Fragment[], terms: Terms, call: Call, uuid?: string) {
    const changed = sql`changed as (${action} ${where(tests)} ${returning}, null::boolean as flag)`;
    return write('write', changed, terms, call, uuid);
  }

  /** Runs the CTEs, of which `changed` are the rows written; a failing term makes all of it fail. */
  async function write(
    kind: Kind,
    ctes: Fragment,
    terms: Terms,
    call: Call,
    uuid?: string,
  ): Promise<Written> {
    const { single = false, most } = terms;
    const most_ = most === undefined ? sql`false` : sql`count(*) > ${most}`;
    const broken = single ? sql`count(*) <> 1 or ${most_}` : most_;
    const found = uuid
      ? sql`(select count(*) from ${table} t where t.${key} = ${uuid})`
      : sql`null`;
    const [result] = await run(
      kind,
      call,
      (sql) => sql`
      with ${ctes}
      select count(*) as rows, string_agg(${member(terms)}, ',') as body, min("#") as version,
        bool_and(flag) as every, bool_or(flag) as some, ${found} as found,
        case when ${broken} then ('!' || count(*))::int end as term
      from changed t`,
    ).catch((error) => {
      const rows = Number(/"!(\d+)"/.exec(error.message)?.[1]);
      if (codeOf(error) !== '22P02' || Number.isNaN(rows)) throw error;
      throw single && rows !== 1 ? notOne(rows) : tooMany(rows);
    });
    return {
      rows: Number(result?.rows),
      body: result?.body ?? '',
      version: result?.version ?? '',
      created: result?.some === 't',
      taken: result?.some !== null,
      same: result?.every === 't',
      found: result?.found === '1',
    };
  }

  /** One page, with bodies unless it is for HEAD, with the total when `count`. */
  async function page(
    query: Query,
    limit: number,
    wants: { body: boolean; count: boolean },
    call: Call,
  ) {
    const { after, ...whole } = query;
    const values = query.order.map((by) => sql`${column(by.column)}::text`);
    const next = isGrouped(query) ? sql`''` : sql`json_build_array(${commas(values)})::text`;
    const bodies = sql`string_agg(${member(query)}, ',') filter (where "#" <= ${limit})`;
    const total = wants.count ? sql`(select count(*) from ${source(whole, null, 0)} t)` : sql`null`;
    const rows = sql`(select row_number() over () as "#", t.* from ${source(query, limit + 1, query.offset)} t)`;
    const [result] = await run('read', call, (sql) =>
      prepared(
        query,
        sql`
      select count(*) as rows, ${wants.body ? bodies : sql`''`} as body, ${total} as total,
        max(${next}) filter (where "#" = ${limit}) as next
      from ${rows} t`,
      ),
    );
    const found = Number(result?.rows);
    return {
      rows: Math.min(found, limit),
      body: result?.body ?? '',
      more: limit > 0 && found > limit,
      next: Buffer.from(result?.next ?? '').toString('base64url'),
      ...(wants.count && { total: Number(result?.total) }),
    };
  }

  const shapes = new Set<string>();

  /** Keeps a statement prepared unless its shape is one too many: each stays in every connection. */
  function prepared(query: Query, statement: Pending): Pending {
    const shape = JSON.stringify(query, (name, value) => {
      if (name === 'after') return value?.map((one: string | null) => one === null);
      return ['value', 'limit', 'offset', 'name'].includes(name) ? undefined : value;
    });
    if (shapes.size < MOST_SHAPES) shapes.add(shape);
    if (!shapes.has(shape) && statement.options) statement.options.prepare = false;
    return statement;
  }

  /** All rows of a list, in batches: as JSON texts, or as CSV lines. */
  async function* stream(query: Query, csv: boolean, call: Call): AsyncGenerator<string[]> {
    const { select = all.map((name): Member => ({ name, column: name })) } = query;
    const values = select.map(
      (one, at) => sql`${isGrouped(query) ? raw(`t.c${at}`) : expression(one)} as ${raw(`c${at}`)}`,
    );
    const wanted = csv ? commas(values) : sql`${member(query)} as body`;
    const rows = source(query, query.limit ?? null, query.offset);
    const batches = database.stream(call, (sql) => sql`select ${wanted} from ${rows} t`);
    let header = csv ? [csvLine(select.map(({ name }) => name))] : [];
    for await (const batch of batches) {
      yield [
        ...header,
        ...batch.map((one) => (csv ? csvLine(Object.values(one)) : (one.body ?? ''))),
      ];
      header = [];
    }
    if (header.length > 0) yield header; // not before the statement has begun: it may yet fail
  }

  /**
   * COPYs CSV in and tells how many rows. What COPY does not check is checked in its WHERE, where
   * a cast that fails names the column. Throws 400 or 409 with line and column.
   */
  async function copy(csv: CsvReader): Promise<void> {
    const names = csv.columns.map(quoted).join(', ');
    const tests = Object.entries(resource.columns).map(([name, { nullable, check }]) => {
      const fails = `(${check(quoted(name))}) is ${nullable ? 'false' : 'not true'}`;
      const message = `${literal(`!${name}`)} || coalesce(left(${quoted(name)}::text, 0), '')`;
      return `when ${fails} then (${message})::int is null`; // not constant, or it failed at once
    });
    const statement = `copy ${quoted(resource.table)} (${names}) from stdin (format csv)
      where case ${tests.join(' ')} else true end`;
    await database.copy(statement, csv.lines).catch((error) => {
      throw badLine(resource, error);
    });
  }

  /** The rows of a list as a table; groups have the columns c0, c1, … in the order of `select`. */
  function source(query: Query, limit: number | null, offset: number): Fragment {
    const { select = [], filters, order, after } = query;
    const groups = isGrouped(query) ? groupedBy(query).map(column) : [];
    const members = select.map((one, at) => sql`${expression(one)} as ${raw(`c${at}`)}`);
    const tests = [...filters.map(test), ...(after ? [behind(order, after)] : [])];
    return sql`(
      select ${isGrouped(query) ? commas(members) : sql`t.*`} from ${table} t
      ${where(tests)}
      ${groups.length > 0 ? sql`group by ${commas(groups)}` : sql``}
      ${order.length > 0 ? sql`order by ${commas(order.map(direction))}` : sql``}
      limit ${limit} offset ${offset})`;
  }

  function where(tests: Fragment[]): Fragment {
    return tests.length > 0 ? sql`where ${joined(tests, sql`and`)}` : sql``;
  }

  /** A row of source() as JSON text. Names are bound as values: they may be the caller's. */
  function member(query: { select?: Member[] | undefined }): Fragment {
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

  return { ping, read, create, upsert, merge, mergeMany, remove, removeMany, page, stream, copy };
}

function csvLine(values: (string | null)[]): string {
  const field = (value: string | null) => {
    if (value === null) return '';
    return value === '' || /[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  };
  return `${values.map(field).join(',')}\n`;
}

/** CSV for COPY: the columns of its header, then its lines as a stream, counted. */
export type CsvReader = { columns: string[]; lines: AsyncIterable<Buffer>; rows: number };

/**
 * Reads the header, gives each row a key where it has none. Bytes pass as latin1, one character
 * each, so that PostgreSQL judges the encoding. Throws 400 for the header, 413 past the limit.
 */
export async function readCsv(
  resource: Resource,
  bytes: AsyncIterable<Buffer>,
  limit: number,
): Promise<CsvReader> {
  const batches = splitCsv(bytes, limit);
  const { value: [header = '', ...first] = [] } = await batches.next();
  const titles = Buffer.from(header, 'latin1')
    .toString()
    .replace(/^\ufeff/, '')
    .split(',');
  const columns = titles.map((title) =>
    csvColumn(resource, title.trim().replace(/^"(.*)"$/, '$1')),
  );
  const missing = Object.entries(resource.columns).filter(([name, column]) => {
    return !columns.includes(name) && column.default === undefined && !column.nullable;
  });
  const twice = columns.filter((name, at) => columns.indexOf(name) !== at);
  if (twice.length > 0) throw badHeader(resource, `has ${twice} twice`);
  if (missing.length > 0)
    throw badHeader(resource, `lacks ${missing.map(([name]) => name).join(', ')}`);
  const keyed = columns.includes(resource.key);
  const reader = { columns: keyed ? columns : [resource.key, ...columns], rows: 0, lines: keys() };
  return reader;

  async function* keys(): AsyncGenerator<Buffer> {
    yield withKeys(first);
    for await (const batch of batches) yield withKeys(batch);
  }

  function withKeys(records: string[]): Buffer {
    reader.rows += records.length;
    const lines = records.map((record) => (keyed ? `${record}\n` : `${uuidv7()},${record}\n`));
    return Buffer.from(lines.join(''), 'latin1');
  }
}

/** Records of CSV (RFC 4180), those of a chunk at a time: lines, of which one in quotes goes on. */
async function* splitCsv(bytes: AsyncIterable<Buffer>, limit: number): AsyncGenerator<string[]> {
  let [open, size] = ['', 0];
  for await (const chunk of bytes) {
    size += chunk.length;
    if (size > limit) throw new Problem(413, 'PGRST102', `The CSV is larger than ${limit} bytes.`);
    const lines = (open + chunk.toString('latin1')).split('\n');
    const last = lines.pop() ?? '';
    const records = [];
    open = '';
    for (const line of lines) {
      open = open === '' ? line : `${open}\n${line}`;
      if (open.includes('"') && open.split('"').length % 2 === 0) continue;
      records.push(open.endsWith('\r') ? open.slice(0, -1) : open);
      open = '';
    }
    open = open === '' ? last : `${open}\n${last}`;
    if (records.length > 0) yield records;
  }
  if (open !== '') yield [open];
}

function csvColumn(resource: Resource, title: string): string {
  const known = Object.entries(resource.columns).find(([name, { csv = '' }]) => {
    return [name, ...csv.split(', ')].includes(title);
  });
  if (title === resource.key) return title;
  return (
    known?.[0] ??
    badHeader(resource, `has ${JSON.stringify(title.slice(0, 50))}, which is no column`)
  );
}

function badHeader({ names }: Resource, what: string): never {
  const hint = `Its first line names columns: ${names.join(',')}`;
  throw new Problem(400, 'PGRST204', `The header of the CSV ${what}.`, hint);
}

/** COPY tells the line, counted without the header, and the column. */
function badLine({ columns }: Resource, error: Error & { where?: string }): unknown {
  const [, line, at] = /, line (\d+)(?:, column (\w+))?/.exec(error.where ?? '') ?? [];
  if (!line) return error;
  const { status, code, message } = toProblem(error);
  const failed = /"!(\w+)"/.exec(message)?.[1];
  const name = failed ?? at;
  const what = failed ? `${failed} must be ${columns[failed]?.expects}` : message;
  const where = `line ${Number(line) + 1}${name ? `, column ${name}` : ''}`;
  const errors = name ? [{ pointer: pointer(name), detail: `${where}: ${what}` }] : [];
  return new Problem(status, code, `${where}: ${what}`, 'Nothing was stored.', {
    details: where,
    errors,
  });
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
    if (!needsToken(config, writes)) return '';
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

function needsToken({ AUTH, JWT_SECRET, JWKS_URL }: Config, writes: boolean): boolean {
  const mode = AUTH ?? (JWT_SECRET || JWKS_URL ? 'all' : 'none');
  return mode === 'all' || (mode === 'write' && writes);
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

const OPEN = [
  '/hello',
  '/zero',
  '/healthz',
  '/readyz',
  '/openapi.json',
  '/docs',
  '/docs/:file',
  '*',
];
const METHODS = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'];
const JSON_TYPE = 'application/json';
const OBJECT = 'application/vnd.pgrst.object+json';
const CSV = 'text/csv';
const NDJSON = 'application/x-ndjson';
const MOST_FAULTS = 100;
const MAX_HEAD = 128 * 1024; // bytes of a request's head, and of its target: 800 UUIDs in in.(…)

/** The routes of a service. */
function routesOf(service: Service): Route[] {
  const { resource, metrics } = service;
  const { legacy } = resource;
  const rows = rowHandlers(service);
  const api = apiHandlers(service, () => routes);
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
  const routes: Route[] = [
    ['GET', '/hello', () => json('{"message":"ok"}')],
    ['GET', '/zero', () => json('{"0":""}')],
    ...bases.flatMap((base): Route[] => [
      ['GET', base, rows.list],
      ['POST', base, rows.create],
      ['PATCH', base, rows.mergeMany],
      ['DELETE', base, rows.removeMany],
      ['GET', `${base}/:key`, rows.read],
      ['PUT', `${base}/:key`, rows.replace],
      ['PATCH', `${base}/:key`, rows.merge],
      ['DELETE', `${base}/:key`, rows.remove],
    ]),
    ...legacyRoutes,
    ['GET', '/healthz', () => json('{"status":"alive"}')],
    ['GET', '/readyz', (c) => ready(c, service)],
    ['GET', '/openapi.json', api.document],
    ['GET', '/docs', api.page],
    ['GET', '/docs/:file', api.file],
    [
      'GET',
      '/metrics',
      async () => ({ status: 200, headers: metrics.headers, body: await metrics.print() }),
    ],
  ];
  return routes;
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
      const needsTable = route !== '/metrics' && !OPEN.includes(route);
      if (needsTable && !life.prepared) throw unavailable();
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
      log.error(
        { id, code: codeOf(error), stack: error.stack?.replace(error.message, '') },
        'failed',
      );
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
    const profile =
      incoming.headers['accept-profile'] ?? incoming.headers['content-profile'] ?? 'public';
    if (profile !== 'public')
      throw new Problem(406, 'PGRST106', 'Invalid schema', 'There is public alone.');
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
  const [, below] = /^\/rest\/v1\/(.*)$/s.exec(path) ?? [];
  const known = [/^$/, /^rpc\/[^/]+$/, /^[^/]+$/].findIndex((pattern) =>
    pattern.test(below ?? '/'),
  );
  const code = ['PGRST126', 'PGRST202', 'PGRST205'][known] ?? 'PGRST125';
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
    const type = negotiate(c, [JSON_TYPE, OBJECT, CSV, NDJSON]);
    const query = withRange(c, parseQuery(resource, parametersOf(c)));
    if (c.req.method !== 'HEAD' && (type === CSV || type === NDJSON))
      return streamed(c, type, query);
    const limit = Math.min(query.limit ?? config.MAX_ROWS, config.MAX_ROWS);
    const wants = { body: c.req.method !== 'HEAD', count: 'count' in preferencesOf(c) };
    return pageAnswer(c, type, query, await store.page(query, limit, wants, c.env.call));
  }

  function listAll(c: Ctx): Promise<Answer> {
    return streamed(
      c,
      negotiate(c, [JSON_TYPE, CSV, NDJSON]),
      parseQuery(resource, parametersOf(c)),
    );
  }

  async function streamed(c: Ctx, type: string, query: Query): Promise<Answer> {
    const batches = store.stream(query, type === CSV, c.env.call);
    const first = await batches.next(); // a fault up to here is still answered as one
    if (c.req.method === 'HEAD') {
      await batches.return(undefined);
      return { status: 200, headers: { 'Content-Type': type }, body: null };
    }
    const body = Readable.from(STREAMED[type]?.(first.value ?? [], batches) ?? []);
    return { status: 200, headers: { 'Content-Type': type }, body };
  }

  async function read(c: Ctx): Promise<Answer> {
    negotiate(c, [JSON_TYPE, OBJECT]);
    parseQuery(resource, parametersOf(c), []);
    const stored = (await store.read(keyOf(c), c.env.call)) ?? noRow();
    const tags = tagsOf(c, 'if-none-match', /^(?:W\/)?"(\d+)"$/);
    if (tags !== '*' && !tags?.includes(stored.version)) return json(stored.body, tag(stored));
    return { status: 304, headers: tag(stored), body: null };
  }

  async function create(c: Ctx): Promise<Answer> {
    const query = parseQuery(resource, parametersOf(c), ['select', 'columns', 'on_conflict']);
    if (mediaType(c) === CSV) return copy(c);
    const body = await readJson(c, config.BODY_LIMIT);
    const many = Array.isArray(body);
    const bodies = many ? body : [body];
    const keyed = idempotentKey(c, many);
    const rows = validate(resource.row, pickColumns(bodies, query), many);
    const asked = preferencesOf(c);
    const shape = shapeOf(c, many || asked.return ? 'array' : 'object');
    const terms = { ...termsOf(c, query), single: shape === 'object' };
    for (const row of rows) row[resource.key] = keyed ?? row[resource.key] ?? uuidv7();
    const named = query.columns ?? bodies.flatMap((one) => Object.keys(Object(one)));
    if (asked.resolution) return upsert(c, query, rows, [...new Set(named)], shape, terms);
    const made = await store.create(rows, terms, c.env.call);
    const mine = made.same && (keyed || c.env.call.repeated);
    if (made.taken && !mine) throw taken(keyed);
    const location = `${baseOf(c, resource)}/${rows[0]?.[resource.key]}`;
    return writeAnswer(c, 201, made, shape, {
      ...(rows.length === 1 && { Location: location, ...tag(made) }),
      ...(keyed && made.taken && { 'Idempotent-Replayed': 'true' }),
    });
  }

  async function upsert(
    c: Ctx,
    query: Query,
    rows: Row[],
    named: string[],
    shape: Shape,
    terms: Terms,
  ): Promise<Answer> {
    const { on_conflict: [target = resource.key, ...more] = [] } = query;
    const hint = `on_conflict can be ${resource.key} alone.`;
    const fits = target === resource.key && more.length === 0;
    if (!fits) throw new Problem(400, '42P10', 'There is no unique index on these columns.', hint);
    const merges = preferencesOf(c).resolution === 'merge-duplicates';
    const made = await store.upsert(rows, merges ? named : [], terms, c.env.call);
    return writeAnswer(c, made.created ? 201 : 200, made, shape, {});
  }

  async function copy(c: Ctx): Promise<Answer> {
    const csv = await readCsv(resource, bytesOf(c), config.CSV_LIMIT);
    await store.copy(csv);
    return { status: 201, headers: { 'Content-Range': `*/${csv.rows}` }, body: null };
  }

  async function replace(c: Ctx): Promise<Answer> {
    const uuid = keyOf(c);
    parseQuery(resource, parametersOf(c), []);
    const [row = {}] = validate(resource.row, [await readJson(c, config.BODY_LIMIT)], false);
    nameSame(resource, row, uuid);
    const shape = shapeOf(c, 'object'); // it refuses before anything is written
    const versions = tagsOf(c, 'if-match', /^"(\d+)"$/);
    const only = c.req.raw.headers.get('if-none-match') === '*';
    const stored = versions
      ? await store.merge(uuid, row, versions, c.env.call)
      : await store.upsert([row], only ? [] : resource.names, {}, c.env.call);
    if (stored.rows === 0) throw preconditionFailed();
    const created = stored.created && { Location: `${baseOf(c, resource)}/${uuid}` };
    const headers = { ...tag(stored), ...created };
    return writeAnswer(c, created ? 201 : 200, stored, shape, headers);
  }

  async function merge(c: Ctx): Promise<Answer> {
    const uuid = keyOf(c);
    parseQuery(resource, parametersOf(c), []);
    const body = await readJson(c, config.BODY_LIMIT, 'application/merge-patch+json');
    const [part = {}] = validate(resource.part, [body], false);
    nameSame(resource, part, uuid);
    const shape = shapeOf(c, 'object');
    const versions = tagsOf(c, 'if-match', /^"(\d+)"$/);
    const stored = changed(await store.merge(uuid, part, versions, c.env.call));
    return writeAnswer(c, 200, stored, shape, tag(stored));
  }

  async function mergeMany(c: Ctx): Promise<Answer> {
    const query = parseQuery(resource, parametersOf(c), ['filter', 'select', 'columns']);
    const body = await readJson(c, config.BODY_LIMIT, 'application/merge-patch+json');
    const many = Array.isArray(body);
    const terms = termsOf(c, query);
    const parts = validate(resource.part, pickColumns(many ? body : [body], query), many);
    const unkeyed = parts.flatMap((part, at) =>
      part[resource.key] ? [] : [`/${at}/${resource.key}`],
    );
    if (many && unkeyed.length > 0)
      throw faulty(unkeyed, 'is missing; it tells which row this is for');
    if (!many && unkeyed.length === 0)
      throw faulty([pointer(resource.key)], 'cannot be set for many');
    if (!many) guardAll(query, terms);
    const stored = await store.mergeMany(
      many ? parts : (parts[0] ?? {}),
      query.filters,
      terms,
      c.env.call,
    );
    return writeAnswer(c, 200, stored, shapeOf(c, 'nothing'), {});
  }

  async function remove(c: Ctx): Promise<Answer> {
    parseQuery(resource, parametersOf(c), []);
    const shape = shapeOf(c, 'nothing', 'object');
    const versions = tagsOf(c, 'if-match', /^"(\d+)"$/);
    const removed = changed(await store.remove(keyOf(c), versions, c.env.call));
    return writeAnswer(c, 200, removed, shape, {});
  }

  async function removeMany(c: Ctx): Promise<Answer> {
    const query = parseQuery(resource, parametersOf(c), ['filter', 'select']);
    const terms = termsOf(c, query);
    guardAll(query, terms);
    const removed = await store.removeMany(query.filters, terms, c.env.call);
    return writeAnswer(c, 200, removed, shapeOf(c, 'nothing'), {});
  }

  return { list, listAll, read, create, replace, merge, mergeMany, remove, removeMany };
}

/** RFC 9110, 13.2.1: what is not there is 404, whatever the precondition. */
function changed(written: Written): Written {
  if (written.rows > 0) return written;
  throw written.found ? preconditionFailed() : noRow();
}

/** What `Prefer` and Accept make a write keep to. */
function termsOf(c: Ctx, query: Query): Terms {
  const { 'max-affected': most, return: shown } = preferencesOf(c);
  const single = shown === 'representation' && negotiate(c, [JSON_TYPE, OBJECT]) === OBJECT;
  if (isGrouped(query)) throw new Problem(400, 'PGRST100', 'A write shows rows, no aggregates.');
  return { select: query.select, single, most: most === undefined ? undefined : Number(most) };
}

/** Nobody changes a whole table by a forgotten filter. */
function guardAll({ filters }: Query, { most }: Terms): void {
  if (filters.length > 0 || most !== undefined) return;
  const hint = 'Add a filter, or "Prefer: handling=strict, max-affected=N" to mean all rows.';
  throw new Problem(400, '21000', 'Without a filter this would change every row.', hint);
}

/** `columns=a,b`: of each row these alone. */
function pickColumns(rows: unknown[], { columns }: Query): unknown[] {
  if (!columns) return rows;
  return rows.map((row) => {
    const entries = Object.entries(Object(row)).filter(([name]) => columns.includes(name));
    return row && typeof row === 'object' ? Object.fromEntries(entries) : row;
  });
}

function faulty(pointers: string[], detail: string): Problem {
  const errors = pointers.slice(0, MOST_FAULTS).map((at) => ({ pointer: at, detail }));
  return new Problem(422, '22023', `${pointers[0]} ${detail}`, undefined, { errors });
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
  throw new Problem(422, code, detail.slice(0, 500), undefined, {
    errors: errors.slice(0, MOST_FAULTS),
  });
}

/** The type of the body without its parameters. Throws 415 where it is encoded. */
function mediaType(c: Ctx): string {
  const { 'content-type': type = '', 'content-encoding': coding = 'identity' } =
    c.env.incoming.headers;
  if (coding === 'identity') return type.replace(/;.*/s, '').trim().toLowerCase();
  throw new Problem(415, 'PGRST102', `A body in ${coding} is not read here.`, 'Send it as it is.');
}

/** The body as JSON. Throws 400, 413, 415. */
async function readJson(c: Ctx, limit: number, other = JSON_TYPE): Promise<unknown> {
  const type = mediaType(c);
  const hint = `Send "Content-Type: ${JSON_TYPE}".`;
  if (type !== JSON_TYPE && type !== other)
    throw new Problem(415, 'PGRST102', `No ${type} here.`, hint);
  const tooLarge = new Problem(413, 'PGRST102', `The body is larger than ${limit} bytes.`);
  if (Number(c.env.incoming.headers['content-length'] ?? 0) > limit) throw tooLarge;
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of bytesOf(c)) {
    size += chunk.length;
    if (size > limit) throw tooLarge;
    chunks.push(chunk);
  }
  const bytes = Buffer.concat(chunks);
  const value = isUtf8(bytes) ? toJson(bytes) : undefined;
  if (value === undefined) throw new Problem(400, 'PGRST102', 'The body is not JSON in UTF-8.');
  return value;
}

/** Whoever stops reading leaves the connection open for the answer. */
function bytesOf({ env }: Ctx): AsyncIterable<Buffer> {
  return env.incoming.iterator({ destroyOnReturn: false });
}

function parametersOf(c: Ctx): URLSearchParams {
  return new URLSearchParams(/\?(.*)/s.exec(c.env.incoming.url ?? '')?.[1]);
}

/** The offered type that Accept likes best (RFC 9110, 12.5.1). Throws 406. */
function negotiate(c: Ctx, offered: string[]): string {
  const accept = c.req.raw.headers.get('accept') ?? '*/*';
  const wanted = accept
    .toLowerCase()
    .split(',')
    .map((part) => {
      const [range = '', ...parameters] = part.split(';').map((piece) => piece.trim());
      const quality = parameters.find((parameter) => parameter.startsWith('q='))?.slice(2) ?? 1;
      const known = parameters.every((parameter) => /^(q|charset)=/.test(parameter));
      return { range, quality: known ? Number(quality) : 0 };
    });
  for (const { range, quality } of wanted.sort((a, b) => b.quality - a.quality)) {
    const prefix = range.replace(/^\*\/\*$/, '').replace(/\*$/, '');
    const found = offered.find((offer) =>
      range.endsWith('*') ? offer.startsWith(prefix) : offer === range,
    );
    if (found && quality > 0) return found;
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
function preferencesOf(c: Ctx): Preferences {
  const parts = (c.req.raw.headers.get('prefer') ?? '').split(/[,;]/).map((part) => part.trim());
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
function shapeOf(
  c: Ctx,
  natural: Shape,
  asked: Shape = natural === 'nothing' ? 'array' : natural,
): Shape {
  const { return: shown } = preferencesOf(c);
  if (!shown) return isStrict(c) ? 'nothing' : natural;
  if (shown !== 'representation') return 'nothing';
  return negotiate(c, [JSON_TYPE, OBJECT]) === OBJECT ? 'object' : asked;
}

function writeAnswer(
  c: Ctx,
  status: number,
  written: Written,
  shape: Shape,
  own: Record<string, string>,
): Answer {
  const preferences = preferencesOf(c);
  const { count } = preferences;
  const { rows, body } = written;
  const range = c.req.method === 'PATCH' && rows > 0 ? `0-${rows - 1}` : '*';
  const headers: Record<string, string> = { ...own, ...applied(preferences) };
  if (!c.req.param('key')) headers['Content-Range'] = `${range}/${count ? rows : '*'}`;
  if (shape === 'nothing') return { status: status === 200 ? 204 : status, headers, body: null };
  return json(shape === 'array' ? `[${body}]` : body, headers, status);
}

/** A page with its Content-Range and a link to the next. Throws 406, or 416 past the end. */
function pageAnswer(c: Ctx, type: string, query: Query, page: Page): Answer {
  const { rows, total, body } = page;
  if (type === OBJECT && rows !== 1) throw notOne(rows);
  if (total !== undefined && query.offset > total) throw pastEnd(query.offset, total);
  const range = rows > 0 ? `${query.offset}-${query.offset + rows - 1}` : '*';
  const link = page.more && { Link: linkToNext(c, query, page) };
  return {
    status: total !== undefined && rows < total ? 206 : 200,
    headers: {
      'Content-Type': type,
      'Content-Range': `${range}/${total ?? '*'}`,
      ...applied(preferencesOf(c)),
      ...link,
    },
    body: type === OBJECT ? body : `[${body}]`,
  };
}

function pastEnd(offset: number, total: number): Problem {
  const details = `An offset of ${offset} was requested, but there are only ${total} rows.`;
  const headers = { 'Content-Range': `*/${total}` };
  return new Problem(416, 'PGRST103', 'Requested range not satisfiable', undefined, {
    details,
    headers,
  });
}

/** `Range: 0-9` with `Range-Unit: items` does what limit and offset do. Throws 416. */
function withRange(c: Ctx, query: Query): Query {
  const { headers } = c.req.raw;
  if (headers.get('range-unit') !== 'items' || query.limit !== undefined || query.offset > 0)
    return query;
  const [, from, to] = /^(?:items=)?(\d{1,9})-(\d{1,9})?$/.exec(headers.get('range') ?? '') ?? [];
  if (from === undefined) return query;
  const limit = to === undefined ? {} : { limit: Number(to) - Number(from) + 1 };
  if (limit.limit !== undefined && limit.limit < 1) throw pastEnd(Number(from), 0);
  return { ...query, offset: Number(from), ...limit };
}

/** RFC 8288, relative. Groups have no key to go on from: theirs goes by offset. */
function linkToNext(c: Ctx, query: Query, { next, rows }: Page): string {
  const parameters = parametersOf(c);
  parameters.delete('offset');
  parameters.set(next ? 'after' : 'offset', next || String(query.offset + rows));
  return `<${c.req.path}?${parameters}>; rel="next"`;
}

/** How batches of rows become a body, by media type. */
const STREAMED: Record<
  string,
  (first: string[], rest: AsyncIterable<string[]>) => AsyncGenerator<string>
> = {
  [JSON_TYPE]: async function* array(first, rest) {
    yield `[${first}`;
    for await (const batch of rest) yield `,${batch}`;
    yield ']';
  },
  [CSV]: async function* lines(first, rest) {
    yield first.join('');
    for await (const batch of rest) yield batch.join('');
  },
  [NDJSON]: async function* rows(first, rest) {
    if (first.length > 0) yield `${first.join('\n')}\n`;
    for await (const batch of rest) yield `${batch.join('\n')}\n`;
  },
};

// --- OpenAPI --------------------------------------------------------------------

/** `takes`: PARAMETERS, `*` for the filters. Body, answers: contentsOf(), a type, an example. */
type Operation = [summary: string, takes: string, body: string, answers: Answers];
type Answers = Record<number, string | object>;
type Contents = Record<string, object>;

const [PAGED, CREATED] = ['select order limit offset after', 'select columns on_conflict'];
const [CHANGED, MANY] = [
  { 200: 'row', 204: '' },
  { 200: 'made', 204: '' },
] as const;
/** By the name of the handler, or by the path where it has none. */
const OPERATIONS: Record<string, Operation> = {
  list: ['List rows', `* ${PAGED} Range Prefer`, '', { 200: 'rows', 206: 'rows' }],
  listAll: ['Stream rows', `* ${PAGED}`, '', { 200: 'all' }],
  create: ['Create rows', `${CREATED} Prefer Idempotency-Key`, 'new', { 200: 'made', 201: 'made' }],
  mergeMany: ['Change the rows that pass', '* select columns Prefer', 'parts', MANY],
  removeMany: ['Delete the rows that pass', '* select Prefer', '', MANY],
  read: ['Read a row', 'If-None-Match', '', { 200: 'row', 304: '' }],
  replace: ['Put a row', 'Prefer If-Match If-None-Match', 'whole', { ...CHANGED, 201: 'row' }],
  merge: ['Change a row', 'Prefer If-Match', 'part', CHANGED],
  remove: ['Delete a row', 'Prefer If-Match', '', CHANGED],
  '/hello': ['Say ok', '', '', { 200: { message: 'ok' } }],
  '/zero': ['Say nothing', '', '', { 200: { 0: '' } }],
  '/healthz': ['The process answers', '', '', { 200: { status: 'alive' } }],
  '/readyz': ['The database answers too', '', '', { 200: { status: 'ready' } }],
  '/metrics': ['Metrics for Prometheus', '', '', { 200: 'text/plain' }],
  document: ['This document', '', '', { 200: 'application/json' }],
  page: ['This document as a page', '', '', { 200: 'text/html' }],
  file: ['A file of the page', '', '', { 200: 'text/*' }],
};

const TAGS = { rows: 'As they are', PostgREST: "With its clients' defaults", service: 'Itself' };
const [TREE, STRING] = ['`(column.operator.value,or(…))`, up to 10 levels', { type: 'string' }];
const TREES = ['and', 'or', 'not.and', 'not.or'];
const WHOLE = { schema: { type: 'integer', minimum: 0 } };
const HEADER = /^[A-Z]/;
/** What they are for, the filters aside. */
const PARAMETERS: Record<string, [description: string, more?: object]> = {
  select: ['`column`, `alias:column`, `column::type`, `count()`, `column.avg()`'],
  order: ['`column.desc.nullslast,column`'],
  limit: ['Rows at most', WHOLE],
  offset: ['Rows to leave out', WHOLE],
  after: ['The cursor of `Link: rel="next"`'],
  ...Object.fromEntries(TREES.map((name) => [name, [TREE]])),
  Prefer: [
    '`return=minimal`: no rows',
    { example: 'return=representation, count=exact, max-affected=1' },
  ],
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

function describeApi({ config, resource }: Service, routes: Route[]) {
  const paths: Record<string, Record<string, object>> = {};
  const contents = contentsOf(resource);
  for (const [method, path, { name }] of routes) {
    const operation = OPERATIONS[name || path];
    if (!operation) throw new Error(`OPERATIONS has no ${name || path}`);
    const secured = !OPEN.includes(path) && needsToken(config, method !== 'GET');
    const told = describeOperation(resource, path, operation, contents);
    const operationId = [method.toLowerCase(), ...(path.match(/\w+/g) ?? [])].join('_');
    const item = { ...told, operationId, security: secured ? [{ bearer: [] }] : [] };
    const at = path.replace(/:(\w+)/g, '{$1}');
    paths[at] = { ...paths[at], [method.toLowerCase()]: item };
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
  return { openapi: '3.1.1', info, servers: [{ url: '/' }], tags, paths, components };
}

function describeOperation({ names }: Resource, path: string, told: Operation, contents: Contents) {
  const [summary, takes, body, answers] = told;
  const contentOf = (of: string | object) =>
    typeof of === 'string' ? (contents[of] ?? { [of]: {} }) : inJson({ type: 'object' }, of);
  const list = [...names.map((name) => `column.${name}`), ...TREES].join(' ');
  const parameters = `${path.match(/(?<=:)\w+/g) ?? ''} ${takes.replace('*', list)}`.match(/\S+/g);
  const responses = Object.entries(answers).map(([status, of]) => {
    const content = of && { content: contentOf(of) };
    return [status, { description: STATUS_CODES[status], ...content }];
  });
  const ofRows = Object.values(answers).some((of) => String(of) in contents);
  const failures = { '4XX': refer('responses/Problem'), '5XX': refer('responses/Problem') };
  return {
    summary,
    tags: [path.startsWith('/rest/') ? 'PostgREST' : ofRows ? 'rows' : 'service'],
    parameters: (parameters ?? []).map((name) => refer(`parameters/${name}`)),
    ...(body && { requestBody: { required: true, content: contentOf(body) } }),
    responses: { ...Object.fromEntries(responses), ...failures },
  };
}

function inJson(schema: object, example: unknown) {
  return { 'application/json': { schema, example } };
}

function contentsOf({ key, example }: Resource): Contents {
  const [Row, NewRow] = [refer('schemas/Row'), refer('schemas/NewRow')];
  const { [key]: _, ...fresh } = example;
  const many = (items: object) => ({ type: 'array', items });
  const either = (schema: object) => ({ anyOf: [schema, many(schema)] });
  const part = inJson(refer('schemas/Part'), fresh);
  const examples = { one: { value: fresh }, many: { value: [fresh] } };
  const text = { [CSV]: { schema: STRING }, [NDJSON]: { schema: STRING } };
  const csv = csvLine(Object.keys(fresh)) + csvLine(Object.values(fresh).map(String));
  return {
    row: inJson(Row, example),
    all: { ...inJson(many(Row), [example]), ...text },
    rows: { ...inJson(many(Row), [example]), [OBJECT]: { schema: Row, example }, ...text },
    new: {
      'application/json': { schema: either(NewRow), examples },
      [CSV]: { schema: STRING, example: csv },
    },
    parts: inJson(either(refer('schemas/Part')), fresh),
    made: inJson(either(Row), [example]),
    whole: inJson(NewRow, example),
    part: { ...part, 'application/merge-patch+json': part['application/json'] },
  };
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
    const schema = { ...STRING, pattern, examples: [`eq.${example[name]}`] };
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

const FILES = ['swagger-ui.css', 'swagger-ui-bundle.js', 'start.js'];
const START = "SwaggerUIBundle({ url: 'openapi.json', dom_id: 'main', validatorUrl: null });\n";
const POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; " +
  "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

function apiHandlers(service: Service, routes: () => Route[]) {
  const document = () => json(JSON.stringify(describeApi(service, routes())));

  function page(): Answer {
    const type = { 'Content-Type': 'text/html; charset=utf-8' };
    const body = `<!doctype html><html lang="en"><meta charset="utf-8">
      <meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
      <title>${service.resource.path}</title><link rel="stylesheet" href="docs/swagger-ui.css">
      <main></main><script src="docs/swagger-ui-bundle.js"></script>
      <script src="docs/start.js"></script></html>`;
    return { status: 200, headers: { ...type, 'Content-Security-Policy': POLICY }, body };
  }

  async function file(c: Ctx): Promise<Answer> {
    const name = c.req.param('file') ?? '';
    if (!FILES.includes(name)) throw noRoute(c, []);
    const path = () => fileURLToPath(import.meta.resolve(`swagger-ui-dist/${name}`));
    const body = name === 'start.js' ? START : await readFile(path(), 'utf8');
    const type = `text/${name.endsWith('css') ? 'css' : 'javascript'}; charset=utf-8`;
    const kept = { 'Cache-Control': 'public, max-age=86400', 'X-Content-Type-Options': 'nosniff' };
    return { status: 200, headers: { 'Content-Type': type, ...kept }, body };
  }

  return { document, page, file };
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
  return new Promise((resolve, reject) => {
    const hear = ({ metrics }: { metrics?: string | null }) => {
      if (metrics === undefined) return;
      process.off('message', hear);
      if (metrics !== null) resolve(metrics);
      else reject(unavailable('A worker does not answer.'));
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
  setFlagsFromString('--max-semi-space-size=2'); // or the garbage of a streamed list adds 60 MB
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
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP']) {
      process.on(signal, cluster.isWorker ? () => {} : end); // a worker hears its primary alone
    }
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
    await within(DEADLINE + 1000, once(server.close(), 'close')).catch(() =>
      server.closeAllConnections(),
    );
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
    const metrics = await summed.clusterMetrics().catch(() => null); // a worker hangs, or has died
    worker.send({ metrics }, () => {});
  });
  for (let count = 0; count < config.WEB_CONCURRENCY; count += 1) fork();
  const listening = once(cluster, 'listening').then(([, address]) => urlOf(address));
  const stop = async () => {
    stopping = true;
    const living = () =>
      Object.values(cluster.workers ?? {}).filter((one) => one?.isDead() === false);
    const end = performance.now() + DEADLINE + 1500;
    for (; living().length > 0; await sleep(50)) {
      for (const worker of living()) {
        if (performance.now() > end + config.SHUTDOWN_GRACE * 1000) worker?.process.kill('SIGKILL');
        else worker?.send({ ask: 'stop' }, () => {}); // again: one that starts does not hear yet
      }
    }
  };
  return { url: await Promise.race([listening, failed]), failed, stop };
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
  server.on('checkExpectation', ({ socket, method }) =>
    refuse(socket, 417, 'Only 100-continue is known.', method === 'HEAD'),
  );
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
  const database = openDatabase({ ...config, POOL_SIZE: 1 }, log);
  const store = createStore(resource, database);
  const call: Call = { sub: '', ms: 0, repeated: false };
  await ensureTable(resource, database);
  if (embedded.fresh && resource.sample) await store.create(await readSample(resource), {}, call);
  const wants = { body: true, count: false };
  const { body } = await store.page(parseQuery(resource, []), 1, wants, call);
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
