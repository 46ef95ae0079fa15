/**
 * Clients that others wrote, unmodified, against the real process: postgrest-js, supabase-js, the
 * data providers of react-admin and of refine; and requests by hand where a client hides the answer.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, describe, type TestContext, test } from 'node:test';
import * as provider from '@raphiniert/ra-data-postgrest';
import { dataProvider } from '@refinedev/supabase';
import { PostgrestClient } from '@supabase/postgrest-js';
import { createClient } from '@supabase/supabase-js';
import { bearer, openService, startReady, type TestService } from './harness.ts';

type Values = [boolean | null, number, string, string, number | null, number | null];
type Passenger = ReturnType<typeof person>;
type Shape<Row> = { Row: Row; Insert: Partial<Row>; Update: Partial<Row>; Relationships: [] };
type Database<Tables = { passengers: Shape<Passenger> }> = {
  __InternalSupabase: { PostgrestVersion: '14' };
  public: { Tables: Tables; Views: Record<never, never>; Functions: Record<never, never> };
};
type Rest = PostgrestClient<Database>;
type Newer = Rest & { getOpenApiSpec: () => PromiseLike<Reply> };
type Table = ReturnType<typeof tableOf>;
type List = ReturnType<Table['select']>;
type Reply = { status: number; data?: unknown; error: unknown; count?: number | null };

/** Each is known by the first letter of its name; F is as another program may have stored it. */
const ROWS = [
  person('a', true, 1, 'Ann Adams', 'female', 29.5, 211.3375),
  person('b', false, 3, 'Bob Brown', 'male', 22, 7.25),
  person('c', true, 3, "Carl O'Brien", 'male', 4, 15.9),
  person('d', false, 2, 'Dora, Dr. (née: "D\\D")', 'female', 61, 0),
  person('e', false, 3, 'Eve 100% + more; a*b_c', 'female', 22, 8.05),
  person('f', null, 1, 'Fay', 'female', null, null),
] as const;
const [A, B, C, D, E, F] = ROWS;
const NOBODY = id('9');
const NEW = person('7', true, 2, 'Gus', 'male', 33, 13);
const NEWER = person('8', false, 3, 'Hal', 'male', 44, 14.5);
const OTHER = { ...A, name: 'Ann Other', age: 30 };

function id(digit: string): string {
  return `0192f0c1-2f3a-7bcd-8123-45678900000${digit}`;
}

function person(digit: string, ...values: Values) {
  const [survived, passengerClass, name, sex, age, fare] = values;
  const aboard = { siblingsOrSpousesAboard: 1, parentsOrChildrenAboard: 0 };
  return { uuid: id(digit), survived, passengerClass, name, sex, age, ...aboard, fare };
}

function keyless({ uuid: _, ...row }: Passenger) {
  return row;
}

/** A name or value as PostgREST's grammar quotes it. */
function quote(text: string): string {
  return `"${text.replace(/["\\]/g, '\\$&')}"`;
}

function letters(rows: unknown): string {
  return ((rows ?? []) as Passenger[]).map(({ name }) => name[0]).join('');
}

const tableOf = (rest: Rest) => rest.from('passengers');

/** The table with these rows added or changed. */
function having(...rows: Passenger[]): Passenger[] {
  const all = new Map([...ROWS, ...rows].map((row) => [row.uuid, row]));
  return [...all.values()].sort((a, b) => (a.uuid < b.uuid ? -1 : 1));
}

/** The table as python-crud-api makes it: any column but the key may be null. */
const { database, service } = await openService(
  { AUTH: 'none' },
  `create table titanic (uuid uuid primary key, survived bool, "passengerClass" int,
    name varchar(150), sex varchar(6), age float, "siblingsOrSpousesAboard" int,
    "parentsOrChildrenAboard" int, fare float)`,
);

beforeEach(async () => {
  const { sql } = database;
  await sql`truncate titanic`;
  await sql`insert into titanic select * from jsonb_populate_recordset(null::titanic, ${sql.json(ROWS as never)})`;
});

/** Asserts that the table holds these, by default what each test begins with. */
async function assertStored(rows: readonly Passenger[] = ROWS): Promise<void> {
  const stored = await database.sql`select * from titanic order by uuid`;
  assert.deepEqual([...stored], rows);
}

// --- postgrest-js -----------------------------------------------------------------

