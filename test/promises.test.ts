/**
 * What the service promises in faults, on the real process and a real PostgreSQL.
 *
 * The oracle: writers POST rows whose names they chose. Afterwards every name that was answered 201
 * is stored exactly once, every other name once or not at all.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { Agent, createServer, request as httpRequest, type IncomingMessage } from 'node:http';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { after, describe, type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import * as jose from 'jose';
import type postgres from 'postgres';
import { MAX_ARRAY } from '../lib/body.ts';
import { CONNECT_TIMEOUT, DEADLINE } from '../lib/config.ts';
import { freePort } from '../lib/embedded.ts';
import {
  ask,
  childrenOf,
  controlServer,
  fill,
  isRunning,
  type LogLine,
  nodeArguments,
  openDatabase,
  PASSENGER,
  type Reply,
  slack,
  startDatabase,
  startProxy,
  startReady,
  startService,
  streamsOf,
  type TestDatabase,
  type TestProxy,
  type TestService,
  until,
} from './harness.ts';

const PROMISED = 6000; // ms until every answer

const server = await openDatabase();
const held = await startDatabase(''); // on a server of its own, which `control` stops and pauses
const control = await controlServer(held.home!);
after(async () => {
  await control.resume();
  await held.stop();
});

type Scene = { database: TestDatabase; proxy: TestProxy; service: TestService };
type Setting = { proxied?: boolean; own?: boolean };

/** A database (on the server that `control` controls where `own`), and a service on it. */
async function openScene(
  t: TestContext,
  environment: Record<string, string> = {},
  { proxied = false, own = false }: Setting = {},
): Promise<Scene> {
  const database = await startDatabase((own ? held : server).url);
  const proxy = await startProxy(database.url);
  const url = proxied ? proxy.url : database.url;
  const starting = startService({ DATABASE_URL: url, ...environment });
  t.after(async () => {
    if (own) await control.resume();
    proxy.pass();
    const service = await starting.catch(() => undefined);
    try {
      if (service) await end(service);
    } finally {
      await proxy.stop();
      await database.stop();
    }
  });
  const service = await starting;
  await until(() => isReady(service));
  return { database, proxy, service };
}

/** Ends a service as an orchestrator does; fails where it does not exit or logged an error. */
async function end(service: TestService): Promise<void> {
  const { child } = service;
  if (child.exitCode !== null || child.signalCode !== null) return;
  const timer = setTimeout(() => child.kill('SIGKILL'), PROMISED + 2000);
  const code = await service.stop();
  clearTimeout(timer);
  assert.equal(code, 0, `SIGTERM ended the service with ${code ?? child.signalCode}`);
  const isExpected = ({ msg, code }: LogLine) => msg === 'worker died' || code === 'P0001';
  assert.deepEqual(
    errors(service.log).filter((line) => !isExpected(line)),
    [],
  );
}

function errors(log: LogLine[]): LogLine[] {
  return log.filter(({ level }) => /^(error|fatal)$/.test(level));
}

/** Whether its tables are as declared and its database answers. */
async function isReady({ get }: TestService): Promise<boolean> {
  const statuses = ['/readyz', '/healthz/database'].map(async (path) => (await get(path)).status);
  return (await Promise.all(statuses).catch(() => [0])).every((status) => status === 200);
}

/** What a client got: status 0 is a lost connection. `at`: when, by performance.now(). */
type Answer = { path: string; name: string; status: number; ms: number; at: number; reply?: Reply };

const totals = { acknowledged: 0, lost: 0, doubled: 0, longest: 0, path: '' };

/** A request, measured; fails where its error is not problem+json or its answer is late. */
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
  assert.ok(ms < PROMISED * slack(), `${method} ${path} took ${ms.toFixed()} ms: ${reply?.status}`);
  const name = String(body?.name ?? '');
  return { path, name, status: reply?.status ?? 0, ms, at, ...(reply && { reply }) };
}

async function statusOf(...request: Parameters<typeof measure>): Promise<number> {
  return (await measure(...request)).status;
}

type Load = { answers: Answer[]; stop: () => Promise<Answer[]> };
let loads = 0;

/** Clients that write and read, each with 10 ms between two requests; one asks for /healthz. */
function startLoad(t: TestContext, service: TestService, { writers = 6, readers = 3 } = {}): Load {
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
    return measure(service, 'POST', '/passengers', bodyOf(`load ${run}.${count}`));
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
    const put = { ...PASSENGER, uuid: made.uuid, name };
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
      if (reply === undefined && doubtful.length > 0) break; // whether it was written is unknown
      assert.deepEqual(reply, wanted);
    }
  }
}

/** Sends one request after the other and disconnects before the answer or during it. */
async function disconnect(service: TestService, number: number, over: AbortSignal): Promise<void> {
  const csv = `${Object.keys(PASSENGER)}\n${Object.values(bodyOf('gone'))}\n`;
  const upload = { 'Content-Type': 'text/csv', 'Content-Length': csv.length };
  const requests = [
    headOf('GET', '/passengerlist', {}),
    headOf('GET', '/passengers?order=age', {}),
    headOf('GET', '/passengers', { Accept: 'text/csv' }),
    headOf('GET', '/passengers?fare=gt.7', { Prefer: 'count=exact' }),
    headOf('POST', '/passengers', upload) + csv,
    headOf('DELETE', '/passengers?name=eq.gone', {}),
  ];
  for (let round = number; !over.aborted; round += 1) {
    const socket = openSocket(service);
    socket.write(requests[round % requests.length]!);
    await sleep(round % 13);
    socket.destroy();
    await sleep(30); // more would be a flood, which nginx limits
  }
}

/** Applies the oracle, and asserts that besides success only these statuses happened. */
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
  const seen = [...statuses].map(([status, count]) => `${count} × ${status}`);
  const longest = Math.max(0, ...answers.map(({ ms }) => ms));
  t.diagnostic(`${seen.join(', ')}; longest ${longest.toFixed()} ms`);
  assert.deepEqual({ lost, doubled }, { lost: [], doubled: [] });
  const other = answers.filter(({ status }) => ![200, 201, ...allowed].includes(status));
  assert.deepEqual(other.slice(0, 3), [], `${other.length} answers of another status`);
  const health = answers.filter(({ path, status }) => path === '/healthz' && status !== 200);
  if (!allowed.includes(0)) assert.deepEqual(health, []);
}

/** Whether an answer needed the database and got it. */
function isServed({ path, status }: Answer): boolean {
  return path !== '/healthz' && (status === 200 || status === 201);
}

