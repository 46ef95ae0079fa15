import assert from 'node:assert/strict';
import { after, beforeEach, test } from 'node:test';
import { pino } from 'pino';
import { z } from 'zod';
import { openDatabase } from '../test/harness.ts';
import {
  boolean,
  type Column,
  date,
  identity,
  integer,
  jsonb,
  number,
  numeric,
  oneOf,
  references,
  resource,
  text,
  timestamp,
  uuid,
} from './columns.ts';
import { Pool } from './pool.ts';
import { StartError } from './problem.ts';
import { ensureTable } from './table.ts';

const database = await openDatabase();
const open = (DATABASE_URL: string) =>
  new Pool(
    { DATABASE_URL, POOL_SIZE: 1, STREAMS: 4, DB_PREPARE: 'true' },
    pino({ level: 'silent' }),
  );
const pool = open(database.url);
after(() => pool.end());
beforeEach(() => database.sql`drop table if exists "thi""ngs"`);

const declare = (columns: Record<string, Column>) =>
  resource({ path: 'things', table: 'thi"ngs', key: 'id', columns });
const KINDS = {
  name: text(3),
  sex: oneOf(['male', 'female']),
  size: integer(0, 9),
  fare: number(0, Number.MAX_VALUE),
  good: boolean(),
  other: uuid(),
  day: date({ from: '2020-01-01' }),
  at: timestamp(),
  tags: jsonb(z.array(z.unknown()), []),
};
const things = declare(KINDS);
const EXAMPLE = { ...things.example, name: 'x' };

/** Resolves to whether the table stores the row. */
const isStored = (row: object) =>
  database.sql`insert into "thi""ngs"
    select * from json_populate_record(null::"thi""ngs", ${JSON.stringify(row)}::text::json)`.then(
    () => true,
    () => false,
  );

test('makes the table that is declared, with its key', async () => {
  await ensureTable(things, pool);
  const rows = await database.sql`select attname as name, attnotnull as filled,
      format_type(atttypid, atttypmod) as type from pg_attribute
    where attrelid = '"thi""ngs"'::regclass and attnum > 0 order by attnum`;
  assert.ok(rows.every(({ filled }) => filled));
  assert.deepEqual(
    rows.map(({ name, type }) => `${name} ${type}`),
    [
      ...['id uuid', 'name character varying(3)', 'sex character varying(6)', 'size integer'],
      ...['fare double precision', 'good boolean', 'other uuid', 'day date'],
      ...['at timestamp with time zone', 'tags jsonb'],
    ],
  );
  await isStored(EXAMPLE);
  assert.equal(await isStored(EXAMPLE), false, 'a second row with the key');
});

test('changes nothing in a table as declared, so that a role without DDL will do', async (t) => {
  await ensureTable(things, pool);
  const reader = await limited(t);
  await ensureTable(things, reader);
});

test('names what its role may not add', async (t) => {
  await ensureTable(things, pool);
  const more = declare({ ...KINDS, more: integer(0, 9, { nullable: true }) });
  const why =
    /^table thi"ngs is not as declared; the database says: must be owner of table thi"ngs\. .*\n.*"more" .*more is missing$/;
  await assert.rejects(ensureTable(more, await limited(t)), { message: why });
});

/** A pool of a role that may do anything with the rows and nothing with the table. */
async function limited(t: { after: (end: () => Promise<void>) => void }): Promise<Pool> {
  await database.sql.unsafe(`create role limited login password 'limited';
    grant select, insert, update, delete on "thi""ngs" to limited`);
  const url = new URL(database.url);
  url.username = 'limited';
  url.password = 'limited';
  const own = open(url.href);
  t.after(async () => {
    await own.end();
    await database.sql.unsafe('drop owned by limited; drop role limited');
  });
  return own;
}

const added: [name: string, column: Column, value: unknown][] = [
  ['nullable', integer(0, 9, { nullable: true }), null],
  ['default', integer(0, 9, { default: 7 }), 7],
  ['generated', integer(0, 9, { generated: () => '2 + 3' }), 5],
];
for (const [name, column, value] of added) {
  test(`adds a column that is ${name}, also to existing rows`, async () => {
    await ensureTable(things, pool);
    await isStored(EXAMPLE);
    await ensureTable(declare({ ...KINDS, more: column }), pool);
    assert.deepEqual([...(await database.sql`select more from "thi""ngs"`)], [{ more: value }]);
  });
}

