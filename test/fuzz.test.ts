/**
 * 20 000 requests near valid ones. Afterwards the table holds what the acknowledged writes say.
 *
 *     FUZZ_SEED=1 FUZZ_REQUESTS=1000 node --import tsx --test test/fuzz.test.ts
 *
 * The requests go in lanes, one after the other in each. A lane writes only rows that have its number
 * as siblingsOrSpousesAboard, so the order of all writes to a row is known; each asks for its rows.
 */
import assert from 'node:assert/strict';
import { Agent, request as httpRequest } from 'node:http';
import { test } from 'node:test';
import fc from 'fast-check';
import { assertProblem, header, type Reply, toReply } from './deployment.ts';
import { openService, PASSENGER } from './harness.ts';

const SEED = Number(process.env.FUZZ_SEED ?? Date.now() % 2 ** 31);
const REQUESTS = Number(process.env.FUZZ_REQUESTS ?? 20_000);
const LANES = 10; // one digit, so that a digit lost makes no other lane
const ELSEWHERE = 15; // the mark of rows that no lane changes, those of CSV too
const MARK = 'siblingsOrSpousesAboard';

const ROW = { ...PASSENGER, [MARK]: ELSEWHERE };
type Row = Record<string, unknown>;

const { database, service } = await openService({ CSV_LIMIT: '100000' });

// --- Requests -------------------------------------------------------------------

const often = <T>(weight: number, arbitrary: fc.Arbitrary<T>) => ({ weight, arbitrary });
const COLUMNS = ['uuid', ...Object.keys(ROW)];
const ODD = [
  ...[null, true, '', ' ', 'x', 0, -1, -0, 1.5, 151, 2 ** 31, 1e308, [], {}, 'x'.repeat(150)],
  ...['😀'.repeat(151), 'a\0b', '\ud800', "'; drop table x --", '__proto__', 'NaN', 'Infinity'],
  ...['1', 'true', '\u2028', '%', '\\', '"'],
];
const odd = fc.oneof(often(3, fc.constantFrom<unknown>(...ODD)), fc.jsonValue({ maxDepth: 2 }));
const column = fc.oneof(
  often(6, fc.constantFrom(...COLUMNS)),
  fc.constantFrom('constructor', '__proto__', 'toString', '', 'select', 'xmin', 'Uuid', 'a"b'),
);
const change = fc.record({ column, value: fc.option(odd, { nil: undefined, freq: 8 }) });

/** Rows near valid ones; `own` keys are set where the request is sent. */
const row = fc.record({
  name: fc.string({ minLength: 1, maxLength: 20 }),
  age: fc.integer({ min: -1, max: 152 }),
  changes: fc.oneof(often(4, fc.constant([])), fc.array(change, { maxLength: 3 })),
  keyed: fc.nat(3),
});
/** What is done to a text: a cut, and something put in; no digit, as those are the marks. */
const put = fc.constantFrom(...'{}[]",:\\ x\0é');
const damage = fc.record({ at: fc.nat(400), cut: fc.nat(9), put });
const body = fc.record({
  rows: fc.array(row, { maxLength: 4 }),
  many: fc.boolean(),
  damage: fc.oneof(often(6, fc.constant(undefined)), damage),
});

/** One of these words. */
const words = (text: string) => fc.constantFrom(...text.split(' '));
const operator = words(
  `eq neq gt gte lt lte like ilike match imatch in is isdistinct fts plfts phfts wfts \
not.eq not.in eq(any) like(all) gt(any) fts(english) x toString`,
);
const operand = fc.oneof(
  fc.constantFrom('1', '30.5', 'true', 'null', 'Mr*', '(1,2)', '()', '("a","b\\")")', '{1,2}', '%'),
  fc.constantFrom('(', '{', '[', '*', "'", '1e999', 'NaN', '99999999999999999999', '(eq.1)', '\\'),
  fc.string({ maxLength: 8 }),
  fc.uuid(),
);
const condition = fc.tuple(column, operator, operand);
const compared = condition.map(([name, ...parts]) => [name, parts.join('.')]);
const tree = fc
  .array(
    condition.map((parts) => parts.join('.')),
    { maxLength: 3 },
  )
  .map((all) => `(${all})`);
