/**
 * nginx's configuration, run by this machine's nginx in front of a server of this test. What needs
 * the service or the image is in test/image.test.ts.
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { type AddressInfo, connect } from 'node:net';
import { after, before, beforeEach, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import * as limits from '../lib/config.ts';
import { LIMITS, MAX_HEAD } from '../lib/server.ts';
import { assertProblem, header, type Reply, toReply } from '../test/deployment.ts';
import { until } from '../test/harness.ts';
import { installed, read, startNginx } from './run.ts';

const skip = installed ? false : 'nginx is not installed (apt-get install nginx-light)';

const PROXY = '127.0.0.2'; // trusted here; the other addresses of loopback are not

type Handler = (incoming: IncomingMessage, outgoing: ServerResponse) => void;
const hello: Handler = (_, outgoing) => outgoing.end('{"message":"ok"}');
let handler = hello;
let heard: IncomingMessage[] = [];
const upstream = createServer(LIMITS, (incoming, outgoing) => {
  heard.push(incoming);
  handler(incoming, outgoing);
});
let nginx: Awaited<ReturnType<typeof startNginx>>;

before(async () => {
  if (!installed) return;
  await once(upstream.listen(0, '127.0.0.1'), 'listening');
  const gke = (await read('docs/image.md')).match(/set_real_ip_from .*;/g) ?? [];
  const trusted = [...gke, `set_real_ip_from ${PROXY};`].join('\n');
  nginx = await startNginx((upstream.address() as AddressInfo).port, trusted);
});

beforeEach(() => {
  handler = hello;
  heard = [];
});

after(async () => {
  await nginx?.stop();
  upstream.closeAllConnections();
  upstream.close();
});

/** Sends bytes from an address of loopback; returns the first answer, or all until the end. */
async function exchange(bytes: string, localAddress = '127.0.0.1', all = false): Promise<Reply[]> {
  const socket = connect({ port: nginx.open, host: '127.0.0.1', localAddress });
  socket.write(bytes, 'latin1');
  let text = '';
  socket.setEncoding('latin1').on('data', (data) => {
    text += data;
    if (all) return;
    const { headers, text: body } = parseAnswer(text);
    if (Number(headers.get('content-length') ?? -1) === body.length) socket.destroy();
  });
  await once(socket, 'close').catch(() => {}); // a reset after an early refusal
  return text.split(/(?=HTTP\/1\.1 )/).map(parseAnswer);
}

/** One request; the headers end with a line break each. */
async function send(line: string, headers = '', body = '', from?: string): Promise<Reply> {
  const head = `${line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n${headers}\r\n`;
  return (await exchange(head + body, from))[0]!;
}

function parseAnswer(answer: string): Reply {
  const [head = '', ...body] = answer.split('\r\n\r\n');
  const [first = '', ...lines] = head.split('\r\n');
  const fields = lines.map((line) => [line.replace(/:.*/s, ''), line.replace(/^[^:]*: ?/, '')]);
  const headers = new Headers(fields as [string, string][]);
  return toReply({ status: Number(first.split(' ')[1]), headers }, body.join('\r\n\r\n'));
}

function assertRefused(reply: Reply, status: number): void {
  assert.equal(reply.status, status);
  assertProblem(reply);
  const { title, detail, message, code, ...others } = reply.json;
  assert.deepEqual(others, { type: 'about:blank', status, details: null, hint: null });
  assert.match(code, /^(PGRST\d{3}|08006|57014)$/);
  header(reply, 'content-type', 'application/problem+json');
  header(reply, 'x-request-id', /^[0-9a-f]{32}$/);
  header(reply, 'server-timing', /./);
}

// --- Files ----------------------------------------------------------------------------

const files = ['nginx/passengers.conf', 'nginx/nginx.conf', 'supervisord.conf', 'compose.yaml'];
const config = (await Promise.all(files.map(read))).join('\n');
const numbers = (pattern: RegExp) =>
  [...config.matchAll(pattern)].map(([, found]) => Number(found));
