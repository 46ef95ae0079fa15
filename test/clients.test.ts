/**
 * Software that others wrote, as it is, against the real process: postgrest-js, supabase-js, the
 * data providers of react-admin and of refine, and requests written by hand where a client would
 * hide what was answered.
 *
 *     node --import tsx --test test/clients.test.ts    with Node 20
 *     npx -y node@26 --test test/clients.test.ts       with the newest
 *
 * Nothing is skipped on Node 20: supabase-js 2.119 asks there for a WebSocket, which it is given.
 */
import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, describe, test } from 'node:test';
import * as provider from '@raphiniert/ra-data-postgrest';
import { dataProvider } from '@refinedev/supabase';
import { PostgrestClient } from '@supabase/postgrest-js';
import { createClient } from '@supabase/supabase-js';
import { SignJWT } from 'jose';
import {
  startDatabase,
  startReady,
  startService,
  type TestDatabase,
  type TestService,
  until,
} from './harness.ts';

type Passenger = {
  uuid: string;
  survived: boolean | null;
  passengerClass: number;
  name: string;
  sex: string;
  age: number | null;
  siblingsOrSpousesAboard: number;
  parentsOrChildrenAboard: number;
  fare: number | null;
};
type Tables = {
  passengers: {
    Row: Passenger;
    Insert: Partial<Passenger>;
    Update: Partial<Passenger>;
    Relationships: [];
  };
};
type Database = {
  __InternalSupabase: { PostgrestVersion: '14' };
  public: { Tables: Tables; Views: Record<never, never>; Functions: Record<never, never> };
};
type Rest = PostgrestClient<Database>;
type List = ReturnType<typeof all>;

/** A to F, told by the first letter of their names; F is as another program may have left her. */
const ROWS: Passenger[] = [
  person('a', true, 1, 'Ann Adams', 'female', 29.5, 0, 0, 211.3375),
  person('b', false, 3, 'Bob Brown', 'male', 22, 1, 0, 7.25),
  person('c', true, 3, "Carl O'Brien", 'male', 4, 0, 2, 15.9),
  person('d', false, 2, 'Dora, Dr. (née: "D\\D")', 'female', 61, 0, 0, 0),
  person('e', false, 3, 'Eve 100% + more; a*b_c', 'female', 22, 0, 0, 8.05),
  person('f', null, 1, 'Fay', 'female', null, 0, 0, null),
];
const [A, B, C, D, E, F] = ROWS as [
  Passenger,
  Passenger,
  Passenger,
  Passenger,
  Passenger,
  Passenger,
];
const NOBODY = id('9');
const NEW = person('7', true, 2, 'Gus', 'male', 33, 1, 1, 13);
const NEWER = person('8', false, 3, 'Hal', 'male', 44, 0, 0, 14.5);

function id(digit: string): string {
  return `0192f0c1-2f3a-7bcd-8123-45678900000${digit}`;
}

function person(
  digit: string,
  survived: boolean | null,
  passengerClass: number,
  name: string,
  sex: string,
  age: number | null,
  siblingsOrSpousesAboard: number,
  parentsOrChildrenAboard: number,
  fare: number | null,
): Passenger {
  const aboard = { siblingsOrSpousesAboard, parentsOrChildrenAboard };
  return { uuid: id(digit), survived, passengerClass, name, sex, age, ...aboard, fare };
}

function letters(rows: { name: string }[] | null): string {
  return (rows ?? []).map(({ name }) => name[0]).join('');
}

let database: TestDatabase;
let service: TestService;
let rest: Rest;

/** The table as python-crud-api makes it: any column but the key may be null. */
before(async () => {
  database = await startDatabase();
  await database.sql`
    create table titanic (uuid uuid primary key, survived bool, "passengerClass" int,
      name varchar(150), sex varchar(6), age float, "siblingsOrSpousesAboard" int,
      "parentsOrChildrenAboard" int, fare float)`;
  service = await startReady({ DATABASE_URL: database.url, AUTH: 'none' });
  rest = new PostgrestClient<Database>(`${service.url}/rest/v1`);
});

after(async () => {
  await service?.stop();
  await database?.stop();
});

beforeEach(async () => {
  const { sql } = database;
  await sql`truncate titanic`;
  await sql`insert into titanic select * from jsonb_populate_recordset(null::titanic, ${sql.json(ROWS)})`;
});

function passengers() {
  return rest.from('passengers');
}

function all() {
  return passengers().select();
}

/** A table that only a faulty client names. */
function unknownTable(name: string) {
  return rest.from(name as 'passengers');
}

/** The table, or the rows of some names, as PostgreSQL has them. */
async function stored(...uuids: string[]): Promise<Passenger[]> {
  const { sql } = database;
  const rows = uuids.length
    ? await sql`select * from titanic where uuid in ${sql(uuids)} order by uuid`
    : await sql`select * from titanic order by uuid`;
  return rows.map((row) => ({ ...row }) as Passenger);
}

/** Fails unless the table holds what each test begins with. */
async function assertUnchanged(): Promise<void> {
  assert.deepEqual(await stored(), ROWS);
}

// --- postgrest-js ---------------------------------------------------------------

describe('postgrest-js filters', () => {
  const filters: [criterion: string, filter: (list: List) => List, expected: string][] = [
    ['eq on text', (list) => list.eq('name', 'Ann Adams'), 'A'],
    ['eq on a boolean, true', (list) => list.eq('survived', true), 'AC'],
    ['eq on a boolean, false', (list) => list.eq('survived', false), 'BDE'],
    ['eq on an integer', (list) => list.eq('passengerClass', 3), 'BCE'],
    ['eq on a double', (list) => list.eq('fare', 211.3375), 'A'],
    ['eq on the key', (list) => list.eq('uuid', D.uuid), 'D'],
    ['eq on the key in capitals', (list) => list.eq('uuid', D.uuid.toUpperCase()), 'D'],
    ['eq on all of , . : ( ) " \\', (list) => list.eq('name', D.name), 'D'],
    ['eq on all of % + ; *', (list) => list.eq('name', E.name), 'E'],
    ['neq, which leaves null out', (list) => list.neq('survived', true), 'BDE'],
    ['gt', (list) => list.gt('age', 22), 'AD'],
    ['gte', (list) => list.gte('age', 22), 'ABDE'],
    ['lt', (list) => list.lt('age', 22), 'C'],
    ['lte', (list) => list.lte('age', 22), 'BCE'],
    ['gte and lte on one column', (list) => list.gte('age', 5).lte('age', 25), 'BE'],
    ['like with %', (list) => list.like('name', 'B%'), 'B'],
    ['like with *', (list) => list.like('name', '*Brown'), 'B'],
    ['like with an apostrophe', (list) => list.like('name', "%O'Brien%"), 'C'],
    ['like with an escaped %', (list) => list.like('name', '%100\\%%'), 'E'],
    ['like with an escaped _', (list) => list.like('name', '%b\\_c'), 'E'],
    ['like in another case', (list) => list.like('name', '%BROWN%'), ''],
    ['like with SQL in it', (list) => list.like('name', "%' or 1=1 --"), ''],
    ['ilike', (list) => list.ilike('name', '%BR%'), 'BC'],
    ['ilike with punctuation', (list) => list.ilike('name', '%, dr. (NÉE:%'), 'D'],
    ['likeAllOf', (list) => list.likeAllOf('name', ['%n%', '%A%']), 'A'],
    ['likeAnyOf', (list) => list.likeAnyOf('name', ['Ann%', '*Brown']), 'AB'],
    ['likeAnyOf with a quoted comma', (list) => list.likeAnyOf('name', ['"Dora, Dr.%"']), 'D'],
    ['ilikeAllOf', (list) => list.ilikeAllOf('name', ['%B%', '%R%']), 'BCE'],
    ['ilikeAnyOf', (list) => list.ilikeAnyOf('name', ['fay', 'EVE%']), 'EF'],
    ['regexMatch', (list) => list.regexMatch('name', '^[AB]'), 'AB'],
    ['regexMatch in another case', (list) => list.regexMatch('name', '^[ab]'), ''],
    ['regexIMatch', (list) => list.regexIMatch('name', '^[ab]'), 'AB'],
    ['is null', (list) => list.is('age', null), 'F'],
    ['is true', (list) => list.is('survived', true), 'AC'],
    ['is false', (list) => list.is('survived', false), 'BDE'],
    ['is unknown', (list) => list.filter('survived', 'is', 'unknown'), 'F'],
    ['is not_null', (list) => list.filter('survived', 'is', 'not_null'), 'ABCDE'],
    ['isDistinct, which counts null in', (list) => list.isDistinct('survived', true), 'BDEF'],
    ['in of integers', (list) => list.in('passengerClass', [1, 2]), 'ADF'],
    ['in of texts', (list) => list.in('name', ['Ann Adams', 'Fay']), 'AF'],
    ['in of keys', (list) => list.in('uuid', [A.uuid, F.uuid, NOBODY]), 'AF'],
    ['in of a value with a comma', (list) => list.in('name', ['Bob Brown', 'x,y']), 'B'],
    ['in of none', (list) => list.in('passengerClass', []), ''],
    ['in of booleans', (list) => list.in('survived', [true]), 'AC'],
    ['in of quoted integers', (list) => list.filter('passengerClass', 'in', '("1","2")'), 'ADF'],
    ['not.in of quoted integers', (list) => list.not('passengerClass', 'in', '("1","2")'), 'BCE'],
    ['notIn', (list) => list.notIn('passengerClass', [3]), 'ADF'],
    ['match', (list) => list.match({ passengerClass: 3, sex: 'male' }), 'BC'],
    ['not eq', (list) => list.not('passengerClass', 'eq', 3), 'ADF'],
    ['not ilike', (list) => list.not('name', 'ilike', '%b%'), 'ADF'],
    ['not is null', (list) => list.filter('age', 'not.is', 'null'), 'ABCDE'],
    ['not is true', (list) => list.filter('survived', 'not.is', 'true'), 'BDEF'],
    ['or', (list) => list.or('age.lt.5,passengerClass.eq.2'), 'CD'],
    ['or with and', (list) => list.or('and(sex.eq.male,age.gt.10),name.eq.Fay'), 'BF'],
    ['or with not.and', (list) => list.or('not.and(age.gte.5,sex.eq.female),age.eq.61'), 'BCD'],
    ['or with in and is', (list) => list.or('passengerClass.in.(2),age.is.null'), 'DF'],
    ['or with not.in', (list) => list.or('passengerClass.not.in.("1","3"),age.is.null'), 'DF'],
    [
      'or with quotes and backslashes',
      (list) => list.or('name.eq."Dora, Dr. (née: \\"D\\\\D\\")",name.eq.Fay'),
      'DF',
    ],
    ['or with an apostrophe', (list) => list.or("name.like.*O'Brien*,age.is.null"), 'CF'],
    ['or with (any)', (list) => list.or('name.like(any).{Ann*,Bob*},age.eq.4'), 'ABC'],
    [
      'two of or, which are ANDed',
      (list) => list.or('sex.eq.male,age.gt.60').or('survived.is.true,fare.eq.0'),
      'CD',
    ],
    ['textSearch', (list) => list.textSearch('name', 'Adams & Ann'), 'A'],
    [
      'textSearch with config',
      (list) => list.textSearch('name', 'brown', { config: 'english' }),
      'B',
    ],
    ['textSearch plain', (list) => list.textSearch('name', 'brown bob', { type: 'plain' }), 'B'],
    ['textSearch phrase', (list) => list.textSearch('name', 'brown bob', { type: 'phrase' }), ''],
    [
      'textSearch websearch with config',
      (list) => list.textSearch('name', 'brown or adams', { type: 'websearch', config: 'english' }),
      'AB',
    ],
  ];
  for (const [criterion, filter, expected] of filters) {
    test(`${criterion} finds ${expected || 'none'}`, async () => {
      const { data, error, status } = await filter(passengers().select()).order('name');
      assert.deepEqual({ error, status }, { error: null, status: 200 });
      assert.equal(letters(data), expected);
    });
  }
});

