/** What the server answers itself and when it does not start; test/promises.test.ts has how it stops. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { pino } from 'pino';
import { sendRaw } from '../test/harness.ts';
import { StartError } from './problem.ts';
import { LIMITS, type Running, type Service, serve, urlOf } from './server.ts';

const log = pino({ level: 'silent' });
const OPTIONS = { PORT: 0, HOST: '127.0.0.1', SHUTDOWN_GRACE: 0 };

function serviceOf(members: Partial<Service> = {}): Service {
  const life = { prepared: false, stopping: false };
  const nothing = async () => {};
  return { fetch: () => new Response('ok'), life, prepare: nothing, close: nothing, ...members };
}

describe('A request that is not for the application', () => {
  let running: Running;
  before(async () => {
    running = await serve(OPTIONS, serviceOf(), log);
  });
  after(() => running?.stop());

  const HOST = 'Host: x\r\n';
  const POST = `POST / HTTP/1.1\r\n${HOST}Content-Length: 3\r\n`;
  const refused: [name: string, bytes: string, status: number][] = [
    ['an unknown method', `FOO / HTTP/1.1\r\n${HOST}\r\n`, 405],
    ['CONNECT', `CONNECT x:1 HTTP/1.1\r\n${HOST}\r\n`, 405],
    ['a line that is not HTTP', 'GET hello\r\n\r\n', 400],
    ['an invalid Host', 'GET / HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n', 400],
    ['two kinds of length', `${POST}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n`, 400],
    ['two lengths', `${POST}Content-Length: 4\r\n\r\nabc`, 400],
    ['an unknown expectation', `POST / HTTP/1.1\r\n${HOST}Expect: magic\r\n\r\n`, 417],
    ['a header of 400 kB', `GET / HTTP/1.1\r\n${HOST}X: ${'x'.repeat(400_000)}\r\n\r\n`, 431],
  ];
  for (const [name, bytes, status] of refused) {
    test(`with ${name} is a problem of ${status}`, async () => {
      const answer = await sendRaw(running.url, bytes);
      assert.match(answer, new RegExp(`^HTTP/1\\.1 ${status} `));
      assert.match(answer, /\r\ncontent-type: application\/problem\+json\r\n/i);
      assert.match(answer, /\r\nx-request-id: [\w-]+\r\n/i);
      assert.match(answer, new RegExp(`"status":${status},"detail":"[^"]+"`));
    });
  }

  test('with an unknown expectation has no body in the answer to HEAD', async () => {
    const answer = await sendRaw(running.url, `HEAD / HTTP/1.1\r\n${HOST}Expect: magic\r\n\r\n`);
    assert.match(answer, /^HTTP\/1\.1 417 [\s\S]*\r\n\r\n$/);
  });

  test('that does not arrive in time is a problem of 408', async (t) => {
    const { headersTimeout, connectionsCheckingInterval } = LIMITS;
    Object.assign(LIMITS, { headersTimeout: 50, connectionsCheckingInterval: 20 });
    const slow = await serve(OPTIONS, serviceOf(), log);
    Object.assign(LIMITS, { headersTimeout, connectionsCheckingInterval });
    t.after(slow.stop);
    assert.match(
      await sendRaw(slow.url, 'GET / HTTP/1.1\r\n'),
      /^HTTP\/1\.1 408 [\s\S]*"status":408/,
    );
  });
});

describe('serve()', () => {
  test('refuses a port in use', async (t) => {
    const first = await serve(OPTIONS, serviceOf(), log);
    t.after(first.stop);
    const PORT = Number(new URL(first.url).port);
    await assert.rejects(serve({ ...OPTIONS, PORT }, serviceOf(), log), (error: Error) => {
      assert.match(error.message, /^Cannot listen on PORT \d+ of HOST 127\.0\.0\.1 \(EADDRINUSE\)/);
      return error instanceof StartError;
    });
  });

  test('rejects when the table is not as declared', async () => {
    const prepare = async () => {
      throw new StartError('table things: name is missing');
    };
    await assert.rejects(serve(OPTIONS, serviceOf({ prepare }), log), /name is missing/);
  });
});

const addresses: [address: string, url: string][] = [
  ['127.0.0.1', 'http://127.0.0.1:80'],
  ['::1', 'http://[::1]:80'],
];
for (const [address, url] of addresses) {
  test(`urlOf() of ${address} is ${url}`, () => assert.equal(urlOf({ address, port: 80 }), url));
}
