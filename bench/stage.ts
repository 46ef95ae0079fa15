/** What a run uses: an embedded PostgreSQL, services for the whole run, and those of one work. */
import type postgres from 'postgres';
import { startDatabase, type TestDatabase, until } from '../test/harness.ts';
import { parentOf, type Service, startFlask, startOurs, startPeer } from './services.ts';

export const OURS = 'passengers';
export const FASTIFY = 'Fastify + pg';
export const EXPRESS = 'Express + pg';
export const FLASK = 'Flask';
export const OTHER = 'the other checkout';

/** As many rows as the public data of the Titanic have passengers. */
export const FEW = 887;

/** Row N has this and N in hexadecimal as its key. */
export const KEY_PREFIX = '01930000-0000-7000-8000-';

/** Seconds of a turn, turns of each who does a work, rows of the large table. */
export type Scale = { seconds: number; turns: number; rows: number };

export type Stage = {
  scale: Scale;
  ours: Service;
  peers: Service[];
  few: TestDatabase;
  /** A database of `scale.rows`, with an index on fare; made when a work first asks for it. */
  many: () => Promise<TestDatabase>;
  /** Awaits a service that ends with the work: two that are compared have then run equally long. */
  guest: (starting: Promise<Service>) => Promise<Service>;
  /** Ends the guests and fills the small table anew. */
  tidy: () => Promise<void>;
  reset: () => Promise<void>;
  /** Awaits the end of the statements of the load before, whose CPU time would be counted next. */
  settle: () => Promise<void>;
  /** The process of PostgreSQL that is the parent of all others. */
  postgres: number;
  close: () => Promise<void>;
};

/** `against`: another checkout, which then is the only peer. */
export async function openStage(scale: Scale, against?: string): Promise<Stage> {
  const few = await startDatabase('');
  const ours = await startOurs(OURS, few.url); // makes the table
  const reset = () => fillTable(few.sql, FEW);
  await reset();
  const started = against
    ? [await startOurs(OTHER, few.url, { cwd: against })]
    : [
        await startPeer(FASTIFY, 'fastify.js', few.url),
        await startPeer(EXPRESS, 'express.js', few.url),
        await startFlask(FLASK, few.url),
      ];
  const peers = started.filter((peer) => peer !== undefined);
  const [backend] = await few.sql`select pg_backend_pid() as pid`;
  const postgres = await parentOf(backend?.pid);
  if (postgres === 0) throw new Error('CPU time is read from /proc, which only Linux has');
  const guests: Service[] = [];
  let large: Promise<TestDatabase> | undefined;
  const endAll = async (services: Service[]) => {
    for (const service of services.splice(0).reverse()) await service.stop();
  };
  return {
    ...{ scale, ours, peers: [...peers], few, reset, postgres },
    many: () => {
      large ??= makeLarge(few.url, scale.rows);
      return large;
    },
    settle: () =>
      until(async () => {
        const active = await few.sql`
          select from pg_stat_activity where state = 'active' and pid <> pg_backend_pid()`;
        return active.length === 0;
      }),
    guest: async (starting) => {
      const service = await starting;
      guests.push(service);
      return service;
    },
    tidy: async () => {
      await endAll(guests);
      await reset();
    },
    close: async () => {
      await endAll([ours, ...peers, ...guests]);
      await (await large)?.stop();
      await few.stop();
    },
  };
}

async function makeLarge(server: string, rows: number): Promise<TestDatabase> {
  const many = await startDatabase(server);
  await (await startOurs(OURS, many.url)).stop();
  await many.sql`create index on titanic (fare)`;
  await fillTable(many.sql, rows);
  return many;
}

/**
 * Replaces all rows by the same ones in every run, in one transaction, since the last writes of a
 * load may still arrive. Statistics and visibility map are as after autovacuum.
 */
async function fillTable(sql: postgres.Sql, rows: number): Promise<void> {
  await sql.begin(async (sql) => {
    await sql`truncate titanic`;
    await sql`
      insert into titanic
      select (${KEY_PREFIX} || lpad(to_hex(n), 12, '0'))::uuid, n % 5 < 2, 1 + n % 3,
        'Passenger ' || n, case n % 3 when 0 then 'female' else 'male' end,
        1 + n * 7 % 160 / 2.0, n % 4, n % 3, round((n * 37 % 51200) / 100.0, 4)::float
      from generate_series(1, ${rows}::int) n`;
  });
  await sql`vacuum analyze titanic`;
  await sql`checkpoint`;
}
