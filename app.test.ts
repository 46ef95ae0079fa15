/**
 * Every endpoint of app.ts once when it works and once when it is refused, over HTTP, and the start
 * of the process. test/contract.ts has what every table of every program does.
 *
 *     node --import tsx --test app.test.ts                    on an embedded PostgreSQL
 *     DATABASE_URL=postgres://… node --import tsx --test …    on that server, in a new database
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { Agent, request } from 'node:http';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { decodeJwt } from 'jose';
import { pino } from 'pino';
import { type Endpoints, endpoints as oldEndpoints, passengers } from './app.ts';
import { Problem } from './lib/problem.ts';
import {
  bearer,
  inherited,
  nodeArguments,
  openService,
  PASSENGER,
  type Reply,
  startDatabase,
  startReady,
} from './test/harness.ts';
import { serveHere } from './test/inprocess.ts';

const { database, service } = await openService();

const NOWHERE = '00000000-0000-7000-8000-000000000000';
const SECRET = 'a-secret-of-32-bytes-or-of-more-than-that';

async function create(): Promise<Reply['json']> {
  const reply = await service.request('POST', '/passengers', PASSENGER);
  assert.equal(reply.status, 201, reply.text);
  return reply.json;
}

function assertProblem(reply: Reply, status: number, code: string): void {
  assert.deepEqual([reply.status, reply.json?.code], [status, code], reply.text);
  assert.equal(reply.headers.get('content-type'), 'application/problem+json');
  assert.ok(reply.json.detail && reply.json.detail === reply.json.message);
}

/** The application in this process, on a port and with a log of its own. */
async function open(environment: Record<string, string>, endpoints: Endpoints = oldEndpoints) {
  const log: Record<string, unknown>[] = [];
  const logger = pino({}, { write: (line) => void log.push(JSON.parse(line)) });
  const program = { resources: [passengers], endpoints };
  const served = await serveHere(program, { DATABASE_URL: database.url, ...environment }, logger);
  return { ...served, log };
}

/** A process that ends by itself. */
const run = (environment: Record<string, string>, ...args: string[]) => {
  const app = fileURLToPath(new URL('app.ts', import.meta.url));
  const env = { ...inherited(), ...environment };
  return spawnSync(process.execPath, [...nodeArguments, app, ...args], { env, encoding: 'utf8' });
};

// --- Endpoints --------------------------------------------------------------------

