/** PostgreSQL's own ceiling: pgbench with the select of GET by key, on as many connections. */
import { execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { POOL_SIZE } from './contestants.ts';
import { KEY_PREFIX } from './database.ts';
import { isInstalled } from './load.ts';
import type { Entry } from './measure.ts';
import { PGBENCH } from './targets.ts';

const run = promisify(execFile);

/** Undefined, with the reason printed, where Debian's postgresql-contrib is missing. */
export async function pgbenchEntry(url: string, rows: number): Promise<Entry | undefined> {
  if (!(await isInstalled('pgbench'))) {
    console.log('pgbench is left out: apt-get install postgresql-contrib');
    return undefined;
  }
  return { name: PGBENCH, take: (seconds) => take(url, rows, seconds) };
}

async function take(url: string, rows: number, seconds: number) {
  const directory = await mkdtemp(join(tmpdir(), 'bench-'));
  const script = join(directory, 'read.sql');
  await writeFile(
    script,
    `\\set n random(1, ${rows})
     select t.xmin::text, (select row_to_json(r) from (select t.*) r)::text from titanic t
     where uuid = ('${KEY_PREFIX}' || lpad(to_hex(:n::int), 12, '0'))::uuid;`,
  );
  const shape = ['-n', '-M', 'prepared', '-c', POOL_SIZE, '-j', '1', '-T', `${seconds}`];
  try {
    const env = { PATH: process.env.PATH, ...surroundings(url) };
    const { stdout } = await run('pgbench', [...shape, '-f', script], { env });
    const perSecond = Number(/tps = ([\d.]+)/.exec(stdout)?.[1]);
    const p50 = Number(/latency average = ([\d.]+)/.exec(stdout)?.[1]);
    return { perSecond, p50, failed: 0 };
  } finally {
    await rm(directory, { recursive: true });
  }
}

/** The URL as libpq's variables: arguments are shown to everybody on the machine. */
function surroundings(url: string): Record<string, string> {
  const { hostname, port, username, password, pathname } = new URL(url);
  return {
    PGHOST: hostname,
    PGPORT: port,
    PGUSER: decodeURIComponent(username),
    PGPASSWORD: decodeURIComponent(password),
    PGDATABASE: pathname.slice(1),
  };
}
