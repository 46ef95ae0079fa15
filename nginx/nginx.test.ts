/**
 * nginx's configuration, on the nginx of this machine, before an upstream that a test rules. What
 * needs the service or the image behind it is in test/image.test.ts.
 */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer, type IncomingMessage, request, type ServerResponse } from 'node:http';
import { type AddressInfo, connect, createServer as listenTcp, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parse } from 'yaml';
import { readConfig } from '../app.ts';
import { until } from '../test/harness.ts';
import { flood, type Raw, REFUSALS, send } from './refusals.ts';

const here = fileURLToPath(new URL('.', import.meta.url));
const root = join(here, '..');
const installed = spawnSync('nginx', ['-v']).status === 0;
const skip = installed ? false : 'nginx is not installed (apt-get install nginx-light)';

// --- The upstream, and nginx before it ----------------------------------------------

type Handler = (incoming: IncomingMessage, outgoing: ServerResponse) => void;

const hello: Handler = (_, outgoing) => outgoing.end('{"message":"ok"}');
let handler = hello;
const heard: { method: string; url: string; headers: IncomingMessage['headers'] }[] = [];
const upstream = createServer(
  { maxHeaderSize: 300_000, keepAliveTimeout: 75_000 },
  (incoming, outgoing) => {
    const { method = '', url = '', headers } = incoming;
    heard.push({ method, url, headers });
    handler(incoming, outgoing);
  },
);
let nginx: Awaited<ReturnType<typeof startNginx>>;

before(async () => {
  if (!installed) return;
  await once(upstream.listen(0, '127.0.0.1'), 'listening');
  nginx = await startNginx((upstream.address() as AddressInfo).port);
});

after(async () => {
  await nginx?.stop();
  upstream.closeAllConnections();
  upstream.close();
});

/** The configuration as it is but for ports and the place of temporary files. */
async function configure(node: number) {
  const directory = await mkdtemp(join(tmpdir(), 'passengers-nginx-'));
  const [open, probes] = [await freePort(), await freePort()];
  await mkdir(join(directory, 'tmp'));
  for (const name of ['nginx.conf', 'passengers.conf']) {
    const text = (await readFile(join(here, name), 'utf8'))
      .replaceAll('/tmp/', `${directory}/tmp/`)
      .replace('127.0.0.1:8000', `127.0.0.1:${node}`)
      .replace('listen 8080', `listen 127.0.0.1:${open}`)
      .replace('listen 8081', `listen 127.0.0.1:${probes}`);
    await writeFile(join(directory, name), text);
  }
  return { directory, open, probes };
}

