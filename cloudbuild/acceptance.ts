/**
 * The contract of a deployment, seen from outside: one line per check, exit code 1 on a failure.
 *
 *     npm run acceptance -- URL [--token T]     or TOKEN in the environment, when writes need one
 *
 * It makes rows of its own, which carry a mark, and removes them at the end, whatever happened.
 * The resource is known by its declaration in app.ts alone.
 */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import type { Reply, Row, Terms } from './deployment.ts';
import * as deployment from './deployment.ts';

const { resource, text } = deployment;
const { key, names } = resource;
const LIST = `/${resource.path}`;
const REST = `/rest/v1${LIST}`;
const NUMBER = deployment.columnFor(1.5);
const OBJECT = 'application/vnd.pgrst.object+json';
const ABSENT = '00000000-0000-4000-8000-000000000000';
const SHOW = { prefer: 'return=representation' };
const BAD_TOKEN = 'eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIiwiZXhwIjo0MTAyNDQ0ODAwfQ.c2lnbmF0dXJl';

const mark = `acceptance ${randomBytes(6).toString('hex')}`;
const made = new Set<unknown>();
const checks: [name: string, run: () => Promise<void>][] = [];
const { url, token } = deployment.readCommand(process.argv.slice(2), process.env);
const send = deployment.open(url, token);
let needsToken = false;

function check(name: string, run: () => Promise<void>): void {
  checks.push([name, run]);
}

// --- Words ----------------------------------------------------------------------

/** A valid row that is not there yet; it will be removed at the end, should it come into being. */
function fresh(word = 'a'): Row {
  const row = deployment.exampleRow(`${mark} ${word}`);
  made.add(row[key]);
  return row;
}

/** Sends and asserts the status; of an error also that it is a problem, with this code. */
async function ask(method: string, path: string, status: number, terms: Expected = {}) {
  const { code, ...sent } = terms;
  const reply = await send(method, path, sent);
  const shown = `${method} ${path.slice(0, 200)}: ${reply.text.slice(0, 200)}`;
  assert.equal(reply.status, status, `expected ${status}, got ${reply.status} from ${shown}`);
  if (status >= 400 && method !== 'HEAD') isProblem(reply, code);
  return reply;
}

type Expected = Terms & { code?: string };

/** RFC 9457 and PostgREST's members in one body. */
function isProblem({ status, headers, json }: Reply, code?: string): void {
  assert.match(headers.get('content-type') ?? 'none', /^application\/problem\+json/);
  for (const member of ['type', 'title', 'detail', 'code', 'message'])
    assert.equal(typeof json?.[member], 'string', `member ${member} of the problem`);
  for (const member of ['details', 'hint'])
    assert.ok(member in json, `member ${member} of the problem`);
  assert.equal(json.status, status);
  assert.equal(json.message, json.detail);
  if (code) assert.equal(json.code, code);
}

async function create(word?: string): Promise<{ row: Row; path: string; reply: Reply }> {
  const row = fresh(word);
  const reply = await ask('POST', LIST, 201, { body: row });
  return { row, path: at(row), reply };
}

/** Three rows, a, b and c, and the filter that finds no others. */
async function three(): Promise<{ rows: Row[]; mine: string }> {
  const rows = ['a', 'b', 'c'].map((word) => fresh(word));
  await ask('POST', LIST, 201, { body: rows });
  return { rows, mine: `${key}=in.(${rows.map((row) => row[key])})` };
}

function at(row: Row): string {
  return `${LIST}/${row[key]}`;
}

function header({ headers }: Reply, name: string, expected: RegExp): string {
  const value = headers.get(name) ?? '';
  assert.match(value, expected, `header ${name}`);
  return value;
}

// --- Reading --------------------------------------------------------------------

check('GET /hello says ok', async () => {
  assert.deepEqual((await ask('GET', '/hello', 200)).json, { message: 'ok' });
});

check('GET /zero says nothing under 0', async () => {
  assert.deepEqual((await ask('GET', '/zero', 200)).json, { 0: '' });
});

