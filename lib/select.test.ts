import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { boolean, integer, resource, text, timestamp } from './columns.ts';
import { parseQuery } from './dialect.ts';
import { JSON_TYPE } from './headers.ts';
import { countOf, planPage, selectOf, shownOf } from './select.ts';
import { numbered, type Sql, sql } from './sql.ts';

const HOSTILE = 'x"; drop table t; --';
const things = resource({
  path: 'things',
  table: 'ta"ble',
  key: 'id',
  columns: {
    name: text(20),
    size: integer(0, 9),
    good: boolean(),
    at: timestamp(),
    [HOSTILE]: integer(0, 9),
  },
});
things.notNull.add('id').add('good'); // as ensureTable() does
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
    // Keyset pagination: after the row with these values. No other condition lets an index be used.
    [cursor(), 't."id" > $1', ID],
    [
      `order=good.desc&${cursor('t')}`, // good is never null
      't."good" <= $1 and (t."good" < $2 or (t."good" = $3 and t."id" > $4))',
      ...['t', 't', 't', ID],
    ],
    [
      `order=size.desc&${cursor('7')}`, // nulls are first
      't."size" <= $1 and (t."size" < $2 or (t."size" = $3 and t."id" > $4))',
      ...['7', '7', '7', ID],
    ],
    [
      `order=size&${cursor('7')}`, // nulls are last
      't."size" >= $1 and (t."size" > $2 or (t."size" = $3 and t."id" > $4)) order by t."size" asc nulls last, t."id" asc ) union all (select * from "ta""ble" t where t."size" is null order by t."size" asc nulls last, t."id" asc )) t',
      ...['7', '7', '7', ID],
    ],
    [
      `order=size.desc&${cursor(null)}`,
      '(not t."size" is null or (t."size" is null and t."id" > $1))',
      ID,
    ],
    [`order=size&${cursor(null)}`, '(t."size" is null and t."id" > $1)', ID],
  ];
  for (const [query, where, ...values] of cases) {
    test(decodeURIComponent(query), () => {
      const [text, ...bound] = written(selectOf(things, parse(query), [sql`1`], []));
      const [, found] = / t where (.*) order by/.exec(String(text)) ?? [];
      assert.deepEqual([found, ...bound], [where, ...values]);
    });
  }
});

const mine = [sql`t.owner = ${'me'}`];
const FROM = 'from "ta""ble" t';
const selects: [query: string, tests: Sql[], limit: number | undefined, sql: unknown[]][] = [
  [
    '',
    mine,
    3,
    [
      `select t."id", t."name", t."size", t."good", to_json(t."at"), t."x""; drop table t; --" ${FROM} where t.owner = $1 order by t."id" asc limit 3`,
      'me',
    ],
  ],
  [
    'select=id&order=size.desc,name.nullsfirst&offset=5',
    [],
    undefined,
    [
      `select t."id" ${FROM} order by t."size" desc nulls first, t."name" asc nulls first, t."id" asc offset $1`,
      5,
    ],
  ],
  [
    'select=good,n:count(),size.sum()::int',
    [],
    2,
    [
      `select t."good", count(*), sum(t."size")::int ${FROM} group by t."good" order by t."good" asc limit 2`,
    ],
  ],
  ['select=size::text.max()', [], undefined, [`select max(t."size"::text) ${FROM}`]],
];
for (const [query, tests, limit, expected] of selects) {
  test(`selectOf() ${query || 'without parameters'}`, () => {
    const parsed = parse(query);
    const { columns } = shownOf(things, parsed.select);
    assert.deepEqual(written(selectOf(things, parsed, columns, tests, limit)), expected);
  });
}

const counts: [query: string, sql: unknown[]][] = [
  [
    'size=eq.1&limit=1&offset=2&order=name',
    [`select count(*) ${FROM} where t.owner = $1 and t."size" = $2`, 'me', '1'],
  ],
  [cursor(), [`select count(*) ${FROM} where t.owner = $1`, 'me']],
  [
    'select=good,count()',
    [
      `select count(*) from (select count(*) ${FROM} where t.owner = $1 group by t."good" ) t`,
      'me',
    ],
  ],
];
for (const [query, expected] of counts) {
  test(`countOf() ${query}`, () => {
    assert.deepEqual(written(countOf(things, parse(query), mine)), expected);
  });
}

const kinds: [select: string, kind: string][] = [
  ['id', 'text'],
  ['size', 'number'],
  ['good', 'boolean'],
  ['at', 'time'],
  ['at::text', 'text'],
  ['at::date', 'time'],
  ['size::text', 'text'],
  ['count()', 'number'],
  ['size.avg()', 'number'],
  ['at.max()', 'time'],
  ['name.min()', 'text'],
  ['size::text.max()', 'text'],
  ['size.sum()::text', 'text'],
  ['name::jsonb', 'json'],
];
for (const [select, kind] of kinds) {
  test(`shownOf() ${select} is ${kind}`, () => {
    const { fields } = shownOf(things, parse(`select=a:${select}`).select);
    assert.deepEqual(fields, [{ name: 'a', kind }]);
  });
}

const cursors: [query: string, row: (string | null)[], after: (string | null)[] | undefined][] = [
  ['order=size.desc,at', [ID, 'x', '7', 't', '"2026-01-31"', '1'], ['7', '2026-01-31', ID]],
  ['order=size', [ID, 'x', null, 't', null, '1'], [null, ID]],
  ['select=good&order=size', ['t', '7', ID], ['7', ID]], // behind the fields
  ['select=good,count()', ['t', '7'], undefined],
];
for (const [query, row, after] of cursors) {
  test(`planPage() ${query} has a cursor that parseQuery() reads`, () => {
    const wanted = { limit: 1, count: false, format: JSON_TYPE } as const;
    const { statement, toPage } = planPage(things, parse(query), wanted, []);
    const { next } = toPage([row, row]);
    if (after) assert.deepEqual(parse(`${query}&after=${next}`).after, after);
    else assert.equal(next, '');
    const beside = statement.text.includes('t."good", t."size", t."id" from');
    assert.equal(beside, query.startsWith('select=good&'));
  });
}