describe('postgrest-js order, limit and range', () => {
  const pages: [criterion: string, page: (list: List) => List, expected: string][] = [
    ['no order is by the key', (list) => list, 'ABCDEF'],
    ['order ascending, nulls last', (list) => list.order('age'), 'CBEADF'],
    ['order descending, nulls first', (list) => list.order('age', { ascending: false }), 'FDABEC'],
    [
      'order descending, nulls last',
      (list) => list.order('age', { ascending: false, nullsFirst: false }),
      'DABECF',
    ],
    ['order ascending, nulls first', (list) => list.order('age', { nullsFirst: true }), 'FCBEAD'],
    [
      'order by two columns',
      (list) => list.order('passengerClass').order('age', { ascending: false, nullsFirst: false }),
      'AFDBEC',
    ],
    ['limit', (list) => list.order('name').limit(2), 'AB'],
    ['limit of none', (list) => list.limit(0), ''],
    ['range', (list) => list.order('name').range(2, 3), 'CD'],
    ['range over the end', (list) => list.order('name').range(4, 10), 'EF'],
    ['range past the end', (list) => list.order('name').range(10, 20), ''],
  ];
  for (const [criterion, page, expected] of pages) {
    test(`${criterion} gives ${expected || 'none'}`, async () => {
      const { data, error, status } = await page(passengers().select());
      assert.deepEqual({ error, status }, { error: null, status: 200 });
      assert.equal(letters(data), expected);
    });
  }
});

describe('postgrest-js select', () => {
  const members: [columns: string, expected: unknown][] = [
    ['*', A],
    ['', A],
    ['name, age', { name: 'Ann Adams', age: 29.5 }],
    ['age,name', { age: 29.5, name: 'Ann Adams' }],
    ['who:name', { who: 'Ann Adams' }],
    ['age::text', { age: '29.5' }],
    ['years:age::int', { years: 30 }],
    ['survived::text,uuid', { survived: 'true', uuid: A.uuid }],
    ['"name","passengerClass"', { name: 'Ann Adams', passengerClass: 1 }],
    ['*,who:name', { ...A, who: 'Ann Adams' }],
  ];
  for (const [columns, expected] of members) {
    test(`select(${JSON.stringify(columns)}) gives these members`, async () => {
      const { data, error } = await passengers().select(columns).eq('uuid', A.uuid);
      assert.equal(error, null);
      assert.deepEqual(data, [expected]);
      assert.deepEqual(
        Object.keys((data as unknown as object[])[0]!),
        Object.keys(expected as object),
      );
    });
  }

  const groups: [columns: string, order: string, expected: unknown][] = [
    [
      'passengerClass,count()',
      'passengerClass',
      [
        [1, 2],
        [2, 1],
        [3, 3],
      ],
    ],
    [
      'sex,age.max()',
      'sex',
      [
        ['female', 61],
        ['male', 22],
      ],
    ],
    [
      'sex,youngest:age.min()',
      'sex',
      [
        ['female', 22],
        ['male', 4],
      ],
    ],
    [
      'survived,passengerClass.avg()::text',
      'survived',
      [
        [false, '2.6666666666666667'],
        [true, '2.0000000000000000'],
        [null, '1.00000000000000000000'],
      ],
    ],
  ];
  for (const [columns, order, expected] of groups) {
    test(`select(${JSON.stringify(columns)}) groups`, async () => {
      const { data, error } = await passengers().select(columns).order(order);
      assert.equal(error, null);
      assert.deepEqual((data as unknown as object[]).map(Object.values), expected);
    });
  }

  const totals: [columns: string, expected: unknown][] = [
    ['count()', { count: 6 }],
    ['n:count(),age.sum()', { n: 6, sum: 138.5 }],
    ['age.count()', { count: 5 }],
  ];
  for (const [columns, expected] of totals) {
    test(`select(${JSON.stringify(columns)}) is of the whole table`, async () => {
      const { data, error } = await passengers().select(columns);
      assert.equal(error, null);
      assert.deepEqual(data, [expected]);
    });
  }
});

describe('postgrest-js single, maybeSingle, csv, head and count', () => {
  test('single gives the row itself', async () => {
    const { data, error, status } = await passengers().select().eq('uuid', A.uuid).single();
    assert.deepEqual({ data, error, status }, { data: A, error: null, status: 200 });
  });

  for (const [rows, age] of [
    [0, 99],
    [2, 22],
  ] as const) {
    test(`single of ${rows} rows is 406 PGRST116`, async () => {
      const { data, error, status } = await passengers().select().eq('age', age).single();
      assert.deepEqual([data, status, error?.code], [null, 406, 'PGRST116']);
      assert.equal(error?.details, `The result contains ${rows} rows`);
    });
  }

  test('single of one of many by limit gives the row', async () => {
    const { data } = await passengers().select().order('name').limit(1).single();
    assert.deepEqual(data, A);
  });

  test('maybeSingle of one row gives it', async () => {
    const { data, error } = await passengers().select().eq('uuid', A.uuid).maybeSingle();
    assert.deepEqual({ data, error }, { data: A, error: null });
  });

  test('maybeSingle of no row is null and no error', async () => {
    const { data, error } = await passengers().select().eq('uuid', NOBODY).maybeSingle();
    assert.deepEqual({ data, error }, { data: null, error: null });
  });

  test('maybeSingle of two rows is PGRST116', async () => {
    const { data, error } = await passengers().select().eq('age', 22).maybeSingle();
    assert.deepEqual([data, error?.code], [null, 'PGRST116']);
  });

  test('throwOnError throws what was answered', async () => {
    const list = passengers().select().eq('uuid', NOBODY).single().throwOnError();
    await assert.rejects(async () => list, { name: 'PostgrestError', code: 'PGRST116' });
  });

  test('csv has a header line and quotes what needs it', async () => {
    const { data, error, status } = await passengers()
      .select('name,age')
      .order('name')
      .limit(6)
      .csv();
    assert.deepEqual({ error, status }, { error: null, status: 200 });
    const lines = String(data).trimEnd().split(/\r?\n/);
    assert.deepEqual([lines.length, lines[0], lines[6]], [7, 'name,age', 'Fay,']);
    assert.match(lines[1]!, /^"?Ann Adams"?,29\.5$/);
    assert.match(lines[4]!, /^"Dora, Dr\. \(née: ""D\\{1,2}D""\)",61$/);
  });

  test('csv of all columns has them in the declared order', async () => {
    const { data } = await passengers().select().eq('uuid', B.uuid).csv();
    const [header, row = ''] = String(data).trimEnd().split(/\r?\n/);
    assert.equal(header, Object.keys(B).join(','));
    assert.match(row, new RegExp(`^${B.uuid},f(alse)?,3,"?Bob Brown"?,male,22,1,0,7.25$`));
  });

  for (const count of ['exact', 'planned', 'estimated'] as const) {
    test(`count ${count} counts past the limit`, async () => {
      const list = await passengers().select('*', { count }).order('name').limit(2);
      assert.equal(list.error, null);
      assert.equal(letters(list.data), 'AB');
      assert.ok(
        count === 'exact' ? list.count === 6 : Number.isInteger(list.count),
        `${list.count}`,
      );
    });

    test(`head with count ${count} has no body`, async () => {
      const list = await passengers().select('*', { count, head: true });
      assert.deepEqual([list.data, list.error], [null, null]);
      assert.ok(
        count === 'exact' ? list.count === 6 : Number.isInteger(list.count),
        `${list.count}`,
      );
    });
  }

  const statuses: [criterion: string, list: () => List, status: number, count: number | null][] = [
    ['all, counted', () => passengers().select('*', { count: 'exact' }), 200, 6],
    ['a part, counted', () => passengers().select('*', { count: 'exact' }).limit(5), 206, 6],
    ['a part, not counted', () => passengers().select().limit(5), 200, null],
    ['none, counted', () => passengers().select('*', { count: 'exact' }).eq('age', 99), 200, 0],
    [
      'HEAD of a part',
      () => passengers().select('*', { count: 'exact', head: true }).limit(1),
      206,
      6,
    ],
    [
      'HEAD of none',
      () => passengers().select('*', { count: 'exact', head: true }).eq('age', 99),
      200,
      0,
    ],
    [
      'filtered, counted',
      () => passengers().select('*', { count: 'exact' }).eq('survived', true),
      200,
      2,
    ],
  ];
  for (const [criterion, list, status, count] of statuses) {
    test(`${criterion}, is ${status} with count ${count}`, async () => {
      const answer = await list();
      assert.deepEqual([answer.error, answer.status, answer.count], [null, status, count]);
    });
  }

  test('range past the end, counted, is 416 PGRST103', async () => {
    const { error, status } = await passengers().select('*', { count: 'exact' }).range(10, 19);
    assert.deepEqual([status, error?.code], [416, 'PGRST103']);
    assert.equal(error?.details, 'An offset of 10 was requested, but there are only 6 rows.');
  });

  test('abortSignal stops the statement in the database', async () => {
    const waiting = () =>
      database.sql`select from pg_stat_activity where datname = current_database()
        and wait_event_type = 'Lock' and query like '%titanic%'`;
    await database.sql.begin(async (sql) => {
      await sql`lock table titanic in access exclusive mode`;
      const leaving = new AbortController();
      const list = passengers()
        .select()
        .retry(false)
        .abortSignal(leaving.signal)
        .then(({ error }) => error);
      await until(async () => (await waiting()).count === 1);
      leaving.abort();
      assert.match(String((await list)?.message), /AbortError/);
      await until(async () => (await waiting()).count === 0, 500);
    });
  });
});

