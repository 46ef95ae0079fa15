/** Who could get in or spoil something, and that it fails: what .github/SECURITY.md names. */
import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  fill,
  SQL,
  startDatabase,
  startReady,
  startService,
  streamsOf,
  type TestDatabase,
  type TestService,
  until,
} from './harness.ts';

const ROW = {
  survived: true,
  passengerClass: 2,
  name: 'Master. Michel M Navratil',
  sex: 'male',
  age: 3,
  siblingsOrSpousesAboard: 1,
  parentsOrChildrenAboard: 1,
  fare: 26,
};
const SECRET = 'a-secret-that-nobody-is-to-read-anywhere';

let database: TestDatabase;
let service: TestService;

before(async () => {
  database = await startDatabase();
  service = await startReady({ DATABASE_URL: database.url, LOG_LEVEL: 'trace', POOL_SIZE: '1' });
});

after(async () => {
  await service?.stop();
  await database?.stop();
});

/** The bytes of an answer, whole, for what no client would send. */
function send(bytes: string): Promise<string> {
  return new Promise((resolve, reject) => {
    let answer = '';
    const socket = connect(Number(new URL(service.url).port), '127.0.0.1');
    socket.on('data', (data) => {
      answer += data;
    });
    socket.on('close', () => resolve(answer)).on('error', reject);
    socket.write(Buffer.from(bytes, 'latin1'));
  });
}

function lines(...all: string[]): string {
  return `${all.join('\r\n')}\r\n\r\n`;
}

// --- Secrets --------------------------------------------------------------------

/** A service that tells what it should not, in the place given. */
async function startTeller(t: TestContext, what: string, where: string): Promise<TestService> {
  const directory = await mkdtemp(join(tmpdir(), 'passengers teller-'));
  t.after(() => rm(directory, { recursive: true }));
  const file = join(directory, 'entry.mts');
  await writeFile(
    file,
    `import { createServer } from 'node:http';
    const what = ${what};
    const server = createServer((_, response) => response.end(${where === 'body' ? 'what' : "''"}));
    server.listen(0, '127.0.0.1', () => {
      const url = 'http://127.0.0.1:' + server.address().port;
      console.log(JSON.stringify({ level: 'info', msg: 'listening', url }));
      ${where === 'stdout' ? "console.log(JSON.stringify({ level: 'info', msg: what }));" : ''}
      ${where === 'stderr' ? 'console.error(what);' : ''}
    });`,
  );
  const DATABASE_URL = 'postgres://somebody:p%40ssw0rd-of-it@127.0.0.1/nothing';
  return startService({ DATABASE_URL, JWT_SECRET: `${SECRET},${SECRET}-2` }, { file });
}

