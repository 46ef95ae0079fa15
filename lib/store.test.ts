/** The statements on one table, against a real PostgreSQL. RUNS=10000 compares more random filters. */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { after, before, beforeEach, describe, test } from 'node:test';
import fc from 'fast-check';
import { pino } from 'pino';
import { z } from 'zod';
import { openDatabase } from '../test/harness.ts';
import { boolean, jsonb, now, number, oneOf, resource, text, timestamp, uuid } from './columns.ts';
import { parseQuery } from './dialect.ts';
import { JSON_TYPE } from './headers.ts';
import { ownCall, Pool } from './pool.ts';
import { sql } from './sql.ts';
import { Store } from './store.ts';
import { ensureTable } from './table.ts';

const RUNS = Number(process.env.RUNS ?? 500);

const things = resource({
  path: 'things',
  table: 'thi"ngs',
  key: 'id',
  columns: {
    name: text(60),
    sex: oneOf(['male', 'female'], { nullable: true }),
    size: number(0, 1000, { nullable: true }),
    good: boolean({ nullable: true }),
    'a/"B': text(20, { unique: true, nullable: true }),
    tags: jsonb(z.array(z.string()), [], { default: ["it's"] }),
    at: timestamp({ default: now }),
    made: uuid({ generated: () => 'gen_random_uuid()' }),
  },
});

const database = await openDatabase();
const options = { DATABASE_URL: database.url, DB_PREPARE: 'true' } as const;
const pool = new Pool({ ...options, POOL_SIZE: 4, STREAMS: 4 }, pino({ level: 'silent' }));
after(() => pool.end());
const store = new Store(things, pool);
await ensureTable(things, pool);

type Row = Record<string, unknown>;
const call = ownCall;
const parse = (query: string) => parseQuery(things, new URLSearchParams(query));
const clear = () => database.sql`truncate "thi""ngs"`;
/** A whole row, as the endpoints give it to the store. */
const rowOf = (values: Row = {}): Row =>
  ({ id: randomUUID(), ...things.row.parse({ name: 'x', ...values }), ...values }) as Row;

/** The rows of a list, and the cursor of the next page. */
async function list(query: string, limit = 100): Promise<{ rows: Row[]; next: string }> {
  const page = await store.page(parse(query), { limit, count: false, format: JSON_TYPE }, call());
  return { rows: JSON.parse(page.body), next: page.next };
}

const count = async () => Number((await list('select=n:count()')).rows[0]?.n);

// --- Filters and selects ----------------------------------------------------------

describe('A list', () => {
  before(async () => {
    await clear();
    const one = rowOf({ name: 'Miss. Test', sex: 'male', size: 40.5, good: true });
    const two = rowOf({ name: 'Miss. Test', sex: 'female', size: 7, good: false });
    const none = rowOf({ name: 'Mr. Null' });
    await store.createMany([one, two, none], {}, call());
  });

  // What test/contract.ts does not ask of every table: sizes of the rows that are found.
  const found: [query: string, sizes: (number | null)[]][] = [
    ['size=eq. 7 ', [7]],
    ['size=not.isdistinct.7', [7]],
    ['size=is.not_null', [7, 40.5]],
    ['good=is.unknown', [null]],
    ['sex=like.m_le', [40.5]],
    ['sex=match.^(fe)?male$', [7, 40.5]],
    ['size=not.in.()', [7, 40.5, null]],
    ['size=not.eq(any).{7,8}', [40.5]],
    ['sex=like(any).{fe*,x*}', [7]],
    ['sex=ilike(all).{*MALE,FE*}', [7]],
    ['sex=match(any).{^f,^x}', [7]],
    ['name=fts.test', [7, 40.5]],
    ['name=fts(english).tests', [7, 40.5]],
    ['name=plfts.miss test', [7, 40.5]],
    ['name=phfts.test miss', []],
    ['name=wfts.test -miss', []],
  ];
  for (const [query, sizes] of found) {
    test(`?${query} finds ${sizes.join(' and ') || 'none'}`, async () => {
      const { rows } = await list(`${query}&order=size&select=size`);
      assert.deepEqual(rows.flatMap(Object.values), sizes);
    });
  }

  const refused: [query: string, sqlstate: string][] = [
    ['size=eq.abc', '22P02'],
    ['size=eq(any).{x}', '22P02'],
    ['sex=match.(', '2201B'],
    ['sex=fts(nolanguage).x', '42704'],
    ['select=sex.sum()', '42883'],
    ['select=count(),size&order=name', '42803'],
  ];
  for (const [query, code] of refused) {
    test(`?${query} is refused by PostgreSQL with ${code}`, async () => {
      await assert.rejects(list(query), { code });
    });
  }
});

