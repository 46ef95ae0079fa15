/**
 * The image, built and run for real: `npm run test:image`, as root on Debian with buildah, runc and
 * debootstrap. Clients use port 8080 of a container that a cluster could run, with a PostgreSQL beside
 * it. What nginx does by itself is in nginx/nginx.test.ts.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { BASE, buildah, buildImage } from './build-image.ts';
import { type Image, openImage, PROBES, PUBLIC, startContainer, USER } from './container.ts';
import { assertProblem, client, type Reply, type Terms } from './deployment.ts';
import { ask, memoryOf, PASSENGER, startDatabase, type TestDatabase, until } from './harness.ts';

const given = process.env.IMAGE?.includes(':') ? process.env.IMAGE : undefined;
const TAG = given ?? 'passengers:test';
const skip = process.env.IMAGE ? false : 'npm run test:image builds the image and runs it';

let image: Image;
let database: TestDatabase;
const unlimited = join(tmpdir(), `passengers-${process.pid}.conf`); // nginx without limits

before(async () => {
  if (skip) return;
  const builder = given ? 'buildah' : buildImage(TAG);
  if (builder === 'docker') buildah('pull', '--quiet', `docker-daemon:${TAG}`);
  image = openImage(TAG);
  database = await startDatabase();
  const server = await readFile('nginx/passengers.conf', 'utf8');
  await writeFile(unlimited, server.replace(/^ +limit_.*$/gm, ''));
});

after(async () => {
  image?.close();
  await database?.stop();
  await rm(unlimited, { force: true });
});

/** A container that ends with the test, with exit code `code`. */
async function run(t: TestContext, environment: Record<string, string>, code = 0, mounts = {}) {
  const container = await startContainer(image, environment, mounts);
  t.after(async () => assert.equal(await container.stop(), code, 'exit code'));
  return container;
}

/** One on the database, ready; without limits per client, since all clients here have one address. */
async function open(t: TestContext, mounts: object = { '/etc/nginx/passengers.conf': unlimited }) {
  await ask(database.url, (sql) => sql`drop table if exists titanic`);
  const started = performance.now();
  const env = { DATABASE_URL: database.url, AUTH: 'none', LOG_LEVEL: 'debug' };
  const container = await run(t, env, 0, mounts);
  await until(async () => (await probe('/readyz')) === 200, 20_000);
  t.diagnostic(`ready after ${(performance.now() - started).toFixed()} ms`);
  return container;
}

async function probe(path: string): Promise<number> {
  const response = await fetch(PROBES + path).catch(() => undefined);
  await response?.arrayBuffer();
  return response?.status ?? 0;
}

const send = client(PUBLIC, undefined, 6000);

/** A request; an error is problem+json. Status 0: the connection was lost, or no answer in 6 s. */
async function call(method: string, path: string, terms: Terms = {}): Promise<Reply> {
  const lost = { status: 0, headers: new Headers(), text: '', json: undefined };
  const reply = await send(method, path, terms).catch(() => lost);
  if (reply.status >= 400) assertProblem(reply);
  return reply;
}

// --- Image -------------------------------------------------------------------------------

