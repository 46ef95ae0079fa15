/** Attacks that .github/SECURITY.md names, and that they fail. */
import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  fill,
  openService,
  PASSENGER,
  sendRaw,
  slack,
  startDatabase,
  startReady,
  startService,
  streamsOf,
  until,
} from './harness.ts';

const SECRET = 'a-secret-that-nobody-is-to-read-anywhere';

const { database, service } = await openService({ LOG_LEVEL: 'trace', POOL_SIZE: '1' });

const send = (bytes: string) => sendRaw(service.url, bytes);

function lines(...all: string[]): string {
  return `${all.join('\r\n')}\r\n\r\n`;
}

// --- Secrets --------------------------------------------------------------------

const PASSWORD = 'p@ssw0rd-of-it';

/** A service that reveals each of these on stdout, on stderr and in the body of its answers. */
const REVEALED = {
  'a JWT_SECRET': `${SECRET}-2`,
  'the password of DATABASE_URL': encodeURIComponent(PASSWORD),
  SQL: 'select string_agg(row_to_json(t)::text)',
  'a token': 'Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJtZSJ9.x',
};
const LEAK = `import { createServer } from 'node:http';
  const text = ${JSON.stringify(Object.values(REVEALED).join(' '))};
  const log = (line) => console.log(JSON.stringify({ level: 'info', ...line }));
  const server = createServer((_, response) => response.end(text)).listen(0, '127.0.0.1', () => {
    log({ msg: text });
    console.error(text);
    log({ msg: 'listening', url: 'http://127.0.0.1:' + server.address().port });
  });`;

