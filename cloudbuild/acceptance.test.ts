/** smoke.ts and acceptance.ts against the real service, and against one that is broken. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { checks } from '../test/contract.ts';
import { bearer, inherited, nodeArguments, openService, startReady } from '../test/harness.ts';

const SECRET = 'a secret of the acceptance tests long enough';

const { database, service } = await openService({ AUTH: 'write', JWT_SECRET: SECRET });
const token = (await bearer(SECRET, 'acceptance')).authorization.replace('Bearer ', '');

/** The service behind a limit of requests, or broken: all but its document is answered so. */
async function startBroken(t: TestContext, status: number, times = Number.POSITIVE_INFINITY) {
  let count = 0;
  const server = createServer(async (request, response) => {
    const { method = '', url = '' } = request;
    count += 1;
    if (!url.endsWith('/openapi.json') && count <= times)
      return void response.writeHead(status, { 'retry-after': '1' }).end();
    const { host, connection, 'content-length': length, ...headers } = request.headers;
    const given = await text(request);
    const init = { method, headers: headers as Record<string, string> };
    const reply = await fetch(service.url + url, given ? { ...init, body: given } : init);
    const { 'transfer-encoding': _, ...own } = Object.fromEntries(reply.headers);
    response.writeHead(reply.status, own).end(Buffer.from(await reply.arrayBuffer()));
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  t.after(() => server.close().closeAllConnections());
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** Runs a script of this directory to its end. */
async function run(script: string, url: string, TOKEN = token) {
  const file = fileURLToPath(new URL(script, import.meta.url));
  const env = { ...inherited(), TOKEN };
  const child = spawn(process.execPath, [...nodeArguments, file, url], { env });
  const closed = once(child, 'close');
  const output = (await Promise.all([text(child.stdout), text(child.stderr)])).join('');
  const [code] = await closed;
  const [row] = await database.sql`select count(*)::int as rows from titanic`;
  assert.equal(row?.rows, 0, 'rows are left');
  return { code, output, failed: output.match(/^not ok - /gm)?.length };
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
  const { code, output } = await run('acceptance.ts', open.url, '');
  assert.equal(code, 0, output);
  assert.match(output, /writes are open/);
});

test('acceptance waits where a rate limit asks for it', async (t) => {
  const { code, output } = await run('acceptance.ts', await startBroken(t, 429, 3));
  assert.equal(code, 0, output);
});

const NOWHERE = 'http://127.0.0.1:2'; // nobody's port
const COMMANDS: [script: string, url: string, code: number, says: RegExp, token?: string][] = [
  ['acceptance.ts', service.url, 1, /--token or TOKEN/, ''],
  ['acceptance.ts', 'nowhere', 1, /expected one URL/],
  ['smoke.ts', service.url, 1, /--token or TOKEN/, ''],
  ['smoke.ts', NOWHERE, 1, /GET \/readyz: expected .* got 0 .*fetch failed/],
  ['smoke.ts', service.url, 0, /is ready, reads and takes writes/],
];
for (const [script, url, expected, says, given] of COMMANDS) {
  test(`${script} of ${url} ends with ${expected} and says ${says}`, async () => {
    const { code, output } = await run(script, url, given);
    assert.equal(code, expected, output);
    assert.match(output, says);
  });
}

test('acceptance fails by every check where every status is 500', async (t) => {
  const { code, output, failed } = await run('acceptance.ts', await startBroken(t, 500));
  assert.equal(code, 1, output);
  assert.equal(failed, checks.length + 1, output);
});
