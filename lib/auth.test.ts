/** Tests of tokens: who is let in, and how the others are refused. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { describe, test } from 'node:test';
import { decodeJwt, exportJWK, generateKeyPair, SignJWT } from 'jose';
import { createAuth, makeToken, needsToken } from './auth.ts';
import { openLog } from './log.ts';
import type { Problem } from './problem.ts';

const [FIRST, SECOND] = ['first-secret-of-32-bytes-or-more!', 'second-secret-of-32-bytes-or-more'];
const OPTIONS = {
  AUTH: undefined,
  JWT_SECRET: [FIRST, SECOND],
  JWKS_URL: undefined,
  JWT_ISSUER: 'https://issuer.example',
  JWT_AUDIENCE: 'passengers',
  JWT_WRITE_SCOPE: 'write',
};
const log = openLog('silent');
const authorize = createAuth(OPTIONS, log);

const now = () => Math.floor(Date.now() / 1000);
const good = () => ({
  sub: 'ann',
  iss: OPTIONS.JWT_ISSUER,
  aud: OPTIONS.JWT_AUDIENCE,
  scope: 'read write',
  exp: now() + 60,
});

/** A token with these claims besides the good ones; undefined leaves one out. */
function sign(claims: object = {}, secret = FIRST, header: object = {}): Promise<string> {
  const token = new SignJWT({ ...good(), ...claims });
  return token.setProtectedHeader({ alg: 'HS256', ...header }).sign(Buffer.from(secret));
}

const ROOT = { ...good(), sub: 'root' };
const CRITICAL = { alg: 'HS256', crit: ['x'], x: 1 };
const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url');

/** The caller of the token, or the code of its refusal. */
async function callerOf(token: string, writes = false): Promise<string> {
  return authorize(`Bearer ${token}`, writes).catch(({ code }: Problem) => code);
}

describe('a token', () => {
  for (const secret of [FIRST, SECOND])
    test(`signed with ${secret.slice(0, 6)} is let in, again too`, async () => {
      const token = await sign({}, secret);
      assert.deepEqual([await callerOf(token), await callerOf(token)], ['ann', 'ann']);
    });

  test('is let in whatever the case of its scheme, and until 5 s after exp', async () => {
    assert.equal(await authorize(`bEARER  ${await sign()}`, false), 'ann');
    assert.equal(await callerOf(await sign({ exp: now() - 2 })), 'ann');
  });

  const refused: [string, () => Promise<string> | string, string?][] = [
    ['expired', () => sign({ exp: now() - 10 }), 'PGRST303'],
    ['that is garbage', () => 'garbage'],
    ['of two parts', () => 'a.b'],
    ['of another secret', () => sign({}, 'x'.repeat(32))],
    ['without its signature', async () => (await sign()).replace(/[^.]*$/, '')],
    ['of alg none', () => `${encode({ alg: 'none' })}.${encode(good())}.`],
    ['of HS512', () => sign({}, FIRST, { alg: 'HS512' })],
    ['of RS256 by name', () => `${encode({ alg: 'RS256' })}.${encode(good())}.x`],
    ['of another payload', async () => (await sign()).replace(/[.].*[.]/, `.${encode(ROOT)}.`)],
    ['without exp', () => sign({ exp: undefined })],
    ['with exp as text', () => sign({ exp: '9999999999' })],
    ['without sub', () => sign({ sub: undefined })],
    ['with an empty sub', () => sign({ sub: '' })],
    ['with a list as sub', () => sign({ sub: ['ann'] })],
    ['of another issuer', () => sign({ iss: 'https://evil.example' })],
    ['without issuer', () => sign({ iss: undefined })],
    ['of another audience', () => sign({ aud: 'other' })],
    ['without audience', () => sign({ aud: undefined })],
    ['before its time', () => sign({ nbf: now() + 60 })],
    ['with an unknown crit', () => `${encode(CRITICAL)}.${encode(good())}.x`],
  ];
  for (const [name, make, code = 'PGRST301'] of refused)
    test(`${name} is refused with ${code}`, async () => {
      const message = code === 'PGRST303' ? 'JWT expired' : 'JWT invalid';
      const expected = { status: 401, code, message };
      await assert.rejects(authorize(`Bearer ${await make()}`, false), expected);
    });

  for (const authorization of [undefined, '', 'Bearer', 'Bearer ', 'Basic YTpi', 'Bearer a b'])
    test(`is required: "${authorization}" is none`, async () => {
      const headers = { 'WWW-Authenticate': 'Bearer realm="api"' };
      const expected = { status: 401, code: 'PGRST302', extras: { headers } };
      await assert.rejects(authorize(authorization, false), expected);
    });

  const scopes: [unknown, string][] = [
    ['read write', 'ann'],
    ['read', '42501'],
    ['write:all', '42501'],
    [undefined, '42501'],
  ];
  for (const [scope, expected] of scopes)
    test(`of scope ${scope} reads; a write is ${expected}`, async () => {
      const token = await sign({ scope });
      assert.deepEqual([await callerOf(token), await callerOf(token, true)], ['ann', expected]);
    });
});

