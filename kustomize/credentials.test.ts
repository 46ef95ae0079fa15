/** Runs components/credentials/credentials.ts against an API server with TLS and scripted answers. */
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { inherited, nodeArguments } from '../test/harness.ts';

const FILE = fileURLToPath(new URL('./components/credentials/credentials.ts', import.meta.url));
const directory = mkdtempSync(join(tmpdir(), 'passengers credentials-'));
after(() => rmSync(directory, { recursive: true }));

function certificate(name: string): { key: string; cert: string } {
  const [key, cert] = [join(directory, `${name}.key`), join(directory, `${name}.crt`)];
  const made = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'];
  const subject = ['-subj', `/CN=${name}`, '-addext', 'subjectAltName=IP:127.0.0.1'];
  const args = ['req', '-x509', ...made, ...subject, '-keyout', key, '-out', cert];
  execFileSync('openssl', args, { stdio: 'pipe' });
  return { key: readFileSync(key, 'utf8'), cert: readFileSync(cert, 'utf8') };
}

const trusted = certificate('trusted');
const stranger = certificate('stranger');

type Answer = number | 'hang' | 'reset';
type Call = { line: string; token: string; body: string };

/** An API server that gives one answer after the other, and the last one to every further call. */
async function startApi(answers: Answer[], identity = trusted) {
  const calls: Call[] = [];
  const api = createServer(identity, async (request, response) => {
    let body = '';
    for await (const chunk of request) body += chunk;
    const answer = answers[Math.min(calls.length, answers.length - 1)]!;
    const token = String(request.headers.authorization);
    calls.push({ line: `${request.method} ${request.url}`, token, body });
    if (answer === 'reset') request.socket.destroy();
    else if (answer !== 'hang') response.writeHead(answer).end(JSON.stringify({ message: body }));
  });
  api.on('tlsClientError', () => {});
  await once(api.listen(0, '127.0.0.1'), 'listening');
  return {
    calls,
    port: (api.address() as AddressInfo).port,
    stop: () => api.close().closeAllConnections(),
  };
}

/** Runs the file with what the kubelet mounts; resolves with its exit code and output. */
async function run(port?: number) {
  const mounted = mkdtempSync(join(directory, 'mounted-'));
  const files = { token: 'a.b.c', namespace: 'passengers-test', 'ca.crt': trusted.cert };
  for (const [name, content] of Object.entries(files)) writeFileSync(join(mounted, name), content);
  const api = { KUBERNETES_SERVICE_HOST: '127.0.0.1', KUBERNETES_SERVICE_PORT: String(port) };
  const env = { ...inherited(), ...(port === undefined ? {} : api) };
  const child = spawn(process.execPath, [...nodeArguments, FILE, mounted], { env });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (data) => (output += data));
  const [code] = await once(child, 'close');
  return { code, output };
}

function secretsIn(calls: Call[]): string[] {
  return calls.flatMap(({ body }) => Object.values<string>(JSON.parse(body).stringData));
}

/** Answers, exit code, number of calls, output. */
const CASES: [string, Answer[], number, [number, number], RegExp][] = [
  ['creates the Secret', [201], 0, [1, 1], /created the Secret passengers/],
  ['accepts that there is one', [409], 0, [1, 1], /the Secret passengers exists already/],
  ['ends at 401', [401], 1, [1, 1], /401: the token is not accepted/],
  ['ends at 403', [403], 1, [1, 1], /403: .* apply the Role and RoleBinding/],
  ['ends at 404', [404], 1, [1, 1], /404: there is no such namespace/],
  ['ends at 422', [422], 1, [1, 1], /422: .* admission policy/],
  ['ends at 400', [400], 1, [1, 1], /400: the API server refuses/],
  ['retries after 500', [500, 201], 0, [2, 2], /trying again/],
  ['retries after 429 and 503', [429, 503, 409], 0, [3, 3], /trying again/],
  ['retries after a reset connection', ['reset', 201], 0, [2, 2], /trying again/],
  ['retries after a call that hangs', ['hang', 201], 0, [2, 2], /trying again/],
  ['gives up after 20 s of 500', [500], 1, [3, 19], /fatal.*answered 500/],
  ['gives up after 20 s without an answer', ['hang'], 1, [3, 19], /fatal.*does not answer/],
];

describe('credentials.ts', { concurrency: 4 }, () => {
  for (const [what, answers, code, [least, most], output] of CASES) {
    test(`${what}, with the same values in each call and none in its output`, async () => {
      const api = await startApi(answers);
      const ended = await run(api.port);
      api.stop();
      assert.equal(ended.code, code, ended.output);
      assert.match(ended.output, output);
      assert.ok(api.calls.length >= least && api.calls.length <= most, String(api.calls.length));
      assert.equal(new Set(api.calls.map(({ body }) => body)).size, 1);
      for (const secret of ['a.b.c', ...secretsIn(api.calls)]) {
        assert.ok(!ended.output.includes(secret));
      }
    });
  }

  test('two at once post different random values of 256 bits, with the mounted token', async () => {
    const api = await startApi([201, 409]);
    const both = await Promise.all([run(api.port), run(api.port)]);
    api.stop();
    assert.deepEqual(
      both.map(({ code }) => code),
      [0, 0],
    );
    const secrets = secretsIn(api.calls);
    assert.equal(new Set(secrets).size, 4);
    for (const secret of secrets) assert.match(secret, /^[\w-]{43}$/);
    const [{ line, token, body }] = api.calls as [Call];
    assert.deepEqual(
      [line, token],
      ['POST /api/v1/namespaces/passengers-test/secrets', 'Bearer a.b.c'],
    );
    const { kind, metadata, stringData } = JSON.parse(body);
    assert.deepEqual([kind, metadata.name], ['Secret', 'passengers']);
    assert.deepEqual(Object.keys(stringData), ['JWT_SECRET', 'PGPASSWORD']);
  });

  test('sends nothing to a server whose certificate is not signed by ca.crt', async () => {
    const api = await startApi([201], stranger);
    const { code, output } = await run(api.port);
    api.stop();
    assert.deepEqual([code, api.calls], [1, []]);
    assert.match(output, /ca\.crt did not sign the certificate of 127\.0\.0\.1/);
  });

  test('ends outside of a cluster', async () => {
    const { code, output } = await run();
    assert.equal(code, 1);
    assert.match(output, /not in a cluster/);
  });
});
