/** Tests of what happens around each request, on a small application without server and database. */
import assert from 'node:assert/strict';
import { Readable } from 'node:stream';
import { describe, test } from 'node:test';
import { Hono } from 'hono';
import type { Logger } from 'pino';
import { boolean, number, resource } from './columns.ts';
import { LIST } from './dialect.ts';
import { CSV, JSON_TYPE } from './headers.ts';
import {
  answerError,
  authenticate,
  describe as describeService,
  type Env,
  notFound,
  observe,
  preferred,
  readQuery,
  sendPage,
  typeFor,
} from './http.ts';
import type { Metrics } from './metrics.ts';

const things = resource({
  path: 'things',
  table: 'things',
  key: 'id',
  columns: { age: number(0, 150), old: boolean() },
});

const lines: object[] = [];
const counted: unknown[][] = [];
const write = (line: object) => lines.push(line);
const log = { isLevelEnabled: () => false, error: write, warn: write } as unknown as Logger;
const metrics = { observe: (...given: unknown[]) => counted.push(given) } as unknown as Metrics;
const life = { prepared: true, stopping: false };

const app = new Hono<Env>({ strict: false });
const secured = authenticate(async (authorization = '') => authorization, life);
app.use(observe({ metrics, log, life, config: { CORS_ORIGIN: ['https://shop.example'] } }));
app.onError(answerError).notFound(notFound(app));
app.options('*', describeService(app, { name: 'things' }));
app.get('/things', secured, (c) => {
  const query = readQuery(c, things, LIST);
  const total = preferred(c, 'count') && { total: 7 };
  const page = { rows: 2, body: '[1,2]', more: true, next: 'abc', ...total } as never;
  return sendPage(c, typeFor(c, [JSON_TYPE, CSV]), query, page);
});
app.on(['POST', 'PATCH', 'PUT'], '/things', secured, (c) => c.body(null));
app.get('/things/:key', secured, (c) => {
  preferred(c, 'return');
  throw Object.assign(new Error(`column "${c.req.param('key')}" is not there`), {
    code: c.req.header('code'),
  });
});

type Fields = Record<string, string | string[]>;

/** The answer to a request, as Node's server would give it to the application. */
async function ask(method: string, url: string, fields: Fields = {}) {
  const given = Object.entries({ host: 'x', ...fields }).map(([name, one]): [string, string[]] => [
    name,
    [one].flat(),
  ]);
  const rawHeaders = given.flatMap(([name, all]) => all.flatMap((one) => [name, one]));
  const headers = Object.fromEntries(given.map(([name, [first = '']]) => [name, first]));
  const headersDistinct = Object.fromEntries(given);
  const request = { method, url, headers, headersDistinct, rawHeaders };
  const incoming = Object.assign(Readable.from([]), { ...request, httpVersion: '1.1', socket: {} });
  const bindings = { incoming, outgoing: { destroyed: false } };
  const reply = await app.request(`http://x${url}`, { method, headers }, bindings as never);
  const text = await reply.text();
  const json = /json/.test(reply.headers.get('content-type') ?? '') && text ? JSON.parse(text) : {};
  return { status: reply.status, headers: reply.headers, text, json };
}

describe('a request', () => {
  const refused: [string, string, Fields, number, string][] = [
    ['without Host', '/things', { host: '' }, 400, 'PGRST100'],
    ['with two Authorization headers', '/things', { authorization: ['a', 'b'] }, 400, 'PGRST100'],
    ['of another schema', '/things', { 'accept-profile': 'other' }, 406, 'PGRST106'],
    ['with a long URI', `/things?${'x'.repeat(140_000)}`, {}, 414, 'PGRST100'],
    ['with long headers', '/things', { x: 'x'.repeat(140_000) }, 431, 'PGRST100'],
    ['of an unknown type', '/things', { accept: 'text/html' }, 406, 'PGRST107'],
    ['of an unknown preference', '/things', { prefer: 'handling=strict, x' }, 400, 'PGRST122'],
    ['of a reversed range', '/things', { range: '5-2' }, 416, 'PGRST103'],
    ['for no path', '/nope', {}, 404, 'PGRST125'],
    ['for the schema', '/rest/v1/', {}, 404, 'PGRST126'],
    ['for no table', '/rest/v1/nope', {}, 404, 'PGRST205'],
    ['for no procedure', '/rest/v1/rpc/nope', {}, 404, 'PGRST202'],
    ['for no text', '/nope%zz', {}, 400, 'PGRST100'],
    ['for NUL', '/nope%00?%61', {}, 400, 'PGRST100'],
    ['for text', '/nope%61?%', {}, 404, 'PGRST125'],
  ];
  for (const [name, url, fields, status, code] of refused)
    test(`${name} is ${status} with a problem`, async () => {
      const { json, headers, ...reply } = await ask('GET', url, fields);
      assert.deepEqual([reply.status, json.status, json.code], [status, status, code]);
      assert.equal(json.message, json.detail);
      assert.equal(headers.get('content-type'), 'application/problem+json');
      assert.match(headers.get('x-request-id') ?? '', /^[0-9a-f-]{36}$/);
      assert.equal(headers.get('preference-applied'), null);
    });

  test('of another method is 405 with Allow', async () => {
    const { status, headers, json } = await ask('DELETE', '/things');
    assert.deepEqual([status, json.code], [405, 'PGRST117']);
    assert.equal(headers.get('allow'), 'GET, HEAD, POST, PUT, PATCH, OPTIONS');
  });

  test('is counted by the pattern of its route', async () => {
    await ask('GET', '/things/7');
    await ask('GET', '/nope');
    const [known = [], unknown = []] = counted.slice(-2);
    assert.deepEqual(known.slice(0, 3), ['GET', '/things/:key', 500]);
    assert.deepEqual(unknown.slice(0, 3), ['GET', 'unmatched', 404]);
  });
});

