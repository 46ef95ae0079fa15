/**
 * What the tests share: a PostgreSQL, the service as a process, a proxy and signals as faults.
 *
 *     const { database, service } = await openService({ AUTH: 'none' }); // both end with the file
 *     await service.get('/passengers');                // a fetch, with the body read
 *
 * All that a service prints or answers is searched for its secrets and for SQL: stop() rejects then.
 */
import { type ChildProcess, execFile, type SpawnOptions, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { EventEmitter, once } from 'node:events';
import { existsSync, rmSync } from 'node:fs';
import { chmod, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer, connect as dial, type Socket } from 'node:net';
import { availableParallelism, loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { SignJWT } from 'jose';
import postgres from 'postgres';
import { startEmbedded } from '../lib/embedded.ts';
import { client } from './deployment.ts';

export type { Reply } from './deployment.ts';

/** A passenger as clients send it. */
export const PASSENGER = {
  ...{ survived: false, passengerClass: 3, name: 'Mr. Owen Harris Braund', sex: 'male', age: 22 },
  ...{ siblingsOrSpousesAboard: 1, parentsOrChildrenAboard: 0, fare: 7.25 },
};

/** An empty database: `sql` is a client of its superuser, `home` its directory when embedded. */
export type TestDatabase = {
  url: string;
  sql: postgres.Sql;
  home?: string;
  stop: () => Promise<void>;
};

/** A new database on `given`, the server of DATABASE_URL; without one, on a new embedded server. */
export async function startDatabase(given = process.env.DATABASE_URL): Promise<TestDatabase> {
  if (given) return createDatabase(given, async () => {});
  exitOnSignal();
  const directory = await mkdtemp(join(tmpdir(), 'passengers test-'));
  await chmod(directory, 0o755);
  const embedded = await startEmbedded(join(directory, 'data'));
  const remove = () => rmSync(directory, { recursive: true, force: true });
  process.once('exit', remove); // after the server's own end, where a test failed before its stop
  const database = await createDatabase(embedded.url, async () => {
    await embedded.stop();
    await rm(directory, { recursive: true });
    process.off('exit', remove);
  });
  return { ...database, home: embedded.home };
}

/** A new database for all tests of a file. */
export async function openDatabase(): Promise<TestDatabase> {
  const database = await startDatabase();
  after(database.stop);
  return database;
}

async function createDatabase(server: string, after: () => Promise<void>): Promise<TestDatabase> {
  const name = `test_${randomBytes(6).toString('hex')}`;
  await ask(server, (sql) => sql.unsafe(`create database ${name}`));
  const url = new URL(server);
  url.pathname = name;
  const sql = postgres(url.href, { max: 2, onnotice: () => {} });
  const stop = async () => {
    await sql.end({ timeout: 1 });
    await ask(server, (sql) => sql.unsafe(`drop database ${name} with (force)`));
    await after();
  };
  return { url: url.href, sql, stop };
}

/** Puts so many rows into the table, each with a key of its own and its number as the fare. */
export async function fill({ url }: TestDatabase, rows: number): Promise<void> {
  await ask(
    url,
    (sql) => sql`
      insert into titanic select gen_random_uuid(), true, 1, 'x', 'male', 1, 0, 0, number
      from generate_series(1, ${rows}::int) number`,
  );
}

/** The number of lists and uploads that a service streams now. */
export async function streamsOf({ get }: TestService, headers?: HeadersInit): Promise<number> {
  return Number(/^db_streams (\d+)$/m.exec((await get('/metrics', headers)).text)?.[1]);
}

/**
 * The memory of a process in MB. `own` is what it allocated: how much of Node's file is resident
 * varies between 54 and 83 MB. Undefined where there is no /proc.
 */
export async function memoryOf(
  pid: number | undefined,
): Promise<{ resident: number; own: number } | undefined> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => undefined);
  const mega = (name: string) =>
    Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(status ?? '')?.[1]) / 1024;
  return status ? { resident: mega('VmRSS'), own: mega('RssAnon') } : undefined;
}

/** How much longer than promised things may take on a machine that is overloaded. */
export function slack(): number {
  return Math.max(1, (loadavg()[0] ?? 0) / availableParallelism());
}

/** One query on a connection of its own, which no earlier fault can have affected. */
export async function ask<T>(url: string, question: (sql: postgres.Sql) => PromiseLike<T>) {
  const sql = postgres(url, { max: 1, onnotice: () => {} });
  try {
    return await question(sql);
  } finally {
    await sql.end({ timeout: 1 });
  }
}

/** One JSON line of the service's log. */
export type LogLine = { level: string; msg: string; [name: string]: unknown };

/** A running process of the service. */
export type TestService = Awaited<ReturnType<typeof startService>>;

