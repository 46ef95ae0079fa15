/**
 * What the tests share: a real PostgreSQL of their own and the real process on a free port.
 *
 *     const database = await startDatabase();          // embedded, or one made on DATABASE_URL
 *     const service = await startService({ DATABASE_URL: database.url });
 *     await service.get('/passengers');                // a fetch, with the body read
 *     await service.stop(); await database.stop();     // nothing is left behind
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { EventEmitter, once } from 'node:events';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import postgres from 'postgres';
import { startEmbedded } from './embedded.ts';

/** An empty database: `sql` is a client of its superuser, `home` its directory when embedded. */
export type TestDatabase = {
  url: string;
  sql: postgres.Sql;
  home?: string;
  stop: () => Promise<void>;
};

/** A new database on a new embedded server, or on the server of DATABASE_URL when that is set. */
export async function startDatabase(): Promise<TestDatabase> {
  const given = process.env.DATABASE_URL;
  if (given) return createDatabase(given, async () => {});
  const directory = await mkdtemp(join(tmpdir(), 'passengers test-'));
  await chmod(directory, 0o755);
  const embedded = await startEmbedded(join(directory, 'data'));
  const database = await createDatabase(embedded.url, async () => {
    await embedded.stop();
    await rm(directory, { recursive: true });
  });
  return { ...database, home: embedded.home };
}

async function createDatabase(server: string, after: () => Promise<void>): Promise<TestDatabase> {
  const name = `test_${randomBytes(6).toString('hex')}`;
  const admin = postgres(server, { max: 1, onnotice: () => {} });
  await admin.unsafe(`create database ${name}`);
  const url = new URL(server);
  url.pathname = name;
  const sql = postgres(url.href, { max: 2, onnotice: () => {} });
  const stop = async () => {
    await sql.end({ timeout: 1 });
    await admin.unsafe(`drop database ${name} with (force)`);
    await admin.end();
    await after();
  };
  return { url: url.href, sql, stop };
}

/** One JSON line of the service's log. */
export type LogLine = { level: string; msg: string; [name: string]: unknown };

/** An answer with its body read: `json` is undefined where the body is none. */
// biome-ignore lint/suspicious/noExplicitAny: tests assert on whatever came
export type Reply = { status: number; headers: Headers; text: string; json: any };

/** A running process of the service. */
export type TestService = {
  url: string;
  child: ChildProcess;
  log: LogLine[];
  stderr: () => string;
  request: (method: string, path: string, body?: unknown, headers?: HeadersInit) => Promise<Reply>;
  get: (path: string, headers?: HeadersInit) => Promise<Reply>;
  logged: (msg: string) => Promise<LogLine>;
  ended: Promise<number | null>;
  stop: (signal?: NodeJS.Signals) => Promise<number | null>;
};

const APP = fileURLToPath(new URL('app.ts', import.meta.url));
const [major = 0] = process.versions.node.split('.').map(Number);

/** How this Node runs a TypeScript file: as it is from 23.6 on, else by tsx. */
export const nodeArguments = major >= 24 ? [] : ['--import', import.meta.resolve('tsx')];

/** What every child gets: coverage where it is measured, else the compile cache of deployments. */
export function inherited(): Record<string, string | undefined> {
  const { PATH, HOME, NODE_V8_COVERAGE } = process.env;
  const cache = join(tmpdir(), `compile-cache-${process.getuid?.()}`);
  return {
    PATH,
    HOME,
    ...(NODE_V8_COVERAGE ? { NODE_V8_COVERAGE } : { NODE_COMPILE_CACHE: cache }),
  };
}

/** Starts `node app.ts` and waits until it listens. Rejects with its log when it ends before. */
export async function startService(
  environment: Record<string, string>,
  { file = APP, cwd }: { file?: string; cwd?: string } = {},
): Promise<TestService> {
  const env = { ...inherited(), PORT: '0', ...environment };
  const child = spawn(process.execPath, [...nodeArguments, file], { env, cwd });
  const log: LogLine[] = [];
  const events = new EventEmitter().setMaxListeners(0);
  let stderr = '';
  child.stderr.on('data', (data) => {
    stderr += data;
  });
  createInterface(child.stdout).on('line', (line) => {
    log.push(JSON.parse(line));
    events.emit('line');
  });
  const exited = once(child, 'exit');
  const logged = async (msg: string): Promise<LogLine> => {
    for (;;) {
      const line = log.find((one) => one.msg === msg);
      if (line) return line;
      await Promise.race([once(events, 'line'), exited]);
      if (child.exitCode !== null && !log.some((one) => one.msg === msg)) {
        throw new Error(`ended with ${child.exitCode}: ${JSON.stringify(log)} ${stderr}`);
      }
    }
  };
  const url = String((await logged('listening')).url);
  const request = async (method: string, path: string, body?: unknown, headers?: HeadersInit) => {
    const init: RequestInit = { method, headers: { ...Object.fromEntries(new Headers(headers)) } };
    if (body !== undefined) {
      init.body = typeof body === 'string' ? body : JSON.stringify(body);
      init.headers = { 'content-type': 'application/json', ...(init.headers as object) };
    }
    const response = await fetch(url + path, init);
    const text = await response.text();
    const isJson = /json/.test(response.headers.get('content-type') ?? '') && text !== '';
    return { ...pick(response), text, json: isJson ? JSON.parse(text) : undefined };
  };
  const stop = async (signal: NodeJS.Signals = 'SIGTERM') => {
    if (child.exitCode === null && child.signalCode === null) child.kill(signal);
    await exited;
    return child.exitCode;
  };
  const ended = exited.then(() => child.exitCode);
  const get = (path: string, headers?: HeadersInit) => request('GET', path, undefined, headers);
  return { url, child, log, stderr: () => stderr, request, get, logged, ended, stop };
}

function pick({ status, headers }: Response) {
  return { status, headers };
}

/** Awaits a condition, tested every 10 ms, for at most `ms`. */
export async function until(condition: () => unknown, ms = 10_000): Promise<void> {
  const end = performance.now() + ms;
  for (;;) {
    if (await condition()) return;
    if (performance.now() > end) throw new Error(`not within ${ms} ms: ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
