/** smoke.ts and acceptance.ts against the real service, as it is and behind a proxy that spoils it. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { checks } from '../test/contract.ts';
import { bearer, inherited, nodeArguments, openService, startReady } from '../test/harness.ts';

const SECRET = 'a secret of the acceptance tests long enough';

const { database, service } = await openService({ AUTH: 'write', JWT_SECRET: SECRET });
const token = (await bearer(SECRET, 'acceptance')).authorization.replace('Bearer ', '');

type Answer = { status: number; headers: Record<string, string>; body: string };
type Spoil = (answer: Answer, request: IncomingMessage) => Answer;

/** A proxy before the service, below `prefix`; `spoil` changes its answers but for /openapi.json. */
async function startProxy(t: { after: (stop: () => unknown) => void }, spoil: Spoil, prefix = '') {
  const server = createServer(async (request, response) => {
    const { method = '', url = '' } = request;
    const { host, connection, 'content-length': length, ...headers } = request.headers;
    const given = await text(request);
    const init = {
      method,
      headers: headers as Record<string, string>,
      ...(given && { body: given }),
    };
    const reply = await fetch(service.url + url.slice(prefix.length), init);
    const { 'transfer-encoding': _, ...own } = Object.fromEntries(reply.headers);
    const answer = { status: reply.status, headers: own, body: await reply.text() };
    const spoilt = url.endsWith('/openapi.json') ? answer : spoil(answer, request);
    delete spoilt.headers['content-length'];
    response.writeHead(spoilt.status, spoilt.headers);
    response.end(method === 'HEAD' || [204, 304].includes(spoilt.status) ? '' : spoilt.body);
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  t.after(() => server.close().closeAllConnections());
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}${prefix}`;
}

/** Runs a script of this directory to its end. */
async function run(
  script: string,
  url: string,
  environment: Record<string, string> = { TOKEN: token },
) {
  const file = fileURLToPath(new URL(script, import.meta.url));
  const env = { ...inherited(), ...environment };
  const child = spawn(process.execPath, [...nodeArguments, file, url], { env });
  const closed = once(child, 'close');
  const [stdout, stderr] = await Promise.all([text(child.stdout), text(child.stderr)]);
  const [code] = await closed;
  const [row] = await database.sql`select count(*)::int as rows from titanic`;
  assert.equal(row?.rows, 0, 'rows are left');
  const failed = [...stdout.matchAll(/^not ok - (.*)$/gm)].map(([, name]) => name ?? '');
  return { code, output: stdout + stderr, failed };
}

test('acceptance passes with a token, by checks of distinct names, and prints no token', async () => {
  const { code, output } = await run('acceptance.ts', service.url);
  assert.equal(code, 0, output);
  assert.equal(new Set(checks.map(({ name }) => name)).size, checks.length);
  assert.ok(!output.includes(token));
});

test('acceptance passes where writes are open', async (t) => {
  const open = await startReady({ DATABASE_URL: database.url, AUTH: 'none' });
  t.after(() => open.stop());
  const { code, output } = await run('acceptance.ts', open.url, {});
  assert.equal(code, 0, output);
  assert.match(output, /writes are open/);
});

test('acceptance passes below a prefix, and waits where a rate limit asks for it', async (t) => {
  let requests = 0;
  const limit: Spoil = (answer, { method }) => {
    requests += 1;
    const isRefused = method === 'GET' && requests % 100 === 0;
    return isRefused ? { status: 429, headers: { 'retry-after': '1' }, body: '' } : answer;
  };
  const { code, output } = await run('acceptance.ts', await startProxy(t, limit, '/some/where'));
  assert.equal(code, 0, output);
});

const COMMANDS: [script: string, url: () => string, expected: RegExp][] = [
  ['acceptance.ts', () => service.url, /--token or TOKEN/],
  ['acceptance.ts', () => 'nowhere', /expected one URL/],
  ['smoke.ts', () => service.url, /--token or TOKEN/],
];
for (const [script, url, expected] of COMMANDS) {
  test(`${script} without a token ends with 1 and says ${expected}`, async () => {
    const { code, output } = await run(script, url(), {});
    assert.equal(code, 1);
    assert.match(output, expected);
  });
}

/** What a broken deployment does, and checks that notice it; none of them: every check does. */
const FAULTS: [fault: string, spoil: Spoil, noticing: RegExp[]][] = [
  ['every status is 500', (answer) => ({ ...answer, status: 500 }), []],
  [
    'headers are lost',
    ({ headers, ...answer }) => ({
      ...answer,
      headers: { 'content-type': headers['content-type'] ?? '' },
    }),
    [/X-Request-Id/, /Link/, /count=exact/, /Location/, /304/, /Idempotency-Key/, /is 405/, /401/],
  ],
  [
    'lists are empty',
    (answer) => (/^\[.*\]$/s.test(answer.body) ? { ...answer, body: '[]' } : answer),
    [/every column filters/, /like, ilike/, /count\(\)/, /limit, offset/, /array stores/],
  ],
];
for (const [fault, spoil, noticing] of FAULTS) {
  test(`acceptance fails where ${fault}, and removes its rows`, async (t) => {
    const { code, output, failed } = await run('acceptance.ts', await startProxy(t, spoil));
    assert.equal(code, 1, output);
    for (const pattern of noticing)
      assert.ok(
        failed.some((name) => pattern.test(name)),
        `${pattern}`,
      );
    if (noticing.length === 0) assert.equal(failed.length, checks.length + 1, output);
  });
}

describe('smoke', { concurrency: true }, () => {
  test('passes with a token', async () => {
    const { code, output } = await run('smoke.ts', service.url);
    assert.equal(code, 0, output);
  });

  test('fails within 10 s where nothing listens', async () => {
    const { code, output } = await run('smoke.ts', 'http://127.0.0.1:2'); // nobody's port
    assert.equal(code, 1, output);
    assert.match(output, /GET \/readyz: expected .* got 0 .*fetch failed/);
  });

  test('fails within 10 s where the database refuses writes', async (t) => {
    const spoil: Spoil = (answer, { method }) =>
      method === 'DELETE' ? { ...answer, status: 503 } : answer;
    const { code, output } = await run('smoke.ts', await startProxy(t, spoil));
    assert.equal(code, 1, output);
    assert.match(output, /DELETE .* got 503/);
  });
});