const [csv, body] = numbers(/client_max_body_size (\d+)m/g);
const [head = 0] = numbers(/large_client_header_buffers \d+ (\d+)k/g);
const [idle = 0] = numbers(/^ +keepalive_timeout (\d+)s/gm);
const [connecting = 0] = numbers(/proxy_connect_timeout (\d+)s/g);
const [answering = 0] = numbers(/proxy_read_timeout (\d+)s/g);
const [node = 0, front = 0] = numbers(/^stopwaitsecs=(\d+)/gm);
const [grace = 0] = numbers(/stop_grace_period: (\d+)s/g);

for (const [what, ...ascending] of [
  ['lock < statement < deadline', limits.LOCK_TIMEOUT, limits.STATEMENT_TIMEOUT, limits.DEADLINE],
  ['the deadline < an answer of nginx', limits.DEADLINE, answering * 1000],
  ['a connect to the database < deadline', limits.CONNECT_TIMEOUT, limits.DEADLINE],
  ['connect + answer of nginx <= 6 s, which a client waits', connecting + answering, 6.1],
  ['an answer < the stop of nginx', answering, front],
  ['deadline + 1 s < the stop of Node', limits.DEADLINE + 1000, node * 1000],
  ['both stops + 3 s <= the grace period of compose.yaml', node + front + 3, grace + 0.1],
  ["a request's target < nginx's buffer for it and the method", MAX_HEAD, head * 1024],
  ["nginx's idle connections < Node's", idle * 1000, LIMITS.keepAliveTimeout],
] as const) {
  test(what, () => {
    for (const [at, value] of ascending.entries()) assert.ok(value > (ascending[at - 1] ?? 0));
  });
}

test('bodies have the limits of the service, and the comment has the stops', () => {
  const { BODY_LIMIT, CSV_LIMIT } = limits.readConfig({});
  assert.deepEqual([csv, body], [CSV_LIMIT / 2 ** 20, BODY_LIMIT / 2 ** 20]);
  assert.ok(config.includes(`preStop + ${front} + ${node} + 3 s`));
});

// --- Refusals --------------------------------------------------------------------------

const END = 'Host: x\r\nConnection: close\r\n\r\n';
const POST = 'POST /passengers HTTP/1.1\r\n';
const JSON_TYPE = 'Content-Type: application/json\r\n';
const CSV_TYPE = 'Content-Type: text/csv\r\n';
const CHUNKED = 'Transfer-Encoding: chunked\r\n';
const MEGABYTE = `10000\r\n${' '.repeat(65_536)}\r\n`.repeat(17);

const REFUSALS: [what: string, bytes: string, status: number][] = [
  ['%zz in a path', `GET /%zz HTTP/1.1\r\n${END}`, 400],
  ['%00 in a path', `GET /passengers/%00 HTTP/1.1\r\n${END}`, 400],
  ['a path above the root', `GET /../etc/passwd HTTP/1.1\r\n${END}`, 400],
  ['a blank in the path', `GET /a b HTTP/1.1\r\n${END}`, 400],
  ['a URI of 160 kB', `GET /${'a'.repeat(160_000)} HTTP/1.1\r\n${END}`, 414],
  ['a header line of 160 kB', `GET / HTTP/1.1\r\nX: ${'a'.repeat(160_000)}\r\n${END}`, 431],
  ['the method TRACE', `TRACE /passengers HTTP/1.1\r\n${END}`, 405],
  ['two lengths', `${POST}Content-Length: 2\r\nContent-Length: 3\r\n${END}{}`, 400],
  ['a length and chunks', `${POST}Content-Length: 2\r\n${CHUNKED}${END}0\r\n\r\n`, 400],
  ['a bad chunk', `${POST}${JSON_TYPE}${CHUNKED}${END}zz\r\n`, 400],
  ['a bad chunk of CSV', `${POST}${CSV_TYPE}${CHUNKED}${END}zz\r\n`, 400],
  ['a body over the limit', `${POST}${JSON_TYPE}Content-Length: 2000000\r\n${END}`, 413],
  ['chunks over the limit', `${POST}${JSON_TYPE}${CHUNKED}${END}${MEGABYTE}`, 413],
  ['CSV over the limit', `${POST}${CSV_TYPE}Content-Length: 99999999\r\n${END}`, 413],
  ['no Host', 'GET /hello HTTP/1.1\r\n\r\n', 400],
  ['a Host of two words', `GET /hello HTTP/1.1\r\nHost: a b\r\n${END}`, 400],
  ['a header over two lines', `GET /hello HTTP/1.1\r\nUser-Agent: a\r\n b\r\n${END}`, 400],
  ['a NUL in a header', `GET /hello HTTP/1.1\r\nX: a\0b\r\n${END}`, 400],
  ['HTTP/3.7', `GET /hello HTTP/3.7\r\n${END}`, 505],
  ['TLS', '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n', 400],
  ['/metrics', `GET /metrics HTTP/1.1\r\n${END}`, 404],
  ['/metrics written otherwise', `POST //%6detrics?x HTTP/1.1\r\n${CHUNKED}${END}0\r\n\r\n`, 404],
  ['/metrics as CSV', `GET /metrics HTTP/1.1\r\n${CSV_TYPE}${END}`, 404],
  ['a location of nginx alone', `GET /.buffered HTTP/1.1\r\n${END}`, 404],
];

