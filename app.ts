/**
 * passengers: a CRUD API over PostgreSQL. This file is the program: what is served, its endpoints,
 * how they are wired, and the start. lib/ has the rest, one topic a file.
 *
 *     npm install && npm start                        with an embedded PostgreSQL
 *     DATABASE_URL=postgres://... node app.ts         with yours (Node 22.18 or newer)
 *     node app.ts token --sub me --expires 1h         prints a token signed with JWT_SECRET
 *     node app.ts examples/orders.ts                  serves other tables, as RESOURCE does
 */
import { pathToFileURL } from 'node:url';
import { Hono, type MiddlewareHandler } from 'hono';
import type { Logger } from 'pino';
import { z } from 'zod';
import { createAuth, makeToken, needsToken } from './lib/auth.ts';
import {
  adopt,
  MAX_ARRAY,
  mediaType,
  type Purpose,
  type Rows,
  readJson,
  readKey,
  toRows,
} from './lib/body.ts';
import {
  boolean,
  checkPaths,
  integer,
  number,
  oneOf,
  type Resource,
  type Row,
  resource,
  text,
} from './lib/columns.ts';
import { type Config, readArguments, readConfig } from './lib/config.ts';
import { readCsv } from './lib/csv.ts';
import { groupedBy, LIST, type Query } from './lib/dialect.ts';
import { CSV, JSON_TYPE, NDJSON, OBJECT } from './lib/headers.ts';
import {
  answerError,
  authenticate,
  type C,
  describe,
  type Env,
  idempotencyKey,
  notFound,
  observe,
  preconditions,
  preferred,
  readQuery,
  refuseAll,
  send,
  sendPage,
  sendWritten,
  stream,
  tag,
  typeFor,
} from './lib/http.ts';
import { openLog, say } from './lib/log.ts';
import { createMetrics } from './lib/metrics.ts';
import { documentTable, openapi, PAGE_HEADERS, page, pageFile } from './lib/openapi.ts';
import { Pool } from './lib/pool.ts';
import {
  keyTaken,
  noRow,
  notOne,
  Problem,
  pointer,
  preconditionFailed,
  StartError,
  tooMany,
  unavailable,
  unprocessable,
} from './lib/problem.ts';
import type { Format } from './lib/rows.ts';
import { greeting, startTrial } from './lib/sample.ts';
import { exitWith, isMain, type Service, serve, untilSignal } from './lib/server.ts';
import { Store, type Terms, type Written } from './lib/store.ts';
import { ensureTable } from './lib/table.ts';
import { isPrimary, supervise } from './lib/workers.ts';

// --- What is served ---------------------------------------------------------------

/**
 * One line a column. Table, validation, filters, CSV header and OpenAPI document follow from it. On a
 * table in use, a new column needs `default` or `nullable`; the next start adds it.
 */
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
});

/** What is served; a further table goes into this list. RESOURCE serves another file instead. */
const served = [passengers];
export default served;

/**
 * Endpoints besides those of the tables; here those of python-crud-api, for clients that still use
 * them. Write yours in the same way: they come before `/passengers/:key`, so that
 * `/passengers/stats` is free. ``pool.json(sql`...`)`` runs one read and gives an array of objects.
 */
export const endpoints: Endpoints = (app, { tables, secured }) => {
  const rows = tables[passengers.path] as Handlers;
  app.get('/passengerlist', secured, rows.listAll);
  app.post('/postpassenger', secured, rows.create);
  app.get('/getpassenger/:key', secured, rows.read);
  app.put('/putpassenger/:key', secured, rows.replace);
  app.delete('/deletepassenger/:key', secured, rows.remove);
};

/** Adds routes to the application; `secured` lets in who may read (GET) or write (other methods). */
export type Endpoints = (
  app: Hono<Env>,
  service: { tables: Record<string, Handlers>; secured: MiddlewareHandler<Env>; pool: Pool },
) => void;

/** What a program exports: `default`, here as `resources`, and `endpoints` if it has any. */
type Program = { resources: Resource[]; endpoints?: Endpoints | undefined };

// --- Endpoints --------------------------------------------------------------------

export type Handlers = ReturnType<typeof handlersFor>;
type Limits = Pick<Config, 'BASE_PATH' | 'MAX_ROWS' | 'BODY_LIMIT' | 'CSV_LIMIT'>;