describe('postgrest-js insert', () => {
  test('one row is stored; nothing comes back', async () => {
    const { data, error, status } = await passengers().insert(NEW);
    assert.deepEqual({ data, error, status }, { data: null, error: null, status: 201 });
    assert.deepEqual(await stored(NEW.uuid), [NEW]);
  });

  test('one row without its key gets one', async () => {
    const { uuid, ...rest } = NEW;
    const { data, error, status } = await passengers().insert(rest).select().single();
    assert.deepEqual({ error, status }, { error: null, status: 201 });
    assert.match(data!.uuid, /^[\da-f]{8}-[\da-f]{4}-7/);
    assert.deepEqual(data, { ...NEW, uuid: data?.uuid });
    assert.deepEqual(await stored(data!.uuid), [data]);
  });

  test('one row with select comes back in an array', async () => {
    const { data, status } = await passengers().insert(NEW).select();
    assert.deepEqual({ data, status }, { data: [NEW], status: 201 });
  });

  test('select of some columns shapes what comes back', async () => {
    const { data } = await passengers().insert(NEW).select('who:name,age::text');
    assert.deepEqual(data, [{ who: 'Gus', age: '33' }]);
  });

  test('many rows come back in their order', async () => {
    const { data, error, status } = await passengers().insert([NEWER, NEW]).select();
    assert.deepEqual({ data, error, status }, { data: [NEWER, NEW], error: null, status: 201 });
    assert.deepEqual(await stored(NEW.uuid, NEWER.uuid), [NEW, NEWER]);
  });

  test('no rows are stored from an empty array', async () => {
    const { data, error, status } = await passengers().insert([]).select();
    assert.deepEqual({ data, error, status }, { data: [], error: null, status: 201 });
    await assertUnchanged();
  });

  test('count exact is the number of rows', async () => {
    const { count, error } = await passengers().insert([NEW, NEWER], { count: 'exact' });
    assert.deepEqual({ count, error }, { count: 2, error: null });
  });

  for (const defaultToNull of [true, false]) {
    test(`ragged keys with defaultToNull ${defaultToNull} get the missing key made`, async () => {
      const { uuid, ...keyless } = NEWER;
      const rows = [NEW, keyless];
      const { data, error } = await passengers().insert(rows, { defaultToNull }).select();
      assert.equal(error, null);
      assert.deepEqual(
        data?.map(({ name }) => name),
        ['Gus', 'Hal'],
      );
      assert.equal(data?.[0]?.uuid, NEW.uuid);
      assert.match(data?.[1]?.uuid ?? '', /^[\da-f]{8}-[\da-f]{4}-7/);
    });

    test(`ragged keys with defaultToNull ${defaultToNull} refuse a missing column`, async () => {
      const { age, ...ageless } = NEWER;
      const { error, status } = await passengers().insert([NEW, ageless], { defaultToNull });
      assert.equal(status, 422);
      assert.match(JSON.stringify(error), /"pointer":"\/1\/age"/);
      await assertUnchanged();
    });
  }

  const refused: [criterion: string, rows: object | object[], status: number, code: string][] = [
    ['a key that is there', A, 409, '23505'],
    ['a key that is there, among new ones', [NEW, A], 409, '23505'],
    ['a key twice', [NEW, NEW], 409, '23505'],
    ['an unknown column', { ...NEW, cabin: 'C85' }, 422, 'PGRST204'],
    ['an unknown column in one of many', [NEW, { ...NEWER, cabin: 'C85' }], 422, 'PGRST204'],
    ['an age that is none', { ...NEW, age: 'old' }, 422, '22023'],
    ['a null', { ...NEW, age: null }, 422, '22023'],
  ];
  for (const [criterion, rows, status, code] of refused) {
    test(`${criterion} is ${status} ${code} and nothing is stored`, async () => {
      const answer = await passengers().insert(rows as Passenger);
      assert.deepEqual([answer.status, answer.error?.code, answer.data], [status, code, null]);
      assert.equal(typeof answer.error?.message, 'string');
      await assertUnchanged();
    });
  }

  test('single of two rows is 406 PGRST116 and nothing is stored', async () => {
    const { error, status } = await passengers().insert([NEW, NEWER]).select().single();
    assert.deepEqual([status, error?.code], [406, 'PGRST116']);
    await assertUnchanged();
  });
});

describe('postgrest-js upsert', () => {
  const other = { ...A, name: 'Ann Other', age: 30 };

  test('a row that is there is replaced: 200', async () => {
    const { data, error, status } = await passengers().upsert(other).select();
    assert.deepEqual({ data, error, status }, { data: [other], error: null, status: 200 });
    assert.deepEqual(await stored(A.uuid), [other]);
  });

  test('a row that is not there is inserted: 201', async () => {
    const { data, error, status } = await passengers().upsert(NEW).select().single();
    assert.deepEqual({ data, error, status }, { data: NEW, error: null, status: 201 });
  });

  test('of both kinds both come back: 201', async () => {
    const { data, error, status } = await passengers().upsert([other, NEW]).select();
    assert.deepEqual({ data, error, status }, { data: [other, NEW], error: null, status: 201 });
    assert.equal((await stored()).length, 7);
  });

  test('without select nothing comes back', async () => {
    const { data, error, status } = await passengers().upsert([other, NEW]);
    assert.deepEqual({ data, error, status }, { data: null, error: null, status: 201 });
    assert.deepEqual(await stored(A.uuid, NEW.uuid), [NEW, other]);
  });

  test('onConflict may name the key', async () => {
    const { data, error } = await passengers().upsert(other, { onConflict: 'uuid' }).select();
    assert.deepEqual({ data, error }, { data: [other], error: null });
  });

  test('ignoreDuplicates keeps the row that is there and gives the inserted', async () => {
    const list = passengers().upsert([other, NEW], { ignoreDuplicates: true }).select();
    const { data, error, status } = await list;
    assert.deepEqual({ data, error, status }, { data: [NEW], error: null, status: 201 });
    assert.deepEqual(await stored(A.uuid, NEW.uuid), [NEW, A]);
  });

  test('ignoreDuplicates that inserts nothing is 200', async () => {
    const list = passengers()
      .upsert([other], { ignoreDuplicates: true, onConflict: 'uuid' })
      .select();
    const { data, error, status } = await list;
    assert.deepEqual({ data, error, status }, { data: [], error: null, status: 200 });
    await assertUnchanged();
  });

  test('count exact is the number of rows', async () => {
    const { count } = await passengers().upsert([other, NEW], { count: 'exact' });
    assert.equal(count, 2);
  });

  test('defaultToNull false makes the missing key', async () => {
    const { uuid, ...keyless } = NEW;
    const rows = [other, keyless];
    const { data, error, status } = await passengers()
      .upsert(rows, { defaultToNull: false })
      .select();
    assert.deepEqual([error, status, letters(data)], [null, 201, 'AG']);
  });

  const refused: [criterion: string, onConflict: string, code: string][] = [
    ['a column that is not unique', 'name', '42P10'],
    ['an unknown column', 'cabin', '42703'],
    ['a column full of quotes', `na"me'); drop table titanic; --`, '42703'],
  ];
  for (const [criterion, onConflict, code] of refused) {
    test(`onConflict of ${criterion} is 400 ${code}`, async () => {
      const { error, status } = await passengers().upsert(other, { onConflict });
      assert.deepEqual([status, error?.code], [400, code]);
      await assertUnchanged();
    });
  }

  test('a part of a row that is there is refused, for it could not be inserted', async () => {
    const { error, status } = await passengers().upsert({ uuid: A.uuid, age: 31 });
    assert.equal(status, 422);
    assert.match(JSON.stringify(error), /"pointer":"\/name"/);
    await assertUnchanged();
  });

  test('the same key twice in one array is refused', async () => {
    const { error, status } = await passengers().upsert([other, A]).select();
    assert.ok(status >= 400 && status < 500, `${status} ${JSON.stringify(error)}`);
    await assertUnchanged();
  });

  test('single of two rows is 406 PGRST116 and nothing is stored', async () => {
    const { error, status } = await passengers().upsert([other, NEW]).select().single();
    assert.deepEqual([status, error?.code], [406, 'PGRST116']);
    await assertUnchanged();
  });
});

