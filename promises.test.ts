/**
 * What the service promises in faults, proved on the real process and a real PostgreSQL.
 *
 * The oracle: writers POST rows whose names they chose. After healing every name that was answered
 * 201 is there exactly once, every other zero or one times.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { Agent, createServer, request as httpRequest, type IncomingMessage } from 'node:http';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import * as jose from 'jose';
import type postgres from 'postgres';
import {
  ask,
  controlServer,
  isRunning,
  type LogLine,
  nodeArguments,
  type Proxy,
  type Reply,
  type ServerControl,
  startDatabase,
  startProxy,
  startService,
  type TestDatabase,
  type TestService,
  until,
} from './harness.ts';

/** The longest that anybody waits for an answer. */
const PROMISED = 6000;

const ROW = {
  survived: true,
  passengerClass: 3,
  name: 'Sandström, Miss. Beatrice',
  sex: 'female',
  age: 1,
  siblingsOrSpousesAboard: 1,
  parentsOrChildrenAboard: 1,
  fare: 16.7,
};

let server: TestDatabase;
let control: ServerControl | undefined;

before(async () => {
  server = await startDatabase();
  control = server.home ? await controlServer(server.home) : undefined;
});

after(async () => {
  await control?.resume();
  await server.stop();
});

/** The hold on the server; without one (DATABASE_URL is set) the test is skipped. */
function hold(t: TestContext): ServerControl {
  if (control) return control;
  t.skip('needs a server of its own');
  throw new Error('needs a server of its own');
}

type Scene = { database: TestDatabase; proxy: Proxy; service: TestService };

/** A database and a service on it, behind the proxy where `proxied`; both end with the test. */
async function openScene(
  t: TestContext,
  environment: Record<string, string> = {},
  { proxied = false, file }: { proxied?: boolean; file?: string } = {},
): Promise<Scene> {
  const database = await startDatabase(server.url);
  const proxy = await startProxy(database.url);
  const url = proxied ? proxy.url : database.url;
  const starting = startService({ DATABASE_URL: url, ...environment }, file ? { file } : {});
  t.after(async () => {
    await control?.resume();
    proxy.pass();
    const service = await starting.catch(() => undefined);
    if (service) await end(service);
    await proxy.stop();
    await database.stop();
  });
  const service = await starting;
  await until(() => isReady(service));
  return { database, proxy, service };
}

/** Ends a service as an orchestrator does, and sees to it that it obeys. */
async function end(service: TestService): Promise<void> {
  const { child } = service;
  if (child.exitCode !== null || child.signalCode !== null) return;
  const timer = setTimeout(() => child.kill('SIGKILL'), PROMISED + 2000);
  const code = await service.stop();
  clearTimeout(timer);
  assert.equal(code, 0, `SIGTERM ended the service with ${code ?? child.signalCode}`);
}

async function isReady(service: TestService): Promise<boolean> {
  return (await service.get('/readyz').catch(() => ({ status: 0 }))).status === 200;
}

/** What a client got: status 0 is a lost connection. `at`: when, by performance.now(). */
type Answer = { path: string; name: string; status: number; ms: number; at: number; reply?: Reply };

const totals = { acknowledged: 0, lost: 0, doubled: 0, longest: 0, path: '' };

/** A request, measured. An error that is no problem+json, or that came too late, fails the test. */
async function measure(
  service: TestService,
  method: string,
  path: string,
  body?: Record<string, unknown>,
  headers?: Record<string, string>,
): Promise<Answer> {
  const started = performance.now();
  const late = sleep(2 * PROMISED, undefined, { ref: false });
  const sent = service.request(method, path, body, headers).catch(() => undefined);
  const reply = (await Promise.race([sent, late])) ?? undefined;
  const at = performance.now();
  const ms = at - started;
  if (ms > totals.longest) Object.assign(totals, { longest: ms, path: `${method} ${path}` });
  if (reply && reply.status >= 400) {
    const type = reply.headers.get('content-type');
    assert.equal(type, 'application/problem+json', `${reply.status} of ${path}`);
    assert.equal(reply.json.status, reply.status);
  }
  if (reply?.status === 503) assert.ok(reply.headers.get('retry-after'), 'Retry-After of 503');
  assert.ok(ms < PROMISED, `${method} ${path} took ${ms.toFixed()} ms: ${reply?.status}`);
  const name = String(body?.name ?? '');
  return { path, name, status: reply?.status ?? 0, ms, at, ...(reply && { reply }) };
}

