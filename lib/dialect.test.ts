/** Tests of the query dialect: a query string becomes data, or a Problem that says what is right. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { boolean, number, resource, text } from './columns.ts';
import { type Filter, type Parameter, parseQuery } from './dialect.ts';
import { Problem } from './problem.ts';

const people = resource({
  path: 'people',
  table: 'people',
  key: 'id',
  columns: { name: text(50), age: number(0, 150), alive: boolean(), 'odd name': text(10) },
});
const KEY = '0192f0c1-2f3a-7bcd-8123-456789abcdef';

function parse(query: string, allowed?: Parameter[]) {
  return parseQuery(people, new URLSearchParams(query), allowed);
}

/** The Problem of a query that is refused. */
function refusal(query: string, allowed?: Parameter[]): Problem {
  try {
    parse(query, allowed);
  } catch (error) {
    if (error instanceof Problem) return error;
    throw error;
  }
  throw new Error(`accepted: ${query}`);
}

function is(column: string, operator: string, value: string, modifier?: string): Filter {
  return { column, operator, modifier, value };
}

describe('filters', () => {
  const filters: [string, Filter[]][] = [
    ['age=gte.1&age=lt.9', [is('age', 'gte', '1'), is('age', 'lt', '9')]],
    ['age=not.gt.7', [{ not: is('age', 'gt', '7') }]],
    ['age=eq. 7 ', [is('age', 'eq', ' 7 ')]],
    ['name=eq.', [is('name', 'eq', '')]],
    ['name=eq."a"', [is('name', 'eq', '"a"')]],
    ['name=like.*a*', [is('name', 'like', '%a%')]],
    ['name=ilike(any).{a*,b}', [is('name', 'ilike', '{a%,b}', 'any')]],
    ['name=match.^a*', [is('name', 'match', '^a*')]],
    ['name[0]=eq.a&name[1]=eq.b', [is('name', 'eq', 'a'), is('name', 'eq', 'b')]],
    ['"odd name"=eq.a', [is('odd name', 'eq', 'a')]],
    ['age=in.(1,2)', [is('age', 'in', '{"1","2"}')]],
    ['name=in.("a,b","c\\"d")', [is('name', 'in', '{"a,b","c\\"d"}')]],
    ['name=in.( a, b)', [is('name', 'in', '{" a"," b"}')]],
    ['age=in.()', [is('age', 'in', '{}')]],
    ['alive=is.TRUE', [is('alive', 'is', 'TRUE')]],
    ['age=eq(any).{7,8}', [is('age', 'eq', '{7,8}', 'any')]],
    ['name=fts(english).x', [is('name', 'fts', 'x', 'english')]],
  ];
  for (const [query, expected] of filters)
    test(query, () => assert.deepEqual(parse(query).filters, expected));

  const [one, two] = [is('age', 'eq', '1'), is('age', 'eq', '2')];
  const trees: [string, Filter][] = [
    ['and=( age.eq.1,\tage.eq.2)', { tree: 'and', branches: [one, two] }],
    ['not.or=(age.eq.1)', { not: { tree: 'or', branches: [one] } }],
    [
      'or=(not.and (age.eq.1) , age.eq.2)',
      { tree: 'or', branches: [{ not: { tree: 'and', branches: [one] } }, two] },
    ],
    ['or=(odd name.eq.a)', { tree: 'or', branches: [is('odd name', 'eq', 'a')] }],
    ['or=(age.eq(any).{1,2})', { tree: 'or', branches: [is('age', 'eq', '{1,2}', 'any')] }],
  ];
  for (const [query, expected] of trees)
    test(query, () => assert.deepEqual(parse(query).filters, [expected]));
});