/** How a write answers; without a media type, with nothing. */
type Answer = Terms & { type: Format | undefined; counted?: boolean };

/** The endpoints of one table. Each reads its request, asks the store once, and answers. */
export function handlersFor(resource: Resource, store: Store, limits: Limits) {
  const { key, path, keyMaker } = resource;

  /** A page as JSON; all rows, streamed, as CSV or NDJSON. */
  async function list(c: C) {
    const format = typeFor(c, [JSON_TYPE, CSV, NDJSON, OBJECT]);
    if (format === CSV || format === NDJSON) return listAll(c);
    const query = readQuery(c, resource, LIST);
    const limit = Math.min(query.limit ?? limits.MAX_ROWS, limits.MAX_ROWS);
    const count = Boolean(preferred(c, 'count'));
    const page = await store.page(query, { limit, count, format }, c.get('call'));
    return sendPage(c, format, query, page);
  }

  /** All rows, streamed. */
  async function listAll(c: C) {
    const format = typeFor(c, [JSON_TYPE, CSV, NDJSON]);
    const query = readQuery(c, resource, LIST);
    const count = Boolean(preferred(c, 'count'));
    return stream(c, format, query, await store.stream(query, { count, format }, c.get('call')));
  }

  async function read(c: C) {
    const type = typeFor(c, [JSON_TYPE, OBJECT]);
    readQuery(c, resource, []);
    const row = await store.read(keyOf(c), c.get('call'));
    if (row.rows === 0) throw noRow();
    const { match, noneMatch } = preconditions(c);
    if (match && match !== '*' && !match.includes(row.version)) throw preconditionFailed();
    if (noneMatch === '*' || noneMatch?.includes(row.version)) return send(c, 304, null, tag(row));
    return send(c, 200, row.body, { 'Content-Type': type, ...tag(row) });
  }

  /** An object, an array or CSV (all rows or none), or an upsert with `Prefer: resolution`. */
  async function create(c: C) {
    const query = readQuery(c, resource, ['select', 'columns', 'on_conflict']);
    const hint = 'PUT, PATCH and DELETE have preconditions.';
    if (preconditions(c).match) throw new Problem(400, 'PGRST100', 'If-Match has no effect.', hint);
    if (mediaType(c.env.incoming) === CSV) return createFromCsv(c, query);
    const body = await readBody(c, resource.row, purposeOf(c), query.columns);
    return createRows(c, query, body, answerOf(c, query, { many: body.many }));
  }

  async function createRows(c: C, query: Query, { rows, many, names }: Rows, answer: Answer) {
    const resolution = preferred(c, 'resolution');
    preferred(c, 'missing'); // a column that the body omits always gets its default
    const [row] = rows;
    const idempotent = idempotencyKey(c, keyMaker, !many && row?.[key] === undefined);
    if (idempotent && row) row[key] = idempotent;
    const ofOne = (made: Written) => {
      const id = rows.length === 1 ? (row?.[key] ?? made.key) : undefined;
      return id === undefined ? {} : { Location: locationOf(c, id), ...tag(made) };
    };
    if (resolution) {
      const [call, set] = [c.get('call'), resolution === 'merge-duplicates' ? names : []];
      const made = await store.upsert(rows, set, { ...answer, on: query.on_conflict }, call);
      const none = made.rows === 0 && answer.format === OBJECT; // the key was taken
      if (none && answer.type === OBJECT) throw notOne(0);
      const type = none ? undefined : answer.type;
      return sendWritten(c, made.created ? 201 : 200, made, type, made.created ? ofOne(made) : {});
    }
    const isPlain = !many && !query.select && answer.most === undefined;
    const alone = isPlain && (answer.format ?? OBJECT) === OBJECT && keyMaker !== 'database' && row;
    const made = alone
      ? await store.create(row, c.get('call'))
      : await store.createMany(rows, answer, c.get('call'));
    const repeated = made.same && (idempotent || c.get('call').repeated);
    if (!made.created && !repeated && rows.length > 0) throw keyTaken(idempotent);
    return sendWritten(c, 201, made, answer.type, {
      ...(answer.counted && { 'Content-Range': `*/${made.rows}` }),
      ...ofOne(made),
      ...(idempotent && !made.created && { 'Idempotent-Replayed': 'true' }),
    });
  }

  /** Like an array; more rows than an array may have are streamed, if nothing else is asked for. */
  async function createFromCsv(c: C, query: Query) {
    const answer = { ...answerOf(c, query, { many: true, silent: true }), counted: true };
    const bytes = c.env.incoming.iterator({ destroyOnReturn: false }); // the answer still needs it
    try {
      const change = (part: Rows) => adopt(part, resource, purposeOf(c), c.get('call').sub);
      const { columns } = query;
      const { rest, ...body } = await readCsv(resource, bytes, limits.CSV_LIMIT, columns, change);
      if (!rest) return await createRows(c, query, body, answer);
      if (preferred(c, 'resolution') || answer.type || answer.most !== undefined)
        throw new Problem(413, 'PGRST102', `With these preferences: ${MAX_ARRAY} rows at most.`);
      const rows = await store.copy(body.rows, rest, body.names, c.get('call'));
      return send(c, 201, null, { 'Content-Range': `*/${rows}` });
    } finally {
      void bytes.return?.();
    }
  }

  /** Replaces the row, or creates it. */
  async function replace(c: C) {
    const answer = answerOf(c, readQuery(c, resource, []));
    const row = await readRow(c, resource.row);
    const made = await store.replace(row, preconditions(c), c.get('call'));
    if (made.rows === 0) throw noRow();
    const location = made.created && { Location: locationOf(c, row[key]) };
    const headers = { ...tag(made), ...location };
    return sendWritten(c, made.created ? 201 : 200, made, answer.type, headers);
  }

  /** Sets what the body has (JSON merge patch, RFC 7396). */
  async function merge(c: C) {
    const answer = answerOf(c, readQuery(c, resource, []));
    const part = await readRow(c, resource.part);
    const made = await store.merge(keyOf(c), part, preconditions(c), c.get('call'));
    if (made.rows === 0) throw noRow();
    return sendWritten(c, 200, made, answer.type, tag(made));
  }

  async function remove(c: C) {
    const answer = answerOf(c, readQuery(c, resource, []), { silent: true });
    const made = await store.remove(keyOf(c), preconditions(c), c.get('call'));
    if (made.rows === 0) throw noRow();
    return sendWritten(c, 200, made, answer.type);
  }

  /** Sets one object in all rows that pass the filters, or each of an array in the row of its key. */
  async function mergeMany(c: C) {
    const query = readQuery(c, resource, ['filter', 'select', 'columns']);
    const answer = answerOf(c, query, { silent: true });
    const { rows, many } = await readBody(c, resource.part, 'part', query.columns);
    if (!many) refuseAll(c, query.filters);
    const call = c.get('call');
    const made = many
      ? await store.mergeRows(rows, query.filters, answer, call)
      : await store.mergeMany(rows[0] ?? {}, query.filters, answer, call);
    return sendWritten(c, 200, made, answer.type);
  }

  async function removeMany(c: C) {
    const query = readQuery(c, resource, ['filter', 'select']);
    const answer = answerOf(c, query, { silent: true });
    refuseAll(c, query.filters);
    const made = await store.removeMany(query.filters, answer, c.get('call'));
    return sendWritten(c, 200, made, answer.type);
  }

  // What the endpoints share. readBody() validates JSON, as readCsv() does CSV.

  /** What a write answers: the row, the rows, or nothing. PostgREST's clients get nothing unasked. */
  function answerOf(c: C, { select }: Query, { many = false, silent = false } = {}): Answer {
    if (groupedBy({ select }))
      throw new Problem(400, 'PGRST100', 'A write answers rows, not aggregates.');
    const single = Boolean(c.req.param('key'));
    const wanted = preferred(c, 'return');
    const most = preferred(c, 'max-affected');
    if (single && most && Number(most) < 1) throw tooMany(1);
    const type = typeFor(c, single ? [JSON_TYPE, OBJECT] : [JSON_TYPE, CSV, NDJSON, OBJECT]);
    const alone = type === JSON_TYPE && wanted !== 'representation' && !many;
    const terms = {
      format: single || alone ? OBJECT : type,
      select,
      ...(most !== undefined && { most: Number(most) }),
      ...preconditions(c),
    };
    const nothing = wanted ? wanted !== 'representation' : silent || isPostgrest(c);
    return nothing ? { ...terms, format: undefined, type: undefined } : { ...terms, type };
  }

  function purposeOf(c: C): Purpose {
    return preferred(c, 'resolution') ? 'upsert' : 'create';
  }

  async function readBody(c: C, schema: z.ZodType<Row>, purpose: Purpose, columns?: string[]) {
    const body = toRows(await readJson(c.env.incoming, limits.BODY_LIMIT), schema, columns);
    return adopt(body, resource, purpose, c.get('call').sub);
  }

  /** The object in a body for `/:key`; a key in it has to equal the one in the path. */
  async function readRow(c: C, schema: z.ZodType<Row>): Promise<Row> {
    const given = keyOf(c);
    const { rows, many } = await readBody(c, schema, 'one');
    const [row = {}] = rows;
    if (many) throw unprocessable([{ pointer: '', detail: 'must be an object' }]);
    row[key] ??= resource.toKey(given);
    const fault = { pointer: pointer(key), detail: 'differs from the key in the path' };
    if (String(row[key]) !== given) throw unprocessable([fault]);
    return row;
  }

  function keyOf(c: C): string {
    return readKey(resource, c.req.param('key') ?? '');
  }

  /** Whether the client is PostgREST's, for whom a write answers nothing unless asked. */
  function isPostgrest(c: C): boolean {
    return c.req.path.startsWith(`${limits.BASE_PATH}/rest/v1/`);
  }

  function locationOf(c: C, id: unknown): string {
    const base = `${limits.BASE_PATH}${isPostgrest(c) ? '/rest/v1' : ''}`;
    return `${base}/${path}/${encodeURIComponent(String(id))}`;
  }

  return { list, listAll, read, create, replace, merge, remove, mergeMany, removeMany };
}