describe('Random filters', () => {
  const [names, sexes] = [
    ["O'Neil, (x)", 'a\\b"c', '🚢', '%_*', 'x'],
    ['male', 'female', null],
  ];
  before(async () => {
    await clear();
    const rows = Array.from({ length: 120 }, (_, at) => {
      const size = at % 7 ? at % 11 : null;
      return rowOf({ name: names[at % 5], sex: sexes[at % 3], size, good: at % 2 > 0 });
    });
    await store.createMany(rows, {}, call());
  });

  const literal = (value: string) => `'${value.replaceAll("'", "''")}'`;
  const quoted = (value: string) => `"${value.replace(/["\\]/g, '\\$&')}"`;
  const comparisons = { eq: '=', neq: '<>', gt: '>', gte: '>=', lt: '<', lte: '<=' };
  const numeral = fc.constantFrom('0', '1', '7.25', '10', '-1', '1e1');
  const word = fc.oneof(
    fc.constantFrom('x', "O'", 'male', 'female', '%', '_', '*', '', 'a,b', '(x)', '"', '\\', '🚢'),
    fc.string({ maxLength: 6 }).filter((text) => !text.includes('\0')),
  );

  /** A condition of a tree, and the same in SQL. */
  type Pair = [condition: string, sql: string];
  const compare = (columns: string[], operators: object, values: fc.Arbitrary<string>) =>
    fc
      .tuple(fc.constantFrom(...columns), fc.constantFrom(...Object.entries(operators)), values)
      .filter(([, [name], value]) => !/like/.test(name) || !/\\$/.test(value))
      .map(([column, [name, sql], value]): Pair => {
        const pattern = /like/.test(name) ? value.replaceAll('*', '%') : value;
        return [`${column}.${name}.${quoted(value)}`, `${column} ${sql} ${literal(pattern)}`];
      });
  const listed = fc.array(word, { maxLength: 3 }).map((values): Pair => {
    const array = `array[${values.map(literal)}]::text[]`;
    return [`name.in.(${values.map(quoted)})`, `name = any(${array})`];
  });
  const plain = fc.oneof(
    compare(['size'], comparisons, numeral),
    compare(['name', 'sex'], { ...comparisons, like: 'like', ilike: 'ilike' }, word),
    listed,
    ...['null', 'true', 'false'].map((value) =>
      fc.constant<Pair>([`good.is.${value}`, `good is ${value}`]),
    ),
  );
  const negated = plain.map(
    ([condition, sql]): Pair => [condition.replace('.', '.not.'), `not (${sql})`],
  );
  const { tree } = fc.letrec<{ tree: Pair; node: Pair }>((tie) => {
    const branches = fc.array(tie('tree'), { minLength: 1, maxLength: 3 });
    const node = fc.tuple(fc.constantFrom('', 'not.'), fc.constantFrom('and', 'or'), branches);
    return {
      tree: fc.oneof({ depthSize: 'small' }, plain, negated, tie('node')),
      node: node.map(([not, by, parts]) => [
        `${not}${by}(${parts.map(([condition]) => condition)})`,
        `${not ? 'not ' : ''}(${parts.map(([, sql]) => sql).join(` ${by} `)})`,
      ]),
    };
  });

  test(`${RUNS} of them find what the same condition in SQL finds`, async () => {
    const property = fc.asyncProperty(tree, tree, async ([one, sql], [two, more]) => {
      const query = String(new URLSearchParams({ and: `(${one},${two})`, select: 'id' }));
      const where = `(${sql}) and (${more})`;
      const expected = await database.sql.unsafe(
        `select id from "thi""ngs" where ${where} order by id limit 20`,
      );
      assert.deepEqual((await list(query, 20)).rows, [...expected], query);
    });
    await fc.assert(property, { numRuns: RUNS });
  });
});

// --- Pages ------------------------------------------------------------------------

describe('Pages', () => {
  beforeEach(clear);

  test('go on after a row that was deleted', async () => {
    const [one, two, three] = [1, 2, 3].map((size) => rowOf({ size })) as [Row, Row, Row];
    await store.createMany([one, two, three], {}, call());
    const { next } = await list('order=size', 2);
    await store.remove(String(two.id), {}, call());
    const { rows } = await list(`order=size&after=${next}&select=id`, 2);
    assert.deepEqual(rows, [{ id: three.id }]);
  });

  test('a page, a row and its removal are planned once, however large the table', async () => {
    await database.sql`insert into "thi""ngs" (id, name, made, size)
      select gen_random_uuid(), 'x', gen_random_uuid(), n % 1000 from generate_series(1, 50000) n`;
    await database.sql`analyze "thi""ngs"`;
    const [row] = (await list('', 1)).rows;
    const { next } = await list('', 1);
    const own = new Pool({ ...options, POOL_SIZE: 1, STREAMS: 4 }, pino({ level: 'silent' }));
    const planned = new Store(things, own);
    const wanted = { limit: 20, count: false, format: JSON_TYPE } as const;
    for (let round = 0; round < 20; round += 1) {
      for (const query of ['size=neq.7', `after=${next}`])
        assert.equal((await planned.page(parse(query), wanted, call())).rows, 20);
      assert.ok(await planned.read(String(row?.id), call()));
      await planned.remove(randomUUID(), { match: '*' }, call());
    }
    const [plans] = await own.json(
      sql`select max(custom_plans) as most from pg_prepared_statements`,
    );
    await own.end();
    assert.equal(plans?.most, 5, 'PostgreSQL plans five times before it keeps the plan');
  });
});

