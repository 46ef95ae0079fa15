/** HTTP for the endpoints: what happens around each request, and how they read and answer it. */
import { randomUUID } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { pipeline } from 'node:stream';
import type { HttpBindings } from '@hono/node-server';
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response';
import type { Context, Hono, MiddlewareHandler } from 'hono';
import { matchedRoutes } from 'hono/route';
import type { Logger } from 'pino';
import { v5 as uuidv5 } from 'uuid';
import type { Authorize } from './auth.ts';
import type { Resource } from './columns.ts';
import type { Config } from './config.ts';
import { type Parameter, parseQuery, type Query } from './dialect.ts';
import {
  negotiate,
  OBJECT,
  type Preferences,
  parsePrefer,
  parseRange,
  parseTags,
} from './headers.ts';
import type { Metrics } from './metrics.ts';
import { type Call, ownCall } from './pool.ts';
import {
  badRange,
  clientLeft,
  codeOf,
  nothingHere,
  notOne,
  Problem,
  problemAnswer,
  toProblem,
  UNDECLARED,
  unavailable,
} from './problem.ts';
import type { Format } from './rows.ts';
import type { Page } from './select.ts';
import { type Life, MAX_HEAD, METHODS } from './server.ts';
import type { Preconditions } from './statements.ts';
import type { Store, Written } from './store.ts';

/** What Hono's context has here: Node's request and response, and what observe() sets. */
export type Env = { Bindings: HttpBindings; Variables: { call: Call; state: State } };
export type C = Context<Env>;
type Headers = Record<string, string>;

/** What the middleware knows of a request. */
type State = {
  service: Observers;
  id: string; // X-Request-Id of the answer
  started: number; // ms of performance.now()
  prefer: Preferences; // of the request
  applied: Set<string>; // preferences that the answer honours
  complete: boolean; // whether the answer has the headers of every answer
};

const STALLED = 5000; // ms; Node 20 and 26 report a write that does not move after twice this time
const IDEMPOTENCY = '6c1f7c54-5d2a-4b0e-9a55-2f1f0a3c8d10'; // namespace of keys from Idempotency-Key
const MAX_LINK = 4096; // bytes; fetch() of Node refuses an answer whose head has 16 KiB

// --- Around each request ----------------------------------------------------------

type Observers = { metrics: Metrics; log: Logger; life: Life; config: Pick<Config, 'CORS_ORIGIN'> };

/** Gives a request its id; afterwards counts it and adds the headers of every answer. */
export function observe(service: Observers): MiddlewareHandler<Env> {
  const { metrics, log } = service;
  return async (c, next) => {
    const { incoming, outgoing } = c.env;
    const { url = '', rawHeaders, headers, httpVersion } = incoming;
    const given = String(headers['x-request-id'] ?? '');
    const id = /^[\w.:/+=-]{1,128}$/.test(given) ? given : randomUUID();
    const started = performance.now();
    const state = { service, id, started, prefer: {}, applied: new Set<string>(), complete: false };
    c.set('state', state);
    const call = { ...ownCall(), outgoing, client: clientOf(incoming) };
    c.set('call', call);
    incoming.once('end', () => {
      call.since = performance.now(); // the time that a body takes has limits of its own
    });
    if (httpVersion === '1.1' && !headers.host)
      throw new Problem(400, 'PGRST100', 'The Host is missing.');
    const bytes = rawHeaders.reduce((sum, part) => sum + part.length, 0);
    if (url.length > MAX_HEAD) throw new Problem(414, 'PGRST100', 'The URI is too long.');
    if (bytes > MAX_HEAD) throw new Problem(431, 'PGRST100', 'The header is too large.');
    await next();
    const ms = performance.now() - started;
    const status = c.res === RESPONSE_ALREADY_SENT ? outgoing.statusCode : c.res.status;
    const route = matchedRoutes(c).find(({ method }) => method !== 'ALL')?.path ?? 'unmatched';
    metrics.observe(c.req.method, route, status, ms);
    if (log.isLevelEnabled('debug'))
      log.debug({ id, method: c.req.method, url, status, ms }, 'answered');
    if (state.complete) return;
    for (const [name, value] of Object.entries(commonHeaders(c))) c.res.headers.set(name, value);
  };
}