describe('postgrest-js update', () => {
  test('sets the rows that the filter finds; nothing comes back', async () => {
    const { data, error, status } = await passengers().update({ fare: 1 }).eq('passengerClass', 3);
    assert.deepEqual({ data, error, status }, { data: null, error: null, status: 204 });
    const expected = ROWS.map((row) => (row.passengerClass === 3 ? { ...row, fare: 1 } : row));
    assert.deepEqual(await stored(), expected);
  });

  test('gives the rows with select', async () => {
    const { data, error, status } = await passengers()
      .update({ age: 5 })
      .eq('uuid', C.uuid)
      .select();
    assert.deepEqual(
      { data, error, status },
      { data: [{ ...C, age: 5 }], error: null, status: 200 },
    );
  });

  test('gives the columns that select names', async () => {
    const { data } = await passengers()
      .update({ age: 5 })
      .eq('uuid', C.uuid)
      .select('name,years:age');
    assert.deepEqual(data, [{ name: C.name, years: 5 }]);
  });

  test('gives the object with single', async () => {
    const { data, status } = await passengers()
      .update({ age: 5 })
      .eq('uuid', C.uuid)
      .select()
      .single();
    assert.deepEqual({ data, status }, { data: { ...C, age: 5 }, status: 200 });
  });

  test('whose filter names the column being set gives the rows it set', async () => {
    const { data, status } = await passengers()
      .update({ survived: false })
      .eq('survived', true)
      .select();
    assert.deepEqual(
      [status, letters(data?.toSorted((a, b) => (a.name < b.name ? -1 : 1)) ?? [])],
      [200, 'AC'],
    );
    assert.equal((await stored()).filter(({ survived }) => survived).length, 0);
  });

  test('of no row is 204 without select', async () => {
    const { error, status } = await passengers().update({ age: 5 }).eq('uuid', NOBODY);
    assert.deepEqual({ error, status }, { error: null, status: 204 });
  });

  test('of no row is an empty array with select', async () => {
    const { data, error, status } = await passengers()
      .update({ age: 5 })
      .eq('uuid', NOBODY)
      .select();
    assert.deepEqual({ data, error, status }, { data: [], error: null, status: 200 });
  });

  test('count exact is the number of rows', async () => {
    const { count } = await passengers()
      .update({ age: 5 }, { count: 'exact' })
      .eq('passengerClass', 3);
    assert.equal(count, 3);
  });

  test('count exact of no row is 0', async () => {
    const { count } = await passengers().update({ age: 5 }, { count: 'exact' }).eq('uuid', NOBODY);
    assert.equal(count, 0);
  });

  test('maxAffected that holds changes the rows', async () => {
    const list = passengers().update({ age: 5 }).eq('age', 22).maxAffected(2).select();
    const { data, error } = await list;
    assert.deepEqual([error, data?.length], [null, 2]);
  });

  test('maxAffected that is exceeded is 400 PGRST124 and changes nothing', async () => {
    const { error, status } = await passengers()
      .update({ age: 5 })
      .eq('passengerClass', 3)
      .maxAffected(2);
    assert.deepEqual(
      [status, error?.code, error?.details],
      [400, 'PGRST124', 'The query affects 3 rows'],
    );
    await assertUnchanged();
  });

  test('single of two rows is 406 PGRST116 and changes nothing', async () => {
    const { error, status } = await passengers()
      .update({ fare: 5 })
      .eq('age', 22)
      .select()
      .single();
    assert.deepEqual(
      [status, error?.code, error?.details],
      [406, 'PGRST116', 'The result contains 2 rows'],
    );
    await assertUnchanged();
  });

  test('single of no row is 406 PGRST116', async () => {
    const { error, status } = await passengers()
      .update({ fare: 5 })
      .eq('uuid', NOBODY)
      .select()
      .single();
    assert.deepEqual([status, error?.code], [406, 'PGRST116']);
  });

  test('without a filter is 400 with a hint and changes nothing', async () => {
    const { error, status } = await passengers().update({ fare: 5 });
    assert.equal(status, 400);
    assert.ok(error?.hint);
    await assertUnchanged();
  });

  test('without a filter but with maxAffected changes all', async () => {
    const { error, status } = await passengers().update({ fare: 5 }).maxAffected(6);
    assert.deepEqual({ error, status }, { error: null, status: 204 });
    assert.ok((await stored()).every(({ fare }) => fare === 5));
  });

  const refused: [criterion: string, part: object, status: number, code: string][] = [
    ['an unknown column', { cabin: 'C85' }, 422, 'PGRST204'],
    ['an age that is none', { age: 'old' }, 422, '22023'],
    ['a class that is none', { passengerClass: 4 }, 422, '22023'],
  ];
  for (const [criterion, part, status, code] of refused) {
    test(`to ${criterion} is ${status} ${code}`, async () => {
      const answer = await passengers()
        .update(part as Partial<Passenger>)
        .eq('uuid', A.uuid);
      assert.deepEqual([answer.status, answer.error?.code], [status, code]);
      await assertUnchanged();
    });
  }

  test('with limit is refused, for it would not limit what is set', async () => {
    const { error, status } = await passengers().update({ fare: 5 }).eq('age', 22).limit(1);
    assert.equal(status, 400);
    assert.ok(error?.message);
    await assertUnchanged();
  });
});

describe('postgrest-js delete', () => {
  test('deletes what the filter finds; nothing comes back', async () => {
    const { data, error, status } = await passengers().delete().eq('survived', true);
    assert.deepEqual({ data, error, status }, { data: null, error: null, status: 204 });
    assert.equal(letters(await stored()), 'BDEF');
  });

  test('gives the rows with select', async () => {
    const { data, error, status } = await passengers().delete().eq('uuid', D.uuid).select();
    assert.deepEqual({ data, error, status }, { data: [D], error: null, status: 200 });
    assert.deepEqual(await stored(D.uuid), []);
  });

  test('gives the columns that select names, of one object with single', async () => {
    const { data } = await passengers().delete().eq('uuid', D.uuid).select('age').single();
    assert.deepEqual(data, { age: 61 });
  });

  test('of no row is 204 without select', async () => {
    const { error, status } = await passengers().delete().eq('uuid', NOBODY);
    assert.deepEqual({ error, status }, { error: null, status: 204 });
  });

  test('of no row is an empty array with select', async () => {
    const { data, status } = await passengers().delete().eq('uuid', NOBODY).select();
    assert.deepEqual({ data, status }, { data: [], status: 200 });
  });

  test('count exact is the number of rows', async () => {
    const { count } = await passengers()
      .delete({ count: 'exact' })
      .in('uuid', [A.uuid, B.uuid, NOBODY]);
    assert.equal(count, 2);
  });

  test('by or and in deletes what both find', async () => {
    await passengers().delete().or('age.eq.22,age.is.null').in('passengerClass', [1, 2]);
    assert.equal(letters(await stored()), 'ABCDE');
  });

  test('maxAffected that is exceeded is 400 PGRST124 and deletes nothing', async () => {
    const { error, status } = await passengers().delete().eq('passengerClass', 3).maxAffected(2);
    assert.deepEqual([status, error?.code], [400, 'PGRST124']);
    await assertUnchanged();
  });

  test('maxAffected that holds deletes', async () => {
    const { error, status } = await passengers().delete().eq('passengerClass', 3).maxAffected(3);
    assert.deepEqual({ error, status }, { error: null, status: 204 });
    assert.equal(letters(await stored()), 'ADF');
  });

  test('single of two rows is 406 PGRST116 and deletes nothing', async () => {
    const { error, status } = await passengers().delete().eq('age', 22).select().single();
    assert.deepEqual([status, error?.code], [406, 'PGRST116']);
    await assertUnchanged();
  });

  test('without a filter is 400 with a hint and deletes nothing', async () => {
    const { error, status } = await passengers().delete();
    assert.equal(status, 400);
    assert.ok(error?.hint);
    await assertUnchanged();
  });
});