type Load = { answers: Answer[]; stop: () => Promise<Answer[]> };
let loads = 0;

/** Clients that write and read without a pause, and one that asks for /healthz. */
function startLoad(
  t: TestContext,
  service: TestService,
  { writers = 6, readers = 3, prefix = 'load' } = {},
): Load {
  const answers: Answer[] = [];
  let [ended, count] = [false, 0];
  loads += 1;
  const run = loads;
  const loop = async (next: () => Promise<Answer>, pause: number) => {
    while (!ended) {
      const { reply: _, ...answer } = await next();
      answers.push(answer);
      if (answer.status >= 400 || answer.status === 0) await sleep(10);
      await sleep(pause);
    }
  };
  const write = () => {
    count += 1;
    return measure(service, 'POST', '/passengers', { ...ROW, name: `${prefix} ${run}.${count}` });
  };
  const read = () => measure(service, 'GET', '/passengers?limit=3');
  const loops = [
    ...Array.from({ length: writers }, () => loop(write, 0)),
    ...Array.from({ length: readers }, () => loop(read, 0)),
    loop(() => measure(service, 'GET', '/healthz'), 50),
  ];
  const all = Promise.all(loops);
  const end = () => {
    ended = true;
  };
  all.catch(end);
  t.after(end);
  const stop = async () => {
    end();
    await all;
    return answers;
  };
  return { answers, stop };
}

/** Applies the oracle, and tells of the answers only these statuses (besides success) happened. */
async function judge(t: TestContext, { url }: TestDatabase, answers: Answer[], allowed: number[]) {
  const written = answers.filter(({ name }) => name !== '');
  const rows = await ask(url, (sql) => sql`select name, count(*)::int from titanic group by name`);
  const counts = new Map(rows.map(({ name, count }) => [name, count]));
  const acknowledged = written.filter(({ status }) => status === 201);
  const lost = acknowledged.filter(({ name }) => !counts.has(name)).map(({ name }) => name);
  const doubled = written.filter(({ name }) => counts.get(name) > 1).map(({ name }) => name);
  totals.acknowledged += acknowledged.length;
  totals.lost += lost.length;
  totals.doubled += doubled.length;
  const statuses = new Map<number, number>();
  for (const { status } of answers) statuses.set(status, (statuses.get(status) ?? 0) + 1);
  const told = [...statuses].map(([status, count]) => `${count} × ${status}`);
  const longest = Math.max(0, ...answers.map(({ ms }) => ms));
  t.diagnostic(`${told.join(', ')}; longest ${longest.toFixed()} ms`);
  assert.deepEqual({ lost, doubled }, { lost: [], doubled: [] });
  const other = answers.filter(({ status }) => ![200, 201, ...allowed].includes(status));
  assert.deepEqual(other.slice(0, 3), [], `${other.length} answers of another status`);
  const health = answers.filter(({ path, status }) => path === '/healthz' && status !== 200);
  if (!allowed.includes(0)) assert.deepEqual(health, []);
}

/** The ms from then to the first success that needed the database; told, and bound. */
function recovery(t: TestContext, { answers }: Load, since: number, bound: number): void {
  const good = answers.filter(({ path, status, at }) => {
    return at >= since && status >= 200 && status < 300 && path !== '/healthz';
  });
  const ms = Math.min(...good.map(({ at }) => at)) - since;
  t.diagnostic(`back after ${ms.toFixed()} ms`);
  assert.ok(ms <= bound, `back after ${ms.toFixed()} ms`);
}

/** Waits until the load has a success from after `since`. */
async function untilBack({ answers }: Load, since = performance.now()): Promise<void> {
  await until(() => {
    return answers.some(({ at, status, path }) => {
      return at > since && (status === 200 || status === 201) && path !== '/healthz';
    });
  });
}

async function countRows({ url }: TestDatabase, name: string): Promise<number> {
  const [row] = await ask(url, (sql) => sql`select count(*) from titanic where name = ${name}`);
  return Number(row?.count);
}

type Backend = { pid: number; state: string; query: string };

/** The server's processes for the service's connections. */
async function backendsOf({ url }: TestDatabase): Promise<Backend[]> {
  return ask(
    url,
    (sql) => sql<Backend[]>`
      select pid, state, query from pg_stat_activity
      where datname = current_database() and pid <> pg_backend_pid()`,
  );
}

async function activeWith(database: TestDatabase, text: string): Promise<Backend[]> {
  const backends = await backendsOf(database);
  return backends.filter(({ state, query }) => state === 'active' && query.includes(text));
}