describe('select', () => {
  const plain = (...names: string[]) => names.map((name) => ({ name, column: name }));
  /** test/statements.test.ts has aliases, casts and aggregates, with their answers. */
  const selections: [string, object[]][] = [
    ['name, age', plain('name', 'age')],
    ['name ,\tage', plain('name', 'age')],
    [' "odd name" ', plain('odd name')],
    ['"a \\"b\\"":age', [{ name: 'a "b"', column: 'age' }]],
    [
      'age::double precision , id',
      [{ ...plain('age')[0], inner: 'double precision' }, ...plain('id')],
    ],
    [
      'n:age::int.sum()::text',
      [{ name: 'n', column: 'age', inner: 'int', aggregate: 'sum', cast: 'text' }],
    ],
  ];
  for (const [select, expected] of selections)
    test(select, () => {
      const members = parse(`select=${encodeURIComponent(select)}`).select ?? [];
      assert.deepEqual(JSON.parse(JSON.stringify(members)), expected);
    });

  test('an empty one is none', () => assert.equal(parse('select=').select, undefined));
});

describe('order, limit, offset, columns', () => {
  const up = (column: string) => ({ column, descending: false, nullsFirst: false });
  const orders: [string, object[]][] = [
    ['', [up('id')]],
    ['order=age', [up('age'), up('id')]],
    ['order=age , name', [up('age'), up('name'), up('id')]],
    ['order=age.desc', [{ column: 'age', descending: true, nullsFirst: true }, up('id')]],
    ['order="age".desc.nullslast', [{ ...up('age'), descending: true }, up('id')]],
    ['order=odd name.nullsfirst', [{ ...up('odd name'), nullsFirst: true }, up('id')]],
    ['order=id.desc', [{ column: 'id', descending: true, nullsFirst: true }]],
    ['order=age,age.desc,age', [up('age'), up('id')]],
    ['select=alive,count()', [up('alive')]],
    ['select=count()', []],
  ];
  for (const [query, expected] of orders)
    test(query || 'no order is by key', () => assert.deepEqual(parse(query).order, expected));

  const counts: [string, number][] = [
    ['0', 0],
    ['9'.repeat(50), Number.MAX_SAFE_INTEGER],
  ];
  for (const [digits, expected] of counts)
    test(`limit and offset of ${digits}`, () => {
      const { limit, offset } = parse(`limit=${digits}&offset=${digits}`);
      assert.deepEqual([limit, offset], [expected, expected]);
    });

  test('columns and on_conflict name each column once', () => {
    const query = parse('columns=name, age,name&on_conflict= id', ['columns', 'on_conflict']);
    assert.deepEqual([query.columns, query.on_conflict], [['name', 'age'], ['id']]);
  });

  test('after has a value for each column of the order', () => {
    const cursor = Buffer.from(JSON.stringify(['7', KEY])).toString('base64url');
    assert.deepEqual(parse(`order=age&after=${cursor}`).after, ['7', KEY]);
    assert.equal(refusal(`order=age,name&after=${cursor}`).code, 'PGRST100');
    assert.equal(refusal(`order=age&after=${cursor}&select=count()`).code, 'PGRST100');
  });
});

