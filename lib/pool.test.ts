/** What needs a database; test/promises.test.ts has the faults: deadlines, retries, the limit. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { after, describe, test } from 'node:test';
import { pino } from 'pino';
import { openDatabase, until } from '../test/harness.ts';
import { ownCall, Pool } from './pool.ts';
import { sql } from './sql.ts';

const database = await openDatabase();
const open = (DB_PREPARE: 'true' | 'false' = 'true', DATABASE_URL = database.url) =>
  new Pool({ DATABASE_URL, POOL_SIZE: 1, STREAMS: 2, DB_PREPARE }, pino({ level: 'silent' }));
const pool = open();
after(() => pool.end());

const NUMBERS = sql`select n::text as n from generate_series(1, ${1000}::int) n`;

describe('json()', () => {
  test('answers rows as parsed JSON, numbers as numbers', async () => {
    const rows = await pool.json(
      sql`select 1.5::float as number, 2 as count, null as nothing, ${"it's"}::text as text,
        true as good, array[1, 2] as list, '{"a": [1]}'::jsonb as json`,
    );
    const values = { number: 1.5, count: 2, nothing: null, text: "it's", good: true };
    assert.deepEqual(rows, [{ ...values, list: [1, 2], json: { a: [1] } }]);
  });

  test('rejects with the error of PostgreSQL, and adds its time to the call', async () => {
    const call = ownCall();
    await assert.rejects(pool.json(sql`select 1 / ${0}::int as a`, call), { code: '22012' });
    assert.ok(call.ms > 0);
    assert.equal(pool.counts.inFlight, 0);
  });
});

test('run() answers all rows after a statement that failed between its rows', async () => {
  const failing = sql`select 1 / (3 - n) as n from generate_series(${1}::int, 5) n`;
  const next = sql`select n::text as n from generate_series(${1}::int, 2) n`;
  await assert.rejects(pool.run('read', ownCall(), failing), { code: '22012' });
  const rows = await pool.run('read', ownCall(), next);
  assert.deepEqual([...rows], [['1'], ['2']]);
  assert.equal(rows.count, 2);
});

test('of several hosts the primary is used, for streams too', async () => {
  const { port } = new URL(database.url);
  const own = open('true', database.url.replace(`:${port}/`, `:1,127.0.0.1:${port}/`));
  await until(() => own.state === 'up');
  for await (const batch of own.stream(ownCall(), NUMBERS)) assert.equal(batch.length, 200);
  assert.equal(own.readOnly, false);
  await own.end();
});

test('readOnly follows default_transaction_read_only', async () => {
  const own = open('true', `${database.url}?default_transaction_read_only=on`);
  await own.json(sql`select 1 as a`);
  assert.equal(own.readOnly, true);
  await own.end();
});

test('of several hosts without a primary none is dialled again without a pause', async () => {
  let dials = 0;
  const closed = createServer((socket) => {
    dials += 1;
    socket.resetAndDestroy();
  }).listen(0, '127.0.0.1');
  await once(closed, 'listening');
  const host = `127.0.0.1:${(closed.address() as AddressInfo).port}`;
  const own = open('true', `postgres://${host},${host}/none`);
  await until(() => dials === 2);
  await assert.rejects(own.json(sql`select 1 as a`), { status: 503 });
  assert.ok(dials <= 3, `${dials} dials`);
  await own.end();
  closed.close();
});

describe('stream()', () => {
  test('yields all rows in batches of 200', async () => {
    const sizes: number[] = [];
    let next = 1;
    for await (const batch of pool.stream(ownCall(), NUMBERS)) {
      sizes.push(batch.length);
      for (const [n] of batch) assert.equal(Number(n), next++);
      assert.equal(pool.streams.size, 1);
    }
    assert.deepEqual(sizes, [200, 200, 200, 200, 200]);
    assert.equal(pool.streams.size, 0);
  });

  test('rejects after the batches before an error', async () => {
    const batches = pool.stream(
      ownCall(),
      sql`select 1 / (500 - n) as n from generate_series(1, 1000) n`,
    );
    for (const _ of [1, 2]) assert.equal((await batches.next()).value?.length, 200);
    await assert.rejects(batches.next(), { code: '22012' });
    assert.equal(pool.streams.size, 0);
  });

  test('gives its connection back when its reader stops', async () => {
    for await (const _ of pool.stream(ownCall(), NUMBERS)) break;
    assert.equal(pool.streams.size, 0);
  });
});

const sessions: [prepare: 'true' | 'false', prepared: boolean, timeout: string, lock: string][] = [
  ['true', true, '3s', '1s'],
  ['false', false, '0', '0'],
];
for (const [prepare, prepared, timeout, lock] of sessions) {
  test(`DB_PREPARE=${prepare}: statements ${prepared ? '' : 'not '}prepared, statement_timeout ${timeout}`, async () => {
    const own = open(prepare);
    await own.json(sql`select 1 as a`);
    const [session] = await own.json(sql`select current_setting('lock_timeout') as lock,
      current_setting('statement_timeout') as timeout,
      exists (select from pg_prepared_statements) as prepared`);
    assert.deepEqual(session, { lock, timeout, prepared });
    await own.end();
  });
}

/** A pool, and the lines of its log without what every line has. */
function openLogged(url: string) {
  const lines: Record<string, unknown>[] = [];
  const write = (text: string) => {
    const { level, pid, hostname, ...line } = JSON.parse(text);
    lines.push(line);
  };
  const options = { DATABASE_URL: url, POOL_SIZE: 1, STREAMS: 1, DB_PREPARE: 'true' } as const;
  return { own: new Pool(options, pino({}, { write })), lines };
}