/** Waits for such an answer after `since`, and answers how many ms later it was. */
async function untilServed({ answers }: Load, since = performance.now()): Promise<number> {
  let first: Answer | undefined;
  await until(() => {
    first = answers.find((one) => one.at > since && isServed(one));
    return first;
  });
  return first!.at - since;
}

async function countRows({ url }: TestDatabase, name: string): Promise<number> {
  const [row] = await ask(url, (sql) => sql`select count(*) from titanic where name = ${name}`);
  return Number(row?.count);
}

/** The server's processes for the service; only those that wait for this, where it is given. */
async function backendsOf({ url }: TestDatabase, event?: 'PgSleep' | 'Lock'): Promise<number[]> {
  const rows = await ask(
    url,
    (sql) => sql`
      select pid from pg_stat_activity
      where datname = current_database() and pid <> pg_backend_pid()
        and backend_type = 'client backend'
        ${event ? sql`and ${event} in (wait_event, wait_event_type)` : sql``}`,
  );
  return rows.map(({ pid }) => Number(pid));
}

/** The server's processes that run a COPY. */
async function copiesIn({ url }: TestDatabase): Promise<number[]> {
  const progress = (sql: postgres.Sql) =>
    sql`select pid from pg_stat_progress_copy where datname = current_database()`;
  return (await ask(url, progress)).map(({ pid }) => Number(pid));
}

/** Waits until there are such processes, and answers the first. */
async function firstOf(find: () => Promise<number[]>): Promise<number> {
  let found: number | undefined;
  await until(async () => {
    [found] = await find();
    return found;
  });
  return found!;
}

/** Ends all connections to this database but its own. */
function terminate(sql: postgres.Sql) {
  return sql`
    select pg_terminate_backend(pid, 2000) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid()`;
}

async function execute({ url }: TestDatabase, batch: string): Promise<void> {
  await ask(url, (sql) => sql.unsafe(batch));
}

/** From now on every statement that reads the table sleeps first. */
async function slowReads(database: TestDatabase, seconds: number): Promise<void> {
  const view = `select r.xmin, r.* from titanic_rows r where (select pg_sleep(${seconds})) is not null`;
  await execute(
    database,
    `alter table titanic rename to titanic_rows; create view titanic as ${view}`,
  );
}

/** From now on a trigger with this body runs on the table. */
async function addTrigger(database: TestDatabase, when: string, body: string): Promise<void> {
  await execute(
    database,
    `create function act() returns trigger language plpgsql as $$ begin ${body}; end $$;
     create trigger act ${when} execute function act()`,
  );
}

/** From now on an insert sleeps, where the name is like the pattern. */
function slowInserts(database: TestDatabase, seconds: number, like = '%') {
  const when = `before insert on titanic for each row when (new.name like '${like}')`;
  return addTrigger(database, when, `perform pg_sleep(${seconds}); return new`);
}

function bodyOf(name: string) {
  return { ...PASSENGER, name };
}

/** Waits until a metric of the service has this value. */
async function untilMetric({ get }: TestService, name: string, value: string): Promise<void> {
  const line = new RegExp(`^${name} ${value}$`, 'm');
  await until(async () => line.test((await get('/metrics')).text));
}

// --- Faults under load ------------------------------------------------------------

type Act = (scene: Scene, load: Load) => Promise<unknown>;
type Options = {
  prepare?: (scene: Scene) => Promise<unknown>;
  writers?: number;
  states?: string[];
};
/** `allowed`: the statuses besides success. `bound`: ms from the end of the fault to a success. */
type Fault = [name: string, allowed: number[], bound: number, Act, (Setting & Options)?];

function testFaults(faults: Fault[]): void {
  for (const [
    name,
    allowed,
    bound,
    act,
    { prepare, writers = 6, states, ...setting } = {},
  ] of faults)
    test(`${name}: ${allowed.join(', ') || 'no failure'}, no write lost, recovery in ${bound} ms`, async (t) => {
      const scene = await openScene(t, {}, setting);
      await prepare?.(scene);
      const load = startLoad(t, scene.service, { writers });
      await untilServed(load);
      await act(scene, load);
      const ms = await untilServed(load);
      assert.ok(ms <= bound * slack(), `back after ${ms.toFixed()} ms`);
      await judge(t, scene.database, await load.stop(), allowed);
      if (states) await assertStates(scene.service, states);
    });
}

/** A fault that lasts for so many ms. */
function lasting(
  ms: number,
  begin: (_: Scene) => unknown,
  end: (_: Scene) => unknown = () => {},
): Act {
  return async (scene) => {
    await begin(scene);
    await sleep(ms);
    await end(scene);
  };
}

const pause = lasting(
  4500,
  ({ service }) => service.child.kill('SIGSTOP'),
  ({ service }) => service.child.kill('SIGCONT'),
);
const stall = lasting(
  5000,
  ({ proxy }) => proxy.stall(),
  ({ proxy }) => proxy.pass(),
);
const delay = lasting(1500, ({ proxy }) => proxy.delay(100));
const column = lasting(
  3000,
  ({ database }) => execute(database, 'alter table titanic rename fare to price'),
  ({ database }) => execute(database, 'alter table titanic rename price to fare'),
);
const table = lasting(
  3000,
  ({ database }) => execute(database, 'alter table titanic rename to gigantic'),
  ({ database }) => execute(database, 'alter table gigantic rename to titanic'),
);

async function lock({ database }: Scene, { answers }: Load): Promise<void> {
  const before = answers.length;
  await database.sql.begin(async (sql) => {
    await sql`lock table titanic`;
    await sleep(10_000);
  });
  assert.ok(answers.slice(before).filter(({ path }) => path !== '/healthz').length > 9);
}

async function blackHole({ proxy }: Scene, { answers }: Load): Promise<void> {
  proxy.blackHole();
  proxy.cut();
  const from = performance.now();
  await sleep(5000);
  const during = answers.filter(({ at }) => at > from);
  proxy.pass();
  const longest = Math.max(...during.map(({ ms, at }) => Math.min(ms, at - from)));
  assert.ok(longest < (CONNECT_TIMEOUT + 1000) * slack(), `503 after ${longest.toFixed()} ms`);
}

async function cutAgain({ proxy }: Scene, load: Load): Promise<void> {
  for (let round = 0; round < 20; round += 1) {
    await untilServed(load);
    proxy.cut();
  }
}

async function endInserts({ database }: Scene): Promise<void> {
  for (let round = 0; round < 20; round += 1) {
    const busy = await firstOf(() => backendsOf(database, 'PgSleep'));
    await ask(database.url, (sql) => sql`select pg_terminate_backend(${busy})`);
  }
}