describe('Refusals', { skip }, () => {
  for (const [what, bytes, status] of REFUSALS) {
    test(`${what} is a problem of ${status}`, async () => {
      const [answer] = await exchange(bytes);
      assertRefused(answer!, status);
      const allow = status === 405 ? 'GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS' : null;
      assert.equal(answer?.headers.get('allow'), allow);
    });
  }

  for (const [what, bytes] of [
    ['a row that is named metrics', `GET /passengers/metrics HTTP/1.1\r\n${END}`],
    ['a BASE_PATH that ends in /metrics', `GET /ws/metrics HTTP/1.1\r\n${END}`],
    ['HTTP/1.0 without a Host', 'GET /hello HTTP/1.0\r\n\r\n'],
  ] as const) {
    test(`${what} is answered by the service`, async () => {
      assert.equal((await exchange(bytes))[0]?.status, 200);
    });
  }
});

// --- Service ---------------------------------------------------------------------------

describe('Service', { skip }, () => {
  for (const method of ['POST', 'PUT', 'PATCH', 'DELETE', 'GET']) {
    test(`${method} is executed once if the service dies after it`, async () => {
      await send('GET /hello'); // opens a kept-alive connection to the service, which then ends
      handler = (incoming) => incoming.resume().on('end', () => incoming.socket.destroy());
      const body = method === 'GET' ? '' : '{}';
      const answer = await send(`${method} /x`, `Content-Length: ${body.length}\r\n`, body);
      assertRefused(answer, 502);
      assert.equal(answer.headers.get('retry-after'), '1');
      assert.equal(heard.length, 2);
    });
  }

  test('a service that hangs is a problem of 504 after 5 s, to a probe too', async () => {
    handler = () => {};
    const started = performance.now();
    const probe = fetch(`http://127.0.0.1:${nginx.probes}/healthz`);
    assertRefused(await send('GET /passengers'), 504);
    assert.equal((await probe).status, 504);
    const ms = performance.now() - started;
    assert.ok(ms > 4900 && ms < 6000, `${ms}`);
  });

  test("the service's answers pass unchanged", async () => {
    const link = `</passengers?${'a'.repeat(131_072)}>; rel="next"`;
    const own = { link, 'retry-after': '7', 'server-timing': 'db;dur=1', 'content-type': 'x/y' };
    handler = (_, outgoing) => outgoing.writeHead(503, { ...own, 'x-request-id': 'own' }).end('b');
    const { status, headers, text } = await send('GET /', 'X-Request-Id: mine\r\n');
    assert.deepEqual([status, text], [503, '1\r\nb\r\n0\r\n\r\n']);
    for (const [name, value] of Object.entries(own)) assert.equal(headers.get(name), value);
    assert.equal(headers.get('x-request-id'), 'mine');
    assert.equal(headers.get('x-content-type-options'), 'nosniff');
  });

  for (const method of ['GET', 'POST', 'DELETE']) {
    test(`the path and the query of ${method} reach the service byte for byte`, async () => {
      const path = '/passengers/%41//b?a=%20b+c&or=(x.eq.%22,%22)&d=1%2F2';
      await send(`${method} ${path}`, 'Content-Length: 2\r\n', '{}');
      assert.equal(heard[0]?.url, path);
    });
  }

  test('names of hosts do not reach the service', async () => {
    const names = ['Host', 'X-Forwarded-Host', 'X-Forwarded-Proto', 'X-Real-IP', 'Forwarded'];
    const headers = names.map((name) => `${name}: evil\r\n`).join('');
    const [answer] = await exchange(`GET / HTTP/1.1\r\n${headers}Connection: close\r\n\r\n`);
    assert.equal(answer?.status, 200);
    assert.doesNotMatch(JSON.stringify([heard[0]?.headers, [...answer.headers]]), /evil/);
  });
});