const ENGLISH = { type: 'websearch', config: 'english' } as const;
const LAST = { ascending: false, nullsFirst: false };
/** Without an order rows come by their key, which is the order of their names. */
const LISTS: [criterion: string, filter: (list: List) => List, expected: string][] = [
  ['eq on a boolean, false', (list) => list.eq('survived', false), 'BDE'],
  ['eq on all of , . : ( ) " \\', (list) => list.eq('name', D.name), 'D'],
  ['eq on all of % + ; *', (list) => list.eq('name', E.name), 'E'],
  ['neq, without null', (list) => list.neq('survived', true), 'BDE'],
  ['gte and lte', (list) => list.gte('age', 5).lte('age', 25), 'BE'],
  ['like with an escaped %', (list) => list.like('name', '%100\\%%'), 'E'],
  ['ilike with punctuation', (list) => list.ilike('name', '%, dr. (NÉE:%'), 'D'],
  ['likeAllOf', (list) => list.likeAllOf('name', ['%n%', '%A%']), 'A'],
  ['likeAnyOf', (list) => list.likeAnyOf('name', ['Ann%', '*Brown']), 'AB'],
  ['likeAnyOf with a quoted comma', (list) => list.likeAnyOf('name', ['"Dora, Dr.%"']), 'D'],
  ['ilikeAllOf', (list) => list.ilikeAllOf('name', ['%B%', '%R%']), 'BCE'],
  ['ilikeAnyOf', (list) => list.ilikeAnyOf('name', ['fay', 'EVE%']), 'EF'],
  ['regexMatch', (list) => list.regexMatch('name', '^[AB]'), 'AB'],
  ['regexIMatch', (list) => list.regexIMatch('name', '^[ab]'), 'AB'],
  ['isDistinct, which counts null in', (list) => list.isDistinct('survived', true), 'BDEF'],
  ['in of a value with a comma', (list) => list.in('name', ['Bob Brown', 'x,y']), 'B'],
  ['in of none', (list) => list.in('passengerClass', []), ''],
  ['notIn', (list) => list.notIn('passengerClass', [3]), 'ADF'],
  ['match', (list) => list.match({ passengerClass: 3, sex: 'male' }), 'BC'],
  ['not in', (list) => list.not('passengerClass', 'in', '("1","2")'), 'BCE'],
  ['or with and', (list) => list.or('and(sex.eq.male,age.gt.10),name.eq.Fay'), 'BF'],
  ['or with quotes', (list) => list.or('name.eq."Dora, Dr. (née: \\"D\\\\D\\")",age.eq.4'), 'CD'],
  ['two of or', (list) => list.or('sex.eq.male,age.gt.60').or('survived.is.true,fare.eq.0'), 'CD'],
  ['textSearch plain', (list) => list.textSearch('name', 'brown bob', { type: 'plain' }), 'B'],
  ['textSearch websearch', (list) => list.textSearch('name', 'brown or adams', ENGLISH), 'AB'],
  ['no order is by the key', (list) => list, 'ABCDEF'],
  ['order ascending, nulls last', (list) => list.order('age'), 'CBEADF'],
  ['order ascending, nulls first', (list) => list.order('age', { nullsFirst: true }), 'FCBEAD'],
  ['order by two', (list) => list.order('passengerClass').order('age', LAST), 'AFDBEC'],
  ['range past the end', (list) => list.order('name').range(10, 20), ''],
];

const ALIASES = ["who's", 'a"b', 'a\\b', 'a,b.c:d(e)', "';x;--", '$1', '__proto__', 'é'];
const SELECTS: [columns: string, expected: object[]][] = [
  ['*', [A]],
  ['name, age', [{ name: 'Ann Adams', age: 29.5 }]],
  ['age,name', [{ age: 29.5, name: 'Ann Adams' }]],
  ['who:name', [{ who: 'Ann Adams' }]],
  ['age::text', [{ age: '29.5' }]],
  ['"name","passengerClass"', [{ name: 'Ann Adams', passengerClass: 1 }]],
  ['*,who:name', [{ ...A, who: 'Ann Adams' }]],
  ['passengerClass,count()', [{ passengerClass: 1, count: 1 }]],
  ['n:count(),age.sum()', [{ n: 1, sum: 29.5 }]],
  [
    ALIASES.map((name) => `${quote(name)}:sex`).join(),
    [Object.fromEntries(ALIASES.map((name) => [name, 'female']))],
  ],
];