const prepare = ({ database }: Scene) => slowInserts(database, 0.1);

const FAULTS: Fault[] = [
  ['New connections black-holed for 5 s', [503], 2000, blackHole, { proxied: true }],
  ['Connections cut 20 times', [503], 2000, cutAgain, { proxied: true }],
  ['A network that stalls for 5 s', [503, 504], 2000, stall, { proxied: true }],
  ['A network that is slower by 100 ms', [], 2000, delay, { proxied: true }],
  ['A table locked for 10 s', [503, 504], 1000, lock],
  ['A column renamed for 3 s', [503], 1000, column],
  ['The table renamed for 3 s', [503], 1000, table],
  ['Server processes ended during an INSERT', [503], 2000, endInserts, { prepare, writers: 8 }],
  ['Node paused for 4.5 s', [503, 504], 1000, pause],
];

async function pauseServer({ service }: Scene, { answers }: Load): Promise<void> {
  await control.pause();
  const over = sleep(10_000);
  await until(() => answers.some(({ status }) => status >= 503));
  for (const [method, path, expected] of WITHOUT_DATABASE) {
    const { status, ms } = await measure(service, method, path);
    assert.equal(status, expected, `${method} ${path}`);
    assert.ok(ms < 1000 * slack(), `${method} ${path} took ${ms.toFixed()} ms`);
  }
  await over;
  await control.resume();
}

async function killInsert({ database }: Scene, { answers }: Load): Promise<void> {
  process.kill(await firstOf(() => backendsOf(database, 'PgSleep')), 'SIGKILL');
  const killed = performance.now();
  await until(() => answers.some(({ status, at }) => status === 503 && at > killed));
  await until(() => ask(database.url, (sql) => sql`select 1`).catch(() => false));
}

const down = (how: 'fast' | 'crash') =>
  lasting(
    8000,
    () => control.stop(how),
    async ({ service }) => {
      assert.equal(await statusOf(service, 'GET', '/readyz'), 200); // else Kubernetes refuses all
      assert.equal(await statusOf(service, 'GET', '/healthz/database'), 503);
      await control.start();
    },
  );
const states = ['database up', 'database down', 'database up'];
const killing = { own: true, prepare, writers: 8 };

const SERVER_FAULTS: Fault[] = [
  ['A database stopped for 8 s', [503], 2000, down('fast'), { own: true, states }],
  ['A database that crashes, for 8 s', [503], 2000, down('crash'), { own: true, states }],
  ['A server paused for 10 s', [503, 504], 1000, pauseServer, { own: true }],
  ['A server process killed, and with it all others', [503], 2000, killInsert, killing],
];

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

/** The database came and went in this order, one line of log a change. */
async function assertStates({ log }: TestService, states: string[]): Promise<void> {
  const seen = () => log.map(({ msg }) => msg).filter((msg) => /^database (up|down)$/.test(msg));
  await until(() => seen().length >= states.length);
  assert.deepEqual(seen(), states);
}

/** Most of a fault is waiting, so these run beside each other, each on a database of its own. */
describe('Faults', { concurrency: 3 }, () => {
  describe('Connections', { concurrency: 2 }, () => {
    testFaults(FAULTS);
    testConnections();
    testRepetition();
  });
  describe('Server', { concurrency: 1 }, testServer);
  describe('Statements', { concurrency: 1 }, testStatements);
  describe('Streams', { concurrency: 1 }, testStreams);
  describe('Clients', { concurrency: 1 }, testClients);
  describe('Start', { concurrency: 1 }, testStart);
  describe('Stop', { concurrency: 1 }, testStop);
  describe('Keys', { concurrency: true }, testKeys);
});

// --- Connections ------------------------------------------------------------------

function testConnections(): void {
  test('at most 64 requests per connection are in flight, more are 503 at once', async (t) => {
    const { database, proxy, service } = await openScene(t, { POOL_SIZE: '1' }, { proxied: true });
    const [backend] = await backendsOf(database);
    process.kill(backend!, 'SIGSTOP');
    proxy.blackHole(); // else a new connection serves who waits
    const answers = await Promise.all(
      Array.from({ length: 100 }, (_, at) => measure(service, 'GET', `/passengers?age=eq.${at}`)),
    ).finally(() => process.kill(backend!, 'SIGCONT'));
    const atOnce = answers.filter(({ status, ms }) => status === 503 && ms < 1500);
    assert.equal(atOnce.length, 36);
    assert.ok(answers.every(({ status }) => status === 503 || status === 504));
    proxy.pass();
    await until(() => isReady(service));
  });

  test('a server process that hangs costs 504 by our deadline, and its end no other', async (t) => {
    const { database, service } = await openScene(t, { POOL_SIZE: '1' });
    const [hung = Number.NaN] = await backendsOf(database);
    process.kill(hung, 'SIGSTOP');
    const { status, ms } = await measure(service, 'GET', '/passengers');
    assert.equal(status, 504);
    assert.ok(ms > DEADLINE - 500, `after ${ms.toFixed()} ms`);
    await until(() => isReady(service));
    const others = async () => (await backendsOf(database)).filter((pid) => pid !== hung);
    const next = await others();
    await ask(database.url, (sql) => sql`select pg_terminate_backend(${hung})`);
    process.kill(hung, 'SIGCONT');
    await until(async () => !(await isRunning(hung)));
    for (let count = 0; count < 5; count += 1)
      assert.equal(await statusOf(service, 'GET', '/passengers'), 200);
    assert.deepEqual(await others(), next);
  });

  test('ended idle connections cost reads and creates nothing, other writes 503 at most', async (t) => {
    const { database, service } = await openScene(t);
    const load = startLoad(t, service, { writers: 1, readers: 1 });
    const answers: string[] = [];
    for (let round = 0; round < 20; round += 1) {
      const [kept, gone] = [crypto.randomUUID(), crypto.randomUUID()];
      for (const uuid of [kept, gone]) {
        const put = () => statusOf(service, 'PUT', `/passengers/${uuid}`, bodyOf('x'));
        await until(async () => (await put()) < 300);
      }
      const ended = ask(database.url, terminate);
      const sent = [
        statusOf(service, 'PUT', `/passengers/${crypto.randomUUID()}`, bodyOf(`put ${round}`)),
        statusOf(service, 'PATCH', `/passengers/${kept}`, { name: `patched ${round}` }),
        statusOf(service, 'DELETE', `/passengers/${gone}`),
      ];
      answers.push((await Promise.all(sent)).join());
      await ended;
      await until(async () => (await backendsOf(database)).length >= 8);
    }
    await judge(t, database, await load.stop(), []);
    for (const one of answers) assert.match(one, /^(201|503),(200|503),(204|503)$/);
    const changed = (sql: postgres.Sql) =>
      sql`select count(*)::int as rows from titanic where name ~ '^(put|patched) '`;
    const [{ rows } = {}] = await ask(database.url, changed);
    const acknowledged = answers.join().match(/20[01]/g)?.length ?? 0;
    assert.ok(rows >= acknowledged && rows <= 40, `${rows} rows, ${acknowledged} acknowledged`);
  });

  test('the error of an ended connection is not that of the next statement', async (t) => {
    const { database, service } = await openScene(t, { POOL_SIZE: '1' });
    const before = service.log.length;
    for (let round = 0; round < 5; round += 1) {
      await ask(database.url, terminate);
      await until(async () => (await backendsOf(database)).length === 1);
      assert.equal(
        await statusOf(service, 'PUT', `/passengers/${crypto.randomUUID()}`, PASSENGER),
        201,
      );
    }
    assert.ok(service.log.slice(before).every(({ level }) => level === 'info'));
  });

  test('refused connections are tried again each second at least, and in no storm', async (t) => {
    const { proxy, service } = await openScene(t, { POOL_SIZE: '1' }, { proxied: true });
    proxy.dialled.length = 0;
    proxy.refuse();
    await sleep(4000);
    const gaps = proxy.dialled.map((at, index, all) => at - (all[index - 1] ?? at));
    assert.ok(proxy.dialled.length >= 4 && proxy.dialled.length < 400);
    assert.ok(Math.max(...gaps) <= 1100, `${Math.max(...gaps).toFixed()} ms apart`);
    proxy.pass();
    await until(() => isReady(service), 2000 * slack());
  });
}