describe('postgrest-js and what the service does not have', () => {
  const refused: [
    criterion: string,
    ask: () => PromiseLike<{ status: number; error: unknown }>,
    status: number,
    code: string,
  ][] = [
    ['embedding', () => passengers().select('*,cabins(*)'), 400, 'PGRST200'],
    ['embedding by a hint', () => passengers().select('name,cabins!fk(deck)'), 400, 'PGRST200'],
    ['inner embedding', () => passengers().select('name,cabins!inner(*)'), 400, 'PGRST200'],
    ['embedding under an alias', () => passengers().select('cabin:cabins(*)'), 400, 'PGRST200'],
    ['nested embedding', () => passengers().select('cabins(deck,ships(name))'), 400, 'PGRST200'],
    ['spread embedding', () => passengers().select('name,...cabins(deck)'), 400, 'PGRST200'],
    [
      'embedding in what an insert gives',
      () => passengers().insert(NEW).select('*,cabins(*)'),
      400,
      'PGRST200',
    ],
    [
      'embedding in what an update gives',
      () => passengers().update({ age: 1 }).eq('uuid', A.uuid).select('*,cabins(*)'),
      400,
      'PGRST200',
    ],
    [
      'embedding in what a delete gives',
      () => passengers().delete().eq('uuid', A.uuid).select('*,cabins(*)'),
      400,
      'PGRST200',
    ],
    [
      'a filter on an embedded table',
      () => passengers().select().eq('cabins.deck', 'A'),
      400,
      'PGRST108',
    ],
    [
      'an order of an embedded table',
      () => passengers().select().order('deck', { referencedTable: 'cabins' }),
      400,
      'PGRST108',
    ],
    [
      'an order by an embedded table',
      () => passengers().select().order('cabins(deck)'),
      400,
      'PGRST108',
    ],
    [
      'a limit of an embedded table',
      () => passengers().select().limit(1, { referencedTable: 'cabins' }),
      400,
      'PGRST108',
    ],
    [
      'or on an embedded table',
      () => passengers().select().or('deck.eq.A', { referencedTable: 'cabins' }),
      400,
      'PGRST108',
    ],
    ['rpc', () => rest.rpc('sink' as never, { ship: 1 } as never), 404, 'PGRST202'],
    ['rpc by GET', () => rest.rpc('sink' as never, {} as never, { get: true }), 404, 'PGRST202'],
    ['an unknown table', () => unknownTable('cabins').select(), 404, 'PGRST205'],
    ['an insert into an unknown table', () => unknownTable('cabins').insert(NEW), 404, 'PGRST205'],
    [
      'an update of an unknown table',
      () => unknownTable('cabins').update({ age: 1 }).eq('age', 2),
      404,
      'PGRST205',
    ],
    [
      'a delete from an unknown table',
      () => unknownTable('cabins').delete().eq('age', 2),
      404,
      'PGRST205',
    ],
    [
      'another schema',
      () =>
        rest
          .schema('private' as 'public')
          .from('passengers')
          .select(),
      406,
      'PGRST106',
    ],
    [
      'an insert into another schema',
      () =>
        rest
          .schema('private' as 'public')
          .from('passengers')
          .insert(NEW),
      406,
      'PGRST106',
    ],
    ['explain', () => passengers().select().explain(), 406, 'PGRST107'],
    [
      'explain as JSON',
      () => passengers().select().explain({ format: 'json', analyze: true }),
      406,
      'PGRST107',
    ],
    ['geojson', () => passengers().select().geojson(), 406, 'PGRST107'],
    ['stripNulls', () => passengers().select().stripNulls(), 406, 'PGRST107'],
    [
      'stripNulls of a single row',
      () => passengers().select().eq('uuid', F.uuid).single().stripNulls(),
      406,
      'PGRST107',
    ],
    ['contains', () => passengers().select().contains('name', ['Ann']), 400, 'PGRST100'],
    ['containedBy', () => passengers().select().containedBy('name', ['Ann']), 400, 'PGRST100'],
    ['overlaps', () => passengers().select().overlaps('name', ['Ann']), 400, 'PGRST100'],
    ['rangeGt', () => passengers().select().rangeGt('age', '[1,2]'), 400, 'PGRST100'],
    ['rangeAdjacent', () => passengers().select().rangeAdjacent('age', '[1,2]'), 400, 'PGRST100'],
    ['an unknown operator', () => passengers().select().filter('age', 'near', 3), 400, 'PGRST100'],
    [
      'an operator called toString',
      () => passengers().select().filter('age', 'toString', 3),
      400,
      'PGRST100',
    ],
    [
      'an unknown column in a filter',
      () =>
        passengers()
          .select()
          .eq('cabin' as 'name', 'C85'),
      400,
      '42703',
    ],
    ['an unknown column in select', () => passengers().select('cabin'), 400, '42703'],
    ['an unknown column in order', () => passengers().select().order('cabin'), 400, '42703'],
    ['an unknown column in or', () => passengers().select().or('cabin.eq.C85'), 400, '42703'],
    ['a column called constructor', () => passengers().select('constructor'), 400, '42703'],
    [
      'a column called __proto__',
      () => passengers().select().filter('__proto__', 'eq', 1),
      400,
      '42703',
    ],
    [
      'a value that is no integer',
      () => passengers().select().filter('passengerClass', 'eq', 'first'),
      400,
      '22P02',
    ],
    [
      'a value that is no boolean',
      () => passengers().select().filter('survived', 'eq', 'perhaps'),
      400,
      '22P02',
    ],
    ['a value that is no key', () => passengers().select().eq('uuid', '7'), 400, '22P02'],
    [
      'one of many values that is no integer',
      () => passengers().select().filter('passengerClass', 'in', '(1,x)'),
      400,
      '22P02',
    ],
    [
      'an update by a value that is no key',
      () => passengers().update({ age: 1 }).eq('uuid', '7'),
      400,
      '22P02',
    ],
    [
      'a delete by a value that is no key',
      () => passengers().delete().eq('uuid', '7'),
      400,
      '22P02',
    ],
    [
      'is of a value that is none',
      () => passengers().select().filter('survived', 'is', 'perhaps'),
      400,
      'PGRST100',
    ],
    ['an empty tree', () => passengers().select().or(''), 400, 'PGRST100'],
    ['an open tree', () => passengers().select().or('and(age.eq.1'), 400, 'PGRST100'],
  ];
  for (const [criterion, ask, status, code] of refused) {
    test(`${criterion} is ${status} ${code}`, async () => {
      const answer = await ask();
      const error = answer.error as { code: string; message: string } | null;
      assert.deepEqual([answer.status, error?.code], [status, code]);
      assert.ok(error?.message);
      await assertUnchanged();
    });
  }

  const paths: [criterion: string, ask: () => PromiseLike<{ status: number; error: unknown }>][] = [
    ['in select', () => passengers().select('name->first')],
    ['as text in select', () => passengers().select('first:name->>first')],
    ['with an index in select', () => passengers().select('name->0')],
    ['in a filter', () => passengers().select().filter('name->>first', 'eq', 'Ann')],
    ['in order', () => passengers().select().order('name->first')],
    ['in a tree', () => passengers().select().or('name->>first.eq.Ann,age.eq.1')],
  ];
  for (const [criterion, ask] of paths) {
    test(`a json path ${criterion} is refused as 42883, for no column is JSON`, async () => {
      const { status, error } = await ask();
      assert.ok(status === 400 || status === 404, `${status}`);
      assert.equal((error as { code: string } | null)?.code, '42883');
    });
  }

  test('getOpenApiSpec, whose document is another here, is 404 PGRST126', async () => {
    const { data, error, status } = await rest.getOpenApiSpec();
    assert.deepEqual([data, status, error?.code], [null, 404, 'PGRST126']);
  });

  test('the schema public is the one there is', async () => {
    const { data, error } = await rest
      .schema('public')
      .from('passengers')
      .select()
      .eq('uuid', A.uuid);
    assert.deepEqual({ data, error }, { data: [A], error: null });
  });

  test('rollback is not said to have been applied', async () => {
    const { error, status } = await passengers().insert(NEW).select().rollback();
    assert.deepEqual({ error, status }, { error: null, status: 201 });
    assert.deepEqual(await stored(NEW.uuid), [NEW]);
  });
});

// --- Another resource -----------------------------------------------------------

/** With a default, a column that may be null, and a name full of what the dialect is made of. */
const SEAT = `Mr. O'Neil's "seat", (a:b) \\ 100%`;
const BERTHS = `
  import { integer, main, resource, text } from '${new URL('../app.ts', import.meta.url)}';
  const columns = {
    number: integer(1, 999),
    deck: text(9, { default: 'A' }),
    note: text(50, { nullable: true }),
    ${JSON.stringify(SEAT)}: integer(0, 9, { default: 0 }),
  };
  const berths = resource({ path: 'berths', table: 'the "berths"', key: 'id', columns });
  main(berths, [], process.env).then(() => process.exit(0), () => process.exit(1));
`;

describe('postgrest-js and a resource with defaults and an odd name', () => {
  type Berth = { id: string; number: number; deck: string; note: string | null };
  type Berths = {
    Row: Berth;
    Insert: Partial<Berth>;
    Update: Record<string, unknown>;
    Relationships: [];
  };
  type Other = {
    __InternalSupabase: { PostgrestVersion: '14' };
    public: {
      Tables: { berths: Berths };
      Views: Record<never, never>;
      Functions: Record<never, never>;
    };
  };
  const quoted = `"${SEAT.replace(/["\\]/g, '\\$&')}"`;
  const key = (number: number) => ({ id: id(String(number)), number });
  const seats = [
    { ...key(1), deck: 'C', note: null, [SEAT]: 5 },
    { ...key(2), deck: 'B', note: 'wet', [SEAT]: 7 },
  ];
  let directory: string;
  let other: TestService;

  before(async () => {
    directory = await mkdtemp(join(tmpdir(), 'passengers test-'));
    const file = join(directory, 'berths.mts');
    await writeFile(file, BERTHS);
    other = await startReady({ DATABASE_URL: database.url, AUTH: 'none' }, { file });
  });
  beforeEach(async () => {
    const { sql } = database;
    const table = sql('the "berths"');
    await sql`truncate ${table}`;
    for (const seat of seats) {
      await sql`insert into ${table} select * from jsonb_populate_record(null::${table}, ${sql.json(seat)})`;
    }
  });
  after(async () => {
    await other?.stop();
    await rm(directory, { recursive: true });
  });

  function berths() {
    return new PostgrestClient<Other>(`${other.url}/rest/v1`).from('berths');
  }

  test('an insert of one row fills in what is missing', async () => {
    const { data, error } = await berths().insert(key(3)).select();
    assert.deepEqual([error, data], [null, [{ ...key(3), deck: 'A', note: null, [SEAT]: 0 }]]);
  });

  test('an insert of ragged rows with defaultToNull false fills in what is missing', async () => {
    const rows = [{ ...key(3), deck: 'D', note: 'dry' }, key(4)];
    const { data, error } = await berths().insert(rows, { defaultToNull: false }).select();
    const expected = [
      { ...key(3), deck: 'D', note: 'dry', [SEAT]: 0 },
      { ...key(4), deck: 'A', note: null, [SEAT]: 0 },
    ];
    assert.deepEqual([error, data], [null, expected]);
  });

  const members: [criterion: string, columns: string, expected: object][] = [
    ['by itself', quoted, { [SEAT]: 5 }],
    ['with a cast', `${quoted}::text`, { [SEAT]: '5' }],
    ['under an alias', `seat:${quoted}`, { seat: 5 }],
    ['as the alias of another', `${quoted}:deck`, { [SEAT]: 'C' }],
    ['as its own alias with a cast', `${quoted}:${quoted}::text`, { [SEAT]: '5' }],
  ];
  for (const [criterion, columns, expected] of members) {
    test(`select of the odd name ${criterion}`, async () => {
      const query = new URLSearchParams({ select: columns, number: 'eq.1' });
      const { status, json, text } = await other.get(`/rest/v1/berths?${query}`);
      assert.equal(status, 200, text);
      assert.deepEqual(json, [expected]);
    });
  }

  test('select of an aggregate of the odd name', async () => {
    const { json } = await other.get(
      `/rest/v1/berths?select=${encodeURIComponent(quoted)}.max(),n:count()`,
    );
    assert.deepEqual(json, [{ max: 7, n: 2 }]);
  });

  test('order by the odd name', async () => {
    const { data, error } = await berths().select('number').order(quoted, { ascending: false });
    assert.deepEqual([error, data], [null, [{ number: 2 }, { number: 1 }]]);
  });

  test('filters on the odd name', async () => {
    const { data, error } = await berths().select('number').filter(quoted, 'gt', 5);
    assert.deepEqual([error, data], [null, [{ number: 2 }]]);
    const tree = await berths().select('number').or(`${quoted}.eq.5,${quoted}.in.("4")`);
    assert.deepEqual([tree.error, tree.data], [null, [{ number: 1 }]]);
  });

  test('an update sets the odd name by the odd name', async () => {
    const list = berths()
      .update({ [SEAT]: 9 })
      .filter(quoted, 'eq', 5)
      .select();
    const { data, error } = await list;
    assert.deepEqual([error, data], [null, [{ ...seats[0], [SEAT]: 9 }]]);
  });

  test('an upsert replaces a row that has the odd name', async () => {
    const row = { ...seats[0], [SEAT]: 8 };
    const { data, error, status } = await berths()
      .upsert(row as Partial<Berth>)
      .select();
    assert.deepEqual([error, status, data], [null, 200, [row]]);
  });

  test('an upsert keeps what it does not name, and gives no default to it', async () => {
    const row = { ...key(1), number: 9 };
    const { data, error, status } = await berths().upsert(row).select();
    assert.deepEqual([error, status, data], [null, 200, [{ ...seats[0], number: 9 }]]);
  });

  test('a delete by the odd name', async () => {
    const { data, error } = await berths().delete().filter(quoted, 'eq', 5).select('number');
    assert.deepEqual([error, data], [null, [{ number: 1 }]]);
  });
});

// --- supabase-js ----------------------------------------------------------------

