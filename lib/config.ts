/** The environment: one line a variable; docs/configuration.md says what each is for. The command line. */
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { z } from 'zod';
import { StartError } from './problem.ts';

/** The time budget in ms, inner below outer. Outside of it nginx waits 5 s and a client 6 s. */
export const LOCK_TIMEOUT = 1000;
export const CONNECT_TIMEOUT = 2000;
export const STATEMENT_TIMEOUT = 3000;
export const DEADLINE = 4000;

const DATABASE_FORM =
  'postgres://user:password@host:5432/database, or h1:5432,h2:5432 for host:5432; special characters of a password as %25';
/** postgres 3.4.9 takes a standby by read-write and read-only, and by prefer-standby no primary. */
const TARGETS = ['primary', 'standby'] as const;

export const Config = z.object({
  PORT: integer(0, 65_535).default(8000),
  HOST: z.string().default('127.0.0.1'),
  BASE_PATH: z
    .string()
    .regex(/^(\/[\w.~-]+)*$/, 'expected /a/b')
    .default(''),
  RESOURCE: z.string().optional(),
  DATABASE_URL: z.string().refine(isDatabaseUrl, `expected ${DATABASE_FORM}`).optional(),
  PGHOST: z.string().optional(),
  PGPORT: z.string().regex(/^\d+$/, 'expected one port, or PGHOST=h1:5432,h2:5432').optional(),
  PGTARGETSESSIONATTRS: z.enum(TARGETS).optional(),
  DATA_DIR: z.string().default('.data'),
  POOL_SIZE: integer(1, 100).default(8),
  WEB_CONCURRENCY: integer(1, 64).default(1),
  JWT_SECRET: list().refine(areLong, 'is empty or has less than 32 bytes').optional(),
  JWKS_URL: z.url({ protocol: /^https?$/, error: 'expected https://…' }).optional(),
  JWT_ISSUER: z.string().optional(),
  JWT_AUDIENCE: z.string().optional(),
  JWT_WRITE_SCOPE: z.string().optional(),
  AUTH: z.enum(['none', 'write', 'all']).optional(),
  CORS_ORIGIN: list().default([]),
  MAX_ROWS: integer(1, 100_000).default(1000),
  BODY_LIMIT: integer(1, 2 ** 30).default(2 ** 20),
  CSV_LIMIT: integer(1, 2 ** 40).default(64 * 2 ** 20),
  STREAMS: integer(1, 100).default(4),
  DB_PREPARE: z.enum(['true', 'false']).default('true'),
  SHUTDOWN_GRACE: integer(0, 600).default(0),
  LOG_LEVEL: z.enum(['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent']).default('info'),
  APP_VERSION: z.string().default(packageVersion),
  APP_BRANCH: z.string().default(''),
  APP_COMMIT: z.string().default(''),
  APP_STACK: z.string().default(''),
  NODE_ENV: z.string().default(''),
});
export type Config = z.infer<typeof Config>;

/** Checks the environment; an empty variable counts as unset, except a secret. Throws StartError. */
export function readConfig(environment: Record<string, string | undefined>): Config {
  const isGiven = ([name, value]: [string, unknown]) => value || name === 'JWT_SECRET';
  const given = Object.fromEntries(Object.entries(environment).filter(isGiven));
  const { data, error } = Config.safeParse(given);
  const faults = error?.issues.map(({ path, message }) => `${path.join()} ${message}`) ?? [];
  if (!data) throw new StartError(faults.join('; '));
  const { JWT_SECRET, JWKS_URL, AUTH, DATABASE_URL, PGHOST } = data;
  const [keyed, production] = [JWT_SECRET || JWKS_URL, data.NODE_ENV === 'production'];
  if (JWT_SECRET && JWKS_URL) faults.push('JWT_SECRET and JWKS_URL exclude each other');
  if (!keyed && AUTH && AUTH !== 'none') faults.push(`AUTH=${AUTH} needs JWT_SECRET or JWKS_URL`);
  if (production && !keyed && !AUTH) faults.push('JWT_SECRET, JWKS_URL or AUTH=none is required');
  if (production && !DATABASE_URL && !PGHOST) faults.push('DATABASE_URL is required in production');
  const target =
    parseUrl(DATABASE_URL ?? '')?.searchParams.get('target_session_attrs') ?? 'primary';
  if (!TARGETS.some((one) => one === target))
    faults.push(`target_session_attrs=${target}: expected ${TARGETS.join(', ')}`);
  if (faults.length > 0) throw new StartError(faults.join('; '));
  return data;
}

/** The URL with the first host of a list alone, since URL parses one host; each has its port. */
function parseUrl(text: string): URL | undefined {
  const single = text.replace(/(:\d+)(,[^,:@/?]+:\d+)+(?=[/?]|$)/, '$1');
  return URL.canParse(single) ? new URL(single) : undefined;
}

/** The driver, postgres 3.4.9, cannot read an IPv6 address. */
function isDatabaseUrl(text: string): boolean {
  const { protocol, hostname } = parseUrl(text) ?? {};
  return /^postgres(ql)?:(?!\[)/.test(`${protocol}${hostname}`) && !/%(?![\da-f]{2})/i.test(text);
}

const USAGE =
  'usage: node app.ts [FILE] serves the tables of FILE; ' +
  'node app.ts token [--sub me] [--scope write] [--expires 1h] prints a token';
const TEXT = { type: 'string' } as const;
export type TokenOptions = { sub?: string; scope?: string; expires?: string };

/** The file of a program, and the options of `token` where it is given. Throws StartError with the usage. */
export function readArguments(args: string[]): { file?: string; token?: TokenOptions } {
  const options = { sub: TEXT, scope: TEXT, expires: TEXT };
  try {
    const { values, positionals } = parseArgs({ args, options, allowPositionals: true });
    const isToken = positionals.includes('token');
    const [file, ...others] = positionals.filter((word) => word !== 'token');
    const [given] = isToken ? [] : Object.keys(values);
    if (others.length > 0) throw new Error(`${others[0]} is one argument too many`);
    if (given) throw new Error(`--${given} is an option of token`);
    if (!/^\d+[smhdwy]$/.test(values.expires ?? '1h'))
      throw new Error('--expires expected 15m, 1h');
    if (file && !/[./]/.test(file)) throw new Error(`${file} is neither a file nor a command`);
    return { ...(isToken && { token: values }), ...(file && { file }) };
  } catch (error) {
    throw new StartError(`${(error as Error).message}; ${USAGE}`);
  }
}

function integer(least: number, most: number) {
  const fits = (text: string) => /^\d{1,15}$/.test(text) && +text >= least && +text <= most;
  const text = z.string().refine(fits, `expected a whole number from ${least} to ${most}`);
  return text.transform(Number);
}

/** Items between commas. */
function list() {
  return z.string().transform((value) => value.split(',').map((item) => item.trim()));
}

function areLong(secrets: string[]): boolean {
  return secrets.every((secret) => Buffer.byteLength(secret) >= 32);
}

function packageVersion(): string {
  return JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')).version;
}