/** `runtime` runs a TypeScript file; by default it is this Node. */
type Started = { file?: string; args?: string[]; runtime?: string[] };

/** Ends the process with this one; where the tests passed, a process that still runs fails the file. */
export function leash<Child extends ChildProcess>(child: Child): Child {
  exitOnSignal();
  if (leashed.size === 0) process.on('exit', killLeashed);
  leashed.add(child);
  child.once('exit', () => {
    leashed.delete(child);
    if (leashed.size === 0) process.off('exit', killLeashed);
  });
  return child;
}
const leashed = new Set<ChildProcess>();

let exitsOnSignal = false;

/** SIGTERM, which Node's test runner sends at a timeout, runs the exit handlers that end all this. */
function exitOnSignal(): void {
  if (!exitsOnSignal) process.on('SIGTERM', () => process.exit(143));
  exitsOnSignal = true;
}

function killLeashed(): void {
  for (const child of leashed) {
    child.kill('SIGKILL');
    console.error(`still running, killed: ${child.spawnargs.join(' ')}`);
  }
  process.exitCode ||= 1;
}

const APP = fileURLToPath(new URL('../app.ts', import.meta.url));
const [major = 0] = process.versions.node.split('.').map(Number);

/** How this Node runs a TypeScript file: as it is from 23.6 on, else by tsx. */
export const nodeArguments =
  major >= 24 ? [] : ['--max-semi-space-size=16', '--import', import.meta.resolve('tsx')];

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

/** Starts `node app.ts …args` and waits until it listens. Rejects with its log when it ends before. */
export async function startService(
  environment: Record<string, string>,
  {
    file = APP,
    args = [],
    runtime,
    ...options
  }: Started & Pick<SpawnOptions, 'cwd' | 'uid' | 'gid'> = {},
) {
  const env = { ...inherited(), PORT: '0', ...environment };
  const [program = '', ...flags] = runtime ?? [process.execPath, ...nodeArguments];
  const child = leash(spawn(program, [...flags, file, ...args], { env, ...options }));
  const log: LogLine[] = [];
  const leaks = new Set<string>();
  const search = (where: string, text: string) => {
    for (const leak of leaksIn(text, environment)) leaks.add(`${leak} in ${where}`);
  };
  const assertNoLeaks = () => {
    search('stderr', stderr);
    if (leaks.size > 0) throw new Error(`the service revealed ${[...leaks].join(', ')}`);
  };
  let stderr = '';
  child.stderr.on('data', (data) => {
    stderr += data;
  });
  createInterface(child.stdout).on('line', (line) => {
    search('stdout', line);
    log.push(JSON.parse(line));
  });
  const [exited, closed] = [once(child, 'exit'), once(child, 'close')];
  const ended = exited.then(() => child.exitCode);
  const hasEnded = () => child.exitCode !== null || child.signalCode !== null;
  const logged = async (msg: string): Promise<LogLine> => {
    const find = () => log.find((line) => line.msg === msg);
    await until(() => find() || hasEnded(), 120_000);
    if (hasEnded()) await closed;
    const line = find();
    if (line) return line;
    assertNoLeaks();
    const end = child.exitCode ?? child.signalCode;
    throw new Error(`ended with ${end}: ${JSON.stringify(log)} ${stderr}`);
  };
  const url = String((await logged('listening')).url);
  const send = client(url, undefined, 60_000);
  const request = async (method: string, path: string, body?: unknown, given?: HeadersInit) => {
    const headers = Object.fromEntries(new Headers(given));
    const reply = await send(method, path, { body, headers });
    search('the answer', reply.text);
    return reply;
  };
  const stop = async (signal: NodeJS.Signals = 'SIGTERM') => {
    if (!hasEnded()) child.kill(signal);
    await exited;
    await Promise.race([closed, sleep(1000, undefined, { ref: false })]); // a worker may outlive it
    assertNoLeaks();
    return child.exitCode;
  };
  const get = (path: string, headers?: HeadersInit) => request('GET', path, undefined, headers);
  /** Searches an answer for secrets that did not come by request(). */
  const hear = (text: string) => search('the answer', text);
  const state = { url, child, log, stderr: () => stderr, hasEnded, ended };
  return { ...state, request, get, logged, hear, stop };
}

/** The same, and waits until it is ready. */
export async function startReady(...given: Parameters<typeof startService>): Promise<TestService> {
  const service = await startService(...given);
  const { get, hasEnded } = service;
  const isReady = async () => (await get('/readyz').catch(() => undefined))?.status === 200;
  await until(async () => hasEnded() || isReady());
  if (hasEnded()) await service.logged('ready'); // rejects with its log
  return service;
}

