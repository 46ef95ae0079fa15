import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  arrayLiteral,
  identifier,
  identifiers,
  join,
  literal,
  numbered,
  raw,
  type Sql,
  sql,
  toText,
  where,
} from './sql.ts';

const HOSTILE = `a"; drop table t; --`;

const statements: [name: string, sql: Sql, text: string, values: unknown[]][] = [
  ['sql`` binds text with SQL in it', sql`a = ${HOSTILE}`, 'a = $1', [HOSTILE]],
  ['sql`` binds null', sql`a = ${null}`, 'a = $1', [null]],
  ['sql`` includes Sql', sql`a ${sql`b ${1}`} ${2}`, 'a b $1 $2', [1, 2]],
  ['raw() is text', sql`order by a ${raw('desc')}`, 'order by a desc', []],
  ['identifier() quotes', identifier(HOSTILE), '"a""; drop table t; --"', []],
  ['identifiers() have commas', identifiers(['a', 'b"'], 't.'), 't."a", t."b"""', []],
  ['join() has commas', join([sql`a ${1}`, sql`b ${2}`]), 'a $1, b $2', [1, 2]],
  ['join() of nothing is empty', join([]), '', []],
  ['where() has and', where([sql`a = ${1}`, sql`b`]), 'where a = $1 and b', [1]],
];
for (const [name, { text, values }, expectedText, expectedValues] of statements) {
  test(name, () => assert.deepEqual([numbered(text), values], [expectedText, expectedValues]));
}

const texts: [name: string, text: string, expected: string][] = [
  ['literal() doubles quotes', literal("it's"), "'it''s'"],
  ['literal() of JSON', literal(["it's"]), `'["it''s"]'`],
  ['toText() of JSON', toText({ a: [null] }), '{"a":[null]}'],
  ['arrayLiteral() of nothing', arrayLiteral([]), '{}'],
  [
    'arrayLiteral() of JSON',
    arrayLiteral([1.5, true, null, { a: '"' }]),
    '{1.5,true,NULL,"{\\"a\\":\\"\\\\\\"\\"}"}',
  ],
  ['arrayLiteral() escapes', arrayLiteral(['a', 'b,"c"', '\\', '']), '{"a","b,\\"c\\"","\\\\",""}'],
];
for (const [name, text, expected] of texts) {
  test(name, () => assert.equal(text, expected));
}