function testRepetition(): void {
  for (const [method, status, operation] of [
    ['POST', 201, 'INSERT'],
    ['PUT', 503, 'UPDATE'],
    ['PATCH', 503, 'UPDATE'],
    ['DELETE', 503, 'DELETE'],
  ] as const) {
    test(`a ${method} whose answer the network loses is executed once, and ${status}`, async (t) => {
      const { database, proxy, service } = await openScene(t, {}, { proxied: true });
      const { reply } = await measure(service, 'POST', '/passengers', bodyOf('before'));
      await execute(database, 'create table audit(operation text)');
      const when = 'after insert or update or delete on titanic for each row';
      await addTrigger(database, when, 'insert into audit values (tg_op); return null');
      const path = method === 'POST' ? '/passengers' : `/passengers/${reply?.json.uuid}`;
      const body = method === 'DELETE' ? undefined : bodyOf('afterwards');
      const dropped = proxy.dropReply(body?.name ?? reply?.json.uuid);
      assert.equal(await statusOf(service, method, path, body), status);
      await dropped;
      const audit = await ask(database.url, (sql) => sql`select operation from audit`);
      assert.deepEqual([...audit], [{ operation }]);
    });
  }

  test('a POST that the client repeats with its Idempotency-Key makes one row', async (t) => {
    const { database, proxy, service } = await openScene(t, {}, { proxied: true });
    const key = { 'Idempotency-Key': 'one and the same' };
    const post = (name: string) => measure(service, 'POST', '/passengers', bodyOf(name), key);
    const dropped = proxy.dropReply('Same, Mrs. Key').then(proxy.refuse);
    assert.equal((await post('Same, Mrs. Key')).status, 503);
    await dropped;
    assert.equal(await countRows(database, 'Same, Mrs. Key'), 1);
    proxy.pass();
    await until(() => isReady(service));
    const { status, reply } = await post('Same, Mrs. Key');
    assert.deepEqual([status, reply?.headers.get('idempotent-replayed')], [201, 'true']);
    assert.equal((await post('Other, Mrs. Key')).status, 409);
    assert.equal(await countRows(database, 'Same, Mrs. Key'), 1);
    assert.equal(await countRows(database, 'Other, Mrs. Key'), 0);
  });

  test('an UPDATE whose server process is ended costs 503 and does not run again', async (t) => {
    const { database, service } = await openScene(t);
    const { reply } = await measure(service, 'POST', '/passengers', bodyOf('before'));
    await execute(database, 'create sequence runs');
    const body = `perform nextval('runs'), pg_sleep(2.8); return new`;
    await addTrigger(database, 'before update on titanic for each row', body);
    const path = `/passengers/${reply?.json.uuid}`;
    for (let round = 1; round <= 3; round += 1) {
      const sent = statusOf(service, 'PATCH', path, { age: round });
      await firstOf(() => backendsOf(database, 'PgSleep'));
      await ask(database.url, terminate);
      assert.equal(await sent, 503);
      const [{ last_value: runs } = {}] = await ask(
        database.url,
        (sql) => sql`select last_value from runs`,
      );
      assert.equal(Number(runs), round);
    }
    assert.equal((await measure(service, 'GET', path)).reply?.json.age, PASSENGER.age);
  });
}

// --- Server -----------------------------------------------------------------------

/** These stop, pause or crash a server, so they have one of their own, one after the other. */
function testServer(): void {
  const keeper = { username: 'keeper', password: 'not-the-secret-that-it-should-be' };
  const setPassword = (password: string) => () =>
    execute(held, `alter role keeper password '${password}'`);
  for (const [fault, begin, heal] of [
    ['without its database', () => control.stop('fast'), () => control.start()],
    ['with a wrong password', setPassword('another'), setPassword(keeper.password)],
  ] as const) {
    test(`a service ${fault} starts, and is ready 2 s after it is there`, async (t) => {
      const database = await startDatabase(held.url);
      await execute(database, 'create role keeper login; grant all on schema public to keeper');
      await setPassword(keeper.password)();
      await begin();
      const url = Object.assign(new URL(database.url), keeper).href;
      const service = await startService({ DATABASE_URL: url });
      t.after(async () => {
        await end(service); // its output is searched for the password
        await database.stop();
        await execute(held, 'drop role keeper');
      });
      assert.equal(await statusOf(service, 'GET', '/healthz'), 200);
      for (const path of ['/readyz', '/passengers', '/passengerlist'])
        assert.equal(await statusOf(service, 'GET', path), 503, path);
      assert.equal(await statusOf(service, 'POST', '/passengers', PASSENGER), 503);
      await heal();
      await until(() => isReady(service), 2000 * slack());
      await assertStates(service, ['database down', 'database up']);
    });
  }

  testFaults(SERVER_FAULTS);

  test('SIGTERM while the database is paused ends the service in time with 0', async (t) => {
    const { service } = await openScene(t, {}, { own: true });
    await control.pause();
    const asked = statusOf(service, 'GET', '/passengers');
    await untilMetric(service, 'db_statements_in_flight', '1');
    const from = performance.now();
    const code = await service.stop();
    const ms = performance.now() - from;
    await control.resume();
    assert.equal(code, 0);
    assert.ok(ms < PROMISED, `ended after ${ms.toFixed()} ms`);
    assert.ok([503, 504].includes(await asked));
  });
}