test('of an error of the database that is 503 the log has the cause, the answer has not', async () => {
  const fields = { code: '42703', prefer: 'return=minimal' };
  const { headers, json } = await ask('GET', '/things/age', fields);
  assert.deepEqual([json.status, json.code], [503, '08006']);
  assert.match(json.message, /A table is not as it was declared/);
  assert.equal(headers.get('retry-after'), '1');
  assert.equal(headers.get('preference-applied'), null);
  const [id, error] = [headers.get('x-request-id'), 'column "age" is not there'];
  assert.deepEqual(lines.at(-1), { id, code: '42703', error });
});

describe('Preference-Applied', () => {
  const preferences: [string, string | null][] = [
    ['count=exact', 'count=exact'],
    ['count=exact, return=minimal', 'count=exact'],
    ['max-affected=1, handling=strict', 'handling=strict'],
    ['return=minimal, tx=commit, nope', null],
  ];
  for (const [prefer, expected] of preferences)
    test(`of ${prefer} is ${expected}`, async () => {
      const { headers } = await ask('GET', '/things', { prefer });
      assert.equal(headers.get('preference-applied'), expected);
    });
});

describe('a page', () => {
  test('has a link to the next, unless that is longer than 4 KiB', async () => {
    const { headers } = await ask('GET', '/things?limit=2&offset=2');
    assert.equal(headers.get('link'), '</things?limit=2&after=abc>; rel="next"');
    const long = await ask('GET', `/things?age=in.(${Array(1700).fill(1)})`);
    assert.deepEqual([long.status, long.headers.get('link')], [200, null]);
  });

  const ranges: [string, string, number, number | undefined][] = [
    ['', '2-5', 2, 4],
    ['limit=2', '2-5', 2, 0],
    ['limit=4', '2-5', 2, 2],
    ['offset=3', '2-5', 3, 3],
    ['offset=3&limit=1', '2-', 3, 1],
    ['offset=1', '2-', 2, undefined],
  ];
  for (const [query, range, offset, limit] of ranges)
    test(`?${query} and Range: ${range} are intersected`, () => {
      const c = { env: { incoming: { url: `/?${query}`, headers: { range } } } };
      const found = readQuery(c as never, things, LIST);
      assert.deepEqual([found.offset, found.limit], [offset, limit]);
    });
});

/** Header fields of browsers' clients: postgrest-js, supabase-js, ra-data-postgrest. */
const SENT = [
  ...['accept-profile', 'apikey', 'authorization', 'content-profile', 'content-type', 'prefer'],
  ...['x-client-info', 'x-retry-count', 'idempotency-key'],
];

describe('OPTIONS', () => {
  test('names the service and the methods', async () => {
    const { json, headers } = await ask('OPTIONS', '/things?x');
    const methods = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'OPTIONS'];
    assert.deepEqual(json, { name: 'things', uri: '/things?x', methods });
    assert.equal(headers.get('allow'), methods.join(', '));
    const nowhere = await ask('OPTIONS', '/nope');
    assert.deepEqual([nowhere.json.methods, nowhere.headers.get('allow')], [[], 'OPTIONS']);
  });

  test('of a preflight is 204 with what an allowed origin may', async () => {
    const fields = { origin: 'https://shop.example', 'access-control-request-method': 'PATCH' };
    const { status, headers } = await ask('OPTIONS', '/things', fields);
    assert.equal(status, 204);
    assert.equal(headers.get('access-control-allow-origin'), 'https://shop.example');
    const allowed = (name: string) => (headers.get(name) ?? '').toLowerCase().split(/, */);
    for (const name of SENT) assert.ok(allowed('access-control-allow-headers').includes(name));
    for (const name of ['get', 'head', 'post', 'patch', 'delete'])
      assert.ok(allowed('access-control-allow-methods').includes(name));
  });

  test('an allowed origin may read what postgrest-js reads', async () => {
    const { headers } = await ask('GET', '/things', { origin: 'https://shop.example' });
    assert.match(headers.get('access-control-expose-headers') ?? '', /\bContent-Range\b/i);
  });

  test('another origin gets Vary alone', async () => {
    const { headers } = await ask('GET', '/things', { origin: 'https://evil.example' });
    assert.equal(headers.get('access-control-allow-origin'), null);
    assert.equal(headers.get('vary'), 'Origin');
  });
});

test('before the tables were checked, the answer is 503', async () => {
  life.prepared = false;
  const { status, headers } = await ask('GET', '/things');
  life.prepared = true;
  assert.deepEqual([status, headers.get('retry-after')], [503, '1']);
});
