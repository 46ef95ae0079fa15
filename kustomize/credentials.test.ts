/** The initContainer, as a process, before an API server with TLS that answers as it is told. */
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { inherited, nodeArguments } from '../test/harness.ts';

const CREDENTIALS = fileURLToPath(
  new URL('./components/credentials/credentials.ts', import.meta.url),
);
const run = promisify(execFile);
const stranger = { key: '', cert: '' };
const server = { key: '', cert: '' };
let directory = '';

before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'passengers credentials-'));
  for (const [pair, name] of [
    [server, 'server'],
    [stranger, 'stranger'],
  ] as const) {
    const [key, cert] = [join(directory, `${name}.key`), join(directory, `${name}.crt`)];
    const made = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'];
    const named = ['-subj', `/CN=${name}`, '-addext', 'subjectAltName=IP:127.0.0.1'];
    await run('openssl', ['req', '-x509', ...made, ...named, '-keyout', key, '-out', cert]);
    Object.assign(pair, { key: await readFile(key), cert: await readFile(cert) });
  }
});

after(() => rm(directory, { recursive: true }));

type Call = { method: string; path: string; token: string; body: string };
type Answer = number | 'hang' | 'reset';

/** An API server that gives one answer after the other, the last one for ever. */
async function startApi(answers: Answer[], identity = server) {
  const calls: Call[] = [];
  const api = createServer(identity, async (asked: IncomingMessage, answer: ServerResponse) => {
    let body = '';
    for await (const chunk of asked) body += chunk;
    const { method = '', url: path = '', headers } = asked;
    const next = answers[Math.min(calls.length, answers.length - 1)] ?? 500;
    calls.push({ method, path, token: String(headers.authorization), body });
    if (next === 'reset') return void asked.socket.destroy();
    if (next === 'hang') return;
    answer.writeHead(next, { 'Content-Type': 'application/json' });
    answer.end(JSON.stringify({ kind: 'Status', code: next, message: `refused: ${body}` }));
  });
  api.on('tlsClientError', () => {});
  await once(api.listen(0, '127.0.0.1'), 'listening');
  const { port } = api.address() as AddressInfo;
  const stop = () => {
    api.closeAllConnections();
    api.close();
  };
  return { port, calls, stop };
}

/** Runs the file with what the kubelet mounts; resolves with its end and all that it printed. */
async function runCredentials(port: number, ca: string | Buffer = server.cert) {
  const mounted = await mkdtemp(join(directory, 'mounted-'));
  const files = { token: 'a.b.c', namespace: 'passengers-test', 'ca.crt': ca };
  for (const [name, text] of Object.entries(files)) await writeFile(join(mounted, name), text);
  const api = { KUBERNETES_SERVICE_HOST: '127.0.0.1', KUBERNETES_SERVICE_PORT: String(port) };
  const env = { ...inherited(), ...(port === 0 ? {} : api) };
  const child = spawn(process.execPath, [...nodeArguments, CREDENTIALS, mounted], { env });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (data) => {
      output += data;
    });
  }
  const [code] = await once(child, 'close');
  return { code, output };
}

function secretIn({ body }: Call): Record<string, string> {
  return JSON.parse(body).stringData;
}

describe('credentials.ts', { concurrency: 3 }, () => {
  test('posts one Secret of random values to the namespace, with the mounted token', async () => {
    const api = await startApi([201]);
    const { code, output } = await runCredentials(api.port);
    api.stop();
    assert.equal(code, 0, output);
    assert.equal(api.calls.length, 1);
    const [call] = api.calls;
    assert.deepEqual(
      [call!.method, call!.path, call!.token],
      ['POST', '/api/v1/namespaces/passengers-test/secrets', 'Bearer a.b.c'],
    );
    const { apiVersion, kind, metadata } = JSON.parse(call!.body);
    assert.deepEqual([apiVersion, kind, metadata.name], ['v1', 'Secret', 'passengers']);
    assert.deepEqual(Object.keys(secretIn(call!)), ['JWT_SECRET', 'PGPASSWORD']);
    for (const value of Object.values(secretIn(call!))) assert.match(value, /^[\w-]{43}$/);
    assert.match(output, /created the Secret passengers/);
  });

  test('two at once both succeed: one makes it, the other finds it', async () => {
    const api = await startApi([201, 409]);
    const both = await Promise.all([runCredentials(api.port), runCredentials(api.port)]);
    api.stop();
    assert.deepEqual(
      both.map(({ code }) => code),
      [0, 0],
    );
    const values = api.calls.flatMap((call) => Object.values(secretIn(call)));
    assert.equal(new Set(values).size, 4);
    const outputs = both.map(({ output }) => output).join();
    assert.match(outputs, /created the Secret/);
    assert.match(outputs, /was there/);
  });

  const refused: [number, RegExp][] = [
    [401, /401: the token is not accepted/],
    [403, /403: .* apply the Role and RoleBinding/],
    [404, /404: there is no such namespace/],
    [422, /422: .* admission policy/],
    [400, /400: the API server refuses/],
  ];
  for (const [status, message] of refused) {
    test(`${status} fails at once and says what to do`, async () => {
      const api = await startApi([status]);
      const { code, output } = await runCredentials(api.port);
      api.stop();
      assert.equal(code, 1);
      assert.equal(api.calls.length, 1);
      assert.match(output, message);
    });
  }

  const mended: [string, Answer[]][] = [
    ['500, then 201', [500, 201]],
    ['429, 503, then 409', [429, 503, 409]],
    ['a connection reset, then 201', ['reset', 201]],
    ['an API server that hangs, then 201', ['hang', 201]],
  ];
  for (const [name, answers] of mended) {
    test(`${name}: tries again with the same values`, async () => {
      const api = await startApi(answers);
      const { code, output } = await runCredentials(api.port);
      api.stop();
      assert.equal(code, 0, output);
      assert.equal(api.calls.length, answers.length);
      assert.equal(new Set(api.calls.map(({ body }) => body)).size, 1);
      assert.match(output, /trying again/);
    });
  }

  for (const answer of ['hang', 500] as const) {
    test(`${answer} for ever: gives up, for the kubelet to start it again`, async () => {
      const api = await startApi([answer]);
      const { code, output } = await runCredentials(api.port);
      api.stop();
      assert.equal(code, 1);
      assert.ok(api.calls.length > 2 && api.calls.length < 20, String(api.calls.length));
      assert.match(output, answer === 500 ? /fatal.*answered 500/ : /fatal.*does not answer/);
    });
  }

  test('a server that ca.crt does not vouch for gets nothing, not even the token', async () => {
    const api = await startApi([201], stranger);
    const { code, output } = await runCredentials(api.port);
    api.stop();
    assert.equal(code, 1);
    assert.deepEqual(api.calls, []);
    assert.match(output, /ca\.crt does not vouch for 127\.0\.0\.1/);
  });

  test('outside of a cluster it says so', async () => {
    const { code, output } = await runCredentials(0);
    assert.equal(code, 1);
    assert.match(output, /not in a cluster/);
  });

  test('no value and no token is ever printed, whatever the server repeats', async () => {
    for (const answers of [[201], [422], [500, 409]]) {
      const api = await startApi(answers);
      const { output } = await runCredentials(api.port);
      api.stop();
      const secrets = ['a.b.c', ...api.calls.flatMap((call) => Object.values(secretIn(call)))];
      for (const secret of secrets) assert.ok(!output.includes(secret));
    }
  });
});
