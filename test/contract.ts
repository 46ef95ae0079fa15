/**
 * The HTTP contract of every table of every deployment, as one list of checks. The tests of the
 * examples and `npm run acceptance -- URL` run all of them.
 */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { header, pointersIn, type Row, type Table, toFilter } from './deployment.ts';

/** `when`: whether the table has what the check is about. */
type Check = { name: string; when: (t: Table) => unknown; run: (t: Table) => Promise<void> };
export const checks: Check[] = [];

function checkIf(when: Check['when'], name: string, run: Check['run']): void {
  checks.push({ name, when, run });
}
const check = (name: string, run: Check['run']) => checkIf(() => true, name, run);

const hasText = ({ text }: Table) => text;
const hasNumber = ({ number }: Table) => number;
const isPlain = ({ hasJson }: Table) => !hasJson;
const isSecured = ({ secured }: Table) => secured.write;

const SHOW = { prefer: 'return=representation' };
const EXACT = { prefer: 'count=exact' };
const OBJECT = { accept: 'application/vnd.pgrst.object+json' };
const CSV = { accept: 'text/csv', 'content-type': 'text/csv' };
const NDJSON = { accept: 'application/x-ndjson' };
const FORGED = 'eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIiwiZXhwIjo0MTAyNDQ0ODAwfQ.c2lnbmF0dXJl';
const UNSIGNED = `${btoa('{"alg":"none"}')}.${FORGED.split('.')[1]}.`;

// --- The service ------------------------------------------------------------------

check('/hello, /zero, /healthz and /readyz answer 200', async (t) => {
  assert.deepEqual(await t.get('/hello'), { message: 'ok' });
  assert.deepEqual(await t.get('/zero'), { 0: '' });
  for (const path of ['/healthz', '/readyz']) await t.ask('GET', path, 200);
});

check('OPTIONS and GET / answer what runs; a CORS preflight gets 204', async (t) => {
  const reply = await t.ask('OPTIONS', t.list, 200);
  const expected = ['GET', 'HEAD', 'POST', 'PATCH', 'DELETE', 'OPTIONS'];
  header(reply, 'allow', expected.join(', '));
  const { uri, methods, name, version, branch, commit } = reply.json;
  assert.deepEqual({ uri, methods }, { uri: t.base + t.list, methods: expected });
  for (const text of [name, version, branch, commit]) assert.equal(typeof text, 'string');
  assert.equal((await t.get('')).version, version);
  const headers = { origin: 'https://example.org', 'access-control-request-method': 'POST' };
  await t.ask('OPTIONS', t.list, 204, { headers });
});

check('/openapi.json is OpenAPI 3.1, and its examples can be created', async (t) => {
  assert.match((await t.get('/openapi.json')).openapi, /^3\.1/);
  for (const body of t.examples) await t.ask('POST', t.list, 201, { body });
});

