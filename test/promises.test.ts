/**
 * What the service promises in faults, proved on the real process and a real PostgreSQL.
 *
 * The oracle: writers POST rows whose names they chose. After healing every name that was answered
 * 201 is there exactly once, every other zero or one times.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { Agent, createServer, request as httpRequest, type IncomingMessage } from 'node:http';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import * as jose from 'jose';
import type postgres from 'postgres';
import { freePort } from '../lib/embedded.ts';
import {
  ask,
  childrenOf,
  controlServer,
  fill,
  isRunning,
  type LogLine,
  nodeArguments,
  type Reply,
  type ServerControl,
  startDatabase,
  startProxy,
  startService,
  streamsOf,
  type TestDatabase,
  type TestProxy,
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
let held: TestDatabase;
let control: ServerControl | undefined;

before(async () => {
  [server, held] = await Promise.all([startDatabase(), startDatabase()]);
  control = held.home ? await controlServer(held.home) : undefined;
});

after(async () => {
  await control?.resume();
  await held.stop();
  await server.stop();
});

/** The hold on the server `held`; without one (DATABASE_URL is set) the test is skipped. */
function hold(t: TestContext): ServerControl {
  if (control) return control;
  t.skip('needs a server of its own');
  throw new Error('needs a server of its own');
}

type Scene = { database: TestDatabase; proxy: TestProxy; service: TestService };