/** The routes of one table. */
function routes(rows: Handlers, secured: MiddlewareHandler<Env>) {
  return new Hono<Env>()
    .get('/', secured, rows.list)
    .post('/', secured, rows.create)
    .patch('/', secured, rows.mergeMany)
    .delete('/', secured, rows.removeMany)
    .get('/:key', secured, rows.read)
    .put('/:key', secured, rows.replace)
    .patch('/:key', secured, rows.merge)
    .delete('/:key', secured, rows.remove);
}

// --- The application --------------------------------------------------------------

/** Makes the pool, the metrics and the check of tokens; returns before the database answers. */
export function connect(config: Config, { resources, endpoints }: Program, log: Logger) {
  const pool = new Pool(config, log);
  const metrics = createMetrics(config, pool);
  const authorize = createAuth(config, log);
  const life = { prepared: false, stopping: false };
  return { config, resources, endpoints, log, pool, metrics, authorize, life };
}

type Opened = ReturnType<typeof connect>;

/** The application; `fetch` answers a request. */
export function createApp(service: Opened): Hono<Env> {
  const { config, resources, pool, metrics, authorize, life } = service;
  const { APP_VERSION: version, APP_BRANCH: branch, APP_COMMIT: commit } = config;
  const { BASE_PATH: base, APP_STACK: stack } = config;
  const name = resources[0]?.path ?? '';
  const about = { name, version, branch, commit, stack };
  const linked = ['docs', 'openapi.json', ...resources.map(({ path }) => path)];
  const links = Object.fromEntries(linked.map((to) => [to, `${base}/${to}`]));
  const secured = authenticate(authorize, life);

  const root = new Hono<Env>({ strict: false }); // without BASE_PATH, which probes do not know
  const app = root.basePath(base);
  root.use(observe(service)); // headers of every answer: commonHeaders() in lib/http.ts
  root.onError(answerError).notFound(notFound(root));
  root.options('*', describe(root, about));
  for (const prefix of new Set(['', base])) {
    root.get(prefix || '/', describe(root, { ...about, links }));
    addProbes(root, prefix, service);
  }
  root.get('/metrics', authenticate(authorize), async (c) => {
    return c.body(await metrics.print(), 200, { 'Content-Type': metrics.type });
  });
  app.get('/hello', (c) => c.json({ message: 'ok' }));
  app.get('/zero', (c) => c.json({ '0': '' }));
  app.get('/openapi.json', (c) => {
    const needed = (method: string) => needsToken(config, method !== 'GET');
    return c.json(openapi(root.routes, resources, { title: name, version, base, secured: needed }));
  });
  app.get('/docs', (c) => c.html(page(name, base), 200, PAGE_HEADERS));
  app.get('/docs/:file', async (c) => {
    const { body, headers } = await pageFile(c.req.param('file'));
    return c.body(body, 200, headers);
  });

  const tables: Record<string, Handlers> = {};
  for (const one of resources)
    tables[one.path] = documentTable(one, handlersFor(one, new Store(one, pool), config));
  service.endpoints?.(app, { tables, secured, pool }); // the first route that matches answers
  for (const [path, rows] of Object.entries(tables)) {
    const routed = routes(rows, secured);
    app.route(`/${path}`, routed).route(`/rest/v1/${path}`, routed);
  }
  return root;
}

