/**
 * 20 000 requests near valid ones. Afterwards the table holds exactly what
 * the acknowledged writes say.
 *
 *     FUZZ_SEED=1 FUZZ_REQUESTS=1000 node --import tsx --test test/fuzz.test.ts
 *
 * The requests go in lanes, one after the other in each. A lane writes only rows that have its number
 * as siblingsOrSpousesAboard, so the order of all writes to a row is known; each asks for its rows.
 */
import assert from 'node:assert/strict';
import { Agent, request as httpRequest, type IncomingHttpHeaders } from 'node:http';
import { test } from 'node:test';
import fc from 'fast-check';
import { openService, PASSENGER } from './harness.ts';

const SEED = Number(process.env.FUZZ_SEED ?? Date.now() % 2 ** 31);
const REQUESTS = Number(process.env.FUZZ_REQUESTS ?? 20_000);
const LANES = 10; // one digit, so that a digit lost makes no other lane
const ELSEWHERE = 15; // the mark of rows that no lane changes
const MARK = 'siblingsOrSpousesAboard';

const ROW = { ...PASSENGER, [MARK]: ELSEWHERE };
type Row = Record<string, unknown>;

const { database, service } = await openService({ CSV_LIMIT: '100000' });

// --- Requests -------------------------------------------------------------------

const COLUMNS = ['uuid', ...Object.keys(ROW)];
const odd = fc.oneof(
  fc.constantFrom<unknown>(null, true, '', ' ', 'x', 0, -1, -0, 1.5, 151, 2 ** 31, 1e308, [], {}),
  fc.constantFrom<unknown>(
    'x'.repeat(150),
    '😀'.repeat(151),
    'a\0b',
    '\ud800',
    "'; drop table x --",
  ),
  fc.constantFrom<unknown>('__proto__', 'NaN', 'Infinity', '1', 'true', '\u2028', '%', '\\', '"'),
  fc.jsonValue({ maxDepth: 2 }),
);
const column = fc.oneof(
  { weight: 6, arbitrary: fc.constantFrom(...COLUMNS) },
  fc.constantFrom('constructor', '__proto__', 'toString', '', 'select', 'xmin', 'Uuid', 'a"b'),
);
const change = fc.record({ column, value: fc.option(odd, { nil: undefined, freq: 8 }) });