/** A request; the status and data of its answer, the table afterwards, and the count. */
type Case = [
  criterion: string,
  request: (table: Table) => PromiseLike<Reply>,
  status: number,
  data?: unknown,
  rows?: readonly Passenger[],
  count?: number,
];

const EXACT = { count: 'exact' } as const;
const HEAD = { ...EXACT, head: true } as const;
const TWO = [NEW, NEWER];
const BOTH = [OTHER, NEW];
const CHEAP = [B, E].map((row) => ({ ...row, fare: 1 }));
const FIRST = [A, B, C, D, E];
const IDS = [A.uuid, C.uuid];
const CHEAPER = [A, C].map((row) => ({ ...row, fare: 2 }));
const SOLD = having(...CHEAPER);
const DEARER = ROWS.map((row) => ({ ...row, fare: 5 }));
const C5 = { ...C, age: 5 };
const FIVE = { age: 5 };
const CSV = 'name,age\n"Dora, Dr. (née: ""D\\D"")",61\n';
const IGNORE = { ignoreDuplicates: true };

const CASES: Case[] = [
  ['single', (t) => t.select().eq('uuid', A.uuid).single(), 200, A],
  ['maybeSingle', (t) => t.select().eq('uuid', A.uuid).maybeSingle(), 200, A],
  ['count of a part', (t) => t.select('sex', EXACT).limit(1), 206, [{ sex: A.sex }], ROWS, 6],
  ['csv', (t) => t.select('name,age').eq('age', 61).csv(), 200, CSV],
  ['head of a part', (t) => t.select('*', HEAD).limit(1), 206, null, ROWS, 6],

  ['insert', (t) => t.insert(NEW), 201, null, having(NEW)],
  ['insert of two', (t) => t.insert([NEWER, NEW]).select(), 201, [NEWER, NEW], having(...TWO)],

  ['upsert of a row that exists', (t) => t.upsert(OTHER).select(), 200, [OTHER], having(OTHER)],
  ['upsert of a new row', (t) => t.upsert(NEW).select().single(), 201, NEW, having(NEW)],
  ['upsert of both', (t) => t.upsert(BOTH).select(), 201, BOTH, having(...BOTH)],
  ['upsert, one ignored', (t) => t.upsert(BOTH, IGNORE).select(), 201, [NEW], having(NEW)],
  ['rollback, not applied', (t) => t.insert(NEW).select().rollback(), 201, [NEW], having(NEW)],

  ['update', (t) => t.update({ fare: 1 }).eq('age', 22), 204, null, having(...CHEAP)],
  ['update, selected', (t) => t.update({ age: 5 }).eq('age', 4).select(), 200, [C5], having(C5)],
  ['update as allowed', (t) => t.update(FIVE).eq('age', 4).maxAffected(1), 204, null, having(C5)],
  ['update of all, meant', (t) => t.update({ fare: 5 }).maxAffected(6), 204, null, DEARER],

  ['delete', (t) => t.delete().eq('passengerClass', 3), 204, null, [A, D, F]],
  ['delete, selected', (t) => t.delete().eq('uuid', F.uuid).select(), 200, [F], FIRST],
];

type Ask = (table: Table, rest: Rest) => PromiseLike<Reply>;

