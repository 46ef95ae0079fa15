import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { z } from 'zod';
import {
  arrayOf,
  bigint,
  boolean,
  type Column,
  checkPaths,
  date,
  identity,
  integer,
  jsonb,
  now,
  number,
  numeric,
  oneOf,
  owner,
  references,
  resource,
  smallint,
  text,
  timestamp,
  uuid,
} from './columns.ts';
import { StartError, toFaults } from './problem.ts';
import { toUuid } from './types.ts';

const UUID = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11';
const ITEMS = z.array(z.strictObject({ id: z.int().min(0) })).min(1);
const DEEP = JSON.parse(`${'['.repeat(200)}${']'.repeat(200)}`);
const LOCAL = timestamp({ zone: false });
const ANY = jsonb(z.unknown(), 1);
const FRACTION = `2026-01-01T00:00:00.${'0'.repeat(50)}Z`;
const LATEST = '9999-12-31T23:00:00-01:00';
const EVEN = integer(0, 9, {
  check: (value: number) => (value % 2 === 0 ? undefined : 'must be even'),
});

/** table.test.ts has values that the table accepts and refuses as well. */
const kinds: [name: string, column: Column, valid: unknown[], invalid: unknown[]][] = [
  ['boolean()', boolean(), [], ['true', 1, [], {}]],
  ['integer(-1, 3)', integer(-1, 3), [-1, 3], [-2, 4, 1.5, '1', true]],
  ['number(0, 9)', number(0, 9), [0, 8.5, 9], [9.1, '1', Infinity, Number.NaN, true]],
  ['text(3)', text(3), [], ['a\0', '\ud800', 7, ['x']]],
  ['text()', text(), ['x'.repeat(1000)], ['', ' ', 'a\0', 7]],
  ['smallint()', smallint(), [-(2 ** 15), 2 ** 15 - 1], [2 ** 15, -(2 ** 15) - 1, 0.5]],
  ['integer()', integer(), [-(2 ** 31), 2 ** 31 - 1], [2 ** 31]],
  ['bigint()', bigint(), [-(2 ** 53) + 1, 2 ** 53 - 1], [2 ** 53, 1e300, '1']],
  ['numeric()', numeric(), [0.1, 1e300], [Infinity, '1']],
  ['numeric(4, 2)', numeric(4, 2), [0.29, -99.99, 1.1], [0.001, 100, 99.999, '1']],
  ['numeric(30, 0)', numeric(30, 0), [2 ** 53 - 1], [2 ** 53, 0.5]],
  ['arrayOf(integer(0, 9))', arrayOf(integer(0, 9)), [[], [0, 9]], [[10], [null], ['1'], 1, null]],
  ['timestamp({ zone: false })', LOCAL, ['2026-01-31T12:00:00.5'], ['2026-01-31T12:00:00Z']],
  ['timestamp() without zone', LOCAL, [], ['2026-01-31T12:00:00+01:00', '2026-02-30T12:00:00', 1]],
  ['a column with a function for a check', EVEN, [2], [1, 12]],
  ['a column with a schema for a check', text(20, { check: z.email() }), ['a@b.cd'], ['a']],
  ['uuid()', uuid(), [UUID], ['x', 7, null]],
  ['date()', date(), ['0001-01-01', '2024-02-29'], ['0000-01-01', 'today', '2026-1-1', 20260101]],
  ['timestamp()', timestamp(), [], ['2026-02-30T00:00:00Z', '2026-01-01', 'now', 0]],
  ['timestamp() of PostgreSQL', timestamp(), [], ['2026-01-01T24:00:00Z', FRACTION, LATEST]],
  ['jsonb()', jsonb(ITEMS, []), [[{ id: 1 }]], [[], {}, [{ id: -1 }], [{ id: 1, x: 2 }]]],
  ['jsonb() of anything', ANY, [1, 'x', { a: [null] }, [[]]], [[Infinity], { '\0': 1 }, DEEP]],
];
for (const [name, column, valid, invalid] of kinds) {
  for (const value of valid) {
    test(`${name} accepts ${JSON.stringify(value)}`, () => {
      assert.deepEqual(column.schema.parse(value), value);
    });
  }
  for (const value of invalid) {
    test(`${name} refuses ${JSON.stringify(value).slice(0, 60)}`, () => {
      assert.equal(column.schema.safeParse(value).success, false);
    });
  }
}

test('text() removes blanks around the value', () => {
  assert.equal(text(4).schema.parse(' \u00a0Anna\n'), 'Anna');
});

const uuids: [given: string, expected: string | undefined][] = [
  [UUID, UUID],
  [UUID.toUpperCase(), UUID],
  ['{a0eebc99-9c0b4ef8-bb6d6bb9-bd380a11}', UUID],
  ['a0eebc999c0b4ef8bb6d6bb9bd380a11', UUID],
  ['a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11', UUID],
  ['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1', undefined],
  ['a0e-ebc99-9c0b-4ef8-bb6d-6bb9bd380a11', undefined],
  ['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11-', undefined],
  ['g0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', undefined],
  ['', undefined],
];
for (const [given, expected] of uuids) {
  test(`toUuid('${given}') is ${expected}`, () => assert.equal(toUuid(given), expected));
}