/** A client's address, if a proxy on this machine names it; another peer may be a proxy of many. */
function clientOf({ socket, headers }: IncomingMessage): string | undefined {
  const isLocal = /^(::1$|(::ffff:)?127\.)/.test(socket.remoteAddress ?? '');
  return isLocal ? String(headers['x-forwarded-for'] ?? '').replace(/.*, */, '') : undefined;
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

/** The headers of every answer. */
function commonHeaders(c: C): Headers {
  const { service, id, started, applied } = c.get('state');
  const ms = performance.now() - started;
  const headers: Headers = {
    'X-Request-Id': id,
    'Server-Timing': `db;dur=${c.get('call').ms.toFixed(1)}, total;dur=${ms.toFixed(1)}`,
  };
  const { origin } = c.env.incoming.headers;
  const allowed = service.config.CORS_ORIGIN.find((one) => one === '*' || one === origin);
  if (origin) headers.Vary = 'Origin';
  if (origin && allowed) Object.assign(headers, CORS, { 'Access-Control-Allow-Origin': allowed });
  if (applied.size > 0) headers['Preference-Applied'] = [...applied].join(', ');
  if (service.life.stopping) headers.Connection = 'close';
  return headers;
}

/** Checks the schema, the token and, with `life`, whether the tables are ready; reads Prefer. */
export function authenticate(authorize: Authorize, life?: Life): MiddlewareHandler<Env> {
  return async (c, next) => {
    const { incoming } = c.env;
    const { headers } = incoming;
    const profile = headers['accept-profile'] ?? headers['content-profile'] ?? 'public';
    if (profile !== 'public')
      throw new Problem(406, 'PGRST106', 'Invalid schema', 'The only schema is public.');
    const { authorization, prefer } = headers;
    const isOnce = !authorization || incoming.headersDistinct.authorization?.length === 1;
    if (!isOnce) throw new Problem(400, 'PGRST100', 'There is more than one Authorization header.');
    const writes = !['GET', 'HEAD'].includes(c.req.method);
    c.get('call').sub = await authorize(authorization, writes);
    if (life && !life.prepared) throw unavailable();
    if (prefer) c.get('state').prefer = parsePrefer(String(prefer));
    preferred(c, 'handling');
    await next();
  };
}

/** A preference of the request, which the answer then names in Preference-Applied. */
export function preferred(c: C, name: string): string | undefined {
  const { prefer, applied } = c.get('state');
  const value = prefer[name];
  if (value !== undefined) applied.add(`${name}=${value}`);
  return value;
}

/** Answers an error as a problem; the log has what a problem does not say. */
export function answerError(error: Error, c: C): Response {
  const { id, service, applied } = c.get('state');
  const found = toProblem(error);
  const problem = c.env.outgoing.destroyed && found.status !== 500 ? clientLeft() : found;
  const code = codeOf(error);
  const line = { id, code, ...(UNDECLARED.test(code) && { error: error.message }) };
  if (error.name === 'PostgresError') service.metrics.failed(code);
  const stack = error.stack?.replace(error.message, '');
  if (problem.status === 500) service.log.error({ ...line, stack }, 'failed');
  else if (problem.status > 500) service.log.warn(line, 'failed');
  applied.clear();
  const { status, headers, body } = problemAnswer(problem);
  return send(c, status, body, headers);
}

/** The methods of a path, with OPTIONS; none for a path that is not there. */
function methodsAt(app: Hono<Env>, path: string): string[] {
  const found = METHODS.filter((method) => {
    const as = method.replace('HEAD', 'GET');
    return app.router.match(as, path)[0].some(([[, route]]) => route.method === as);
  });
  return found.length > 1 ? found : []; // every path has OPTIONS
}

/** 405 for a path that has other methods, else 404 with PostgREST's code. */
export function notFound(app: Hono<Env>) {
  return (c: C) => answerError(missing(c, methodsAt(app, c.req.path).join(', ')), c);
}

function missing({ req, env }: C, Allow: string): Problem {
  if (/^[^?]*%(?![\da-f]{2})|^[^?]*%00/i.test(env.incoming.url ?? ''))
    return new Problem(400, 'PGRST100', 'The path is not percent-encoded text.');
  const detail = `${req.method} is not possible here.`;
  if (Allow) return new Problem(405, 'PGRST117', detail, `Use ${Allow}.`, { headers: { Allow } });
  const [, below = '/'] = /\/rest\/v1(?:\/|$)(.*)$/s.exec(req.path) ?? [];
  const known = [/^$/, /^rpc\/[^/]+$/, /^[^/]+$/].findIndex((pattern) => pattern.test(below));
  return nothingHere(['PGRST126', 'PGRST202', 'PGRST205'][known]);
}

/** Which service this is, and the methods of the path; a CORS preflight gets headers only. */
export function describe(app: Hono<Env>, about: object) {
  return (c: C) => {
    const methods = methodsAt(app, c.req.path);
    const headers = { Allow: methods.join(', ') || 'OPTIONS' };
    if (c.req.header('access-control-request-method')) return send(c, 204, null, headers);
    return c.json({ ...about, uri: c.env.incoming.url, methods }, 200, headers);
  };
}

// --- Reading a request ------------------------------------------------------------

/** The query string with Range; refuses parameters that are not in `allowed`. */
export function readQuery(c: C, resource: Resource, allowed: Parameter[]): Query {
  const query = parseQuery(resource, parametersOf(c), allowed);
  const range = allowed.includes('limit') && parseRange(c.env.incoming.headers.range);
  if (!range) return query;
  const offset = Math.max(range.from, query.offset);
  const ends = [query.offset + (query.limit ?? Infinity), range.to + 1];
  const limit = Math.max(Math.min(...ends) - offset, 0);
  return limit === Infinity ? { ...query, offset } : { ...query, offset, limit };
}

function parametersOf({ env }: C): URLSearchParams {
  return new URLSearchParams(/\?(.*)/s.exec(env.incoming.url ?? '')?.[1]);
}

/** The media type of the answer. Throws 406. */
export function typeFor<T extends string>(c: C, offered: T[]): T {
  return negotiate(c.env.incoming.headers.accept, offered);
}

/** The versions of If-Match and If-None-Match. */
export function preconditions(c: C): Preconditions {
  const { headers } = c.env.incoming;
  return { match: parseTags(headers['if-match']), noneMatch: parseTags(headers['if-none-match']) };
}

/**
 * A key made from Idempotency-Key and caller, so that a repetition finds the row. `isAlone`: the body
 * is one object without a key. Throws 400.
 */
export function idempotencyKey(c: C, keyMaker: string, isAlone: boolean): string | undefined {
  const given = c.env.incoming.headers['idempotency-key'];
  if (given === undefined) return undefined;
  const hint = `The ${keyMaker} makes the key of a row here.`;
  if (keyMaker !== 'service')
    throw new Problem(400, 'PGRST100', 'An Idempotency-Key has no effect.', hint);
  const detail = 'An Idempotency-Key has 1 to 255 characters, for one object without a key.';
  if (!given || given.length > 255 || !isAlone) throw new Problem(400, 'PGRST100', detail);
  return uuidv5(JSON.stringify([c.get('call').sub, given]), IDEMPOTENCY);
}

/** Refuses a write of all rows, unless a limit on their number shows that it is meant. */
export function refuseAll(c: C, filters: unknown[]): void {
  const { handling, 'max-affected': most } = c.get('state').prefer;
  if (filters.length > 0 || (most && handling === 'strict')) return;
  const hint = 'Add a filter, or "Prefer: handling=strict, max-affected=N" to mean all rows.';
  throw new Problem(400, '21000', 'Without a filter this would change every row.', hint);
}

// --- Answering --------------------------------------------------------------------

export function send(c: C, status: number, body: string | null, headers: Headers = {}): Response {
  c.get('state').complete = true;
  const length = body === null ? {} : { 'Content-Length': String(Buffer.byteLength(body)) };
  const all = { ...headers, ...commonHeaders(c), ...length };
  return new Response(body, { status, headers: all });
}

/** The entity tag of a row, if its version was read. */
export function tag({ version }: { version: string }): Headers {
  return version ? { ETag: `"${version}"` } : {};
}

/** A page with its Content-Range and a link to the next. Throws 406, or 416 past the end. */
export function sendPage(c: C, type: string, { offset }: Query, page: Page): Response {
  const { rows, body } = page;
  if (type === OBJECT && rows !== 1) throw notOne(rows);
  const { status, headers } = rangeOf(offset, rows, page.total);
  const link = page.more ? linkToNext(c, offset, page) : '';
  if (link && link.length <= MAX_LINK) headers.Link = link;
  headers['Content-Type'] = type;
  return send(c, status, c.req.method === 'HEAD' ? null : body, headers);
}

/** Content-Range as far as the numbers are known, and 206 for a part of what was counted. */
function rangeOf(offset: number, rows?: number, total?: number) {
  const past = `An offset of ${offset} was requested, but there are only ${total} rows.`;
  if (offset > (total ?? Infinity)) throw badRange(past, { 'Content-Range': `*/${total}` });
  const range = `${rows ? `${offset}-${offset + rows - 1}` : '*'}/${total ?? '*'}`;
  const headers: Headers = rows === undefined ? {} : { 'Content-Range': range };
  return { headers, status: (rows ?? Infinity) < (total ?? 0) ? 206 : 200 };
}

/** RFC 8288, relative. Groups have no cursor: theirs goes on by offset. */
function linkToNext(c: C, offset: number, { next, rows }: Page): string {
  const parameters = parametersOf(c);
  parameters.delete('offset');
  parameters.set(next ? 'after' : 'offset', next || String(offset + rows));
  return `<${c.req.path}?${parameters}>; rel="next"`;
}

/** The answer of a write: its rows, or nothing without a type. */
export function sendWritten(c: C, status: number, made: Written, type?: string, own: Headers = {}) {
  const { rows, body } = made;
  const headers: Headers = { ...own };
  const range = c.req.method === 'PATCH' && rows > 0 ? `0-${rows - 1}` : '*';
  if (!c.req.param('key'))
    headers['Content-Range'] ??= `${range}/${preferred(c, 'count') ? rows : '*'}`;
  if (type === undefined) return send(c, status === 200 ? 204 : status, null, headers);
  return send(c, status, body, { 'Content-Type': type, ...headers });
}

type Streamed = Awaited<ReturnType<Store['stream']>>;

/** All rows of a list as one body. What fails before the first piece is answered as a problem. */
export function stream(c: C, type: Format, { offset, limit }: Query, list: Streamed): Response {
  const { pieces, close, total } = list;
  const counted =
    total === undefined ? undefined : Math.min(Math.max(total - offset, 0), limit ?? Infinity);
  const { status, headers } = rangeOf(offset, list.rows ?? counted, total);
  headers['Content-Type'] = /^text|ndjson/.test(type) ? `${type}; charset=utf-8` : type;
  const { outgoing } = c.env;
  if (c.req.method === 'HEAD' || outgoing.destroyed) {
    close();
    return send(c, status, null, headers);
  }
  const { service, id } = c.get('state');
  c.get('state').complete = true;
  outgoing.setTimeout(STALLED, () => {
    service.log.warn({ id }, 'a client took nothing of a list for 10 s');
    outgoing.destroy();
  });
  outgoing.writeHead(status, { ...commonHeaders(c), ...headers });
  pipeline(pieces, outgoing, close); // an error closes the connection
  return RESPONSE_ALREADY_SENT;
}