function terminate(sql: postgres.Sql) {
  return sql`
    select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid()`;
}

/** From now on every statement that reads the table sleeps first. */
async function slowReads({ url }: TestDatabase, seconds: number): Promise<void> {
  const view = `select r.xmin, r.* from titanic_rows r where (select pg_sleep(${seconds})) is not null`;
  const batch = `alter table titanic rename to titanic_rows; create view titanic as ${view}`;
  await ask(url, (sql) => sql.unsafe(batch));
}

/** From now on an insert sleeps, where the name is like the pattern. */
async function slowInserts({ url }: TestDatabase, seconds: number, like = '%'): Promise<void> {
  const batch = `
    create function dawdle() returns trigger language plpgsql
    as $$ begin perform pg_sleep(${seconds}); return new; end $$;
    create trigger dawdle before insert on titanic for each row
    when (new.name like '${like}') execute function dawdle()`;
  await ask(url, (sql) => sql.unsafe(batch));
}

function bodyOf(name: string) {
  return { ...ROW, name };
}

// --- Database -------------------------------------------------------------------

describe('Database', () => {
  test('a service without its database starts, says so, and is ready 2 s after it is up', async (t) => {
    const { stop, start } = hold(t);
    await stop('fast');
    t.after(async () => {
      if (!(await ask(server.url, (sql) => sql`select 1`).catch(() => undefined))) await start();
    });
    const service = await startService({ DATABASE_URL: server.url });
    t.after(() => end(service));
    assert.equal((await measure(service, 'GET', '/healthz')).status, 200);
    for (const path of ['/readyz', '/passengers', '/passengerlist']) {
      assert.equal((await measure(service, 'GET', path)).status, 503, path);
    }
    assert.equal((await measure(service, 'POST', '/passengers', ROW)).status, 503);
    await start();
    const started = performance.now();
    await until(() => isReady(service));
    const ms = performance.now() - started;
    t.diagnostic(`ready after ${ms.toFixed()} ms`);
    assert.ok(ms <= 2000, `ready after ${ms.toFixed()} ms`);
    assertStates(service, ['database down', 'database up']);
    await ask(server.url, (sql) => sql`drop table titanic`);
  });

  test('a service with a wrong password starts, and is ready 2 s after the password is right', async (t) => {
    const database = await startDatabase(server.url);
    const keeper = "create role keeper login password 'another'";
    await ask(database.url, (sql) => sql.unsafe(`${keeper}; grant all on schema public to keeper`));
    const service = await startService({ DATABASE_URL: withRole(database.url) });
    t.after(async () => {
      await end(service);
      await database.stop();
      await ask(server.url, (sql) => sql`drop role keeper`);
    });
    assert.equal((await measure(service, 'GET', '/readyz')).status, 503);
    assert.equal((await measure(service, 'POST', '/passengers', ROW)).status, 503);
    assert.equal((await measure(service, 'GET', '/healthz')).status, 200);
    await ask(server.url, (sql) => sql.unsafe(`alter role keeper password '${PASSWORD}'`));
    const started = performance.now();
    await until(() => isReady(service));
    const ms = performance.now() - started;
    t.diagnostic(`ready after ${ms.toFixed()} ms`);
    assert.ok(ms <= 2000, `ready after ${ms.toFixed()} ms`);
    assertStates(service, ['database down', 'database up']);
    assert.ok(
      !JSON.stringify(service.log).includes(PASSWORD) && !service.stderr().includes(PASSWORD),
    );
  });

  for (const how of ['fast', 'crash'] as const) {
    test(`a database stopped (${how}) for 8 s under load costs 503 alone, and no write`, async (t) => {
      const { stop, start } = hold(t);
      const { database, service } = await openScene(t);
      const load = startLoad(t, service);
      await untilBack(load);
      await stop(how);
      const stopped = load.answers.length;
      await sleep(8000);
      await start();
      const started = performance.now();
      await untilBack(load, started);
      await sleep(500);
      await load.stop();
      assert.ok(load.answers.slice(stopped).some(({ status }) => status === 503));
      recovery(t, load, started, 2000);
      await judge(t, database, load.answers, [503]);
      assertStates(service, ['database up', 'database down', 'database up']);
    });
  }

  test('a server paused for 10 s costs 503 or 504 by the deadline, and 1 s afterwards', async (t) => {
    const { pause, resume } = hold(t);
    const { database, service } = await openScene(t);
    const load = startLoad(t, service);
    await untilBack(load);
    await pause();
    const paused = performance.now();
    await until(() => load.answers.some(({ status }) => status >= 503));
    for (const [method, path, status] of WITHOUT_DATABASE) {
      const answer = await measure(service, method, path);
      assert.equal(answer.status, status, `${method} ${path}`);
      assert.ok(answer.ms < 1000, `${method} ${path} took ${answer.ms.toFixed()} ms`);
    }
    await sleep(10_000 - (performance.now() - paused));
    await resume();
    const resumed = performance.now();
    await untilBack(load, resumed);
    await load.stop();
    recovery(t, load, resumed, 1000);
    await judge(t, database, load.answers, [503, 504]);
  });

  test('what is in flight is capped: behind a server that hangs, more is refused at once', async (t) => {
    const { database, service } = await openScene(t, { POOL_SIZE: '1' });
    const [backend] = await backendsOf(database);
    process.kill(backend!.pid, 'SIGSTOP');
    const answers = await Promise.all(
      Array.from({ length: 100 }, (_, at) => measure(service, 'GET', `/passengers?age=eq.${at}`)),
    ).finally(() => process.kill(backend!.pid, 'SIGCONT'));
    const atOnce = answers.filter(({ status, ms }) => status === 503 && ms < 1500);
    t.diagnostic(`${atOnce.length} of 100 refused at once`);
    assert.equal(atOnce.length, 36);
    assert.ok(answers.every(({ status }) => status === 503 || status === 504));
    await until(() => isReady(service));
  });

  test('a server process that hangs costs 504 by the deadline of the service', async (t) => {
    const { database, service } = await openScene(t, { POOL_SIZE: '1' });
    const [backend] = await backendsOf(database);
    process.kill(backend!.pid, 'SIGSTOP');
    const answer = await measure(service, 'GET', '/passengers').finally(() => {
      process.kill(backend!.pid, 'SIGCONT');
    });
    assert.equal(answer.status, 504);
    assert.ok(answer.ms > 3500, `after ${answer.ms.toFixed()} ms`);
    await until(() => isReady(service));
  });

  test('a streamed list whose server process hangs is answered all the same', async (t) => {
    const { database, service } = await openScene(t);
    await slowReads(database, 2);
    const asked = measure(service, 'GET', '/passengerlist');
    asked.catch(() => {});
    let slow: Backend | undefined;
    await until(async () => {
      [slow] = await activeWith(database, 'row_to_json');
      return slow;
    });
    process.kill(slow!.pid, 'SIGSTOP');
    const answer = await asked.finally(() => process.kill(slow!.pid, 'SIGCONT'));
    assert.ok([503, 504].includes(answer.status), String(answer.status));
  });

  test('ended idle connections are seen by no client', async (t) => {
    const { database, service } = await openScene(t);
    const load = startLoad(t, service, { writers: 1, readers: 1 });
    for (let round = 1; round <= 10; round += 1) {
      const uuid = `00000000-0000-4000-8000-00000000000${round % 10}`;
      await ask(database.url, terminate);
      const one = `/passengers/${uuid}`;
      const put = await measure(service, 'PUT', one, bodyOf(`put ${round}`));
      assert.equal(put.status, 201, `PUT in round ${round}`);
      await ask(database.url, terminate);
      assert.equal((await measure(service, 'PATCH', one, { age: 2 })).status, 200);
      await ask(database.url, terminate);
      assert.equal((await measure(service, 'DELETE', one)).status, 204);
    }
    await judge(t, database, await load.stop(), []);
  });

  test('the error of an ended connection is not handed to the next statement', async (t) => {
    const { database, service } = await openScene(t, { POOL_SIZE: '1' });
    for (let round = 0; round < 5; round += 1) {
      await ask(database.url, terminate);
      await until(async () => (await backendsOf(database)).length === 1);
      const answer = await measure(service, 'PUT', `/passengers/${crypto.randomUUID()}`, ROW);
      assert.equal(answer.status, 201);
    }
    assert.deepEqual(warnings(service.log), []);
  });

  test('a backend ended during an INSERT costs 201 or 503, and no row twice', async (t) => {
    const { database, service } = await openScene(t);
    await slowInserts(database, 0.1);
    const load = startLoad(t, service, { writers: 8 });
    for (let kill = 0; kill < 20; kill += 1) {
      await until(async () => {
        const [busy] = await activeWith(database, 'insert');
        return busy && ask(database.url, (sql) => sql`select pg_terminate_backend(${busy.pid})`);
      });
    }
    await untilBack(load);
    await judge(t, database, await load.stop(), [503]);
  });

  test('a backend killed during an INSERT, and with it all others, costs 503 and no write', async (t) => {
    hold(t);
    const { database, service } = await openScene(t);
    await slowInserts(database, 0.1);
    const load = startLoad(t, service, { writers: 8 });
    for (let kill = 0; kill < 2; kill += 1) {
      let busy: Backend | undefined;
      await until(async () => {
        [busy] = await activeWith(database, 'insert').catch(() => []);
        return busy;
      });
      process.kill(busy!.pid, 'SIGKILL');
      const killed = performance.now();
      await until(() => load.answers.some(({ status, at }) => status === 503 && at > killed));
      await until(() => ask(database.url, (sql) => sql`select 1`).catch(() => false));
      const accepting = performance.now();
      await untilBack(load, accepting);
      recovery(t, load, accepting, 2000);
    }
    await judge(t, database, await load.stop(), [503]);
  });

  test('new connections black-holed cost 503 within connect_timeout + 1 s', async (t) => {
    const { database, proxy, service } = await openScene(t, {}, { proxied: true });
    const load = startLoad(t, service);
    await untilBack(load);
    proxy.blackHole();
    proxy.cut();
    const from = performance.now();
    await sleep(5000);
    proxy.pass();
    const passed = performance.now();
    await untilBack(load, passed);
    await load.stop();
    recovery(t, load, passed, 2000);
    const during = load.answers.filter(({ at }) => at > from && at < passed);
    const longest = Math.max(...during.map(({ ms }) => ms));
    assert.ok(longest < 3000, `503 after ${longest.toFixed()} ms`);
    await judge(t, database, load.answers, [503]);
  });

  test('connections refused for 4 s are tried again at least each second, and in no storm', async (t) => {
    const { proxy, service } = await openScene(t, { POOL_SIZE: '1' }, { proxied: true });
    proxy.dialled.length = 0;
    proxy.refuse();
    await sleep(4000);
    const gaps = proxy.dialled.map((at, index, all) => at - (all[index - 1] ?? at));
    t.diagnostic(`${proxy.dialled.length} tries, at most ${Math.max(...gaps).toFixed()} ms apart`);
    assert.ok(proxy.dialled.length >= 4 && proxy.dialled.length <= 40);
    assert.ok(Math.max(...gaps) <= 1100);
    proxy.pass();
    const passed = performance.now();
    await until(() => isReady(service));
    assert.ok(performance.now() - passed < 2000);
  });

  test('connections cut again and again under load cost 503 at most, and no write', async (t) => {
    const { database, proxy, service } = await openScene(t, {}, { proxied: true });
    const load = startLoad(t, service);
    for (let round = 0; round < 20; round += 1) {
      await untilBack(load);
      proxy.cut();
    }
    const healed = performance.now();
    await untilBack(load, healed);
    recovery(t, load, healed, 2000);
    await judge(t, database, await load.stop(), [503]);
  });

  test('a network that stalls for 5 s costs 503 or 504, and no write', async (t) => {
    const { database, proxy, service } = await openScene(t, {}, { proxied: true });
    const load = startLoad(t, service);
    await untilBack(load);
    proxy.stall();
    await sleep(5000);
    proxy.pass();
    const passed = performance.now();
    await untilBack(load, passed);
    recovery(t, load, passed, 2000);
    await judge(t, database, await load.stop(), [503, 504]);
  });

  test('a network that is slow by 100 ms fails nothing', async (t) => {
    const { database, proxy, service } = await openScene(t, {}, { proxied: true });
    proxy.delay(100);
    const load = startLoad(t, service);
    await sleep(1500);
    await judge(t, database, await load.stop(), []);
  });

  test('a table locked for 10 s costs 503 or 504 by lock_timeout, and is free afterwards', async (t) => {
    const { database, service } = await openScene(t);
    const load = startLoad(t, service);
    await untilBack(load);
    let locked = 0;
    await ask(database.url, (sql) =>
      sql.begin(async (locker) => {
        await locker`lock table titanic`;
        locked = performance.now();
        await sleep(10_000);
      }),
    );
    const freed = performance.now();
    await untilBack(load, freed);
    await load.stop();
    recovery(t, load, freed, 1000);
    const during = load.answers.filter(
      ({ at, path }) => at > locked && at < freed && path !== '/healthz',
    );
    t.diagnostic(`${during.length} answers while it was locked`);
    assert.ok(during.length > 9);
    await judge(t, database, load.answers, [503, 504]);
  });

  test('a slow statement costs 504, and no backend is left running it', async (t) => {
    const { database, service } = await openScene(t);
    await slowReads(database, 20);
    for (const [path, text] of [
      ['/passengers', 'row_number'],
      ['/passengerlist', 'row_to_json'],
    ]) {
      const { status, ms } = await measure(service, 'GET', path!);
      t.diagnostic(`${path}: ${status} after ${ms.toFixed()} ms`);
      assert.equal(status, 504);
      await until(async () => (await activeWith(database, text!)).length === 0, 2000);
    }
  });

  test('a slow INSERT costs 504, leaves no backend and no row', async (t) => {
    const { database, service } = await openScene(t);
    await slowInserts(database, 20, 'slow%');
    const { status } = await measure(service, 'POST', '/passengers', bodyOf('slow'));
    assert.equal(status, 504);
    await until(async () => (await activeWith(database, 'insert')).length === 0, 2000);
    assert.equal(await countRows(database, 'slow'), 0);
  });

  for (const [path, text] of [
    ['/passengers', 'row_number'],
    ['/passengerlist', 'row_to_json'],
  ] as const) {
    test(`GET ${path}: the client goes away, and its statement with it`, async (t) => {
      const { database, service } = await openScene(t);
      await slowReads(database, 2.8);
      const leaving = new AbortController();
      const left = fetch(service.url + path, { signal: leaving.signal }).catch(() => {});
      await until(async () => (await activeWith(database, text)).length === 1, 2000);
      leaving.abort();
      const from = performance.now();
      await until(async () => (await activeWith(database, text)).length === 0, 1900);
      t.diagnostic(`gone after ${(performance.now() - from).toFixed()} ms`);
      await left;
    });
  }

  test('clients that go away cost nobody else an answer', async (t) => {
    const { database, service } = await openScene(t, { POOL_SIZE: '2' });
    await slowInserts(database, 0.01);
    const load = startLoad(t, service);
    for (let round = 0; round < 150; round += 1) {
      const leaving = new AbortController();
      const paths = ['/passengers?order=age', '/passengers?name=like.l*', '/passengerlist'];
      const left = paths.map((path) => {
        return fetch(service.url + path, { signal: leaving.signal }).catch(() => {});
      });
      await sleep(round % 10);
      leaving.abort();
      await Promise.all(left);
    }
    await judge(t, database, await load.stop(), []);
  });

  test('a row that was created is read at once by everybody', async (t) => {
    const { service } = await openScene(t);
    const client = async (number: number) => {
      for (let count = 0; count < 10; count += 1) {
        const name = `own ${number}.${count}`;
        const made = await measure(service, 'POST', '/passengers', bodyOf(name));
        const { uuid } = made.reply?.json ?? {};
        const [one, list] = await Promise.all([
          measure(service, 'GET', `/passengers/${uuid}`),
          measure(service, 'GET', `/passengers?name=eq.${encodeURIComponent(name)}`),
        ]);
        assert.equal(one.reply?.json.name, name);
        assert.deepEqual(
          list.reply?.json.map((row: typeof ROW) => row.name),
          [name],
        );
      }
    };
    await Promise.all(Array.from({ length: 16 }, (_, number) => client(number)));
  });
});

const PASSWORD = 'not-the-secret-that-it-should-be';

/** Requests that need no database, and their statuses. */
const WITHOUT_DATABASE: [string, string, number][] = [
  ['GET', '/hello', 200],
  ['GET', '/nowhere', 404],
  ['DELETE', '/hello', 405],
  ['OPTIONS', '/passengers', 200],
  ['GET', '/passengers?nobody=eq.1', 400],
  ['GET', '/passengers/abc', 400],
  ['POST', '/passengers', 415],
];

function withRole(given: string): string {
  const url = new URL(given);
  url.username = 'keeper';
  url.password = PASSWORD;
  return url.href;
}

/** The database came and went in this order, one line a change. */
function assertStates({ log }: TestService, states: string[]): void {
  const seen = log.map(({ msg }) => msg).filter((msg) => /^database (up|down)$/.test(msg));
  assert.deepEqual(seen, states);
}

function warnings(log: LogLine[]): LogLine[] {
  return log.filter(({ level }) => /^(warn|error|fatal)$/.test(level));
}
