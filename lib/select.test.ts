import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { boolean, integer, resource, text } from './columns.ts';
import { parseQuery } from './dialect.ts';
import { arrayOf, cursorOf, jsonOf, memberValue, rowsOf } from './select.ts';
import { numbered, type Sql, sql } from './sql.ts';

const HOSTILE = 'x"; drop table t; --';
const things = resource({
  path: 'things',
  table: 'ta"ble',
  key: 'id',
  columns: { name: text(20), size: integer(0, 9), good: boolean(), [HOSTILE]: integer(0, 9) },
});
const parse = (query: string) => parseQuery(things, new URLSearchParams(query));
/** The text with each run of white space as one blank, then the values. */
const written = ({ text, values }: Sql) => [numbered(text).replace(/\s+/g, ' ').trim(), ...values];
const cursor = (...values: (string | null)[]) =>
  `after=${Buffer.from(JSON.stringify([...values, ID])).toString('base64url')}`;
const ID = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11';

describe('The conditions of a list', () => {
  const cases: [query: string, where: string, ...values: unknown[]][] = [
    ['size=eq.7', 't."size" = $1', '7'],
    ['size=not.gte.7', 'not (t."size" >= $1)', '7'],
    ['size=isdistinct.7', 't."size" is distinct from $1', '7'],
    ['name=like.a*', 't."name" like $1', 'a%'],
    ['name=imatch.^a', 't."name" ~* $1', '^a'],
    ['size=in.(1,"2")', 't."size" = any($1)', '{"1","2"}'],
    ['good=is.not_null', 't."good" is not null'],
    ['size=gt(any).{1,2}', 't."size" > any($1)', '{1,2}'],
    ['name=fts.a', 'to_tsvector(t."name") @@ to_tsquery($1)', 'a'],
    [
      'name=wfts(english).a',
      'to_tsvector($1::text::regconfig, t."name") @@ websearch_to_tsquery($2::text::regconfig, $3)',
      ...['english', 'english', 'a'],
    ],
    [
      'or=(size.eq.1,and(size.gt.2,good.is.true))',
      '(t."size" = $1 or (t."size" > $2 and t."good" is true))',
      ...['1', '2'],
    ],
    ['size=gt.1&name=neq.a', 't."size" > $1 and t."name" <> $2', '1', 'a'],
    [`name=eq.${HOSTILE}`, 't."name" = $1', HOSTILE],
    [`"${HOSTILE.replace('"', '\\"')}"=eq.1`, 't."x""; drop table t; --" = $1', '1'],
    // Keyset pagination: one condition for each column of the order, the key is the last.
    [cursor(), '(t."id" > $1 or (t."id" = $2 and false))', ID, ID],
    [
      `order=size.desc&${cursor('7')}`,
      '(t."size" < $1 or (t."size" = $2 and (t."id" > $3 or (t."id" = $4 and false))))',
      ...['7', '7', ID, ID],
    ],
    [
      `order=size&${cursor('7')}`,
      '(t."size" > $1 or t."size" is null or (t."size" = $2 and (t."id" > $3 or (t."id" = $4 and false))))',
      ...['7', '7', ID, ID],
    ],
    [
      `order=size.desc&${cursor(null)}`,
      '(t."size" is not null or (t."size" is null and (t."id" > $1 or (t."id" = $2 and false))))',
      ...[ID, ID],
    ],
    [
      `order=size&${cursor(null)}`,
      '(false or (t."size" is null and (t."id" > $1 or (t."id" = $2 and false))))',
      ...[ID, ID],
    ],
  ];
  for (const [query, where, ...values] of cases) {
    test(decodeURIComponent(query), () => {
      const limits = { limit: null, offset: 0, tests: [] };
      const [text, ...bound] = written(rowsOf(things, parse(query), limits));
      const [, found] = /where (.*) order by/.exec(String(text)) ?? [];
      assert.deepEqual([found, ...bound], [where, ...values]);
    });
  }
});

describe('rowsOf()', () => {
  const ALL = '"id", "name", "size", "good", "x""; drop table t; --"';
  const mine = [sql`t.owner = ${'me'}`];
  const cases: [query: string, limits: Parameters<typeof rowsOf>[2], sql: unknown[]][] = [
    [
      '',
      { limit: 3, offset: 0, tests: mine },
      [
        `( select ${ALL} from "ta""ble" t where t.owner = $1 order by t."id" asc nulls last limit 3 )`,
        'me',
      ],
    ],
    [
      'order=size.desc,name.nullsfirst',
      { limit: null, offset: 5, tests: [] },
      [
        `( select ${ALL} from "ta""ble" t order by t."size" desc nulls first, t."name" asc nulls first, t."id" asc nulls last offset $1)`,
        5,
      ],
    ],
    [
      'select=good,n:count(),size.sum()::int',
      { limit: 2, offset: 0, tests: [] },
      [
        '( select t."good" as "c0", count(*) as "c1", sum(t."size")::int as "c2" from "ta""ble" t group by t."good" order by t."good" asc nulls last limit 2 )',
      ],
    ],
    [
      'select=size::text.max()',
      { limit: null, offset: 0, tests: [] },
      ['( select max(t."size"::text) as "c0" from "ta""ble" t )'],
    ],
  ];
  for (const [query, limits, expected] of cases) {
    test(query || 'without parameters', () => {
      assert.deepEqual(written(rowsOf(things, parse(query), limits)), expected);
    });
  }
});

describe('The JSON of a row', () => {
  test('without select is the row', () => {
    assert.deepEqual(written(jsonOf(parse('limit=1'), things)), [
      '(select row_to_json(r) from (select t."id", t."name", t."size", t."good", t."x""; drop table t; --") r)::text',
    ]);
    assert.deepEqual(written(arrayOf(parse('limit=1'), things)), ['json_agg(t)']);
  });

  test('binds an alias', () => {
    const query = parse(`select="${HOSTILE.replace('"', '\\"')}":size,good::text`);
    const object = 'json_build_object($1::text, t."size", $2::text, t."good"::text)::text';
    assert.deepEqual(written(jsonOf(query, things)), [object, HOSTILE, 'good']);
    const array = `'[' || string_agg(${object}, E', ') || ']'`;
    assert.deepEqual(written(arrayOf(query, things)), [array, HOSTILE, 'good']);
  });

  test('takes groups from the columns of rowsOf()', () => {
    const query = parse('select=good,count()');
    const [, count] = query.select ?? [];
    assert.deepEqual(written(memberValue(query, count ?? assert.fail(), 1)), ['t."c1"']);
  });
});

test('cursorOf() has the values of the order, which parseQuery() reads', () => {
  const query = parse('order=size.desc,name');
  const after = cursorOf(query, { size: 7, name: null, good: true, id: ID });
  const next = parse(`order=size.desc,name&after=${after}`);
  assert.deepEqual(next.after, ['7', null, ID]);
});
