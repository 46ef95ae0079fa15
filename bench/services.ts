/** The processes that are measured, each on a free port of 127.0.0.1, and what they use. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { until } from '../test/harness.ts';
import { succeeds } from './load.ts';

/** `plain`: it has the peers' query parameters, not the service's dialect. `pids`: without children. */
export type Service = {
  name: string;
  url: string;
  plain: boolean;
  pids: number[];
  stop: () => Promise<void>;
};

type Options = {
  plain?: boolean;
  env?: Record<string, string>;
  cwd?: string;
  health?: string;
  port?: number;
};

const HOME = fileURLToPath(new URL('..', import.meta.url));
const beside = (file: string) => fileURLToPath(new URL(file, import.meta.url));

/** Connections to the database, the same for all. */
const POOL_SIZE = '8';

/** The service of the checkout `cwd`, as its `npm start` runs it. */
export async function startOurs(
  name: string,
  DATABASE_URL: string,
  { cwd = HOME, env = {} }: Options = {},
): Promise<Service> {
  const { scripts } = JSON.parse(await readFile(join(cwd, 'package.json'), 'utf8'));
  const command = [process.execPath, ...nodeArguments(scripts.start)];
  const environment = { DATABASE_URL, POOL_SIZE, AUTH: 'none', ...env };
  return start(name, command, { cwd, health: '/readyz', env: environment });
}

/** What follows `node` in the start script; without tsx where Node strips types itself. */
export function nodeArguments(script: string, stripsTypes = Boolean(process.features.typescript)) {
  const [, args = ''] = /\bnode (.*)/.exec(script) ?? [];
  return (stripsTypes ? args.replace('--import tsx ', '') : args).split(' ');
}

export function startPeer(name: string, file: string, DATABASE_URL: string): Promise<Service> {
  const env = { DATABASE_URL, POOL_SIZE };
  return start(name, [process.execPath, beside(`peers/${file}`)], { env, plain: true });
}

/** Undefined, with the reason printed, where Debian's packages are missing. */
export async function startFlask(name: string, DATABASE_URL: string) {
  const python = '/usr/bin/python3';
  if (!(await succeeds(python, '-c', 'import flask, gunicorn, psycopg2'))) {
    console.log(`No ${name}: apt-get install python3-flask gunicorn python3-psycopg2`);
    return undefined;
  }
  const port = await freePort();
  const gunicorn = ['-m', 'gunicorn', '--workers', '4', '--chdir', beside('peers')];
  const command = [python, ...gunicorn, '--bind', `127.0.0.1:${port}`, 'flask_peer:app'];
  const env = { DATABASE_URL, PYTHONDONTWRITEBYTECODE: '1' };
  return start(name, command, { env, plain: true, port });
}

/** The image's nginx before `ours`, on other ports and in another directory. */
export async function startNginx(name: string, ours: Service): Promise<Service> {
  if (!(await succeeds('nginx', '-v'))) throw new Error('apt-get install nginx-light');
  const directory = await mkdtemp(join(tmpdir(), 'bench-'));
  await chmod(directory, 0o755); // for its workers, which run as another user
  const [port, inner] = [await freePort(), await freePort()];
  const ports = new Map([
    ['8080', String(port)],
    ['8081', String(inner)],
    ['8000', new URL(ours.url).port],
  ]);
  for (const file of ['nginx.conf', 'passengers.conf']) {
    const text = await readFile(join(HOME, 'nginx', file), 'utf8');
    const moved = text
      .replace(/\b80(80|81|00)\b/g, (port) => ports.get(port) ?? port)
      .replace(/^ +limit_.*$/gm, '') // all requests come from one address
      .replaceAll('/tmp/', `${directory}/`)
      .replaceAll('/dev/stdout', '/dev/null'); // which cannot be opened where it is a pipe
    await writeFile(join(directory, file), moved);
  }
  const command = ['nginx', '-p', directory, '-c', join(directory, 'nginx.conf')];
  const nginx = await start(name, command, { port, health: '/hello' });
  const stop = () => nginx.stop().finally(() => rm(directory, { recursive: true }));
  return { ...nginx, pids: [...nginx.pids, ...ours.pids], stop };
}

async function start(name: string, [file = '', ...args]: string[], options: Options) {
  const { port = await freePort(), plain = false, cwd = HOME, health = '/' } = options;
  const { PATH, HOME: home } = process.env;
  const env = { PATH, HOME: home, PORT: `${port}`, NODE_ENV: 'production', ...options.env };
  const child = spawn(file, args, { cwd, env, stdio: ['ignore', 'pipe', 'pipe'] });
  const kill = () => child.kill();
  process.on('exit', kill);
  const exited = once(child, 'exit').then(() => process.off('exit', kill));
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (data) => {
      output = (output + data).slice(-2000);
    });
  }
  const url = `http://127.0.0.1:${port}`;
  await until(async () => {
    if (child.exitCode !== null) throw new Error(`${name} ended: ${output}`);
    const { status = 503 } = (await fetch(url + health).catch(() => undefined)) ?? {};
    return status < 500;
  });
  const stop = async () => {
    child.kill();
    await exited;
  };
  return { name, url, plain, pids: [child.pid ?? 0], stop };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  await once(server.close(), 'close');
  return typeof address === 'object' && address ? address.port : 0;
}

/**
 * CPU time in µs that a process and its children have used: all threads, and the children that have
 * ended, such as backends of PostgreSQL. schedstat counts in ns, stat in 10 ms.
 */
export async function cpuOf(pid: number): Promise<number> {
  const [, own = 0, ended = 0] = await statOf(pid);
  const threads = (await eachThread(pid, 'schedstat')).filter(Boolean);
  const precise = sum(threads.map((text) => Number(text.split(' ')[0]) / 1000));
  const lists = await eachThread(pid, 'children');
  const children = lists.flatMap((text) => text.split(' ').filter(Boolean).map(Number));
  return (threads.length > 0 ? precise : own) + ended + sum(await Promise.all(children.map(cpuOf)));
}

/** Of a process: its parent, the CPU time in µs of its own and of its children that have ended. */
async function statOf(pid: number): Promise<[parent: number, own: number, ended: number]> {
  const text = await read(`/proc/${pid}/stat`);
  const fields = text
    .slice(text.lastIndexOf(')') + 2)
    .split(' ')
    .map(Number);
  const us = (at: number) => ((fields[at] ?? 0) + (fields[at + 1] ?? 0)) * 10_000;
  return [fields[1] ?? 0, us(11), us(13)];
}

export async function parentOf(pid: number): Promise<number> {
  return (await statOf(pid))[0];
}

/** A file of each thread in /proc. */
async function eachThread(pid: number, file: string): Promise<string[]> {
  const threads = await readdir(`/proc/${pid}/task`).catch(() => []);
  return Promise.all(threads.map((thread) => read(`/proc/${pid}/task/${thread}/${file}`)));
}

/** The resident memory of a process in whole MB, now (`VmRSS`) or at most since resetPeak() (`VmHWM`). */
export async function memoryOf(pid: number, field: 'VmRSS' | 'VmHWM'): Promise<number> {
  const [, kb] =
    new RegExp(`^${field}:\\s+(\\d+)`, 'm').exec(await read(`/proc/${pid}/status`)) ?? [];
  return Math.round(Number(kb) / 1024);
}

export function resetPeak(pid: number): Promise<void> {
  return writeFile(`/proc/${pid}/clear_refs`, '5');
}

function read(file: string): Promise<string> {
  return readFile(file, 'utf8').catch(() => '');
}

export function sum(numbers: number[]): number {
  return numbers.reduce((total, number) => total + number, 0);
}