check('OPTIONS tells name, version, branch, commit, uri and methods', async () => {
  const reply = await ask('OPTIONS', LIST, 200);
  header(reply, 'allow', /GET.*POST/);
  assert.equal(reply.json.name, resource.path);
  for (const member of ['version', 'branch', 'commit', 'uri'])
    assert.equal(typeof reply.json[member], 'string', member);
  assert.ok(reply.json.methods.includes('PATCH'));
});

check('a CORS preflight gets 204', async () => {
  const headers = { origin: 'https://example.org', 'access-control-request-method': 'POST' };
  await ask('OPTIONS', LIST, 204, { headers });
});

check('/openapi.json describes the resource', async () => {
  const { json } = await ask('GET', '/openapi.json', 200);
  assert.match(json.openapi, /^3\.1/);
  assert.ok(json.paths[LIST], LIST);
});

check('/docs is a page that loads nothing from another host', async () => {
  const page = await ask('GET', '/docs', 200);
  header(page, 'content-type', /^text\/html/);
  assert.doesNotMatch(page.text, /(?:src|href)="(?:https?:)?\/\//);
});

check('every answer carries X-Request-Id, the given one where it is sane', async () => {
  const headers = { 'x-request-id': 'acceptance-1' };
  header(await ask('GET', '/hello', 200, { headers }), 'x-request-id', /^acceptance-1$/);
  header(await ask('GET', '/hello', 200), 'x-request-id', /./);
});

check('every answer carries Server-Timing', async () => {
  header(await ask('GET', `${LIST}?limit=1`, 200), 'server-timing', /dur=/);
});

check('a row is read as it was created, in declared order', async () => {
  const { row, path } = await create();
  const { text: body } = await ask('GET', path, 200);
  assert.deepEqual(JSON.parse(body), row);
  assert.deepEqual(Object.keys(JSON.parse(body)), names);
});

check('the path takes the key in upper case', async () => {
  const { row } = await create();
  await ask('GET', `${LIST}/${String(row[key]).toUpperCase()}`, 200);
});

check('HEAD of a row is GET without a body', async () => {
  const { path } = await create();
  const reply = await ask('HEAD', path, 200);
  assert.equal(reply.text, '');
  header(reply, 'etag', /^"\d+"$/);
});

check('a list finds by eq and shows Content-Range', async () => {
  const { rows, mine } = await three();
  const reply = await ask('GET', `${LIST}?${mine}&${text}=eq.${mark} b`, 200);
  assert.deepEqual(reply.json, [rows[1]]);
  header(reply, 'content-range', /^0-0\/\*$/);
});

check('neq, not and like find the others', async () => {
  const { rows, mine } = await three();
  const others = [rows[0], rows[2]];
  for (const filter of [`neq.${mark} b`, `not.eq.${mark} b`, `not.like.*b`]) {
    const { json } = await ask('GET', `${LIST}?${mine}&${text}=${filter}&order=${text}`, 200);
    assert.deepEqual(json, others, filter);
  }
});

check('gte and lt compare numbers', async () => {
  const { rows, mine } = await three();
  const value = Number(rows[0]?.[NUMBER]);
  assert.equal((await ask('GET', `${LIST}?${mine}&${NUMBER}=gte.${value}`, 200)).json.length, 3);
  assert.equal((await ask('GET', `${LIST}?${mine}&${NUMBER}=lt.${value}`, 200)).json.length, 0);
});

check('a tree of or and and is evaluated', async () => {
  const { rows, mine } = await three();
  const tree = `or=(${text}.eq."${mark} a",and(${text}.like.*c,${text}.not.is.null))`;
  const { json } = await ask('GET', `${LIST}?${mine}&${tree}&order=${text}`, 200);
  assert.deepEqual(json, [rows[0], rows[2]]);
});

check('in.() means none', async () => {
  const reply = await ask('GET', `${LIST}?${key}=in.()`, 200);
  assert.deepEqual(reply.json, []);
  header(reply, 'content-range', /^\*\/\*$/);
});

check('an injected value is a literal', async () => {
  const { json } = await ask('GET', `${LIST}?${text}=like.%25' or 1=1 --`, 200);
  assert.deepEqual(json, []);
});

check('select, alias and cast shape the rows', async () => {
  const { rows, mine } = await three();
  const { json } = await ask('GET', `${LIST}?${mine}&select=k:${key}::text&order=${text}`, 200);
  assert.deepEqual(
    json,
    rows.map((row) => ({ k: row[key] })),
  );
});

check('count() groups', async () => {
  const { mine } = await three();
  const { json } = await ask('GET', `${LIST}?${mine}&select=${NUMBER},count()`, 200);
  assert.deepEqual(json, [{ [NUMBER]: resource.example[NUMBER], count: 3 }]);
});

check('order, limit and offset page', async () => {
  const { rows, mine } = await three();
  const page = `order=${text}.desc&limit=1&offset=1`;
  const reply = await ask('GET', `${LIST}?${mine}&${page}`, 200);
  assert.deepEqual(reply.json, [rows[1]]);
  header(reply, 'content-range', /^1-1\/\*$/);
});

check('Link leads to the rows behind a page, and on to the end', async () => {
  const { rows, mine } = await three();
  const first = await ask('GET', `${LIST}?${mine}&order=${text}&limit=2`, 200);
  const link = header(first, 'link', /^<[^>]+>; rel="next"$/);
  const [, query] = /\?([^>]*)>/.exec(link) ?? [];
  const second = await ask('GET', `${LIST}?${query}`, 200);
  assert.deepEqual([...first.json, ...second.json], rows);
  assert.equal(second.headers.get('link'), null);
});

check('count=exact counts, and answers a part with 206', async () => {
  const { mine } = await three();
  const headers = { prefer: 'count=exact' };
  const reply = await ask('GET', `${LIST}?${mine}&limit=2`, 206, { headers });
  header(reply, 'content-range', /^0-1\/3$/);
  header(await ask('HEAD', `${LIST}?${mine}`, 200, { headers }), 'content-range', /^0-2\/3$/);
});

check('an offset past the counted end is 416', async () => {
  const { mine } = await three();
  const headers = { prefer: 'count=exact' };
  await ask('GET', `${LIST}?${mine}&offset=9`, 416, { headers, code: 'PGRST103' });
});

check('Range: 0-1 of items is limit and offset', async () => {
  const { rows, mine } = await three();
  const headers = { range: '0-1', 'range-unit': 'items' };
  const { json } = await ask('GET', `${LIST}?${mine}&order=${text}`, 200, { headers });
  assert.deepEqual(json, rows.slice(0, 2));
});

check('one object comes alone when asked for, and 406 of several', async () => {
  const { rows, mine } = await three();
  const headers = { accept: OBJECT };
  const one = await ask('GET', `${LIST}?${key}=eq.${rows[0]?.[key]}`, 200, { headers });
  assert.deepEqual(one.json, rows[0]);
  await ask('GET', `${LIST}?${mine}`, 406, { headers, code: 'PGRST116' });
});

check('text/csv has a header line and the rows', async () => {
  const { mine } = await three();
  const reply = await ask('GET', `${LIST}?${mine}`, 200, { headers: { accept: 'text/csv' } });
  header(reply, 'content-type', /^text\/csv/);
  const lines = reply.text.trim().split(/\r?\n/);
  assert.equal(lines[0], names.join());
  assert.equal(lines.length, 4);
});

check('application/x-ndjson has a row a line', async () => {
  const { rows, mine } = await three();
  const headers = { accept: 'application/x-ndjson' };
  const reply = await ask('GET', `${LIST}?${mine}&order=${text}`, 200, { headers });
  const lines = reply.text.trim().split('\n');
  assert.deepEqual(
    lines.map((line) => JSON.parse(line)),
    rows,
  );
});

check('/rest/v1 reads the same', async () => {
  const { rows, mine } = await three();
  assert.deepEqual((await ask('GET', `${REST}?${mine}&order=${text}`, 200)).json, rows);
});

// --- Writing --------------------------------------------------------------------

check('POST of an object: 201, the object, Location and ETag', async () => {
  const { row, reply } = await create();
  assert.deepEqual(reply.json, row);
  assert.ok(header(reply, 'location', /^\//).endsWith(at(row)));
  header(reply, 'etag', /^"\d+"$/);
});

check('POST without a key: the service makes a UUIDv7', async () => {
  const { [key]: _, ...row } = fresh();
  const { json } = await ask('POST', LIST, 201, { body: row });
  made.add(json[key]);
  assert.match(json[key], /^.{14}7/);
});

check('POST of an array: 201 and the array', async () => {
  const rows = [fresh('a'), fresh('b')];
  assert.deepEqual((await ask('POST', LIST, 201, { body: rows })).json, rows);
});

check('POST of an array is all or nothing', async () => {
  const rows = [fresh('a'), { ...fresh('b'), [NUMBER]: 'x' }];
  await ask('POST', LIST, 422, { body: rows });
  await ask('GET', at(rows[0] ?? {}), 404);
});

check('POST of text/csv: 201', async () => {
  const rows = [fresh('a'), fresh('b')];
  const lines = [names, ...rows.map((row) => names.map((name) => `"${row[name]}"`))];
  const terms = { headers: { 'content-type': 'text/csv' }, body: `${lines.join('\n')}\n` };
  await ask('POST', LIST, 201, terms);
  for (const row of rows) assert.deepEqual((await ask('GET', at(row), 200)).json, row);
});

check('a bad CSV row fails the whole, with its line', async () => {
  const good = fresh();
  const bad = { ...fresh(), [NUMBER]: 'x' };
  const lines = [names, ...[good, bad].map((row: Row) => names.map((name) => `"${row[name]}"`))];
  const headers = { 'content-type': 'text/csv' };
  const reply = await send('POST', LIST, { headers, body: `${lines.join('\n')}\n` });
  assert.ok([400, 422].includes(reply.status), `status ${reply.status}`);
  assert.match(reply.text, /line 3|"\/3/);
  await ask('GET', at(good), 404);
});

check('Prefer: return is kept to', async () => {
  const row = fresh();
  const shown = await ask('POST', LIST, 201, { body: row, headers: SHOW });
  assert.deepEqual(shown.json, [row]);
  const headers = { prefer: 'return=minimal' };
  assert.equal((await ask('POST', LIST, 201, { body: fresh(), headers })).text, '');
});

check('/rest/v1 answers a write with nothing, unless asked', async () => {
  assert.equal((await ask('POST', REST, 201, { body: fresh() })).text, '');
  const row = fresh();
  assert.deepEqual((await ask('POST', REST, 201, { body: row, headers: SHOW })).json, [row]);
});

check('an upsert merges or ignores what is there', async () => {
  const { row, path } = await create('a');
  const other = { ...row, [text]: `${mark} z` };
  const ignore = { prefer: 'resolution=ignore-duplicates' };
  await ask('POST', LIST, 200, { body: [other], headers: ignore });
  assert.deepEqual((await ask('GET', path, 200)).json, row);
  const merge = { prefer: 'resolution=merge-duplicates' };
  await ask('POST', LIST, 200, { body: [other], headers: merge });
  assert.deepEqual((await ask('GET', path, 200)).json, other);
});

check('a key that is there is 409', async () => {
  const { row } = await create();
  await ask('POST', LIST, 409, { body: row, code: '23505' });
});

check('PUT creates with 201 and replaces with 200', async () => {
  const row = fresh('a');
  await ask('PUT', at(row), 201, { body: row });
  const other = { ...row, [text]: `${mark} z` };
  assert.deepEqual((await ask('PUT', at(row), 200, { body: other })).json, other);
});

check('PATCH of a row changes what it names', async () => {
  const { row, path } = await create();
  const patch = { [text]: `${mark} z` };
  assert.deepEqual((await ask('PATCH', path, 200, { body: patch })).json, { ...row, ...patch });
});

check('DELETE of a row: 204, then 404', async () => {
  const { path } = await create();
  await ask('DELETE', path, 204);
  await ask('DELETE', path, 404);
  await ask('GET', path, 404);
});

check('PATCH by filter changes the rows that it finds', async () => {
  const { mine } = await three();
  const terms = { body: { [text]: `${mark} z` }, headers: SHOW };
  const { json } = await ask('PATCH', `${LIST}?${mine}&${text}=neq.${mark} b`, 200, terms);
  assert.equal(json.length, 2);
  assert.equal((await ask('GET', `${LIST}?${mine}&${text}=eq.${mark} z`, 200)).json.length, 2);
});

check('PATCH of an array gives each row its own values', async () => {
  const { rows, mine } = await three();
  const body = rows.map((row, index) => ({ [key]: row[key], [text]: `${mark} ${index}` }));
  await ask('PATCH', LIST, 204, { body });
  const { json } = await ask('GET', `${LIST}?${mine}&order=${text}&select=${key},${text}`, 200);
  assert.deepEqual(json, body);
});

check('DELETE by filter removes the rows that it finds', async () => {
  const { rows, mine } = await three();
  await ask('DELETE', `${LIST}?${mine}&${text}=neq.${mark} b`, 204);
  assert.deepEqual((await ask('GET', `${LIST}?${mine}`, 200)).json, [rows[1]]);
});

check('an exceeded max-affected changes nothing', async () => {
  const { mine } = await three();
  const headers = { prefer: 'handling=strict, max-affected=2' };
  await ask('DELETE', `${LIST}?${mine}`, 400, { headers, code: 'PGRST124' });
  assert.equal((await ask('GET', `${LIST}?${mine}`, 200)).json.length, 3);
});

// With an empty patch, so that a deployment that takes it changes nothing.
check('PATCH without a filter is refused', async () => {
  await ask('PATCH', LIST, 400, { body: {} });
});

// --- Twice, and two at once -----------------------------------------------------

check('If-None-Match: 304 while the row is as it was', async () => {
  const { path, reply } = await create();
  const headers = { 'if-none-match': header(reply, 'etag', /./) };
  assert.equal((await ask('GET', path, 304, { headers })).text, '');
});

check('If-Match: 412 when another was faster, and nothing is changed', async () => {
  const { row, path, reply } = await create();
  const headers = { 'if-match': header(reply, 'etag', /./) };
  const body = { [text]: `${mark} z` };
  await ask('PATCH', path, 200, { body, headers });
  await ask('PATCH', path, 412, { body: { [text]: `${mark} y` }, headers });
  await ask('PUT', path, 412, { body: row, headers });
  await ask('DELETE', path, 412, { headers });
  assert.deepEqual((await ask('GET', path, 200)).json, { ...row, ...body });
});

check('If-None-Match: * on PUT creates only', async () => {
  const row = fresh();
  const terms = { body: row, headers: { 'if-none-match': '*' } };
  await ask('PUT', at(row), 201, terms);
  await ask('PUT', at(row), 412, terms);
});

check('an Idempotency-Key makes one row of two requests', async () => {
  const { [key]: _, ...row } = fresh();
  const headers = { 'idempotency-key': `${mark} 1` };
  const first = await ask('POST', LIST, 201, { body: row, headers });
  made.add(first.json[key]);
  const again = await ask('POST', LIST, 201, { body: row, headers });
  header(again, 'idempotent-replayed', /^true$/);
  assert.deepEqual(again.json, first.json);
  await ask('POST', LIST, 409, { body: { ...row, [text]: `${mark} z` }, headers });
});

// --- Refused --------------------------------------------------------------------

type Refusal = [what: string, method: string, path: string, status: number, terms?: Expected];

const REFUSALS: Refusal[] = [
  ['an unknown path', 'GET', '/nothing/here', 404],
  ['an unknown row', 'GET', `${LIST}/${ABSENT}`, 404, { code: 'PGRST116' }],
  ['a key that is no UUID', 'GET', `${LIST}/abc`, 400, { code: '22P02' }],
  ['another method on a known path', 'DELETE', '/hello', 405],
  ['an unknown column', 'GET', `${LIST}?constructor=eq.1`, 400, { code: '42703' }],
  ['an unknown operator', 'GET', `${LIST}?${text}=over.1`, 400, { code: 'PGRST100' }],
  ['a value that the type refuses', 'GET', `${LIST}?${NUMBER}=eq.x`, 400, { code: '22P02' }],
  ['a negative limit', 'GET', `${LIST}?limit=-1`, 400],
  ['a garbled cursor', 'GET', `${LIST}?after=garbage`, 400],
  ['SQL in order', 'GET', `${LIST}?order=1;drop table x`, 400],
  ['embedding', 'GET', `${LIST}?select=*,other(*)`, 400],
  ['an unknown media type', 'GET', LIST, 406, { headers: { accept: 'image/png' } }],
  ['another schema', 'GET', LIST, 406, { headers: { 'accept-profile': 'x' }, code: 'PGRST106' }],
  ['a body that is no JSON', 'POST', LIST, 400, { body: '{"a":' }],
  ['an empty body', 'POST', LIST, 400, { body: '' }],
  ['null as a row', 'POST', LIST, 422, { body: 'null' }],
  ['text/plain', 'POST', LIST, 415, { body: 'x', headers: { 'content-type': 'text/plain' } }],
  ['%00 in a path', 'GET', `${LIST}/%00`, 400],
];

for (const [what, method, path, status, terms] of REFUSALS) {
  check(`${what} is ${status}`, async () => {
    const reply = await ask(method, path, status, terms);
    if (status === 405) header(reply, 'allow', /GET/);
  });
}

check('a refused row names all of its faults at once', async () => {
  const body = { ...fresh(), [text]: ' ', [NUMBER]: 'x', nothing: 1 };
  const { json } = await ask('POST', LIST, 422, { body });
  const pointers = json.errors.map((fault: { pointer: string }) => fault.pointer).sort();
  assert.deepEqual(pointers, [`/${text}`, `/${NUMBER}`, '/nothing'].sort());
});

check('a text with NUL is refused', async () => {
  await ask('POST', LIST, 422, { body: { ...fresh(), [text]: 'a\0b' } });
});

check('a body over the limit is 413', async () => {
  await ask('POST', LIST, 413, { body: { [text]: 'x'.repeat(2 * 1024 * 1024) } });
});

// --- Tokens ---------------------------------------------------------------------

const TOKENS: [what: string, token: string | null, code: string][] = [
  ['no token', null, 'PGRST302'],
  ['a forged token', BAD_TOKEN, 'PGRST301'],
  ['an unsigned token', `${btoa('{"alg":"none"}')}.${BAD_TOKEN.split('.')[1]}.`, 'PGRST301'],
];

for (const [what, given, code] of TOKENS) {
  check(`a write with ${what} is 401`, async () => {
    if (!needsToken) return;
    const row = fresh();
    const reply = await ask('PUT', at(row), 401, { body: row, token: given, code });
    header(reply, 'www-authenticate', /^Bearer/);
  });
}

// --- Run ------------------------------------------------------------------------

/** Whether writes need a token. Throws where one is needed and none was given. */
async function probe(): Promise<void> {
  const { status } = await send('POST', LIST, { body: '{}', token: null });
  assert.ok(status === 401 || status === 422, `an empty row is ${status}, expected 401 or 422`);
  needsToken = status === 401;
  if (needsToken && !token) throw new Error('writes need a token: give it by --token or TOKEN');
  if (!needsToken) console.log('# writes are open here, so no token is asked for');
}

/** Removes what was made. Throws where something is left. */
async function cleanUp(): Promise<void> {
  const keys = [...made];
  const filters = [`${text}=like.${mark}*`];
  while (keys.length > 0) filters.push(`${key}=in.(${keys.splice(0, 100)})`);
  const removed = [];
  for (const filter of filters) removed.push(await send('DELETE', `${LIST}?${filter}`));
  for (const { status } of removed) assert.equal(status, 204, 'status of a removal');
  for (const filter of filters)
    assert.deepEqual((await ask('GET', `${LIST}?${filter}`, 200)).json, [], 'rows are left behind');
}

async function attempt(name: string, run: () => Promise<void>): Promise<boolean> {
  try {
    await run();
    console.log(`ok - ${name}`);
    return true;
  } catch (error) {
    const { message } = error instanceof Error ? error : new Error(String(error));
    console.log(`not ok - ${name}\n    ${message.replaceAll('\n', '\n    ')}`);
    return false;
  }
}

const results: boolean[] = [await attempt('the deployment answers', probe)];
if (results[0]) {
  for (const [name, run] of checks) results.push(await attempt(name, run));
  results.push(await attempt('nothing is left behind', cleanUp));
}
const passed = results.filter(Boolean).length;
console.log(`acceptance: ${passed} passed, ${results.length - passed} failed`);
process.exitCode = passed === results.length ? 0 : 1;