describe('needsToken()', () => {
  const modes: ['none' | 'write' | 'all' | undefined, boolean, boolean, boolean][] = [
    [undefined, false, false, false],
    [undefined, true, true, true],
    ['none', true, false, false],
    ['write', true, false, true],
    ['all', true, true, true],
  ];
  for (const [AUTH, keyed, reads, writes] of modes)
    test(`AUTH=${AUTH} ${keyed ? 'with' : 'without'} a key`, () => {
      const options = { ...OPTIONS, AUTH, JWT_SECRET: keyed ? [FIRST] : undefined };
      assert.deepEqual([needsToken(options, false), needsToken(options, true)], [reads, writes]);
    });
});

test('makeToken() signs with the first secret', async () => {
  const token = await makeToken(OPTIONS, { sub: 'me', scope: 'write', expires: '5m' });
  assert.equal(await callerOf(token, true), 'me');
  const plain = decodeJwt(await makeToken({ ...OPTIONS, JWT_ISSUER: undefined }, {}));
  assert.deepEqual([plain.sub, plain.iss, plain.scope], ['me', undefined, undefined]);
  assert.equal(Number(plain.exp) - Number(plain.iat), 3600);
});

describe('keys of JWKS_URL', () => {
  /** A service whose keys are answered by `answer`, and a token signed with `kid` one. */
  async function keyed(answer: (key: object) => [number, string, object?]) {
    const { publicKey, privateKey } = await generateKeyPair('ES256');
    const key = { ...(await exportJWK(publicKey)), kid: 'one', alg: 'ES256' };
    const server = createServer((_, response) => {
      const [status, body, headers = {}] = answer(key);
      response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(body);
    });
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const JWKS_URL = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const check = createAuth({ ...OPTIONS, JWT_SECRET: undefined, JWKS_URL }, log);
    const ask = async (sub: string, kid = 'one') => {
      const token = new SignJWT({ ...good(), sub }).setProtectedHeader({ alg: 'ES256', kid });
      const signed = await token.sign(privateKey);
      return check(`Bearer ${signed}`, false).catch(({ status }: Problem) => status);
    };
    return { ask, stop: () => server.close() };
  }

  const broken: [string, (key: object) => [number, string, object?]][] = [
    ['an error', () => [500, '']],
    ['an error with keys', (key) => [500, JSON.stringify({ keys: [key] })]],
    ['a redirect', (key) => [302, JSON.stringify({ keys: [key] }), { location: '/' }]],
    ['no JSON', () => [200, '<html>']],
    ['no keys', () => [200, '{}']],
    ['an empty set', () => [200, '{"keys":[]}']],
    ['null', () => [200, 'null']],
    ['text for keys', () => [200, '{"keys":"many"}']],
    ['a key without kty', () => [200, '{"keys":[{},1]}']],
    ['101 keys', (key) => [200, JSON.stringify({ keys: Array(101).fill(key) })]],
    ['more than 1 MiB', (key) => [200, JSON.stringify({ keys: [key], more: 'x'.repeat(2 ** 20) })]],
  ];
  for (const [name, answer] of broken)
    test(`${name} is 503 at the start and for a second; later known keys serve on`, async (t) => {
      t.mock.timers.enable({ apis: ['Date'], now: Date.now() });
      let [now, asked] = [answer, 0];
      const { ask, stop } = await keyed((key) => {
        asked += 1;
        return now(key);
      });
      assert.equal(await ask('ann'), 503);
      const first = asked; // a redirect is two
      now = (key) => [200, JSON.stringify({ keys: [key] })];
      assert.deepEqual([await ask('ann'), asked], [503, first]);
      t.mock.timers.tick(1000);
      assert.equal(await ask('ann'), 'ann');
      now = answer;
      t.mock.timers.tick(31_000); // past the cooldown
      assert.deepEqual([await ask('bob', 'two'), await ask('cid')], [503, 'cid']);
      stop();
    });
});
