/** compose.yaml, as far as it can be checked without Docker. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { parse } from 'yaml';
import { readConfig } from '../lib/config.ts';

const read = (path: string) => readFile(new URL(`../${path}`, import.meta.url), 'utf8');
const text = await read('compose.yaml');
const example = await read('.env.example');

type Variables = Record<string, string>;
const dotenv: Variables = Object.fromEntries(
  [...example.matchAll(/^(\w+)=(.*)$/gm)].map(([, name, value]) => [name, value]),
);

/** The services as Compose sees them: ${NAME:?message} is required, ${NAME:-default} is not. */
function servicesWith(given: Variables) {
  const filled = text.replace(/\$\{(\w+):([?-])([^}]+)\}/g, (_, name, operator, rest) => {
    if (!given[name] && operator === '?') throw new Error(`${name} ${rest}`);
    return given[name] || rest;
  });
  const { service, postgres } = parse(filled).services;
  service.environment.JWT_SECRET = given.JWT_SECRET; // without a value it is passed on
  return { service, postgres };
}

const complete = { ...dotenv, POSTGRES_PASSWORD: 'p' };

for (const [what, given, message] of [
  ['without .env', {}, /^Error: POSTGRES_PASSWORD is missing; cp \.env\.example \.env/],
  ['.env.example without a password', dotenv, /^Error: POSTGRES_PASSWORD is missing; cp/],
  ['without AUTH', { POSTGRES_PASSWORD: 'p' }, /^Error: AUTH is missing; cp/],
] as const) {
  test(`${what} the error says what to do`, () => {
    assert.throws(() => servicesWith(given), message);
  });
}

for (const [auth, given] of [
  ['none', complete],
  ['write', { ...complete, AUTH: 'write', JWT_SECRET: 's'.repeat(32) }],
] as const) {
  test(`with AUTH=${auth} the service accepts its environment, and finds its database`, () => {
    const { service, postgres } = servicesWith(given);
    const { PGUSER, PGDATABASE, PGPASSWORD, ...rest } = service.environment;
    const { AUTH, PGHOST } = readConfig({ NODE_ENV: 'production', ...rest });
    assert.deepEqual([AUTH, PGHOST], [auth, 'postgres']);
    const database = { POSTGRES_USER: PGUSER, POSTGRES_DB: PGDATABASE };
    assert.deepEqual(postgres.environment, { ...database, POSTGRES_PASSWORD: PGPASSWORD });
  });
}

test('8080 is published on 127.0.0.1 unless LISTEN says otherwise, and no other port', () => {
  assert.equal(dotenv.AUTH, 'none');
  assert.deepEqual(servicesWith(complete).service.ports, ['127.0.0.1:8080:8080']);
  const { service, postgres } = servicesWith({ ...complete, LISTEN: '0.0.0.0' });
  assert.deepEqual([service.ports, postgres.ports], [['0.0.0.0:8080:8080'], undefined]);
});

test('the image has the name that docs/image.md runs', async () => {
  const [, run = ''] = /docker run (.*)/.exec(await read('docs/image.md')) ?? [];
  assert.equal(servicesWith(complete).service.image, run.split(' ').at(-1));
});