const ordered = fc
  .tuple(column, words('.asc .desc .asc.nullsfirst .x'))
  .map((parts) => parts.join(''));
const parameter: fc.Arbitrary<string[]> = fc.oneof(
  often(5, compared),
  fc.tuple(words('or and not.or'), tree),
  fc.tuple(words('limit offset'), fc.oneof(fc.nat(30).map(String), operand)),
  fc.tuple(words('order'), ordered),
  fc.tuple(
    words('select'),
    words('* name,age count() sex,age.avg() a:name::text x(y) age->1 name::uuid'),
  ),
  fc.tuple(words('columns on_conflict after x name[0]'), fc.oneof(column, operand)),
);

const LIST = '/passengers /rest/v1/passengers';
const ROW_OF = '/passengers/OWN /rest/v1/passengers/OWN';
const place = words(`${LIST} /getpassenger /putpassenger /deletepassenger`);
const key = fc.oneof(often(5, words('OWN')), words('abc %00 %zz { .. %F0%9F'), fc.uuid());
const below = fc.tuple(place, key).map((parts) => parts.join('/'));
const path = fc.oneof(
  often(6, words(LIST)),
  often(8, below),
  words('/ // /passengerlist /postpassenger /hello /zero /healthz /readyz /metrics /openapi.json'),
  words(
    '/docs /docs/start.js /docs/..%2fapp.ts /passengers/ /rest/v1/rpc/x * /% http://x.example/',
  ),
  fc.webPath().map((path) => `/${path}`),
);

const method = words('GET HEAD POST PUT PATCH DELETE OPTIONS TRACE QUERY FOO');
const type = fc.oneof(
  often(4, words('text/csv')),
  fc.constantFrom('application/merge-patch+json', 'text/plain', '', 'application/json; charset=x'),
);
const OBJECT = 'application/vnd.pgrst.object+json';
/** The headers that are tried, each with its values. */
const HEADERS: [names: string, values: string[]][] = [
  ['Accept', ['*/*', 'application/json', 'text/csv', 'application/x-ndjson', OBJECT, 'text/html']],
  ['Accept', ['application/json;q=0', ';', 'a/b,*/*;q=x']],
  ['Prefer', ['count=exact', 'resolution=merge-duplicates', 'resolution=ignore-duplicates', '=']],
  ['Prefer', ['handling=strict', 'max-affected=1', 'handling=strict, x=y', 'return=minimal', ',']],
  ['If-Match If-None-Match', ['*', '"1"', 'W/"1"', '"', '']],
  ['Idempotency-Key', ['', 'one', 'two', 'three', 'k'.repeat(256)]],
  ['Range', ['0-9', '9-0', 'items=0-1', '-1', 'x']],
  ['Accept-Profile Content-Profile', ['public', 'x']],
  ['Content-Encoding', ['gzip', 'identity']],
];
const ANY = 'Range-Unit Origin Authorization X-Request-Id Host Expect User-Agent Idempotency-Key';
const field: fc.Arbitrary<string[]> = fc.oneof(
  ...HEADERS.map(([names, values]) => fc.tuple(words(names), fc.constantFrom(...values))),
  fc.tuple(words(`${ANY} Access-Control-Request-Method`), fc.stringMatching(/^[ -~]{0,12}$/)),
);
/** A method and a path: mostly those that go together. */
const ROUTES: [number, string, string][] = [
  [4, 'GET HEAD', `${LIST} /passengers/OWN /getpassenger/OWN`],
  [8, 'POST', `${LIST} /postpassenger`],
  [4, 'PUT', `${ROW_OF} /putpassenger/OWN`],
  [6, 'PATCH', `${ROW_OF} ${LIST}`],
  [2, 'DELETE', '/passengers/OWN /deletepassenger/OWN /passengers/OWN /passengers'],
  [1, 'GET', '/passengerlist /hello /zero /metrics /docs /readyz'],
  [1, 'OPTIONS', '/passengers /hello *'],
];
const target = fc.oneof(
  ...ROUTES.map(([weight, methods, paths]) =>
    often(weight, fc.tuple(words(methods), words(paths))),
  ),
  often(4, fc.tuple(method, path)),
);
const usual = fc.constant<string[][]>([]);
const near = fc.record({
  target,
  parameters: fc.oneof(often(3, usual), fc.array(parameter, { maxLength: 3 })),
  headers: fc.oneof(often(3, usual), fc.array(field, { maxLength: 3 })),
  type: fc.oneof(often(20, fc.constant('application/json')), type),
  body,
  pick: fc.nat(1000),
});
type Near = typeof near extends fc.Arbitrary<infer T> ? T : never;