const X = 'x' as 'public';
const CABINS = { referencedTable: 'cabins' };
const CABIN = { ...NEWER, cabin: 'C85' };
/** What changes nothing. */
const REFUSALS: [status: number, code: string, criterion: string, request: Ask][] = [
  [406, 'PGRST116', 'single of none', (t) => t.select().eq('age', 99).single()],
  [406, 'PGRST116', 'upsert of two, single', (t) => t.upsert(BOTH).select().single()],
  [406, 'PGRST116', 'delete of two, single', (t) => t.delete().eq('age', 22).select().single()],
  [416, 'PGRST103', 'range past the end, counted', (t) => t.select('*', EXACT).range(10, 19)],
  [409, '23505', 'insert of it among new ones', (t) => t.insert([NEW, A])],
  [409, '23505', 'insert of a key twice', (t) => t.insert([NEW, NEW])],
  [422, 'PGRST204', 'an unknown column', (t) => t.insert([NEW, CABIN])],
  [422, '22023', 'insert of ragged rows', (t) => t.insert([NEW, { name: 'x' }])],
  [422, '22023', 'upsert of a part', (t) => t.upsert({ uuid: A.uuid, age: 31 })],
  [400, '42P10', 'upsert on another column', (t) => t.upsert(OTHER, { onConflict: 'name' })],
  [400, 'PGRST124', 'more than allowed', (t) => t.update(FIVE).eq('age', 22).maxAffected(1)],
  [400, 'PGRST200', 'embedding', (t) => t.select('*,cabins(*)')],
  [400, 'PGRST200', 'embedding in a write', (t) => t.delete().eq('age', 4).select('x(*)')],
  [400, 'PGRST108', 'an order of another table', (t) => t.select().order('deck', CABINS)],
  [400, 'PGRST108', 'a limit of another table', (t) => t.select().limit(1, CABINS)],
  [400, 'PGRST108', 'or on another table', (t) => t.select().or('deck.eq.A', CABINS)],
  [404, 'PGRST202', 'rpc', (_, rest) => rest.rpc('sink' as never, { ship: 1 } as never)],
  [404, 'PGRST205', 'an unknown table', (_, rest) => rest.from('cabins' as 'passengers').select()],
  [404, 'PGRST126', 'getOpenApiSpec', (_, rest) => (rest as Newer).getOpenApiSpec()],
  [406, 'PGRST106', 'another schema', (_, rest) => tableOf(rest.schema(X) as Rest).select()],
  [406, 'PGRST107', 'explain', (t) => t.select().explain()],
  [406, 'PGRST107', 'geojson', (t) => t.select().geojson()],
  [406, 'PGRST107', 'stripNulls', (t) => t.select().stripNulls()],
  [400, '42883', 'contains', (t) => t.select().contains('name', ['Ann'])],
  [400, 'PGRST100', 'rangeGt', (t) => t.select().rangeGt('age', '[1,2]')],
  [400, 'PGRST100', 'update with limit', (t) => t.update({ fare: 5 }).eq('age', 22).limit(1)],
  [400, '42703', 'upsert on an unknown column', (t) => t.upsert(OTHER, { onConflict: 'cabin' })],
  [400, '42883', 'a json path in select', (t) => t.select('first:name->>first')],
  [400, '42883', 'a json path in a filter', (t) => t.select().filter('name->>first', 'eq', 'Ann')],
  [400, '42883', 'a json path in order', (t) => t.select().order('name->first')],
  [400, '42883', 'a json path in a tree', (t) => t.select().or('name->>first.eq.Ann,age.eq.1')],
];

/** A client of another version, installed where the packages of this project are not. */
function installed(version: string): typeof PostgrestClient {
  const name = '@supabase/postgrest-js';
  const home = join(tmpdir(), `passengers-clients-${process.getuid?.()}`, version);
  if (!existsSync(join(home, 'node_modules', name))) {
    mkdirSync(home, { recursive: true });
    const quiet = ['--silent', '--no-audit', '--no-fund', '--ignore-scripts'];
    execFileSync('npm', ['install', ...quiet, '--prefix', home, `${name}@${version}`]);
  }
  return createRequire(join(home, 'x.js'))(name).PostgrestClient;
}