describe('resource()', () => {
  const declare = (columns: Record<string, Column>) =>
    resource({ path: 'things', table: 'things', key: 'id', columns });
  const things = declare({
    plain: integer(0, 9),
    optional: text(9, { nullable: true }),
    preset: date({ default: '2020-06-01' }),
    computed: timestamp({ default: now }),
    made: timestamp({ generated: now }),
    user: owner(/^user:/),
  });

  test('knows which columns a body may have and which it needs', () => {
    const { names, settable, required, owner } = things;
    assert.deepEqual(
      { names, settable, required, owner },
      {
        names: ['id', 'plain', 'optional', 'preset', 'computed', 'made', 'user'],
        settable: ['plain', 'optional', 'preset', 'computed'],
        required: ['plain'],
        owner: 'user',
      },
    );
  });

  test('row adds null and constant defaults, part nothing; the database adds SQL ones', () => {
    const expected = { plain: 1, optional: null, preset: '2020-06-01' };
    assert.deepEqual([things.row.parse({ plain: 1 }), things.part.parse({})], [expected, {}]);
  });

  const bodies: [name: string, body: unknown, pointer: string, detail: string][] = [
    ['the owner', { plain: 1, user: 'x' }, '/user', 'cannot be set'],
    ['a key that is no UUID', { id: 'x', plain: 1 }, '/id', 'must be a UUID'],
    ['null for a value', { plain: null }, '/plain', 'must be a whole number from 0 to 9'],
    ['no value', {}, '/plain', 'is missing; it must be a whole number from 0 to 9'],
    ['null', null, '', 'must be an object'],
  ];
  for (const [name, body, pointer, detail] of bodies) {
    test(`row refuses ${name}`, () => {
      const { error } = things.row.safeParse(body);
      assert.deepEqual(toFaults(error ?? assert.fail(), ''), [{ pointer, detail }]);
    });
  }

  /** Asserts that a declaration is refused with a message that begins so. */
  const assertRefused = (make: () => unknown, message: string) =>
    assert.throws(make, (error: Error) => {
      return error instanceof StartError && error.message.startsWith(message);
    });

  const reserved = ['select', 'order', 'limit', 'columns', 'on_conflict', 'or', 'not', 'a->b'];
  for (const name of ['', ...reserved]) {
    test(`refuses a column with the name "${name}"`, () => {
      const message = `resource things: column "${name}" needs another name`;
      assertRefused(() => declare({ [name]: boolean() }), message);
    });
  }

  const NEEDS = 'must be';
  const wrong: [column: unknown, fault: string][] = [
    [integer(1, 0), 'must be integer(least, most): whole numbers from -2147483648 to 2147483647'],
    [smallint(0, 40_000), 'must be smallint(least, most): whole numbers from -32768 to 32767'],
    [number(Number.NaN), 'must be number(least, most): two numbers'],
    [text(0), 'must be text(most): a length from 1 to 10485760, or text()'],
    [numeric(2, 3), 'must be numeric(10, 2)'],
    [oneOf([]), "must be oneOf(['a', 'b'])"],
    [oneOf(undefined as never), "must be oneOf(['a', 'b'])"],
    [date({ from: '2026-01-02', to: '2026-01-01' }), 'has no time from 2026-01-02 to 2026-01-01'],
    [arrayOf(jsonb()), 'must be arrayOf() of a simple kind, else jsonb()'],
    [text(5, { nulable: true } as object), 'has unknown options: nulable'],
    [identity(), 'cannot be identity(): only a key can'],
    [
      oneOf(['paper', 'wood'], { default: 'stone' }),
      'has the default "stone", which must be paper or wood; SQL comes from a function, as now',
    ],
    [timestamp({ default: 'now()' }), 'has the default "now()", which must be a moment'],
    [integer(0, 9, { default: null }), 'has the default null, which must be a whole number'],
  ];
  for (const [column, fault] of wrong) {
    test(`refuses a column that ${fault}`, () => {
      const make = () => declare({ a: column as Column });
      assertRefused(make, `resource things: column "a" ${fault}`);
    });
  }

  const members: [change: object, message: string][] = [
    [{ colums: {} }, 'colums is unknown; a resource has path, table, key, columns, unique'],
    [{ path: 'a/b' }, `path ${NEEDS} one segment of a URL, as books`],
    [{ table: 'shop.books' }, `table ${NEEDS} a name without a dot; search_path of the role`],
    [{ columns: undefined }, 'columns '],
    [{ columns: { a: 'text' } }, `columns.a ${NEEDS} a kind, as text(50)`],
    [{ unique: ['a', 'c'] }, 'unique has c; the columns are id,a,b'],
    [{ unique: 'a' }, `unique ${NEEDS} names of columns, as [a, b]`],
    [{ before: 1 }, `before ${NEEDS} a function`],
    [
      { key: 'a' },
      'column "a" cannot be the key: one is a uuid, text, smallint, integer or bigint',
    ],
  ];
  for (const [change, message] of members) {
    test(`refuses ${JSON.stringify(change)}`, () => {
      const columns = { a: boolean(), b: boolean() };
      const declaration = { path: 'things', table: 'things', key: 'id', columns, ...change };
      assertRefused(() => resource(declaration), `resource ${declaration.path}: ${message}`);
    });
  }

  test('two tables of one path are refused', () => {
    const message = 'resource things: two tables have this path; each needs its own';
    assert.throws(() => checkPaths([things, things]), new StartError(message));
  });

  const makers: [maker: string, column?: Column][] = [
    ['service'],
    ['service', uuid()],
    ['database', identity()],
    ['database', uuid({ generated: () => 'gen_random_uuid()' })],
    ['body', text(5)],
    ['body', references('others', 'n', bigint())],
  ];
  for (const [maker, column] of makers) {
    test(`the ${maker} makes a key of ${column?.type ?? 'no column'}`, () => {
      const made = declare({ ...(column && { id: column }), a: boolean() });
      assert.deepEqual([made.keyMaker, made.names], [maker, ['id', 'a']]);
    });
  }
});