// --- Statements -------------------------------------------------------------------

function testStatements(): void {
  test('a statement that is sent late costs 504, and its connection no other', async (t) => {
    const { database, service } = await openScene(t, { POOL_SIZE: '1' });
    await slowReads(database, 1.6);
    const before = await backendsOf(database);
    const asked = [0, 1, 2].map((at) => statusOf(service, 'GET', `/passengers?offset=${at}`));
    assert.deepEqual((await Promise.all(asked)).sort(), [200, 200, 504]);
    assert.equal(await statusOf(service, 'GET', '/passengers'), 200);
    assert.deepEqual(await backendsOf(database), before);
  });

  for (const [path, accept] of [
    ['/passengers', 'application/json'],
    ['/passengers', 'text/csv'],
    ['/passengers', 'application/x-ndjson'],
    ['/passengerlist', 'application/json'],
  ] as const) {
    test(`a slow GET ${path} as ${accept} costs 503 or 504, and no statement goes on`, async (t) => {
      const { database, service } = await openScene(t);
      await slowReads(database, 20);
      const status = await statusOf(service, 'GET', path, undefined, { Accept: accept });
      assert.ok([503, 504].includes(status), String(status));
      await until(async () => (await backendsOf(database, 'PgSleep')).length === 0, 2000);
    });
  }

  test('a slow INSERT costs 504, and neither statement nor row remains', async (t) => {
    const { database, service } = await openScene(t);
    await slowInserts(database, 20, 'slow%');
    assert.equal(await statusOf(service, 'POST', '/passengers', bodyOf('slow')), 504);
    await until(async () => (await backendsOf(database, 'PgSleep')).length === 0, 2000);
    assert.equal(await countRows(database, 'slow'), 0);
  });

  test('a full disk is 503 that says so; the log and a metric have the class', async (t) => {
    const { service, database } = await openScene(t);
    const body = `raise exception 'could not extend file' using errcode = 'disk_full'`;
    await addTrigger(database, 'before insert on titanic for each row', body);
    const csv = `${Object.keys(PASSENGER)}\n${`${Object.values(bodyOf('x'))}\n`.repeat(MANY)}`;
    for (const [sent, type] of [
      [bodyOf('x'), 'application/json'],
      [csv, 'text/csv'],
    ] as const) {
      const headers = { 'Content-Type': type };
      const { status, json } = await service.request('POST', '/passengers', sent, headers);
      assert.deepEqual(
        [status, json.detail],
        [503, 'The database cannot store more at the moment.'],
      );
    }
    await until(() => service.log.filter(({ code }) => code === '53100').length === 2);
    await untilMetric(service, 'db_errors_total\\{class="53"\\}', '2');
  });

  test('an error of the database puts no value into the answer and the log', async (t) => {
    const { service, database } = await openScene(t);
    const body = `raise exception 'no % here', new.name using detail = new.name`;
    await addTrigger(database, 'before insert on titanic for each row', body);
    const reply = await service.request('POST', '/passengers', bodyOf('Lady Secret'));
    assert.equal(reply.status, 500);
    assert.equal(reply.text.includes('Secret'), false);
    const id = reply.headers.get('x-request-id');
    await until(() => service.log.some((line) => line.id === id && line.code === 'P0001'));
    assert.equal(JSON.stringify(service.log).includes('Secret'), false);
  });
}

// --- Streams ----------------------------------------------------------------------

function testStreams(): void {
  test('a streamed list whose server process hangs costs 503', async (t) => {
    const { database, service } = await openScene(t);
    await slowReads(database, 20);
    const asked = statusOf(service, 'GET', '/passengerlist');
    const slow = await firstOf(() => backendsOf(database, 'PgSleep'));
    process.kill(slow, 'SIGSTOP');
    assert.equal(await asked.finally(() => process.kill(slow, 'SIGCONT')), 503);
  });

  for (const [type, path] of [
    ['application/json', '/passengerlist'],
    ['text/csv', '/passengers'],
    ['application/x-ndjson', '/passengers'],
  ] as const) {
    test(`a list as ${type} whose connection ends in the middle is broken off`, async (t) => {
      const { database, service } = await openScene(t);
      await fill(database, 100_000);
      const headers = { Accept: type };
      const sent = httpRequest(service.url + path, { headers, agent: false }).end();
      const [response] = await once(sent, 'response'); // whose buffers hold a part of the list
      await ask(database.url, terminate);
      await assert.rejects(async () => {
        for await (const _ of response);
      });
      await until(async () => (await streamsOf(service)) === 0);
    });
  }

  for (const [fault, rest] of [
    ['hangs when all of it is sent', 'its end'],
    ['hangs in the middle', 'much more'],
    ['stalls in the middle with its network', 'much more'],
  ] as const) {
    test(`an upload of CSV whose server ${fault} is answered in time, and no part of it stored`, async (t) => {
      const proxied = fault.includes('network');
      const { database, proxy, service } = await openScene(t, {}, { proxied });
      const upload = startUpload(t, service);
      upload.send(MANY);
      const busy = await firstOf(() => copiesIn(database));
      if (proxied) proxy.stall();
      else process.kill(busy, 'SIGSTOP');
      const from = performance.now();
      if (rest === 'much more') upload.send(24_000);
      else upload.end();
      const { status, text } = await upload.answer;
      const ms = performance.now() - from;
      if (proxied) proxy.pass();
      else process.kill(busy, 'SIGCONT');
      assert.ok([503, 504].includes(status), text);
      assert.ok(ms < PROMISED * slack(), `after ${ms.toFixed()} ms`);
      await until(async () => (await copiesIn(database)).length === 0, 3000);
      const stored = await countRows(database, UPLOADED); // all of it is in doubt, never a part
      assert.ok(stored === 0 || (stored === MANY && rest === 'its end'), `${stored} rows`);
      assert.equal(await streamsOf(service), 0);
    });
  }

  test('an upload of CSV by a client that pauses for longer than the deadline is stored', async (t) => {
    const { database, service } = await openScene(t);
    const upload = startUpload(t, service);
    upload.send(MANY);
    await firstOf(() => copiesIn(database));
    await sleep(DEADLINE + 500);
    upload.send(1);
    upload.end();
    assert.equal((await upload.answer).status, 201);
    assert.equal(await countRows(database, UPLOADED), MANY + 1);
  });
}

