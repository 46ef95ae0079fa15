/**
 * The tests of app.ts, in its order: the real process against a real PostgreSQL, by HTTP.
 *
 *     npm test                                 on an embedded PostgreSQL of their own
 *     DATABASE_URL=postgres://… npm test       on yours, in databases that are dropped again
 */
import assert from 'node:assert/strict';
import { type SpawnSyncReturns, spawnSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { Agent, request as httpRequest } from 'node:http';
import { connect } from 'node:net';
import { Readable } from 'node:stream';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { decodeJwt, SignJWT } from 'jose';
import { pino } from 'pino';
import { passengers } from './app.ts';
import { toUuid } from './lib/columns.ts';
import { Config, readConfig } from './lib/config.ts';
import { parseQuery } from './lib/dialect.ts';
import { group, share } from './lib/group.ts';
import { Pool as Database } from './lib/pool.ts';
import { sql } from './lib/sql.ts';
import { Store } from './lib/store.ts';
import { ensureTable } from './lib/table.ts';
import {
  fill,
  inherited,
  memoryOf,
  nodeArguments,
  type Reply,
  startDatabase,
  startReady,
  type TestDatabase,
  type TestService,
  until,
} from './test/harness.ts';

let database: TestDatabase;
let service: TestService;

before(async () => {
  database = await startDatabase();
  service = await startReady({ DATABASE_URL: database.url, CORS_ORIGIN: 'https://shop.example' });
});

after(async () => {
  await service?.stop();
  await database?.stop();
});

const BRAUND = {
  survived: false,
  passengerClass: 3,
  name: 'Mr. Owen Harris Braund',
  sex: 'male',
  age: 22,
  siblingsOrSpousesAboard: 1,
  parentsOrChildrenAboard: 0,
  fare: 7.25,
};
const COLUMNS = ['uuid', ...Object.keys(BRAUND)];
const TITANIC = new URL('../shared/data/titanic.csv', import.meta.url);
/** The real passengers where they are at hand, else the sample. */
const CSV = existsSync(TITANIC) ? TITANIC : new URL('examples/passengers.csv', import.meta.url);
const NOWHERE = '00000000-0000-7000-8000-000000000000';

/** A row of its own for a test; its name tells it from all others. */
async function create(values: object = {}): Promise<Reply['json']> {
  const reply = await service.request('POST', '/passengers', { ...BRAUND, ...values });
  assert.equal(reply.status, 201, reply.text);
  return reply.json;
}

let counter = 0;
function unique(): string {
  counter += 1;
  return `Miss. Test ${process.pid} ${counter}`;
}

async function count(): Promise<number> {
  const [row] = await database.sql`select count(*)::int as count from titanic`;
  return row?.count;
}

/** The whole promise of an error: both worlds in one body, and headers that every answer carries. */
function assertProblem(reply: Reply, status: number, code?: string): void {
  assert.equal(reply.status, status, reply.text);
  assert.equal(reply.headers.get('content-type'), 'application/problem+json');
  const { type, title, detail, message, details, hint } = reply.json;
  assert.deepEqual([type, reply.json.status], ['about:blank', status]);
  assert.ok(title && detail && detail === message);
  assert.ok(details !== undefined && hint !== undefined && reply.json.code);
  if (code) assert.equal(reply.json.code, code, reply.text);
  assert.match(reply.headers.get('x-request-id') ?? '', /./);
}

/** Bytes on a socket and what comes back until it is closed, for what fetch() would not send. */
function send(bytes: string | Buffer): Promise<string> {
  const { hostname, port } = new URL(service.url);
  return new Promise((resolve, reject) => {
    let answer = '';
    const socket = connect(Number(port), hostname, () => socket.write(bytes));
    socket.on('data', (data) => {
      answer += data;
    });
    socket.on('close', () => resolve(answer)).on('error', reject);
  });
}

// --- Config ---------------------------------------------------------------------

describe('Config', () => {
  const SECRET = 'x'.repeat(32);
  const refused: [string, Record<string, string>, RegExp][] = [
    ['PORT that is no number', { PORT: 'abc' }, /^PORT expected a whole number/],
    ['PORT past 65535', { PORT: '65536' }, /^PORT/],
    ['BASE_PATH with a slash at the end', { BASE_PATH: '/a/' }, /^BASE_PATH/],
    ['PORT with a blank', { PORT: ' 80' }, /^PORT/],
    ['POOL_SIZE of 0', { POOL_SIZE: '0' }, /^POOL_SIZE/],
    ['MAX_ROWS in hexadecimal', { MAX_ROWS: '0x10' }, /^MAX_ROWS/],
    ['DB_PREPARE that is neither', { DB_PREPARE: 'yes' }, /^DB_PREPARE/],
    ['LOG_LEVEL that pino lacks', { LOG_LEVEL: 'loud' }, /^LOG_LEVEL/],
    ['DATABASE_URL of another scheme', { DATABASE_URL: 'mysql://x/y' }, /^DATABASE_URL/],
    ['AUTH that is none of the three', { AUTH: 'some' }, /^AUTH/],
    ['AUTH=all without a key', { AUTH: 'all' }, /^AUTH=all needs JWT_SECRET or JWKS_URL/],
    ['a secret of 31 bytes', { JWT_SECRET: 'x'.repeat(31) }, /^JWT_SECRET/],
    ['a second secret too short', { JWT_SECRET: `${SECRET},short` }, /^JWT_SECRET/],
    ['an empty secret', { JWT_SECRET: '' }, /^JWT_SECRET is empty or has less/],
    ['both kinds of key', { JWT_SECRET: SECRET, JWKS_URL: 'https://x.example' }, /exclude/],
    [
      'production without a key',
      { NODE_ENV: 'production', DATABASE_URL: 'postgres://h/d' },
      /AUTH=none/,
    ],
    ['production without a database', { NODE_ENV: 'production', AUTH: 'none' }, /^DATABASE_URL/],
  ];
  for (const [name, environment, message] of refused) {
    test(`refuses ${name}`, () => assert.throws(() => readConfig(environment), { message }));
  }

  test('names every fault at once', () => {
    assert.throws(() => readConfig({ PORT: 'a', POOL_SIZE: 'b' }), { message: /PORT.*POOL_SIZE/ });
  });

  test('takes an empty variable for unset', () => {
    assert.equal(readConfig({ PORT: '', APP_BRANCH: '' }).PORT, 8000);
  });

  const accepted: [string, Record<string, string>, Partial<Config>][] = [
    ['nothing at all', {}, { PORT: 8000, HOST: '127.0.0.1', POOL_SIZE: 8, MAX_ROWS: 1000 }],
    ['two secrets', { JWT_SECRET: `${SECRET}, ${SECRET}` }, { JWT_SECRET: [SECRET, SECRET] }],
    [
      'origins',
      { CORS_ORIGIN: 'https://a.example,*' },
      { CORS_ORIGIN: ['https://a.example', '*'] },
    ],
    ['unknown variables', { PATH: '/bin' }, { PORT: 8000 }],
  ];
  for (const [name, environment, expected] of accepted) {
    test(`accepts ${name}`, () => {
      const config = readConfig(environment);
      for (const [key, value] of Object.entries(expected)) {
        assert.deepEqual(config[key as keyof Config], value);
      }
    });
  }

  const start = (environment: Record<string, string>): SpawnSyncReturns<string> => {
    const env = { ...inherited(), ...environment };
    const app = fileURLToPath(new URL('app.ts', import.meta.url));
    return spawnSync(process.execPath, [...nodeArguments, app], { env, encoding: 'utf8' });
  };

  test('a bad value ends the process with 2 and one line that names the variable', () => {
    const { status, stdout } = start({ PORT: 'abc' });
    assert.equal(status, 2);
    assert.equal(stdout.trim().split('\n').length, 1);
    assert.match(JSON.parse(stdout).msg, /^PORT expected a whole number from 0 to 65535/);
  });

  test('a port in use ends the process with 2 and says so', () => {
    const { status, stdout } = start({
      PORT: new URL(service.url).port,
      DATABASE_URL: database.url,
    });
    assert.equal(status, 2);
    assert.match(stdout, /PORT \d+ .*EADDRINUSE/);
  });
});

// --- Resource -------------------------------------------------------------------

describe('Resource', () => {
  const uuids: [string, string | undefined][] = [
    ['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'],
    ['A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'],
    ['{a0eebc99-9c0b4ef8-bb6d6bb9-bd380a11}', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'],
    ['a0eebc999c0b4ef8bb6d6bb9bd380a11', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'],
    ['a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'],
    ['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1', undefined],
    ['{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', undefined],
    ['a0e-ebc99-9c0b-4ef8-bb6d-6bb9bd380a11', undefined],
    ['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11-', undefined],
    ['g0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', undefined],
    ['', undefined],
  ];
  for (const [given, expected] of uuids) {
    test(`toUuid(${JSON.stringify(given)}) says what PostgreSQL says`, async () => {
      assert.equal(toUuid(given), expected);
      const cast = database.sql`select ${given}::text::uuid::text as uuid`;
      assert.equal(
        await cast.then(
          ([row]) => row?.uuid,
          () => undefined,
        ),
        expected,
      );
    });
  }

  test('makes the table that it declares, with NOT NULL and CHECK', async () => {
    const columns = await database.sql`
      select column_name as name, data_type as type, character_maximum_length as most, is_nullable as nullable
      from information_schema.columns where table_name = 'titanic' order by ordinal_position`;
    assert.deepEqual(
      columns.map(({ name, type, most, nullable }) => [name, type, most, nullable]),
      [
        ['uuid', 'uuid', null, 'NO'],
        ['survived', 'boolean', null, 'NO'],
        ['passengerClass', 'integer', null, 'NO'],
        ['name', 'character varying', 150, 'NO'],
        ['sex', 'character varying', 6, 'NO'],
        ['age', 'double precision', null, 'NO'],
        ['siblingsOrSpousesAboard', 'integer', null, 'NO'],
        ['parentsOrChildrenAboard', 'integer', null, 'NO'],
        ['fare', 'double precision', null, 'NO'],
      ],
    );
  });

  const edges: [string, unknown, boolean][] = [
    ['passengerClass', 1, true],
    ['passengerClass', 0, false],
    ['passengerClass', 3, true],
    ['passengerClass', 4, false],
    ['name', 'x', true],
    ['name', '', false],
    ['name', ' ', false],
    ['name', '\u00a0\u3000', false],
    ['name', '\ufeff', false],
    ['name', '\u000b', false],
    ['name', '🚢'.repeat(150), true],
    ['name', '🚢'.repeat(151), false],
    ['name', 'O\'Brien "%_\\', true],
    ['sex', 'female', true],
    ['sex', 'Female', false],
    ['sex', '', false],
    ['age', 0, true],
    ['age', -0.5, false],
    ['age', 150, true],
    ['age', 150.5, false],
    ['siblingsOrSpousesAboard', 20, true],
    ['siblingsOrSpousesAboard', 21, false],
    ['parentsOrChildrenAboard', -1, false],
    ['fare', 0, true],
    ['fare', -0.01, false],
    ['fare', 512.3292, true],
    ['fare', 1e308, true],
  ];
  for (const [column, value, fits] of edges) {
    test(`${column} ${JSON.stringify(value).slice(0, 40)} is ${fits ? '' : 'not '}for the validator and the CHECK alike`, async () => {
      const row = { uuid: randomUUID(), ...BRAUND, [column]: value };
      assert.equal(passengers.row.safeParse(row).success, fits);
      const insert = database.sql`insert into titanic select * from json_populate_record(null::titanic, ${JSON.stringify(row)}::text::json)`;
      assert.equal(
        await insert.then(
          () => true,
          () => false,
        ),
        fits,
      );
    });
  }

  const faulty: [string, string, RegExp][] = [
    ['alter table titanic rename fare to price', 'renamed column', /fare is missing/],
    [
      'alter table titanic alter age type int',
      'other type',
      /age is integer, declared double precision/,
    ],
    [
      'alter table titanic drop constraint titanic_pkey',
      'key without index',
      /uuid has no unique index/,
    ],
    [
      'alter table titanic add extra int not null',
      'more to fill',
      /extra must be filled and is not declared/,
    ],
  ];
  for (const [ddl, name, message] of faulty) {
    test(`a table with a ${name} ends the process with 2 and is named`, async () => {
      const other = await startDatabase();
      const first = await startReady({ DATABASE_URL: other.url });
      await first.stop();
      await other.sql.unsafe(ddl);
      const second = startReady({ DATABASE_URL: other.url }).finally(other.stop);
      await assert.rejects(second, (error: Error) => {
        assert.match(error.message, /^ended with 2: /);
        assert.match(error.message, message);
        return true;
      });
    });
  }
});

// --- Errors ---------------------------------------------------------------------

describe('Errors', () => {
  const paths: [string, string, number, string][] = [
    ['GET', '/nope', 404, 'PGRST125'],
    ['GET', '/', 404, 'PGRST125'],
    ['GET', '/passengers/', 404, 'PGRST125'],
    ['GET', '/rest/v1/nope', 404, 'PGRST205'],
    ['POST', '/rest/v1/rpc/nope', 404, 'PGRST202'],
    ['GET', `/passengers/${NOWHERE}`, 404, 'PGRST116'],
    ['DELETE', `/passengers/${NOWHERE}`, 404, 'PGRST116'],
    ['GET', '/passengers/abc', 400, '22P02'],
    ['PUT', '/passengers/abc', 400, '22P02'],
    ['PATCH', '/putpassenger/abc', 405, 'PGRST117'],
    ['GET', '/passengers/%00', 400, '22P02'],
    ['GET', '/passengers/%zz', 400, '22P02'],
    ['GET', '/passengers%zz', 400, 'PGRST100'],
    ['GET', '/passengers%00', 400, 'PGRST100'],
    ['PUT', '/passengers', 405, 'PGRST117'],
    ['DELETE', '/hello', 405, 'PGRST117'],
    ['GET', '/postpassenger', 405, 'PGRST117'],
    ['GET', `/deletepassenger/${NOWHERE}`, 405, 'PGRST117'],
  ];
  for (const [method, path, status, code] of paths) {
    test(`${method} ${path} is ${status} ${code}`, async () => {
      assertProblem(await service.request(method, path), status, code);
    });
  }

  test('405 names in Allow what is possible', async () => {
    const { headers } = await service.request('DELETE', '/hello');
    assert.equal(headers.get('allow'), 'GET, HEAD, OPTIONS');
    const key = await service.request('POST', `/passengers/${NOWHERE}`);
    assert.equal(key.headers.get('allow'), 'GET, HEAD, PUT, PATCH, DELETE, OPTIONS');
  });

  const raw: [string, string, number][] = [
    ['an unknown method', 'FOO /passengers HTTP/1.1\r\nHost: x\r\n\r\n', 405],
    ['CONNECT', 'CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n', 405],
    ['TRACE', 'TRACE /passengers HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n', 405],
    ['no HTTP at all', 'GET hello\r\n\r\n', 400],
    ['a Host that is none', 'GET /hello HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n', 400],
    ['no Host', 'GET /hello HTTP/1.1\r\nConnection: close\r\n\r\n', 400],
    [
      'Content-Length beside Transfer-Encoding',
      'POST /passengers HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
      400,
    ],
    [
      'two lengths',
      'POST /passengers HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc',
      400,
    ],
    [
      'a bad chunk',
      'POST /hello HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n',
      400,
    ],
    ['an expectation', 'POST /passengers HTTP/1.1\r\nHost: x\r\nExpect: magic\r\n\r\n', 417],
    [
      'a URI of 160 kB',
      `GET /hello?${'x'.repeat(160_000)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`,
      414,
    ],
    [
      'a header of 140 kB',
      `GET /hello HTTP/1.1\r\nHost: x\r\nX: ${'x'.repeat(140_000)}\r\nConnection: close\r\n\r\n`,
      431,
    ],
    [
      'a header of 400 kB',
      `GET /hello HTTP/1.1\r\nHost: x\r\nX: ${'x'.repeat(400_000)}\r\n\r\n`,
      431,
    ],
  ];
  for (const [name, bytes, status] of raw) {
    test(`${name} is ${status} with a problem`, async () => {
      const answer = await send(bytes);
      assert.match(answer, new RegExp(`^HTTP/1.1 ${status} `));
      assert.match(answer, /\r\ncontent-type: application\/problem\+json\r\n/i);
      assert.match(answer, /\r\nx-request-id: [\w-]+\r\n/i);
      assert.match(answer, /"status":\d+,"detail":"[^"]+"/);
    });
  }

  test('800 UUIDs in one filter fit', async () => {
    const url = `/passengers?uuid=in.(${Array(800).fill(NOWHERE)})`;
    assert.equal((await service.get(url)).status, 200);
  });

  test('Host never comes back', async () => {
    const answer = await send(
      'GET /passengers HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n',
    );
    assert.match(answer, /^HTTP\/1.1 200/);
    assert.doesNotMatch(answer, /evil/);
  });

  test('X-Request-Id is kept when it is sane', async () => {
    const { headers } = await service.get('/hello', { 'x-request-id': 'a-b_c:1' });
    assert.equal(headers.get('x-request-id'), 'a-b_c:1');
  });

  for (const id of ['<script>', 'a b', 'x'.repeat(129)]) {
    test(`X-Request-Id ${id.slice(0, 10)} is replaced`, async () => {
      const { headers } = await service.get('/hello', { 'x-request-id': id });
      assert.match(headers.get('x-request-id') ?? '', /^[0-9a-f-]{36}$/);
    });
  }

  test('Server-Timing tells the time in the database', async () => {
    const { headers } = await service.get('/passengers?limit=1');
    assert.match(headers.get('server-timing') ?? '', /^db;dur=\d+\.\d, total;dur=\d+\.\d$/);
  });
});

// --- Query ----------------------------------------------------------------------

describe('Query', () => {
  test('a list is ordered by key, its rows have the columns in declared order', async () => {
    await create();
    const { json, headers } = await service.get('/passengers?limit=5');
    const keys = json.map(({ uuid }: { uuid: string }) => uuid);
    assert.deepEqual(keys, [...keys].sort());
    assert.deepEqual(Object.keys(json[0]), COLUMNS);
    assert.equal(headers.get('content-range'), `0-${json.length - 1}/*`);
  });

  test('a filter of a boolean is a filter of a boolean', async () => {
    const name = unique();
    await create({ name, survived: true });
    await create({ name, survived: false });
    const { json } = await service.get(`/passengers?name=eq.${name}&survived=eq.true`);
    assert.deepEqual(
      json.map(({ survived }: { survived: boolean }) => survived),
      [true],
    );
  });

  const literals = [
    "' or 1=1 --",
    '%',
    '_',
    'a.b,c:(d)"e\\f+g',
    '$1',
    '{a}',
    'null',
    '\u{1f6a2}',
    'toString',
  ];
  for (const value of literals) {
    test(`the filter value ${JSON.stringify(value)} is a literal`, async () => {
      const name = `${unique()} ${value}`;
      const row = await create({ name });
      const { json } = await service.get(`/passengers?name=eq.${encodeURIComponent(name)}`);
      assert.deepEqual(json, [row]);
    });
  }

  const refused: [string, string, RegExp][] = [
    ['limit=-1', 'PGRST100', /whole number/],
    ['limit=1e3', 'PGRST100', /nothing more/],
    ['limit=abc', 'PGRST100', /whole number/],
    ['limit=', 'PGRST100', /whole number/],
    ['limit=1&limit=2', 'PGRST100', /once/],
    ['offset=1.5', 'PGRST100', /nothing more/],
    ['offset=9999999999', 'PGRST100', /9 digits/],
    ['after=abc', 'PGRST100', /rel="next"/],
    ['after=WyJhIl0', 'PGRST100', /rel="next"/],
    ['after=!!', 'PGRST100', /cursor/],
    ['order=1;drop table titanic', '42703', /columns are/],
    ['order=age.down', 'PGRST100', /\.asc or \.desc/],
    ['order=', 'PGRST100', /column/],
    ['order=toString', '42703', /columns are/],
    ['constructor=eq.1', '42703', /columns are uuid, survived/],
    ['__proto__=eq.1', '42703', /columns are/],
    ['nope=eq.1', '42703', /columns are/],
    ['age=22', 'PGRST100', /operator/],
    ['age=', 'PGRST100', /operator/],
    ['age=eq', 'PGRST100', /operator/],
    ['age=foo.1', 'PGRST100', /eq, neq/],
    ['age=toString.1', 'PGRST100', /operator/],
    ['name=eq.%00', 'PGRST100', /no NUL/],
  ];
  for (const [query, code, hint] of refused) {
    test(`?${query} is refused with ${code} and a hint, without the database`, async () => {
      const reply = await service.get(`/passengers?${query}`);
      assertProblem(reply, 400, code);
      assert.match(reply.json.hint, hint);
      assert.match(reply.headers.get('server-timing') ?? '', /^db;dur=0\.0/);
    });
  }

  for (const query of [
    'age=eq.abc',
    'survived=eq.maybe',
    'passengerClass=eq.1.5',
    'uuid=eq.x',
    'age=gt.',
  ]) {
    test(`?${query} is refused by the type`, async () => {
      assertProblem(await service.get(`/passengers?${query}`), 400, '22P02');
    });
  }

  describe('paging', () => {
    const name = unique();
    const ages = [3, 1, 2, 2, 5, 4, 2];
    before(async () => {
      for (const age of ages) await create({ name, age });
    });

    const pages: [string, number, string, number[] | undefined][] = [
      ['limit=2', 200, '0-1/*', undefined],
      ['limit=2&offset=6', 200, '6-6/*', undefined],
      ['limit=0', 200, '*/*', []],
      ['offset=7', 200, '*/*', []],
      ['order=age&limit=3', 200, '0-2/*', [1, 2, 2]],
      ['order=age.desc&limit=3', 200, '0-2/*', [5, 4, 3]],
      ['order=age.desc&limit=3&offset=5', 200, '5-6/*', [2, 1]],
      ['order=age.asc,uuid.desc&limit=1', 200, '0-0/*', [1]],
    ];
    for (const [query, status, range, expected] of pages) {
      test(`?${query} is ${range}`, async () => {
        const { json, headers, ...reply } = await service.get(
          `/passengers?name=eq.${name}&${query}`,
        );
        assert.equal(reply.status, status);
        assert.equal(headers.get('content-range'), range);
        if (expected)
          assert.deepEqual(
            json.map(({ age }: { age: number }) => age),
            expected,
          );
      });
    }

    const counted: [string, number, string][] = [
      ['limit=2', 206, '0-1/7'],
      ['', 200, '0-6/7'],
      ['limit=7', 200, '0-6/7'],
      ['offset=5', 206, '5-6/7'],
      ['offset=7', 206, '*/7'],
      ['age=eq.99', 200, '*/0'],
      ['limit=0', 206, '*/7'],
    ];
    for (const [query, status, range] of counted) {
      test(`?${query} with count=exact is ${status} ${range}`, async () => {
        const reply = await service.get(`/passengers?name=eq.${name}&${query}`, {
          prefer: 'count=exact',
        });
        assert.deepEqual([reply.status, reply.headers.get('content-range')], [status, range]);
      });
    }

    test('an offset past the counted total is 416', async () => {
      const reply = await service.get(`/passengers?name=eq.${name}&offset=8`, {
        prefer: 'count=exact',
      });
      assertProblem(reply, 416, 'PGRST103');
      assert.equal(reply.headers.get('content-range'), '*/7');
    });

    for (const order of ['', '&order=age', '&order=age.desc', '&order=age.desc.nullslast,name']) {
      test(`following Link with "${order}" sees every row once, in order, whatever is put before it`, async () => {
        const whole = await service.get(`/passengers?name=eq.${name}${order}`);
        const seen = [];
        let path: string | undefined = `/passengers?name=eq.${name}${order}&limit=2`;
        while (path) {
          const { json, headers } = await service.get(path);
          seen.push(...json);
          path = /^<([^>]+)>; rel="next"$/.exec(headers.get('link') ?? '')?.[1];
          assert.ok(!path || path.startsWith('/passengers?'), 'a relative reference');
        }
        assert.deepEqual(seen, whole.json);
      });
    }

    test('after goes on behind a row that was deleted meanwhile', async () => {
      const own = unique();
      const rows = [];
      for (const age of [1, 2, 3]) rows.push(await create({ name: own, age }));
      const { headers } = await service.get(`/passengers?name=eq.${own}&order=age&limit=2`);
      await service.request('DELETE', `/passengers/${rows[1].uuid}`);
      const next = /<([^>]+)>/.exec(headers.get('link') ?? '')?.[1] ?? '';
      assert.deepEqual((await service.get(next)).json, [rows[2]]);
    });
  });

  test('HEAD is GET without its body', async () => {
    const row = await create();
    for (const path of [`/passengers/${row.uuid}`, '/passengers?limit=1', '/hello']) {
      const [get, head] = [await service.get(path), await service.request('HEAD', path)];
      assert.deepEqual([head.status, head.text], [get.status, '']);
      for (const name of ['content-type', 'content-range', 'etag', 'link']) {
        assert.equal(head.headers.get(name), get.headers.get(name), name);
      }
    }
  });

  const accepts: [string, number][] = [
    ['application/json', 200],
    ['*/*', 200],
    ['application/*', 200],
    ['text/html, application/json;q=0.5', 200],
    ['text/html,application/xhtml+xml,*/*;q=0.8', 200],
    ['text/html', 406],
    ['application/json;q=0', 406],
    ['image/*', 406],
  ];
  for (const [accept, status] of accepts) {
    test(`Accept: ${accept} is ${status}`, async () => {
      const reply = await service.get('/passengers?limit=1', { accept });
      if (status === 406) assertProblem(reply, 406, 'PGRST107');
      else assert.equal(reply.status, status);
    });
  }

  describe('grammar', () => {
    const one = { name: unique(), passengerClass: 2, age: 40.5, fare: 10, survived: true };
    const two = { ...one, passengerClass: 3, age: 7, fare: 0, survived: false, sex: 'female' };
    before(async () => {
      await create(one);
      await create(two);
    });

    const accepted: [string, number[]][] = [
      ['age=eq.40.5', [40.5]],
      ['age=neq.40.5', [7]],
      ['age=gt.7', [40.5]],
      ['age=gte.7', [7, 40.5]],
      ['age=lt.40.5', [7]],
      ['age=lte.40.5', [7, 40.5]],
      ['age=not.eq.7', [40.5]],
      ['age=not.gt.7', [7]],
      ['age=gt.1&age=lt.10', [7]],
      ['age=eq.4.05e1', [40.5]],
      ['age=eq. 7 ', [7]],
      ['sex=like.fe*', [7]],
      ['sex=like.*male', [7, 40.5]],
      ['sex=like.MALE', []],
      ['sex=ilike.MALE', [40.5]],
      ['sex=like.m%le', [40.5]],
      ['sex=like.m_le', [40.5]],
      ['sex=match.^m', [40.5]],
      ['sex=imatch.^M', [40.5]],
      ['sex=not.imatch.^M', [7]],
      ['sex=match.^(fe)?male$', [7, 40.5]],
      ['passengerClass=in.(2,3)', [7, 40.5]],
      ['passengerClass=in.("2","9")', [40.5]],
      ['passengerClass=in.()', []],
      ['passengerClass=not.in.(2)', [7]],
      ['passengerClass=not.in.()', [7, 40.5]],
      ['survived=is.true', [40.5]],
      ['survived=is.FALSE', [7]],
      ['survived=not.is.true', [7]],
      ['survived=is.unknown', []],
      ['age=is.null', []],
      ['age=is.not_null', [7, 40.5]],
      ['age=not.is.null', [7, 40.5]],
      ['age=isdistinct.7', [40.5]],
      ['age=not.isdistinct.7', [7]],
      ['age=eq(any).{7,8}', [7]],
      ['age=neq(all).{7,8}', [40.5]],
      ['age=gt(all).{1,8}', [40.5]],
      ['age=gt(any).{1,8}', [7, 40.5]],
      ['age=not.eq(any).{7,8}', [40.5]],
      ['sex=like(any).{fe*,x*}', [7]],
      ['sex=ilike(all).{*MALE,FE*}', [7]],
      ['sex=match(any).{^f,^x}', [7]],
      ['name=fts.test', [7, 40.5]],
      ['name=fts(english).tests', [7, 40.5]],
      ['name=fts(simple).tests', []],
      ['name=plfts.miss test', [7, 40.5]],
      ['name=phfts.test miss', []],
      ['name=wfts.test -miss', []],
      ['name=not.wfts(simple).nobody', [7, 40.5]],
      ['or=(age.eq.7,age.eq.40.5)', [7, 40.5]],
      ['or=(age.eq.7,sex.eq.male)', [7, 40.5]],
      ['and=(age.gt.1,sex.eq.male)', [40.5]],
      ['not.or=(age.eq.7,age.eq.8)', [40.5]],
      ['not.and=(age.gt.1,sex.eq.male)', [7]],
      ['or=(age.eq.7,and(age.gt.8,not.or(sex.eq.female,sex.is.null)))', [7, 40.5]],
      ['or=(age.not.in.(7,8))', [40.5]],
      ['or=(passengerClass.in.("2",9),age.eq(any).{7,8})', [7, 40.5]],
      ['or=(sex.eq."female",sex.eq."a,b)")', [7]],
      ['or=("sex".eq.female)', [7]],
      ['or=(sex.eq.female)&or=(age.eq.7)', [7]],
      ['or=(sex.eq.female)&or=(age.eq.8)', []],
      [`or=${'(and'.repeat(8)}(age.eq.7${')'.repeat(9)}`, [7]],
      ['sex[0]=like.fe*&sex[1]=like.*male', [7]],
      ['order=age.desc.nullslast,name', [40.5, 7]],
      ['order=age.asc', [7, 40.5]],
      ['order="age".nullsfirst', [7, 40.5]],
      ['order=survived,age&limit=1', [7]],
      ['age=gt.1&order=age&offset=1', [40.5]],
    ];
    for (const [query, ages] of accepted) {
      test(`?${query} finds ${ages.join(' and ') || 'nobody'}`, async () => {
        const { status, json, text } = await service.get(
          `/passengers?name=eq.${one.name}&${query}`,
        );
        assert.equal(status, 200, text);
        const found = json.map(({ age }: { age: number }) => age);
        assert.deepEqual(
          /order=/.test(query) ? found : found.sort((a: number, b: number) => a - b),
          ages,
        );
      });
    }

    const selected: [string, unknown][] = [
      ['select=age', [{ age: 7 }, { age: 40.5 }]],
      ['select=years:age', [{ years: 7 }, { years: 40.5 }]],
      ['select=age::text', [{ age: '7' }, { age: '40.5' }]],
      ['select=a:age::int', [{ a: 7 }, { a: 40 }]],
      ['select="age"', [{ age: 7 }, { age: 40.5 }]],
      [`select="it's \\"1\\"":age`, [{ 'it\'s "1"': 7 }, { 'it\'s "1"': 40.5 }]],
      ['select=count()', [{ count: 2 }]],
      ['select=n:count()', [{ n: 2 }]],
      ['select=count()::text', [{ count: '2' }]],
      ['select=age.sum()', [{ sum: 47.5 }]],
      [
        'select=total:age.sum(),age.avg(),age.min(),age.max()',
        [{ total: 47.5, avg: 23.75, min: 7, max: 40.5 }],
      ],
      ['select=age::int.sum()', [{ sum: 47 }]],
      ['select=age.sum()::int', [{ sum: 48 }]],
      [
        'select=passengerClass,count()',
        [
          { passengerClass: 2, count: 1 },
          { passengerClass: 3, count: 1 },
        ],
      ],
      [
        'select=sex,age.max()&order=sex.desc',
        [
          { sex: 'male', max: 40.5 },
          { sex: 'female', max: 7 },
        ],
      ],
      ['select=sex,count()&limit=1', [{ sex: 'female', count: 1 }]],
    ];
    for (const [query, expected] of selected) {
      test(`?${query} is ${JSON.stringify(expected)}`, async () => {
        const order = /count|sum|max/.test(query) ? '' : '&order=age';
        const path = `/passengers?name=eq.${one.name}&${query}${order}`;
        assert.deepEqual((await service.get(path)).json, expected);
      });
    }

    const malformed: [string, string][] = [
      ['age=eq7', 'PGRST100'],
      ['age=.7', 'PGRST100'],
      ['age=not.7', 'PGRST100'],
      ['age=not.not.eq.7', 'PGRST100'],
      ['age=EQ.7', 'PGRST100'],
      ['age=ov.7', 'PGRST100'],
      ['age=eq(some).{7}', 'PGRST100'],
      ['age=eq(any).7', 'PGRST100'],
      ['age=in(any).(7)', 'PGRST100'],
      ['age=is(any).{null}', 'PGRST100'],
      ['age=in.7', 'PGRST100'],
      ['age=in.(7', 'PGRST100'],
      ['age=in.(7)8', 'PGRST100'],
      ['age=is.7', 'PGRST100'],
      ['age=is.nothing', 'PGRST100'],
      ['age=eq(english).7', 'PGRST100'],
      ['age=like.7', '42883'],
      ['age=fts.7', '42883'],
      ['survived=match.t', '42883'],
      ['uuid=ilike.*a*', '42883'],
      ['sex=fts(nolanguage).x', '42704'],
      ['sex=match.(', '2201B'],
      ['age=eq(any).{7', 'PGRST100'],
      ['age=eq(any).{x}', '22P02'],
      ['or=', 'PGRST100'],
      ['or=()', 'PGRST100'],
      ['or=(age.eq.7', 'PGRST100'],
      ['or=(age.eq.7))', 'PGRST100'],
      ['or=(age.eq.7,)', 'PGRST100'],
      ['or=(age)', 'PGRST100'],
      ['or=(age.7)', 'PGRST100'],
      ['or=(nope.eq.7)', '42703'],
      ['or=(not.age.eq.7)', '42703'],
      ['or=(xor(age.eq.7))', 'PGRST100'],
      [`or=${'(and'.repeat(11)}(age.eq.7${')'.repeat(12)}`, 'PGRST100'],
      ['and=age.eq.7', 'PGRST100'],
      ['select=nope', '42703'],
      ['select=age,', 'PGRST100'],
      ['select=age::money', 'PGRST100'],
      ['select=age::text;drop', 'PGRST100'],
      ['select=age.median()', 'PGRST100'],
      ['select=nope.sum()', '42703'],
      ['select=sex.sum()', '42883'],
      ['select=count(),age&order=fare', '42803'],
      ['select=count()&after=WyJhIl0', 'PGRST100'],
      ['select=a:', '42703'],
      ['select=sum()', 'PGRST200'],
      [`select=${Array(51).fill('age')}`, 'PGRST100'],
      ['select=age&select=sex', 'PGRST100'],
      ['order=age.desc.asc', 'PGRST100'],
      ['order=age.nullslast.desc', 'PGRST100'],
      ['order=age,', 'PGRST100'],
      ['columns=age', 'PGRST100'],
      ['on_conflict=uuid', 'PGRST100'],
    ];
    for (const [query, code] of malformed) {
      test(`?${query.slice(0, 60)} is refused with ${code}`, async () => {
        assertProblem(await service.get(`/passengers?${query}`), 400, code);
      });
    }
  });

  describe('against SQL', () => {
    let own: TestDatabase;
    let server: TestService;
    before(async () => {
      own = await startDatabase();
      server = await startReady({ DATABASE_URL: own.url });
      const headers = { 'content-type': 'text/csv' };
      const reply = await server.request('POST', '/passengers', readFileSync(CSV, 'utf8'), headers);
      assert.equal(reply.status, 201, reply.text);
    });
    after(async () => {
      await server?.stop();
      await own?.stop();
    });

    test('a statement gets its rows whole behind one that failed between its rows', async () => {
      const database = new Database(
        readConfig({ DATABASE_URL: own.url, POOL_SIZE: '1' }),
        pino({ level: 'silent' }),
      );
      const call = { sub: '', ms: 0, repeated: false };
      const failing = sql`select 1 / (3 - number) as one from generate_series(${1}::int, 5) number`;
      const next = sql`select number::text as one from generate_series(${1}::int, 2) number`;
      for (const raw of [false, true]) {
        await assert.rejects(database.run('read', call, failing), { code: '22012' });
        const rows = await database.run('read', call, next, performance.now(), raw);
        assert.deepEqual(
          Array.from(rows, (row) => String(Object.values(row ?? {}))),
          ['1', '2'],
        );
      }
      await database.end();
    });

    test('a page, a row and its removal are planned once, however large the table', async () => {
      const large = await startDatabase();
      const database = new Database(
        readConfig({ DATABASE_URL: large.url, POOL_SIZE: '1' }),
        pino({ level: 'silent' }),
      );
      const store = new Store(passengers, database);
      await ensureTable(passengers, database);
      await fill(large, 50_000);
      await large.sql`analyze titanic`;
      const call = { sub: '', ms: 0, repeated: false };
      const wanted = { limit: 20, body: true, count: false };
      const [row] = await large.sql<{ uuid: string }[]>`select uuid from titanic limit 1`;
      const after = Buffer.from(JSON.stringify([row?.uuid])).toString('base64url');
      for (let round = 0; round < 20; round += 1) {
        for (const text of ['fare=neq.7', `after=${after}`]) {
          const query = parseQuery(passengers, new URLSearchParams(text));
          assert.equal((await store.page(query, wanted, call)).rows, 20);
        }
        assert.ok(await store.read(String(row?.uuid), call));
        await store.remove(randomUUID(), '*', call);
      }
      const plans = await database.run(
        'read',
        call,
        sql`select statement, custom_plans::text as made from pg_prepared_statements`,
      );
      await database.end();
      await large.stop();
      const again = plans.filter(({ made }) => Number(made) > 5); // PostgreSQL tries five itself
      assert.deepEqual(again, []);
      assert.equal(plans.filter(({ made }) => made === '5').length, 4);
    });

    const literal = (value: string) => `'${value.replaceAll("'", "''")}'`;
    const quote = (value: string) => `"${value.replace(/["\\]/g, '\\$&')}"`;
    const number = fc.constantFrom('0', '1', '2', '3', '7.25', '22', '38.5', '-1', '1e1');
    const word = fc.oneof(
      fc.constantFrom(
        'Mr.',
        "O'",
        'male',
        'female',
        '%',
        '_',
        '*',
        '',
        'a,b',
        '(x)',
        '"',
        '\\',
        '\u{1f6a2}',
      ),
      fc.string({ maxLength: 6 }).filter((text) => !text.includes('\0')),
    );
    const comparison = { eq: '=', neq: '<>', gt: '>', gte: '>=', lt: '<', lte: '<=' };

    /** A condition in PostgREST's words for a tree, and the same in SQL. */
    type Pair = [rest: string, sql: string];
    const numeric: fc.Arbitrary<Pair> = fc
      .tuple(
        fc.constantFrom('age', 'fare', 'passengerClass'),
        fc.constantFrom(...Object.entries(comparison)),
        number,
      )
      .filter(([column, , value]) => column !== 'passengerClass' || /^-?\d+$/.test(value))
      .map(([column, [name, sql], value]) => [
        `${column}.${name}.${value}`,
        `"${column}" ${sql} ${literal(value)}`,
      ]);
    const textual: fc.Arbitrary<Pair> = fc
      .tuple(
        fc.constantFrom('name', 'sex'),
        fc.constantFrom(...Object.entries({ ...comparison, like: 'like', ilike: 'ilike' })),
        word,
      )
      .filter(([, [name], value]) => !/like/.test(name) || !/\\$/.test(value))
      .map(([column, [name, sql], value]) => {
        const wanted = /like/.test(name) ? value.replaceAll('*', '%') : value;
        return [`${column}.${name}.${quote(value)}`, `"${column}" ${sql} ${literal(wanted)}`];
      });
    const listed: fc.Arbitrary<Pair> = fc
      .array(word, { maxLength: 3 })
      .map((values) => [
        `name.in.(${values.map(quote)})`,
        `"name" = any(array[${values.map(literal)}]::text[])`,
      ]);
    const is: fc.Arbitrary<Pair> = fc
      .constantFrom('null', 'true', 'false')
      .map((value) => [`survived.is.${value}`, `"survived" is ${value}`]);
    const negated = (pair: fc.Arbitrary<Pair>): fc.Arbitrary<Pair> =>
      pair.map(([rest, sql]) => [rest.replace('.', '.not.'), `not (${sql})`]);
    const leaf = fc.oneof(
      numeric,
      textual,
      listed,
      is,
      negated(numeric),
      negated(textual),
      negated(is),
    );
    const { tree } = fc.letrec<{ tree: Pair; node: Pair }>((tie) => ({
      tree: fc.oneof({ depthSize: 'small' }, leaf, tie('node')),
      node: fc
        .tuple(
          fc.boolean(),
          fc.constantFrom('and', 'or'),
          fc.array(tie('tree'), { minLength: 1, maxLength: 3 }),
        )
        .map(([not, by, parts]) => [
          `${not ? 'not.' : ''}${by}(${parts.map(([rest]) => rest)})`,
          `${not ? 'not ' : ''}(${parts.map(([, sql]) => sql).join(` ${by} `)})`,
        ]),
    }));
    const shape = fc.constantFrom<Pair>(
      ['uuid', 'to_json("uuid")'],
      ['name,years:age::text', `json_build_object('name', "name", 'years', "age"::text)`],
      ['n:count(),fare.sum()::int', ''],
    );

    test('10 000 random filters and selects answer what the same query in SQL answers', async (t) => {
      const filters = fc.array(tree, { minLength: 1, maxLength: 2 });
      let rows = 0;
      const property = fc.asyncProperty(filters, shape, async (parts, [select]) => {
        const parameters = parts.map(([rest]) => ['and', `(${rest})`]);
        const query = new URLSearchParams([...parameters, ['select', select], ['limit', '20']]);
        const where = parts.map(([, sql]) => `(${sql})`).join(' and ');
        const sql = select.startsWith('n:')
          ? `select json_build_array(json_build_object('n', count(*), 'sum', sum(fare)::int)) as all from titanic where ${where}`
          : `select coalesce(json_agg(${select === 'uuid' ? `json_build_object('uuid', uuid)` : `json_build_object('name', name, 'years', age::text)`}), '[]') as all
             from (select * from titanic where ${where} order by uuid limit 20) t`;
        const reply = await server.get(`/passengers?${query}`);
        const [expected] = await own.sql.unsafe(sql);
        assert.equal(reply.status, 200, `${query} ${reply.text}`);
        assert.deepEqual(reply.json, expected?.all, String(query));
        rows += reply.json.length;
      });
      await fc.assert(property, { numRuns: 10_000 });
      t.diagnostic(`${rows} rows compared`);
    });
  });

  test('parseQuery() turns a string into data', () => {
    const query = parseQuery(passengers, new URLSearchParams('age=gte.18&order=name.desc&limit=5'));
    assert.deepEqual(query, {
      filters: [{ column: 'age', operator: 'gte', modifier: undefined, value: '18' }],
      order: [
        { column: 'name', descending: true, nullsFirst: true },
        { column: 'uuid', descending: false, nullsFirst: false },
      ],
      limit: 5,
      offset: 0,
    });
  });
});

// --- Grouping -------------------------------------------------------------------

describe('Grouping', () => {
  type Item = { key: number; bad: boolean; left: boolean };
  const items = fc.array(fc.record({ key: fc.nat(3), bad: fc.boolean(), left: fc.boolean() }), {
    maxLength: 40,
  });
  const grouping = { most: 1, width: 1, refuse: () => undefined, observe: () => {} };

  for (const [most, width] of [
    [1, 1],
    [2, 1],
    [5, 2],
    [64, 3],
  ] as const) {
    test(`group() of ${most}, ${width} at once, in any order of events, gives each its own`, async () => {
      await fc.assert(
        fc.asyncProperty(items, fc.scheduler(), async (asked, scheduler) => {
          let [version, running] = [0, 0];
          const ask = group<Item, { item: Item; seen: number }>({
            ...{ most, width, keyOf: ({ key }) => key, observe: (size) => assert.ok(size <= most) },
            refuse: ({ left }) => left && new Error('left'),
            isApart: () => true,
            run: async (batch) => {
              const seen = version; // what a statement sees is what was there when it began
              running += 1;
              assert.ok(batch.length === 1 || running <= width);
              assert.equal(new Set(batch.map(({ key }) => key)).size, batch.length);
              await scheduler.schedule(Promise.resolve());
              running -= 1;
              if (batch.some(({ bad }) => bad)) throw new Error('bad');
              return batch.map((item) => ({ item, seen }));
            },
          });
          const asking = asked.map(async (item) => {
            await scheduler.schedule(Promise.resolve());
            version += 1;
            const since = version;
            const answer = await ask(item).catch((error: Error) => error.message);
            if (item.left) return assert.equal(answer, 'left');
            if (item.bad) return assert.equal(answer, 'bad');
            assert.ok(typeof answer === 'object' && answer.item === item);
            assert.ok(answer.seen >= since, 'answered by what began before it was asked');
          });
          await scheduler.waitFor(Promise.all(asking));
          assert.equal(running, 0);
        }),
        { numRuns: 100 },
      );
    });
  }

  test('group() fails all of a group where the error may have left something behind', async () => {
    let runs = 0;
    const run = async () => {
      runs += 1;
      throw new Error('lost');
    };
    const ask = group({ ...grouping, most: 9, isApart: () => false, run });
    const asked = await Promise.allSettled([1, 2, 3, 4].map((item) => ask(item)));
    assert.deepEqual(new Set(asked.map(({ status }) => status)), new Set(['rejected']));
    assert.equal(runs, 2); // the first alone, the others together
  });

  test('share() answers equal asks by one run that began after them, and keeps no group', async () => {
    let runs = 0;
    const run = async (batch: string[]) => {
      runs += 1;
      const mine = runs;
      await new Promise(setImmediate);
      return batch.map((item) => `${item} ${mine}`);
    };
    const ask = share<string, string>({ ...grouping, most: 9, isApart: () => false, run });
    const asked = ['a', 'a', 'b', 'a'].map((item) => ask(item, item));
    assert.deepEqual(await Promise.all(asked), ['a 1', 'a 3', 'b 2', 'a 3']);
    assert.equal(await ask('a', 'a'), 'a 4');
  });

  for (const clients of [1, 8, 64, 200]) {
    test(`${clients} clients at once read what they wrote, alone and in equal lists`, async () => {
      const mark = unique();
      const path = `/passengers?select=name&name=like.${encodeURIComponent(`${mark}*`)}`;
      await Promise.all(
        Array.from({ length: clients }, async (_, at) => {
          const name = `${mark} ${at}.`;
          const { uuid } = await create({ name });
          assert.equal((await service.get(`/passengers/${uuid}`)).json.name, name);
          assert.ok(
            (await service.get(path)).json.some((row: { name: string }) => row.name === name),
          );
          const renamed = { ...BRAUND, name: `${name} again` };
          assert.equal((await service.request('PUT', `/passengers/${uuid}`, renamed)).status, 200);
          assert.equal((await service.get(`/passengers/${uuid}`)).json.name, renamed.name);
          assert.equal((await service.request('DELETE', `/passengers/${uuid}`)).status, 204);
          assert.equal((await service.get(`/passengers/${uuid}`)).status, 404);
        }),
      );
      assert.deepEqual((await service.get(path)).json, []);
    });

    test(`of ${clients} creates and replaces at once the bad rows alone fail`, async (t) => {
      const mark = unique();
      await database.sql`alter table titanic add constraint no_evil check (name not like '%evil%')`;
      t.after(() => database.sql`alter table titanic drop constraint no_evil`);
      const rows = Array.from({ length: clients }, (_, at) => ({
        ...BRAUND,
        name: `${mark} ${at % 3 === 0 ? 'evil' : 'good'} ${at}`,
      }));
      const replies = await Promise.all(
        rows.map((row, at) => {
          const [method, path] = at % 2 ? ['POST', ''] : ['PUT', `/${randomUUID()}`];
          return service.request(String(method), `/passengers${path}`, row);
        }),
      );
      for (const [at, { status, json }] of replies.entries()) {
        assert.equal(status, at % 3 === 0 ? 400 : 201);
        assert.equal(at % 3 === 0 ? json.code : json.name, at % 3 === 0 ? '23514' : rows[at]?.name);
      }
      const [row] = await database.sql`
        select count(*)::int as count from titanic where name like ${`${mark}%`}`;
      assert.equal(row?.count, rows.filter(({ name }) => name.includes('good')).length);
    });
  }

  test('of 50 equal creates at once with one Idempotency-Key one makes the row', async () => {
    const [name, key] = [unique(), unique()];
    const replies = await Promise.all(
      Array.from({ length: 50 }, () =>
        service.request('POST', '/passengers', { ...BRAUND, name }, { 'Idempotency-Key': key }),
      ),
    );
    assert.deepEqual(new Set(replies.map(({ status }) => status)), new Set([201]));
    assert.equal(new Set(replies.map(({ json }) => json.uuid)).size, 1);
    const replayed = replies.filter(({ headers }) => headers.get('idempotent-replayed') === 'true');
    assert.equal(replayed.length, 49);
  });

  test('GET /metrics tells how many requests went into one statement', async () => {
    const { text } = await service.get('/metrics');
    for (const work of ['read', 'create', 'replace', 'delete', 'list']) {
      const [count = 0, sum = 0] = ['count', 'sum'].map((which) =>
        Number(text.match(`db_batch_size_${which}{work="${work}"} (\\d+)`)?.[1]),
      );
      assert.ok(sum > count, `${work}: ${sum} in ${count}`); // those of the tests above
    }
  });

  test('a reader that leaves takes nothing from those in its group', async () => {
    const { uuid } = await create();
    const leaving = new AbortController();
    const asked = Array.from({ length: 60 }, (_, at) =>
      fetch(`${service.url}/passengers/${uuid}`, at % 2 ? {} : { signal: leaving.signal }).then(
        ({ status }) => status,
        () => 'left',
      ),
    );
    setImmediate(() => leaving.abort());
    const answers = await Promise.all(asked);
    for (const [at, answer] of answers.entries()) assert.ok(answer === 200 || at % 2 === 0);
  });
});

// --- Auth -----------------------------------------------------------------------

describe('Auth', () => {
  const [SECRET, OTHER] = [
    'first-secret-of-32-bytes-or-more!',
    'second-secret-of-32-bytes-or-more',
  ];
  const keyed = {
    JWT_SECRET: `${SECRET},${OTHER}`,
    JWT_ISSUER: 'https://issuer.example',
    JWT_AUDIENCE: 'passengers',
    JWT_WRITE_SCOPE: 'write',
  };
  let all: TestService;
  let write: TestService;
  before(async () => {
    all = await startReady({ DATABASE_URL: database.url, ...keyed });
    write = await startReady({ DATABASE_URL: database.url, ...keyed, AUTH: 'write' });
  });
  after(async () => {
    await all?.stop();
    await write?.stop();
  });

  const now = () => Math.floor(Date.now() / 1000);
  const good = () => ({
    sub: 'ann',
    iss: keyed.JWT_ISSUER,
    aud: keyed.JWT_AUDIENCE,
    scope: 'read write',
    exp: now() + 60,
  });
  const sign = (claims: object, secret = SECRET, header: object = {}) =>
    new SignJWT({ ...claims })
      .setProtectedHeader({ alg: 'HS256', ...header })
      .sign(Buffer.from(secret));
  const bearer = (token: string) => ({ authorization: `Bearer ${token}` });
  const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url');

  test('every route outside the open list is 401 without a token when AUTH=all', async () => {
    const { paths } = (await all.get('/openapi.json')).json as { paths: Record<string, object> };
    const open = [
      '/hello',
      '/zero',
      '/healthz',
      '/readyz',
      '/openapi.json',
      '/docs',
      '/docs/{file}',
    ];
    let closed = 0;
    for (const [path, methods] of Object.entries(paths)) {
      for (const method of Object.keys(methods)) {
        const url = path.replace('{key}', NOWHERE).replace('{file}', 'start.js');
        const reply = await all.request(method.toUpperCase(), url);
        if (open.includes(path)) {
          assert.equal(reply.status, 200, path);
          continue;
        }
        closed += 1;
        assertProblem(reply, 401, 'PGRST302');
        assert.equal(reply.headers.get('www-authenticate'), 'Bearer realm="api"');
        assert.match(reply.headers.get('server-timing') ?? '', /^db;dur=0\.0/);
      }
    }
    assert.equal(closed, 22);
  });

  test('a good token is let in, by either secret', async () => {
    for (const secret of [SECRET, OTHER]) {
      const headers = bearer(await sign(good(), secret));
      for (const _ of [1, 2])
        assert.equal((await all.get('/passengers?limit=1', headers)).status, 200);
    }
  });

  test('the scheme is told apart from its case', async () => {
    const token = await sign(good());
    const { status } = await all.get('/passengers?limit=1', { authorization: `bearer ${token}` });
    assert.equal(status, 200);
  });

  const wrong: [string, () => Promise<string> | string][] = [
    ['garbage', () => 'garbage'],
    ['two parts', () => 'a.b'],
    ['three empty parts', () => '..'],
    ['another secret', () => sign(good(), 'x'.repeat(32))],
    [
      'the empty secret',
      () => sign(good(), SECRET).then((token) => `${token.split('.').slice(0, 2).join('.')}.`),
    ],
    ['alg none', () => `${encode({ alg: 'none' })}.${encode(good())}.`],
    ['alg None', () => `${encode({ alg: 'None' })}.${encode(good())}.x`],
    ['HS512', () => sign(good(), SECRET, { alg: 'HS512' })],
    ['HS384', () => sign(good(), SECRET, { alg: 'HS384' })],
    ['RS256 by name', () => `${encode({ alg: 'RS256' })}.${encode(good())}.x`],
    [
      'a changed payload',
      async () => {
        const [head, , signature] = (await sign(good())).split('.');
        return `${head}.${encode({ ...good(), sub: 'root' })}.${signature}`;
      },
    ],
    ['no exp', () => sign({ ...good(), exp: undefined })],
    ['no sub', () => sign({ ...good(), sub: undefined })],
    ['another issuer', () => sign({ ...good(), iss: 'https://evil.example' })],
    ['no issuer', () => sign({ ...good(), iss: undefined })],
    ['another audience', () => sign({ ...good(), aud: 'other' })],
    ['no audience', () => sign({ ...good(), aud: undefined })],
    ['a time before it is valid', () => sign({ ...good(), nbf: now() + 60 })],
    ['exp as text', () => sign({ ...good(), exp: '9999999999' })],
    [
      'an unknown critical header',
      () => `${encode({ alg: 'HS256', crit: ['x'], x: 1 })}.${encode(good())}.x`,
    ],
  ];
  for (const [name, make] of wrong) {
    test(`a token with ${name} is 401, told as any other`, async () => {
      const token = await make();
      const reply = await all.get('/passengers', bearer(token));
      assertProblem(reply, 401, 'PGRST301');
      assert.equal(reply.json.message, 'JWT invalid');
      assert.match(reply.headers.get('www-authenticate') ?? '', /^Bearer .*error="invalid_token"/);
      assert.match(reply.headers.get('server-timing') ?? '', /^db;dur=0\.0/);
    });
  }

  test('an expired token is 401 PGRST303, within 5 s of tolerance it passes', async () => {
    const expired = await sign({ ...good(), exp: now() - 10 });
    assertProblem(await all.get('/passengers', bearer(expired)), 401, 'PGRST303');
    const barely = await sign({ ...good(), exp: now() - 1 });
    assert.equal((await all.get('/passengers?limit=1', bearer(barely))).status, 200);
  });

  const schemes = ['', 'Bearer', 'Bearer ', 'Basic YTpi', 'Token x', 'Bearer a b'];
  for (const authorization of schemes) {
    test(`Authorization: "${authorization}" is no token`, async () => {
      assertProblem(await all.get('/passengers', { authorization }), 401, 'PGRST302');
    });
  }

  const scopes: [string | undefined, number][] = [
    ['write', 201],
    ['read write', 201],
    ['read', 403],
    ['rewrite', 403],
    ['write:all', 403],
    ['', 403],
    [undefined, 403],
  ];
  for (const [scope, status] of scopes) {
    test(`a token of scope ${scope} reads, and writes with ${status}`, async () => {
      const headers = bearer(await sign({ ...good(), scope }));
      for (const one of [all, write]) {
        assert.equal((await one.get('/passengers?limit=1', headers)).status, 200);
        const reply = await one.request('POST', '/passengers', BRAUND, headers);
        if (status === 403) assertProblem(reply, 403, '42501');
        else assert.equal(reply.status, status);
      }
    });
  }

  test('AUTH=write leaves reads open and closes writes', async () => {
    assert.equal((await write.get('/passengers?limit=1')).status, 200);
    assert.equal((await write.request('HEAD', '/passengers?limit=1')).status, 200);
    for (const [method, path] of [
      ['POST', '/passengers'],
      ['DELETE', '/passengers?age=eq.1'],
      ['PUT', `/putpassenger/${NOWHERE}`],
    ]) {
      assertProblem(await write.request(method!, path!), 401, 'PGRST302');
    }
  });

  test('an Idempotency-Key is of its caller alone', async () => {
    const key = { 'idempotency-key': unique() };
    const keys = [];
    for (const sub of ['ann', 'bob', 'ann']) {
      const headers = { ...key, ...bearer(await sign({ ...good(), sub })) };
      keys.push((await all.request('POST', '/passengers', BRAUND, headers)).json.uuid);
    }
    assert.equal(keys[0], keys[2]);
    assert.notEqual(keys[0], keys[1]);
  });

  test('token prints one that is let in', async () => {
    const app = fileURLToPath(new URL('app.ts', import.meta.url));
    const args = [
      ...nodeArguments,
      app,
      'token',
      '--sub',
      'me',
      '--scope',
      'write',
      '--expires',
      '5m',
    ];
    const env = { ...inherited(), ...keyed };
    const { stdout, status } = spawnSync(process.execPath, args, { env, encoding: 'utf8' });
    assert.equal(status, 0);
    const reply = await all.request('POST', '/passengers', BRAUND, bearer(stdout.trim()));
    assert.equal(reply.status, 201);
    const plain = spawnSync(process.execPath, args.slice(0, -6), {
      env: { ...inherited(), JWT_SECRET: SECRET },
      encoding: 'utf8',
    });
    assert.equal(decodeJwt(plain.stdout.trim()).sub, 'me');
    assert.equal(decodeJwt(plain.stdout.trim()).scope, undefined);
    const without = spawnSync(process.execPath, args, { env: inherited(), encoding: 'utf8' });
    assert.equal(without.status, 2);
    assert.match(without.stdout, /JWT_SECRET is needed/);
  });

  test('neither a secret nor a token is logged', () => {
    const logs = JSON.stringify([all.log, write.log, all.stderr(), write.stderr()]);
    assert.doesNotMatch(logs, new RegExp(`${SECRET}|${OTHER}|eyJ`));
  });
});

// --- Routes ---------------------------------------------------------------------

describe('Routes', () => {
  const fixed: [string, string][] = [
    ['/hello', '{"message":"ok"}'],
    ['/zero', '{"0":""}'],
  ];
  for (const [path, body] of fixed) {
    test(`GET ${path} is ${body}`, async () => assert.equal((await service.get(path)).text, body));
  }

  test('OPTIONS tells version, branch, commit, uri and methods', async () => {
    const reply = await service.request('OPTIONS', '/passengers');
    const { version } = JSON.parse(readFileSync(new URL('package.json', import.meta.url), 'utf8'));
    assert.equal(reply.status, 200);
    assert.equal(reply.headers.get('allow'), reply.json.methods.join(', '));
    const { methods, ...about } = reply.json;
    assert.deepEqual(about, {
      name: 'passengers',
      version,
      branch: '',
      commit: '',
      uri: '/passengers',
    });
    assert.ok(methods.includes('POST') && methods.includes('OPTIONS'));
  });

  test('OPTIONS of a path that is none names OPTIONS alone', async () => {
    const { status, headers, json } = await service.request('OPTIONS', '/nope');
    assert.deepEqual([status, headers.get('allow'), json.methods], [200, 'OPTIONS', []]);
  });

  test('HEAD of a stream has its type and no body', async () => {
    const { status, headers, text } = await service.request('HEAD', '/passengerlist');
    assert.deepEqual([status, headers.get('content-type'), text], [200, 'application/json', '']);
  });

  test('a write whose answer no one could take is 406 and changes nothing', async () => {
    const { uuid, ...row } = await create({ age: 5 });
    const asked = { prefer: 'return=representation', accept: 'text/html' };
    for (const [method, body] of [
      ['PUT', { ...row, age: 6 }],
      ['PATCH', { age: 6 }],
      ['DELETE', undefined],
    ] as const) {
      const reply = await service.request(method, `/passengers/${uuid}`, body, asked);
      assertProblem(reply, 406, 'PGRST107');
    }
    assert.equal((await service.get(`/passengers/${uuid}`)).json.age, 5);
  });

  test('BASE_PATH stands before every path, in Location, Link and the document too', async () => {
    const own = await startReady({ DATABASE_URL: database.url, BASE_PATH: '/ws/rows' });
    assertProblem(await own.get('/hello'), 404, 'PGRST125');
    assertProblem(await own.get('/ws/rows/rest/v1/nope'), 404, 'PGRST205');
    for (const path of ['/ws/rows/passengers', '/ws/rows/rest/v1/passengers']) {
      const location = (await own.request('POST', path, BRAUND)).headers.get('location') ?? '';
      assert.ok(location.startsWith(`${path}/`), location);
      assert.equal((await own.get(location)).status, 200);
      const link = (await own.get(`${path}?limit=1`)).headers.get('link') ?? '';
      assert.equal((await own.get(/<(.*)>/.exec(link)?.[1] ?? '')).json.length, 1);
    }
    const { servers, paths } = (await own.get('/ws/rows/openapi.json')).json;
    assert.deepEqual([servers, '/hello' in paths], [[{ url: '/ws/rows' }], true]);
    await own.stop();
  });

  const misplaced: [string, string, string, RegExp][] = [
    ['POST', '/passengers?age=eq.1', 'PGRST100', /select, columns, on_conflict/],
    ['POST', '/passengers?or=(age.eq.1)', 'PGRST100', /select/],
    ['POST', '/passengers?limit=1', 'PGRST100', /select/],
    ['POST', '/passengers?nope=1', '42703', /columns are/],
    ['PATCH', '/passengers?order=age', 'PGRST100', /filter, select, columns/],
    ['DELETE', '/passengers?columns=age', 'PGRST100', /filter, select/],
    ['GET', `/passengers/${NOWHERE}?select=age`, 'PGRST100', /none/],
    ['PUT', `/passengers/${NOWHERE}?age=eq.1`, 'PGRST100', /none/],
    ['PATCH', `/passengers/${NOWHERE}?x=1`, '42703', /columns are/],
    ['DELETE', `/passengers/${NOWHERE}?limit=1`, 'PGRST100', /none/],
  ];
  for (const [method, path, code, hint] of misplaced) {
    test(`${method} ${path} is refused with ${code}, not passed over`, async () => {
      const body = method === 'GET' || method === 'DELETE' ? undefined : BRAUND;
      const reply = await service.request(method, path, body);
      assertProblem(reply, 400, code);
      assert.match(reply.json.hint, hint);
    });
  }

  const ranges: [Record<string, string>, number, string | null][] = [
    [{ range: '0-0', 'range-unit': 'items' }, 200, '0-0/*'],
    [{ range: 'items=1-1', 'range-unit': 'items' }, 200, '1-1/*'],
    [{ range: '0-0' }, 200, null],
    [{ range: 'bytes=0-0' }, 200, null],
    [{ range: 'x', 'range-unit': 'items' }, 200, null],
    [{ range: '5-2', 'range-unit': 'items' }, 416, '*/0'],
  ];
  for (const [headers, status, expected] of ranges) {
    test(`GET with ${JSON.stringify(headers)} is ${status}`, async () => {
      for (const age of [1, 2]) await create({ age });
      const reply = await service.get('/passengers', headers);
      assert.equal(reply.status, status);
      if (expected) assert.equal(reply.headers.get('content-range'), expected);
      else assert.ok(reply.json.length > 1);
    });
  }

  test('a preflight of an allowed origin gets 204 and what it may', async () => {
    const asked = { origin: 'https://shop.example', 'access-control-request-method': 'PATCH' };
    const { status, headers } = await service.request('OPTIONS', '/passengers', undefined, asked);
    assert.equal(status, 204);
    assert.equal(headers.get('access-control-allow-origin'), 'https://shop.example');
    assert.match(headers.get('access-control-allow-methods') ?? '', /PATCH/);
    for (const name of ['Prefer', 'apikey', 'x-client-info', 'accept-profile']) {
      assert.match(headers.get('access-control-allow-headers') ?? '', new RegExp(name, 'i'));
    }
  });

  test('another origin is told nothing', async () => {
    const { headers } = await service.get('/passengers?limit=1', {
      origin: 'https://evil.example',
    });
    assert.equal(headers.get('access-control-allow-origin'), null);
    assert.equal(headers.get('vary'), 'Origin');
  });

  const bases = [
    { create: '/passengers', row: '/passengers', put: '/passengers', remove: '/passengers' },
    {
      create: '/postpassenger',
      row: '/getpassenger',
      put: '/putpassenger',
      remove: '/deletepassenger',
    },
  ];
  for (const base of bases) {
    test(`${base.create}: create, read, replace, delete`, async () => {
      const made = await service.request('POST', base.create, BRAUND);
      assert.equal(made.status, 201);
      const { uuid, ...rest } = made.json;
      assert.deepEqual(rest, BRAUND);
      assert.match(uuid, /^[0-9a-f]{8}-[0-9a-f]{4}-7/);
      assert.equal(made.headers.get('location'), `/passengers/${uuid}`);
      const read = await service.get(`${base.row}/${uuid.toUpperCase()}`);
      assert.deepEqual([read.status, read.json], [200, made.json]);
      assert.equal(read.headers.get('etag'), made.headers.get('etag'));
      const put = await service.request('PUT', `${base.put}/${uuid}`, { ...BRAUND, age: 23 });
      assert.deepEqual([put.status, put.json], [200, { ...made.json, age: 23 }]);
      assert.equal((await service.request('DELETE', `${base.remove}/${uuid}`)).status, 204);
      assertProblem(await service.get(`${base.row}/${uuid}`), 404, 'PGRST116');
    });
  }

  test('/rest/v1 answers a write with nothing, unless asked', async () => {
    const silent = await service.request('POST', '/rest/v1/passengers', BRAUND);
    assert.deepEqual([silent.status, silent.text], [201, '']);
    const location = silent.headers.get('location') ?? '';
    assert.match(location, /^\/rest\/v1\/passengers\/[0-9a-f-]{36}$/);
    assert.equal((await service.get(location)).status, 200);
    const prefer = { prefer: 'return=representation' };
    const shown = await service.request('POST', '/rest/v1/passengers', BRAUND, prefer);
    assert.deepEqual([shown.status, shown.json.length], [201, 1]);
    assert.equal(shown.headers.get('preference-applied'), 'return=representation');
  });

  const returns: [string, string, number, string][] = [
    ['POST', 'return=minimal', 201, 'nothing'],
    ['POST', 'return=headers-only', 201, 'nothing'],
    ['POST', 'return=representation', 201, 'array'],
    ['PUT', 'return=minimal', 204, 'nothing'],
    ['PUT', 'return=representation', 200, 'object'],
    ['PATCH', 'return=minimal', 204, 'nothing'],
    ['DELETE', 'return=representation', 200, 'object'],
  ];
  for (const [method, prefer, status, shape] of returns) {
    test(`${method} with ${prefer} is ${status} with ${shape}`, async () => {
      const path = method === 'POST' ? '/passengers' : `/passengers/${(await create()).uuid}`;
      const body = method === 'DELETE' ? undefined : BRAUND;
      const reply = await service.request(method, path, body, { prefer });
      assert.equal(reply.status, status);
      const got = reply.text === '' ? 'nothing' : Array.isArray(reply.json) ? 'array' : 'object';
      assert.equal(got, shape);
    });
  }

  test('POST of an array makes all rows in order, or none', async () => {
    const name = unique();
    const rows = [1, 2, 3].map((age) => ({ ...BRAUND, name, age }));
    const made = await service.request('POST', '/passengers', rows);
    assert.deepEqual(
      [made.status, made.json.map(({ age }: { age: number }) => age)],
      [201, [1, 2, 3]],
    );
    const before = await count();
    const refused = await service.request('POST', '/passengers', [...rows, { ...BRAUND, age: -1 }]);
    assertProblem(refused, 422);
    assert.equal(refused.json.errors[0].pointer, '/3/age');
    assert.equal(await count(), before);
  });

  test('POST with a key that is taken is 409', async () => {
    const row = await create();
    assertProblem(await service.request('POST', '/passengers', row), 409, '23505');
    const other = { ...row, age: 99 };
    assertProblem(await service.request('POST', '/passengers', other), 409, '23505');
    assert.deepEqual((await service.get(`/passengers/${row.uuid}`)).json, row);
  });

  test('POST of an array with a taken key makes none of its rows', async () => {
    const [row, name] = [await create(), unique()];
    const rows = [{ ...BRAUND, name }, row, { ...BRAUND, name }];
    assertProblem(await service.request('POST', '/passengers', rows), 409, '23505');
    assert.deepEqual((await service.get(`/passengers?name=eq.${name}`)).json, []);
  });

  test('PUT creates what is not there, with 201 and Location', async () => {
    const uuid = randomUUID();
    const { status, json, headers } = await service.request('PUT', `/passengers/${uuid}`, BRAUND);
    assert.deepEqual([status, json], [201, { uuid, ...BRAUND }]);
    assert.equal(headers.get('location'), `/passengers/${uuid}`);
  });

  for (const type of ['application/json', 'application/merge-patch+json']) {
    test(`PATCH with ${type} sets what it has`, async () => {
      const row = await create();
      const { status, json } = await service.request(
        'PATCH',
        `/passengers/${row.uuid}`,
        { age: 30.5 },
        { 'content-type': type },
      );
      assert.deepEqual([status, json], [200, { ...row, age: 30.5 }]);
    });
  }

  test('PATCH with nothing changes nothing', async () => {
    const row = await create();
    assert.deepEqual((await service.request('PATCH', `/passengers/${row.uuid}`, {})).json, row);
  });

  test('/passengerlist answers the whole table, streamed', async () => {
    const reply = await service.get('/passengerlist');
    assert.equal(reply.headers.get('transfer-encoding'), 'chunked');
    assert.equal(reply.json.length, await count());
  });

  test('a list without limit holds at most MAX_ROWS rows', async () => {
    const small = await startReady({ DATABASE_URL: database.url, MAX_ROWS: '2' });
    await create();
    for (const query of ['', '?limit=100']) {
      const { json, headers } = await small.get(`/passengers${query}`);
      assert.equal(json.length, 2);
      assert.match(headers.get('link') ?? '', /rel="next"/);
    }
    await small.stop();
  });

  describe('CSV in', () => {
    const HEADER =
      'survived,passengerClass,name,sex,age,siblingsOrSpousesAboard,parentsOrChildrenAboard,fare';
    const line = (name: string) => `false,3,${name},male,22,1,0,7.25`;
    const post = (text: string, headers: Record<string, string> = {}) =>
      service.request('POST', '/passengers', text, { 'content-type': 'text/csv', ...headers });

    const headers: [string, string][] = [
      ['its own names', HEADER],
      ['the names of the data set', 'Survived,Pclass,Name,Sex,Age,SibSp,Parch,Fare'],
      [
        'their long forms',
        'Survived,Pclass,Name,Sex,Age,Siblings/Spouses Aboard,Parents/Children Aboard,Fare',
      ],
      ['a byte order mark', `\ufeff${HEADER}`],
      ['quotes', HEADER.replace(/\w+/g, '"$&"')],
    ];
    for (const [name, header] of headers) {
      test(`with a header of ${name} makes the rows`, async () => {
        const own = unique();
        const reply = await post(`${header}\n${line(own)}\n${line(own)}`);
        assert.deepEqual([reply.status, reply.headers.get('content-range')], [201, '*/2']);
        const { json } = await service.get(`/passengers?name=eq.${own}`);
        const [{ uuid, ...row }, ...more] = json;
        assert.deepEqual([row, more.length], [{ ...BRAUND, name: own }, 1]);
        assert.match(uuid, /^[0-9a-f]{8}-[0-9a-f]{4}-7/);
      });
    }

    const rest = `${line('x')}\n`.repeat(3000); // more than is read at once
    for (const [what, text] of [
      ['its header', 'nobody\n'],
      ['its first line', `${HEADER}\nmaybe\n`],
    ]) {
      test(`that is refused for ${what} leaves its connection to the next request`, async () => {
        const agent = new Agent({ keepAlive: true, maxSockets: 1 });
        const options = { method: 'POST', headers: { 'content-type': 'text/csv' }, agent };
        const sent = httpRequest(`${service.url}/passengers`, options).end(text + rest);
        const [response] = await once(sent, 'response');
        assert.equal(response.statusCode, 400);
        response.resume();
        const [signal, ended] = [AbortSignal.timeout(1000), { name: 'AbortError' }]; // idle for 1 s
        await assert.rejects(once(response.socket, 'close', { signal }), ended);
        agent.destroy();
      });
    }

    test('keeps the keys that it has', async () => {
      const uuid = randomUUID();
      assert.equal((await post(`uuid,${HEADER}\n${uuid},${line(unique())}\n`)).status, 201);
      assert.equal((await service.get(`/passengers/${uuid}`)).status, 200);
      const again = await post(`uuid,${HEADER}\n${uuid},${line(unique())}\n`);
      assertProblem(again, 409, '23505');
      assert.match(again.json.message, /^line 2: /);
    });

    test('keeps quotes, commas and line breaks within quotes, with CRLF at the ends', async () => {
      const name = `${unique()}, "the\nsecond" O'Neil`;
      const field = `"${name.replaceAll('"', '""')}"`;
      assert.equal((await post(`${HEADER}\r\n${line(field)}\r\n${line('x')}\r\n`)).status, 201);
      const { json } = await service.get(`/passengers?name=eq.${encodeURIComponent(name)}`);
      assert.equal(json[0].name, name);
    });

    const faulty: [string, string, string, RegExp][] = [
      [
        'a number out of range',
        line('x').replace('22', '151'),
        '22P02',
        /^line 3, column age: age must be a number from 0 to 150$/,
      ],
      ['no number', line('x').replace('22', 'old'), '22P02', /^line 3, column age: invalid input/],
      ['an empty field', line('x').replace('22', ''), '22P02', /^line 3, column age: age must be/],
      ['an empty boolean', line('x').replace('false', ''), '22P02', /^line 3, column survived/],
      [
        'another word',
        line('x').replace('male', 'man'),
        '22P02',
        /^line 3, column sex: sex must be male or female/,
      ],
      ['blanks around a name', line(' x'), '22P02', /^line 3, column name/],
      ['a name that is too long', line('x'.repeat(151)), '22001', /^line 3, column name/],
      ['a field too few', 'false,3', '22P04', /^line 3: missing data/],
      ['a field too many', `${line('x')},1`, '22P04', /^line 3: extra data/],
      ['an open quote', line('"x'), '22P04', /^line \d: unterminated/],
      ['an empty line', `\n${line('x')}`, '22P04', /^line 3: /],
      ['NUL', line('a\0b'), '22021', /^line 3: /],
    ];
    for (const [name, bad, code, message] of faulty) {
      test(`with ${name} is refused by its line, and nothing is stored`, async () => {
        const before = await count();
        const reply = await post(`${HEADER}\n${line('good')}\n${bad}\n`);
        assertProblem(reply, 400, code);
        assert.match(reply.json.message, message);
        assert.equal(await count(), before);
      });
    }

    const badHeaders: [string, string, RegExp][] = [
      ['an unknown column', `${HEADER},extra`, /has "extra"/],
      ['a missing column', HEADER.replace(',fare', ''), /lacks fare/],
      ['a column twice', `${HEADER},fare`, /has fare twice/],
      ['nothing', '', /has ""/],
    ];
    for (const [name, header, message] of badHeaders) {
      test(`whose header has ${name} is 400 with the right one`, async () => {
        const reply = await post(`${header}\n${line('x')}\n`);
        assertProblem(reply, 400, 'PGRST204');
        assert.match(reply.json.message, message);
        assert.match(reply.json.hint, /uuid,survived,passengerClass/);
      });
    }

    test('over CSV_LIMIT is 413, and nothing is stored', async () => {
      const small = await startReady({ DATABASE_URL: database.url, CSV_LIMIT: '1000' });
      const before = await count();
      const text = `${HEADER}\n${`${line('x')}\n`.repeat(100)}`;
      const headers = { 'content-type': 'text/csv' };
      assertProblem(await small.request('POST', '/passengers', text, headers), 413);
      assert.equal(await count(), before);
      await small.stop();
    });

    test('of a table without CHECK is checked all the same', async () => {
      const old = await startDatabase();
      await old.sql`create table titanic (uuid uuid primary key, survived bool, "passengerClass" int,
        name varchar(150), sex varchar(6), age float, "siblingsOrSpousesAboard" int,
        "parentsOrChildrenAboard" int, fare float)`;
      const own = await startReady({ DATABASE_URL: old.url });
      const headers = { 'content-type': 'text/csv' };
      for (const bad of ['151', '', 'NaN']) {
        const text = `${HEADER}\n${line('x').replace('22', bad)}\n`;
        assertProblem(await own.request('POST', '/passengers', text, headers), 400, '22P02');
      }
      assert.equal(
        (await own.request('POST', '/passengers', `${HEADER}\n${line('x')}`, headers)).status,
        201,
      );
      await own.stop();
      await old.stop();
    });
  });

  describe('nulls of another program', () => {
    let old: TestDatabase;
    let own: TestService;
    const ages = [null, 5, null, 1, 3, null];
    before(async () => {
      old = await startDatabase();
      await old.sql`create table titanic (uuid uuid primary key, survived bool, "passengerClass" int,
        name varchar(150), sex varchar(6), age float, "siblingsOrSpousesAboard" int,
        "parentsOrChildrenAboard" int, fare float)`;
      for (const age of ages)
        await old.sql`insert into titanic (uuid, age) values (gen_random_uuid(), ${age})`;
      own = await startReady({ DATABASE_URL: old.url });
    });
    after(async () => {
      await own?.stop();
      await old?.stop();
    });

    const orders: [string, (number | null)[]][] = [
      ['age', [1, 3, 5, null, null, null]],
      ['age.desc', [null, null, null, 5, 3, 1]],
      ['age.nullsfirst', [null, null, null, 1, 3, 5]],
      ['age.desc.nullslast', [5, 3, 1, null, null, null]],
      ['name,age', [1, 3, 5, null, null, null]],
    ];
    for (const [order, expected] of orders) {
      for (const limit of [1, 2, 4]) {
        test(`order=${order} keeps them in place over pages of ${limit}`, async () => {
          const found = [];
          let path: string | undefined = `/passengers?order=${order}&limit=${limit}`;
          while (path) {
            const { json, headers } = await own.get(path);
            found.push(...json.map(({ age }: { age: number | null }) => age));
            path = /^<([^>]+)>/.exec(headers.get('link') ?? '')?.[1];
          }
          assert.deepEqual(found, expected);
        });
      }
    }

    test('CSV shows them as nothing', async () => {
      const { text } = await own.get('/passengers?select=age,name&order=age&limit=4', {
        accept: 'text/csv',
      });
      assert.equal(text, 'age,name\n1,\n3,\n5,\n,\n');
    });
  });

  describe('writes by filter', () => {
    test('PATCH of an array gives each row its own values, in one statement', async () => {
      const rows = [await create({ age: 1 }), await create({ age: 2 })];
      const parts = rows.map(({ uuid }, at) => ({
        uuid,
        age: 10 + at,
        ...(at && { sex: 'female' }),
      }));
      const prefer = { prefer: 'return=representation' };
      const { status, json } = await service.request('PATCH', '/passengers', parts, prefer);
      assert.equal(status, 200);
      assert.deepEqual(json.map(({ age, sex }: typeof BRAUND) => [age, sex]).sort(), [
        [10, 'male'],
        [11, 'female'],
      ]);
    });

    const refused: [string, string, unknown, string][] = [
      ['of an array without a key', '/passengers', [{ age: 1 }], '/0/uuid'],
      ['of the key', `/passengers?uuid=eq.${NOWHERE}`, { uuid: NOWHERE }, '/uuid'],
      [
        'with a fault in the second row',
        '/passengers',
        [{ uuid: NOWHERE }, { uuid: NOWHERE, age: -1 }],
        '/1/age',
      ],
      ['of a scalar in an array', '/passengers', [1], '/0'],
    ];
    for (const [name, path, body, at] of refused) {
      test(`PATCH ${name} is 422 at ${at}`, async () => {
        const reply = await service.request('PATCH', path, body);
        assertProblem(reply, 422);
        assert.equal(reply.json.errors[0].pointer, at);
      });
    }

    test('a write shows no aggregates', async () => {
      const path = `/passengers?uuid=eq.${NOWHERE}&select=count()`;
      assertProblem(await service.request('DELETE', path), 400, 'PGRST100');
    });

    test('an exceeded max-affected and a single-object answer leave the table as it was', async () => {
      const name = unique();
      for (const age of [1, 2]) await create({ name, age });
      const path = `/passengers?name=eq.${name}`;
      const many = await service.request('DELETE', path, undefined, {
        prefer: 'handling=strict, max-affected=1',
      });
      assertProblem(many, 400, 'PGRST124');
      const single = {
        prefer: 'return=representation',
        accept: 'application/vnd.pgrst.object+json',
      };
      assertProblem(await service.request('DELETE', path, undefined, single), 406, 'PGRST116');
      assertProblem(await service.request('PATCH', path, { age: 9 }, single), 406, 'PGRST116');
      assert.equal((await service.get(`${path}&age=lt.3`)).json.length, 2);
    });
  });

  for (const [name, headers, status] of [
    ['an Accept that cannot be met', { prefer: 'return=representation', accept: 'text/html' }, 406],
    ['an unknown preference, strictly', { prefer: 'handling=strict, x=y' }, 400],
  ] as const) {
    test(`PUT, PATCH and DELETE with ${name} write nothing`, async () => {
      const row = await create();
      const path = `/passengers/${row.uuid}`;
      const changed = { ...BRAUND, age: 99 };
      assertProblem(await service.request('PUT', path, changed, headers), status);
      assertProblem(await service.request('PATCH', path, { age: 99 }, headers), status);
      assertProblem(await service.request('DELETE', path, undefined, headers), status);
      assertProblem(await service.request('POST', '/passengers', changed, headers), status);
      assert.deepEqual((await service.get(path)).json, row);
    });
  }

  test('HEAD of the whole list has no body and leaves nothing on stderr', async () => {
    assert.equal((await service.request('HEAD', '/passengerlist')).status, 200);
    assert.equal((await service.get('/passengerlist?limit=1')).status, 200);
    assert.equal(service.stderr(), '');
  });

  test('HEAD with an expectation that cannot be met has no body', async () => {
    const answer = await send('HEAD /hello HTTP/1.1\r\nHost: x\r\nExpect: magic\r\n\r\n');
    assert.match(answer, /^HTTP\/1.1 417 [\s\S]*\r\n\r\n$/);
  });

  describe('streams', () => {
    test('a million rows in and out at little more memory, while others are answered', async (t) => {
      const own = await startDatabase();
      const server = await startReady({ DATABASE_URL: own.url, CSV_LIMIT: String(2 ** 28) });
      const memory = async () => (await memoryOf(server.child.pid))?.own ?? Number.NaN;
      const [header = '', ...lines] = readFileSync(CSV, 'utf8').trim().split(/\r?\n/);
      const total = 1_000_000;
      async function* text() {
        yield `${header}\n`;
        for (let at = 0; at < total; at += 1000) {
          yield `${Array.from({ length: 1000 }, (_, i) => lines[(at + i) % lines.length]).join('\n')}\n`;
        }
      }
      for (let i = 0; i < 200; i += 1) await server.get('/passengers?limit=1');
      const idle = await memory();
      let peak = idle;
      let answered = 0;
      const watch = async (running: Promise<unknown>) => {
        let done = false;
        const end = running.finally(() => {
          done = true;
        });
        while (!done) {
          assert.equal((await server.get('/passengers?limit=1')).status, 200);
          answered += 1;
          peak = Math.max(peak, await memory());
        }
        return end;
      };
      const since = performance.now();
      const body = Readable.toWeb(Readable.from(text())) as ReadableStream;
      const init = {
        method: 'POST',
        headers: { 'content-type': 'text/csv' },
        body,
        duplex: 'half',
      };
      const posted = fetch(`${server.url}/passengers`, init as RequestInit);
      await watch(posted);
      const seconds = (performance.now() - since) / 1000;
      assert.equal((await posted).headers.get('content-range'), `*/${total}`);
      t.diagnostic(`${Math.round(total / seconds)} rows/s in`);
      for (const [accept, path] of [
        ['application/json', '/passengerlist'],
        ['text/csv', '/passengers'],
        ['application/x-ndjson', '/passengers'],
      ] as const) {
        const from = performance.now();
        let breaks = 0;
        const reading = fetch(server.url + path, { headers: { accept } }).then(async ({ body }) => {
          const mark = accept === 'application/json' ? 123 : 10; // an object's brace, or a line's end
          for await (const chunk of body ?? [])
            for (const byte of chunk) if (byte === mark) breaks += 1;
        });
        await watch(reading);
        assert.equal(breaks, total + Number(accept === 'text/csv'));
        t.diagnostic(
          `${Math.round((total / (performance.now() - from)) * 1000)} rows/s out as ${accept}`,
        );
      }
      t.diagnostic(`${answered} answers meanwhile`);
      if (Number.isNaN(peak)) t.diagnostic('memory is not looked at: there is no /proc to tell it');
      else {
        const more = peak - idle; // however many rows, of which JSON has 210 MB
        t.diagnostic(`${more.toFixed()} MB more than the ${idle.toFixed()} MB before`);
        assert.ok(more < 120, `${more.toFixed()} MB`);
      }
      await server.stop();
      await own.stop();
    });
  });

  describe('preconditions', () => {
    const stale = '"1"';
    test('If-None-Match of the same version is 304 without a body', async () => {
      const { uuid } = await create();
      const { headers } = await service.get(`/passengers/${uuid}`);
      const etag = headers.get('etag') ?? '';
      for (const tags of [etag, `W/${etag}`, `${stale}, ${etag}`, '*']) {
        const reply = await service.get(`/passengers/${uuid}`, { 'if-none-match': tags });
        assert.deepEqual([reply.status, reply.text, reply.headers.get('etag')], [304, '', etag]);
      }
      assert.equal(
        (await service.get(`/passengers/${uuid}`, { 'if-none-match': stale })).status,
        200,
      );
    });

    for (const method of ['PUT', 'PATCH', 'DELETE']) {
      test(`${method} with If-Match changes that version alone`, async () => {
        const row = await create();
        const path = `/passengers/${row.uuid}`;
        const body = method === 'DELETE' ? undefined : { ...BRAUND, age: 40 };
        const etag = (await service.get(path)).headers.get('etag') ?? '';
        for (const tags of [stale, `W/${etag}`, '"x"', '']) {
          assertProblem(await service.request(method, path, body, { 'if-match': tags }), 412);
          assert.deepEqual((await service.get(path)).json, row);
        }
        const reply = await service.request(method, path, body, {
          'if-match': `${stale}, ${etag}`,
        });
        assert.equal(reply.status, method === 'DELETE' ? 204 : 200);
        const gone = await service.request(method, path, body, { 'if-match': etag });
        assertProblem(gone, method === 'DELETE' ? 404 : 412);
      });

      test(`${method} with If-Match: * wants a row to be there`, async () => {
        const { uuid } = await create();
        const body = method === 'DELETE' ? undefined : BRAUND;
        const any = { 'if-match': '*' };
        assert.ok((await service.request(method, `/passengers/${uuid}`, body, any)).status < 300);
        const nowhere = await service.request(method, `/passengers/${NOWHERE}`, body, any);
        assertProblem(nowhere, method === 'PUT' ? 412 : 404);
      });
    }

    test('the version after a write is the next ETag', async () => {
      const { uuid } = await create();
      const put = await service.request('PUT', `/passengers/${uuid}`, BRAUND);
      const { headers } = await service.get(`/passengers/${uuid}`);
      assert.equal(put.headers.get('etag'), headers.get('etag'));
    });

    test('PUT with If-None-Match: * creates only', async () => {
      const uuid = randomUUID();
      const only = { 'if-none-match': '*' };
      assert.equal((await service.request('PUT', `/passengers/${uuid}`, BRAUND, only)).status, 201);
      const again = await service.request(
        'PUT',
        `/passengers/${uuid}`,
        { ...BRAUND, age: 1 },
        only,
      );
      assertProblem(again, 412);
      assert.equal((await service.get(`/passengers/${uuid}`)).json.age, 22);
    });

    test('of 20 writers with one ETag one wins', async () => {
      const { uuid } = await create();
      const { headers } = await service.get(`/passengers/${uuid}`);
      const match = { 'if-match': headers.get('etag') ?? '' };
      const writes = Array.from({ length: 20 }, (_, age) =>
        service.request('PATCH', `/passengers/${uuid}`, { age }, match),
      );
      const statuses = (await Promise.all(writes)).map(({ status }) => status);
      assert.deepEqual(statuses.sort(), [200, ...Array(19).fill(412)]);
    });
  });

  describe('Idempotency-Key', () => {
    test('a repetition gets the same 201 and makes no second row', async () => {
      const name = unique();
      const key = { 'idempotency-key': `order ${name} "é"`.replace('é', 'e') };
      const first = await service.request('POST', '/passengers', { ...BRAUND, name }, key);
      const second = await service.request('POST', '/passengers', { ...BRAUND, name }, key);
      assert.deepEqual([first.status, second.status, second.json], [201, 201, first.json]);
      assert.equal(first.headers.get('idempotent-replayed'), null);
      assert.equal(second.headers.get('idempotent-replayed'), 'true');
      assert.equal(second.headers.get('location'), first.headers.get('location'));
      assert.equal((await service.get(`/passengers?name=eq.${name}`)).json.length, 1);
    });

    test('with other content it is 409', async () => {
      const key = { 'idempotency-key': unique() };
      await service.request('POST', '/passengers', BRAUND, key);
      const other = await service.request('POST', '/passengers', { ...BRAUND, age: 1 }, key);
      assertProblem(other, 409);
    });

    test('30 at once make one row', async () => {
      const name = unique();
      const posts = Array.from({ length: 30 }, () =>
        service.request('POST', '/passengers', { ...BRAUND, name }, { 'idempotency-key': name }),
      );
      const replies = await Promise.all(posts);
      assert.deepEqual([...new Set(replies.map(({ status }) => status))], [201]);
      assert.equal(new Set(replies.map(({ json }) => json.uuid)).size, 1);
      assert.equal((await service.get(`/passengers?name=eq.${name}`)).json.length, 1);
    });

    for (const key of ['', 'x'.repeat(256)]) {
      test(`of ${key.length} characters it is 400`, async () => {
        assertProblem(
          await service.request('POST', '/passengers', BRAUND, { 'idempotency-key': key }),
          400,
        );
      });
    }
  });

  describe('bad bodies change nothing', () => {
    const { name: _, ...nameless } = BRAUND;
    const pointers: [string, unknown, string[]][] = [
      ['null', null, ['']],
      ['a string', '"x"', ['']],
      ['a number', 1, ['']],
      ['a missing field', nameless, ['/name']],
      ['an unknown field', { ...BRAUND, extra: 1 }, ['/extra']],
      ['__proto__', `{"__proto__":{"age":1},${JSON.stringify(BRAUND).slice(1)}`, ['/__proto__']],
      ['constructor', { ...BRAUND, constructor: 1 }, ['/constructor']],
      ['a field with a slash', { ...BRAUND, 'a/b~c': 1 }, ['/a~1b~0c']],
      ['a string for a boolean', { ...BRAUND, survived: 'true' }, ['/survived']],
      ['a string for a number', { ...BRAUND, age: '22' }, ['/age']],
      ['null for a value', { ...BRAUND, fare: null }, ['/fare']],
      ['NUL', { ...BRAUND, name: 'a\0b' }, ['/name']],
      [
        'a lone surrogate',
        `{"x":0,${JSON.stringify(BRAUND).slice(1)}`.replace('"x":0,', '').replace('Mr.', '\\ud800'),
        ['/name'],
      ],
      ['151 code points', { ...BRAUND, name: '🚢'.repeat(151) }, ['/name']],
      ['blanks only', { ...BRAUND, name: ' \t\u00a0' }, ['/name']],
      ['age -1', { ...BRAUND, age: -1 }, ['/age']],
      ['age 151', { ...BRAUND, age: 151 }, ['/age']],
      ['age 1e400', JSON.stringify(BRAUND).replace('22', '1e400'), ['/age']],
      [
        '2147483648 in an integer',
        { ...BRAUND, siblingsOrSpousesAboard: 2147483648 },
        ['/siblingsOrSpousesAboard'],
      ],
      ['1.5 in an integer', { ...BRAUND, passengerClass: 1.5 }, ['/passengerClass']],
      ['a key that is none', { ...BRAUND, uuid: 'abc' }, ['/uuid']],
      ['three faults', { ...BRAUND, age: -1, sex: 'x', more: 1 }, ['/sex', '/age', '/more']],
      ['nothing', {}, Object.keys(BRAUND).map((name) => `/${name}`)],
    ];
    for (const [name, body, expected] of pointers) {
      test(`${name} is 422 at ${expected}`, async () => {
        const before = await count();
        const reply = await service.request('POST', '/passengers', body);
        assertProblem(reply, 422);
        assert.deepEqual(
          reply.json.errors.map((fault: { pointer: string }) => fault.pointer),
          expected,
        );
        assert.equal(await count(), before);
      });
    }

    test('an unknown field has the code that PostgREST clients expect', async () => {
      const reply = await service.request('POST', '/passengers', { ...BRAUND, extra: 1 });
      assertProblem(reply, 422, 'PGRST204');
    });

    test('a fault says what would be right', async () => {
      const { json } = await service.request('POST', '/passengers', {
        ...nameless,
        passengerClass: 4,
      });
      assert.deepEqual(json.errors, [
        { pointer: '/passengerClass', detail: 'must be a whole number from 1 to 3' },
        {
          pointer: '/name',
          detail: 'is missing; it must be text of 1 to 150 characters besides blanks around it',
        },
      ]);
    });

    test('blanks around a name are removed', async () => {
      assert.equal((await create({ name: ' \u00a0Anna\n' })).name, 'Anna');
    });

    const types: [string, Record<string, string>, number][] = [
      ['text/plain', { 'content-type': 'text/plain' }, 415],
      ['application/jsonx', { 'content-type': 'application/jsonx' }, 415],
      ['gzip', { 'content-encoding': 'gzip' }, 415],
      ['JSON with a charset', { 'content-type': 'application/json; charset=utf-8' }, 201],
      ['identity', { 'content-encoding': 'identity' }, 201],
    ];
    for (const [name, headers, status] of types) {
      test(`a body as ${name} is ${status}`, async () => {
        const reply = await service.request('POST', '/passengers', BRAUND, headers);
        if (status === 415) assertProblem(reply, 415);
        else assert.equal(reply.status, status, reply.text);
      });
    }

    const bodies: [string, string | Buffer, number][] = [
      ['no JSON', '{', 400],
      ['an empty body', '', 400],
      ['two values', '{}{}', 400],
      ['NaN', '{"age":NaN}', 400],
      ['invalid UTF-8', Buffer.from([0x22, 0xff, 0x22]), 400],
      ['32 000 nested arrays', '['.repeat(32_000), 400],
      ['32 000 nested arrays, closed', '['.repeat(32_000) + ']'.repeat(32_000), 422],
    ];
    for (const [name, body, status] of bodies) {
      test(`${name} is ${status}`, async () => {
        const { port } = new URL(service.url);
        const headers = {
          'content-type': 'application/json',
          'content-length': Buffer.byteLength(body),
        };
        const request = httpRequest({ port, method: 'POST', path: '/passengers', headers });
        const answer: Promise<[number, string]> = new Promise((resolve) => {
          request.on('response', async (response) => {
            resolve([response.statusCode ?? 0, (await response.toArray()).join('')]);
          });
        });
        request.end(body);
        const [got, text] = await answer;
        assert.equal(got, status, text.slice(0, 500));
        assert.equal(JSON.parse(text).status, status);
      });
    }

    test('no Content-Type is 415', async () => {
      const answer = await send(
        'POST /passengers HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}',
      );
      assert.match(answer, /^HTTP\/1.1 415 /);
    });

    const large = JSON.stringify({ ...BRAUND, name: 'x'.repeat(2 ** 20) });
    test('a body over the limit is 413, by its length', async () => {
      assertProblem(await service.request('POST', '/passengers', large), 413);
    });

    test('a body over the limit is 413, chunked', async () => {
      const head =
        'POST /passengers HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n';
      const chunk = `${large.length.toString(16)}\r\n${large}\r\n0\r\n\r\n`;
      assert.match(
        await send(`${head}Transfer-Encoding: chunked\r\n\r\n${chunk}`),
        /^HTTP\/1.1 413 /,
      );
    });

    test('a body of another row than the path is 422', async () => {
      const { uuid } = await create();
      for (const method of ['PUT', 'PATCH']) {
        const reply = await service.request(method, `/passengers/${uuid}`, {
          ...BRAUND,
          uuid: NOWHERE,
        });
        assertProblem(reply, 422);
        assert.equal(reply.json.errors[0].pointer, '/uuid');
      }
    });
  });
});

// --- Ops ------------------------------------------------------------------------

describe('Ops', () => {
  test('GET /healthz and /readyz are 200', async () => {
    assert.equal((await service.get('/healthz')).json.status, 'alive');
    assert.equal((await service.get('/readyz')).json.status, 'ready');
  });

  test('GET /metrics counts requests by route pattern, never by path', async () => {
    const { uuid } = await create();
    await service.get(`/passengers/${uuid}`);
    await service.get('/nope/nope');
    const { text, headers } = await service.get('/metrics');
    assert.match(headers.get('content-type') ?? '', /^text\/plain/);
    assert.match(
      text,
      /http_request_duration_seconds_count\{method="GET",route="\/passengers\/:key",status="200"\} \d+/,
    );
    assert.match(text, /route="unmatched",status="404"/);
    assert.doesNotMatch(text, new RegExp(`${uuid}|/nope`));
    for (const name of [
      'db_statements_in_flight',
      'db_statements_waiting',
      'build_info{',
      'process_cpu_seconds_total',
    ]) {
      assert.ok(text.includes(`\n${name}`), name);
    }
  });

  test('the log has one JSON line an event, nothing on stderr', () => {
    assert.ok(service.log.every(({ level, msg }) => level && msg));
    assert.equal(service.stderr(), '');
  });
});

// --- Start ----------------------------------------------------------------------

describe('Start', () => {
  test('serves the database of python-crud-api as it is, without DDL', async (t) => {
    const old = await startDatabase();
    const made = await old.sql`create extension if not exists "uuid-ossp"`.then(
      () => true,
      () => false,
    );
    t.diagnostic(
      made ? 'with uuid-ossp' : 'uuid-ossp is not installed here: gen_random_uuid() stands in',
    );
    await old.sql.unsafe(`create table titanic(
      uuid uuid default ${made ? 'uuid_generate_v4()' : 'gen_random_uuid()'} primary key, survived bool,
      "passengerClass" int, Name varchar(150), sex varchar(6), age float,
      "siblingsOrSpousesAboard" int, "parentsOrChildrenAboard" int, fare float)`);
    await old.sql`insert into titanic (name) values ('half known')`;
    await old.sql.unsafe(`create role reader login password 'reader';
      grant select, insert, update, delete on titanic to reader; revoke create on schema public from public`);
    const url = new URL(old.url);
    [url.username, url.password] = ['reader', 'reader'];
    const own = await startReady({ DATABASE_URL: url.href });
    const [half] = (await own.get('/passengerlist')).json;
    assert.equal(half.name, 'half known');
    assert.deepEqual(Object.keys(half), COLUMNS);
    assert.equal(half.age, null);
    const { json } = await own.request('POST', '/postpassenger', BRAUND);
    assert.equal((await own.request('PUT', `/putpassenger/${json.uuid}`, BRAUND)).status, 200);
    assert.equal((await own.request('DELETE', `/deletepassenger/${json.uuid}`)).status, 204);
    await own.stop();
    await old.sql`drop owned by reader`;
    await old.sql`drop role reader`;
    await old.stop();
  });

  test(`every row of ${CSV.pathname.split('/').at(-1)} goes in by the old route and comes back by both`, async (t) => {
    const own = await startDatabase();
    const server = await startReady({ DATABASE_URL: own.url });
    const [, ...lines] = readFileSync(CSV, 'utf8').trim().split(/\r?\n/);
    const expected = new Map<string, object>();
    for (const line of lines) {
      const [survived, pclass, name, sex, age, siblings, parents, fare] = line.split(',');
      const row = {
        survived: survived === '1',
        passengerClass: Number(pclass),
        name: name?.trim(),
        sex,
        age: Number(age),
        siblingsOrSpousesAboard: Number(siblings),
        parentsOrChildrenAboard: Number(parents),
        fare: Number(fare),
      };
      const { status, json } = await server.request('POST', '/postpassenger', row);
      assert.equal(status, 201);
      expected.set(json.uuid, { uuid: json.uuid, ...row });
    }
    const whole = [...expected.values()];
    assert.deepEqual((await server.get('/passengerlist')).json, whole);
    assert.deepEqual((await server.get('/passengers')).json, whole);
    for (const [uuid, row] of expected) {
      assert.deepEqual((await server.get(`/getpassenger/${uuid}`)).json, row);
      assert.deepEqual((await server.get(`/passengers/${uuid}`)).json, row);
    }
    t.diagnostic(`${whole.length} rows`);
    await server.stop();
    await own.stop();
  });

  test('what the role may not do is 403, what nobody foresaw is 500 and tells nothing', async () => {
    const other = await startDatabase();
    const own = await startReady({ DATABASE_URL: other.url });
    await other.sql.unsafe(
      `create role lesser login password 'lesser'; grant select on titanic to lesser`,
    );
    const url = new URL(other.url);
    [url.username, url.password] = ['lesser', 'lesser'];
    const less = await startReady({ DATABASE_URL: url.href });
    assert.equal((await less.get('/passengers')).status, 200);
    assertProblem(await less.request('POST', '/passengers', BRAUND), 403, '42501');
    await less.stop();
    await other.sql.unsafe('drop owned by lesser; drop role lesser; drop table titanic');
    const reply = await own.get(`/passengers/${NOWHERE}`);
    assertProblem(reply, 500, 'XX000');
    assert.doesNotMatch(reply.text, /titanic|select|relation/);
    const id = reply.headers.get('x-request-id');
    await until(() => own.log.some((line) => line.id === id && line.code === '42P01'));
    await own.stop();
    await other.stop();
  });

  test('works behind a pooler: DB_PREPARE=false prepares nothing and sets no limits', async () => {
    const own = await startReady({ DATABASE_URL: database.url, DB_PREPARE: 'false' });
    const { json } = await own.request('POST', '/passengers', BRAUND);
    assert.deepEqual((await own.get(`/passengers/${json.uuid}`)).json, json);
    assert.equal((await own.get('/passengers?survived=eq.true&limit=1')).status, 200);
    await own.stop();
  });

  test("takes libpq's variables for a DATABASE_URL, and listens on IPv6", async () => {
    const { hostname, port, username, password, pathname } = new URL(database.url);
    const own = await startReady({
      PGHOST: hostname,
      PGPORT: port,
      PGUSER: username,
      PGPASSWORD: decodeURIComponent(password),
      PGDATABASE: pathname.slice(1),
      HOST: '::1',
    });
    assert.match(own.url, /^http:\/\/\[::1\]:\d+$/);
    assert.equal((await own.get('/passengers?limit=1')).status, 200);
    await own.stop();
  });

  test('workers share the port, and /metrics sums over them', async () => {
    const own = await startReady({ DATABASE_URL: database.url, WEB_CONCURRENCY: '2' });
    await until(() => own.log.filter(({ msg }) => msg === 'listening').length === 2);
    for (let i = 0; i < 20; i += 1) await own.get('/zero', { connection: 'close' });
    const { text } = await own.get('/metrics');
    assert.match(
      text,
      /http_request_duration_seconds_count\{method="GET",route="\/zero",status="200"\} 20/,
    );
    assert.equal(await own.stop(), 0);
  });

  test('is ready within 1 s of start with the database up, and small when idle', async (t) => {
    const started = performance.now();
    const own = await startReady({ DATABASE_URL: database.url });
    const ms = performance.now() - started;
    t.diagnostic(`ready after ${ms.toFixed(0)} ms`);
    const memory = await memoryOf(own.child.pid);
    t.diagnostic(memory ? `${memory.resident.toFixed()} MB resident` : 'no /proc, no memory told');
    await own.stop();
  });
});

// --- Repository -----------------------------------------------------------------

describe('Repository', () => {
  const read = (name: string) => readFileSync(new URL(name, import.meta.url), 'utf8');
  const [source, readme, ownTests] = ['app.ts', 'README.md', 'app.test.ts'].map(read) as [
    string,
    string,
    string,
  ];
  const banners = (text: string) =>
    [...text.matchAll(/^\/\/ --- (\w+) -+$/gm)].map(([, word]) => word);

  test('README has each variable of Config with its default, and no other', () => {
    const rows = [...readme.matchAll(/^\| `([A-Z_]+)` \| (.*?) \|/gm)];
    const told = new Map(rows.map(([, name = '', initial]) => [name, initial]));
    const defaults: Record<string, unknown> = readConfig({});
    const hidden = ['NODE_ENV', 'PGHOST'];
    assert.deepEqual(
      [...told.keys()].sort(),
      Object.keys(Config.shape)
        .filter((name) => !hidden.includes(name))
        .sort(),
    );
    for (const [name, initial] of told) {
      const value = name === 'APP_VERSION' ? undefined : defaults[name];
      const empty =
        value === undefined || value === '' || (Array.isArray(value) && value.length === 0);
      if (!empty) assert.equal(initial, `\`${value}\``, name);
    }
  });

  test('README names each route', () => {
    const { list, create, read, replace, remove } = passengers.legacy ?? assert.fail();
    for (const route of [
      '/hello',
      '/zero',
      '/passengers',
      '/rest/v1/passengers',
      '/healthz',
      '/readyz',
      '/metrics',
      list,
      create,
      read,
      replace,
      remove,
    ]) {
      assert.ok(readme.includes(`\`${route}`) || readme.includes(`${route}`), route);
    }
  });

  test('the banners of this file follow those of app.ts', () => {
    const own = banners(ownTests).filter((word) => word !== 'Repository');
    assert.deepEqual(
      own,
      banners(source).filter((word) => own.includes(word)),
    );
    assert.equal(banners(ownTests).at(-1), 'Repository');
  });

  test('passenger stands in the declaration and nowhere below', () => {
    const end = source.indexOf('});', source.indexOf('export const passengers'));
    const lines = source.slice(end).replace('main(passengers, ', '').split('\n');
    assert.deepEqual(
      lines.filter((line) => /passenger|titanic/i.test(line)),
      [],
    );
  });

  test('process.env is read in one place', () => {
    assert.equal(source.match(/process\.env/g)?.length, 1);
  });

  test('nothing happens on import', () => {
    const script = `await import(${JSON.stringify(new URL('app.ts', import.meta.url).href)}); console.log(process.getActiveResourcesInfo().filter((one) => !/Pipe|TTY|File/.test(one)).length)`;
    const { stdout } = spawnSync(
      process.execPath,
      [...nodeArguments, '--input-type=module', '-e', script],
      { encoding: 'utf8', env: { PATH: process.env.PATH } },
    );
    assert.equal(stdout.trim(), '0');
  });

  test('package-lock.json names no registry', () => {
    assert.doesNotMatch(read('package-lock.json'), /"resolved"/);
  });
});
