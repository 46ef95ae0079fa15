/**
 * A primary with a synchronous standby, killed under writes; then the standby is promoted. One
 * service connects by a name that moves (a TCP proxy), one names both hosts, one reads the standby.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { appendFileSync, chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { startEmbedded } from '../lib/embedded.ts';
import {
  ask,
  controlServer,
  PASSENGER,
  type Reply,
  slack,
  startProxy,
  startReady,
  type TestService,
  until,
} from './harness.ts';

type Write = { name: string; status: number; detail: string; at: number };
type Writer = { service: TestService; writes: Write[] };

const NAMES = ['a name that moves', 'both hosts'] as const;
const writers = {} as Record<(typeof NAMES)[number], Writer>;
const seen: Record<string, Reply> = {};
let [killed, promoted, over] = [0, 0, false];
let rows: Map<string, number>;

/** Each of four clients writes the next row as soon as the last one is answered. */
async function startWriter(environment: Record<string, string>, label: string): Promise<Writer> {
  const service = await startReady({ AUTH: 'none', ...environment });
  const writes: Write[] = [];
  const loop = async (client: number) => {
    for (let count = 0; !over; count += 1) {
      const name = `${label} ${client}.${count}`;
      const reply = await service.request('POST', '/passengers', { ...PASSENGER, name });
      const { status, json } = reply;
      writes.push({ name, status, detail: json?.detail ?? '', at: performance.now() });
    }
  };
  loops.push(...[1, 2, 3, 4].map(loop));
  return { service, writes };
}
const loops: Promise<void>[] = [];

/** Waits until each service has such a write. */
function untilBoth(test: (write: Write) => boolean): Promise<void> {
  return until(() => NAMES.every((name) => writers[name].writes.some(test)));
}

describe('failover', () => {
  const directory = mkdtempSync(join(tmpdir(), 'passengers failover-'));
  const [old, fresh] = [join(directory, 'old'), join(directory, 'new')];
  const ends: (() => unknown)[] = [() => rmSync(directory, { recursive: true })];
  const start = async (home: string) => {
    const server = await startEmbedded(home);
    ends.unshift(server.stop);
    return server;
  };

  after(async () => {
    over = true;
    for (const end of ends) await end();
  });

  before(async () => {
    chmodSync(directory, 0o755); // PostgreSQL runs as another user where this one is root
    (await start(old)).stop();
    spawnSync('cp', ['-a', old, fresh]); // of a server that is stopped: a base backup
    const primary = await start(old);
    const { port, password } = new URL(primary.url);
    const conninfo = `host=127.0.0.1 port=${port} user=postgres password=${password}`;
    writeFileSync(join(fresh, 'cluster/standby.signal'), '');
    appendFileSync(join(fresh, 'cluster/postgresql.auto.conf'), `primary_conninfo='${conninfo}'\n`);
    const standby = await start(fresh);
    await ask(primary.url, (sql) => sql`alter system set synchronous_standby_names = '*'`);
    await ask(primary.url, (sql) => sql`select pg_reload_conf()`);
    const state = () => ask(primary.url, (sql) => sql`select sync_state from pg_stat_replication`);
    await until(async () => (await state())[0]?.sync_state === 'sync');

    const proxy = await startProxy(primary.url);
    ends.unshift(proxy.stop);
    const hosts = [primary, standby].map(({ url }) => new URL(url).host).join();
    const both = {
      PGHOST: hosts,
      PGUSER: 'postgres',
      PGPASSWORD: password,
      PGDATABASE: 'postgres',
    };
    writers['a name that moves'] = await startWriter({ DATABASE_URL: proxy.url }, 'name');
    writers['both hosts'] = await startWriter(both, 'list');
    const reader = await startReady({ AUTH: 'none', DATABASE_URL: standby.url, POOL_SIZE: '1' });
    for (const { service } of [...Object.values(writers), { service: reader }])
      ends.unshift(() => service.stop());

    await untilBoth(({ status }) => status === 201);
    seen['list of the standby'] = await reader.get('/passengers?limit=1');
    seen['write to the standby'] = await reader.request('POST', '/passengers', PASSENGER);
    seen['metrics of the standby'] = await reader.get('/metrics');
    killed = performance.now();
    await (await controlServer(old)).stop('crash');
    proxy.point(standby.url);
    await untilBoth(({ status, at }) => status === 503 && at > killed);
    await until(() =>
      writers['a name that moves'].writes.some(({ detail }) => /read-only/.test(detail)),
    );
    await ask(standby.url, (sql) => sql`select pg_promote()`);
    promoted = performance.now();
    await untilBoth(({ status, at }) => status === 201 && at > promoted);
    seen['write to the promoted server'] = await reader.request('POST', '/passengers', PASSENGER);
    seen['metrics of the promoted server'] = await reader.get('/metrics');
    over = true;
    await Promise.all(loops);
    const stored = await ask(
      standby.url,
      (sql) => sql`select name, count(*)::int from titanic group by name`,
    );
    rows = new Map(stored.map(({ name, count }) => [name, count]));
  });

  for (const name of NAMES) {
    test(`${name}: no acknowledged write is lost, none is made twice`, (t) => {
      const { writes } = writers[name];
      const acknowledged = writes.filter(({ status }) => status === 201);
      t.diagnostic(`${acknowledged.length} of ${writes.length} writes acknowledged`);
      assert.deepEqual(
        acknowledged.filter((one) => !rows.has(one.name)),
        [],
      );
      assert.deepEqual(
        writes.filter((one) => rows.get(one.name)! > 1),
        [],
      );
    });

    test(`${name}: every other answer is 503 or 504`, () => {
      const statuses = new Set(writers[name].writes.map(({ status }) => status));
      for (const status of statuses) assert.ok([201, 503, 504].includes(status), `${status}`);
    });

    test(`${name}: a write succeeds within 1 s of the promotion`, (t) => {
      const { writes } = writers[name];
      const first = writes.find(({ status, at }) => status === 201 && at > promoted);
      const ms = first!.at - promoted;
      t.diagnostic(
        `after ${ms.toFixed()} ms; promoted ${(promoted - killed).toFixed()} ms after the kill`,
      );
      assert.ok(ms < 1000 * slack());
    });
  }

  /** Status and what the body has. */
  const ANSWERS: [string, number, RegExp][] = [
    ['list of the standby', 200, /^\[\{"uuid"/],
    ['write to the standby', 503, /"detail":"The database is read-only/],
    ['metrics of the standby', 200, /^db_read_only 1$/m],
    ['write to the promoted server', 201, /"uuid"/],
    ['metrics of the promoted server', 200, /^db_read_only 0$/m],
  ];
  for (const [name, status, body] of ANSWERS) {
    test(`${name}: ${status} ${body.source}`, () => {
      assert.equal(seen[name]?.status, status);
      assert.match(seen[name]?.text ?? '', body);
    });
  }
});