for (const [version, load] of [
  ['of package.json', () => PostgrestClient],
  ['1.21.4', () => installed('1.21.4')],
  ['2.119.1', () => installed('2.119.1')],
] as const) {
  describe(`postgrest-js ${version}`, () => {
    let rest: Rest;
    before(() => {
      rest = new (load())<Database>(`${service.url}/rest/v1`);
    });

    /** Runs a case, unless this version has no such method. */
    function ask<T>(t: TestContext, request: () => T): T | undefined {
      try {
        return request();
      } catch (error) {
        if (!/is not a function/.test(String(error))) throw error;
        t.skip(`not in ${version}`);
        return undefined;
      }
    }

    for (const [criterion, filter, expected] of LISTS)
      test(`${criterion} finds ${expected || 'none'}`, async (t) => {
        const reply = await ask(t, () => filter(tableOf(rest).select()));
        if (reply) assert.deepEqual([reply.error, letters(reply.data)], [null, expected]);
      });

    for (const [columns, expected] of SELECTS)
      test(`select(${JSON.stringify(columns)})`, async () => {
        const { data, error } = await tableOf(rest).select(columns).eq('uuid', A.uuid);
        assert.equal(error, null);
        assert.equal(JSON.stringify(data), JSON.stringify(expected)); // in this order
      });

    for (const [criterion, request, status, data = null, rows = ROWS, count = null] of CASES)
      test(`${criterion} is ${status}`, async (t) => {
        const reply = await ask(t, () => request(tableOf(rest)));
        if (!reply) return;
        const { error, ...answer } = reply;
        assert.deepEqual(
          [answer.status, error, answer.data, answer.count],
          [status, null, data, count],
        );
        await assertStored(rows);
      });

    for (const [status, code, criterion, request] of REFUSALS)
      test(`${criterion} is ${status} ${code}`, async (t) => {
        const reply = await ask(t, () => request(tableOf(rest), rest));
        if (!reply) return;
        const error = reply.error as { code: string; message: string } | null;
        assert.deepEqual([reply.status, error?.code], [status, code]);
        assert.ok(error?.message);
        await assertStored();
      });

    for (const defaultToNull of [true, false])
      test(`defaultToNull ${defaultToNull} makes the keys that are missing`, async () => {
        const rows = [NEW, keyless(NEWER)];
        const made = await tableOf(rest).insert(rows, { defaultToNull }).select();
        assert.equal(letters(made.data), 'GH');
        const merged = await tableOf(rest).upsert(rows, { defaultToNull }).select();
        assert.deepEqual([merged.status, letters(merged.data)], [201, 'GH']);
      });
  });
}

// --- supabase-js ------------------------------------------------------------------

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
  after(() => guarded?.stop());

  function supabase(key: string, { url } = service) {
    return createClient<Database>(url, key, options).from('passengers');
  }

  async function token(claims: object = {}): Promise<string> {
    return (await bearer(secret, 'tester', claims)).authorization.slice('Bearer '.length);
  }

  test('createClient with any key reads where none is needed', async () => {
    const list = supabase('key').select('*', EXACT).eq('survived', true).order('name');
    const { data, error, count } = await list;
    assert.deepEqual([error, letters(data), count], [null, 'AC', 2]);
  });

  test('createClient with a token of JWT_SECRET reads and writes', async () => {
    const table = supabase(await token(), guarded);
    const made = await table.insert(NEW).select().single();
    assert.deepEqual([made.error, made.data], [null, NEW]);
    const set = await table.update({ age: 34 }).eq('uuid', NEW.uuid).select('age').single();
    assert.deepEqual([set.error, set.data], [null, { age: 34 }]);
    assert.equal((await table.delete().eq('uuid', NEW.uuid)).status, 204);
    await assertStored();
  });

  for (const [criterion, key, code] of [
    ['a key that is no token', () => 'sb_publishable_x', 'PGRST301'],
    ['an expired token', () => token({ exp: 1 }), 'PGRST303'],
  ] as const)
    test(`createClient with ${criterion} is 401 ${code}`, async () => {
      const table = supabase(await key(), guarded);
      for (const ask of [table.select(), table.insert(NEW), table.delete().eq('age', 4)]) {
        const { status, error } = await ask;
        assert.deepEqual([status, error?.code], [401, code]);
      }
      await assertStored();
    });
});

// --- react-admin ------------------------------------------------------------------

type Provider = typeof import('@raphiniert/ra-data-postgrest').default;

