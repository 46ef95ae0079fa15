/**
 * Runs components/postgres/start.sh and components/backup/*.sh with the PostgreSQL of Debian. Of the
 * stock image only docker-ensure-initdb.sh is replaced, by a script that does the same.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { parse } from 'yaml';
import { freePort } from '../lib/embedded.ts';
import { until } from '../test/harness.ts';

const COMPONENTS = fileURLToPath(new URL('./components/', import.meta.url));
const DEBIAN = '/usr/lib/postgresql';
const [version] = fs.existsSync(DEBIAN) ? fs.readdirSync(DEBIAN) : [];
const skip = !version && !process.env.CI && 'the Debian package postgresql is missing';

const ENSURE_INITDB = `#!/usr/bin/env bash
set -Eeuo pipefail
[ -s "$PGDATA/PG_VERSION" ] && exit 0
mkdir -p "$PGDATA"
eval 'initdb --no-sync --username=postgres --pwfile=<(printf "%s\\n" "$POSTGRES_PASSWORD") '"$POSTGRES_INITDB_ARGS"
echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
printf '%s\\n' "unix_socket_directories = '$PGHOST'" "log_statement = 'all'" >> "$PGDATA/postgresql.conf"
`;

const statefulSet = parse(fs.readFileSync(join(COMPONENTS, 'postgres/statefulset.yaml'), 'utf8'));
const [container] = statefulSet.spec.template.spec.containers;

describe('start.sh', { skip }, () => {
  const home = fs.mkdtempSync(join(tmpdir(), 'passengers postgres-'));
  const data = join(home, '18/docker');
  const account = process.getuid?.() === 0 ? { uid: 65534, gid: 65534 } : {}; // PostgreSQL refuses root
  const env: Record<string, string> = {
    PATH: `${home}:${DEBIAN}/${version}/bin:${process.env.PATH}`,
    PGDATA: data,
    PGHOST: home, // the directory of the socket, which in the image is the default
    PGDATABASE: 'passengers',
    POSTGRES_INITDB_ARGS: container.env[0].value,
    KEEP_DAYS: '14',
  };
  let server: ChildProcess | undefined;
  const log = join(home, 'output'); // a file: while spawnSync() blocks, nobody reads a pipe
  const output = () => fs.readFileSync(log, 'utf8');

  before(async () => {
    env.PGPORT = String(await freePort());
    fs.mkdirSync(join(home, 'backup'));
    fs.writeFileSync(join(home, 'docker-ensure-initdb.sh'), ENSURE_INITDB, { mode: 0o755 });
    for (const script of ['postgres/start.sh', 'backup/backup.sh', 'backup/restore.sh']) {
      const text = fs.readFileSync(join(COMPONENTS, script), 'utf8');
      const here = text
        .replaceAll('/run/passengers', `"${home}"`)
        .replace('cd /backup', `cd "${home}/backup"`);
      fs.writeFileSync(join(home, script.replace(/.*\//, '')), here);
    }
    if (account.uid) fs.chownSync(home, account.uid, account.gid);
  });

  after(async () => {
    await stop('SIGTERM');
    fs.rmSync(home, { recursive: true });
  });

  function launch(password: string): ChildProcess {
    const file = fs.openSync(log, 'w');
    const own = { env: { ...env, PGPASSWORD: password }, cwd: home, detached: true };
    const child = spawn('bash', ['start.sh'], {
      ...own,
      ...account,
      stdio: ['ignore', file, file],
    });
    fs.closeSync(file);
    server = child;
    return child;
  }

  /** Starts the container's command and waits until its startupProbe succeeds. */
  async function start(password: string): Promise<void> {
    await stop('SIGTERM');
    const child = launch(password);
    await until(() => {
      assert.equal(child.exitCode, null, output());
      return canLogIn(password);
    });
  }

  /** Ends the container's command; SIGKILL ends all processes of its group. */
  async function stop(signal: 'SIGTERM' | 'SIGKILL'): Promise<number | null> {
    if (!server?.pid || server.exitCode !== null || server.signalCode !== null) return null;
    const closed = once(server, 'close');
    process.kill(signal === 'SIGKILL' ? -server.pid : server.pid, signal);
    await closed;
    return server.exitCode;
  }

  function canLogIn(password: string): boolean {
    const [command, ...args]: string[] = container.startupProbe.exec.command;
    return spawnSync(command!, args, { env: { ...env, PGPASSWORD: password } }).status === 0;
  }

  function query(sql: string): string {
    const args = ['--username=passengers', '--no-align', '--tuples-only', `--command=${sql}`];
    return execFileSync('psql', args, { env, encoding: 'utf8', stdio: 'pipe' }).trim();
  }

  function run(script: string, more: Record<string, string> = {}) {
    const options = { env: { ...env, PGUSER: 'passengers', ...more }, cwd: home };
    return spawnSync('bash', [script], { ...options, encoding: 'utf8' });
  }

  test('makes a database that belongs to a role without privileges', async () => {
    await start('first');
    const row = query(`select rolsuper, rolcreaterole, rolcreatedb, datdba::regrole
      from pg_roles, pg_database where rolname = 'passengers' and datname = 'passengers'`);
    assert.equal(row, 'f|f|f|passengers');
  });

  test('accepts by TCP only the password, by SCRAM', async () => {
    await start('first');
    assert.deepEqual([canLogIn('first'), canLogIn('other')], [true, false]);
    const hba = fs.readFileSync(join(data, 'pg_hba.conf'), 'utf8');
    const methods = [...hba.matchAll(/^host\s+all\s.*\s(\S+)$/gm)].map(([, method]) => method);
    assert.deepEqual(new Set(methods), new Set(['scram-sha-256']));
  });

  for (const password of ["it's", 'back\\slash', '$(touch x) `id` "q"', ':password', 'ünï %s']) {
    test(`sets the password ${password} over the same data, and never logs it`, async () => {
      await start('first');
      query('create table if not exists kept as select 42 n');
      await start(password);
      assert.deepEqual([query('select n from kept'), canLogIn('first')], ['42', false]);
      assert.match(output(), /listening on/);
      assert.ok(!output().includes(password));
    });
  }

  test('sets the password of a Secret that is replaced while it runs, without a restart', async () => {
    fs.writeFileSync(join(home, 'PGPASSWORD'), 'older than the variable');
    await start('first');
    const started = query('select pg_postmaster_start_time()');
    fs.writeFileSync(join(home, 'PGPASSWORD'), 'second');
    await until(() => canLogIn('second'));
    assert.equal(canLogIn('first'), false);
    assert.equal(query('select pg_postmaster_start_time()'), started);
  });

  test('initialises anew what was half initialised when the container died', async () => {
    await stop('SIGTERM');
    fs.rmSync(join(home, '18'), { recursive: true });
    launch('first');
    await until(() => fs.existsSync(`${data}.new/PG_VERSION`));
    await stop('SIGKILL');
    assert.ok(!fs.existsSync(data), 'initdb had finished');
    await start('first');
  });

  test('closes a directory that the volume opened to the group', async () => {
    await stop('SIGTERM');
    fs.chmodSync(data, 0o2770);
    await start('first');
  });

  test('SIGTERM is a fast shutdown with exit code 0, though a client is connected', async () => {
    await start('first');
    const client = spawn('psql', ['--username=postgres'], { env });
    client.stdin.write('select 1;\n');
    await once(client.stdout, 'data');
    const closed = once(client, 'close');
    assert.equal(await stop('SIGTERM'), 0);
    assert.match(output(), /received fast shutdown request/);
    client.stdin.end();
    await closed;
  });

  describe('a dump', () => {
    const dumps = () => fs.readdirSync(join(home, 'backup'));

    beforeEach(async () => {
      await start('first');
      for (const name of dumps()) fs.rmSync(join(home, 'backup', name));
      query('drop table if exists rows; create table rows as select 42 n');
      assert.equal(run('backup.sh').status, 0);
      query('update rows set n = 1');
    });

    test('is restored with its rows', () => {
      const { status, stderr } = run('restore.sh');
      assert.equal(status, 0, stderr);
      assert.equal(query('select n from rows'), '42');
    });

    test('that is broken changes nothing', () => {
      const dump = fs.readFileSync(join(home, 'backup', dumps()[0]!));
      fs.writeFileSync(join(home, 'backup/broken'), dump.subarray(0, dump.length - 50));
      assert.notEqual(run('restore.sh', { FILE: 'broken' }).status, 0);
      assert.equal(query('select n from rows'), '1');
    });

    test('older than KEEP_DAYS is deleted, and so is one that was half written', () => {
      const old = join(home, 'backup/passengers-20200101T000000Z.dump');
      execFileSync('touch', ['--date=16 days ago', old, `${old}.part`]);
      assert.equal(run('backup.sh').status, 0);
      assert.deepEqual(
        dumps().filter((name) => name.startsWith('passengers-2020')),
        [],
      );
    });

    test('is not written, and none is deleted, when the database cannot be reached', () => {
      const before = dumps();
      assert.notEqual(run('backup.sh', { PGPORT: '1', KEEP_DAYS: '-1' }).status, 0);
      assert.deepEqual(dumps(), before);
    });
  });
});
