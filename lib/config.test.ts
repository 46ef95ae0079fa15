import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Config, readArguments, readConfig } from './config.ts';
import { StartError } from './problem.ts';

const SECRET = 'x'.repeat(32);
const DATABASE_URL = 'postgres://h/d';
const HOSTS = 'postgres://u:p@h1:1,h2:2/d?sslmode=disable';
const WRITES = `${HOSTS}&target_session_attrs=read-write`;
const TARGET = /^target_session_attrs=read-write: expected primary, standby$/;

const refused: [name: string, environment: Record<string, string>, message: RegExp][] = [
  ['PORT that is no number', { PORT: 'abc' }, /^PORT expected a whole number from 0 to 65535$/],
  ['PORT above 65535', { PORT: '65536' }, /^PORT expected/],
  ['PORT with a blank', { PORT: ' 80' }, /^PORT expected/],
  ['BASE_PATH with a slash at the end', { BASE_PATH: '/a/' }, /^BASE_PATH expected \/a\/b/],
  ['POOL_SIZE of 0', { POOL_SIZE: '0' }, /^POOL_SIZE expected/],
  ['LOG_LEVEL that pino lacks', { LOG_LEVEL: 'loud' }, /^LOG_LEVEL /],
  ['DATABASE_URL of another scheme', { DATABASE_URL: 'mysql://x/y' }, /^DATABASE_URL expected/],
  ['a host without its port', { DATABASE_URL: 'postgres://h1:1,h2/d' }, /h1:5432,h2:5432/],
  ['a password with %', { DATABASE_URL: 'postgres://u:1%2@h/d' }, /^DATABASE_URL .*as %25$/],
  ['read-write in DATABASE_URL', { DATABASE_URL: WRITES }, TARGET],
  ['a list of ports', { PGPORT: '5432,5433' }, /^PGPORT expected one port/],
  ['read-write in the environment', { PGTARGETSESSIONATTRS: 'read-write' }, /^PGTARGETS.*primary/],
  ['JWKS_URL that is no URL', { JWKS_URL: 'keys' }, /^JWKS_URL expected https/],
  ['AUTH=all without a key', { AUTH: 'all' }, /^AUTH=all needs JWT_SECRET or JWKS_URL$/],
  ['a secret of 31 bytes', { JWT_SECRET: 'x'.repeat(31) }, /^JWT_SECRET is empty or has less/],
  ['a second secret too short', { JWT_SECRET: `${SECRET},short` }, /^JWT_SECRET /],
  ['an empty secret', { JWT_SECRET: '' }, /^JWT_SECRET is empty or has less/],
  ['two kinds of key', { JWT_SECRET: SECRET, JWKS_URL: 'https://x.example' }, /exclude/],
  ['production without a key', { NODE_ENV: 'production', DATABASE_URL }, /AUTH=none is required/],
  ['production without a database', { NODE_ENV: 'production', AUTH: 'none' }, /^DATABASE_URL is/],
  ['two bad values, by both names', { PORT: 'a', POOL_SIZE: 'b' }, /^PORT .*; POOL_SIZE /],
];
for (const [name, environment, message] of refused) {
  test(`readConfig() refuses ${name}`, () => {
    assert.throws(() => readConfig(environment), { constructor: StartError, message });
  });
}

const accepted: [name: string, Record<string, string>, Partial<Config>][] = [
  ['nothing', {}, { PORT: 8000, HOST: '127.0.0.1', POOL_SIZE: 8, MAX_ROWS: 1000, BASE_PATH: '' }],
  ['an empty variable as unset', { PORT: '', AUTH: '' }, { PORT: 8000 }],
  ['two hosts without ports', { DATABASE_URL: 'postgres://h1,h2' }, { PORT: 8000 }],
  ['two secrets', { JWT_SECRET: `${SECRET}, ${SECRET}` }, { JWT_SECRET: [SECRET, SECRET] }],
  ['origins', { CORS_ORIGIN: 'https://a.example, *' }, { CORS_ORIGIN: ['https://a.example', '*'] }],
  ['PGHOST in production', { NODE_ENV: 'production', PGHOST: 'h', AUTH: 'none' }, { PGHOST: 'h' }],
];
for (const [name, environment, expected] of accepted) {
  test(`readConfig() accepts ${name}`, () => {
    for (const [key, value] of Object.entries(expected))
      assert.deepEqual(readConfig(environment)[key as keyof Config], value);
  });
}

const usages: [args: string[], message: RegExp][] = [
  [['--help'], /^Unknown option '--help'.*; usage: /],
  [['lib/sql.ts', 'lib/csv.ts'], /^lib\/csv\.ts is one argument too many; usage: /],
  [['serve'], /^serve is neither a file nor a command; usage: /],
  [['--sub', 'me'], /^--sub is an option of token; usage: /],
  [['token', '--sub'], /^Option '--sub <value>' argument missing; usage: /],
  [['token', '--expires', 'soon'], /^--expires expected 15m, 1h; usage: /],
];
for (const [args, message] of usages) {
  test(`readArguments() answers the usage to ${args.join(' ')}`, () => {
    assert.throws(() => readArguments(args), { constructor: StartError, message });
  });
}

test('readArguments() reads a file, or the options of token', () => {
  assert.deepEqual(readArguments([]), {});
  assert.deepEqual(readArguments(['lib/sql.ts']), { file: 'lib/sql.ts' });
  const { token } = readArguments(['token', '--sub', 'me', '--expires', '15m']);
  assert.deepEqual({ ...token }, { sub: 'me', expires: '15m' });
});