// --- Clients ---------------------------------------------------------------------------

describe('Clients', { skip }, () => {
  for (const [type, early] of [
    ['application/json', false],
    ['text/csv; charset=utf-8', true],
  ] as const) {
    test(`the service gets ${type} ${early ? 'while it comes' : 'once it is whole'}`, async () => {
      handler = (incoming, outgoing) => incoming.resume().on('end', () => outgoing.end('{}'));
      const socket = connect(nginx.open, '127.0.0.1');
      const head = `POST / HTTP/1.1\r\nHost: x\r\nContent-Type: ${type}\r\nContent-Length: 4\r\n`;
      socket.write(`${head}Connection: close\r\n\r\nab`);
      const arrived = until(() => heard.length === 1).then(() => true);
      assert.equal(await Promise.race([arrived, sleep(500, false)]), early);
      socket.write('cd');
      await arrived;
      await once(socket.resume(), 'close');
    });
  }

  for (const [what, peer, named, client] of [
    ['a peer that is not trusted is the client', '127.0.0.1', '6.6.6.6', '127.0.0.1'],
    ['a trusted proxy names the client', PROXY, '198.51.100.7', '198.51.100.7'],
    ['what the client itself sends is ignored', PROXY, '6.6.6.6, 198.51.100.7', '198.51.100.7'],
    ["GKE's balancer is not the client", PROXY, '198.51.100.7, 203.0.113.10', '198.51.100.7'],
    ["nor are GKE's proxies", PROXY, '198.51.100.7, 203.0.113.10, 35.191.9.9', '198.51.100.7'],
    ['a trusted proxy that names nobody is the client', PROXY, '', PROXY],
  ] as const) {
    test(what, async () => {
      await send('GET /', named && `X-Forwarded-For: ${named}\r\n`, '', peer);
      assert.equal(heard[0]?.headers['x-forwarded-for'], client);
    });
  }

  test('429 to a client that asks too often, whatever it calls itself, and to no other', async () => {
    const line = (at: number) => `GET / HTTP/1.1\r\nX-Forwarded-For: 6.6.6.${at % 256}\r\n`;
    const bytes = Array.from({ length: 900 }, (_, at) => `${line(at)}Host: x\r\n\r\n`).join('');
    const answers = await exchange(bytes + line(900) + END, '127.0.0.3', true);
    const refused = answers.findIndex(({ status }) => status === 429);
    assert.ok(refused >= 400, `a burst of 400 passes: ${refused}`);
    assertRefused(answers[refused]!, 429);
    assert.equal(answers[refused]?.headers.get('retry-after'), '1');
    assert.equal((await send('GET /', '', '', '127.0.0.4')).status, 200);
  });

  test('429 to a client with 100 requests open', async () => {
    const open: ServerResponse[] = [];
    handler = (_, outgoing) => open.push(outgoing);
    const ask = () => send('GET /', '', '', '127.0.0.5');
    const all = Array.from({ length: 100 }, ask);
    await until(() => open.length === 100);
    assertRefused(await ask(), 429);
    for (const outgoing of open) outgoing.end();
    assert.ok((await Promise.all(all)).every(({ status }) => status === 200));
  });
});