describe('ra-data-postgrest', () => {
  // It is CommonJS, whose default export Node and tsx each find in another place.
  const { default: outer } = provider as unknown as { default: Provider & { default?: Provider } };
  const make = outer.default ?? outer;
  let admin: ReturnType<Provider>;
  const [name, pagination] = ['passengers', { page: 1, perPage: 10 }];
  const sort = { field: 'name', order: 'ASC' as const };

  before(() => {
    const primaryKeys = new Map([[name, ['uuid']]]);
    const apiUrl = `${service.url}/rest/v1`;
    admin = make({ apiUrl, httpClient, defaultListOp: 'eq', primaryKeys, schema: () => 'public' });
  });

  /** What fetchUtils.fetchJson of react-admin does. */
  async function httpClient(url: string, init: RequestInit) {
    const response = await fetch(url, init);
    const { status, headers, ok } = response;
    const body = await response.text();
    const json = body ? JSON.parse(body) : undefined;
    if (!ok) throw Object.assign(new Error(json.message), { status, body: json });
    return { status, headers, body, json };
  }

  const withId = (row: Passenger) => ({ ...row, id: row.uuid });

  for (const [criterion, filter, expected] of [
    ['no filter', {}, 'ABCDEF'],
    ['eq', { survived: true }, 'AC'],
    ['gte and lt', { 'age@gte': 22, 'fare@lt': 9 }, 'BDE'],
    ['ilike of two words', { 'name@ilike': 'bo own' }, 'B'],
    ['in', { 'passengerClass@in': '(1,2)' }, 'ADF'],
    ['is', { 'age@is': 'null' }, 'F'],
    ['or', { '@or': { 'age@lt': 5, 'passengerClass@eq': 2 } }, 'CD'],
  ] as const)
    test(`getList by ${criterion} is ${expected || 'none'}`, async () => {
      const list = await admin.getList(name, { pagination, sort, filter });
      assert.deepEqual([letters(list.data), list.total], [expected, expected.length]);
    });

  test('getList sorts, selects and pages', async () => {
    const meta = { nullslast: true, columns: ['uuid', 'name'] };
    const by = { field: 'age', order: 'DESC' as const };
    const params = { pagination: { page: 2, perPage: 2 }, sort: by, filter: {}, meta };
    const list = await admin.getList(name, params);
    const rows = [B, E].map(({ uuid, name }) => ({ uuid, name, id: uuid }));
    assert.deepEqual([list.data, list.total], [rows, 6]);
  });

  test('getManyReference gives a page of rows, and their number', async () => {
    const reference = { target: 'passengerClass', id: 3, pagination: { page: 1, perPage: 2 } };
    const list = await admin.getManyReference(name, { ...reference, sort, filter: {} });
    assert.deepEqual([letters(list.data), list.total], ['BC', 3]);
  });

  test('create gives the row with its new id, and rejects with each fault', async () => {
    const { data } = await admin.create(name, { data: keyless(NEW) });
    assert.deepEqual(data, withId({ ...NEW, uuid: data.uuid }));
    const bad = admin.create(name, { data: { name: '' } });
    await assert.rejects(bad, ({ status, body }) => status === 422 && body.errors.length === 8);
  });

  const older = { ...B, age: 23 };
  const change = { id: B.uuid, data: withId(older), previousData: withId(B) };
  for (const [method, request, expected, rows = ROWS] of [
    ['getOne', () => admin.getOne(name, { id: D.uuid }), withId(D)],
    ['getMany of one', () => admin.getMany(name, { ids: [A.uuid] }), [withId(A)]],
    ['getMany', () => admin.getMany(name, { ids: IDS }), [withId(A), withId(C)]],
    ['update', () => admin.update(name, change), withId(older), having(older)],
    ['updateMany', () => admin.updateMany(name, { ids: IDS, data: { fare: 2 } }), IDS, SOLD],
    ['delete', () => admin.delete(name, { id: F.uuid, previousData: F }), withId(F), FIRST],
    ['deleteMany', () => admin.deleteMany(name, { ids: IDS }), IDS, [B, D, E, F]],
  ] as [string, () => Promise<{ data?: unknown }>, unknown, Passenger[]?][])
    test(`${method} answers, with ${letters(rows)} stored`, async () => {
      const { data } = await request();
      assert.deepEqual(Array.isArray(data) ? data.toSorted() : data, expected);
      await assertStored(rows);
    });

  const gone = { id: NOBODY, previousData: { id: NOBODY, age: 2 } };
  for (const [method, request] of [
    ['getOne', () => admin.getOne(name, gone)],
    ['update', () => admin.update(name, { ...gone, data: { age: 1 } })],
    ['delete', () => admin.delete(name, gone)],
  ] as const)
    test(`${method} of an unknown id rejects with 406`, () =>
      assert.rejects(request(), { status: 406 }));
});

// --- refine -----------------------------------------------------------------------