async function freePort(): Promise<number> {
  const server = listenTcp();
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

/** Starts nginx before the server on port `node`; `log` is what it wrote on stdout. */
async function startNginx(node: number) {
  const { directory, open, probes } = await configure(node);
  const root = process.getuid?.() === 0 ? ['-g', 'user root;'] : [];
  const args = ['-e', 'stderr', '-p', directory, '-c', join(directory, 'nginx.conf'), ...root];
  // a shell's pipe, since nginx opens /dev/stdout, and Node's pipes are sockets
  const script = 'nginx "$@" | cat';
  const child = spawn('bash', ['-c', script, 'nginx', ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let log = '';
  child.stdout.setEncoding('latin1').on('data', (data) => {
    log += data;
  });
  await until(() => readFile(join(directory, 'tmp/nginx.pid'), 'utf8').catch(() => ''));
  const pid = Number(await readFile(join(directory, 'tmp/nginx.pid'), 'utf8'));
  await until(() => answers(open));
  const stop = async () => {
    process.kill(pid, 'SIGTERM');
    await once(child, 'close');
    await rm(directory, { recursive: true });
  };
  return { url: `http://127.0.0.1:${open}`, open, probes, log: () => log, stop };
}

function answers(port: number): Promise<boolean> {
  return fetch(`http://127.0.0.1:${port}/hello`).then(
    () => true,
    () => false,
  );
}

/** Lets `next` answer until the test is over. */
function behave(t: { after: (fn: () => void) => void }, next: Handler): void {
  handler = next;
  heard.length = 0;
  t.after(() => {
    handler = hello;
  });
}

/** A request of fetch(), with its body read. */
async function ask(path: string, init: RequestInit = {}) {
  const response = await fetch(nginx.url + path, init);
  const text = await response.text();
  return { status: response.status, headers: response.headers, text };
}

/** What every answer of nginx's own has to be. */
function assertProblem(status: number, headers: Headers, text: string): void {
  assert.equal(headers.get('content-type'), 'application/problem+json');
  const { title, detail, message, ...rest } = JSON.parse(text);
  assert.ok(title && detail === message, text);
  const { type, status: told, code, details, hint } = rest;
  assert.deepEqual([type, told, details, hint], ['about:blank', status, null, null]);
  assert.match(code, /^(PGRST\d{3}|08006|57014)$/);
  assert.match(headers.get('x-request-id') ?? '', /^[\w.:/+=-]{1,128}$/);
  assert.ok(headers.get('server-timing'));
}

// --- Files ----------------------------------------------------------------------------

describe('Files', () => {
  test('nginx -t takes the configuration', { skip }, async (t) => {
    const { directory } = await configure(8000);
    t.after(() => rm(directory, { recursive: true }));
    const script = 'nginx -t -e stderr -c "$1" 2>&1 | cat'; // a pipe, for /dev/stdout
    const args = ['-o', 'pipefail', '-c', script, 'nginx', join(directory, 'nginx.conf')];
    const { status, stdout } = spawnSync('bash', args, { encoding: 'utf8' });
    assert.equal(status, 0, stdout);
    assert.doesNotMatch(stdout, /\[(warn|emerg|alert)\]/);
  });

  test('the networks that are believed are those whose members are no clients', async () => {
    const text = await read('nginx/nginx.conf');
    const believed = [...text.matchAll(/set_real_ip_from (\S+);/g)].map(([, network]) => network);
    const counted = [...text.matchAll(/^ +(\S+) +private;/gm)].map(([, network]) => network);
    assert.deepEqual(believed, counted);
    assert.ok(believed.length > 3);
  });

  test('the limits are those of app.ts', async () => {
    const { BODY_LIMIT, CSV_LIMIT } = readConfig({});
    const bytes = [
      ...(await read('nginx/passengers.conf')).matchAll(/client_max_body_size (\d+)m;/g),
    ];
    assert.deepEqual(
      bytes.map(([, mega]) => Number(mega) * 2 ** 20),
      [CSV_LIMIT, BODY_LIMIT],
    );
    const [, head] = /const MAX_HEAD = (\d+) \* 1024;/.exec(await read('app.ts')) ?? [];
    const [, buffer] =
      /large_client_header_buffers \d+ (\d+)k;/.exec(await read('nginx/passengers.conf')) ?? [];
    assert.ok(Number(buffer) > Number(head), 'a target of MAX_HEAD fits, and its method');
  });

  test('the time budget: inner below outer', async () => {
    const [app = '', server = '', process = ''] = await Promise.all(
      ['app.ts', 'nginx/passengers.conf', 'supervisord.conf'].map(read),
    );
    const constant = (name: string) => numberIn(app, new RegExp(`const ${name} = (\\d+);`)) / 1000;
    const directive = (name: string) => numberIn(server, new RegExp(`^${name} (\\d+)s;`, 'm'));
    const steps = [
      constant('LOCK_TIMEOUT'),
      constant('STATEMENT_TIMEOUT'),
      constant('DEADLINE'),
      directive('proxy_read_timeout'),
      6, // what is promised to a client
    ];
    assert.deepEqual(
      steps,
      [...new Set(steps)].sort((one, other) => one - other),
    );
    assert.ok(constant('CONNECT_TIMEOUT') < constant('DEADLINE'));
    assert.ok(directive('proxy_connect_timeout') + directive('proxy_read_timeout') <= 6);
    const waits = [...process.matchAll(/^stopwaitsecs=(\d+)/gm)].map(([, seconds]) =>
      Number(seconds),
    );
    const [node = 0, front = 0, watchdog = 0] = waits;
    assert.ok(front > directive('proxy_read_timeout'), 'nginx may finish what is in flight');
    assert.ok(node > constant('DEADLINE') + 1, 'and then the service');
    const stop = node + front + watchdog + 3;
    const told = /preStop \+ (\d+) \+ (\d+) \+ (\d+) \+ 3 s/.exec(process)?.slice(1).map(Number);
    assert.deepEqual(told, [front, node, watchdog], 'the comment tells them');
    const compose = numberIn(await read('compose.yaml'), /stop_grace_period: (\d+)s/);
    assert.ok(stop <= compose, `compose waits ${compose} s, ${stop} are needed`);
    const { terminationGracePeriodSeconds: grace, containers } = parse(
      await read('kustomize/base/deployment.yaml'),
    ).spec.template.spec;
    const preStop = containers[0].lifecycle.preStop.sleep.seconds;
    assert.ok(preStop + stop <= grace, `${preStop} + ${stop} s in ${grace} s`);
  });

  test('app.ts keeps idle connections longer than nginx does', async () => {
    const kept = numberIn(await read('nginx/nginx.conf'), /keepalive_timeout (\d+)s;/);
    assert.ok(kept * 1000 < numberIn(await read('app.ts'), /keepAliveTimeout: ([\d_]+)/));
  });
});

function read(path: string): Promise<string> {
  return readFile(join(root, path), 'utf8');
}

function numberIn(text: string, pattern: RegExp): number {
  const [, found] = pattern.exec(text) ?? [];
  assert.ok(found, `${pattern} is not there`);
  return Number(found.replaceAll('_', ''));
}

// --- Refusals --------------------------------------------------------------------------

describe('Refusals', { skip }, () => {
  for (const [what, bytes, status] of REFUSALS) {
    // the service says this one; the upstream here takes the methods of HTTP alone
    if (/FOO|150 kB/.test(what)) continue;
    test(`${what} is a problem of ${status}`, async () => {
      const { status: got, headers, body } = await send(nginx.open, bytes);
      assert.equal(got, status);
      assertProblem(status, headers, body);
      if (status === 405) assert.match(headers.get('allow') ?? '', /^GET, HEAD, POST/);
    });
  }

  test('a Host and an X-Forwarded-Host never come back, and do not reach the service', async (t) => {
    behave(t, hello);
    for (const status of [200, 404]) {
      const path = status === 200 ? '/hello' : '/metrics';
      const {
        status: got,
        headers,
        body,
      } = await send(
        nginx.open,
        `GET ${path} HTTP/1.1\r\nHost: evil\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Proto: evil\r\nForwarded: host=evil\r\nX-Real-IP: 6.6.6.6\r\nConnection: close\r\n\r\n`,
      );
      assert.equal(got, status);
      assert.doesNotMatch(JSON.stringify([...headers]) + body, /evil/);
    }
    assert.doesNotMatch(JSON.stringify(heard), /evil|6\.6\.6\.6/);
  });

  test('/metrics is not for the public, below a BASE_PATH neither', async () => {
    for (const path of ['/metrics', '/ws/cities/metrics']) {
      const { status } = await send(
        nginx.open,
        `GET ${path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n`,
      );
      assert.equal(status, 404, path);
    }
  });

  test('HTTP/1.0 without a Host is answered', async () => {
    assert.equal((await send(nginx.open, 'GET /hello HTTP/1.0\r\n\r\n')).status, 200);
  });
});

// --- Service ---------------------------------------------------------------------------

describe('Service', { skip }, () => {
  for (const method of ['POST', 'PUT', 'PATCH', 'DELETE', 'GET']) {
    test(`${method} is executed once where the service dies after it`, async (t) => {
      behave(t, (incoming) => incoming.resume().on('end', () => incoming.socket.destroy()));
      await ask('/hello'); // so that a kept connection is there to die
      behave(t, (incoming) => incoming.resume().on('end', () => incoming.socket.destroy()));
      const body =
        method === 'GET' ? {} : { body: '{}', headers: { 'content-type': 'application/json' } };
      const { status, headers, text } = await ask('/passengers/x', { method, ...body });
      assert.equal(status, 502);
      assertProblem(502, headers, text);
      assert.equal(headers.get('retry-after'), '1');
      assert.equal(heard.length, 1);
    });
  }

  test('a service that hangs is a problem of 504 after 5 s', async (t) => {
    behave(t, () => {});
    const started = performance.now();
    const { status, headers, text } = await ask('/passengers');
    const ms = performance.now() - started;
    t.diagnostic(`after ${ms.toFixed()} ms`);
    assert.equal(status, 504);
    assertProblem(504, headers, text);
    assert.ok(ms > 4900);
  });

  test('the answers of the service pass unchanged, with its id once', async (t) => {
    behave(t, (_, outgoing) => {
      outgoing.writeHead(503, {
        'content-type': 'application/problem+json',
        'retry-after': '7',
        'x-request-id': 'theirs',
        'server-timing': 'db;dur=1',
      });
      outgoing.end('{"status":503}');
    });
    const { status, headers, text } = await ask('/passengers', {
      headers: { 'x-request-id': 'mine' },
    });
    assert.deepEqual([status, text], [503, '{"status":503}']);
    assert.equal(headers.get('retry-after'), '7');
    assert.equal(headers.get('server-timing'), 'db;dur=1');
    assert.equal(headers.get('x-request-id'), 'mine');
    assert.equal(headers.get('x-content-type-options'), 'nosniff');
  });

  test('an answer with 128 KiB of Link passes', async (t) => {
    const link = `</passengers?${'a'.repeat(131_072)}>; rel="next"`;
    behave(t, (_, outgoing) => outgoing.writeHead(200, { link }).end('[]'));
    const { status, headers } = await new Promise<IncomingMessage & { status: number }>(
      (resolve, reject) => {
        const outgoing = request(
          `${nginx.url}/passengers`,
          { maxHeaderSize: 300_000 },
          (incoming) => {
            incoming.resume();
            resolve(Object.assign(incoming, { status: incoming.statusCode ?? 0 }));
          },
        );
        outgoing.on('error', reject).end();
      },
    );
    assert.equal(status, 200);
    assert.equal(headers.link, link);
  });

  test('a path and a query reach the service byte for byte, with a body too', async (t) => {
    behave(t, hello);
    const path = '/passengers/%41//b?a=%20b+c&or=(x.eq.%22,%22)&d=1%2F2';
    for (const method of ['GET', 'POST', 'DELETE']) {
      const body =
        method === 'POST' ? 'Content-Type: application/json\r\nContent-Length: 2\r\n' : '';
      await send(
        nginx.open,
        `${method} ${path} HTTP/1.1\r\n${body}Host: x\r\nConnection: close\r\n\r\n{}`,
      );
    }
    assert.deepEqual(
      heard.map(({ url }) => url),
      [path, path, path],
    );
  });

  test('an ETag that gzip made weak is strong again in If-Match', async (t) => {
    behave(t, (_, outgoing) => {
      outgoing.writeHead(200, { etag: '"17"', 'content-type': 'application/json' });
      outgoing.end(JSON.stringify({ text: 'a'.repeat(5000) }));
    });
    const { headers, text } = await ask('/row', { headers: { 'accept-encoding': 'gzip' } });
    assert.equal(headers.get('content-encoding'), 'gzip');
    assert.equal(text.length, 5011);
    const etag = headers.get('etag') ?? '';
    await ask('/row', { method: 'DELETE', headers: { 'if-match': etag } });
    await ask('/row', { method: 'DELETE', headers: { 'if-match': '"3", "4"' } });
    await ask('/row', { method: 'DELETE' });
    assert.deepEqual(
      heard.slice(1).map((one) => one.headers['if-match']),
      ['"17"', '"3", "4"', undefined],
    );
  });
});

// --- Clients ---------------------------------------------------------------------------

describe('Clients', { skip }, () => {
  /** Sends the head and half of a body; tells whether the service hears of it before the rest. */
  async function half(t: { after: (fn: () => void) => void }, type: string): Promise<boolean> {
    const arrived = new EventEmitter();
    behave(t, (incoming, outgoing) => {
      arrived.emit('head');
      incoming.resume().on('end', () => outgoing.end('{}'));
    });
    const socket = connect(nginx.open, '127.0.0.1');
    t.after(() => socket.destroy());
    const head = once(arrived, 'head').then(() => true);
    socket.write(
      `POST /passengers HTTP/1.1\r\nHost: x\r\nContent-Type: ${type}\r\nContent-Length: 4\r\n\r\nab`,
    );
    const early = await Promise.race([head, sleep(500, false)]);
    socket.write('cd');
    await head;
    await once(socket, 'data');
    return early;
  }

  test('the service hears of a JSON body when it is whole', async (t) => {
    assert.equal(await half(t, 'application/json'), false);
  });

  test('the service gets CSV while it comes', async (t) => {
    assert.equal(await half(t, 'text/csv; charset=utf-8'), true);
  });

  test('what a slow client holds back for 5 s ends its connection', async () => {
    const slow = (bytes: string) => {
      const socket = connect(nginx.open, '127.0.0.1', () => socket.write(bytes)).on(
        'error',
        () => {},
      );
      return socket.resume();
    };
    const sockets: Socket[] = [
      slow('GET /hello HTTP/1.1\r\nHost: x\r\n'),
      slow(
        'POST /passengers HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{',
      ),
    ];
    await until(() => sockets.every(({ closed }) => closed), 15_000);
  });

  test('429 to one who asks too often, with Retry-After, and to nobody else', async () => {
    const client = '198.51.100.66, 203.0.113.7';
    const got = await flood(nginx.open, 900, client);
    assert.equal(got.length, 900);
    const refused = got.findIndex(({ status }) => status === 429);
    assert.ok(refused >= 400, 'a burst of 400 passes, 900 at once do not');
    const { headers, body } = got[refused] as Raw;
    assertProblem(429, headers, body);
    assert.equal(headers.get('retry-after'), '1');
    const [other] = await flood(nginx.open, 1, '203.0.113.7, 198.51.100.8');
    assert.equal(other?.status, 200, 'what a client writes in front is not believed');
    const many = await flood(nginx.open, 900, '');
    assert.ok(
      many.every(({ status }) => status === 200),
      'a peer that names nobody stands for many',
    );
  });

  test('429 to one who holds more than 100 requests open', async (t) => {
    const open: ServerResponse[] = [];
    behave(t, (_, outgoing) => open.push(outgoing));
    const headers = { 'x-forwarded-for': '203.0.113.9' };
    const all = Array.from({ length: 110 }, () => ask('/hello', { headers }));
    await until(() => open.length === 100);
    let refused = 0;
    for (const one of all) {
      void one.then(({ status }) => {
        refused += Number(status === 429);
      });
    }
    await until(() => refused === 10, 4500); // nginx gives up after 5 s
    for (const outgoing of open) outgoing.end('{}');
    assert.equal((await Promise.all(all)).filter(({ status }) => status === 200).length, 100);
  });

  test('the service is told the client that the last public address names', async (t) => {
    behave(t, hello);
    await ask('/hello', { headers: { 'x-forwarded-for': '1.2.3.4, 203.0.113.7, 10.1.2.3' } });
    assert.equal(heard[0]?.headers['x-forwarded-for'], '203.0.113.7');
  });
});

function probe(path: string): Promise<Response> {
  return fetch(`http://127.0.0.1:${nginx.probes}${path}`);
}

// --- Log -------------------------------------------------------------------------------

describe('Log', { skip }, () => {
  const lines = () =>
    nginx
      .log()
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line));

  test('each answer has one line, with the id that the client got', async () => {
    const given = ['sane-1:2/3', 'two words', 'é', `${'a'.repeat(129)}`, ''];
    const ids = await Promise.all(
      given.map(async (id) =>
        (
          await send(
            nginx.open,
            `GET /log HTTP/1.1\r\nX-Request-Id: ${id}\r\nHost: x\r\nConnection: close\r\n\r\n`,
          )
        ).headers.get('x-request-id'),
      ),
    );
    assert.equal(ids[0], 'sane-1:2/3');
    for (const id of ids.slice(1)) assert.match(id ?? '', /^[0-9a-f]{32}$/);
    const refused = (await send(nginx.open, 'GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n')).headers.get(
      'x-request-id',
    );
    const wanted = [...ids, refused];
    await until(() => wanted.every((id) => nginx.log().includes(`"id":"${id}"`)));
    for (const id of wanted) assert.equal(lines().filter((line) => line.id === id).length, 1);
  });

  test('whatever a client calls itself, the line is one line of ASCII', async () => {
    await send(
      nginx.open,
      `GET /agent?secret HTTP/1.1\r\nUser-Agent: a"\\ b\xff\xfe c\r\nHost: x\r\nConnection: close\r\n\r\n`,
    );
    await until(() => nginx.log().includes('/agent'));
    const [line] = lines().filter(({ path }) => path === '/agent');
    assert.equal(line.agent, 'a"\\ b');
    assert.equal(line.status, 200);
    assert.ok(Math.abs(line.time - Date.now()) < 60_000);
    assert.doesNotMatch(nginx.log(), /secret|[^\x20-\x7e\n]/);
  });
});

// --- Probes ------------------------------------------------------------------------------

test('8081 has the probes, /metrics and the status of nginx, and nothing else', {
  skip,
}, async (t) => {
  behave(t, hello);
  for (const path of ['/healthz', '/readyz', '/metrics'])
    assert.equal((await probe(path)).status, 200);
  assert.deepEqual(
    heard.map(({ url }) => url),
    ['/healthz', '/readyz', '/metrics'],
  );
  assert.match(await (await probe('/nginx')).text(), /^Active connections: \d+/);
  const { status, headers } = await probe('/passengers');
  assert.deepEqual([status, headers.get('content-type')], [404, 'application/problem+json']);
});
