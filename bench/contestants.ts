/**
 * Who is measured, each a process of its own on a free port of 127.0.0.1: the service as it is
 * deployed, and what it is compared with. All of them end with stop().
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { freePort } from '../test/embedded.ts';
import { childrenOf, inherited, leash, startReady, until } from '../test/harness.ts';
import { isInstalled } from './load.ts';

/** `pids`: its processes, the workers too. */
export type Contestant = {
  name: string;
  url: string;
  pids: () => Promise<number[]>;
  stop: () => Promise<unknown>;
};

/** Connections to the database: the default of the service, and what the peers get. */
export const POOL_SIZE = '8';
const FLASK_WORKERS = '4';

const beside = (file: string) => fileURLToPath(new URL(file, import.meta.url));

export async function startOurs(
  url: string,
  name = 'passengers',
  environment: Record<string, string> = {},
): Promise<Contestant> {
  const service = await startReady({ DATABASE_URL: url, POOL_SIZE, ...environment });
  const { pid = 0 } = service.child;
  return { name, url: service.url, pids: async () => [pid], stop: () => service.stop() };
}

export function startNodePeer(
  name: string,
  file: string,
  environment: Record<string, string>,
): Promise<Contestant> {
  return start(name, [process.execPath, beside(`peers/${file}`)], environment);
}

/** Undefined, with the reason printed, where Debian's packages are missing. */
export async function startFlask(url: string): Promise<Contestant | undefined> {
  const parts = ['import flask, gunicorn, psycopg2'];
  const python = '/usr/bin/python3'; // Debian's, whose packages these are
  if (!(await isInstalled(python)) || !(await succeeds(python, ['-c', ...parts]))) {
    console.log('Flask is left out: apt-get install python3-flask gunicorn python3-psycopg2');
    return undefined;
  }
  const gunicorn = [python, '-m', 'gunicorn', '--workers', FLASK_WORKERS, '--chdir'];
  return start('Flask', [...gunicorn, beside('peers'), 'flask_peer:app'], {
    DATABASE_URL: url,
    PYTHONDONTWRITEBYTECODE: '1',
  });
}

async function succeeds(file: string, args: string[]): Promise<boolean> {
  const [code] = await once(spawn(file, args, { stdio: 'ignore' }), 'exit');
  return code === 0;
}

async function start(
  name: string,
  [file = '', ...args]: string[],
  environment: Record<string, string>,
): Promise<Contestant> {
  const port = await freePort();
  const bind = args.includes('gunicorn') ? ['--bind', `127.0.0.1:${port}`] : [];
  const env = { ...inherited(), PORT: String(port), NODE_ENV: 'production', ...environment };
  const child = leash(
    spawn(file, [...args, ...bind], { env, stdio: ['ignore', 'ignore', 'pipe'] }),
  );
  let stderr = '';
  child.stderr.on('data', (data) => {
    stderr = (stderr + data).slice(-2000);
  });
  const url = `http://127.0.0.1:${port}`;
  await until(async () => {
    if (child.exitCode !== null) throw new Error(`${name} ended: ${stderr}`);
    return fetch(url).catch(() => undefined);
  });
  const pid = child.pid ?? 0;
  const pids = async () => [pid, ...(await childrenOf(pid))];
  return { name, url, pids, stop: () => end(child) };
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null) return;
  child.kill('SIGTERM');
  await once(child, 'exit');
}