// --- Clients ----------------------------------------------------------------------

function testClients(): void {
  for (const path of ['/passengers', '/passengerlist']) {
    test(`GET ${path} whose client disconnects ends by its timeout`, async (t) => {
      const { database, service } = await openScene(t);
      await slowReads(database, 20);
      const socket = openSocket(service, t);
      socket.write(headOf('GET', path, {}));
      await firstOf(() => backendsOf(database, 'PgSleep'));
      socket.destroy();
      const timeout = DEADLINE + 2000;
      await until(async () => (await backendsOf(database, 'PgSleep')).length === 0, timeout);
      await untilMetric(service, 'db_streams', '0');
    });
  }

  test('a client that disconnects while it waits for a connection is 499, no failure', async (t) => {
    const { database, service } = await openScene(t, { POOL_SIZE: '1' });
    const from = service.log.length;
    await slowReads(database, 1.5); // two in a row end before the deadline
    const asked = [0, 1].map((at) => statusOf(service, 'GET', `/passengers?offset=${at}`));
    await untilMetric(service, 'db_statements_in_flight', '2');
    const socket = openSocket(service, t);
    socket.write(headOf('GET', '/passengers?offset=9', {}));
    await untilMetric(service, 'db_statements_waiting', '1');
    socket.destroy();
    await untilMetric(service, GONE.replace('*', 'GET'), '1');
    assert.deepEqual(await Promise.all(asked), [200, 200]);
    assert.ok(service.log.slice(from).every(({ msg }) => msg !== 'failed'));
  });

  for (const type of ['application/json', 'text/csv']) {
    test(`a client that disconnects in the middle of ${type} is 499, no failure`, async (t) => {
      const { service } = await openScene(t);
      const from = service.log.length;
      const head = headOf('POST', '/passengers', { 'Content-Type': type, 'Content-Length': 99 });
      openSocket(service, t).end(`${head}"survived`).destroySoon();
      await untilMetric(service, GONE.replace('*', 'POST'), '1');
      assert.equal(await streamsOf(service), 0);
      assert.ok(service.log.slice(from).every(({ msg }) => msg !== 'failed'));
    });
  }

  for (const [fault, act] of [
    ['disconnect', undefined],
    ['disconnect and connections are ended', terminate],
  ] as const) {
    test(`each client reads its own rows while others ${fault}`, async (t) => {
      const { database, service } = await openScene(t, { POOL_SIZE: '2' });
      const doubtful = act ? [503] : [];
      const answers: Answer[] = [];
      const over = new AbortController();
      const trouble = async () => {
        for (; !over.signal.aborted; await sleep(60)) await act?.(database.sql);
      };
      const running = Promise.all([
        trouble(),
        ...[0, 1, 2, 3, 4, 5].map((at) => readBack(service, at, answers, doubtful, over.signal)),
        ...[6, 7, 8].map((at) => disconnect(service, at, over.signal)),
      ]);
      await Promise.race([sleep(4000), running]).finally(() => over.abort());
      await running;
      await until(async () => (await streamsOf(service)) === 0);
      await judge(t, database, answers, doubtful);
    });
  }
}

const GONE =
  'http_request_duration_seconds_count{method="*",route="/passengers",status="499"}'.replace(
    /[{}]/g,
    '\\$&',
  );

// --- Start ------------------------------------------------------------------------

function testStart(): void {
  test('four processes that start at once on an empty database make one schema', async (t) => {
    const database = await startDatabase(server.url);
    const environment = { DATABASE_URL: database.url };
    const starting = Array.from({ length: 4 }, () => startService(environment));
    t.after(async () => {
      for (const result of await Promise.allSettled(starting))
        if (result.status === 'fulfilled') await end(result.value);
      await database.stop();
    });
    for (const service of await Promise.all(starting)) {
      await until(() => isReady(service));
      assert.equal(await statusOf(service, 'POST', '/passengers', PASSENGER), 201);
    }
  });

  test('a table unlike the declaration ends the workers and the process with 2', async (t) => {
    const database = await startDatabase(server.url);
    t.after(() => database.stop());
    await execute(database, 'create table titanic (uuid uuid primary key, age text)');
    await assert.rejects(
      startService({ DATABASE_URL: database.url, WEB_CONCURRENCY: '2' }),
      /ended with 2: .*age is text, declared double precision/,
    );
  });
}

// --- Stop -------------------------------------------------------------------------