// --- Writes -----------------------------------------------------------------------

describe('Requests that arrive together', () => {
  const batches = new Map<string, number>();
  before(async () => {
    await clear();
    pool.observe = (work, requests) =>
      batches.set(work, Math.max(batches.get(work) ?? 0, requests));
  });

  test('200 clients read what they wrote, in rows and in lists', async () => {
    const query = 'select=name&name=like.client *';
    const names = async () => (await list(query, 1000)).rows.map(({ name }) => name);
    const client = async (_: unknown, at: number) => {
      const row = rowOf({ name: `client ${at}` });
      const read = async () => (await store.read(String(row.id), call())).body;
      assert.equal((await store.create(row, call())).created, true);
      assert.equal(JSON.parse(await read()).name, row.name);
      assert.ok((await names()).includes(row.name));
      const renamed = { ...row, name: `client again ${at}` };
      assert.equal((await store.replace(renamed, {}, call())).created, false);
      assert.equal(JSON.parse(await read()).name, renamed.name);
      assert.equal((await store.remove(String(row.id), {}, call())).rows, 1);
      assert.equal(await read(), '');
    };
    await Promise.all(Array.from({ length: 200 }, client));
    assert.deepEqual(await names(), []);
  });

  test('of 200 creates and replaces the invalid ones alone fail', async (t) => {
    await clear();
    await database.sql`alter table "thi""ngs" add constraint no_evil check (name not like 'evil%')`;
    t.after(() => database.sql`alter table "thi""ngs" drop constraint no_evil`);
    const names = Array.from({ length: 200 }, (_, at) => (at % 3 ? 'good' : 'evil'));
    const rows = names.map((name) => rowOf({ name }));
    const write = (row: Row, at: number) =>
      at % 2 ? store.create(row, call()) : store.replace(row, {}, call());
    const outcomes = await Promise.allSettled(rows.map(write));
    for (const [at, outcome] of outcomes.entries()) {
      if (at % 3) assert.equal(outcome.status, 'fulfilled');
      else assert.equal(outcome.status === 'rejected' && outcome.reason.code, '23514');
    }
    assert.equal(await count(), names.filter((name) => name === 'good').length);
  });

  test('share statements, which the pool observes', () => {
    for (const work of ['read', 'create', 'replace', 'delete', 'list'])
      assert.ok(Number(batches.get(work)) > 1, work);
  });

  test('of 50 equal creates of one key one makes the row; the others see it is the same', async () => {
    const row = rowOf({ name: 'once', at: undefined });
    const made = await Promise.all(Array.from({ length: 50 }, () => store.create(row, call())));
    assert.equal(made.filter(({ created }) => created).length, 1);
    assert.ok(made.filter(({ created }) => !created).every(({ same }) => same));
    const other = await store.create({ ...row, name: 'other' }, call());
    assert.deepEqual([other.created, other.same], [false, false]);
  });

  test('of 20 writers with one version one wins', async () => {
    const row = rowOf();
    const { version } = await store.create(row, call());
    const merge = (_: unknown, size: number) =>
      store.merge(String(row.id), { size }, { match: [version] }, call()).then(
        ({ rows }) => rows,
        ({ status }) => status,
      );
    const made = await Promise.all(Array.from({ length: 20 }, merge));
    assert.deepEqual(made.sort(), [1, ...Array(19).fill(412)]);
  });
});

test('copy() stores the rows of all batches, whatever is in a text', async () => {
  await clear();
  const at = { at: '2026-01-31T12:00:00+00:00' };
  const shown = { name: 'a, "b"\n\\c \\.', sex: 'male', size: 1.5, good: false, tags: ['x,"y"'] };
  const [one, two] = [shown, { ...shown, size: null, name: '\\.' }];
  const rest = (async function* () {
    yield [];
    yield [rowOf({ ...two, ...at })];
  })();
  assert.equal(await store.copy([rowOf({ ...one, ...at })], rest, Object.keys(at), call()), 2);
  const found = await list(`order=size&select=${Object.keys(shown)}`);
  assert.deepEqual(found.rows, [one, two]);
});