/** Node 20 has no WebSocket; what is tested here opens none. */
const options = {
  auth: { persistSession: false, autoRefreshToken: false, detectSessionInUrl: false },
  realtime: { transport: globalThis.WebSocket ?? class {} },
};

describe('supabase-js', () => {
  const secret = 'a secret of the tests that is longer than 32 bytes';
  let guarded: TestService;

  before(async () => {
    guarded = await startReady({ DATABASE_URL: database.url, JWT_SECRET: secret });
  });
  after(async () => {
    await guarded?.stop();
  });

  function supabase(key: string, { url } = service) {
    return createClient<Database>(url, key, options);
  }

  function token(expires: string): Promise<string> {
    const claims = new SignJWT({}).setProtectedHeader({ alg: 'HS256' }).setSubject('tester');
    return claims.setExpirationTime(expires).sign(Buffer.from(secret));
  }

  test('createClient with any key reads where none is needed', async () => {
    const { data, error, count } = await supabase('key')
      .from('passengers')
      .select('*', { count: 'exact' })
      .eq('survived', true)
      .order('name');
    assert.deepEqual([error, letters(data), count], [null, 'AC', 2]);
  });

  test('createClient with a token of JWT_SECRET reads and writes', async () => {
    const table = supabase(await token('1h'), guarded).from('passengers');
    const made = await table.insert(NEW).select().single();
    assert.deepEqual([made.error, made.data], [null, NEW]);
    const set = await table.update({ age: 34 }).eq('uuid', NEW.uuid).select('age').single();
    assert.deepEqual([set.error, set.data], [null, { age: 34 }]);
    const gone = await table.delete().eq('uuid', NEW.uuid);
    assert.deepEqual([gone.error, gone.status], [null, 204]);
    await assertUnchanged();
  });

  const keys: [criterion: string, key: () => Promise<string> | string, code: string][] = [
    ['a key that is no token', () => 'sb_publishable_x', 'PGRST301'],
    ['an expired token', () => token('-1h'), 'PGRST303'],
  ];
  for (const [criterion, key, code] of keys) {
    test(`createClient with ${criterion} is 401 ${code}`, async () => {
      const table = supabase(await key(), guarded).from('passengers');
      for (const ask of [table.select(), table.insert(NEW), table.delete().eq('uuid', A.uuid)]) {
        const { status, error } = await ask;
        assert.deepEqual([status, error?.code], [401, code]);
      }
      await assertUnchanged();
    });
  }

  test('schema and rpc answer as without it', async () => {
    const client = supabase('key');
    const other = await client
      .schema('private' as 'public')
      .from('passengers')
      .select();
    assert.deepEqual([other.status, other.error?.code], [406, 'PGRST106']);
    const call = await client.rpc('sink' as never);
    assert.deepEqual(
      [call.status, (call.error as { code: string } | null)?.code],
      [404, 'PGRST202'],
    );
  });
});

// --- react-admin ----------------------------------------------------------------

type Provider = typeof import('@raphiniert/ra-data-postgrest').default;

describe('ra-data-postgrest', () => {
  // It is CommonJS, whose default export Node and tsx each find in another place.
  const { default: outer } = provider as unknown as { default: Provider & { default?: Provider } };
  const make = outer.default ?? outer;
  let admin: ReturnType<Provider>;
  const [name, page] = ['passengers', { page: 1, perPage: 10 }];
  const byName = { field: 'name', order: 'ASC' as const };

  before(() => {
    const primaryKeys = new Map([[name, ['uuid']]]);
    const apiUrl = `${service.url}/rest/v1`;
    admin = make({ apiUrl, httpClient, defaultListOp: 'eq', primaryKeys, schema: () => 'public' });
  });

  /** What fetchUtils.fetchJson of react-admin does. */
  async function httpClient(url: string, init: RequestInit) {
    const { status, headers, ok, ...response } = await read(await fetch(url, init));
    if (!ok) throw Object.assign(new Error(response.json.message), { status, body: response.json });
    return { status, headers, ...response };
  }

  async function read(response: Response) {
    const { status, headers, ok } = response;
    const body = await response.text();
    return { status, headers, ok, body, json: body ? JSON.parse(body) : undefined };
  }

  const withId = (row: Passenger) => ({ ...row, id: row.uuid });

  const lists: [criterion: string, filter: object, total: number, expected: string][] = [
    ['no filter', {}, 6, 'ABCDEF'],
    ['eq', { survived: true }, 2, 'AC'],
    ['gte and lt', { 'age@gte': 22, 'fare@lt': 9 }, 3, 'BDE'],
    ['ilike of one word', { 'name@ilike': 'br' }, 2, 'BC'],
    ['ilike of two words', { 'name@ilike': 'bo own' }, 1, 'B'],
    ['like with an apostrophe', { 'name@like': "O'Brien" }, 1, 'C'],
    ['in', { 'passengerClass@in': '(1,2)' }, 3, 'ADF'],
    ['is', { 'age@is': 'null' }, 1, 'F'],
    ['or', { '@or': { 'age@lt': 5, 'passengerClass@eq': 2 } }, 2, 'CD'],
    ['wfts', { 'name@wfts': 'brown' }, 1, 'B'],
    ['none', { age: 99 }, 0, ''],
  ];
  for (const [criterion, filter, total, expected] of lists) {
    test(`getList by ${criterion} gives ${expected || 'none'}`, async () => {
      const list = await admin.getList(name, { pagination: page, sort: byName, filter });
      assert.deepEqual([list.total, letters(list.data)], [total, expected]);
    });
  }

  test('getList gives the second page with an id and the total', async () => {
    const pagination = { page: 2, perPage: 2 };
    const list = await admin.getList(name, { pagination, sort: byName, filter: {} });
    assert.deepEqual([list.data, list.total], [[C, D].map(withId), 6]);
  });

  test('getList sorts by id and keeps nulls last where told', async () => {
    const sort = { field: 'age', order: 'DESC' as const };
    const meta = { nullslast: true, columns: ['uuid', 'name'] };
    const list = await admin.getList(name, { pagination: page, sort, filter: {}, meta });
    assert.equal(letters(list.data), 'DABECF');
    assert.deepEqual(list.data[0], { uuid: D.uuid, name: D.name, id: D.uuid });
  });

  test('getOne gives the row', async () => {
    assert.deepEqual((await admin.getOne(name, { id: D.uuid })).data, withId(D));
  });

  test('getOne of an unknown id rejects with 406', async () => {
    await assert.rejects(admin.getOne(name, { id: NOBODY }), { status: 406 });
  });

  test('getMany of one and of more', async () => {
    const { data: one } = await admin.getMany(name, { ids: [A.uuid] });
    assert.deepEqual(one, [withId(A)]);
    const { data: more } = await admin.getMany(name, { ids: [A.uuid, C.uuid, NOBODY] });
    assert.deepEqual(more, [A, C].map(withId));
  });

  test('getManyReference gives the rows of the target', async () => {
    const params = { target: 'passengerClass', id: 3, pagination: { page: 1, perPage: 2 } };
    const list = await admin.getManyReference(name, { ...params, sort: byName, filter: {} });
    assert.deepEqual([letters(list.data), list.total], ['BC', 3]);
  });

  test('create gives the row with its new id', async () => {
    const { uuid, ...data } = NEW;
    const made = (await admin.create(name, { data })).data;
    assert.match(made.uuid, /^[\da-f]{8}-[\da-f]{4}-7/);
    assert.deepEqual(made, { ...NEW, uuid: made.uuid, id: made.uuid });
    assert.deepEqual(await stored(made.uuid), [{ ...NEW, uuid: made.uuid }]);
  });

  test('create of a bad row rejects with each fault', async () => {
    const error = await admin
      .create(name, { data: { name: '' } })
      .catch((reason: unknown) => reason);
    assert.equal(error.status, 422);
    assert.equal(error.body.errors.length, 8);
    await assertUnchanged();
  });

  test('update sets what changed and gives the row', async () => {
    const data = { ...withId(B), age: 23 };
    const set = await admin.update(name, { id: B.uuid, data, previousData: withId(B) });
    assert.deepEqual(set.data, { ...data });
    assert.deepEqual(await stored(B.uuid), [{ ...B, age: 23 }]);
  });

  test('update of an unknown id rejects with 406', async () => {
    const params = { id: NOBODY, data: { age: 1 }, previousData: { id: NOBODY, age: 2 } };
    await assert.rejects(admin.update(name, params), { status: 406 });
  });

  test('updateMany gives the ids', async () => {
    const set = await admin.updateMany(name, { ids: [A.uuid, B.uuid], data: { fare: 2 } });
    assert.deepEqual(set.data?.toSorted(), [A.uuid, B.uuid]);
    assert.deepEqual(await stored(A.uuid, B.uuid), [
      { ...A, fare: 2 },
      { ...B, fare: 2 },
    ]);
  });

  test('delete gives the row, though it names a type for the body it has not', async () => {
    const gone = await admin.delete(name, { id: D.uuid, previousData: withId(D) });
    assert.deepEqual(gone.data, withId(D));
    assert.deepEqual(await stored(D.uuid), []);
  });

  test('delete of an unknown id rejects with 406', async () => {
    await assert.rejects(admin.delete(name, { id: NOBODY }), { status: 406 });
  });

  test('deleteMany gives the ids', async () => {
    const gone = await admin.deleteMany(name, { ids: [A.uuid, B.uuid] });
    assert.deepEqual(gone.data?.toSorted(), [A.uuid, B.uuid]);
    assert.equal(letters(await stored()), 'CDEF');
  });
});

// --- refine ---------------------------------------------------------------------