function testStop(): void {
  for (const workers of [1, 2]) {
    const who = workers === 1 ? 'the process' : 'its workers';
    const open = async (t: TestContext) => {
      const scene = await openScene(t, { WEB_CONCURRENCY: String(workers) });
      await untilAll(scene.service, workers);
      return scene;
    };
    const areGone = async ({ service }: Scene) =>
      !(await Promise.all(workersOf(service).map(isRunning))).includes(true);

    test(`SIGTERM: ${who} answer what is in flight, close idle clients, and exit 0`, async (t) => {
      const scene = await open(t);
      const { service, database } = scene;
      const idle = await Promise.all(Array.from({ length: 20 }, () => openIdle(t, service)));
      for (let count = 0; count < 5; count += 1) idle.push(openSocket(service, t));
      await until(() => idle.every(({ pending }) => !pending));
      await slowReads(database, 2.5);
      const asked = exchange(service, '/passengers', new Agent({ keepAlive: true }));
      await firstOf(() => backendsOf(database, 'PgSleep'));
      service.child.kill('SIGTERM');
      const from = performance.now();
      await until(() => idle.every(({ closed }) => closed), 1500);
      const { status, headers } = await asked;
      assert.deepEqual([status, headers.connection], [200, 'close']);
      assert.equal(await service.stop('SIGCONT'), 0);
      assert.ok(performance.now() - from < PROMISED);
      assert.equal((await backendsOf(database)).length, 0);
      assert.ok(await areGone(scene));
    });

    test(`SIGTERM under load: ${who} fail no request that was taken`, async (t) => {
      const { service, database } = await open(t);
      const load = startLoad(t, service, { writers: 12 });
      await untilServed(load);
      assert.equal(await service.stop(), 0);
      await judge(t, database, await load.stop(), [0]);
    });

    test(`SIGTERM, five times: ${who} reset no connection, new ones are refused`, async (t) => {
      const { database } = await openScene(t);
      for (let round = 0; round < 5; round += 1) {
        const environment = { DATABASE_URL: database.url, WEB_CONCURRENCY: String(workers) };
        const service = await startReady({ ...environment, SHUTDOWN_GRACE: String(round % 2) });
        await untilAll(service, workers);
        const clients = Array.from({ length: 24 }, (_, at) => askUntilRefused(service, at));
        await sleep(500);
        assert.equal(await service.stop(), 0);
        assert.deepEqual(new Set(await Promise.all(clients)), new Set(['new: ECONNREFUSED']));
      }
    });

    test(`a second SIGTERM ends ${who} at once`, async (t) => {
      const scene = await open(t);
      const { service, database } = scene;
      await slowReads(database, 2.9);
      const asked = exchange(service, '/passengers').catch(() => {});
      await firstOf(() => backendsOf(database, 'PgSleep'));
      service.child.kill('SIGTERM');
      await service.logged('stopping');
      const from = performance.now();
      service.child.kill('SIGTERM');
      assert.notEqual(await service.ended, 0);
      assert.ok(performance.now() - from < 1000);
      await until(() => areGone(scene), 1000);
      await service.stop(); // its output is complete
      await asked;
    });

    test(`SIGHUP ends ${who} as SIGTERM does, SIGUSR1 opens no debugger`, async (t) => {
      const { service, database } = await open(t);
      for (const pid of [service.child.pid!, ...workersOf(service)]) process.kill(pid, 'SIGUSR1');
      for (let round = 0; round < 20; round += 1)
        assert.equal((await exchange(service, '/hello')).status, 200);
      assert.doesNotMatch(service.stderr(), /debugger|inspector/i);
      await slowReads(database, 2.5);
      const asked = exchange(service, '/passengers');
      await firstOf(() => backendsOf(database, 'PgSleep'));
      assert.equal(await service.stop('SIGHUP'), 0);
      assert.equal((await asked).status, 200);
    });

    for (const delay of [0, 150, 300, 450, 600, 900]) {
      test(`SIGTERM ${delay} ms after the start of ${who} ends all of them`, async (t) => {
        const database = await startDatabase(server.url);
        t.after(() => database.stop());
        const env = { DATABASE_URL: database.url, WEB_CONCURRENCY: String(workers), PORT: '0' };
        const child = spawnApp(t, env);
        await sleep(delay);
        const below = await childrenOf(child.pid!);
        child.kill('SIGTERM');
        await until(() => child.exitCode !== null || child.signalCode !== null, PROMISED);
        assert.ok(child.exitCode === 0 || child.signalCode === 'SIGTERM', `${child.exitCode}`);
        await until(async () => !(await Promise.all(below.map(isRunning))).includes(true), 2000);
      });
    }
  }

  test('SHUTDOWN_GRACE: not ready, yet it answers until the time is over', async (t) => {
    const { service } = await openScene(t, { SHUTDOWN_GRACE: '3' });
    service.child.kill('SIGTERM');
    const from = performance.now();
    await service.logged('stopping');
    for (const [path, status] of Object.entries({ readyz: 503, healthz: 200, passengers: 200 }))
      assert.equal((await exchange(service, `/${path}`)).status, status, path);
    assert.equal(await service.stop('SIGCONT'), 0);
    assert.ok(performance.now() - from >= 3000);
  });

  test('the primary killed ends its workers', async (t) => {
    const { service } = await openScene(t, await twoWorkers());
    await untilAll(service, 2);
    await service.stop('SIGKILL');
    const workers = workersOf(service);
    await until(async () => !(await Promise.all(workers.map(isRunning))).includes(true), 2000);
    await assert.rejects(exchange(service, '/hello'));
  });

  for (const [end, signals] of [
    ['goes on', ['SIGCONT']],
    ['is killed with the one that answers', ['SIGKILL', 'SIGKILL']],
  ] as const) {
    test(`/metrics while a worker is paused that then ${end}: the service goes on`, async (t) => {
      const { service } = await openScene(t, await twoWorkers());
      await untilAll(service, 2);
      const workers = workersOf(service);
      process.kill(workers[0]!, 'SIGSTOP');
      const from = performance.now();
      const asked = Array.from({ length: 8 }, () => exchange(service, '/metrics'));
      for (const one of asked) one.catch(() => {});
      if (signals.length === 1) await Promise.any(asked);
      assert.ok(performance.now() - from < PROMISED);
      for (const [at, signal] of signals.entries()) process.kill(workers[at]!, signal);
      await sleep(5500 - (performance.now() - from)); // prom-client rejects after 5 s
      assert.equal(service.child.exitCode, null, service.stderr());
      await untilAll(service, 2);
      await until(async () => (await exchange(service, '/metrics')).status === 200, PROMISED);
    });
  }
}

// --- Keys -------------------------------------------------------------------------

function testKeys(): void {
  for (const trouble of ['down', 'hang'] as const) {
    test(`keys of a source that is in state "${trouble}" from the start are 503, then used`, async (t) => {
      const source = await startKeySource(t);
      await source[trouble]();
      const { service } = await openScene(t, { JWKS_URL: source.url });
      const token = await source.sign('first');
      const asked = Array.from({ length: 30 }, () => statusWith(service, token));
      assert.deepEqual(new Set(await Promise.all(asked)), new Set([503]));
      assert.ok(source.fetches() <= 2, `${source.fetches()} fetches`);
      await source.up();
      await until(async () => (await statusWith(service, token)) === 200, 5000);
    });
  }

  test('keys that were fetched serve on while their source is down, invalid or hangs', async (t) => {
    const source = await startKeySource(t);
    const { service } = await openScene(t, { JWKS_URL: source.url });
    assert.equal(await statusWith(service, await source.sign('first')), 200);
    for (const trouble of ['down', 'babble', 'hang'] as const) {
      await source[trouble]();
      assert.equal(await statusWith(service, await source.sign('first')), 200, trouble);
      assert.equal(await statusWith(service, await source.sign('unknown')), 401, trouble);
      await source.up();
    }
  });

  test('a rotated key is known in 35 s, unknown ones cost one fetch per cooldown', async (t) => {
    const source = await startKeySource(t);
    const { service } = await openScene(t, { JWKS_URL: source.url });
    assert.equal(await statusWith(service, await source.sign('first')), 200);
    assert.equal(source.fetches(), 1);
    source.publish('second');
    const rotated = performance.now();
    const token = await source.sign('second');
    while (performance.now() - rotated < 27_000) {
      const storm = Array.from({ length: 20 }, async (_, at) =>
        statusWith(service, await source.sign(`unknown ${at}`)),
      );
      assert.deepEqual(new Set(await Promise.all(storm)), new Set([401]));
      await sleep(1000);
    }
    assert.ok(source.fetches() <= 2, `${source.fetches()} fetches in 27 s`);
    await until(async () => (await statusWith(service, token)) === 200, 10_000);
    const ms = performance.now() - rotated;
    t.diagnostic(`known after ${ms.toFixed()} ms, ${source.fetches()} fetches`);
    assert.ok(ms <= 35_000);
    assert.ok(source.fetches() <= 3);
  });
}