/** A database and a service on it, behind the proxy where `proxied`; both end with the test. */
async function openScene(
  t: TestContext,
  environment: Record<string, string> = {},
  {
    proxied = false,
    file,
    on = server,
  }: { proxied?: boolean; file?: string; on?: TestDatabase } = {},
): Promise<Scene> {
  const database = await startDatabase(on.url);
  const proxy = await startProxy(database.url);
  const url = proxied ? proxy.url : database.url;
  const starting = startService({ DATABASE_URL: url, ...environment }, file ? { file } : {});
  t.after(async () => {
    if (on === held) await control?.resume();
    proxy.pass();
    const service = await starting.catch(() => undefined);
    try {
      if (service) await end(service);
    } finally {
      await proxy.stop(); // or what it holds keeps this process
      await database.stop();
    }
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
  const faults = service.log.filter(({ level }) => level === 'error');
  const made = ({ msg, code }: LogLine) => msg === 'worker died' || code === 'P0001'; // by a test
  assert.deepEqual(
    faults.filter((line) => !made(line)),
    [],
    'faults that nobody foresaw',
  );
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
  const reply = await Promise.race([sent, late]);
  const at = performance.now();
  const ms = at - started;
  if (ms > totals.longest) Object.assign(totals, { longest: ms, path: `${method} ${path}` });
  if (reply && reply.status >= 400) {
    const type = reply.headers.get('content-type');
    assert.equal(type, 'application/problem+json', `${reply.status} of ${path}`);
    assert.equal(reply.json.status, reply.status);
  }
  if (reply?.status === 500) assert.fail(JSON.stringify(await service.logged('failed')));
  if (reply?.status === 503) assert.ok(reply.headers.get('retry-after'), 'Retry-After of 503');
  assert.ok(ms < PROMISED, `${method} ${path} took ${ms.toFixed()} ms: ${reply?.status}`);
  const name = String(body?.name ?? '');
  return { path, name, status: reply?.status ?? 0, ms, at, ...(reply && { reply }) };
}

type Load = { answers: Answer[]; stop: () => Promise<Answer[]> };
let loads = 0;

/** Clients that write and read, each with 10 ms between two requests; one asks for /healthz. */
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
      await sleep(pause);
    }
  };
  const write = () => {
    count += 1;
    return measure(service, 'POST', '/passengers', { ...ROW, name: `${prefix} ${run}.${count}` });
  };
  const read = () => measure(service, 'GET', '/passengers?limit=3');
  const loops = [
    ...Array.from({ length: writers }, () => loop(write, 10)),
    ...Array.from({ length: readers }, () => loop(read, 10)),
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

/** Writes rows and reads each back in every way: what comes is its own, or of a `doubtful` status. */
async function readBack(
  service: TestService,
  number: number,
  answers: Answer[],
  doubtful: number[],
  over: AbortSignal,
): Promise<void> {
  const send = async (method: string, path: string, body?: Record<string, unknown>) => {
    const answer = await measure(service, method, path, body);
    answers.push(method === 'POST' ? answer : { ...answer, name: '' });
    return doubtful.includes(answer.status) ? undefined : answer.reply?.json;
  };
  for (let round = 0; !over.aborted; round += 1) {
    const name = `own ${number}.${round}`;
    const made = await send('POST', '/passengers', bodyOf(name));
    if (!made) continue;
    const path = `/passengers/${made.uuid}`;
    const put = { ...ROW, uuid: made.uuid, name };
    const patched = { ...put, fare: 7, age: round };
    const list = () => send('GET', `/passengers?name=eq.${name}`);
    for (const [reply, wanted] of [
      [made, put],
      [await send('GET', path), put],
      [await list(), [put]],
      [await send('PUT', path, { ...put, fare: number }), { ...put, fare: number }],
      [await send('PATCH', path, { fare: 7, age: round }), patched],
      [await list(), [patched]],
    ]) {
      if (reply === undefined && doubtful.length > 0) break; // what became of the row is unknown
      assert.deepEqual(reply, wanted);
    }
  }
}

/** Asks one thing after the other, and leaves before the answer or just behind it. */
async function leave({ url }: TestService, number: number, over: AbortSignal): Promise<void> {
  const csv = `${Object.keys(ROW)}\n${Object.values(bodyOf('left'))}\n`;
  const upload = { 'Content-Type': 'text/csv', 'Content-Length': csv.length };
  const requests = [
    headOf('GET', '/passengerlist', {}),
    headOf('GET', '/passengers?order=age', {}),
    headOf('GET', '/passengers', { Accept: 'text/csv' }),
    headOf('GET', '/passengers?fare=gt.7', { Prefer: 'count=exact' }),
    headOf('POST', '/passengers', upload) + csv,
    headOf('DELETE', '/passengers?name=eq.left', {}),
  ];
  for (let round = number; !over.aborted; round += 1) {
    const socket = connect(Number(new URL(url).port), '127.0.0.1');
    socket.on('error', () => {}).resume();
    socket.write(requests[round % requests.length]!);
    await sleep(round % 13);
    socket.destroy();
    await sleep(30); // or it is a flood, which is nginx's to limit
  }
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
      where datname = current_database() and pid <> pg_backend_pid()
        and backend_type = 'client backend'`,
  );
}

async function activeWith(database: TestDatabase, text: string): Promise<Backend[]> {
  const backends = await backendsOf(database);
  return backends.filter(({ state, query }) => state === 'active' && query.includes(text));
}

/** Ends all connections to this database but its own. */
const terminate = (sql: postgres.Sql) => toOthers(sql, sql`pg_terminate_backend(pid, 2000)`);

/** Cancels what runs on all connections to this database but its own. */
const cancel = (sql: postgres.Sql) => toOthers(sql, sql`pg_cancel_backend(pid)`);

function toOthers(sql: postgres.Sql, act: postgres.Fragment) {
  return sql`
    select ${act} from pg_stat_activity
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

// Most of a fault is waiting: these sections run beside each other, each test on a database of its
// own. (What says nothing of concurrency would take that of what it is in.)
describe('Faults', { concurrency: 3 }, () => {
  // --- Database -------------------------------------------------------------------

  describe('Database', { concurrency: 2 }, () => {
    test('a service with a wrong password starts, and is ready 2 s after the password is right', async (t) => {
      const database = await startDatabase(server.url);
      const keeper = "create role keeper login password 'another'";
      await ask(database.url, (sql) =>
        sql.unsafe(`${keeper}; grant all on schema public to keeper`),
      );
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
      await assertStates(service, ['database down', 'database up']);
      assert.ok(
        !JSON.stringify(service.log).includes(PASSWORD) && !service.stderr().includes(PASSWORD),
      );
    });

    test('what is in flight is capped: behind a server that hangs, more is refused at once', async (t) => {
      const { database, proxy, service } = await openScene(
        t,
        { POOL_SIZE: '1' },
        { proxied: true },
      );
      const [backend] = await backendsOf(database);
      process.kill(backend!.pid, 'SIGSTOP');
      proxy.blackHole(); // else who waits may get 200 by a new connection
      const answers = await Promise.all(
        Array.from({ length: 100 }, (_, at) => measure(service, 'GET', `/passengers?age=eq.${at}`)),
      ).finally(() => process.kill(backend!.pid, 'SIGCONT'));
      const atOnce = answers.filter(({ status, ms }) => status === 503 && ms < 1500);
      t.diagnostic(`${atOnce.length} of 100 refused at once`);
      assert.equal(atOnce.length, 36);
      assert.ok(answers.every(({ status }) => status === 503 || status === 504));
      proxy.pass();
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

    test('a statement that was sent late costs 504, and its connection nobody', async (t) => {
      const { database, service } = await openScene(t, { POOL_SIZE: '1' });
      await slowReads(database, 1.6);
      const pids = async () => (await backendsOf(database)).map(({ pid }) => pid);
      const before = await pids();
      const asked = [0, 1, 2].map((at) => measure(service, 'GET', `/passengers?offset=${at}`));
      const statuses = (await Promise.all(asked)).map(({ status }) => status);
      assert.deepEqual(statuses.sort(), [200, 200, 504]);
      assert.equal((await measure(service, 'GET', '/passengers')).status, 200);
      assert.deepEqual(await pids(), before);
    });

    test('the end of a connection that was given up does not end the next', async (t) => {
      const { database, service } = await openScene(t, { POOL_SIZE: '1' });
      const [{ pid } = { pid: Number.NaN }] = await backendsOf(database);
      process.kill(pid, 'SIGSTOP');
      const answer = await measure(service, 'GET', '/passengers');
      assert.equal(answer.status, 504);
      await until(() => isReady(service));
      const others = async () =>
        (await backendsOf(database)).map((one) => one.pid).filter((one) => one !== pid);
      const next = await others();
      await ask(database.url, (sql) => sql`select pg_terminate_backend(${pid})`);
      process.kill(pid, 'SIGCONT');
      await until(async () => !(await isRunning(pid)));
      for (let count = 0; count < 5; count += 1)
        assert.equal((await measure(service, 'GET', '/passengers')).status, 200);
      assert.deepEqual(await others(), next);
    });

    test('a streamed list whose server process hangs is answered all the same', async (t) => {
      const { database, service } = await openScene(t);
      await slowReads(database, 20);
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

    for (const [type, path] of [
      ['application/json', '/passengerlist'],
      ['text/csv', '/passengers'],
      ['application/x-ndjson', '/passengers'],
    ] as const) {
      test(`a list as ${type} whose connection ends in the middle is broken off, not shorter`, async (t) => {
        const { database, service } = await openScene(t);
        await fill(database, 100_000);
        const headers = { Accept: type };
        const sent = httpRequest(service.url + path, { headers, agent: false }).end();
        const [response] = await once(sent, 'response');
        let turns = 0;
        await until(async () => {
          const [waiting] = await ask(
            database.url,
            (sql) => sql`
              select pid from pg_stat_activity where datname = current_database()
              and state = 'active' and wait_event = 'ClientRead'`,
          );
          turns = waiting ? turns + 1 : 0;
          return turns === 10; // the client reads nothing, so the service asks for no more
        });
        await ask(database.url, terminate);
        await assert.rejects(async () => {
          for await (const _ of response);
        });
        await until(async () => (await streamsOf(service)) === 0);
      });
    }

    test('an upload that is cancelled as it begins is 504, and ends nothing else', async (t) => {
      const { database, proxy, service } = await openScene(t, {}, { proxied: true });
      await ask(database.url, (sql) =>
        sql.unsafe(`
          create function cancel() returns trigger language plpgsql
          as $$ begin raise exception 'no' using errcode = 'query_canceled'; end $$;
          create trigger cancel before insert on titanic execute function cancel()`),
      );
      const copying = async (state: string) => {
        const backends = await backendsOf(database);
        return backends.some((one) => one.state === state && one.query.startsWith('copy '));
      };
      const upload = async () => {
        const sent = await database.sql.begin(async (sql) => {
          await sql`lock table titanic`;
          const waiting = startUpload(t, service);
          await until(() => copying('active'));
          proxy.stall();
          return waiting;
        });
        await until(() => copying('idle')); // «go on» and «no» now come in one piece
        proxy.pass();
        return sent.answer;
      };
      let { status, text } = await upload();
      for (let again = 0; status === 503 && again < 5; again += 1)
        ({ status, text } = await upload()); // the lock was held for too long
      assert.equal(status, 504, text);
      assert.equal((await measure(service, 'GET', '/passengers')).status, 200);
    });

    for (const [fault, rest] of [
      ['hangs when all of it is sent', 'its end'],
      ['hangs in the middle', 'much more'],
      ['stalls in the middle with its network', 'much more'],
    ] as const) {
      test(`an upload of CSV whose server ${fault} is answered in time, and no part of it stored`, async (t) => {
        const stalls = fault.includes('network');
        const { database, proxy, service } = await openScene(t, {}, { proxied: stalls });
        const upload = startUpload(t, service);
        upload.send(1);
        let busy: Backend | undefined;
        await until(async () => {
          [busy] = await activeWith(database, 'copy ');
          return busy;
        });
        if (stalls) proxy.stall();
        else process.kill(busy!.pid, 'SIGSTOP');
        const from = performance.now();
        if (rest === 'much more') upload.send(24_000);
        else upload.end();
        const { status, text } = await upload.answer;
        const ms = performance.now() - from;
        t.diagnostic(`${status} after ${ms.toFixed()} ms`);
        if (stalls) proxy.pass();
        else process.kill(busy!.pid, 'SIGCONT');
        assert.ok([503, 504].includes(status), text);
        assert.equal(JSON.parse(text).status, status);
        assert.ok(ms < PROMISED);
        await until(async () => (await activeWith(database, 'copy ')).length === 0, 3000);
        const stored = await countRows(database, UPLOADED); // all of it is in doubt, never a part
        assert.ok(stored === 0 || (stored === 1 && rest === 'its end'), `${stored} rows`);
        assert.equal(await streamsOf(service), 0);
      });
    }

    test('an upload of CSV by a client that pauses for longer than the deadline is stored', async (t) => {
      const { database, service } = await openScene(t);
      const upload = startUpload(t, service);
      upload.send(1);
      await until(async () => (await activeWith(database, 'copy ')).length === 1);
      await sleep(4500);
      upload.send(1);
      upload.end();
      assert.equal((await upload.answer).status, 201);
      assert.equal(await countRows(database, UPLOADED), 2);
    });

    test('ended idle connections are seen by no client, nor by writes sent in that moment', async (t) => {
      const { database, service } = await openScene(t);
      const load = startLoad(t, service, { writers: 1, readers: 1 });
      const answers = [];
      const ending = new EventEmitter();
      for (let round = 0; round < 30; round += 1) {
        const [kept, gone] = [crypto.randomUUID(), crypto.randomUUID()];
        for (const uuid of [kept, gone]) {
          const put = () =>
            measure(service, 'PUT', `/passengers/${uuid}`, bodyOf(`before ${round}`));
          await until(async () => (await put()).status < 300);
        }
        const ended = ask(database.url, async (sql) => {
          await sql`
          select pg_terminate_backend(pid) from pg_stat_activity
          where datname = current_database() and pid <> pg_backend_pid()`;
          ending.emit('now');
        });
        await once(ending, 'now');
        const sent = [
          measure(service, 'PUT', `/passengers/${crypto.randomUUID()}`, bodyOf(`put ${round}`)),
          measure(service, 'PATCH', `/passengers/${kept}`, { name: `patched ${round}` }),
          measure(service, 'DELETE', `/passengers/${gone}`),
        ];
        answers.push((await Promise.all(sent)).map(({ status }) => status).join());
        await ended;
        await until(async () => (await backendsOf(database)).length >= 8);
      }
      await judge(t, database, await load.stop(), []);
      // What was written behind a connection's reset gets no word of its end: 503, its outcome unknown.
      const whole = answers.filter((one) => one === '201,200,204').length;
      t.diagnostic(`${whole} of 30 rounds without a failure`);
      assert.ok(whole >= 24, String(answers));
      for (const one of answers) assert.match(one, /^(201|503),(200|503),(204|503)$/);
      const [{ rows } = {}] = await ask(
        database.url,
        (sql) => sql`
        select count(*)::int as rows from titanic where name like 'put %' or name like 'patched %'`,
      );
      const kept = answers.flatMap((one) => one.split(',').slice(0, 2));
      const acknowledged = kept.filter((status) => status !== '503').length;
      assert.ok(rows >= acknowledged && rows <= 60, `${rows} rows, ${acknowledged} acknowledged`);
    });

    test('a backend ended in the middle of an UPDATE costs 503, and nothing is repeated', async (t) => {
      const { database, service } = await openScene(t);
      const { reply } = await measure(service, 'POST', '/passengers', bodyOf('before'));
      const batch = `
      create sequence runs;
      create function dawdle() returns trigger language plpgsql
      as $$ begin perform nextval('runs'), pg_sleep(2.8); return new; end $$;
      create trigger dawdle before update on titanic for each row execute function dawdle()`;
      await ask(database.url, (sql) => sql.unsafe(batch));
      const path = `/passengers/${reply?.json.uuid}`;
      for (let round = 1; round <= 3; round += 1) {
        const sent = measure(service, 'PATCH', path, { age: round });
        await until(async () => (await activeWith(database, 'update')).length === 1);
        await ask(database.url, terminate);
        assert.equal((await sent).status, 503);
        const [{ last_value: runs } = {}] = await ask(
          database.url,
          (sql) => sql`select last_value from runs`,
        );
        assert.equal(Number(runs), round);
      }
      assert.equal((await measure(service, 'GET', path)).reply?.json.age, ROW.age);
    });

    test('the error of an ended connection is not handed to the next statement', async (t) => {
      const { database, service } = await openScene(t, { POOL_SIZE: '1' });
      const before = service.log.length;
      for (let round = 0; round < 5; round += 1) {
        await ask(database.url, terminate);
        await until(async () => (await backendsOf(database)).length === 1);
        const answer = await measure(service, 'PUT', `/passengers/${crypto.randomUUID()}`, ROW);
        assert.equal(answer.status, 201);
      }
      assert.deepEqual(warnings(service.log.slice(before)), []);
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
      const longest = Math.max(...during.map(({ ms, at }) => Math.min(ms, at - from)));
      assert.ok(longest < 3000, `503 after ${longest.toFixed()} ms`);
      await judge(t, database, load.answers, [503]);
    });

    test('connections refused for 4 s are tried again at least each second, and in no storm', async (t) => {
      const { proxy, service } = await openScene(t, { POOL_SIZE: '1' }, { proxied: true });
      proxy.dialled.length = 0;
      proxy.refuse();
      await sleep(4000);
      const gaps = proxy.dialled.map((at, index, all) => at - (all[index - 1] ?? at));
      t.diagnostic(
        `${proxy.dialled.length} tries, at most ${Math.max(...gaps).toFixed()} ms apart`,
      );
      assert.ok(proxy.dialled.length >= 4 && proxy.dialled.length < 400);
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

    test('a statement that waits for a lock holds up one other at most', async (t) => {
      const { database, service } = await openScene(t, { POOL_SIZE: '2' });
      const { json } = await service.request('POST', '/passengers', ROW);
      const path = `/passengers/${json.uuid}`;
      await slowReads(database, 0.02);
      const patient = `
        create function patient() returns trigger language plpgsql
        as $$ begin perform set_config('lock_timeout', '0', true); return null; end $$;
        create trigger patient before update on titanic_rows
        for each statement execute function patient()`;
      await ask(database.url, (sql) => sql.unsafe(patient));
      await database.sql.begin(async (locker) => {
        await locker`select from titanic_rows where uuid = ${json.uuid} for update`;
        let [held, answered] = [true, 0];
        const change = service.request('PATCH', path, { age: 2 }).then(() => {
          held = false;
        });
        await until(async () => (await activeWith(database, 'with changed')).length === 1);
        const lists = Array.from({ length: 16 }, async (_, at) => {
          await service.get(`/passengers?offset=${at}`);
          answered += 1;
        });
        const waiting = /^db_statements_waiting [1-9]/m;
        await until(async () => waiting.test((await service.get('/metrics')).text));
        await until(() => answered >= 15 || !held);
        t.diagnostic(`${answered} of 16 lists answered meanwhile`);
        assert.ok(answered >= 15);
        await Promise.all([change, ...lists]);
      });
    });

    test('a slow statement costs 504, and no backend is left running it', async (t) => {
      const { database, service } = await openScene(t);
      await slowReads(database, 20);
      for (const [path, accept] of [
        ['/passengers', 'application/json'],
        ['/passengers', 'text/csv'],
        ['/passengers', 'application/x-ndjson'],
        ['/passengerlist', 'application/json'],
      ] as const) {
        const headers = { Accept: accept };
        const { status, ms } = await measure(service, 'GET', path, undefined, headers);
        t.diagnostic(`${path}, ${accept}: ${status} after ${ms.toFixed()} ms`);
        assert.ok([503, 504].includes(status), `${status} as ${accept}`);
        await until(async () => (await activeWith(database, 'titanic')).length === 0, 2000);
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

    for (const [path, text, POOL_SIZE] of [
      ['/passengers', 'titanic', '8'],
      ['/passengers', 'titanic', '1'],
      ['/passengerlist', 'titanic', '8'],
    ] as const) {
      test(`GET ${path}, ${POOL_SIZE} connections: the client goes away, and its statement with it`, async (t) => {
        const { database, service } = await openScene(t, { POOL_SIZE });
        await slowReads(database, 20);
        const leaving = new AbortController();
        const left = fetch(service.url + path, { signal: leaving.signal }).catch(() => {});
        await until(async () => (await activeWith(database, text)).length === 1);
        leaving.abort();
        const from = performance.now();
        await until(async () => (await activeWith(database, text)).length === 0, 1900);
        t.diagnostic(`gone after ${(performance.now() - from).toFixed()} ms`);
        await left;
      });
    }

    test('a client that goes away while it waits for a connection is 499, no failure', async (t) => {
      const { database, service } = await openScene(t, { POOL_SIZE: '1' });
      const from = service.log.length;
      await slowReads(database, 1.5); // two in a row end before the deadline
      const leaving = new AbortController();
      const asked = Array.from({ length: 2 }, (_, at) => service.get(`/passengers?offset=${at}`));
      const sent = /^db_statements_in_flight 2$/m;
      await until(async () => sent.test((await service.get('/metrics')).text));
      const left = fetch(`${service.url}/passengers?offset=9`, { signal: leaving.signal });
      const waiting = /^db_statements_waiting 1$/m;
      await until(async () => waiting.test((await service.get('/metrics')).text));
      leaving.abort();
      await assert.rejects(left);
      const counted = /_count\{method="GET",route="\/passengers",status="499"\} 1$/m;
      await until(async () => counted.test((await service.get('/metrics')).text));
      assert.deepEqual([...new Set((await Promise.all(asked)).map(({ status }) => status))], [200]);
      assert.ok(service.log.slice(from).every(({ msg }) => msg !== 'failed'));
    });

    for (const type of ['application/json', 'text/csv']) {
      test(`a client that goes away in the middle of ${type} is 499, no failure`, async (t) => {
        const { service } = await openScene(t);
        const from = service.log.length;
        const left = openSilent(t, service);
        const head = headOf('POST', '/passengers', { 'Content-Type': type, 'Content-Length': 99 });
        left.end(`${head}{"survived`).destroySoon();
        const counted = /_count\{method="POST",route="\/passengers",status="499"\} 1$/m;
        await until(async () => counted.test((await service.get('/metrics')).text));
        assert.equal(await streamsOf(service), 0);
        assert.ok(service.log.slice(from).every(({ msg }) => msg !== 'failed'));
      });
    }

    test('a cancel that was meant for another is not told to who waits for longer than 1 s', async (t) => {
      const { database, service } = await openScene(t);
      await slowReads(database, 1.8);
      const asked = measure(service, 'GET', '/passengers');
      await until(async () => {
        const cancelled = await ask(
          database.url,
          (sql) => sql`
            select pg_cancel_backend(pid) from pg_stat_activity
            where datname = current_database() and pid <> pg_backend_pid() and state = 'active'
              and query like '%titanic%' and now() - query_start > '1.1 s'`,
        );
        return cancelled.length === 1;
      });
      assert.equal((await asked).status, 200);
    });

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
      await until(async () => (await streamsOf(service)) === 0);
      await judge(t, database, await load.stop(), []);
    });

    for (const [fault, act] of [
      ['leave', undefined],
      ['leave and statements are cancelled', cancel],
      ['leave and connections are ended', terminate],
    ] as const) {
      test(`each gets what is theirs while others ${fault}`, async (t) => {
        const { database, service } = await openScene(t, { POOL_SIZE: '2' });
        const doubtful = act === terminate ? [503] : [];
        const answers: Answer[] = [];
        const over = new AbortController();
        const trouble = async () => {
          for (; !over.signal.aborted; await sleep(60)) await act?.(database.sql);
        };
        const running = Promise.all([
          trouble(),
          ...[0, 1, 2, 3].map((at) => readBack(service, at, answers, doubtful, over.signal)),
          ...[4, 5, 6].map((at) => leave(service, at, over.signal)),
        ]);
        await Promise.race([sleep(4000), running]).finally(() => over.abort());
        await running;
        await until(async () => (await streamsOf(service)) === 0);
        await judge(t, database, answers, doubtful);
      });
    }

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

  // --- Server ---------------------------------------------------------------------

  // These stop, pause or crash a server, so they have one of their own.
  describe('Server', { concurrency: 1 }, () => {
    test('a service without its database starts, says so, and is ready 2 s after it is up', async (t) => {
      const { stop, start } = hold(t);
      await stop('fast');
      t.after(async () => {
        if (!(await ask(held.url, (sql) => sql`select 1`).catch(() => undefined))) await start();
      });
      const service = await startService({ DATABASE_URL: held.url });
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
      await assertStates(service, ['database down', 'database up']);
      await ask(held.url, (sql) => sql`drop table titanic`);
    });

    for (const how of ['fast', 'crash'] as const) {
      test(`a database stopped (${how}) for 8 s under load costs 503 alone, and no write`, async (t) => {
        const { stop, start } = hold(t);
        const { database, service } = await openScene(t, {}, { on: held });
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
        await assertStates(service, ['database up', 'database down', 'database up']);
      });
    }

    test('a server paused for 10 s costs 503 or 504 by the deadline, and 1 s afterwards', async (t) => {
      const { pause, resume } = hold(t);
      const { database, service } = await openScene(t, {}, { on: held });
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

    test('a backend killed during an INSERT, and with it all others, costs 503 and no write', async (t) => {
      hold(t);
      const { database, service } = await openScene(t, {}, { on: held });
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

    test('SIGTERM while the database is paused: exit 0 in time', async (t) => {
      const { pause, resume } = hold(t);
      const { service } = await openScene(t, {}, { on: held });
      await pause();
      const asked = measure(service, 'GET', '/passengers');
      const inFlight = /^db_statements_in_flight 1$/m; // before the signal, or it may be refused
      await until(async () => inFlight.test((await service.get('/metrics')).text));
      const from = performance.now();
      const code = await service.stop();
      const ms = performance.now() - from;
      await resume();
      t.diagnostic(`ended after ${ms.toFixed()} ms`);
      assert.equal(code, 0);
      assert.ok(ms < PROMISED);
      assert.ok([503, 504].includes((await asked).status));
    });
  });

  // --- Types ----------------------------------------------------------------------

  describe('Types', { concurrency: 1 }, () => {
    test('PostgreSQL judges what a filter and a body say, not the driver', async (t) => {
      const file = await writeEntry(
        t,
        `born: { ...text(10), type: 'date', check: () => 'true', nullable: true },
       seen: { ...text(40), type: 'timestamp with time zone', check: () => 'true', nullable: true },
       ticket: { ...text(40), type: 'bigint', check: () => 'true', nullable: true },`,
      );
      const { service, database } = await openScene(t, { TZ: 'Pacific/Auckland' }, { file });
      const seen = '2026-01-01T00:00:00Z';
      const values = { born: '2026-02-28', seen, ticket: '9007199254740993' };
      const names = ['"quoted" \\ and \\u0041', 'plain'];
      for (const [at, name] of names.entries()) {
        const body = { ...bodyOf(name), survived: at === 0, ...values };
        assert.equal((await measure(service, 'POST', '/passengers', body)).status, 201);
      }
      const stored = await ask(
        database.url,
        (sql) => sql`select name from titanic order by survived`,
      );
      assert.deepEqual(stored.map(({ name }) => name).reverse(), names);
      for (const [filter, expected] of FILTERS) {
        const { status, reply } = await measure(service, 'GET', `/passengers?${filter}&order=name`);
        const found = status === 200 ? reply?.json.map((row: typeof ROW) => row.name) : status;
        assert.deepEqual(
          found,
          typeof expected === 'number' ? expected : expected.map((at) => names[at]),
          filter,
        );
      }
      const never = { ...bodyOf('never'), born: '2026-02-30' };
      assert.equal((await measure(service, 'POST', '/passengers', never)).status, 400);
      assert.equal(await countRows(database, 'never'), 0);
    });

    test('an error of the database tells no value, neither to the caller nor to the log', async (t) => {
      const { service, database } = await openScene(t);
      await ask(database.url, (sql) =>
        sql.unsafe(`
        create function refuse() returns trigger language plpgsql
        as $$ begin raise exception 'no % here', new.name using detail = new.name; end $$;
        create trigger refuse before insert on titanic for each row execute function refuse()`),
      );
      const reply = await service.request('POST', '/passengers', bodyOf('Lady Secret'));
      assert.equal(reply.status, 500);
      assert.equal(reply.text.includes('Secret'), false);
      const id = reply.headers.get('x-request-id');
      await until(() => service.log.some((line) => line.id === id && line.code === 'P0001'));
      assert.ok(!JSON.stringify(service.log).includes('Secret'), 'a value in the log');
    });

    test('the driver is used for one statement a request: no begin(), no reserve()', async () => {
      const source = await readFile(fileURLToPath(APP), 'utf8');
      assert.equal(/\.(begin|reserve)\(|max_pipeline/.exec(source), null);
    });
  });

  const FILTERS: [string, number[] | number][] = [
    ['survived=eq.true', [0]],
    ['survived=eq.false', [1]],
    ['survived=neq.true', [1]],
    ['survived=in.(true)', [0]],
    ['survived=eq.t', [0]],
    ['survived=eq.maybe', 400],
    ['age=eq.1', [0, 1]],
    ['age=eq.1e0', [0, 1]],
    ['age=eq.one', 400],
    ['born=eq.2026-02-28', [0, 1]],
    ['born=eq.2026-02-30', 400],
    ['born=gt.2026-02-29', 400],
    ['seen=eq.2026-01-01T00:00:00Z', [0, 1]],
    ['seen=eq.2026-01-01T13:00:00%2B13', [0, 1]],
    ['seen=eq.2026-02-30T00:00:00Z', 400],
    ['ticket=eq.9007199254740993', [0, 1]],
    ['ticket=eq.9007199254740992', []],
  ];

  // --- Repetition -----------------------------------------------------------------

  describe('Repetition', { concurrency: 1 }, () => {
    test('a POST whose answer the network lost is repeated by the service: one row', async (t) => {
      const { database, proxy, service } = await openScene(t, {}, { proxied: true });
      const dropped = proxy.dropReply('Lost, Mr. Answer');
      const { status } = await measure(service, 'POST', '/passengers', bodyOf('Lost, Mr. Answer'));
      await dropped;
      assert.equal(status, 201);
      assert.equal(await countRows(database, 'Lost, Mr. Answer'), 1);
    });

    test('a POST that the client repeats with its Idempotency-Key: one row', async (t) => {
      const { database, proxy, service } = await openScene(t, {}, { proxied: true });
      const key = { 'Idempotency-Key': 'one and the same' };
      const post = (name: string) => measure(service, 'POST', '/passengers', bodyOf(name), key);
      const dropped = proxy.dropReply('Same, Mrs. Key').then(proxy.refuse);
      assert.equal((await post('Same, Mrs. Key')).status, 503);
      await dropped;
      assert.equal(await countRows(database, 'Same, Mrs. Key'), 1);
      proxy.pass();
      await until(() => isReady(service));
      const repeated = await post('Same, Mrs. Key');
      assert.equal(repeated.status, 201);
      assert.equal(repeated.reply?.headers.get('idempotent-replayed'), 'true');
      assert.equal((await post('Other, Mrs. Key')).status, 409);
      assert.equal(await countRows(database, 'Same, Mrs. Key'), 1);
      assert.equal(await countRows(database, 'Other, Mrs. Key'), 0);
    });

    for (const method of ['POST', 'PUT', 'PATCH', 'DELETE']) {
      test(`a ${method} whose answer the network lost is executed once`, async (t) => {
        const { database, proxy, service } = await openScene(t, {}, { proxied: true });
        const made = await measure(service, 'POST', '/passengers', bodyOf('before'));
        await ask(database.url, (sql) =>
          sql.unsafe(`
          create table audit(operation text);
          create function note() returns trigger language plpgsql
          as $$ begin insert into audit values (tg_op); return null; end $$;
          create trigger note after insert or update or delete on titanic
          for each row execute function note()`),
        );
        const { uuid } = made.reply?.json ?? {};
        const path = method === 'POST' ? '/passengers' : `/passengers/${uuid}`;
        const body = method === 'DELETE' ? undefined : bodyOf('afterwards');
        const dropped = proxy.dropReply(method === 'DELETE' ? uuid : 'afterwards');
        const { status } = await measure(service, method, path, body);
        await dropped;
        assert.equal(status, method === 'POST' ? 201 : 503);
        const audit = await ask(database.url, (sql) => sql`select operation from audit`);
        assert.equal(audit.length, 1);
      });
    }
  });

  // --- Start ----------------------------------------------------------------------

  describe('Start', { concurrency: 1 }, () => {
    test('four processes that start at once on an empty database make one schema', async (t) => {
      const database = await startDatabase(server.url);
      const environment = { DATABASE_URL: database.url };
      const starting = Array.from({ length: 4 }, () => startService(environment));
      t.after(async () => {
        for (const result of await Promise.allSettled(starting)) {
          if (result.status === 'fulfilled') await end(result.value);
        }
        await database.stop();
      });
      const services = await Promise.all(starting);
      for (const service of services) await until(() => isReady(service));
      const statuses = await Promise.all(
        services.map((service, at) => measure(service, 'POST', '/passengers', bodyOf(`${at}`))),
      );
      assert.deepEqual(
        statuses.map(({ status }) => status),
        [201, 201, 201, 201],
      );
      assert.deepEqual(
        services.flatMap(({ log }) => errors(log)),
        [],
      );
    });

    test('until the table is there, what needs it is 503', async (t) => {
      const database = await startDatabase(server.url);
      t.after(() => database.stop());
      const lock = "select pg_advisory_lock(hashtext('titanic'))";
      const service = await ask(database.url, async (sql) => {
        await sql.unsafe(lock);
        const starting = await startService({ DATABASE_URL: database.url });
        t.after(() => end(starting));
        await starting.logged('database up');
        for (const path of ['/readyz', '/passengers', '/passengerlist']) {
          assert.equal((await measure(starting, 'GET', path)).status, 503, path);
        }
        assert.equal((await measure(starting, 'POST', '/passengers', ROW)).status, 503);
        return starting;
      });
      await until(() => isReady(service));
    });

    test('a process with a new column starts beside the old one, and neither fails', async (t) => {
      const { database, service: old } = await openScene(t);
      const load = startLoad(t, old);
      await untilBack(load);
      const file = await writeEntry(t, `deck: { ...integer(0, 9), default: 7 },`);
      const young = await startService({ DATABASE_URL: database.url }, { file });
      t.after(() => end(young));
      await until(() => isReady(young));
      const other = startLoad(t, young);
      await untilBack(other);
      await sleep(500);
      await end(young);
      await judge(t, database, await other.stop(), [0]);
      await judge(t, database, await load.stop(), []);
      const decks = await ask(database.url, (sql) => sql`select distinct deck from titanic`);
      assert.deepEqual([...decks], [{ deck: 7 }]);
    });

    for (const [variable, environment] of [
      ['POOL_SIZE', { POOL_SIZE: 'many' }],
      ['JWT_SECRET', { JWT_SECRET: 'short' }],
      ['AUTH', { NODE_ENV: 'production' }],
      ['WEB_CONCURRENCY', { WEB_CONCURRENCY: '0' }],
      ['DATABASE_URL', { DATABASE_URL: 'mysql://127.0.0.1/' }],
    ] as const) {
      test(`a bad ${variable} ends the process, and its log names the variable`, async () => {
        const given = { DATABASE_URL: server.url, ...environment };
        await assert.rejects(startService(given), new RegExp(`ended with 2: .*${variable}`));
      });
    }

    test('a table that differs from the declaration ends the process, workers too', async (t) => {
      const database = await startDatabase(server.url);
      t.after(() => database.stop());
      await ask(database.url, (sql) => sql`create table titanic (uuid uuid primary key, age text)`);
      for (const WEB_CONCURRENCY of ['1', '2']) {
        const starting = startService({ DATABASE_URL: database.url, WEB_CONCURRENCY });
        await assert.rejects(starting, (error: Error) => {
          assert.match(error.message, /^ended with 2: /);
          assert.match(error.message, /age is text, declared double precision/);
          return true;
        });
      }
    });

    test('Node paused under load: no write is lost, and it goes on at once', async (t) => {
      const { database, service } = await openScene(t);
      const load = startLoad(t, service);
      await untilBack(load);
      service.child.kill('SIGSTOP');
      await sleep(4500);
      service.child.kill('SIGCONT');
      const resumed = performance.now();
      await untilBack(load, resumed);
      await sleep(300);
      await load.stop();
      recovery(t, load, resumed, 1000);
      await judge(t, database, load.answers, [503, 504]);
    });
  });

  // --- Stop -----------------------------------------------------------------------

  describe('Stop', { concurrency: 1 }, () => {
    for (const workers of [1, 2]) {
      const who = workers === 1 ? 'the process' : 'its workers';

      test(`SIGTERM: ${who} answer what is in flight, close idle clients, and exit 0`, async (t) => {
        const scene = await openScene(t, { WEB_CONCURRENCY: String(workers) });
        const { service, database } = scene;
        await untilAll(service, workers);
        const idle = await Promise.all(Array.from({ length: 20 }, () => openIdle(t, service)));
        for (let count = 0; count < 5; count += 1) idle.push(openSilent(t, service));
        await until(() => idle.every(({ pending }) => !pending));
        await slowReads(database, 2.5);
        const asked = exchange(service, '/passengers', new Agent({ keepAlive: true }));
        await until(async () => (await activeWith(database, 'json_agg')).length === 1);
        service.child.kill('SIGTERM');
        const from = performance.now();
        await until(() => idle.every(({ closed }) => closed), 1500);
        const { status, headers, at } = await asked;
        assert.equal(status, 200);
        assert.equal(headers.connection, 'close');
        const code = await service.stop('SIGCONT');
        t.diagnostic(`exit ${(performance.now() - at).toFixed()} ms after the last answer`);
        assert.equal(code, 0);
        assert.ok(performance.now() - from < PROMISED);
        assert.deepEqual(errors(service.log), []);
        assert.equal((await backendsOf(database)).length, 0);
        for (const pid of workersOf(service)) assert.equal(await isRunning(pid), false);
      });

      test(`SIGTERM under load: ${who} fail no request that was taken`, async (t) => {
        const { service, database } = await openScene(t, { WEB_CONCURRENCY: String(workers) });
        const load = startLoad(t, service, { writers: 12 });
        await untilBack(load);
        assert.equal(await service.stop(), 0);
        await judge(t, database, await load.stop(), [0]);
      });

      test(`a second SIGTERM ends ${who} at once`, async (t) => {
        const { service, database } = await openScene(t, { WEB_CONCURRENCY: String(workers) });
        await untilAll(service, workers);
        await slowReads(database, 2.9);
        const asked = exchange(service, '/passengers').catch(() => {});
        await until(async () => (await activeWith(database, 'json_agg')).length === 1);
        service.child.kill('SIGTERM');
        await service.logged('stopping');
        const from = performance.now();
        service.child.kill('SIGTERM');
        await service.ended;
        const ms = performance.now() - from;
        t.diagnostic(`ended after ${ms.toFixed()} ms`);
        assert.ok(ms < 1000);
        assert.notEqual(service.child.exitCode, 0);
        await until(
          async () => !(await Promise.all(workersOf(service).map(isRunning))).includes(true),
          1000,
        );
        await service.stop(); // its output is whole
        await asked;
      });

      test(`SIGUSR1 opens no debugger in ${who}`, async (t) => {
        const { service } = await openScene(t, { WEB_CONCURRENCY: String(workers) });
        await untilAll(service, workers);
        for (const pid of [service.child.pid!, ...workersOf(service)]) process.kill(pid, 'SIGUSR1');
        for (let round = 0; round < 20; round += 1) {
          assert.equal((await exchange(service, '/hello')).status, 200);
        }
        assert.doesNotMatch(service.stderr(), /debugger|inspector/i);
      });

      test(`SIGHUP: ${who} end as they do after SIGTERM`, async (t) => {
        const { service, database } = await openScene(t, { WEB_CONCURRENCY: String(workers) });
        await untilAll(service, workers);
        await slowReads(database, 2.5);
        const asked = exchange(service, '/passengers');
        asked.catch(() => {});
        await until(async () => (await activeWith(database, 'json_agg')).length === 1);
        assert.equal(await service.stop('SIGHUP'), 0);
        assert.equal((await asked).status, 200);
      });

      for (const delay of [0, 150, 300, 450, 600, 900]) {
        test(`SIGTERM ${delay} ms after the start of ${who} leaves nothing behind`, async (t) => {
          const database = await startDatabase(server.url);
          t.after(() => database.stop());
          const env = { DATABASE_URL: database.url, WEB_CONCURRENCY: String(workers), PORT: '0' };
          const child = spawnApp(t, env);
          await sleep(delay);
          const below = await childrenOf(child.pid!);
          child.kill('SIGTERM');
          await until(() => child.exitCode !== null || child.signalCode !== null, PROMISED);
          assert.ok(
            child.exitCode === 0 || child.signalCode === 'SIGTERM',
            `exit ${child.exitCode}`,
          );
          await until(async () => !(await Promise.all(below.map(isRunning))).includes(true), 2000);
        });
      }
    }

    for (const signal of ['SIGTERM', 'SIGHUP', 'SIGINT'] as const) {
      test(`${signal} during the start of an embedded PostgreSQL leaves no server behind`, async (t) => {
        const directory = await mkdtemp(join(tmpdir(), 'passengers stop-'));
        await chmod(directory, 0o755);
        t.after(() => rm(directory, { recursive: true }));
        const child = spawnApp(t, { DATA_DIR: join(directory, 'data'), PORT: '0' });
        const file = join(directory, 'data', 'cluster', 'postmaster.pid');
        let postmaster = 0;
        await until(async () => {
          postmaster = Number((await readFile(file, 'utf8').catch(() => '')).split('\n')[0]);
          return postmaster > 0;
        }, 60_000);
        t.after(() =>
          isRunning(postmaster).then((runs) => runs && process.kill(postmaster, 'SIGQUIT')),
        );
        child.kill(signal);
        if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
        assert.equal(child.exitCode, 0);
        await until(async () => !(await isRunning(postmaster)), 2000); // its pid file goes sooner
      });
    }

    test('SHUTDOWN_GRACE: not ready, yet it answers until the time is over', async (t) => {
      const { service } = await openScene(t, { SHUTDOWN_GRACE: '3' });
      service.child.kill('SIGTERM');
      const from = performance.now();
      await service.logged('stopping');
      assert.equal((await exchange(service, '/readyz')).status, 503);
      assert.equal((await exchange(service, '/healthz')).status, 200);
      assert.equal((await exchange(service, '/passengers')).status, 200);
      assert.equal(await service.stop('SIGCONT'), 0);
      assert.ok(performance.now() - from >= 3000);
    });
  });

  // --- Workers --------------------------------------------------------------------

  describe('Workers', { concurrency: 1 }, () => {
    test('the primary killed: no worker stays', async (t) => {
      const { service } = await openScene(t, await twoWorkers());
      await untilAll(service, 2);
      await service.stop('SIGKILL');
      const workers = workersOf(service);
      await until(async () => !(await Promise.all(workers.map(isRunning))).includes(true), 2000);
      await assert.rejects(exchange(service, '/hello'));
    });

    test('/metrics sums over the workers', async (t) => {
      const { service } = await openScene(t, await twoWorkers());
      await untilAll(service, 2);
      for (let count = 0; count < 20; count += 1) await exchange(service, '/hello');
      for (let count = 0; count < 4; count += 1) {
        const { text } = await exchange(service, '/metrics');
        const lines = [...text.matchAll(/^http_request_duration_seconds_count\{(.*)\} (\d+)$/gm)];
        const hello = lines.filter(([, labels]) => labels?.includes('route="/hello"'));
        assert.equal(
          hello.reduce((sum, [, , count]) => sum + Number(count), 0),
          20,
        );
      }
    });

    for (const end of ['goes on', 'is killed', 'is killed with the one that asked'] as const) {
      test(`/metrics while a worker is paused that then ${end}: the service lives`, async (t) => {
        const { service } = await openScene(t, await twoWorkers());
        await untilAll(service, 2);
        const [paused, living] = workersOf(service);
        process.kill(paused!, 'SIGSTOP');
        const tries = Array.from({ length: 6 }, async () => {
          const agent = new Agent({ keepAlive: true, maxSockets: 1 });
          t.after(() => agent.destroy());
          await exchange(service, '/hello', agent);
          return agent;
        });
        for (const one of tries) one.catch(() => {});
        const agent = await Promise.race(tries);
        const from = performance.now();
        const asked = exchange(service, '/metrics', agent);
        asked.catch(() => {});
        await sleep(300);
        if (end === 'is killed') process.kill(paused!, 'SIGKILL');
        if (end === 'is killed with the one that asked') {
          process.kill(living!, 'SIGKILL');
          process.kill(paused!, 'SIGKILL');
          await asked.catch(() => {});
        } else {
          const { status } = await asked;
          t.diagnostic(`${status} after ${(performance.now() - from).toFixed()} ms`);
          assert.ok(performance.now() - from < PROMISED);
        }
        await sleep(5500 - (performance.now() - from));
        if (end === 'goes on') process.kill(paused!, 'SIGCONT');
        assert.equal(service.child.exitCode, null, service.stderr());
        await untilAll(service, 2);
        assert.equal((await exchange(service, '/metrics')).status, 200);
      });
    }
  });

  // --- Auth -----------------------------------------------------------------------

  describe('Auth', { concurrency: true }, () => {
    test('keys that could never be had are 503, and used as soon as their source is there', async (t) => {
      const source = await startKeySource(t);
      await source.down();
      const { service } = await openScene(t, { JWKS_URL: source.url });
      const token = await source.sign('first');
      assert.equal(await statusWith(service, token), 503);
      await source.up();
      const from = performance.now();
      await until(async () => (await statusWith(service, token)) === 200, 5000);
      t.diagnostic(`used after ${(performance.now() - from).toFixed()} ms`);
    });

    test('keys that were had go on while their source is down, talks nonsense or hangs', async (t) => {
      const source = await startKeySource(t);
      const { service } = await openScene(t, { JWKS_URL: source.url });
      assert.equal(await statusWith(service, await source.sign('first')), 200);
      for (const trouble of [source.down, source.babble, source.hang]) {
        await trouble();
        assert.equal(await statusWith(service, await source.sign('first')), 200);
        assert.equal(await statusWith(service, await source.sign('unknown')), 401);
        await source.up();
      }
    });

    test('a source that hangs from the start is 503 in time, with one fetch for all', async (t) => {
      const source = await startKeySource(t);
      await source.hang();
      const { service } = await openScene(t, { JWKS_URL: source.url });
      const token = await source.sign('first');
      const statuses = await Promise.all(
        Array.from({ length: 30 }, () => statusWith(service, token)),
      );
      assert.deepEqual(new Set(statuses), new Set([503]));
      assert.ok(source.fetches() <= 2, `${source.fetches()} fetches`);
      await source.up();
      await until(async () => (await statusWith(service, token)) === 200, 5000);
    });

    for (const [what, method, path, type] of [
      ['a list', 'GET', '/passengerlist', ''],
      ['a row', 'POST', '/passengers', 'application/json'],
      ['an upload', 'POST', '/passengers', 'text/csv'],
    ] as const) {
      test(`who left before the keys for ${what} came leaves nothing behind`, async (t) => {
        const source = await startKeySource(t);
        await source.hang();
        const { service } = await openScene(t, { JWKS_URL: source.url, AUTH: 'all' });
        const headers = { Authorization: `Bearer ${await source.sign('first')}` };
        const body = type && { 'Content-Type': type, 'Content-Length': 99 };
        const left = openSilent(t, service);
        left.write(headOf(method, path, { ...headers, 'X-Request-Id': 'left', ...body }));
        await until(() => source.fetches() > 0);
        left.destroy();
        for (let turn = 0; turn < 20; turn += 1) await service.get('/healthz'); // it has noticed
        await source.up();
        const metrics = async () => (await service.get('/metrics', headers)).text;
        const counted = new RegExp(`_count{method="${method}",route="${path}",status="(200|499)"`);
        await until(async () => counted.test(await metrics()));
        assert.equal(await streamsOf(service, headers), 0);
        const failed = service.log.filter(({ id, msg }) => id === 'left' && msg === 'failed');
        assert.deepEqual(failed, []);
      });
    }

    test('a rotated key is known in 35 s, and a storm of unknown ones costs one fetch per cooldown', async (t) => {
      const source = await startKeySource(t);
      const { service } = await openScene(t, { JWKS_URL: source.url });
      assert.equal(await statusWith(service, await source.sign('first')), 200);
      assert.equal(source.fetches(), 1);
      source.publish('second');
      const rotated = performance.now();
      const token = await source.sign('second');
      const from = performance.now();
      while (performance.now() - from < 27_000) {
        const storm = Array.from({ length: 20 }, (_, at) => source.sign(`unknown ${at}`));
        for (const status of await Promise.all(
          storm.map(async (one) => statusWith(service, await one)),
        )) {
          assert.equal(status, 401);
        }
        await sleep(1000);
      }
      assert.ok(source.fetches() <= 2, `${source.fetches()} fetches in 27 s`);
      await until(async () => (await statusWith(service, token)) === 200, 10_000);
      const ms = performance.now() - rotated;
      t.diagnostic(`known after ${ms.toFixed()} ms, ${source.fetches()} fetches`);
      assert.ok(ms <= 35_000);
      assert.ok(source.fetches() <= 3);
    });
  });
});

// --- Alone ----------------------------------------------------------------------

// What is measured here wants the processors for itself.
describe('Alone', () => {
  test('throughput under 64 in flight does not fall', async (t) => {
    const { service } = await openScene(t);
    const made = await measure(service, 'POST', '/passengers', ROW);
    const agent = new Agent({ keepAlive: true, maxSockets: 64 });
    t.after(() => agent.destroy());
    const started = performance.now();
    const elapsed = () => (performance.now() - started) / 1000;
    const perSecond = new Map<number, number>();
    const client = async () => {
      while (elapsed() < 9) {
        const { status } = await exchange(service, `/passengers/${made.reply?.json.uuid}`, agent);
        assert.equal(status, 200);
        const second = Math.floor(elapsed());
        perSecond.set(second, (perSecond.get(second) ?? 0) + 1);
      }
    };
    await Promise.all(Array.from({ length: 64 }, client));
    const rate = (...seconds: number[]) =>
      seconds.reduce((sum, second) => sum + (perSecond.get(second) ?? 0), 0) / seconds.length;
    const [first, last] = [rate(1, 2, 3), rate(6, 7, 8)];
    t.diagnostic(`${first.toFixed()}/s at first, ${last.toFixed()}/s at last`);
    assert.ok(last / first > 0.5);
  });

  test('a process is ready 1 s after its start', async (t) => {
    const database = await startDatabase(server.url);
    t.after(() => database.stop());
    const times = [];
    for (let round = 0; round < 3; round += 1) {
      const started = performance.now();
      const service = await startService({ DATABASE_URL: database.url });
      await until(() => isReady(service));
      times.push(performance.now() - started);
      await end(service);
    }
    t.diagnostic(`ready after ${times.map((ms) => ms.toFixed()).join(', ')} ms`); // told, not timed
    assert.ok(Math.min(...times) < PROMISED);
  });

  test('Node killed under load, five times in a row: back in 1 s, no write lost or made twice', async (t) => {
    const database = await startDatabase(server.url);
    t.after(() => database.stop());
    const before = await startTime(database); // of a process, here and now: what a machine can
    const all: Answer[] = [];
    const times = [];
    for (let round = 0; round < 5; round += 1) {
      const started = performance.now();
      const service = await startService({ DATABASE_URL: database.url });
      t.after(() => service.stop('SIGKILL'));
      const load = startLoad(t, service);
      await untilBack(load);
      times.push(performance.now() - started);
      await sleep(300);
      await service.stop('SIGKILL');
      all.push(...(await load.stop()));
    }
    const ready = Math.max(before, await startTime(database));
    t.diagnostic(`first success after ${times.map((ms) => ms.toFixed()).join(', ')} ms`);
    assert.ok(Math.min(...times) <= Math.max(1000, 1.5 * ready));
    await judge(t, database, all, [0, 503]);
  });

  test('a killed worker is replaced in 1 s, five times in a row, and no write is lost', async (t) => {
    const { service, database } = await openScene(t, await twoWorkers());
    await untilAll(service, 2);
    const load = startLoad(t, service);
    await untilBack(load);
    const before = await startTime(database); // of a process beside this load, here and now
    const times: number[] = [];
    for (let round = 0; round < 5; round += 1) {
      await untilBack(load);
      const victim = await aliveWorker(service);
      times.push(await replacement(service, () => process.kill(victim, 'SIGKILL')));
    }
    const ready = Math.max(before, await startTime(database));
    t.diagnostic(`replaced after ${times.join(', ')} ms, a process is ready in ${ready.toFixed()}`);
    await untilBack(load);
    await judge(t, database, await load.stop(), [0, 503]);
    assert.ok(Math.min(...times) <= Math.max(1000, 1.25 * ready));
  });

  test('both workers killed at once: the service is back in 1 s', async (t) => {
    const { service, database } = await openScene(t, await twoWorkers());
    await untilAll(service, 2);
    const load = startLoad(t, service);
    await untilBack(load);
    const before = await startTime(database); // of one process beside this load; two start at once
    for (const pid of workersOf(service)) process.kill(pid, 'SIGKILL');
    const killed = performance.now();
    await untilBack(load, killed + 10);
    const ready = Math.max(before, await startTime(database));
    await load.stop();
    recovery(t, load, killed + 10, Math.max(2000, 2 * ready));
    await judge(t, database, load.answers, [0, 503]);
  });
});

// --- Account --------------------------------------------------------------------

test('in all faults no acknowledged write was lost, and none was made twice', (t) => {
  const { acknowledged, lost, doubled, longest, path } = totals;
  t.diagnostic(`${acknowledged} acknowledged writes checked, ${lost} lost, ${doubled} doubled`);
  t.diagnostic(`longest answer ${longest.toFixed()} ms: ${path}`);
  assert.deepEqual([lost, doubled], [0, 0]);
});

const APP = new URL('../app.ts', import.meta.url);

/** How long a new process takes to be ready, in ms. */
async function startTime(database: TestDatabase): Promise<number> {
  const from = performance.now();
  const service = await startService({ DATABASE_URL: database.url });
  await until(() => isReady(service));
  const ms = performance.now() - from;
  await end(service);
  return ms;
}

/** A file that serves the declaration with more columns. */
async function writeEntry(t: TestContext, columns: string): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'passengers entry-'));
  t.after(() => rm(directory, { recursive: true }));
  const file = join(directory, 'entry.mts');
  await writeFile(
    file,
    `import { integer, main, passengers, resource, text } from '${APP}';
    const columns = { ...passengers.columns, ${columns} };
    const declared = resource({ ...passengers, columns });
    const fail = (error: unknown) => process.exit(console.error(error) ?? 2);
    void [integer, text];
    main(declared, [], process.env).then(() => process.exit(0), fail);`,
  );
  return file;
}

function spawnApp(t: TestContext, environment: Record<string, string>) {
  const { PATH, HOME } = process.env;
  const args = [...nodeArguments, fileURLToPath(APP)];
  const env = { PATH, HOME, ...environment };
  const child = spawn(process.execPath, args, { env, stdio: 'ignore' });
  t.after(() => child.kill('SIGKILL'));
  return child;
}

function errors(log: LogLine[]): LogLine[] {
  return log.filter(({ level }) => /^(error|fatal)$/.test(level));
}

type Exchanged = { status: number; headers: IncomingMessage['headers']; text: string; at: number };

/** One GET over a connection of its own, or one of the agent. */
function exchange(service: TestService, path: string, agent?: Agent): Promise<Exchanged> {
  return new Promise((done, fail) => {
    const sent = httpRequest(service.url + path, { agent: agent ?? false }, (response) => {
      let text = '';
      response.setEncoding('utf8').on('error', fail);
      response.on('data', (data) => {
        text += data;
      });
      response.on('end', () => {
        const { statusCode: status = 0, headers } = response;
        service.hear(text);
        done({ status, headers, text, at: performance.now() });
      });
    });
    sent.on('error', fail).end();
  });
}

const UPLOADED = 'Uploaded, Miss. Row'.padEnd(150, '.'); // many bytes in few rows

/** An upload of CSV that goes on until end(). */
function startUpload(t: TestContext, service: TestService) {
  const headers = { 'Content-Type': 'text/csv' };
  const sent = httpRequest(`${service.url}/passengers`, { method: 'POST', headers, agent: false });
  t.after(() => sent.destroy());
  sent.on('error', () => {}).write(`${Object.keys(ROW)}\n`);
  const line = `${Object.values(bodyOf(`"${UPLOADED}"`))}\n`;
  const signal = AbortSignal.timeout(4 * PROMISED);
  const answer = once(sent, 'response', { signal }).then(async ([response]) => {
    let text = '';
    for await (const data of response) text += data;
    return { status: Number(response.statusCode), text };
  });
  answer.catch(() => {});
  return { answer, send: (rows: number) => sent.write(line.repeat(rows)), end: () => sent.end() };
}

/** A client that has had an answer and keeps its connection. */
async function openIdle(t: TestContext, service: TestService): Promise<Socket> {
  const socket = openSilent(t, service);
  socket.write('GET /hello HTTP/1.1\r\nHost: x\r\n\r\n');
  await once(socket, 'data');
  return socket;
}

function headOf(method: string, path: string, headers: Record<string, string | number>): string {
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
  return `${method} ${path} HTTP/1.1\r\nHost: x\r\n${lines.join('')}\r\n`;
}

/** A client that connects and says nothing. */
function openSilent(t: TestContext, service: TestService): Socket {
  const socket = connect(Number(new URL(service.url).port), '127.0.0.1');
  t.after(() => socket.destroy());
  return socket.on('error', () => {}).resume();
}

/** Two workers on a port that stays theirs when both have gone. */
async function twoWorkers(): Promise<Record<string, string>> {
  return { WEB_CONCURRENCY: '2', PORT: String(await freePort()) };
}

/** The workers that ever listened, the first one first. */
function workersOf({ log, child }: TestService): number[] {
  const pids = log.filter(({ msg }) => msg === 'listening').map(({ pid }) => Number(pid));
  return pids.filter((pid) => pid !== child.pid);
}

async function aliveWorker(service: TestService): Promise<number> {
  for (const pid of workersOf(service)) if (await isRunning(pid)) return pid;
  throw new Error('no worker is alive');
}

/** Waits until so many workers listen, and all are ready. */
async function untilAll(service: TestService, workers: number): Promise<void> {
  const listening = () => service.log.filter(({ msg }) => msg === 'listening').length;
  await until(() => listening() >= workers);
  await until(async () => {
    const asked = Array.from({ length: 4 * workers }, () => exchange(service, '/readyz'));
    const answers = await Promise.all(asked).catch(() => []);
    return answers.length > 0 && answers.every(({ status }) => status === 200);
  });
}

/** The ms from the act until one more worker listens. */
async function replacement(service: TestService, act: () => void): Promise<number> {
  const before = workersOf(service).length;
  const from = Date.now();
  act();
  await until(() => workersOf(service).length > before);
  const line = service.log.findLast(({ msg }) => msg === 'listening');
  return Number(line?.time) - from;
}

/** A JWKS over HTTP with trouble on demand; it begins with the key `first`. */
async function startKeySource(t: TestContext) {
  const pairs = new Map<string, Awaited<ReturnType<typeof jose.generateKeyPair>>>();
  const options = { extractable: true };
  for (const kid of ['first', 'second', 'unknown']) {
    pairs.set(kid, await jose.generateKeyPair('ES256', options));
  }
  let [fetches, published, mode] = [0, 'first', 'up'];
  const turns = new EventEmitter().setMaxListeners(0);
  const listener = createServer(async (_, response) => {
    fetches += 1;
    while (mode === 'hang') await once(turns, 'turn');
    if (mode === 'babble') return void response.end('<p>Sorry');
    const jwk = await jose.exportJWK(pairs.get(published)!.publicKey);
    response.end(JSON.stringify({ keys: [{ ...jwk, kid: published, alg: 'ES256', use: 'sig' }] }));
  });
  await once(listener.listen(0, '127.0.0.1'), 'listening');
  const { port } = listener.address() as AddressInfo;
  const close = async () => {
    if (!listener.listening) return;
    listener.close();
    listener.closeAllConnections();
    await once(listener, 'close');
  };
  t.after(close);
  const turn = (to: string) => async () => {
    mode = to;
    turns.emit('turn');
    if (!listener.listening) await once(listener.listen(port, '127.0.0.1'), 'listening');
  };
  const sign = (kid: string) => {
    const { privateKey } = pairs.get(kid) ?? pairs.get('unknown')!;
    const token = new jose.SignJWT({ jti: crypto.randomUUID() });
    token.setProtectedHeader({ alg: 'ES256', kid }).setSubject('tester').setExpirationTime('1h');
    return token.sign(privateKey);
  };
  return {
    url: `http://127.0.0.1:${port}/`,
    fetches: () => fetches,
    publish: (kid: string) => {
      published = kid;
    },
    sign,
    down: close,
    up: turn('up'),
    hang: turn('hang'),
    babble: turn('babble'),
  };
}

async function statusWith(service: TestService, token: string): Promise<number> {
  const headers = { Authorization: `Bearer ${token}` };
  return (await measure(service, 'GET', '/passengers?limit=1', undefined, headers)).status;
}

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
async function assertStates({ log }: TestService, states: string[]): Promise<void> {
  const seen = () => log.map(({ msg }) => msg).filter((msg) => /^database (up|down)$/.test(msg));
  await until(() => seen().length >= states.length);
  assert.deepEqual(seen(), states);
}

function warnings(log: LogLine[]): LogLine[] {
  return log.filter(({ level }) => /^(warn|error|fatal)$/.test(level));
}
