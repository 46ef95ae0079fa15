/** HTTP for the endpoints: what happens around each request, and how they read and answer it. */
import { randomUUID } from 'node:crypto';
import { pipeline, Readable } from 'node:stream';
import type { HttpBindings } from '@hono/node-server';
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response';
import type {
  Context,
  ErrorHandler,
  Handler,
  Hono,
  MiddlewareHandler,
  NotFoundHandler,
} from 'hono';
import { matchedRoutes } from 'hono/route';
import type { Logger } from 'pino';
import type { z } from 'zod';
import type { Authorize } from './auth.ts';
import { type Rows, readJson, toRows } from './body.ts';
import type { Resource, Row } from './columns.ts';
import type { Config } from './config.ts';
import { type Parameter, parseQuery, type Query } from './dialect.ts';
import {
  CSV,
  JSON_TYPE,
  MERGE_PATCH,
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
  clientLeft,
  codeOf,
  notOne,
  Problem,
  pastEnd,
  problemAnswer,
  toProblem,
  UNDECLARED,
  unavailable,
} from './problem.ts';
import type { Format } from './rows.ts';
import type { Page } from './select.ts';
import { type Life, MAX_HEAD } from './server.ts';
import type { Preconditions } from './statements.ts';
import type { Store, Written } from './store.ts';

/** What Hono's context has here: Node's request and response, and what the middleware sets. */
export type Env = {
  Bindings: HttpBindings;
  Variables: {
    /** X-Request-Id of the answer. */
    id: string;
    /** When the request arrived, in ms of performance.now(). */
    started: number;
    /** The caller, for the store. */
    call: Call;
    /** The known preferences of the Prefer header, and those that the answer honours. */
    prefer: Preferences;
    applied: Set<string>;
    /** Whether a write is answered with nothing unless asked, as PostgREST does. */
    silent: boolean;
    /** Whether the answer has the headers of every answer. */
    complete: boolean;
    life: Life;
    origins: string[];
  };
};
export type C = Context<Env>;
type Headers = Record<string, string>;

const MAX_LINK = 4096; // bytes; fetch() of Node refuses an answer whose head has 16 KiB
export const METHODS = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'];

// --- Around each request ----------------------------------------------------------

type Observers = { metrics: Metrics; log: Logger; life: Life; config: Pick<Config, 'CORS_ORIGIN'> };

/** Gives a request its id; afterwards counts it and adds the headers of every answer. */
export function observe({ metrics, log, life, config }: Observers): MiddlewareHandler<Env> {
  return async (c, next) => {
    const { incoming, outgoing } = c.env;
    const given = c.req.header('x-request-id');
    c.set('id', given && /^[\w.:/+=-]{1,128}$/.test(given) ? given : randomUUID());
    c.set('started', performance.now());
    c.set('call', { ...ownCall(), outgoing });
    c.set('prefer', {});
    c.set('applied', new Set());
    c.set('life', life);
    c.set('origins', config.CORS_ORIGIN);
    const { url = '', rawHeaders, headers, httpVersion } = incoming;
    if (httpVersion === '1.1' && !headers.host)
      throw new Problem(400, 'PGRST100', 'The Host is missing.');
    const bytes = rawHeaders.reduce((sum, part) => sum + part.length, 0);
    if (url.length > MAX_HEAD) throw new Problem(414, 'PGRST100', 'The URI is too long.');
    if (bytes > MAX_HEAD) throw new Problem(431, 'PGRST100', 'The header is too large.');
    await next();
    const ms = performance.now() - c.get('started');
    const { status } = c.res === RESPONSE_ALREADY_SENT ? { status: 200 } : c.res;
    metrics.observe(c.req.method, routeOf(c), status, ms);
    if (log.isLevelEnabled('debug'))
      log.debug({ id: c.get('id'), method: c.req.method, url, status, ms }, 'answered');
    if (c.get('complete')) return;
    for (const [name, value] of Object.entries(standing(c))) c.res.headers.set(name, value);
  };
}