/** What PostgreSQL's protocol sends as an error. */
const REFUSAL = 'SFATAL\0C08P01\0Munsupported startup parameter: lock_timeout\0\0';
const packet = Buffer.from(`E\0\0\0${String.fromCharCode(REFUSAL.length + 4)}${REFUSAL}`);
const HINT = 'Behind a pooler set DB_PREPARE=false.';
const refusals: [how: string, act: (socket: Socket) => void, code: string, hint?: string][] = [
  ['closes each connection at once', (socket) => socket.end(), 'CONNECTION_CLOSED'],
  [
    'refuses session parameters, as pgbouncer does',
    (socket) => socket.once('data', () => socket.end(packet)),
    '08P01',
    HINT,
  ],
];
for (const [how, act, code, hint] of refusals) {
  test(`a server that ${how} is down at once, and dialled in no storm`, async (t) => {
    let dialled = 0;
    const server = createServer((socket) => {
      dialled += 1;
      act(socket.on('error', () => {}).resume());
    });
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const { port } = server.address() as AddressInfo;
    const { own, lines } = openLogged(`postgres://x:x@127.0.0.1:${port}/x`);
    t.after(() => Promise.all([own.end(), server.close()]));
    await assert.rejects(own.run('read', ownCall(), sql`select 1`), { status: 503 });
    await until(() => own.state === 'down', 1000);
    const [line = {}] = lines;
    assert.deepEqual([line.code, line.hint], [code, hint]);
    await until(() => dialled > 8);
    assert.ok(Date.now() - Number(line.time) > 200, `${dialled} times`);
    assert.equal(lines.length, 1);
  });
}

const failures: [why: string, change: Record<string, string>, code: string, error: string][] = [
  ['a password', { password: 'wrong' }, '28P01', 'password authentication failed for user'],
  ['an absent database', { pathname: 'absent' }, '3D000', 'database "absent" does not exist'],
  ['an unknown host', { hostname: 'a.invalid' }, 'ENOTFOUND', 'getaddrinfo ENOTFOUND a.invalid'],
];
for (const [why, change, code, error] of failures) {
  test(`"database down" names ${why}, and where it was`, async () => {
    const url = Object.assign(new URL(database.url), change);
    const { own, lines } = openLogged(url.href);
    await until(() => lines.length > 0);
    await own.end();
    const { time, error: found, ...line } = lines[0] ?? {};
    const place = { host: url.hostname, port: url.port, role: url.username };
    const expected = { ...place, database: url.pathname.slice(1), code, msg: 'database down' };
    assert.deepEqual(line, expected);
    assert.ok(String(found).startsWith(error));
  });
}