// --- Lanes ----------------------------------------------------------------------

/** What the table has to hold, by key. */
const model = new Map<string, Row>();
const statuses = new Map<number, number>();

/** The text of a body, its rows marked as the lane's wherever the mark is a valid one. */
function write({ target: [method], body, type }: Near, lane: number, own: () => string) {
  const { rows, many, damage } = body;
  const made = rows.map(({ name, age, changes, keyed }) => {
    const entries: Row = method === 'PATCH' ? { age } : { ...ROW, name, age };
    if (keyed === 0) entries.uuid = own();
    for (const { column, value } of changes) {
      if (value === undefined) delete entries[column];
      else Object.defineProperty(entries, column, { value, enumerable: true, configurable: true });
    }
    const mark = entries[MARK];
    return Number.isInteger(mark) && Number(mark) < 21 ? { ...entries, [MARK]: lane } : entries;
  });
  if (type === 'text/csv') {
    const names = Object.keys(ROW);
    const lines = made.map((one) => names.map((name) => (name === MARK ? ELSEWHERE : one[name])));
    return [names, ...lines].map((line) => `${line}\n`).join('');
  }
  const text = JSON.stringify(many ? made : (made[0] ?? null));
  if (!damage) return text;
  return text.slice(0, damage.at) + damage.put + text.slice(damage.at + damage.cut);
}

/** Sends it. A write of many rows keeps to the lane's own, whatever its other filters are. */
function send(near: Near, lane: number, own: () => string, agent: Agent): Promise<Reply> {
  const { parameters, type } = near;
  const [method, place] = near.target;
  const writes = /^(POST|PUT|PATCH|DELETE)$/.test(method);
  const encode = (part: string) => encodeURIComponent(part.toWellFormed());
  const query = parameters.map((pair) => pair.map(encode).join('='));
  if (writes && method !== 'PUT') query.push('select=*');
  if (/^(PATCH|DELETE)$/.test(method)) query.push(`${MARK}=eq.${lane}`);
  if (place.includes('OWN') && writes) query.length = 0;
  const target = [place.replace('OWN', own()), query.join('&')].filter(Boolean).join('?');
  const headers: Record<string, string> = { ...(type && { 'Content-Type': type }) };
  for (const [name = '', value = ''] of near.headers) headers[name] = value;
  if (writes) headers.Prefer = `return=representation, ${headers.Prefer ?? ''}`;
  if (writes && /csv|ndjson/.test(headers.Accept ?? '')) headers.Accept = '*/*'; // the model reads JSON
  const sent = /^(POST|PUT|PATCH)$/.test(method) ? Buffer.from(write(near, lane, own)) : undefined;
  if (sent) headers['Content-Length'] = String(sent.length);
  return new Promise((resolve, reject) => {
    const path = target.replace(/[^!-~]/g, encodeURIComponent);
    const { hostname, port } = new URL(service.url);
    const asked = httpRequest({ hostname, port, method, path, headers, agent });
    asked.on('error', reject).end(sent);
    asked.on('response', async (response) => {
      const { statusCode: status = 0, headers } = response;
      const chunks = (await response.toArray().catch(reject)) ?? [];
      const head = { status, headers: new Headers(headers as HeadersInit) };
      resolve(toReply(head, String(Buffer.concat(chunks))));
    });
  });
}