describe('refine', () => {
  const resource = 'passengers';
  const meta = { idColumnName: 'uuid' };
  const order = 'asc' as const;
  let refine: ReturnType<typeof dataProvider>;

  before(() => {
    refine = dataProvider(createClient(service.url, 'key', options) as never);
  });

  const where = (field: string, operator: string, value: unknown) => ({ field, operator, value });
  const getList = (...filters: object[]) =>
    refine.getList<Passenger>({
      resource,
      filters: filters as never,
      sorters: [{ field: 'name', order }],
    });
  const either = [where('age', 'lt', 5), where('passengerClass', 'in', [2])];

  for (const [criterion, filters, expected] of [
    ['no filter', [], 'ABCDEF'],
    ['eq', [where('survived', 'eq', true)], 'AC'],
    ['between', [where('age', 'between', [4, 22])], 'BCE'],
    ['in', [where('name', 'in', ['Fay', 'Dora', 'x,y'])], 'F'],
    ['nin', [where('passengerClass', 'nin', '(1,2)')], 'BCE'],
    ['contains', [where('name', 'contains', 'BR')], 'BC'],
    ['startswith', [where('name', 'startswith', 'dora, dr. (')], 'D'],
    ['null', [where('age', 'null', null)], 'F'],
    ['or', [where('', 'or', either)], 'CD'],
  ] as const)
    test(`getList by ${criterion} is ${expected}`, async () => {
      const list = await getList(...filters);
      assert.deepEqual([letters(list.data), list.total], [expected, expected.length]);
    });

  test('getList sorts and pages, or gives all', async () => {
    const pagination = { currentPage: 2, pageSize: 2, mode: 'server' } as const;
    const sorters = [
      { field: 'passengerClass', order: 'desc' as const },
      { field: 'name', order },
    ];
    const list = await refine.getList<Passenger>({ resource, pagination, sorters });
    assert.deepEqual([letters(list.data), list.total], ['ED', 6]);
    const all = await refine.getList({ resource, pagination: { mode: 'off' } });
    assert.deepEqual([all.data, all.total], [ROWS, 6]);
  });

  for (const [criterion, request, code] of [
    ['nin without brackets', () => getList(where('passengerClass', 'nin', [1, 2])), 'PGRST100'],
    ['a row by the column id', () => refine.getOne({ resource, id: D.uuid }), '42703'],
  ] as const)
    test(`${criterion} rejects with ${code}`, () => assert.rejects(request(), { code }));

  test('create gives the row with its new key', async () => {
    const { data } = await refine.create<Passenger>({ resource, variables: keyless(NEW) });
    assert.deepEqual(data, { ...NEW, uuid: data.uuid });
  });

  const [one, some] = [
    { resource, id: B.uuid, meta },
    { resource, ids: IDS, meta },
  ];
  const older = { ...B, age: 23 };
  for (const [method, request, expected, rows = ROWS] of [
    ['getOne', () => refine.getOne(one), B],
    ['getOne of none', () => refine.getOne({ ...one, id: NOBODY }), undefined],
    ['getMany', () => refine.getMany({ ...some, ids: [...IDS, NOBODY] }), [A, C]],
    ['createMany', () => refine.createMany({ resource, variables: TWO }), TWO, having(...TWO)],
    ['update', () => refine.update({ ...one, variables: { age: 23 } }), older, having(older)],
    ['updateMany', () => refine.updateMany({ ...some, variables: { fare: 2 } }), CHEAPER, SOLD],
    ['deleteOne', () => refine.deleteOne({ ...one, id: F.uuid }), undefined, FIRST],
    ['deleteMany', () => refine.deleteMany(some), [undefined, undefined], [B, D, E, F]],
  ] as [string, () => Promise<{ data?: unknown }>, unknown, Passenger[]?][])
    test(`${method} answers, with ${letters(rows)} stored`, async () => {
      assert.deepEqual((await request()).data, expected);
      await assertStored(rows);
    });
});

// --- By hand ----------------------------------------------------------------------

const COUNTED = { Prefer: 'count=exact' };
const ITEMS = { 'Range-Unit': 'items' };