describe('Image', { skip }, () => {
  const find = (...args: string[]) => execFileSync('find', args, { encoding: 'utf8' }).trim();

  test('a numeric user, an exec-form entry point, labels, and the build arguments', async () => {
    const { User, Entrypoint, Labels, Env } = image.config;
    assert.deepEqual([User, Entrypoint], ['1000:0', ['/usr/bin/python3', '/etc/nginx/start.py']]);
    const labels = Object.entries(Labels).map(([name, value]) => [name.split('.image.')[1], value]);
    const { version, revision, source, ...base } = Object.fromEntries(labels);
    const { version: released } = JSON.parse(await readFile('package.json', 'utf8'));
    const commit = execFileSync('git', ['rev-parse', 'HEAD'], { encoding: 'utf8' }).trim();
    assert.deepEqual([version, revision], [released, commit]);
    assert.deepEqual([base['base.name'], typeof source], [BASE, 'string']);
    assert.match(base['base.digest'], /^sha256:[0-9a-f]{64}$/);
    const environment = Object.fromEntries(Env.map((line) => line.split('=')));
    assert.deepEqual([environment.APP_COMMIT, environment.NODE_ENV], [commit, 'production']);
    assert.ok('APP_BRANCH' in environment && 'APP_STACK' in environment);
  });

  test('group 0 reads the files of the service', () => {
    const mine = ['app', 'etc/nginx', 'etc/supervisor', 'var/cache/node'];
    const unreadable = ['!', '-type', 'l', '!', '(', '-gid', '0', '-perm', '-g=r', ')'];
    assert.equal(find(...mine.map((name) => join(image.root, name)), ...unreadable), '');
  });

  test('the service and nothing else is in /app', () => {
    const depth = ['-mindepth', '1', '-maxdepth', '1'];
    const names = find(join(image.root, 'app'), ...depth, '-printf', '%f ');
    const service = ['app.ts', 'credentials.ts', 'examples', 'lib', 'node_modules', 'package.json'];
    assert.deepEqual(names.split(' ').sort(), service);
  });

  for (const path of [
    ...['*/bin/gcc*', '*/bin/git', '/var/lib/apt/lists/*', '/etc/nginx/trusted.d/*', '/root/.npm'],
    ...['/app/*.map', '/app/lib/*.test.ts', '/app/lib/embedded.ts', '/app/node_modules/typescript'],
  ]) {
    test(`there is no ${path}`, () => {
      assert.equal(find(image.root, '-path', `${image.root}${path}`), '');
    });
  }
});

// --- Start -------------------------------------------------------------------------------

describe('Start', { skip }, () => {
  const AWAY = 'postgres://x:secret@127.0.0.1:9/x';

  test('an invalid environment ends the container within 15 s, and one line says why', async (t) => {
    const started = performance.now();
    const { lines, stderr, ended } = await run(t, { DATABASE_URL: AWAY }, 1);
    await ended;
    assert.ok(performance.now() - started < 15_000);
    const why = /^JWT_SECRET, JWKS_URL or AUTH=none is required/;
    assert.equal(lines.filter(({ msg }) => why.test(String(msg))).length, 1);
    assert.doesNotMatch(JSON.stringify(lines), /secret@/);
    assert.equal(stderr(), '');
  });

  test('a service that crashes at each start ends the container', async (t) => {
    const env = { NODE_OPTIONS: '--require=/not/there' };
    const { stderr, ended, logged } = await run(t, env, 1);
    await logged(({ level, crashes }) => level === 'fatal' && crashes === 7);
    await ended;
    assert.match(stderr(), /Cannot find module '\/not\/there'/);
  });

  test('Node takes all code from the compile cache of the build, as any user', async (t) => {
    const env = { AUTH: 'none', NODE_DEBUG_NATIVE: 'COMPILE_CACHE' }; // it ends once all is loaded
    const { stderr, ended } = await run(t, env, 1);
    await ended;
    const modules = [...stderr().matchAll(/code cache for \w+ (\S+) was (\w+)/g)];
    assert.ok(modules.some(([, url]) => url === 'file:///app/app.ts'));
    assert.ok(modules.every(([, , state]) => state === 'accepted'));
    assert.doesNotMatch(stderr(), /no transpile cache/);
  });

  test('a database that is away is no reason to end: 503', async (t) => {
    await run(t, { AUTH: 'none', DATABASE_URL: AWAY });
    await until(async () => (await probe('/healthz')) === 200, 20_000);
    const { status, headers } = await call('GET', '/passengers');
    assert.deepEqual([status, headers.get('retry-after')], [503, '1']);
  });
});

// --- Service -----------------------------------------------------------------------------