describe('refine', () => {
  const resource = 'passengers';
  const meta = { idColumnName: 'uuid' };
  let refine: ReturnType<typeof dataProvider>;

  before(() => {
    refine = dataProvider(createClient(service.url, 'key', options) as never);
  });

  type Filters = { field: string; operator: string; value: unknown }[];
  const lists: [criterion: string, filters: Filters, total: number, expected: string][] = [
    ['no filter', [], 6, 'ABCDEF'],
    ['eq', [{ field: 'survived', operator: 'eq', value: true }], 2, 'AC'],
    ['ne', [{ field: 'passengerClass', operator: 'ne', value: 3 }], 3, 'ADF'],
    [
      'gte and lt',
      [
        { field: 'age', operator: 'gte', value: 4 },
        { field: 'age', operator: 'lt', value: 29.5 },
      ],
      3,
      'BCE',
    ],
    ['between', [{ field: 'age', operator: 'between', value: [4, 22] }], 3, 'BCE'],
    ['in', [{ field: 'name', operator: 'in', value: ['Fay', D.name.slice(0, 4), 'x,y'] }], 1, 'F'],
    ['nin', [{ field: 'passengerClass', operator: 'nin', value: '(1,2)' }], 3, 'BCE'],
    ['contains', [{ field: 'name', operator: 'contains', value: 'BR' }], 2, 'BC'],
    ['containss', [{ field: 'name', operator: 'containss', value: "O'Br" }], 1, 'C'],
    ['ncontains', [{ field: 'name', operator: 'ncontains', value: '%b%' }], 3, 'ADF'],
    ['startswith', [{ field: 'name', operator: 'startswith', value: 'dora, dr. (' }], 1, 'D'],
    ['endswith', [{ field: 'name', operator: 'endswith', value: 'BROWN' }], 1, 'B'],
    ['null', [{ field: 'age', operator: 'null', value: null }], 1, 'F'],
    ['nnull', [{ field: 'age', operator: 'nnull', value: null }], 5, 'ABCDE'],
    [
      'or',
      [
        {
          field: '',
          operator: 'or',
          value: [
            { field: 'name', operator: 'contains', value: 'dora, dr.' },
            { field: 'passengerClass', operator: 'in', value: [2] },
            { field: 'age', operator: 'lt', value: 5 },
          ],
        },
      ],
      2,
      'CD',
    ],
  ];
  for (const [criterion, filters, total, expected] of lists) {
    test(`getList by ${criterion} gives ${expected}`, async () => {
      const sorters = [{ field: 'name', order: 'asc' as const }];
      const list = await refine.getList<Passenger>({
        resource,
        filters: filters as never,
        sorters,
      });
      assert.deepEqual([list.total, letters(list.data)], [total, expected]);
    });
  }

  test('getList gives a page in the order of the sorters', async () => {
    const list = await refine.getList<Passenger>({
      resource,
      pagination: { currentPage: 2, pageSize: 2, mode: 'server' },
      sorters: [
        { field: 'passengerClass', order: 'desc' },
        { field: 'name', order: 'asc' },
      ],
    });
    assert.deepEqual([letters(list.data), list.total], ['ED', 6]);
  });

  test('getList without pages gives all', async () => {
    const list = await refine.getList({ resource, pagination: { mode: 'off' } });
    assert.deepEqual([list.data, list.total], [ROWS, 6]);
  });

  test('getList of a page past the end rejects with PGRST103', async () => {
    const pagination = { currentPage: 9, pageSize: 10 };
    await assert.rejects(refine.getList({ resource, pagination }), { code: 'PGRST103' });
  });

  test('getList by an array of nin, which it sends without brackets, rejects', async () => {
    const filters = [{ field: 'passengerClass', operator: 'nin', value: [1, 2] }];
    await assert.rejects(refine.getList({ resource, filters: filters as never }), {
      code: 'PGRST100',
    });
  });

  test('getList by ina, which is for arrays, rejects', async () => {
    const filters = [{ field: 'name', operator: 'ina', value: ['Ann'] }];
    await assert.rejects(refine.getList({ resource, filters: filters as never }), {
      code: 'PGRST100',
    });
  });

  test('getList sorted by another table rejects', async () => {
    const sorters = [{ field: 'cabins.deck', order: 'asc' as const }];
    await assert.rejects(refine.getList({ resource, sorters }), { code: /^PGRST(200|108)$/ });
  });

  test('getOne gives the row, or nothing', async () => {
    assert.deepEqual((await refine.getOne({ resource, id: D.uuid, meta })).data, D);
    assert.equal((await refine.getOne({ resource, id: NOBODY, meta })).data, undefined);
  });

  test('getMany gives the rows', async () => {
    const { data } = await refine.getMany({ resource, ids: [A.uuid, F.uuid, NOBODY], meta });
    assert.deepEqual(data, [A, F]);
  });

  test('without idColumnName it asks for id, which is no column', async () => {
    await assert.rejects(refine.getOne({ resource, id: D.uuid }), { code: '42703' });
  });

  test('create gives the row', async () => {
    const { uuid, ...variables } = NEW;
    const { data } = await refine.create<Passenger>({ resource, variables });
    assert.deepEqual(data, { ...NEW, uuid: data.uuid });
    assert.deepEqual(await stored(data.uuid), [data]);
  });

  test('create of a bad row rejects with what is wrong', async () => {
    const variables = { ...NEW, age: 151 };
    await assert.rejects(refine.create({ resource, variables }), { message: /age/ });
    await assertUnchanged();
  });

  test('createMany gives the rows', async () => {
    const { data } = await refine.createMany({ resource, variables: [NEW, NEWER] });
    assert.deepEqual(data, [NEW, NEWER]);
    assert.deepEqual(await stored(NEW.uuid, NEWER.uuid), [NEW, NEWER]);
  });

  test('update gives the row', async () => {
    const { data } = await refine.update({ resource, id: B.uuid, variables: { age: 23 }, meta });
    assert.deepEqual(data, { ...B, age: 23 });
    assert.deepEqual(await stored(B.uuid), [{ ...B, age: 23 }]);
  });

  test('updateMany gives the rows', async () => {
    const { data } = await refine.updateMany({
      resource,
      ids: [A.uuid, B.uuid],
      variables: { fare: 2 },
      meta,
    });
    assert.deepEqual(data, [
      { ...A, fare: 2 },
      { ...B, fare: 2 },
    ]);
  });

  test('deleteOne deletes', async () => {
    await refine.deleteOne({ resource, id: D.uuid, meta });
    assert.equal(letters(await stored()), 'ABCEF');
  });

  test('deleteMany deletes', async () => {
    await refine.deleteMany({ resource, ids: [A.uuid, B.uuid], meta });
    assert.equal(letters(await stored()), 'CDEF');
  });
});

// --- By hand --------------------------------------------------------------------

const PATHS = ['/passengers', '/rest/v1/passengers'];
const COUNTED = { Prefer: 'count=exact' };

describe('Content-Range', () => {
  const ranges: [query: string, headers: HeadersInit, status: number, range: string][] = [
    ['', {}, 200, '0-5/*'],
    ['', COUNTED, 200, '0-5/6'],
    ['?age=eq.99', {}, 200, '*/*'],
    ['?age=eq.99', COUNTED, 200, '*/0'],
    ['?age=eq.99&offset=0', COUNTED, 200, '*/0'],
    ['?age=eq.99&offset=1', COUNTED, 416, '*/0'],
    ['?limit=0', {}, 200, '*/*'],
    ['?limit=0', COUNTED, 206, '*/6'],
    ['?limit=2', {}, 200, '0-1/*'],
    ['?limit=2', COUNTED, 206, '0-1/6'],
    ['?limit=6', COUNTED, 200, '0-5/6'],
    ['?limit=2&offset=4', COUNTED, 206, '4-5/6'],
    ['?offset=6', {}, 200, '*/*'],
    ['?offset=6', COUNTED, 206, '*/6'],
    ['?offset=7', {}, 200, '*/*'],
    ['?offset=7', COUNTED, 416, '*/6'],
    ['', { Range: '0-1', 'Range-Unit': 'items' }, 200, '0-1/*'],
    ['', { Range: '4-9', 'Range-Unit': 'items', ...COUNTED }, 206, '4-5/6'],
    ['', { Range: '2-', 'Range-Unit': 'items', ...COUNTED }, 206, '2-5/6'],
  ];
  for (const [query, headers, status, range] of ranges) {
    for (const method of ['GET', 'HEAD']) {
      const sent = JSON.stringify(headers);
      test(`of ${method} /rest/v1/passengers${query} ${sent} is ${range}, ${status}`, async () => {
        const answer = await service.request(
          method,
          `/rest/v1/passengers${query}`,
          undefined,
          headers,
        );
        assert.deepEqual([answer.status, answer.headers.get('content-range')], [status, range]);
        if (method === 'HEAD') assert.equal(answer.text, '');
      });
    }
  }

  const writes: [request: string, body: unknown, prefer: string, status: number, range: string][] =
    [
      ['POST ', NEW, '', 201, '*/*'],
      ['POST ', [NEW, NEWER], 'count=exact', 201, '*/2'],
      ['POST ', NEW, 'return=representation,count=exact', 201, '*/1'],
      ['PATCH ?age=eq.22', { fare: 1 }, '', 204, '0-1/*'],
      ['PATCH ?age=eq.22', { fare: 1 }, 'count=exact', 204, '0-1/2'],
      ['PATCH ?age=eq.99', { fare: 1 }, '', 204, '*/*'],
      ['PATCH ?age=eq.99', { fare: 1 }, 'return=representation,count=exact', 200, '*/0'],
      ['DELETE ?age=eq.22', undefined, '', 204, '*/*'],
      ['DELETE ?age=eq.22', undefined, 'count=exact', 204, '*/2'],
      ['DELETE ?age=eq.99', undefined, 'return=representation,count=exact', 200, '*/0'],
    ];
  for (const [request, body, prefer, status, range] of writes) {
    test(`of ${request.trim()}, «${prefer}» is ${range}, ${status}`, async () => {
      const [method = '', query] = request.split(' ');
      const answer = await service.request(method, `/rest/v1/passengers${query}`, body, { prefer });
      assert.deepEqual([answer.status, answer.headers.get('content-range')], [status, range]);
    });
  }
});