// --- Alone ------------------------------------------------------------------------

/** What is measured here needs the processors for itself. */
describe('Alone', () => {
  test('throughput under 64 in flight does not fall', async (t) => {
    const { service } = await openScene(t);
    const made = await measure(service, 'POST', '/passengers', PASSENGER);
    const agent = new Agent({ keepAlive: true, maxSockets: 64 });
    t.after(() => agent.destroy());
    const started = performance.now();
    const perSecond = Array.from({ length: 10 }, () => 0);
    const client = async () => {
      for (let second = 0; second < 9; second = Math.floor((performance.now() - started) / 1000)) {
        const { status } = await exchange(service, `/passengers/${made.reply?.json.uuid}`, agent);
        assert.equal(status, 200);
        perSecond[second]! += 1;
      }
    };
    await Promise.all(Array.from({ length: 64 }, client));
    const rate = (from: number) =>
      perSecond.slice(from, from + 3).reduce((sum, count) => sum + count) / 3;
    t.diagnostic(`${rate(1).toFixed()}/s at first, ${rate(6).toFixed()}/s at last`);
    assert.ok(rate(6) / rate(1) > 0.5);
  });

  test('a killed worker is replaced in 1 s, five times in a row; both at once too', async (t) => {
    const { service, database } = await openScene(t, await twoWorkers());
    await untilAll(service, 2);
    const load = startLoad(t, service);
    await untilServed(load);
    const times: number[] = [];
    for (let round = 0; round < 5; round += 1) {
      await untilServed(load);
      const count = workersOf(service).length;
      const from = Date.now();
      process.kill(await aliveWorker(service), 'SIGKILL');
      await until(() => workersOf(service).length > count);
      times.push(Number(service.log.findLast(({ msg }) => msg === 'listening')?.time) - from);
    }
    const ready = await startTime(database); // of a process beside this load
    t.diagnostic(`replaced after ${times.join(', ')} ms, a process is ready in ${ready.toFixed()}`);
    assert.ok(Math.min(...times) <= Math.max(1000, 1.25 * ready));
    await untilAll(service, 2);
    for (const pid of workersOf(service)) if (await isRunning(pid)) process.kill(pid, 'SIGKILL');
    const ms = await untilServed(load, performance.now() + 10);
    assert.ok(ms <= Math.max(2000, 2 * ready), `back after ${ms.toFixed()} ms`);
    await judge(t, database, await load.stop(), [0, 503]);
  });
});

// --- Account ----------------------------------------------------------------------

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

function spawnApp(t: TestContext, environment: Record<string, string>) {
  const { PATH, HOME } = process.env;
  const args = [...nodeArguments, fileURLToPath(APP)];
  const env = { PATH, HOME, ...environment };
  const child = spawn(process.execPath, args, { env, stdio: 'ignore' });
  t.after(() => child.kill('SIGKILL'));
  return child;
}

type Exchanged = { status: number; headers: IncomingMessage['headers'] };

/** One GET over a connection of its own, or one of the agent. */
async function exchange(service: TestService, path: string, agent?: Agent): Promise<Exchanged> {
  const sent = httpRequest(service.url + path, { agent: agent ?? false }).end();
  const [response] = (await once(sent, 'response')) as [IncomingMessage];
  let text = '';
  for await (const data of response) text += data;
  service.hear(text);
  return { status: response.statusCode ?? 0, headers: response.headers };
}

const UPLOADED = 'Uploaded, Miss. Row'.padEnd(150, '.'); // many bytes in few rows
const MANY = MAX_ARRAY + 1000; // rows, which are streamed: fewer are one statement

/** An upload of CSV that goes on until end(). */
function startUpload(t: TestContext, service: TestService) {
  const headers = { 'Content-Type': 'text/csv' };
  const sent = httpRequest(`${service.url}/passengers`, { method: 'POST', headers, agent: false });
  t.after(() => sent.destroy());
  sent.on('error', () => {}).write(`${Object.keys(PASSENGER)}\n`);
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

/** Asks over kept connections with `pause` ms between, and answers how the first one failed. */
async function askUntilRefused(service: TestService, pause: number): Promise<string> {
  for (;;) {
    const socket = connect(Number(new URL(service.url).port), '127.0.0.1').setMaxListeners(0);
    const end = once(socket, 'close').then(() => ['is closed']);
    end.catch(() => {});
    for (let use = 'new'; ; use = 'reused') {
      socket.write(headOf('GET', '/hello', {}));
      const next = Promise.race([once(socket, 'data'), end]);
      const [data] = await next.catch(({ code }) => [code]);
      if (!String(data).startsWith('HTTP/1.1 200')) return `${use}: ${data}`;
      if (/\r\nconnection: close/i.test(String(data))) break;
      await sleep(pause);
    }
    socket.destroy();
  }
}

/** A client that has had an answer and keeps its connection. */
async function openIdle(t: TestContext, service: TestService): Promise<Socket> {
  const socket = openSocket(service, t);
  socket.write(headOf('GET', '/hello', {}));
  await once(socket, 'data');
  return socket;
}

function headOf(method: string, path: string, headers: Record<string, string | number>): string {
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
  return `${method} ${path} HTTP/1.1\r\nHost: x\r\n${lines.join('')}\r\n`;
}

/** A client that has sent nothing. */
function openSocket(service: TestService, t?: TestContext): Socket {
  const socket = connect(Number(new URL(service.url).port), '127.0.0.1');
  t?.after(() => socket.destroy());
  return socket.on('error', () => {}).resume();
}

/** Two workers on a port that stays theirs when both have ended. */
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

/** A JWKS over HTTP with trouble on demand; it begins with the key `first`. */
async function startKeySource(t: TestContext) {
  const pairs = new Map<string, Awaited<ReturnType<typeof jose.generateKeyPair>>>();
  for (const kid of ['first', 'second', 'unknown'])
    pairs.set(kid, await jose.generateKeyPair('ES256', { extractable: true }));
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

function statusWith(service: TestService, token: string): Promise<number> {
  const headers = { Authorization: `Bearer ${token}` };
  return statusOf(service, 'GET', '/passengers?limit=1', undefined, headers);
}