describe('Content-Range', () => {
  const lists: [query: string, headers: HeadersInit, status: number, range: string][] = [
    ['?age=eq.99', {}, 200, '*/*'],
    ['?age=eq.99', COUNTED, 200, '*/0'],
    ['?age=eq.99&offset=1', COUNTED, 416, '*/0'],
    ['?offset=1', {}, 200, '1-5/*'],
    ['?limit=0', COUNTED, 206, '*/6'],
    ['?limit=2&offset=4', COUNTED, 206, '4-5/6'],
    ['?offset=6', COUNTED, 206, '*/6'],
    ['?offset=7', {}, 200, '*/*'],
    ['?offset=7', COUNTED, 416, '*/6'],
    ['', { Range: '4-9', ...ITEMS, ...COUNTED }, 206, '4-5/6'],
    ['', { Range: '2-', ...ITEMS, ...COUNTED }, 206, '2-5/6'],
  ];
  for (const [query, headers, status, range] of lists)
    for (const method of ['GET', 'HEAD'])
      test(`of ${method} ${query} ${JSON.stringify(headers)} is ${range}, ${status}`, async () => {
        const path = `/rest/v1/passengers${query}`;
        const answer = await service.request(method, path, undefined, headers);
        assert.deepEqual([answer.status, answer.headers.get('content-range')], [status, range]);
        if (method === 'HEAD') assert.equal(answer.text, '');
      });

  const [count, shown] = ['count=exact', 'return=representation,count=exact'];
  const writes: [method: string, query: string, unknown, prefer: string, number, string][] = [
    ['POST', '', NEW, '', 201, '*/*'],
    ['POST', '', [NEW, NEWER], count, 201, '*/2'],
    ['POST', '', NEW, shown, 201, '*/1'],
    ['PATCH', '?age=eq.22', { fare: 1 }, '', 204, '0-1/*'],
    ['PATCH', '?age=eq.22', { fare: 1 }, count, 204, '0-1/2'],
    ['PATCH', '?age=eq.99', { fare: 1 }, shown, 200, '*/0'],
    ['DELETE', '?age=eq.22', undefined, '', 204, '*/*'],
    ['DELETE', '?age=eq.22', undefined, count, 204, '*/2'],
    ['DELETE', '?age=eq.99', undefined, shown, 200, '*/0'],
  ];
  for (const [method, query, body, prefer, status, range] of writes)
    test(`of ${method} ${query}, Prefer: ${prefer} is ${range}, ${status}`, async () => {
      const answer = await service.request(method, `/rest/v1/passengers${query}`, body, { prefer });
      assert.deepEqual([answer.status, answer.headers.get('content-range')], [status, range]);
    });
});

describe('Values with punctuation', () => {
  const marks = [...',.:()"\\+%;\'*&=#?/{}[]<>|~^$!@_- '];
  for (const trap of [...marks, '  ', '%20', '%s', '\\"', '","', "''", '--', '🛟', 'null'])
    test(`${JSON.stringify(trap)} is found, set and deleted by each way to write it`, async () => {
      const rows = () => tableOf(new PostgrestClient<Database>(`${service.url}/rest/v1`));
      const found = () => rows().select('name');
      const [name, quoted] = [`x${trap}y`, quote(`x${trap}y`)];
      const added = { ...NEW, name };
      const results = [
        await rows().insert(added).select('name'),
        await found().eq('name', name),
        await found().filter('name', 'in', `(${quoted})`),
        await found().or(`name.eq.${quoted},name.eq.nobody`),
        await found().or(`name.in.(${quoted},nobody),age.eq.99`),
        await rows().update(FIVE).eq('name', name).select('name'),
        await rows().delete().filter('name', 'in', `(nobody,${quoted})`).select('name'),
      ];
      for (const { data, error } of results) assert.deepEqual([error, data], [null, [{ name }]]);
      await assertStored();
    });
});

describe('Requests as clients send them', () => {
  for (const path of ['/passengers', '/rest/v1/passengers'])
    test(`DELETE ${path} with a JSON type and no body is 204`, async () => {
      const json = { 'content-type': 'application/json' };
      for (const target of [`?uuid=eq.${E.uuid}`, `/${F.uuid}`]) {
        const { status, text } = await service.request('DELETE', path + target, undefined, json);
        assert.deepEqual([status, text], [204, '']);
      }
      await assertStored([A, B, C, D]);
    });

  test('Preference-Applied names what was applied, and no more', async () => {
    const prefer = 'return=representation, resolution=merge-duplicates, tx=rollback, count=exact';
    const { headers } = await service.request('POST', '/rest/v1/passengers', NEW, { prefer });
    const applied = headers.get('preference-applied')?.split(/, */).toSorted();
    assert.deepEqual(applied, prefer.split(', ').toSorted().toSpliced(3, 1));
  });
});