const ALTER = 'alter table "thi""ngs"';
const WITHOUT = 'without default or nullable';
const FARE = 'alter column "fare" type double precision using "fare"::double precision';
const refused: [ddl: string, ...lines: string[]][] = [
  [
    'alter fare type int',
    `${FARE}; -- blocks the start: fare is integer, declared double precision; integer() fits`,
  ],
  [
    'drop fare, add fare inet',
    `${FARE}; -- blocks the start: fare is inet, declared double precision; there is no kind for it`,
  ],
  [
    'alter name type varchar(2)',
    'alter column "name" type character varying(3) using "name"::character varying(3); -- blocks the start: name is character varying(2), declared character varying(3); text(2) fits',
  ],
  [
    'drop constraint "thi""ngs_pkey"',
    'add primary key ("id"); -- blocks the start: id has no unique index',
  ],
  [
    'add x int not null',
    'alter column "x" drop not null; -- blocks the start: x is required by the table, not declared',
  ],
  [
    'drop sex, drop good',
    `add column if not exists "sex" character varying(6) not null check ("sex" in ('male', 'female')); -- blocks the start: sex is missing, ${WITHOUT}`,
    `add column if not exists "good" boolean not null check ("good" in (true, false)); -- blocks the start: good is missing, ${WITHOUT}`,
  ],
];
for (const [ddl, ...lines] of refused) {
  test(`refuses a table after ${ddl}, with the SQL that changes it`, async () => {
    await ensureTable(things, pool);
    await database.sql.unsafe(`${ALTER} ${ddl}`);
    const head = 'table thi"ngs is not as declared. Change the declaration, or run:';
    const message = [head, ...lines.map((line) => `${ALTER} ${line}`)].join('\n');
    await assert.rejects(ensureTable(things, pool), new StartError(message));
  });
}

test('runs the SQL that it prints', async () => {
  await ensureTable(things, pool);
  const other = resource({
    ...{ path: 'things', table: 'thi"ngs', key: 'size', unique: ['name', 'good'] },
    columns: {
      ...KINDS,
      size: identity(integer()),
      fare: numeric(6, 2),
      id: references('thi"ngs', 'other'),
      other: uuid({ unique: true }),
      more: boolean({ default: true }),
    },
  });
  const { message } = await ensureTable(other, pool).catch((error) => error);
  assert.match(message, /"more" .*; -- the service runs this: more is missing/);
  await ensureTable(things, pool); // nothing has run
  const sql = message.replace(
    /^.*\n/,
    `${ALTER} drop constraint "thi""ngs_pkey"; ${ALTER} alter "id" drop not null; \n`,
  );
  await database.sql.unsafe(sql);
  await ensureTable(other, pool);
});

const accepted = [
  ...['add x int', 'add x int not null default 1', 'alter fare drop not null'],
  ...['alter name type text', 'drop constraint "thi""ngs_fare_check"'],
];
for (const ddl of accepted) {
  test(`accepts a table after ${ddl}`, async () => {
    await ensureTable(things, pool);
    await database.sql.unsafe(`${ALTER} ${ddl}`);
    await ensureTable(things, pool);
  });
}

const values: [column: keyof typeof KINDS, valid: unknown[], invalid: unknown[]][] = [
  ['name', ['x', '🚢🚢🚢', `'"\\`], ['', ' ', '\u00a0', '\u3000', '\ufeff', '\u000b', '🚢🚢🚢🚢']],
  ['sex', ['male', 'female'], ['', 'Female', 'man']],
  ['size', [0, 9], [-1, 10, 2 ** 31]],
  ['fare', [0, 7.25, 1e308], [-0.01]],
  ['good', [true, false], ['']],
  ['day', ['2020-01-01', '9999-12-31'], ['2019-12-31', '2026-02-30']],
  ['at', ['0001-01-01T00:00:00Z', '2026-01-31T12:00:00.5+15:59'], ['2026-01-01T00:00:00+16:00']],
  ['tags', [[], [1, { a: null }]], [{}, 'x', ['\0']]],
];
for (const [column, valid, invalid] of values) {
  test(`${column}: validator and CHECK accept and refuse the same`, async () => {
    await ensureTable(things, pool);
    for (const value of [...valid, ...invalid, null]) {
      const row = { ...EXAMPLE, [column]: value };
      const expected = valid.includes(value);
      await database.sql`delete from "thi""ngs"`;
      assert.equal(things.row.safeParse(row).success, expected, `validator: ${value}`);
      assert.equal(await isStored(row), expected, `CHECK: ${value}`);
    }
  });
}