describe('Values with punctuation', () => {
  const traps = [
    ...',.:()"\\+%;\'*&=#?/{}[]<>|~^$!@_-',
    ' ',
    '  ',
    '%20',
    '%s',
    '\\"',
    '","',
    "''",
    '--',
    '🛟',
    'null',
  ];
  for (const trap of traps) {
    test(`${JSON.stringify(trap)} is found, set and deleted by each way to write it`, async () => {
      const name = `x${trap}y`;
      const inQuotes = `"${name.replace(/["\\]/g, '\\$&')}"`;
      const made = await passengers()
        .insert({ ...NEW, name })
        .select('name')
        .single();
      assert.deepEqual([made.error, made.data], [null, { name }]);
      const found = [
        await passengers().select('name').eq('name', name),
        await passengers().select('name').filter('name', 'in', `(${inQuotes})`),
        await passengers().select('name').or(`name.eq.${inQuotes},name.eq.nobody`),
        await passengers().select('name').or(`name.in.(${inQuotes},nobody),age.eq.99`),
        await passengers().update({ age: 1 }).eq('name', name).select('name'),
        await passengers().delete().filter('name', 'in', `(nobody,${inQuotes})`).select('name'),
      ];
      for (const { data, error } of found) assert.deepEqual([error, data], [null, [{ name }]]);
      await assertUnchanged();
    });
  }

  const written: [query: string, expected: string][] = [
    ['survived=eq.true', 'AC'],
    ['survived=eq.t', 'AC'],
    ['survived=eq.false', 'BDE'],
    ['survived=not.eq.true', 'BDE'],
    ['passengerClass=in.("1","2")', 'ADF'],
    ['passengerClass=in.( 1, 2)', 'ADF'],
    ['passengerClass=in.()', ''],
    ['passengerClass=not.in.()', 'ABCDEF'],
    ["name=like.%25O'Brien%25", 'C'],
    ['name=like.*O%27Brien*', 'C'],
    ['name=eq.Ann+Adams', 'A'],
    ['name=eq.Ann%20Adams', 'A'],
    ['name=eq."Fay"', ''],
    ['name=in.("Fay")', 'F'],
    ['name=in.(F"ay")', ''],
    ['or=(name.eq."Fay",age.eq.4)', 'CF'],
    ['or=(name.eq.Fay,%20age.eq.4)', 'CF'],
    ['not.or=(age.lt.30,age.gt.70)', 'D'],
    ['and=(age.gt.5,or(sex.eq.male,survived.is.true))', 'AB'],
    ['not.and=(sex.eq.female,passengerClass.gte.1)', 'BC'],
    ['name[0]=ilike.*b*&name[1]=ilike.*r*', 'BCE'],
    ['and=( and ( passengerClass.in.( 1, 2 ) , age.gt.30 ) )', 'D'],
    ['"name"=eq.Fay', 'F'],
  ];
  for (const [query, expected] of written) {
    for (const path of PATHS) {
      test(`GET ${path}?${query} finds ${expected || 'none'}`, async () => {
        const { status, text, json } = await service.get(`${path}?${query}&order=name`);
        assert.equal(status, 200, text);
        assert.equal(letters(json), expected);
      });
    }
  }
});

describe('Identifiers full of quotes', () => {
  const evil = [
    `na"me`,
    `"name`,
    `name'`,
    `"na\\"me"`,
    `name;drop table titanic`,
    `"x'; drop table titanic; --"`,
    `name)`,
  ];
  for (const name of evil) {
    const sent = encodeURIComponent(name);
    for (const query of [
      `select=${sent}`,
      `order=${sent}`,
      `select=name::${sent}`,
      `${sent}=eq.1`,
      `or=(${sent}.eq.1)`,
      `select=${sent}.max()`,
    ]) {
      test(`GET /rest/v1/passengers?${query} is refused`, async () => {
        const { status, json } = await service.get(`/rest/v1/passengers?${query}`);
        assert.equal(status, 400);
        assert.match(json.code, /^(42703|42704|PGRST100)$/);
        assert.ok(json.message);
        await assertUnchanged();
      });
    }
  }

  const aliases: [written: string, name: string][] = [
    [`"who's"`, "who's"],
    [`"a\\"b"`, 'a"b'],
    [`"a\\\\b"`, 'a\\b'],
    [`"a,b.c:d(e)"`, 'a,b.c:d(e)'],
    [`"';drop table titanic;--"`, "';drop table titanic;--"],
    ['"$1"', '$1'],
    ['__proto__', '__proto__'],
    ['é', 'é'],
  ];
  for (const [written, name] of aliases) {
    test(`select=${written}:name comes back under that name`, async () => {
      const query = `select=${encodeURIComponent(`${written}:name`)}&uuid=eq.${F.uuid}`;
      const { status, text } = await service.get(`/rest/v1/passengers?${query}`);
      assert.equal(status, 200, text);
      assert.equal(text.replace(/\s/g, ''), `[{${JSON.stringify(name)}:"Fay"}]`.replace(/\s/g, ''));
    });
  }
});

describe('Requests as clients send them', () => {
  const json = { 'content-type': 'application/json' };

  for (const path of PATHS) {
    test(`DELETE ${path}?uuid=eq.… with a JSON type and no body is 204`, async () => {
      const { status, text } = await service.request(
        'DELETE',
        `${path}?uuid=eq.${A.uuid}`,
        undefined,
        json,
      );
      assert.deepEqual([status, text], [204, '']);
      assert.deepEqual(await stored(A.uuid), []);
    });

    test(`DELETE ${path}/… with a JSON type and no body is 204`, async () => {
      const { status } = await service.request('DELETE', `${path}/${A.uuid}`, undefined, json);
      assert.equal(status, 204);
    });

    test(`HEAD ${path} has the headers of GET and no body`, async () => {
      const query = `${path}?select=name&order=name&limit=3`;
      const [get, head] = [
        await service.get(query, COUNTED),
        await service.request('HEAD', query, undefined, COUNTED),
      ];
      for (const header of ['content-type', 'content-range', 'link']) {
        assert.equal(head.headers.get(header), get.headers.get(header), header);
      }
      assert.deepEqual([head.status, head.text], [206, '']);
    });
  }

  const absent: [method: string, path: string, code: string][] = [
    ['GET', '/rest/v1/cabins', 'PGRST205'],
    ['GET', '/rest/v1/cabins?select=*', 'PGRST205'],
    ['POST', '/rest/v1/cabins', 'PGRST205'],
    ['PATCH', '/rest/v1/cabins?a=eq.1', 'PGRST205'],
    ['DELETE', '/rest/v1/cabins?a=eq.1', 'PGRST205'],
    ['GET', '/rest/v1/rpc/sink', 'PGRST202'],
    ['POST', '/rest/v1/rpc/sink', 'PGRST202'],
    ['GET', '/cabins', 'PGRST125'],
    ['GET', '/rest/v1/passengers/x/y', 'PGRST125'],
    ['GET', `/passengers/${NOBODY}`, 'PGRST116'],
    ['DELETE', `/passengers/${NOBODY}`, 'PGRST116'],
    ['DELETE', `/rest/v1/passengers/${NOBODY}`, 'PGRST116'],
  ];
  for (const [method, path, code] of absent) {
    test(`${method} ${path} is a 404 with a body`, async () => {
      const body = /P/.test(method) ? {} : undefined;
      const answer = await service.request(method, path, body);
      assert.deepEqual([answer.status, answer.json?.code], [404, code]);
      assert.equal(answer.headers.get('content-type'), 'application/problem+json');
      for (const member of ['message', 'details', 'hint']) assert.ok(member in answer.json, member);
    });
  }

  test('return=headers-only gives the Location of the row alone', async () => {
    const prefer = { prefer: 'return=headers-only' };
    const made = await service.request('POST', '/rest/v1/passengers', NEW, prefer);
    assert.deepEqual([made.status, made.text], [201, '']);
    const row = await service.get(made.headers.get('location') ?? '');
    assert.deepEqual([row.status, row.json], [200, NEW]);
  });

  test('Preference-Applied names what was applied, and no more', async () => {
    const prefer = 'return=representation, resolution=merge-duplicates, tx=rollback, count=exact';
    const answer = await service.request('POST', '/rest/v1/passengers', NEW, { prefer });
    const applied = answer.headers.get('preference-applied')?.split(/, */).toSorted();
    assert.deepEqual(applied, [
      'count=exact',
      'resolution=merge-duplicates',
      'return=representation',
    ]);
  });

  test('an unknown preference is refused under handling=strict', async () => {
    const prefer = 'handling=strict, anything';
    const { status, json } = await service.get('/rest/v1/passengers', { prefer });
    assert.deepEqual([status, json.code], [400, 'PGRST122']);
  });

  test('an unknown preference is passed over without it', async () => {
    const { status } = await service.get('/rest/v1/passengers', {
      prefer: 'handling=lenient, anything',
    });
    assert.equal(status, 200);
  });

  test('max-affected allows to have no filter, and limits also without handling=strict', async () => {
    const prefer = 'max-affected=1';
    const { status } = await service.request('DELETE', '/rest/v1/passengers', undefined, {
      prefer,
    });
    assert.equal(status, 400);
    assert.notDeepEqual(await stored(), []);
  });

  test('columns leaves out what it does not name', async () => {
    const columns = Object.keys(NEW)
      .map((column) => `"${column}"`)
      .join();
    const row = { ...NEW, cabin: 'C85' };
    const { status, text } = await service.request(
      'POST',
      `/rest/v1/passengers?columns=${columns}`,
      [row],
    );
    assert.equal(status, 201, text);
    assert.deepEqual(await stored(NEW.uuid), [NEW]);
  });

  test('columns of an unknown column is PGRST204', async () => {
    const { json, status } = await service.request('POST', '/rest/v1/passengers?columns=cabin', [
      NEW,
    ]);
    assert.ok(status === 400 || status === 422, `${status}`);
    assert.equal(json.code, 'PGRST204');
    await assertUnchanged();
  });

  test('a browser may send what these clients send, and read what they read', async () => {
    const origin = 'https://admin.example';
    const open = await startService({
      DATABASE_URL: database.url,
      AUTH: 'none',
      CORS_ORIGIN: origin,
    });
    const headers = { origin, 'access-control-request-method': 'PATCH' };
    const preflight = await open.request('OPTIONS', '/rest/v1/passengers', undefined, headers);
    const list = await open.get('/rest/v1/passengers', { origin });
    await open.stop();
    const names = (answer: typeof list, header: string) =>
      (answer.headers.get(header) ?? '').toLowerCase().split(/, */);
    const allowed = names(preflight, 'access-control-allow-headers');
    for (const name of SENT) assert.ok(allowed.includes(name), name);
    const methods = names(preflight, 'access-control-allow-methods');
    for (const method of ['get', 'head', 'post', 'patch', 'delete'])
      assert.ok(methods.includes(method));
    assert.ok(names(list, 'access-control-expose-headers').includes('content-range'));
  });
});

/** The headers of postgrest-js, supabase-js and ra-data-postgrest that a preflight asks for. */
const SENT = [
  'accept-profile',
  'apikey',
  'authorization',
  'content-profile',
  'content-type',
  'prefer',
  'x-client-info',
  'x-retry-count',
];
