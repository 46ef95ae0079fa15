import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { z } from 'zod';
import {
  boolean,
  type Column,
  date,
  integer,
  jsonb,
  now,
  number,
  oneOf,
  owner,
  resource,
  text,
  timestamp,
  uuid,
} from './columns.ts';
import { StartError, toFaults } from './problem.ts';
import { define } from './table.ts';
import { toUuid } from './types.ts';

const UUID = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11';
const ITEMS = z.array(z.strictObject({ id: z.int().min(0) })).min(1);
const deep = JSON.parse(`${'['.repeat(200)}${']'.repeat(200)}`);

const kinds: [name: string, column: Column, valid: unknown[], invalid: unknown[]][] = [
  ['boolean()', boolean(), [true, false], ['true', 1, [], {}, null]],
  ['integer(-1, 3)', integer(-1, 3), [-1, 0, 3], [-2, 4, 1.5, '1', 2 ** 31, true, null]],
  ['number(0, 9)', number(0, 9), [0, 8.5, 9], [-0.1, 9.1, '1', Infinity, Number.NaN, true, null]],
  ['number(0, MAX_VALUE)', number(0, Number.MAX_VALUE), [1e308], [-1, Infinity]],
  [
    'text(3)',
    text(3),
    ['x', '🚢🚢🚢', `'"\\`, 'a b'],
    ['🚢🚢🚢🚢', 'a\0', '\ud800', 7, ['x'], null],
  ],
  ['text(3), of blanks,', text(3), [], ['', ' ', '\u00a0\u3000', '\ufeff', '\u000b', '\t\n']],
  ['oneOf()', oneOf(['male', 'female']), ['male', 'female'], ['Female', '', 'man', 7, null]],
  ['uuid()', uuid(), [UUID], ['x', '', UUID.slice(1), 7, null]],
  [
    'date()',
    date(),
    ['0001-01-01', '2024-02-29'],
    ['2026-02-30', '0000-01-01', 'today', '2026-1-1'],
  ],
  ['date(), of another type,', date(), [], ['infinity', '', 20260101, null]],
  ['date({ from })', date({ from: '2020-01-01' }), ['2020-01-01'], ['2019-12-31']],
  ['timestamp()', timestamp(), ['2026-01-31T12:00:00Z', '2026-01-31T12:00:00.5+15:59'], []],
  [
    'timestamp() past what PostgreSQL reads',
    timestamp(),
    [],
    [
      ...['2026-02-30T00:00:00Z', '2026-01-01', '2026-01-01T00:00:00', 'now', '', 0, null],
      ...['2026-01-01T24:00:00Z', '2026-01-01T00:00:00+16:00', '9999-12-31T23:00:00-01:00'],
      `2026-01-01T00:00:00.${'0'.repeat(50)}Z`,
    ],
  ],
  [
    'jsonb()',
    jsonb(ITEMS, []),
    [[{ id: 1 }]],
    [[], {}, 'x', [{ id: -1 }], [{ id: 1, x: 2 }], null],
  ],
  ['jsonb() of anything', jsonb(z.unknown(), 1), [1, 'x', { a: [null] }, [[]]], []],
  [
    'jsonb() that cannot be stored',
    jsonb(z.unknown(), 1),
    [],
    [[Infinity], { '\0': 1 }, ['\ud800'], deep],
  ],
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
  ['{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', undefined],
  ['a0e-ebc99-9c0b-4ef8-bb6d-6bb9bd380a11', undefined],
  ['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11-', undefined],
  ['g0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', undefined],
  ['', undefined],
];
for (const [given, expected] of uuids) {
  test(`toUuid('${given}') is ${expected}`, () => assert.equal(toUuid(given), expected));
}

const definitions: [name: string, column: Column, expected: string][] = [
  [
    'one of',
    oneOf(["it's", 'b']),
    `"a" character varying(4) not null check ("a" in ('it''s', 'b'))`,
  ],
  [
    'a date with a default',
    date({ from: '2020-01-01', to: '2020-12-31', default: '2020-06-01' }),
    `"a" date not null default '2020-06-01' check ("a" between '2020-01-01' and '2020-12-31')`,
  ],
  [
    'a generated timestamp',
    timestamp({ generated: now, from: '2020-01-01T00:00:00Z' }),
    `"a" timestamp with time zone not null default now() check ("a" between '2020-01-01T00:00:00Z' and '9999-12-31T23:59:59Z')`,
  ],
  [
    'a unique JSON array',
    jsonb(ITEMS, [], { unique: true }),
    `"a" jsonb not null unique check (jsonb_typeof("a") = 'array')`,
  ],
];
for (const [name, column, expected] of definitions) {
  test(`define() of ${name}`, () => assert.equal(define('a', column), expected));
}

test('define() quotes the name', () => {
  const expected = '"a""b" boolean not null check ("a""b" in (true, false))';
  assert.equal(define('a"b', boolean()), expected);
});

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

  test('row adds null and constant defaults; the database adds SQL ones', () => {
    const expected = { plain: 1, optional: null, preset: '2020-06-01' };
    assert.deepEqual(things.row.parse({ plain: 1 }), expected);
  });

  test('part adds nothing', () => assert.deepEqual(things.part.parse({}), {}));

  const bodies: [name: string, body: unknown, faults: [pointer: string, detail: string][]][] = [
    ['a generated column', { plain: 1, made: 'x' }, [['/made', 'cannot be set']]],
    ['the owner', { plain: 1, user: 'x' }, [['/user', 'cannot be set']]],
    ['toString', { plain: 1, toString: 1 }, [['/toString', 'cannot be set']]],
    ['a key that is no UUID', { id: 'x', plain: 1 }, [['/id', 'must be a UUID']]],
    ['null for a value', { plain: null }, [['/plain', 'must be a whole number from 0 to 9']]],
    ['no value', {}, [['/plain', 'is missing; it must be a whole number from 0 to 9']]],
    ['null', null, [['', 'must be an object']]],
    ['an array', [], [['', 'must be an object']]],
  ];
  for (const [name, body, faults] of bodies) {
    test(`row refuses ${name}`, () => {
      const { error } = things.row.safeParse(body);
      const expected = faults.map(([pointer, detail]) => ({ pointer, detail }));
      assert.deepEqual(toFaults(error ?? assert.fail(), ''), expected);
    });
  }

  const reserved = ['select', 'order', 'limit', 'columns', 'on_conflict', 'or', 'not', 'a->b'];
  for (const name of ['', ...reserved]) {
    test(`refuses a column with the name "${name}"`, () => {
      const message = `resource things: column "${name}" needs another name: this one has a meaning in a query`;
      assert.throws(() => declare({ [name]: boolean() }), new StartError(message));
    });
  }
});