/** A new database, on which `ddl` runs, and a ready service on it for all tests of a file. */
export async function openService(environment: Record<string, string> = {}, ddl = '') {
  let service: TestService | undefined;
  after(() => service?.stop());
  const database = await openDatabase();
  await database.sql.unsafe(ddl);
  service = await startReady({ DATABASE_URL: database.url, ...environment });
  return { database, service };
}

/** What the service's SQL has, and neither a caller nor a document of the service. */
const SQL =
  /json_populate_record|string_agg\(|json_agg\(|row_to_json|row_number\(\)|pg_[a-z]+_xact_lock/;
const TOKEN = /\beyJ[\w-]{10,}\.[\w-]*\./;

/** Which secrets of this environment a text has, SQL included. */
function leaksIn(text: string, environment: Record<string, string>): string[] {
  const { JWT_SECRET = '', DATABASE_URL = '', PGPASSWORD = '' } = environment;
  const url = URL.canParse(DATABASE_URL) ? new URL(DATABASE_URL) : { username: '', password: '' };
  const { username, password } = url;
  const own = password === username ? '' : password;
  const secrets: [name: string, secret: string][] = [
    ...JWT_SECRET.split(',').map((secret): [string, string] => ['a JWT_SECRET', secret.trim()]),
    ['the password of DATABASE_URL', own],
    ['the password of DATABASE_URL', decodeURIComponent(own)],
    ['PGPASSWORD', PGPASSWORD],
  ];
  const found = secrets.filter(([, secret]) => secret !== '' && text.includes(secret));
  const shapes = [...(SQL.test(text) ? ['SQL'] : []), ...(TOKEN.test(text) ? ['a token'] : [])];
  return [...found.map(([name]) => name), ...shapes];
}

/** The whole answer to bytes, until the server closes the connection. */
export async function sendRaw(url: string, bytes: string): Promise<string> {
  const { hostname, port } = new URL(url);
  const socket = dial(Number(port), hostname);
  socket.write(Buffer.from(bytes, 'latin1'));
  return String(Buffer.concat(await socket.toArray()));
}

/** The header with a token of this `sub` that lasts, signed by a JWT_SECRET. */
export async function bearer(secret: string, sub: string, claims: object = {}) {
  const token = new SignJWT({ sub, exp: 4_102_444_800, ...claims });
  const signed = await token.setProtectedHeader({ alg: 'HS256' }).sign(Buffer.from(secret));
  return { authorization: `Bearer ${signed}` };
}

/** Awaits a condition, tested every 10 ms, for at most `ms`. */
export async function until(condition: () => unknown, ms = 30_000): Promise<void> {
  const end = performance.now() + ms;
  for (;;) {
    if (await condition()) return;
    if (performance.now() > end) throw new Error(`not within ${ms} ms: ${condition}`);
    await sleep(10);
  }
}

export type TestProxy = Awaited<ReturnType<typeof startProxy>>;

type Mode = 'pass' | 'refuse' | 'black hole' | 'stall';

/** A TCP proxy before the database of `url`, whose own `url` goes through it; faults last until pass(). */
export async function startProxy(url: string) {
  let { hostname, port } = new URL(url);
  const open = new Set<Socket>();
  const dialled: number[] = [];
  const dropped = new EventEmitter();
  let mode: Mode = 'pass';
  let late = 0;
  let trap: string | undefined;
  const hold = (socket: Socket, other?: Socket) => {
    open.add(socket.on('error', () => {}));
    socket.once('close', () => {
      open.delete(socket);
      other?.destroy();
    });
  };
  const carry = (data: string | Buffer, to: Socket) => {
    if (late > 0) setTimeout(() => to.writable && to.write(data), late);
    else if (to.writable) to.write(data);
  };
  const wire = (near: Socket, far: Socket) => {
    let trapped = false;
    near.on('data', (data) => {
      if (trap !== undefined && data.includes(trap)) {
        trapped = true;
        trap = undefined;
      }
      carry(data, far);
    });
    far.on('data', (data) => {
      if (!trapped) return carry(data, near);
      near.destroy();
      dropped.emit('reply');
    });
    for (const socket of mode === 'stall' ? [near, far] : []) socket.pause();
  };
  const server = createServer({ noDelay: true }, (near) => {
    dialled.push(performance.now());
    const far = mode === 'pass' || mode === 'stall' ? dial(Number(port), hostname) : undefined;
    hold(near, far);
    if (far) hold(far, near);
    if (far) wire(near, far);
    else if (mode === 'refuse') near.destroy();
    else near.pause();
  });
  const cut = () => {
    for (const socket of open) socket.destroy();
  };
  const turn = (to: Mode) => {
    mode = to;
    for (const socket of open) {
      socket.cork();
      socket[to === 'stall' ? 'pause' : 'resume']();
      setImmediate(() => socket.uncork());
    }
  };
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const through = new URL(url);
  through.port = String((server.address() as AddressInfo).port);
  return {
    url: through.href,
    /** When connections were asked for, by performance.now(). */
    dialled,
    /** Ends every connection. */
    cut,
    /** New connections go to the server of another URL. */
    point: (to: string) => {
      ({ hostname, port } = new URL(to));
    },
    /** Ends every connection, and each new one at once. */
    refuse: () => {
      turn('refuse');
      cut();
    },
    /** Takes new connections and never answers them. */
    blackHole: () => {
      mode = 'black hole';
    },
    /** Carries nothing; what was sent meanwhile arrives after pass(), in one piece. */
    stall: () => turn('stall'),
    /** Carries everything `ms` later. */
    delay: (ms: number) => {
      late = ms;
    },
    /** Ends the connection instead of carrying the answer to the next message that has `text`. */
    dropReply: async (text: string) => {
      trap = text;
      await once(dropped, 'reply');
    },
    pass: () => {
      late = 0;
      if (mode === 'black hole') cut();
      turn('pass');
    },
    stop: async () => {
      server.close();
      cut();
    },
  };
}

/** Controls the embedded server whose data is in `home` (Linux: it reads /proc). */
export async function controlServer(home: string) {
  const pidFile = join(home, 'cluster', 'postmaster.pid');
  const read = async () => (await readFile(pidFile, 'utf8').catch(() => '')).split('\n');
  const proc = `/proc/${Number((await read())[0])}`;
  const command = (await readFile(`${proc}/cmdline`, 'utf8')).split('\0').slice(0, -1);
  const { uid, gid } = await stat(proc);
  const pids = async () => {
    const pid = Number((await read())[0]);
    return [pid, ...(await childrenOf(pid))];
  };
  let paused: number[] = [];
  const signal = async (name: NodeJS.Signals, to: number[]) => {
    for (const pid of to.filter((one) => one > 1 && existsSync(`/proc/${one}`)))
      process.kill(pid, name);
  };
  return {
    /** Stops it as an administrator does, or ends all of its processes at once as a crash. */
    stop: async (how: 'fast' | 'crash') => {
      const all = await pids();
      if (how === 'fast') await signal('SIGINT', all.slice(0, 1));
      else await signal('SIGKILL', all);
      await until(async () => (await Promise.all(all.map(isRunning))).every((runs) => !runs));
    },
    /** Starts it again on its port; resolves as soon as it accepts connections. */
    start: async () => {
      const [file = '', ...args] = command;
      const user = process.getuid?.() === 0 ? { uid, gid } : {};
      const env = { LC_ALL: 'C', PGDATA: join(home, 'cluster') };
      const options = { ...user, cwd: '/', env, stdio: 'ignore', detached: true } as const;
      const server = spawn(file, args, options);
      server.unref();
      await until(async () => {
        const lines = await read();
        return Number(lines[0]) === server.pid && lines[7]?.trim() === 'ready';
      });
    },
    pause: async () => {
      await signal('SIGSTOP', (await pids()).slice(0, 1)); // the one that forks
      paused = await pids();
      await signal('SIGSTOP', paused);
    },
    resume: async () => signal('SIGCONT', paused.splice(0)),
  };
}

/** The processes that `pid` started and that still run. */
export async function childrenOf(pid: number): Promise<number[]> {
  const all = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const states = await Promise.all(all.map(async (name) => ({ name, ...(await stateOf(name)) })));
  return states.filter(({ parent }) => parent === pid).map(({ name }) => Number(name));
}

/** Whether there is such a process that is more than a zombie. */
export async function isRunning(pid: number): Promise<boolean> {
  const { state } = await stateOf(String(pid));
  return state !== undefined && state !== 'Z' && state !== 'X';
}

async function stateOf(pid: string): Promise<{ state?: string | undefined; parent?: number }> {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
  const [state, parent] = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return text === '' ? {} : { state, parent: Number(parent) };
}

/** The faults and warnings that the linter of OpenAPI finds in a document. */
export async function lint(document: object): Promise<string[]> {
  const directory = await mkdtemp(join(tmpdir(), 'lint-'));
  const file = join(directory, 'openapi.json');
  await writeFile(file, JSON.stringify(document));
  const cli = fileURLToPath(import.meta.resolve('@redocly/cli/bin/cli.js'));
  const env = { ...process.env, REDOCLY_TELEMETRY: 'off', REDOCLY_SUPPRESS_UPDATE_NOTICE: 'true' };
  const args = [cli, 'lint', file, '--extends=recommended', '--format=json'];
  const ended = promisify(execFile)(process.execPath, args, { env, cwd: directory });
  const { stdout } = await ended.catch((error) => error); // a fault makes the exit code 1
  await rm(directory, { recursive: true });
  return JSON.parse(stdout).problems.map((problem: object) => JSON.stringify(problem));
}