test('450 slow heads and 200 slow bodies do not slow a good client down', { skip }, async (t) => {
  const body = `${POST}Host: x\r\n${JSON_TYPE}Content-Length: 9\r\n\r\n{`;
  const sockets = Array.from({ length: 650 }, (_, at) => {
    const localAddress = `127.0.1.${1 + (at % 7)}`; // at most 100 requests each
    const socket = connect({ port: nginx.open, host: '127.0.0.1', localAddress });
    socket.on('error', () => {}).write(at < 450 ? POST : body);
    return socket.resume();
  });
  const times: number[] = [];
  for (let count = 0; count < 100; count += 1) {
    const started = performance.now();
    assert.equal((await send('GET /', '', '', '127.0.0.6')).status, 200);
    times.push(performance.now() - started);
  }
  const p95 = times.sort((one, other) => one - other)[95] ?? 0;
  t.diagnostic(`p95 ${p95.toFixed(1)} ms`);
  assert.ok(p95 < 100);
  await until(() => sockets.every(({ closed }) => closed), 15_000); // after 5 s
});

// --- Log -------------------------------------------------------------------------------

describe('Log', { skip, concurrency: true }, () => {
  const linesOf = async (id: string) => {
    await until(() => nginx.log().includes(`"id":"${id}"`));
    const lines = nginx.log().split('\n').slice(0, -1);
    return lines.map((line) => JSON.parse(line)).filter((line) => line.id === id);
  };

  for (const [what, line, id, kept] of [
    ['a request', 'GET /log', 'sane-1:2/3', true],
    ['an id of two words', 'GET /log', 'two words', false],
    ['an id beyond ASCII', 'GET /log', '\xe9', false],
    ['an id of 129 characters', 'GET /log', 'a'.repeat(129), false],
    ['no id', 'GET /log', '', false],
    ['a refusal', 'GET /%zz', 'ignored by nginx', false],
  ] as const) {
    test(`${what} has one line, with the id of the answer`, async () => {
      const { status, headers } = await send(line, id && `X-Request-Id: ${id}\r\n`);
      const answered = headers.get('x-request-id') ?? '';
      assert.match(answered, kept ? /^sane-1:2\/3$/ : /^[0-9a-f]{32}$/);
      const [first, ...more] = await linesOf(answered);
      assert.deepEqual([first.status, first.client, more], [status, '127.0.0.1', []]);
    });
  }

  test('a line is ASCII without the query, whatever the client calls itself', async () => {
    const headers = 'X-Request-Id: agent\r\nUser-Agent: a"\\ b\xff\xfe c\r\n';
    await send('GET /agent?secret', headers);
    const [{ path, agent, time }] = await linesOf('agent');
    assert.deepEqual([path, agent], ['/agent', 'a"\\ b']);
    assert.ok(Math.abs(time - Date.now()) < 60_000);
    assert.doesNotMatch(nginx.log(), /secret|[^\x20-\x7e\n]/);
  });
});

describe('Port 8081', { skip }, () => {
  for (const [path, status, answer] of [
    ['/healthz', 200, /^{"message":"ok"}$/],
    ['/readyz', 200, /^{"message":"ok"}$/],
    ['/metrics', 200, /^{"message":"ok"}$/],
    ['/nginx', 200, /^Active connections: \d+/],
    ['/passengers', 404, /^{"type":"about:blank","title":"Not Found",/],
  ] as const) {
    test(`${path} is ${status}`, async () => {
      const response = await fetch(`http://127.0.0.1:${nginx.probes}${path}`);
      assert.equal(response.status, status);
      assert.match(await response.text(), answer);
    });
  }
});