/** For Kubernetes: a shared database that is down makes no replica unready. */
function addProbes(root: Hono<Env>, prefix: string, { pool, life }: Opened): void {
  root.get(`${prefix}/healthz`, (c) => c.json({ status: 'alive' }));
  root.get(`${prefix}/readyz`, (c) => {
    if (life.stopping || !life.prepared) throw unavailable('The service starts or stops.');
    return c.json({ status: 'ready' });
  });
  root.get(`${prefix}/healthz/database`, async (c) => {
    await pool.ping();
    return c.json({ status: 'ready' });
  });
}

// --- Start ------------------------------------------------------------------------

/** Serves until a signal. Rejects with StartError when an operator has to fix something. */
export async function main(args: string[], environment: NodeJS.ProcessEnv): Promise<void> {
  const { token, file } = readArguments(args);
  const config = readConfig(environment);
  if (token) {
    process.stdout.write(`${await makeToken(config, token)}\n`);
    return;
  }
  const program = await load(file ?? config.RESOURCE);
  checkPaths(program.resources);
  checkOwners(config, program.resources);
  const log = openLog(config.LOG_LEVEL);
  const ended = untilSignal();
  const given = config.DATABASE_URL || config.PGHOST;
  const starting = given ? undefined : startTrial(config, program.resources);
  const trial = await Promise.race([starting, ended.then(() => 'ended' as const)]);
  if (trial === 'ended') return;
  if (trial) config.DATABASE_URL = trial.url;
  const running = isPrimary(config)
    ? await supervise(config, log)
    : await serve(config, open(config, program, log), log);
  const hello = greeting(config, running.url, program.resources, trial?.home);
  if (config.NODE_ENV !== 'production') say(hello);
  try {
    await Promise.race([ended, running.failed]);
  } finally {
    log.info('stopping');
    await running.stop();
    trial?.stop();
  }
}