test('the service through nginx', { skip }, async (t) => {
  const { lines, logged, pids, stderr } = await open(t, {});
  const [node] = await pids('node');
  const idle = await memoryOf(node);
  const answers: Reply[] = [];
  const get = async (...args: Parameters<typeof call>) => {
    const answer = await call(...args);
    answers.push(answer);
    return answer;
  };

  await t.test('CSV of 20 000 rows in and out, compressed', async () => {
    const line = `${Object.values(PASSENGER).join(',')}\n`;
    const csv = `${Object.keys(PASSENGER).join(',')}\n${line.repeat(20_000)}`;
    const sent = { 'content-type': 'text/csv' };
    assert.equal((await get('POST', '/passengers', { body: csv, headers: sent })).status, 201);
    const asked = { accept: 'text/csv', 'accept-encoding': 'gzip' };
    const { headers, text } = await get('GET', '/passengers', { headers: asked });
    assert.equal(headers.get('content-encoding'), 'gzip');
    assert.equal(text.split('\n').length, 20_002);
  });

  await t.test('800 keys in a filter, and the Link of the next page', async () => {
    const keys = Array.from({ length: 800 }, (_, at) => `00000000-0000-4000-8000-${1e11 + at}`);
    assert.equal((await get('GET', `/passengers?uuid=in.(${keys})`)).text, '[]');
    const { headers } = await get('GET', `/passengers?uuid=neq.${keys[0]}&limit=1`);
    assert.match(headers.get('link') ?? '', /rel="next"/);
  });

  await t.test(
    'an unknown method is 405, 150 kB of headers 431, a script of /docs 200',
    async () => {
      assert.equal((await get('FOO', '/passengers')).status, 405);
      const large = Array.from({ length: 150 }, (_, at) => [`x-${at}`, 'a'.repeat(1000)]);
      assert.equal((await get('GET', '/zero', { headers: Object.fromEntries(large) })).status, 431);
      assert.equal((await get('GET', '/docs/swagger-ui-bundle.js')).status, 200);
    },
  );

  await t.test('each answer has a line of nginx, and of the service if it got there', async () => {
    for (const { status, headers } of answers) {
      const id = headers.get('x-request-id');
      const line = await logged((line) => line.id === id && line.msg === 'request');
      const inner = lines.filter((line) => line.id === id && line.msg === 'answered');
      assert.ok(inner.length === 1 || status === 405 || status === 431);
      assert.ok([line, ...inner].every((line) => line.status === status));
    }
  });

  await t.test('stdout is JSON, and stderr is empty', () => {
    assert.deepEqual([lines.filter(({ text }) => text), stderr()], [[], '']);
  });

  await t.test('an idle Node allocates less than 55 MB', () => {
    t.diagnostic(`${idle?.resident.toFixed()} MB resident, ${idle?.own.toFixed()} allocated`);
    assert.ok(idle && idle.own < 55, 'without the compile cache it is 62 MB');
  });

  await t.test('it has no capabilities, a read-only root, and Node on loopback', async () => {
    const status = await readFile(`/proc/${node}/status`, 'utf8');
    assert.match(status, new RegExp(`^Uid:\t${USER}\t[^]+^Gid:\t0\t[^]+^CapBnd:\t0+$`, 'm'));
    const mounted = await readFile(`/proc/${node}/mountinfo`, 'utf8');
    assert.deepEqual(mounted.match(/ \/(tmp)? rw/g), [' /tmp rw']);
    const sockets = execFileSync('ss', ['-Hltn', 'sport', '=', ':8000'], { encoding: 'utf8' });
    assert.match(sockets, /^LISTEN +\d+ +\d+ +127\.0\.0\.1:8000 [^\n]*\n$/);
  });
});

// --- Faults ------------------------------------------------------------------------------