describe('Secrets: what any service of these tests tells is searched, and', {
  concurrency: 4,
}, () => {
  for (const [name, what, where, told] of [
    ['a secret', 'process.env.JWT_SECRET.split(",")[0]', 'stdout', /a JWT_SECRET in stdout/],
    ['a secret', 'process.env.JWT_SECRET.split(",")[0]', 'stderr', /a JWT_SECRET in stderr/],
    ['the second', 'process.env.JWT_SECRET.split(",")[1]', 'body', /a JWT_SECRET in the answer/],
    ['the password', 'decodeURIComponent("p%40ssw0rd-of-it")', 'stderr', /the password/],
    ['an address', 'process.env.DATABASE_URL', 'stdout', /the password/],
    ['SQL', '"select string_agg(row_to_json(t)::text)"', 'body', /SQL/],
    ['a token', '"Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJtZSJ9.x"', 'stdout', /a token/],
  ] as const) {
    test(`${name} in ${where} is found`, async (t) => {
      const teller = await startTeller(t, what, where);
      await teller.get('/');
      await until(() => teller.log.length > 1 || where !== 'stdout');
      await until(() => teller.stderr() !== '' || where !== 'stderr');
      await assert.rejects(teller.stop(), told);
    });
  }

  test('the SQL that is searched for is in every statement that the service sends', async () => {
    const { json: row } = await service.request('POST', '/passengers', ROW);
    const one = `/passengers/${row.uuid}`;
    for (const [method, path, body] of [
      ['GET', '/passengers?age=gt.1&order=name&limit=2', undefined],
      ['GET', one, undefined],
      ['POST', '/passengers', ROW],
      ['PUT', one, ROW],
      ['PATCH', one, { age: 4 }],
      ['PATCH', `/passengers?uuid=eq.${row.uuid}`, { age: 5 }],
      ['DELETE', `/passengers?uuid=eq.${row.uuid}`, undefined],
    ] as const) {
      const { status } = await service.request(method, path, body);
      assert.ok(status < 300, `${method} ${path}: ${status}`);
      const [last] = await database.sql`
        select query from pg_stat_activity
        where datname = current_database() and pid <> pg_backend_pid() and query ilike '%titanic%'`;
      assert.match(last?.query ?? '', SQL, `${method} ${path}`);
    }
  });

  test('an error of each kind tells neither SQL nor where the database is', async () => {
    const { hostname, port, pathname } = new URL(database.url);
    for (const path of [
      '/passengers?age=eq.x',
      '/passengers?name=match.(',
      '/passengers?select=name::uuid',
      "/passengers?name=like.%25'%20or%201=1%20--",
      '/passengers?order=1;drop%20table%20titanic',
      '/passengers?name=fts(nolanguage).x',
    ]) {
      const { text } = await service.get(path);
      assert.doesNotMatch(text, /\b(select .* from|insert into|node_modules|at \w+ \()/i, path);
      for (const part of [`${hostname}:${port}`, pathname.slice(1)]) {
        assert.ok(!text.includes(part), path);
      }
    }
  });
});

// --- Forgery --------------------------------------------------------------------

describe('Forgery', () => {
  const forged = '{"level":"fatal","msg":"forged"}';
  for (const [name, bytes] of [
    ['a line feed', `GET /hello HTTP/1.1\r\nHost: x\r\nUser-Agent: a\n${forged}\r\n\r\n`],
    ['a carriage return', `GET /hello HTTP/1.1\r\nHost: x\r\nUser-Agent: a\r${forged}\r\n\r\n`],
    ['a folded line', lines('GET /hello HTTP/1.1', 'Host: x', 'User-Agent: a', ` ${forged}`)],
    ['a NUL', lines('GET /hello HTTP/1.1', 'Host: x', `User-Agent: a\0${forged}`)],
    ['quotes', lines('GET /hello HTTP/1.1', 'Host: x', `User-Agent: "}${forged}`)],
    ['an escape sequence', lines('GET /hello HTTP/1.1', 'Host: x', `User-Agent: \x1b[2J${forged}`)],
    ['a separator in UTF-8', lines('GET /hello HTTP/1.1', 'Host: x', `A: \xe2\x80\xa8${forged}`)],
    [
      'a line feed in the id',
      `GET /hello HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\n${forged}\r\n\r\n`,
    ],
    ['quotes in the id', lines('GET /hello HTTP/1.1', 'Host: x', `X-Request-Id: "}${forged}`)],
    ['a line feed in the path', `GET /hello\n${forged} HTTP/1.1\r\nHost: x\r\n\r\n`],
    ['an encoded one in the path', lines(`GET /hello%0a${encodeURI(forged)} HTTP/1.1`, 'Host: x')],
    ['quotes in the path', lines(`GET /hello?"}${forged} HTTP/1.1`, 'Host: x')],
    ['a method of its own', lines(`${forged} /hello HTTP/1.1`, 'Host: x')],
  ] as const) {
    test(`${name} makes no line of the log`, async () => {
      const from = service.log.length;
      const closing = bytes.replace('Host: x\r\n', 'Host: x\r\nConnection: close\r\n');
      const answer = await send(closing);
      assert.match(answer, /^HTTP\/1\.1 [2-4]\d\d /);
      service.hear(answer);
      await service.get('/zero', { 'x-request-id': `behind-${from}` });
      await until(() => service.log.some(({ id }) => id === `behind-${from}`)); // each line parsed
      const told = service.log.slice(from);
      assert.ok(told.every(({ level, msg }) => level !== 'fatal' && msg !== 'forged'));
      assert.ok(told.length <= 2, JSON.stringify(told));
      assert.doesNotMatch(answer, /^x-request-id:.*[{"]/im);
    });
  }

  const SPOOFED = [
    'Host: evil.example',
    'X-Forwarded-For: 203.0.113.66',
    'X-Forwarded-Host: evil.example',
    'X-Forwarded-Proto: evil',
    'X-Forwarded-Port: 666',
    'X-Forwarded-Prefix: /evil',
    'X-Real-IP: 203.0.113.66',
    'X-Original-URL: /evil',
    'X-Rewrite-URL: /evil',
    'X-HTTP-Method-Override: DELETE',
    'Forwarded: for=203.0.113.66;host=evil.example;proto=evil',
    'Connection: close',
  ];
  for (const [target, expected] of [
    ['GET /passengers?limit=1', /^HTTP\/1.1 200 [\s\S]*\r\nLink: <\/passengers\?/i],
    [
      'GET /rest/v1/passengers?limit=1',
      /^HTTP\/1.1 200 [\s\S]*\r\nLink: <\/rest\/v1\/passengers\?/i,
    ],
    ['POST /passengers', /^HTTP\/1.1 201 [\s\S]*\r\nLocation: \/passengers\//i],
    ['OPTIONS /passengers', /^HTTP\/1.1 200 [\s\S]*"uri":"\/passengers"/i],
    ['GET /hello', /^HTTP\/1.1 200 /],
    ['GET /nowhere', /^HTTP\/1.1 404 /],
    ['GET /passengers/abc', /^HTTP\/1.1 400 /],
    ['GET /openapi.json', /^HTTP\/1.1 200 /],
    ['GET /docs', /^HTTP\/1.1 200 /],
    ['GET /metrics', /^HTTP\/1.1 200 /],
  ] as const) {
    test(`${target}: a spoofed Host, X-Forwarded-* or Forwarded changes and reaches nothing`, async () => {
      await service.request('POST', '/passengers', [ROW, ROW]);
      const from = service.log.length;
      const body = target.startsWith('POST') ? JSON.stringify(ROW) : '';
      const own = ['Content-Type: application/json', `Content-Length: ${body.length}`];
      const answer = await send(
        `${lines(`${target} HTTP/1.1`, ...SPOOFED, ...(body ? own : []))}${body}`,
      );
      assert.match(answer, expected);
      assert.doesNotMatch(answer, /evil|203\.0\.113\.66|:666/);
      service.hear(answer);
      await until(() => service.log.length > from);
      assert.doesNotMatch(JSON.stringify(service.log.slice(from)), /evil|203\.0\.113\.66/);
    });
  }
});

// --- Exhaustion -----------------------------------------------------------------

describe('Exhaustion', { concurrency: true }, () => {
  for (const [name, path, body] of [
    ['left open', '/passengers', '['.repeat(32_000)],
    ['closed', '/passengers', '['.repeat(32_000) + ']'.repeat(32_000)],
    ['in a column', '/passengers', `{"name":${'['.repeat(32_000)}${']'.repeat(32_000)}}`],
    ['as objects', '/passengers', `${'{"a":'.repeat(32_000)}1${'}'.repeat(32_000)}`],
    ['in a tree', `/passengers?or=${'('.repeat(32_000)}`, undefined],
    ['in named trees', `/passengers?or=(${'and('.repeat(20_000)}`, undefined],
    ['in a list', `/passengers?age=in.${'('.repeat(32_000)}`, undefined],
    ['in a pattern', `/passengers?name=match.${'('.repeat(32_000)}`, undefined],
    ['in what is selected', `/passengers?select=${'a('.repeat(32_000)}`, undefined],
  ] as const) {
    test(`32 000 nested brackets ${name} are refused at once`, async (t) => {
      const times = [];
      for (let count = 0; count < 5; count += 1) {
        const from = performance.now();
        const { status, headers } = await service.request(body ? 'POST' : 'GET', path, body);
        times.push(performance.now() - from);
        assert.ok([400, 422].includes(status), String(status));
        assert.equal(headers.get('content-type'), 'application/problem+json');
      }
      t.diagnostic(`after ${Math.min(...times).toFixed(1)} ms`);
      assert.ok(Math.min(...times) < 500);
    });
  }

  test('clients that do not read on what they asked for are closed, and keep nobody from a list', async (t) => {
    const large = await startDatabase();
    t.after(() => large.stop());
    const own = await startReady({ DATABASE_URL: large.url });
    t.after(() => own.stop());
    await fill(large, 50_000);
    for (let count = 0; count < 4; count += 1) {
      const socket = connect(Number(new URL(own.url).port), '127.0.0.1').pause();
      socket.on('error', () => {}).write('GET /passengerlist HTTP/1.1\r\nHost: x\r\n\r\n');
      t.after(() => socket.destroy());
    }
    await until(async () => (await streamsOf(own)) === 4);
    assert.equal((await own.get('/passengerlist')).status, 503);
    await until(async () => (await streamsOf(own)) === 0, 75_000);
    assert.equal((await own.get('/passengerlist')).status, 200);
  });

  test('450 clients with slow heads and 200 with slow bodies do not slow a good one, and are closed', async (t) => {
    const own = await startReady({ DATABASE_URL: database.url });
    const open = (head: string, drip: string) => {
      const socket = connect(Number(new URL(own.url).port), '127.0.0.1', () => socket.write(head));
      const timer = setInterval(() => socket.write(drip), 2000);
      t.after(() => socket.destroy());
      socket.once('close', () => clearInterval(timer));
      return socket.on('error', () => {}).resume();
    };
    t.after(() => own.stop());
    const head = 'POST /passengers HTTP/1.1\r\nHost: x\r\n';
    const body = `${head}Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{`;
    const heads = Array.from({ length: 450 }, () => open(head, 'X: y\r\n'));
    const bodies = Array.from({ length: 200 }, () => open(body, ' '));
    const times = [];
    for (let count = 0; count < 200; count += 1) {
      const from = performance.now();
      assert.equal((await own.get('/passengers')).status, 200);
      times.push(performance.now() - from);
    }
    const p95 = times.sort((a, b) => a - b)[190] ?? 0;
    t.diagnostic(`p95 of a good client ${p95.toFixed(1)} ms`);
    assert.ok(p95 < 100);
    const closed = async (sockets: Socket[], ms: number) => {
      const from = performance.now();
      while (sockets.some((socket) => !socket.closed)) {
        assert.ok(performance.now() - from < ms, 'a slow client was not closed');
        assert.equal((await own.get('/passengers?limit=1')).status, 200);
        await sleep(500);
      }
    };
    await closed(heads, 20_000);
    await closed(bodies, 75_000);
  });
});