/** The program in a file, named as seen from the working directory; without one, this file's. */
async function load(file: string | undefined): Promise<Program> {
  if (!file) return { resources: served, endpoints };
  const found = await import(pathToFileURL(file).href).catch(({ message }) => {
    throw new StartError(`RESOURCE ${file} cannot be imported: ${message}`);
  });
  const resources = [found.default].flat();
  if (resources.length > 0 && resources.every((one) => one?.row instanceof z.ZodType))
    return { resources, endpoints: found.endpoints };
  throw new StartError(`RESOURCE ${file} has no default export that resource() made`);
}

function checkOwners(config: Config, resources: Resource[]): void {
  const { owner } = resources.find((one) => one.owner) ?? {};
  if (owner && !needsToken(config, false))
    throw new StartError(`AUTH=all with JWT_SECRET or JWKS_URL is required: rows have a ${owner}`);
}

function open(config: Config, program: Program, log: Logger): Service {
  const service = connect(config, program, log);
  const { pool, life } = service;
  const prepare = async () => {
    for (const one of program.resources) await ensureTable(one, pool);
  };
  return { fetch: createApp(service).fetch, life, prepare, close: () => pool.end() };
}

if (isMain(import.meta.url)) {
  process.on('uncaughtException', exitWith);
  main(process.argv.slice(2), process.env).then(() => process.exit(0), exitWith);
}