describe('Secrets', () => {
  test('of each kind are found on stdout, on stderr and in answers: stop() rejects', async (t) => {
    const directory = await mkdtemp(join(tmpdir(), 'passengers leak-'));
    t.after(() => rm(directory, { recursive: true }));
    const file = join(directory, 'leak.mts');
    await writeFile(file, LEAK);
    const DATABASE_URL = `postgres://somebody:${encodeURIComponent(PASSWORD)}@127.0.0.1/nothing`;
    const leak = await startService(
      { DATABASE_URL, JWT_SECRET: `${SECRET},${SECRET}-2` },
      { file },
    );
    await leak.get('/');
    await assert.rejects(leak.stop(), ({ message }: Error) => {
      const places = ['stdout', 'stderr', 'the answer'];
      return Object.keys(REVEALED).every((name) =>
        places.every((where) => message.includes(`${name} in ${where}`)),
      );
    });
  });

  for (const query of [
    'age=eq.x',
    'name=match.(',
    'select=name::uuid',
    "name=like.%25'%20or%201=1%20--",
    'order=1;drop%20table%20titanic',
    'name=fts(nolanguage).x',
  ])
    test(`GET /passengers?${query} answers neither SQL nor where the database is`, async () => {
      const { hostname, port, pathname } = new URL(database.url);
      const { text } = await service.get(`/passengers?${query}`);
      assert.doesNotMatch(text, /\b(select .* from|insert into|node_modules|at \w+ \()/i);
      for (const part of [`${hostname}:${port}`, pathname.slice(1)])
        assert.equal(text.includes(part), false, part);
    });
});

// --- Forgery --------------------------------------------------------------------

describe('Forgery', () => {
  const forged = '{"level":"fatal","msg":"forged"}';
  const head = (...fields: string[]) => lines('GET /hello HTTP/1.1', 'Host: x', ...fields);
  for (const [name, bytes] of [
    ['a line feed', head(`User-Agent: a\n${forged}`)],
    ['a carriage return', head(`User-Agent: a\r${forged}`)],
    ['a folded line', head('User-Agent: a', ` ${forged}`)],
    ['a NUL', head(`User-Agent: a\0${forged}`)],
    ['quotes', head(`User-Agent: "}${forged}`)],
    ['an escape sequence', head(`User-Agent: \x1b[2J${forged}`)],
    ['a separator in UTF-8', head(`A: \xe2\x80\xa8${forged}`)],
    ['a line feed in the id', head(`X-Request-Id: a\n${forged}`)],
    ['quotes in the id', head(`X-Request-Id: "}${forged}`)],
    ['a line feed in the path', lines(`GET /hello\n${forged} HTTP/1.1`, 'Host: x')],
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
      await service.get('/zero', { 'x-request-id': `next-${from}` });
      await until(() => service.log.some(({ id }) => id === `next-${from}`)); // each line parsed
      const logged = service.log.slice(from);
      assert.ok(logged.every(({ level, msg }) => level !== 'fatal' && msg !== 'forged'));
      assert.ok(logged.length <= 2, JSON.stringify(logged));
      assert.doesNotMatch(answer, /^x-request-id:.*[{"]/im);
    });
  }

  const SPOOFED = [
    ...['Host: evil.example', 'X-Forwarded-For: 203.0.113.66', 'X-Forwarded-Host: evil.example'],
    ...['X-Forwarded-Proto: evil', 'X-Forwarded-Port: 666', 'X-Forwarded-Prefix: /evil'],
    ...['X-Real-IP: 203.0.113.66', 'X-Original-URL: /evil', 'X-Rewrite-URL: /evil'],
    'Forwarded: for=203.0.113.66;host=evil.example;proto=evil',
    ...['X-HTTP-Method-Override: DELETE', 'X-Request-Id: spoofed', 'Connection: close'],
  ];
  for (const [target, status, text] of [
    ['GET /passengers?limit=1', 200, 'Link: </passengers?'],
    ['GET /rest/v1/passengers?limit=1', 200, 'Link: </rest/v1/passengers?'],
    ['POST /passengers', 201, 'Location: /passengers/'],
    ['OPTIONS /passengers', 200, '"uri":"/passengers"'],
    ['GET /nowhere', 404, ''],
    ['GET /passengers/abc', 400, ''],
    ['GET /openapi.json', 200, ''],
    ['GET /docs', 200, ''],
    ['GET /metrics', 200, ''],
  ] as const)
    test(`${target}: a spoofed Host, X-Forwarded-* or Forwarded has no effect`, async () => {
      await service.request('POST', '/passengers', [PASSENGER, PASSENGER]);
      const from = service.log.length;
      const body = target.startsWith('POST') ? JSON.stringify(PASSENGER) : '';
      const own = ['Content-Type: application/json', `Content-Length: ${body.length}`];
      const head = lines(`${target} HTTP/1.1`, ...SPOOFED, ...(body ? own : []));
      const answer = await send(head + body);
      assert.ok(answer.startsWith(`HTTP/1.1 ${status} `), answer);
      assert.ok(answer.toLowerCase().includes(text.toLowerCase()), answer);
      assert.doesNotMatch(answer, /evil|203\.0\.113\.66|:666/);
      service.hear(answer);
      await until(() => service.log.slice(from).some(({ id }) => id === 'spoofed'));
      assert.doesNotMatch(JSON.stringify(service.log.slice(from)), /evil|203\.0\.113\.66/);
    });
});

// --- Exhaustion -----------------------------------------------------------------

describe('Exhaustion', { concurrency: true }, () => {
  /** A service with a long list, and so many clients that ask for it and do not read. */
  async function stall(t: TestContext, readers: number, environment: object, headers = '') {
    const large = await startDatabase();
    t.after(() => large.stop());
    const own = await startReady({ DATABASE_URL: large.url, ...environment });
    t.after(() => own.stop());
    await fill(large, 50_000);
    const sockets = Array.from({ length: readers }, () => {
      const socket = connect(Number(new URL(own.url).port), '127.0.0.1').pause();
      socket.write(`GET /passengerlist HTTP/1.1\r\nHost: x\r\n${headers}\r\n`);
      t.after(() => socket.destroy());
      return socket.on('error', () => {});
    });
    await until(async () => (await streamsOf(own)) === readers);
    return { own, sockets };
  }

  test('clients that take nothing of a list for 10 s are closed, which the log says', async (t) => {
    const { own } = await stall(t, 3, { STREAMS: '3' });
    const from = performance.now();
    const refused = await own.get('/passengerlist');
    assert.deepEqual([refused.status, /Too many lists/.test(refused.text)], [503, true]);
    assert.ok(performance.now() - from >= 1000);
    await until(async () => (await streamsOf(own)) === 0, 15_000 * slack());
    assert.equal((await own.get('/passengerlist')).status, 200);
    const closed = own.log.filter(({ msg }) => /took nothing of a list/.test(msg));
    assert.equal(closed.length, 3);
  });

  test('a list waits for up to 1 s for another to end', async (t) => {
    const { own, sockets } = await stall(t, 1, { STREAMS: '1' });
    const waiting = own.get('/passengerlist');
    await own.get('/healthz'); // which came later
    sockets[0]?.destroy();
    assert.equal((await waiting).status, 200);
  });

  test('one client has half of the lists, if the proxy on this machine names it', async (t) => {
    const { own } = await stall(t, 2, { STREAMS: '4' }, 'X-Forwarded-For: 192.0.2.1\r\n');
    const statusFor = async (address: string) =>
      (await own.get('/passengerlist', { 'x-forwarded-for': address })).status;
    const statuses = ['192.0.2.1', '192.0.2.2', '192.0.2.9, 192.0.2.1'].map(statusFor);
    assert.deepEqual(await Promise.all(statuses), [503, 200, 503]);
  });

  test('uploads whose clients disconnect keep no other waiting', async (t) => {
    const own = await startReady({ DATABASE_URL: database.url, STREAMS: '1' });
    t.after(() => own.stop());
    const row = `${Object.values({ ...PASSENGER, name: 'x'.repeat(100) })}\n`;
    const text = `${Object.keys(PASSENGER)}\n${row.repeat(20_000)}`;
    const head = 'POST /passengers HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n';
    for (let round = 0; round < 30; round += 1) {
      const socket = connect(Number(new URL(own.url).port), '127.0.0.1').on('error', () => {});
      socket.write(`${head}Content-Length: 9999999\r\n\r\n${text}`);
      await until(async () => (await streamsOf(own)) === 1);
      socket.destroy();
      assert.equal((await own.get('/passengers?limit=1', { accept: 'text/csv' })).status, 200);
    }
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
    const pausing = Array.from({ length: 20 }, () => open(body, ''));
    const times = [];
    for (let count = 0; count < 200; count += 1) {
      const from = performance.now();
      assert.equal((await own.get('/passengers')).status, 200);
      times.push(performance.now() - from);
    }
    const p95 = times.sort((a, b) => a - b)[190] ?? 0;
    t.diagnostic(`p95 of a good client ${p95.toFixed(1)} ms`);
    assert.ok(p95 < 100 * slack());
    const closed = async (sockets: Socket[], ms: number) => {
      const from = performance.now();
      while (sockets.some((socket) => !socket.closed)) {
        assert.ok(performance.now() - from < ms, 'a slow client was not closed');
        assert.equal((await own.get('/passengers?limit=1')).status, 200);
        await sleep(500);
      }
    };
    await closed(heads, 20_000 * slack());
    await closed(pausing, 2000 * slack()); // after 5 s
    await closed(bodies, 25_000 * slack()); // after 30 s
  });
});