describe('An endpoint that works', () => {
  const fixed: [path: string, answer: string | RegExp][] = [
    ['/', /"links":\{"docs":"\/docs"/],
    ['/healthz', '{"status":"alive"}'],
    ['/healthz/database', /^\{"status":"/],
    ['/readyz', '{"status":"ready"}'],
    ['/passengers/?limit=0', '[]'],
    ['/hello', '{"message":"ok"}'],
    ['/zero', '{"0":""}'],
    ['/metrics', /^build_info\{/m],
    ['/openapi.json', /^\{"openapi":"3\.1/],
    ['/docs', /<title>/],
    ['/docs/start.js', /swagger/i],
  ];
  for (const [path, answer] of fixed) {
    test(`GET ${path}`, async () => {
      const { status, text } = await service.get(path);
      assert.equal(status, 200, text);
      if (typeof answer === 'string') assert.equal(text, answer);
      else assert.match(text, answer);
    });
  }

  type Row = Record<string, unknown>;
  type Change = (row: Row) => unknown;
  const same: Change = (row) => row;
  const older: Change = (row) => ({ ...row, age: 23 });
  const gone: Change = () => null;
  const nothing: Change = () => undefined;
  const fresh = () => ({ uuid: randomUUID(), ...PASSENGER });
  const [one, two, three] = [fresh(), fresh(), fresh()];

  /** What is answered, and what the row of {key} is afterwards, from what it was before. */
  const cases: [request: string, status: number, body: unknown, answer: Change, then: Change][] = [
    ['GET /passengers?uuid=eq.{key}', 200, undefined, (row) => [row], same],
    ['POST /passengers', 201, one, () => one, same],
    ['PATCH /passengers?uuid=eq.{key}', 204, { age: 23 }, nothing, older],
    ['DELETE /passengers?uuid=eq.{key}', 204, undefined, nothing, gone],
    ['GET /passengers/{key}', 200, undefined, same, same],
    ['PUT /passengers/{key}', 200, { ...PASSENGER, age: 23 }, older, older],
    ['PATCH /passengers/{key}', 200, { age: 23 }, older, older],
    ['DELETE /passengers/{key}', 204, undefined, nothing, gone],
    ['GET /rest/v1/passengers?uuid=eq.{key}', 200, undefined, (row) => [row], same],
    ['POST /rest/v1/passengers', 201, two, nothing, same],
    ['PATCH /rest/v1/passengers?uuid=eq.{key}', 204, { age: 23 }, nothing, older],
    ['DELETE /rest/v1/passengers?uuid=eq.{key}', 204, undefined, nothing, gone],
    ['GET /rest/v1/passengers/{key}', 200, undefined, same, same],
    ['PUT /rest/v1/passengers/{key}', 204, { ...PASSENGER, age: 23 }, nothing, older],
    ['PATCH /rest/v1/passengers/{key}', 204, { age: 23 }, nothing, older],
    ['DELETE /rest/v1/passengers/{key}', 204, undefined, nothing, gone],
    ['GET /passengerlist?uuid=eq.{key}', 200, undefined, (row) => [row], same],
    ['POST /postpassenger', 201, three, () => three, same],
    ['GET /getpassenger/{key}', 200, undefined, same, same],
    ['PUT /putpassenger/{key}', 200, { ...PASSENGER, age: 23 }, older, older],
    ['DELETE /deletepassenger/{key}', 204, undefined, nothing, gone],
  ];
  for (const [line, status, body, answer, then] of cases) {
    test(line, async () => {
      const row = await create();
      const [method = '', path = ''] = line.replace('{key}', row.uuid).split(' ');
      const reply = await service.request(method, path, body);
      assert.equal(reply.status, status, reply.text);
      assert.deepEqual(reply.json, answer(row));
      const after = await service.get(`/passengers/${row.uuid}`);
      assert.deepEqual(after.status === 404 ? null : after.json, then(row));
    });
  }

  test('GET /passengerlist streams the whole table', async () => {
    await create();
    const [counted] = (await service.get('/passengers?select=n:count()')).json;
    const { headers, json } = await service.get('/passengerlist');
    assert.equal(headers.get('transfer-encoding'), 'chunked');
    assert.equal(json.length, counted.n);
  });
});

describe('An endpoint that refuses', () => {
  const refused: [request: string, status: number, code: string, body?: unknown][] = [
    ['GET /docs/nope', 404, 'PGRST125'],
    ['DELETE /hello', 405, 'PGRST117'],
    ['POST /zero', 405, 'PGRST117'],
    ['POST /metrics', 405, 'PGRST117'],
    ['PUT /passengers', 405, 'PGRST117'],
    ['POST /passengers/{key}', 405, 'PGRST117'],
    ['GET /passengers?age=22', 400, 'PGRST100'],
    ['GET /passengers?columns=age', 400, 'PGRST100'],
    ['GET /passengers?on_conflict=uuid', 400, 'PGRST100'],
    ['POST /passengers', 422, '22023', { ...PASSENGER, age: -1 }],
    ['POST /passengers', 422, 'PGRST204', { ...PASSENGER, extra: 1 }],
    ['POST /passengers?age=eq.1', 400, 'PGRST100', PASSENGER],
    ['POST /passengers?limit=1', 400, 'PGRST100', PASSENGER],
    ['POST /passengers?select=count()', 400, 'PGRST100', PASSENGER],
    ['PATCH /passengers', 400, '21000', { age: 1 }],
    ['PATCH /passengers?order=age', 400, 'PGRST100', { age: 1 }],
    ['PATCH /passengers?uuid=eq.{key}', 422, '22023', { uuid: NOWHERE }],
    ['PATCH /passengers', 422, '22023', [{ age: 1 }]],
    ['PATCH /passengers', 422, '22023', [{ uuid: NOWHERE }, { uuid: NOWHERE, age: -1 }]],
    ['DELETE /passengers', 400, '21000'],
    ['DELETE /passengers?columns=age', 400, 'PGRST100'],
    ['DELETE /passengers?uuid=eq.{key}&select=count()', 400, 'PGRST100'],
    ['GET /passengers/abc', 400, '22P02'],
    [`GET /passengers/${NOWHERE}`, 404, 'PGRST116'],
    ['GET /passengers/{key}?select=age', 400, 'PGRST100'],
    ['PUT /passengers/abc', 400, '22P02', PASSENGER],
    ['PUT /passengers/{key}', 422, '22023', { age: 1 }],
    ['PUT /passengers/{key}', 422, '22023', [PASSENGER]],
    ['PUT /passengers/{key}?age=eq.1', 400, 'PGRST100', PASSENGER],
    [`PATCH /passengers/${NOWHERE}`, 404, 'PGRST116', { age: 1 }],
    ['PATCH /passengers/{key}', 422, '22023', { uuid: NOWHERE }],
    ['PATCH /passengers/{key}?x=1', 400, '42703', { age: 1 }],
    [`DELETE /passengers/${NOWHERE}`, 404, 'PGRST116'],
    ['DELETE /passengers/{key}?limit=1', 400, 'PGRST100'],
    ['GET /passengerlist?age=22', 400, 'PGRST100'],
    ['GET /postpassenger', 405, 'PGRST117'],
    ['POST /postpassenger', 422, '22023', {}],
    [`GET /getpassenger/${NOWHERE}`, 404, 'PGRST116'],
    ['PUT /putpassenger/{key}', 422, '22023', {}],
    ['GET /deletepassenger/{key}', 405, 'PGRST117'],
    [`DELETE /deletepassenger/${NOWHERE}`, 404, 'PGRST116'],
  ];
  for (const [line, status, code, body] of refused) {
    const sent = body === undefined ? '' : ` ${JSON.stringify(body).slice(0, 40)}`;
    test(`${line}${sent} is ${status} ${code} and changes nothing`, async () => {
      const row = await create();
      const [method = '', path = ''] = line.replace('{key}', row.uuid).split(' ');
      const reply = await service.request(method, path, body);
      assertProblem(reply, status, code);
      if (status === 405) assert.match(reply.headers.get('allow') ?? '', /OPTIONS$/);
      assert.deepEqual((await service.get(`/passengers/${row.uuid}`)).json, row);
    });
  }

  const html = { prefer: 'return=representation', accept: 'text/html' };
  for (const [name, headers, status, code] of [
    ['a media type that is not answered', html, 406, 'PGRST107'],
    ['an unknown preference, strictly', { prefer: 'handling=strict, x=y' }, 400, 'PGRST122'],
    ['another schema', { 'content-profile': 'private' }, 406, 'PGRST106'],
  ] as const) {
    test(`a write with ${name} is ${status} and changes nothing`, async () => {
      const row = await create();
      const path = `/passengers/${row.uuid}`;
      const changed = { ...PASSENGER, age: 99 };
      assertProblem(await service.request('PUT', path, changed, headers), status, code);
      assertProblem(await service.request('PATCH', path, { age: 99 }, headers), status, code);
      assertProblem(await service.request('DELETE', path, undefined, headers), status, code);
      assertProblem(await service.request('POST', '/passengers', changed, headers), status, code);
      assert.deepEqual((await service.get(path)).json, row);
    });
  }

  for (const [name, key] of [
    ['no character', ''],
    ['256 characters', 'x'.repeat(256)],
  ] as const) {
    test(`an Idempotency-Key of ${name} is 400`, async () => {
      const headers = { 'idempotency-key': key };
      const reply = await service.request('POST', '/passengers', PASSENGER, headers);
      assertProblem(reply, 400, 'PGRST100');
    });
  }

  for (const method of ['PUT', 'PATCH', 'DELETE']) {
    test(`${method} with If-Match changes a row of that version alone`, async () => {
      const row = await create();
      const path = `/passengers/${row.uuid}`;
      const etag = (await service.get(path)).headers.get('etag') ?? '';
      const body = method === 'DELETE' ? undefined : { ...PASSENGER, age: 23 };
      const write = (tags: string, to = path) =>
        service.request(method, to, body, { 'if-match': tags });
      for (const tags of ['"1"', '"x"', '']) assertProblem(await write(tags), 412, 'PGRST100');
      assert.deepEqual((await service.get(path)).json, row);
      const missing = method === 'PUT' ? 412 : 404;
      assert.equal((await write('*', `/passengers/${NOWHERE}`)).status, missing);
      assert.ok((await write(`"1", W/${etag}`)).status < 300);
    });
  }

  test('CSV that is refused before its end does not cost the connection', async (t) => {
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    t.after(() => agent.destroy());
    const headers = { 'content-type': 'text/csv' };
    const sent = request(`${service.url}/passengers`, { method: 'POST', headers, agent });
    sent.end(`nobody\n${'x\n'.repeat(100_000)}`); // more than is read at once
    const [response] = await once(sent, 'response');
    assert.equal(response.statusCode, 400);
    response.resume();
    await once(response, 'end');
    const next = request(`${service.url}/hello`, { agent }).end();
    const [{ statusCode }] = await once(next, 'response');
    assert.deepEqual([statusCode, next.reusedSocket], [200, true]);
  });
});

describe('The passengers', () => {
  test('are served from the database of python-crud-api as it is, without DDL', async (t) => {
    const old = await startDatabase();
    t.after(old.stop);
    await old.sql.unsafe(`create table titanic(
      uuid uuid default gen_random_uuid() primary key, survived bool,
      "passengerClass" int, Name varchar(150), sex varchar(6), age float,
      "siblingsOrSpousesAboard" int, "parentsOrChildrenAboard" int, fare float);
      insert into titanic (name) values ('half known');
      create role crud login password 'crud';
      grant select, insert, update, delete on titanic to crud`);
    const url = new URL(old.url);
    [url.username, url.password] = ['crud', 'crud'];
    const own = await open({ DATABASE_URL: url.href });
    const [half] = (await own.get('/passengerlist')).json;
    assert.deepEqual([half.name, half.age], ['half known', null]);
    assert.deepEqual(Object.keys(half), passengers.names);
    const { json } = await own.send('POST', '/postpassenger', PASSENGER);
    assert.equal((await own.send('PUT', `/putpassenger/${json.uuid}`, PASSENGER)).status, 200);
    assert.equal((await own.send('DELETE', `/deletepassenger/${json.uuid}`)).status, 204);
    await own.stop();
    await old.sql.unsafe('drop owned by crud; drop role crud');
  });

  test('of the sample are stored by CSV and answered by both lists', async (t) => {
    const own = await startDatabase();
    t.after(own.stop);
    const server = await open({ DATABASE_URL: own.url, MAX_ROWS: '30' });
    const csv = readFileSync(new URL('examples/passengers.csv', import.meta.url), 'utf8');
    const headers = { 'content-type': 'text/csv' };
    const made = await server.send('POST', '/passengers', csv, headers);
    assert.deepEqual([made.status, made.headers.get('content-range')], [201, '*/40']);
    const all = (await server.get('/passengerlist')).json;
    const [, ...lines] = csv.trim().split('\n');
    const names = all.map(({ name }: { name: string }) => name);
    assert.deepEqual(
      names,
      lines.map((line) => line.split(',')[2]),
    );
    const page = await server.get('/passengers?limit=100');
    assert.deepEqual(page.json, all.slice(0, 30), 'MAX_ROWS rows');
    const next = /^<(.*)>; rel="next"$/.exec(page.headers.get('link') ?? '')?.[1] ?? '';
    assert.deepEqual((await server.get(next)).json, all.slice(30));
    await server.stop();
  });
});

// --- Your own endpoints -----------------------------------------------------------

describe('Endpoints of a program', () => {
  const endpoints: Endpoints = (app, { secured }) => {
    app.get('/passengers/fault', secured, () => {
      throw new Problem(409, 'PGRST100', 'no stats today');
    });
    app.get('/passengers/bug', secured, () => {
      throw new TypeError('secret is not a function');
    });
  };
  let own: Awaited<ReturnType<typeof open>>;
  let headers: object;
  before(async () => {
    own = await open({ JWT_SECRET: SECRET }, endpoints);
    headers = await bearer(SECRET, 'me');
  });
  after(() => own?.stop());

  test('answer what they throw as a problem, and are counted', async () => {
    assertProblem(await own.get('/passengers/fault', headers), 409, 'PGRST100');
    const { text } = await own.get('/metrics', headers);
    assert.match(text, /route="\/passengers\/fault",status="409"\} 1/);
  });

  test('answer an error of their own as 500; the log has it under its X-Request-Id', async () => {
    const reply = await own.get('/passengers/bug', headers);
    assertProblem(reply, 500, 'XX000');
    assert.doesNotMatch(reply.text, /secret|function/);
    const line = own.log.find(({ id }) => id === reply.headers.get('x-request-id'));
    assert.match(String(line?.stack), /app\.test\.ts/);
  });
});

// --- Auth -------------------------------------------------------------------------

describe('A key', () => {
  const OPEN = [
    ...['/', '/hello', '/zero', '/healthz', '/healthz/database', '/readyz', '/openapi.json'],
    ...['/docs', '/docs/{file}'],
  ];
  const start = (AUTH: string) => open({ JWT_SECRET: SECRET, JWT_WRITE_SCOPE: 'write', AUTH });

  for (const auth of ['all', 'write']) {
    test(`with AUTH=${auth} closes every endpoint that it should`, async () => {
      const own = await start(auth);
      const { paths } = (await own.get('/openapi.json')).json as { paths: Record<string, object> };
      const reader = await bearer(SECRET, 'me');
      for (const [path, methods] of Object.entries(paths)) {
        const target = path.replace('{key}', NOWHERE).replace('{file}', 'start.js');
        for (const method of Object.keys(methods).map((name) => name.toUpperCase())) {
          const reply = await own.send(method, target);
          const isOpen = OPEN.includes(path) || (auth === 'write' && method === 'GET');
          if (isOpen) assert.notEqual(reply.status, 401, `${method} ${path}`);
          else assertProblem(reply, 401, 'PGRST302');
          if (method === 'GET') continue;
          assertProblem(await own.send(method, target, undefined, reader), 403, '42501');
        }
      }
      await own.stop();
    });
  }

  test('signs the token that `token` prints, which is let in', async () => {
    const args = ['token', '--sub', 'me', '--scope', 'write', '--expires', '5m'];
    const { stdout, status } = run({ JWT_SECRET: SECRET }, ...args);
    assert.equal(status, 0);
    const { sub, scope, exp = 0, iat = 0 } = decodeJwt(stdout.trim());
    assert.deepEqual([sub, scope, exp - iat], ['me', 'write', 300]);
    const own = await start('all');
    const headers = { authorization: `bearer ${stdout.trim()}` };
    assert.equal((await own.send('POST', '/passengers', PASSENGER, headers)).status, 201);
    await own.stop();
  });

  test('is needed by `token`, which ends with 2', () => {
    const { status, stdout } = run({}, 'token', '--sub', 'me');
    assert.equal(status, 2);
    assert.match(JSON.parse(stdout).msg, /JWT_SECRET is needed/);
  });
});

// --- Start ------------------------------------------------------------------------

describe('The process', () => {
  test('ends with 2 and one line of log that names an invalid variable', () => {
    const { status, stdout } = run({ PORT: 'abc' });
    assert.equal(status, 2);
    assert.equal(JSON.parse(stdout).msg, 'PORT expected a whole number from 0 to 65535'); // one line
  });

  test("takes libpq's variables for a DATABASE_URL, listens on IPv6, greets, ends with 0", async () => {
    const { hostname, port, username, password, pathname } = new URL(database.url);
    const own = await startReady({
      ...{ PGHOST: hostname, PGPORT: port, PGUSER: username, HOST: '::1' },
      ...{ PGPASSWORD: decodeURIComponent(password), PGDATABASE: pathname.slice(1) },
    });
    assert.match(own.url, /^http:\/\/\[::1\]:\d+$/);
    assert.equal((await own.get('/passengers?limit=1')).status, 200);
    assert.equal(await own.stop(), 0);
    assert.ok(own.log.every(({ level, msg }) => level && msg));
    assert.ok(own.stderr().includes(`\n  ${own.url}/docs lists everything`));
    for (const command of [`curl '${own.url}/passengers?limit=2'`, `curl ${own.url}/passengers -H`])
      assert.ok(own.stderr().includes(command), own.stderr());
    assert.doesNotMatch(own.stderr(), /embedded/);
  });
});
