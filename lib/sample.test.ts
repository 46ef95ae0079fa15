import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { integer, owner, resource, text } from './columns.ts';
import { readConfig } from './config.ts';
import { greeting } from './sample.ts';

const KEYED = { JWT_SECRET: 'a secret of thirty-two bytes or more' };
const BEARER = '-H "Authorization: Bearer $TOKEN"';
const columns = { no: integer(1, 99, { example: 7 }), name: text(20, { example: "O'Hara" }) };
const things = resource({ path: 'things', table: 'things', key: 'no', columns });
const owned = { user: owner(/^u/, { example: 'user:1' }) };
const own = resource({ path: 'own', table: 'own', key: 'uuid', columns: owned });

describe('greeting', () => {
  const greet = (environment: Record<string, string>, resources = [things]) =>
    greeting(readConfig(environment), 'http://h:1', resources);

  test('shows a list and a create, with a key that the body gives, below BASE_PATH', () => {
    const shown = greet({ BASE_PATH: '/api' });
    assert.ok(shown.includes("\n    curl 'http://h:1/api/things?limit=2'\n"), shown);
    assert.ok(shown.includes(`-d '{"no":7,"name":"O\\u0027Hara"}'`), shown);
    assert.doesNotMatch(shown, /token/i);
  });

  test('with AUTH=write shows how to make a token, which the create alone sends', () => {
    const shown = greet({ ...KEYED, AUTH: 'write', JWT_WRITE_SCOPE: 'w' });
    assert.ok(shown.includes('TOKEN=$(npm -s start -- token --sub me --scope w)\n'), shown);
    assert.equal(shown.split(BEARER).length, 2, shown);
  });

  test('with AUTH=all shows the token on both, made for a sub that may own rows', () => {
    const shown = greet(KEYED, [things, own]);
    assert.ok(shown.includes('token --sub user:1)\n'), shown);
    assert.equal(shown.split(BEARER).length, 5, shown);
  });

  test('with JWKS_URL shows no command that makes a token', () => {
    assert.match(greet({ JWKS_URL: 'https://h/keys' }), /\n {2}TOKEN is a token of JWKS_URL:\n/);
  });
});