/** The pattern of the route that answers. */
function routeOf(c: C): string {
  return matchedRoutes(c).find(({ method }) => method !== 'ALL')?.path ?? 'unmatched';
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
function standing(c: C): Headers {
  const [call, applied, origins] = [c.get('call'), c.get('applied'), c.get('origins')];
  const ms = performance.now() - c.get('started');
  const headers: Headers = {
    'X-Request-Id': c.get('id'),
    'Server-Timing': `db;dur=${call.ms.toFixed(1)}, total;dur=${ms.toFixed(1)}`,
  };
  const { origin } = c.env.incoming.headers;
  const allowed = origin && origins.find((one) => one === '*' || one === origin);
  if (origin) headers.Vary = 'Origin';
  if (allowed) Object.assign(headers, CORS, { 'Access-Control-Allow-Origin': allowed });
  if (applied.size > 0) headers['Preference-Applied'] = [...applied].join(', ');
  if (c.get('life').stopping) headers.Connection = 'close';
  return headers;
}

/** Lets in who may; with `life`, once the tables were checked. Reads what routes of tables share. */
export function authenticate(authorize: Authorize, life?: Life): MiddlewareHandler<Env> {
  return async (c, next) => {
    const { incoming } = c.env;
    const { headers } = incoming;
    const profile = headers['accept-profile'] ?? headers['content-profile'] ?? 'public';
    if (profile !== 'public')
      throw new Problem(406, 'PGRST106', 'Invalid schema', 'The only schema is public.');
    const { authorization, prefer } = headers;
    if (authorization && incoming.headersDistinct.authorization?.length !== 1)
      // made when read
      throw new Problem(400, 'PGRST100', 'There is more than one Authorization header.');
    const writes = !['GET', 'HEAD'].includes(c.req.method);
    c.get('call').sub = await authorize(authorization, writes);
    if (life && !life.prepared) throw unavailable();
    if (prefer) c.set('prefer', parsePrefer(String(prefer)));
    preferred(c, 'handling');
    await next();
  };
}

/** A preference of the request. Whoever reads it honours it: Preference-Applied lists it. */
export function preferred(c: C, name: string): string | undefined {
  const value = c.get('prefer')[name];
  if (value !== undefined) c.get('applied').add(`${name}=${value}`);
  return value;
}

/** Answers an error as a problem; the log has what a problem does not say. */
export function problems(log: Logger): ErrorHandler<Env> {
  return (error, c) => {
    const found = toProblem(error);
    const problem = c.env.outgoing.destroyed && found.status !== 500 ? clientLeft() : found;
    const code = codeOf(error);
    const line = { id: c.get('id'), code, ...(UNDECLARED.test(code) && { error: error.message }) };
    const stack = error.stack?.replace(error.message, '');
    if (problem.status === 500) log.error({ ...line, stack }, 'failed');
    else if (problem.status > 500) log.warn(line, 'failed');
    return sendProblem(c, problem);
  };
}

function sendProblem(c: C, problem: Problem): Response {
  const { status, headers, body } = problemAnswer(problem);
  c.get('applied').clear();
  return send(c, status, body, headers);
}

/** The methods of a path, with OPTIONS; none for a path that is not there. */
function methodsAt(app: Hono<Env>, path: string): string[] {
  const found = METHODS.filter((method) => {
    const as = method.replace('HEAD', 'GET');
    const [matched] = app.router.match(as, path);
    return as !== 'OPTIONS' && matched.some(([[, route]]) => route.method === as);
  });
  return found.length > 0 ? [...found, 'OPTIONS'] : [];
}

/** 405 for a path that has other methods, else 404 with PostgREST's code. */
export function notFound(app: Hono<Env>): NotFoundHandler<Env> {
  return (c) => sendProblem(c, missing(c, methodsAt(app, c.req.path).join(', ')));
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

export function nothingHere(code = 'PGRST125'): Problem {
  const hint = 'GET /openapi.json lists the paths.';
  return new Problem(404, code, 'There is nothing at this path.', hint);
}

/** Which service this is, and the methods of the path; a CORS preflight gets headers only. */
export function describe(app: Hono<Env>, about: object): Handler<Env> {
  return (c) => {
    const methods = methodsAt(app, c.req.path);
    const headers = { Allow: methods.join(', ') || 'OPTIONS' };
    if (c.req.header('access-control-request-method')) return send(c, 204, null, headers);
    return sendJson(c, { ...about, uri: c.env.incoming.url, methods }, headers);
  };
}

// --- Reading a request ------------------------------------------------------------

/** The query string with Range; refuses parameters that are not in `allowed`. */
export function readQuery(c: C, resource: Resource, allowed: Parameter[]): Query {
  const query = parseQuery(resource, parametersOf(c), allowed);
  const range = allowed.includes('limit') && parseRange(c.req.header('range'));
  if (!range) return query;
  const offset = Math.max(range.from, query.offset);
  const ends = [query.offset + (query.limit ?? Infinity), (range.to ?? Infinity) + 1];
  const limit = Math.max(Math.min(...ends) - offset, 0);
  return limit === Infinity ? { ...query, offset } : { ...query, offset, limit };
}

function parametersOf({ env }: C): URLSearchParams {
  return new URLSearchParams(/\?(.*)/s.exec(env.incoming.url ?? '')?.[1]);
}

/** The rows of the body, valid. Throws 400, 413, 415, 422. */
export async function readRows(
  c: C,
  schema: z.ZodType<Row>,
  limit: number,
  columns?: string[],
): Promise<Rows> {
  const more = { PATCH: MERGE_PATCH, POST: CSV }[c.req.method];
  const types = more ? [JSON_TYPE, more] : [JSON_TYPE];
  return toRows(await readJson(c.env.incoming, types, limit), schema, columns);
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

/** Refuses a write without a filter, so that nobody empties a table by accident. */
export function refuseAll(c: C, filters: unknown[]): void {
  const { handling, 'max-affected': most } = c.get('prefer');
  if (filters.length > 0 || (most && handling === 'strict')) return;
  const hint = 'Add a filter, or "Prefer: handling=strict, max-affected=N" to mean all rows.';
  throw new Problem(400, '21000', 'Without a filter this would change every row.', hint);
}

// --- Answering --------------------------------------------------------------------

export function send(
  c: C,
  status: number,
  body: string | Buffer | null,
  headers: Headers = {},
): Response {
  c.set('complete', true);
  const length = body === null ? {} : { 'Content-Length': String(Buffer.byteLength(body)) };
  const all = { ...headers, ...standing(c), ...length };
  return new Response(body as BodyInit | null, { status, headers: all });
}

/** The entity tag of a row. */
export function tag({ version }: { version: string }): { ETag: string } {
  return { ETag: `"${version}"` };
}

/** An answer as JSON. */
export function sendJson(c: C, value: unknown, headers: Headers = {}): Response {
  return send(c, 200, JSON.stringify(value), { 'Content-Type': JSON_TYPE, ...headers });
}

/** A page with its Content-Range and a link to the next. Throws 406, or 416 past the end. */
export function sendPage(c: C, type: string, { offset }: Query, page: Page): Response {
  const { rows, body } = page;
  if (type === OBJECT && rows !== 1) throw notOne(rows);
  const { status, headers } = rangeOf(offset, page);
  const link = page.more ? linkToNext(c, offset, page) : '';
  if (link && link.length <= MAX_LINK) headers.Link = link;
  headers['Content-Type'] = type;
  return send(c, status, c.req.method === 'HEAD' ? null : body, headers);
}

/** Content-Range as far as the numbers are known, and 206 for a part of what was counted. */
function rangeOf(offset: number, { rows, total }: { rows?: number; total?: number }) {
  if (total !== undefined && offset > total) throw pastEnd(offset, total);
  const headers: Headers = {};
  const range = rows ? `${offset}-${offset + rows - 1}` : '*';
  if (rows !== undefined) headers['Content-Range'] = `${range}/${total ?? '*'}`;
  return { headers, status: total !== undefined && Number(rows) < total ? 206 : 200 };
}

/** RFC 8288, relative. Groups have no cursor: theirs goes on by offset. */
function linkToNext(c: C, offset: number, { next, rows }: Page): string {
  const parameters = parametersOf(c);
  parameters.delete('offset');
  parameters.set(next ? 'after' : 'offset', next || String(offset + rows));
  return `<${c.req.path}?${parameters}>; rel="next"`;
}

/** The answer of a write: its rows, or nothing without a type. */
export function sendWritten(
  c: C,
  status: number,
  { rows, body }: Written,
  type: string | undefined,
  own: Headers = {},
): Response {
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
  const rows = list.rows ?? counted;
  const known = { ...(rows !== undefined && { rows }), ...(total !== undefined && { total }) };
  const { status, headers } = rangeOf(offset, known);
  headers['Content-Type'] = /^text|ndjson/.test(type) ? `${type}; charset=utf-8` : type;
  const { outgoing } = c.env;
  if (c.req.method === 'HEAD' || outgoing.destroyed) {
    close();
    return send(c, status, null, headers);
  }
  c.set('complete', true);
  outgoing.writeHead(status, { ...standing(c), ...headers });
  pipeline(Readable.from(pieces), outgoing, close); // an error breaks the answer off: so a client sees it
  return RESPONSE_ALREADY_SENT;
}