/** An answer has all that each answer has; an acknowledged write goes into the model. */
function check({ target: [method] }: Near, reply: Reply): void {
  const { status, headers, text, json } = reply;
  statuses.set(status, (statuses.get(status) ?? 0) + 1);
  assert.ok(status >= 200 && status !== 500, `${status} ${text}`);
  for (const name of ['x-request-id', 'server-timing']) assert.ok(headers.get(name), name);
  service.hear(text);
  if (status >= 400) header(reply, 'content-type', 'application/problem+json');
  if (status >= 400 && method !== 'HEAD') assertProblem(reply);
  if (status >= 300 || !/^(POST|PUT|PATCH|DELETE)$/.test(method)) return;
  assert.ok(json || status === 204, `${status} without rows`);
  for (const row of [json ?? []].flat() as Row[]) {
    if (method === 'DELETE') model.delete(String(row.uuid));
    else model.set(String(row.uuid), row);
  }
}

/** Every tenth request of all, one after the other. */
async function runLane(lane: number, requests: Near[]): Promise<void> {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  const mine = (pick: number) => {
    const keys = [...model].filter(([, row]) => row[MARK] === lane).map(([key]) => key);
    return keys[pick % (keys.length + 1)] ?? crypto.randomUUID();
  };
  for (let at = lane; at < requests.length; at += LANES) {
    const request = requests[at]!;
    let { pick } = request;
    const own = () => {
      pick += 1;
      return mine(pick);
    };
    try {
      check(request, await send(request, lane, own, agent));
    } catch (cause) {
      throw new Error(`FUZZ_SEED=${SEED}, request ${at}: ${JSON.stringify(request)}`, { cause });
    }
  }
  agent.destroy();
}

test(`${REQUESTS} requests near valid ones: no 500, no error in the log, no write but the acknowledged`, async (t) => {
  t.diagnostic(`FUZZ_SEED=${SEED}`);
  for (let count = 0; count < 20; count += 1) {
    const kept = { ...ROW, name: `kept ${count}`, uuid: crypto.randomUUID() };
    await database.sql`insert into titanic ${database.sql(kept)}`;
    model.set(kept.uuid, kept);
  }
  const requests = fc.sample(near, { numRuns: REQUESTS, seed: SEED });
  const from = performance.now();
  await Promise.all(Array.from({ length: LANES }, (_, lane) => runLane(lane, requests)));
  const seen = [...statuses].sort().map(([status, count]) => `${count} × ${status}`);
  t.diagnostic(`${((performance.now() - from) / 1000).toFixed(1)} s; ${seen.join(', ')}`);
  const errors = service.log.filter(({ level }) => level === 'error' || level === 'fatal');
  assert.deepEqual(errors, []);
  assert.doesNotMatch(service.stderr(), /error|warning|^ +at /im);
  assert.equal(service.child.exitCode, null);
  assert.equal((await service.get('/healthz')).status, 200);
  const stored = await database.sql`select uuid, row_to_json(t) as row from titanic t`;
  const found = new Map(stored.map(({ uuid, row }) => [uuid, row as Row]));
  for (const [uuid, row] of model) {
    assert.deepEqual(found.get(uuid), row, `FUZZ_SEED=${SEED}: ${uuid} is not as acknowledged`);
    found.delete(uuid);
  }
  t.diagnostic(`${model.size} rows as acknowledged`);
  assert.deepEqual([...found.keys()], [], `FUZZ_SEED=${SEED}: rows that were never acknowledged`);
});
