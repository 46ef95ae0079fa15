import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { boolean, integer, resource, text } from './columns.ts';
import { parseQuery } from './dialect.ts';
import { countOf, selectOf } from './select.ts';
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
    [HOSTILE]: integer(0, 9),
  },
});
const parse = (query: string) => parseQuery(things, new URLSearchParams(query));
/** The text with each run of white space as one blank, then the values. */
const written = ({ text, values }: Sql) => [numbered(text).replace(/\s+/g, ' ').trim(), ...values];
const ID = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11';
const CURSOR = Buffer.from(JSON.stringify([ID])).toString('base64url');

/** What lists answer is in test/statements.test.ts; here, that no name or value becomes SQL. */
describe('The conditions of a list', () => {
  const cases: [query: string, where: string, ...values: unknown[]][] = [
    [
      'name=wfts(english).a',
      'to_tsvector($1::text::regconfig, t."name") @@ websearch_to_tsquery($2::text::regconfig, $3)',
      ...['english', 'english', 'a'],
    ],
    [`name=eq.${HOSTILE}`, 't."name" = $1', HOSTILE],
    [`"${HOSTILE.replace('"', '\\"')}"=eq.1`, 't."x""; drop table t; --" = $1', '1'],
  ];
  for (const [query, where, ...values] of cases) {
    test(decodeURIComponent(query), () => {
      const [text, ...bound] = written(selectOf(things, parse(query), [sql`1`], []));
      const [, found] = / t where (.*) order by/.exec(String(text)) ?? [];
      assert.deepEqual([found, ...bound], [where, ...values]);
    });
  }
});

test('countOf() counts the rows of a caller, before a cursor too', () => {
  const mine = [sql`t.owner = ${'me'}`];
  const query = parse(`after=${CURSOR}&limit=1&size=eq.1`);
  const expected = 'select count(*) from "ta""ble" t where t.owner = $1 and t."size" = $2';
  assert.deepEqual(written(countOf(things, query, mine)), [expected, 'me', '1']);
});