/** Rows near valid ones; `own` keys are set where the request is sent. */
const row = fc.record({
  name: fc.string({ minLength: 1, maxLength: 20 }),
  age: fc.integer({ min: -1, max: 152 }),
  changes: fc.oneof({ weight: 4, arbitrary: fc.constant([]) }, fc.array(change, { maxLength: 3 })),
  keyed: fc.nat(3),
});
/** What is done to a text: a cut, and something put in; no digit, as those are the marks. */
const damage = fc.record({
  at: fc.nat(400),
  cut: fc.nat(9),
  put: fc.constantFrom(...'{}[]",:\\ x\0é'),
});
const body = fc.record({
  rows: fc.array(row, { maxLength: 4 }),
  many: fc.boolean(),
  damage: fc.oneof({ weight: 6, arbitrary: fc.constant(undefined) }, damage),
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
const tree = fc.array(condition, { maxLength: 3 });
const parameter: fc.Arbitrary<string[]> = fc.oneof(
  { weight: 5, arbitrary: condition.map(([a, b, c]) => [a, `${b}.${c}`]) },
  fc
    .tuple(words('or and not.or'), tree)
    .map(([name, parts]) => [name, `(${parts.map((part) => part.join('.'))})`]),
  fc.tuple(words('limit offset'), fc.oneof(fc.nat(30).map(String), operand)),
  fc
    .tuple(column, fc.constantFrom('', '.desc', '.asc.nullsfirst', '.x'))
    .map((parts) => ['order', parts.join('')]),
  words('* name,age count() sex,age.avg() a:name::text x(y) age->1 name::uuid ,').map((members) => [
    'select',
    members,
  ]),
  fc.tuple(words('columns on_conflict after x name[0]'), fc.oneof(column, operand)),
);

const TABLE = '/passengers /rest/v1/passengers';
const path = fc.oneof(
  { weight: 6, arbitrary: words(TABLE) },
  {
    weight: 8,
    arbitrary: fc
      .tuple(
        words(`${TABLE} /getpassenger /putpassenger /deletepassenger`),
        fc.oneof(
          { weight: 5, arbitrary: fc.constant('OWN') },
          fc.uuid(),
          fc.constantFrom('abc', '%00', '%zz', '', '{', '..', '%F0%9F'),
        ),
      )
      .map((parts) => parts.join('/')),
  },
  { weight: 2, arbitrary: fc.constant('/postpassenger') },
  words(
    `/ // /passengerlist /hello /zero /healthz /readyz /metrics /docs /docs/start.js \
/docs/..%2fapp.ts /openapi.json /passengers/ /rest/v1/rpc/x * /% http://evil.example/hello`,
  ),
  fc.webPath().map((path) => `/${path}`),
);

const method = words('GET HEAD POST PUT PATCH DELETE OPTIONS TRACE QUERY FOO');
const type = fc.constantFrom(
  ...['application/merge-patch+json', 'text/plain', '', 'application/json; charset=x'],
  ...['text/csv', 'text/csv', 'text/csv'],
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
const header: fc.Arbitrary<string[]> = fc.oneof(
  ...HEADERS.map(([names, values]) => fc.tuple(words(names), fc.constantFrom(...values))),
  fc.tuple(words(`${ANY} Access-Control-Request-Method`), fc.stringMatching(/^[ -~]{0,12}$/)),
);
/** A method and a path: mostly those that go together. */
const ROUTES: [number, string, string][] = [
  [4, 'GET HEAD', '/passengers /rest/v1/passengers /passengers/OWN /getpassenger/OWN'],
  [8, 'POST', '/passengers /rest/v1/passengers /postpassenger'],
  [4, 'PUT', '/passengers/OWN /rest/v1/passengers/OWN /putpassenger/OWN'],
  [6, 'PATCH', '/passengers/OWN /rest/v1/passengers/OWN /passengers /rest/v1/passengers'],
  [2, 'DELETE', '/passengers/OWN /deletepassenger/OWN /passengers/OWN /passengers'],
  [1, 'GET', '/passengerlist /hello /zero /metrics /docs /readyz'],
  [1, 'OPTIONS', '/passengers /hello *'],
];
const target = fc.oneof(
  ...ROUTES.map(([weight, methods, paths]) => ({
    weight,
    arbitrary: fc.tuple(words(methods), words(paths)),
  })),
  { weight: 4, arbitrary: fc.tuple(method, path) },
);
const usual = fc.constant<string[][]>([]);
const near = fc.record({
  target,
  parameters: fc.oneof({ weight: 3, arbitrary: usual }, fc.array(parameter, { maxLength: 3 })),
  headers: fc.oneof({ weight: 3, arbitrary: usual }, fc.array(header, { maxLength: 3 })),
  type: fc.oneof({ weight: 20, arbitrary: fc.constant('application/json') }, type),
  body,
  pick: fc.nat(1000),
});
type Near = typeof near extends fc.Arbitrary<infer T> ? T : never;

// --- Lanes ----------------------------------------------------------------------

/** What the table has to hold, by key, and how many rows came by CSV, whose keys are not answered. */
const model = new Map<string, Row>();
let copied = 0;
const statuses = new Map<number, number>();

type Answer = { status: number; headers: IncomingHttpHeaders; text: string };

/** The text of a body, its rows marked as the lane's wherever the mark is a valid one. */
function write(
  { target: [method], body: { rows, many, damage }, type }: Near,
  lane: number,
  own: () => string,
) {
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
  if (type === 'text/csv') return csv(made);
  const text = JSON.stringify(many ? made : (made[0] ?? null));
  if (!damage) return text;
  return text.slice(0, damage.at) + damage.put + text.slice(damage.at + damage.cut);
}

/** Rows of no lane: the answer to CSV has their number, not their keys. */
function csv(rows: Row[]): string {
  const names = Object.keys(ROW);
  const lines = rows.map((one) => names.map((name) => (name === MARK ? ELSEWHERE : one[name])));
  return [names, ...lines].map((line) => `${line}\n`).join('');
}

/** Sends it. A write of many rows keeps to the lane's own, whatever its other filters are. */
function send(near: Near, lane: number, own: () => string, agent: Agent): Promise<Answer> {
  const { parameters, type } = near;
  const [method, place] = near.target;
  const writes = /^(POST|PUT|PATCH|DELETE)$/.test(method);
  const query = parameters.map((pair) =>
    pair.map((part) => encodeURIComponent(part.toWellFormed())).join('='),
  );
  if (writes && method !== 'PUT') query.push('select=*');
  if (/^(PATCH|DELETE)$/.test(method)) query.push(`${MARK}=eq.${lane}`);
  const single = place.includes('OWN');
  const target =
    place.replace('OWN', own()) +
    (query.length > 0 && !(single && writes) ? `?${query.join('&')}` : '');
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
      const chunks = await response.toArray().catch(reject);
      resolve({ status, headers, text: String(Buffer.concat(chunks ?? [])) });
    });
  });
}