describe('refusals', () => {
  const refused: [string, string, RegExp][] = [
    ['age=50', 'PGRST100', /age=eq\.50/],
    ['age=eq', 'PGRST100', /age=eq\.eq/],
    ['age=EQ.7', 'PGRST100', /operators: eq, neq/],
    ['age=toString.1', 'PGRST100', /operators/],
    ['age=eq(english).7', 'PGRST100', /operators/],
    ['age=in(any).(7)', 'PGRST100', /operators/],
    ['age=eq(any).7', 'PGRST100', /\{/],
    ['age=in.7', 'PGRST100', /"\("/],
    ['age=in.(7', 'PGRST100', /"\)"/],
    ['age=is.7', 'PGRST100', /null/],
    ['name=eq.%00', 'PGRST100', /no NUL/],
    ['age=like.7', '42883', /for text/],
    ['alive=match.t', '42883', /for text/],
    ['or=', 'PGRST100', /"\("/],
    ['or=(age.eq.7', 'PGRST100', /"\)"/],
    ['or=(age.eq.7))', 'PGRST100', /nothing more/],
    ['or=(age)', 'PGRST100', /"\."/],
    ['or=(xor(age.eq.7))', 'PGRST100', /"\."/],
    ['nope=eq.1', '42703', /columns are id, name, age, alive, odd name\./],
    ['__proto__=eq.1', '42703', /columns are/],
    ['sort=age', '42703', /order=column\.desc/],
    ['_page=2', '42703', /limit=10&offset=20/],
    ['cursor=x', '42703', /after=…/],
    ['per_page=3', '42703', /limit=10/],
    ['fields=age', '42703', /select=column,column/],
    ['q=x', '42703', /ilike/],
    ['select=age::money', 'PGRST100', /a type/],
    ['select=age.median()', 'PGRST100', /nothing more/],
    ['select=name->a', '42883', /It is for jsonb/],
    ['select=friends(name)', 'PGRST200', /without embedding/],
    ['select=...friends(name)', 'PGRST200', /without embedding/],
    ['friends.name=eq.x', 'PGRST108', /without embedding/],
    ['order=friends(name)', 'PGRST108', /without embedding/],
    ['order=age.desc.asc', 'PGRST100', /\.nullsfirst/],
    ['order=age,', 'PGRST100', /a column/],
    ['limit=-1', 'PGRST100', /whole number/],
    ['limit=1&limit=2', 'PGRST100', /limit once/],
  ];
  for (const [query, code, hint] of refused)
    test(query, () => {
      const problem = refusal(query);
      assert.deepEqual([problem.status, problem.code], [400, code]);
      assert.match(String(problem.hint), hint);
    });

  test('a parameter that the route does not take is named with those that it takes', () => {
    const { message, hint } = refusal('limit=1', ['filter', 'select']);
    assert.match(message, /limit has no meaning here/);
    assert.equal(hint, 'This route takes: filter, select.');
    assert.equal(refusal('age=eq.1', []).hint, 'This route takes: no parameters.');
  });

  test('an unknown name in columns is 422 PGRST204, as in a body', () => {
    const { status, code } = refusal('columns=nope', ['columns']);
    assert.deepEqual([status, code], [422, 'PGRST204']);
  });

  test('a long name or value is shortened', () => {
    assert.ok(refusal(`${'x'.repeat(1e5)}=eq.1`).message.length < 200);
    assert.ok(String(refusal(`age=${'x'.repeat(1e5)}`).hint).length < 400);
  });
});

describe('bounds', () => {
  const many = (count: number, item: string, by = ',') => Array(count).fill(item).join(by);
  const nested = (levels: number) => `${'(and'.repeat(levels - 1)}(age.eq.7${')'.repeat(levels)}`;
  const bounds: [string, string, string, RegExp][] = [
    ['conditions', `or=(${many(500, 'age.eq.1')})`, `or=(${many(501, 'age.eq.1')})`, /500/],
    ['conditions', many(500, 'age=eq.1', '&'), many(501, 'age=eq.1', '&'), /500/],
    ['levels', `or=${nested(10)}`, `or=${nested(11)}`, /10 levels/],
    ['members', `select=${many(100, 'age')}`, `select=${many(101, 'age')}`, /100/],
    ['members', `select=${many(20, '*')}`, `select=${many(21, '*')}`, /100/],
    ['items', `age=in.(${many(10_000, '1')})`, `age=in.(${many(10_001, '1')})`, /10000/],
  ];
  for (const [name, fits, exceeds, hint] of bounds)
    test(`${name}: ${fits.slice(0, 30)} … at most ${hint.source}`, () => {
      assert.ok(parse(fits));
      const { status, code, hint: told } = refusal(exceeds);
      assert.deepEqual([status, code], [400, 'PGRST100']);
      assert.match(String(told), hint);
    });

  test('order has at most 32 different columns; a repeated one counts once', () => {
    const names = Array.from({ length: 33 }, (_, at) => `c${at}`);
    const columns = Object.fromEntries(names.map((name) => [name, boolean()]));
    const wide = resource({ path: 'wide', table: 'wide', key: 'id', columns });
    const order = (count: number): [string, string][] => [
      ['order', `c0,c0,${names.slice(0, count)}`],
    ];
    assert.equal(parseQuery(wide, order(32)).order.length, 33);
    assert.throws(() => parseQuery(wide, order(33)), { code: 'PGRST100', hint: /32 columns/ });
    assert.ok(parse(`order=${many(13_000, 'age')}`));
  });
});