check('/docs is a page that loads nothing from another host', async (t) => {
  const page = await t.ask('GET', '/docs', 200);
  header(page, 'content-type', /^text\/html/);
  assert.doesNotMatch(page.text, /(?:src|href)="(?:https?:)?\/\//);
});

check('an answer has Server-Timing and the X-Request-Id of a valid one', async (t) => {
  for (const [id, expected] of Object.entries({ 'check-1': /^check-1$/, 'a b': /^[^ ]+$/ })) {
    const reply = await t.ask('GET', '/hello', 200, { headers: { 'x-request-id': id } });
    header(reply, 'x-request-id', expected);
    header(reply, 'server-timing', /dur=/);
  }
});

// --- Reading ----------------------------------------------------------------------

check('a row is read as it was written, columns in declared order', async (t) => {
  const { row, path, etag } = await t.create();
  await t.assertStored(row);
  assert.deepEqual(Object.keys(await t.get(path)), t.names);
  t.assertRows([await t.get(`${t.list}/${String(row[t.key]).toUpperCase()}`)], [row]);
  const head = await t.ask('HEAD', path, 200);
  assert.equal(head.text, '');
  header(head, 'etag', etag);
});

check('If-None-Match answers 304 until the row changes', async (t) => {
  const { path, etag } = await t.create();
  const headers = { 'if-none-match': etag };
  assert.equal((await t.ask('GET', path, 304, { headers })).text, '');
  await t.ask('PATCH', path, 200, { body: t.other });
  await t.ask('GET', path, 200, { headers });
});

check('every column filters by eq, neq, is.null and not.is.null', async (t) => {
  const rows: [Row, Row] = [t.fresh(), t.fresh(t.other)];
  const [one, two] = rows.map((row) => String(row[t.key]));
  await t.ask('POST', t.list, 201, { body: rows });
  for (const name of [t.key, ...t.settable].filter((name) => rows[0][name] !== rows[1][name])) {
    const found = async (operator: string, value: unknown) =>
      t.keysIn(await t.get(`${t.only(...rows)}&${toFilter(name, operator, value)}`));
    assert.deepEqual(await found('eq', rows[0][name]), [one], name);
    assert.deepEqual(await found('neq', rows[0][name]), [two], name);
    assert.deepEqual(await found('is', 'null'), [], name);
    assert.equal((await found('not.is', 'null')).length, 2, name);
  }
});

checkIf(hasNumber, 'numbers compare by gt, gte, lt, lte, in, eq(any) and add up', async (t) => {
  const { rows, mine } = await t.three();
  const [a, b, c] = rows.map((row) => Number(row[t.number])) as [number, number, number];
  const [low, high] = [Math.min(a, b), Math.max(a, b)];
  const counts = {
    ...{ [`gt.${high}`]: 0, [`lt.${low}`]: 0, [`gte.${low}`]: 3, [`lte.${high}`]: 3 },
    ...{ [`in.(${low},${high})`]: 3, [`eq(any).{${low},${high}}`]: 3 },
  };
  for (const [condition, count] of Object.entries(counts))
    assert.equal((await t.get(`${mine}&${t.number}=${condition}`)).length, count, condition);
  const select = ['sum', 'avg', 'min', 'max'].map((one) => `${t.number}.${one}()`);
  const [{ sum, avg, ...others }] = await t.get(`${mine}&select=${select}`);
  assert.deepEqual(others, { min: low, max: high });
  for (const total of [sum, avg * 3]) assert.ok(Math.abs(total - a - b - c) < 1e-6, `${total}`);
});

checkIf(hasText, 'texts compare by like, ilike, match and imatch, and are not SQL', async (t) => {
  const { rows, mine } = await t.three();
  const end = String(rows[0][t.text]).slice(-8);
  const upper = end.toUpperCase();
  for (const condition of [`like.*${end}`, `ilike.*${upper}`, `match.${end}$`, `imatch.${upper}$`])
    t.assertRows(await t.get(`${mine}&${t.text}=${condition}`), [rows[0]], condition);
  t.assertRows(await t.get(`${mine}&${t.text}=like.%25' or 1=1 --`), []);
});

check('or, and, not and in combine; an index of a parameter is dropped', async (t) => {
  const { rows, mine } = await t.three();
  const { key } = t;
  const [a, b, c] = rows;
  const cases: [string, Row[]][] = [
    [`or=(${key}.eq.${a[key]},and(${key}.gt.${b[key]},${key}.not.is.null))`, [a, c]],
    [`not.or=(${key}.eq.${a[key]},${key}.eq."${c[key]}")`, [b]],
    [`and=(${key}.gte.${b[key]},${key}.lt.${c[key]})`, [b]],
    [`${key}=not.in.(${b[key]})`, [a, c]],
    [`${key}[0]=eq.${b[key]}`, [b]],
    [`${key}=in.()`, []],
  ];
  for (const [query, expected] of cases)
    t.assertRows(await t.get(`${mine}&${query}`), expected, query);
});

check('select, alias and cast shape the rows', async (t) => {
  const { rows, mine } = await t.three();
  const expected = rows.map((row) => ({ k: row[t.key] }));
  assert.deepEqual(await t.get(`${mine}&select=k:${t.key}::text`), expected);
});

check('count() counts in all and by each column', async (t) => {
  const { rows, mine } = await t.three();
  assert.deepEqual(await t.get(`${mine}&select=count()`), [{ count: 3 }]);
  for (const name of t.settable.filter((name) => name !== t.text && !t.moments.includes(name))) {
    const groups: Row[] = await t.get(`${mine}&select=${name},count()`);
    const counts = new Map(groups.map((group) => [JSON.stringify(group[name]), group.count]));
    const [first, second] = rows.map((row) => JSON.stringify(row[name]));
    assert.equal(counts.get(first ?? ''), first === second ? 3 : 2, name);
  }
});

check('every column orders, ascending and descending', async (t) => {
  const { mine } = await t.three();
  for (const name of t.names) {
    const sorted = (how: string) => t.get(`${mine}&select=${name}&order=${name}.${how}`);
    assert.deepEqual(await sorted('asc.nullsfirst'), (await sorted('desc')).reverse(), name);
  }
});

check('limit, offset and Range select a page, which Content-Range names', async (t) => {
  const { rows, mine } = await t.three();
  const page = await t.ask('GET', `${mine}&order=${t.key}.desc&limit=1&offset=1`, 200);
  t.assertRows(page.json, [rows[1]]);
  header(page, 'content-range', '1-1/*');
  t.assertRows(await t.get(mine, { range: '0-1', 'range-unit': 'items' }), rows.slice(0, 2));
  const none = await t.ask('GET', `${mine}&limit=0`, 200);
  t.assertRows(none.json, []);
  header(none, 'content-range', '*/*');
});

check('Link leads to the next page until the last', async (t) => {
  const { rows, mine } = await t.three();
  const first = await t.ask('GET', `${mine}&order=${t.settable[0]}.desc&limit=2`, 200);
  const [, next = ''] = /^<(.+)>/.exec(header(first, 'link', /^<[^>]+>; rel="next"$/)) ?? [];
  assert.ok(next.startsWith(`${t.base}${t.list}?`), next);
  const second = await t.ask('GET', next.slice(t.base.length), 200);
  assert.deepEqual(t.keysIn([...first.json, ...second.json]), t.keysIn(rows));
  assert.equal(second.headers.get('link'), null);
});

check('count=exact counts: 206 for a part, 200 for all, 416 past the end', async (t) => {
  const { mine } = await t.three();
  const part = await t.ask('GET', `${mine}&limit=2`, 206, { headers: EXACT });
  header(part, 'content-range', '0-1/3');
  header(await t.ask('HEAD', mine, 200, { headers: EXACT }), 'content-range', '0-2/3');
  await t.ask('GET', `${mine}&offset=9`, 416, { headers: EXACT, code: 'PGRST103' });
});

check('one object is answered alone; of several it is 406, nothing changed', async (t) => {
  const { rows, mine } = await t.three();
  t.assertRows([await t.get(t.only(rows[0]), OBJECT)], [rows[0]]);
  await t.ask('GET', mine, 406, { headers: OBJECT, code: 'PGRST116' });
  await t.ask('DELETE', mine, 406, { headers: { ...SHOW, ...OBJECT }, code: 'PGRST116' });
  t.assertRows(await t.get(mine), rows);
});

check('text/csv has a header line and a line per row, NDJSON a line per row', async (t) => {
  const { rows, mine } = await t.three();
  const csv = await t.ask('GET', `${mine}&select=${t.key}`, 200, { headers: CSV });
  header(csv, 'content-type', /^text\/csv/);
  assert.deepEqual(csv.text.trim().split(/\r?\n/), [t.key, ...t.keysIn(rows)]);
  const all = await t.ask('GET', mine, 200, { headers: CSV });
  assert.equal(all.text.split(/\r?\n/)[0], t.names.join());
  const ndjson = await t.ask('GET', mine, 200, { headers: NDJSON });
  header(ndjson, 'content-type', /^application\/x-ndjson/);
  t.assertRows(JSON.parse(`[${ndjson.text.trim().replaceAll('\n', ',')}]`), rows);
});

// --- Writing ----------------------------------------------------------------------

check('POST answers 201, the row, Location and ETag; fills in key and defaults', async (t) => {
  const { row, path, reply, etag } = await t.create();
  t.assertRows([reply.json], [row]);
  header(reply, 'location', t.base + path);
  assert.match(etag, /^"\d+"$/);
  const body = Object.fromEntries(t.required.map((name) => [name, row[name]]));
  const { json } = await t.ask('POST', t.list, 201, { body });
  assert.match(json[t.key], /^.{14}7/);
  assert.deepEqual(Object.keys(json), t.names);
});

check('POST of an array stores all of its rows or none', async (t) => {
  const rows = [t.fresh(), t.fresh(t.other)];
  t.assertRows((await t.ask('POST', t.list, 201, { body: rows })).json, rows);
  const row = t.fresh();
  const body = [row, { ...t.fresh(), '': 1 }];
  assert.deepEqual(pointersIn(await t.ask('POST', t.list, 422, { body })), ['/1/']);
  await t.ask('GET', t.at(row), 404);
  await t.ask('POST', `${t.list}?columns=${[t.key, ...t.settable]}`, 201, { body });
  await t.assertStored(row);
});

checkIf(isPlain, 'POST of text/csv stores all rows, or none and names the line', async (t) => {
  const rows = [t.fresh(), t.fresh(t.other)];
  await t.ask('POST', t.list, 201, { headers: CSV, body: t.toCsv(rows) });
  await t.assertStored(...rows);
  const row = t.fresh();
  const body = t.toCsv([row, { ...t.fresh(), [t.key]: 'x' }]);
  const { status, text } = await t.send('POST', t.list, { headers: CSV, body });
  assert.match(`${status} ${text}`, /^(400|422) .*line 3/);
  await t.ask('GET', t.at(row), 404);
});

check('Prefer: return decides what a write answers, select= which columns', async (t) => {
  const body = t.fresh();
  t.assertRows((await t.ask('POST', t.list, 201, { body, headers: SHOW })).json, [body]);
  const path = `${t.only(body)}&select=${t.key}`;
  const { json } = await t.ask('PATCH', path, 200, { body: t.other, headers: SHOW });
  assert.deepEqual(json, [{ [t.key]: body[t.key] }]);
  for (const prefer of ['return=minimal', 'return=headers-only']) {
    const reply = await t.ask('POST', t.list, 201, { body: t.fresh(), headers: { prefer } });
    assert.equal(reply.text, '');
    header(reply, 'location', /./);
  }
});

check('/rest/v1 reads the same rows and answers a write only if asked', async (t) => {
  const [row, other] = [t.fresh(), t.fresh()];
  const silent = await t.ask('POST', `/rest/v1${t.list}`, 201, { body: row });
  assert.equal(silent.text, '');
  header(silent, 'location', `${t.base}/rest/v1${t.at(row)}`);
  const shown = await t.ask('POST', `/rest/v1${t.list}`, 201, { body: other, headers: SHOW });
  t.assertRows(shown.json, [other]);
  t.assertRows(await t.get(`/rest/v1${t.only(row)}`), [row]);
});

check('a key that exists is 409; an upsert ignores it or merges', async (t) => {
  const { row } = await t.create();
  await t.ask('POST', t.list, 409, { body: row, code: '23505' });
  const body = [{ ...row, ...t.other }];
  const ignore = { prefer: 'resolution=ignore-duplicates' };
  await t.ask('POST', t.list, 200, { body, headers: ignore });
  await t.assertStored(row);
  const headers = { prefer: 'resolution=merge-duplicates,return=representation' };
  const merged = await t.ask('POST', `${t.list}?on_conflict=${t.key}`, 200, { body, headers });
  t.assertRows(merged.json, body);
  await t.assertStored(...body);
});

check('PUT creates with 201 or replaces with 200 the row of its path', async (t) => {
  const row = t.fresh();
  const headers = { 'if-none-match': '*' };
  const created = await t.ask('PUT', t.at(row), 201, { body: row, headers });
  header(created, 'location', t.base + t.at(row));
  await t.ask('PUT', t.at(row), 412, { body: row, headers });
  const replaced = { ...row, ...t.other };
  t.assertRows([(await t.ask('PUT', t.at(row), 200, { body: t.other })).json], [replaced]);
  const body = { ...row, [t.key]: randomUUID() };
  assert.deepEqual(pointersIn(await t.ask('PUT', t.at(row), 422, { body })), [`/${t.key}`]);
  await t.assertStored(replaced);
});

check('PATCH of a row sets the named columns alone', async (t) => {
  const { row, path } = await t.create();
  const headers = { 'content-type': 'application/merge-patch+json' };
  for (const name of t.settable) {
    row[name] = t.other[name];
    const { json } = await t.ask('PATCH', path, 200, { body: { [name]: row[name] }, headers });
    t.assertRows([json], [row], name);
  }
});

check('DELETE of a row answers 204, then 404', async (t) => {
  const { path } = await t.create();
  await t.ask('DELETE', path, 204);
  for (const method of ['DELETE', 'GET']) await t.ask(method, path, 404, { code: 'PGRST116' });
  await t.ask('PATCH', path, 404, { body: {}, code: 'PGRST116' });
});

check('PATCH and DELETE by a filter change the rows that pass it', async (t) => {
  const { rows, mine } = await t.three();
  const path = `${mine}&${t.key}=neq.${rows[1][t.key]}`;
  const { json } = await t.ask('PATCH', path, 200, { body: t.other, headers: SHOW });
  assert.deepEqual(t.keysIn(json), t.keysIn([rows[0], rows[2]]));
  await t.assertStored({ ...rows[0], ...t.other }, rows[1], { ...rows[2], ...t.other });
  await t.ask('DELETE', path, 204);
  t.assertRows(await t.get(mine), [rows[1]]);
});

check('PATCH of an array gives each row its own values', async (t) => {
  const { rows, mine } = await t.three();
  const body = rows.map((row, index) => ({ ...row, ...(index === 1 ? t.example : t.other) }));
  await t.ask('PATCH', t.list, 204, { body });
  t.assertRows(await t.get(mine), body);
});

check('no filter is 400, and more than max-affected rows; nothing changes', async (t) => {
  const { rows, mine } = await t.three();
  const terms = { headers: { prefer: 'handling=strict, max-affected=2' }, code: 'PGRST124' };
  await t.ask('DELETE', mine, 400, terms);
  await t.ask('PATCH', mine, 400, { body: t.other, ...terms });
  await t.ask('PATCH', t.list, 400, { body: {}, code: '21000' }); // an empty patch changes nothing
  t.assertRows(await t.get(mine), rows);
});

check('If-Match is 412 where another writer was faster; nothing changes', async (t) => {
  const { row, path, etag } = await t.create();
  const headers = { 'if-match': etag };
  await t.ask('PATCH', path, 200, { body: t.other, headers });
  await t.ask('PATCH', path, 412, { body: t.example, headers });
  await t.ask('PUT', path, 412, { body: row, headers });
  await t.ask('DELETE', path, 412, { headers });
  await t.assertStored({ ...row, ...t.other });
});

check('an Idempotency-Key makes one row of many requests', async (t) => {
  const [body, headers] = [t.example, { 'idempotency-key': randomUUID() }];
  const create = () => t.ask('POST', t.list, 201, { body, headers });
  const [first, ...others] = await Promise.all([create(), create(), create(), create()]);
  for (const { json } of others) assert.deepEqual(json, first?.json);
  header(await create(), 'idempotent-replayed', 'true');
  await t.ask('POST', t.list, 409, { body: { ...body, ...t.other }, headers, code: '23505' });
});

// --- Refusals ---------------------------------------------------------------------

type Terms = Parameters<Table['ask']>[3];
type Refusal = [name: string, method: string, path: string, status: number, terms?: Terms];

/** `{list}` and `{key}` are the path and the key of the table. */
const REFUSALS: Refusal[] = [
  ['an unknown path', 'GET', '/nothing/here', 404, { code: 'PGRST125' }],
  ['another method on a known path', 'DELETE', '/hello', 405],
  ['a key that is not a UUID', 'GET', '{list}/abc', 400, { code: '22P02' }],
  ['an unknown column', 'GET', '{list}?constructor=eq.1', 400, { code: '42703' }],
  ['an unknown operator', 'GET', '{list}?{key}=over.1', 400, { code: 'PGRST100' }],
  ['a condition without a value', 'GET', '{list}?{key}=is', 400, { code: 'PGRST100' }],
  ['a value of another type', 'GET', '{list}?{key}=eq.x', 400, { code: '22P02' }],
  ['a negative limit', 'GET', '{list}?limit=-1', 400],
  ['an invalid cursor', 'GET', '{list}?after=garbage', 400],
  ['SQL in order', 'GET', '{list}?order=1;drop table x', 400],
  ['embedding', 'GET', '{list}?select=*,other(*)', 400],
  ['an unknown media type', 'GET', '{list}', 406, { headers: { accept: 'image/png' } }],
  ['another schema', 'GET', '{list}', 406, { headers: { 'accept-profile': 'x' } }],
  ['a body that is not JSON', 'POST', '{list}', 400, { body: '{"a":' }],
  ['an empty body', 'POST', '{list}', 400, { body: '' }],
  ['null as a row', 'POST', '{list}', 422, { body: 'null' }],
  ['text/plain', 'POST', '{list}', 415, { body: 'x', headers: { 'content-type': 'text/plain' } }],
  ['a body over the limit', 'POST', '{list}', 413, { body: { x: 'x'.repeat(2 ** 21) } }],
];

for (const [name, method, template, status, terms] of REFUSALS) {
  check(`${name} is ${status}`, async (t) => {
    const path = template.replace('{list}', t.list).replace('{key}', t.key);
    const reply = await t.ask(method, path, status, terms);
    if (status === 405) header(reply, 'allow', /GET/);
  });
}

check('POST, PUT and PATCH name every fault and every missing column', async (t) => {
  const { row, path } = await t.create();
  const typed = t.columns.filter(({ type }) => type);
  const bad = typed.map(({ name, type }) => [name, type === 'string' ? 7 : 'x']);
  const body = { ...t.example, ...Object.fromEntries(bad), toString: 1 };
  const expected = [...typed.map(({ name }) => `/${name}`), '/toString'];
  for (const [method, target] of Object.entries({ POST: t.list, PUT: path, PATCH: path }))
    assert.deepEqual(pointersIn(await t.ask(method, target, 422, { body })), expected, method);
  await t.assertStored(row);
  const empty = await t.ask('POST', t.list, 422, { body: { '': 1 } });
  const missing = [...t.required, ''].map((name) => `/${name}`);
  assert.deepEqual(pointersIn(empty), missing);
});

checkIf(hasText, 'a text of blanks, with NUL or half of a surrogate pair is 422', async (t) => {
  for (const value of [' ', 'a\0b', 'a\ud800']) {
    const reply = await t.ask('POST', t.list, 422, { body: { ...t.fresh(), [t.text]: value } });
    assert.deepEqual(pointersIn(reply), [`/${t.text}`]);
  }
});

const TOKENS: [name: string, token: string | null, code: string][] = [
  ['no token', null, 'PGRST302'],
  ['a forged token', FORGED, 'PGRST301'],
  ['an unsigned token', UNSIGNED, 'PGRST301'],
];

for (const [name, token, code] of TOKENS) {
  checkIf(isSecured, `${name} is 401 for a write, and for a read unless open`, async (t) => {
    const row = t.fresh();
    const reply = await t.ask('PUT', t.at(row), 401, { body: row, token, code });
    header(reply, 'www-authenticate', /^Bearer/);
    if (t.secured.read) await t.ask('GET', t.list, 401, { token, code });
    else await t.ask('GET', `${t.list}?limit=1`, 200, { token: null });
  });
}