/** An answer has all that each answer has; an acknowledged write goes into the model. */
function check({ target: [method, path] }: Near, { status, headers, text }: Answer): void {
  statuses.set(status, (statuses.get(status) ?? 0) + 1);
  assert.ok(status >= 200 && status !== 500, `${status} ${text}`);
  assert.ok(headers['x-request-id'] && headers['server-timing'], 'X-Request-Id, Server-Timing');
  service.hear(text);
  if (status >= 400) assertProblem(method, status, headers['content-type'], text);
  if (status >= 300 || !/^(POST|PUT|PATCH|DELETE)$/.test(method)) return;
  if (text === '') {
    const [, rows] = /^\*\/(\d+)$/.exec(String(headers['content-range'])) ?? [];
    assert.ok(rows && method === 'POST', `${status} of ${path} has no number of rows`);
    copied += Number(rows);
    return;
  }
  for (const row of [JSON.parse(text)].flat() as Row[]) {
    if (method === 'DELETE') model.delete(String(row.uuid));
    else model.set(String(row.uuid), row);
  }
}

function assertProblem(method: string, status: number, type: unknown, text: string): void {
  assert.equal(type, 'application/problem+json');
  if (method === 'HEAD') return;
  const problem = JSON.parse(text);
  assert.equal(problem.status, status);
  assert.equal(problem.detail, problem.message);
  const members = ['type', 'title', 'status', 'detail', 'code', 'message', 'details', 'hint'];
  for (const member of members) assert.ok(member in problem, `${member} is missing in ${text}`);
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
    let next = 0;
    const own = () => {
      next += 1;
      return mine(request.pick + next - 1);
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
  const { pid } = service.child;
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
  assert.deepEqual(
    service.log.filter(({ level }) => level === 'error' || level === 'fatal'),
    [],
  );
  assert.equal(service.stderr(), '');
  assert.deepEqual([service.child.pid, service.child.exitCode], [pid, null]);
  assert.equal((await service.get('/healthz')).status, 200);
  const stored = await database.sql`select uuid, row_to_json(t) as row from titanic t`;
  const found = new Map(stored.map(({ uuid, row }) => [uuid, row as Row]));
  for (const [uuid, row] of model) {
    assert.deepEqual(found.get(uuid), row, `FUZZ_SEED=${SEED}: ${uuid} is not as acknowledged`);
    found.delete(uuid);
  }
  t.diagnostic(`${model.size} rows as acknowledged, ${copied} of CSV`);
  assert.equal(found.size, copied, `FUZZ_SEED=${SEED}: rows that were never acknowledged`);
  assert.ok([...found.values()].every((row) => row[MARK] === ELSEWHERE));
});