describe('Faults', { skip }, () => {
  test('Node killed under load, five times: no write lost or doubled', async (t) => {
    const { pids } = await open(t);
    const answers: { name: string; status: number }[] = [];
    let isOver = false;
    const writers = Array.from({ length: 6 }, async (_, writer) => {
      for (let count = 0; !isOver; count += 1) {
        const name = `${writer}.${count}`;
        const { status } = await call('POST', '/passengers', { body: { ...PASSENGER, name } });
        answers.push({ name, status });
        if (status !== 201) await sleep(10);
      }
    });
    const times: number[] = [];
    for (let round = 0; round < 5; round += 1) {
      const [node = Number.NaN] = await pids('node');
      const started = performance.now();
      process.kill(node, 'SIGKILL');
      await until(async () => (await pids('node')).some((pid) => pid !== node));
      await until(async () => (await call('GET', '/passengers?limit=1')).status === 200);
      times.push(performance.now() - started);
    }
    isOver = true;
    await Promise.all(writers);
    t.diagnostic(`back after ${times.map((ms) => ms.toFixed()).join(', ')} ms`);
    assert.ok(Math.min(...times) < 5000, 'the promise is 1 s, on a quiet machine');
    assert.ok(answers.every(({ status }) => [201, 502, 503].includes(status)));
    const rows = await ask(database.url, (sql) => sql`select name from titanic`);
    const stored = new Set(rows.map(({ name }) => name));
    assert.equal(stored.size, rows.length, 'no write was made twice');
    assert.ok(answers.every(({ status, name }) => status !== 201 || stored.has(name)));
  });

  const flood = 'setInterval(()=>process.stderr.write("x".repeat(99).concat("\\n").repeat(999)))';
  for (const [what, script] of [
    ['on a quiet stderr', ''],
    ['during a flood on stderr', flood],
  ] as const) {
    test(`a killed worker of nginx is replaced within 1 s, its master ends the container ${what}`, async (t) => {
      const NODE_OPTIONS = `--import=data:text/javascript,${encodeURIComponent(script)}`;
      const env = { DATABASE_URL: database.url, AUTH: 'none', NODE_OPTIONS };
      const { pids, ended, logged, stderr } = await run(t, env, 1);
      await until(async () => (await pids('nginx: worker')).length === 2);
      const [first = Number.NaN, second] = await pids('nginx: worker');
      process.kill(first, 'SIGKILL');
      const isNew = (pid: number) => pid !== first && pid !== second;
      await until(async () => (await pids('nginx: worker')).some(isNew), 1000);
      if (script) await until(() => stderr().length > 1e5);
      const started = performance.now();
      process.kill((await pids('nginx: master'))[0] ?? Number.NaN, 'SIGKILL');
      await logged(({ msg, level }) => msg === 'nginx ended' && level === 'fatal');
      await ended;
      assert.ok(performance.now() - started < 5000);
    });
  }
});

// --- Stop --------------------------------------------------------------------------------

test('SIGTERM: a request of 3 s is answered; nginx ends, then Node', { skip }, async (t) => {
  const { pids, kill, ended, logged } = await open(t);
  const slow = `
    create function wait() returns trigger language plpgsql
    as $$ begin perform pg_sleep(2.7); return new; end $$;
    create trigger wait before insert on titanic for each row execute function wait()`;
  await ask(database.url, (sql) => sql.unsafe(slow));
  t.after(() => ask(database.url, (sql) => sql`drop function wait cascade`));
  const idle = Array.from({ length: 20 }, () => connect(8080, '127.0.0.1'));
  for (const socket of idle) socket.write('GET /hello HTTP/1.1\r\nHost: x\r\n\r\n');
  await Promise.all(idle.map((socket) => once(socket, 'data')));
  const order: string[] = [];
  const answered = call('POST', '/passengers', { body: PASSENGER }).then(({ status }) =>
    order.push(`${status}`),
  );
  await until(async () => (await waits()).some(({ wait }) => wait === 'PgSleep'));
  await kill('TERM');
  await until(() => idle.every((socket) => socket.resume().closed));
  order.push('idle clients closed');
  await logged(({ msg }) => msg === 'stopping');
  order.push(`Node stops, ${(await pids('nginx')).length} of nginx`);
  await answered;
  await ended;
  assert.deepEqual(order, ['idle clients closed', '201', 'Node stops, 0 of nginx']);
  await until(async () => (await waits()).length === 0, 2000);
});

function waits() {
  return ask(
    database.url,
    (sql) => sql<{ wait: string }[]>`
      select wait_event as wait from pg_stat_activity
      where datname = current_database() and pid <> pg_backend_pid()`,
  );
}
