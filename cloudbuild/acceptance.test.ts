/** smoke.ts and acceptance.ts against the real service, whole and behind a proxy that spoils it. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { SignJWT } from 'jose';
import {
  inherited,
  nodeArguments,
  startDatabase,
  startReady,
  type TestDatabase,
  type TestService,
} from '../test/harness.ts';

const SECRET = 'a secret of the acceptance tests long enough';

let database: TestDatabase;
let service: TestService;
let token: string;

before(async () => {
  database = await startDatabase();
  const environment = { DATABASE_URL: database.url, AUTH: 'write', JWT_SECRET: SECRET };
  service = await startReady(environment);
  token = await new SignJWT({})
    .setProtectedHeader({ alg: 'HS256' })
    .setSubject('acceptance')
    .setExpirationTime('1h')
    .sign(new TextEncoder().encode(SECRET));
});

after(async () => {
  await service?.stop();
  await database?.stop();
});

/** The answer of the service, to be spoiled. */
type Answer = { status: number; headers: Record<string, string>; body: string };
type Spoil = (answer: Answer, request: { method: string; url: string; body: string }) => Answer;

/** A proxy before the service, which answers what `spoil` makes of its answers. */
async function startSpoiler(spoil: Spoil, prefix = '') {
  const server = createServer(async (incoming, outgoing) => {
    const request = await readRequest(incoming, prefix);
    const { method, url, body, headers } = request;
    const given = body === '' ? {} : { body };
    const reply = await fetch(service.url + url, { method, headers, ...given });
    const own = Object.fromEntries(reply.headers);
    send(
      outgoing,
      spoil({ status: reply.status, headers: own, body: await reply.text() }, request),
    );
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const { port } = server.address() as AddressInfo;
  const stop = async () => {
    server.closeAllConnections();
    await once(server.close(), 'close');
  };
  return { url: `http://127.0.0.1:${port}${prefix}`, stop };
}

async function readRequest(incoming: IncomingMessage, prefix: string) {
  const { method = '', url = '', headers } = incoming;
  let body = '';
  for await (const part of incoming.setEncoding('utf8')) body += part;
  const { host: _, connection: __, 'content-length': ___, ...rest } = headers;
  const plain = rest as Record<string, string>;
  return { method, url: url.slice(prefix.length), body, headers: plain };
}

function send(outgoing: ServerResponse, { status, headers, body }: Answer): void {
  const { 'content-length': _, connection: __, 'transfer-encoding': ___, ...kept } = headers;
  outgoing.writeHead(status, kept).end(status === 204 || status === 304 ? undefined : body);
}

/** Runs a script of this directory to its end. */
async function run(script: string, args: string[], environment: Record<string, string> = {}) {
  const file = fileURLToPath(new URL(script, import.meta.url));
  const env = { ...inherited(), ...environment };
  const child: ChildProcess = spawn(process.execPath, [...nodeArguments, file, ...args], { env });
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream?.setEncoding('utf8').on('data', (data) => {
      output += data;
    });
  const [code] = await once(child, 'close');
  const named = (prefix: string) => [...output.matchAll(new RegExp(`^${prefix} - (.*)$`, 'gm'))];
  const failed = named('not ok').map(([, name]) => name ?? '');
  return { code, output, failed, passed: named('ok').map(([, name]) => name ?? '') };
}

async function rowsLeft(): Promise<number> {
  const [row] = await database.sql`select count(*)::int as rows from titanic`;
  return row?.rows;
}

describe('acceptance', () => {
  test('it passes on the service as it is, by more than 60 checks, and leaves nothing', async () => {
    const { code, output, passed } = await run('acceptance.ts', [service.url], { TOKEN: token });
    assert.equal(code, 0, output);
    assert.ok(passed.length >= 60, output);
    assert.equal(new Set(passed).size, passed.length, 'each check has a name of its own');
    assert.ok(!output.includes(token));
    assert.equal(await rowsLeft(), 0);
  });

  test('it passes where writes are open, and under a path prefix', async () => {
    const open = await startReady({ DATABASE_URL: database.url, AUTH: 'none' });
    const prefixed = await startSpoiler((answer) => answer, '/some/where');
    const runs = await Promise.all([
      run('acceptance.ts', [open.url]),
      run('acceptance.ts', [`${prefixed.url}/`, '--token', token]),
    ]);
    await open.stop();
    await prefixed.stop();
    for (const { code, output } of runs) assert.equal(code, 0, output);
    assert.match(runs[0]?.output ?? '', /writes are open here/);
  });

  test('it names the token that it lacks', async () => {
    const { code, output } = await run('acceptance.ts', [service.url]);
    assert.equal(code, 1);
    assert.match(output, /--token or TOKEN/);
  });

  test('it refuses a command line without a URL', async () => {
    const { code, output } = await run('acceptance.ts', ['nowhere']);
    assert.equal(code, 1);
    assert.match(output, /expected one URL/);
  });

  test('it waits when a rate limit asks for it', async () => {
    let requests = 0;
    const limited = await startSpoiler((answer, { method }) => {
      requests += 1;
      const refuse = method === 'GET' && requests % 40 === 0;
      return refuse ? { status: 429, headers: { 'retry-after': '1' }, body: '' } : answer;
    });
    const { code, output } = await run('acceptance.ts', [limited.url], { TOKEN: token });
    await limited.stop();
    assert.equal(code, 0, output);
  });
});

type Request = { method: string; body: string };
const isProbe = ({ method, body }: Request) => method === 'POST' && body === '{}';

/** What a broken deployment does, and checks that have to notice. */
const FAULTS: [what: string, spoil: Spoil, noticing: string[]][] = [
  [
    'every status is 500',
    (answer, request) => (isProbe(request) ? answer : { ...answer, status: 500 }),
    ['GET /hello says ok', 'DELETE of a row: 204, then 404', 'nothing is left behind'],
  ],
  [
    'headers are lost',
    ({ headers: { 'content-type': type = '' }, ...answer }) => {
      return { ...answer, headers: { 'content-type': type } };
    },
    [
      'every answer carries X-Request-Id, the given one where it is sane',
      'every answer carries Server-Timing',
      'Link leads to the rows behind a page, and on to the end',
      'count=exact counts, and answers a part with 206',
      'POST of an object: 201, the object, Location and ETag',
      'If-None-Match: 304 while the row is as it was',
      'an Idempotency-Key makes one row of two requests',
      'another method on a known path is 405',
      'a write with no token is 401',
    ],
  ],
  [
    'texts are garbled',
    (answer) => ({ ...answer, body: answer.body.replaceAll('acceptance', 'accepted') }),
    [
      'a row is read as it was created, in declared order',
      'application/x-ndjson has a row a line',
      'PATCH of a row changes what it names',
      '/rest/v1 reads the same',
    ],
  ],
  [
    'errors are HTML',
    (answer, request) =>
      answer.status < 400 || isProbe(request)
        ? answer
        : { ...answer, headers: { 'content-type': 'text/html' }, body: '<h1>Error</h1>' },
    [
      'an unknown path is 404',
      'a refused row names all of its faults at once',
      'a body over the limit is 413',
      'If-Match: 412 when another was faster, and nothing is changed',
      'a write with a forged token is 401',
    ],
  ],
  [
    'lists are empty',
    (answer) => (/^\[.*\]$/s.test(answer.body) ? { ...answer, body: '[]' } : answer),
    [
      'a list finds by eq and shows Content-Range',
      'count() groups',
      'order, limit and offset page',
    ],
  ],
];

describe('acceptance of a broken deployment', () => {
  const noticed = new Set<string>();
  const silent = new Set<string>();

  for (const [what, spoil, noticing] of FAULTS) {
    test(`it fails where ${what}, and leaves nothing behind`, async () => {
      const spoiler = await startSpoiler(spoil);
      const result = await run('acceptance.ts', [spoiler.url], { TOKEN: token });
      await spoiler.stop();
      assert.equal(result.code, 1, result.output);
      for (const name of noticing) assert.ok(result.failed.includes(name), `not noticed: ${name}`);
      for (const name of result.failed) noticed.add(name);
      for (const name of result.passed) silent.add(name);
      assert.equal(await rowsLeft(), 0);
    });
  }

  test('each check failed in one of these', () => {
    const never = [...silent].filter((name) => !noticed.has(name));
    assert.deepEqual(never, ['the deployment answers']);
  });
});

describe('smoke', () => {
  test('it passes on the service as it is, and leaves nothing', async () => {
    const { code, output } = await run('smoke.ts', [service.url], { TOKEN: token });
    assert.equal(code, 0, output);
    assert.equal(await rowsLeft(), 0);
  });

  test('it names the token that it lacks', async () => {
    const { code, output } = await run('smoke.ts', [service.url]);
    assert.equal(code, 1);
    assert.match(output, /--token or TOKEN/);
  });

  test('it fails within its time where nothing listens', async () => {
    const { code, output } = await run('smoke.ts', ['http://127.0.0.1:2']); // nobody's port
    assert.equal(code, 1);
    assert.match(output, /read a list/);
  });

  const SPOILT: [what: string, spoil: Spoil, says: RegExp][] = [
    [
      'a row comes back changed',
      (answer) => ({ ...answer, body: answer.body.replace('smoke test', 'smoked') }),
      /read it back/,
    ],
    [
      'creating fails after the row was stored',
      (answer, { method }) => (method === 'POST' ? { ...answer, status: 503 } : answer),
      /create a row: expected 201, got 503/,
    ],
    [
      'removing fails',
      (answer, { method }) => (method === 'DELETE' ? { ...answer, status: 500 } : answer),
      /remove it: expected 204, got 500/,
    ],
  ];

  for (const [what, spoil, says] of SPOILT) {
    test(`it fails where ${what}, and leaves nothing`, async () => {
      const spoiler = await startSpoiler(spoil);
      const { code, output } = await run('smoke.ts', [spoiler.url], { TOKEN: token });
      await spoiler.stop();
      assert.equal(code, 1, output);
      assert.match(output, says);
      assert.equal(await rowsLeft(), 0);
    });
  }
});
