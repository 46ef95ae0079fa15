/** compose.yaml, as far as it can be checked without Docker. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { parse } from 'yaml';
import { readConfig } from '../app.ts';

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
  const { JWT_SECRET } = given; // without a value it is passed on from .env, or unset
  if (JWT_SECRET) service.environment.JWT_SECRET = JWT_SECRET;
  else delete service.environment.JWT_SECRET;
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

for (const [given, auth] of [
  [complete, 'none'],
  [{ ...complete, AUTH: 'write', JWT_SECRET: 's'.repeat(32) }, 'write'],
] as const) {
  test(`with AUTH=${auth} the service accepts its environment, and finds its database`, () => {
    const { service, postgres } = servicesWith(given);
    const { AUTH, PGHOST } = readConfig({ NODE_ENV: 'production', ...service.environment });
    assert.deepEqual([AUTH, PGHOST], [auth, 'postgres']);
    const { PGUSER, PGDATABASE, PGPASSWORD } = service.environment;
    const { POSTGRES_USER, POSTGRES_DB, POSTGRES_PASSWORD } = postgres.environment;
    assert.deepEqual(
      [PGUSER, PGDATABASE, PGPASSWORD],
      [POSTGRES_USER, POSTGRES_DB, POSTGRES_PASSWORD],
    );
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
