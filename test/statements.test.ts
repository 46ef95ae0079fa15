/** The SQL of requests: what it answers, which rows follow a cursor, and which forms it does not have. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, beforeEach, describe, test } from 'node:test';
import { parse } from 'csv-parse/sync';
import { z } from 'zod';
import * as kind from '../lib/columns.ts';
import { parseQuery } from '../lib/dialect.ts';
import { selectOf, shownOf } from '../lib/select.ts';
import { numbered, quote } from '../lib/sql.ts';
import { typeOf } from '../lib/types.ts';
import { openDatabase } from './harness.ts';
import { type Served, serveHere } from './inprocess.ts';

const table = (name: string, columns: Record<string, kind.Column>) =>
  kind.resource({ path: name, table: name, key: 'uuid', columns });
const kinds = table('kinds', {
  yes: kind.boolean(),
  whole: kind.integer(-(2 ** 31), 2 ** 31 - 1),
  fare: kind.number(-Number.MAX_VALUE, Number.MAX_VALUE),
  'a "b"': kind.text(150),
  choice: kind.oneOf(['a', 'b']),
  link: kind.uuid(),
  born: kind.date(),
  seen: kind.timestamp(),
  meta: kind.jsonb(z.unknown(), {}),
});
const [real, int] = [kind.number(0, 9), kind.integer(0, 99_999)];
const pages = table('pages', { x: real, y: int, p: real, q: int });
const stamped = table('stamped', {
  whole: int,
  made: kind.timestamp({ default: kind.now }),
  meta: kind.jsonb(z.union([z.string(), z.null()]), 'x', { default: 'x' }),
});

const TEXTS = [
  ...['"', "'", '\\', '\\"', ',', ';', 'a\nb', 'a\r\nb', 'a\t\b\f\u0001\u001f\u007fb', '\\.', '$1'],
  ...['a\u2028b\u2029c', '👩‍🚀', 'NULL', 'null', '{}', '{"a",NULL}', '</script>', '%'],
];
const NESTED = '{"a": ["\\"\\\\\\u2028👩‍🚀\\n", null, 1e-7, 1e21, {"": []}]}';
const LINK = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11';
/** Values as PostgreSQL reads them, the column repeats its own. */
const CELLS: Record<string, (string | null)[]> = {
  yes: ['t', 'f', null],
  whole: ['0', '-2147483648', '2147483647', null],
  fare: ['1e-7', '1e21', '-0', null, 'NaN', 'Infinity', '-Infinity', '0.1', '5e-324', '1e15'],
  'a "b"': [...TEXTS, '', ' blank ', null],
  choice: ['a', 'b', null],
  link: [LINK, null],
  born: ['2026-01-31', '0044-03-15 BC', 'infinity', '-infinity', null],
  seen: ['2026-01-31 12:00:00.123456+05:30', 'infinity', '0012-01-01 BC', null, '0001-01-01Z'],
  meta: [NESTED, '["text"]', 'false', null, '-0.50', '{}'],
};
const keyOf = (at: number) => `0192f0c1-2f3a-7bcd-8123-${String(at).padStart(12, '0')}`;

const database = await openDatabase();
let running: Served;
before(async () => {
  const { sql, url } = database;
  const columns = kinds.names.map((name) => `${quote(name)} ${typeOf(kinds, name)}`);
  await sql.unsafe(`create table kinds (${columns}, primary key (uuid));
    create table pages (uuid uuid primary key, x float, y int, p float not null, q int not null);
    insert into pages select gen_random_uuid(), nullif(n % 5, 0), nullif(n % 3, 0), n % 4, n % 7
      from generate_series(1, 40) n`);
  const places = kinds.names.map((name, at) => `$${at + 1}::text::${typeOf(kinds, name)}`);
  for (let at = 0; at < 23; at += 1) {
    const cells = Object.values(CELLS).map((list) => list[at % list.length] ?? null);
    await sql.unsafe(`insert into kinds values (${places})`, [keyOf(at), ...cells]);
  }
  const environment = { DATABASE_URL: `${url}?log_statement=all` };
  running = await serveHere({ resources: [kinds, pages, stamped] }, environment);
});
after(() => running?.stop());

type Headers = Record<string, string>;
const ask = (...request: Parameters<Served['send']>) => running.send(...request);

const OBJECT = { accept: 'application/vnd.pgrst.object+json' };
const ROWS = { prefer: 'return=representation' };
const FORMATS = { JSON: 'application/json', NDJSON: 'application/x-ndjson', CSV: 'text/csv' };

/** The rows as PostgreSQL prints them in JSON, or the texts of their values. */
async function oracle(format: string, select: string, rest = 'order by uuid') {
  const texts = '(select json_agg(value) from json_each_text(row_to_json(t)))';
  const all = format === 'CSV' ? texts : 'row_to_json(t)';
  const rows = `(select ${select} from kinds t ${rest}) t`;
  const found = await database.sql.unsafe(`select ${all}::text from ${rows}`);
  return found.map((row) => JSON.parse(Object.values(row)[0]));
}

function read(format: string, text: string): unknown[] {
  const cast = (value: string, { quoting }: { quoting: boolean }) => value || (quoting ? '' : null);
  if (format === 'CSV') return parse(text, { cast }).slice(1);
  const lines = format === 'JSON' ? [text] : text.split('\n').slice(0, -1);
  const values = lines.map((line) => JSON.parse(line));
  return format === 'JSON' ? values[0] : values;
}

describe('An answer has what PostgreSQL prints:', () => {
  const CASTS = [
    ...['yes::text', 'yes::int', 'whole::text', 'whole::bool', 'whole::float8', 'fare::text'],
    ...['fare::numeric', 'choice::text', 'link::text', 'born::text', 'born::timestamptz'],
    ...['seen::text', 'seen::date', 'seen::timestamp', 'meta::text', 'meta::json'],
  ];
  const SUMS = [
    ...['whole.sum', 'whole.avg', 'whole.max', 'fare.sum', 'fare.avg', 'fare.min', 'fare.max'],
    ...['fare.count', 'choice.min', 'choice.count', 'born.min', 'seen.max', 'seen.count'],
  ];
  const named = (texts: string[], as: (text: string, at: number) => string) => texts.map(as).join();
  const sumOf = (text: string, at: number) => text.replace(/(.*)[.](.*)/, `$2($1) as c${at}`);
  const SELECTS: [select: string, expressions: string, rest?: string][] = [
    ['*', '*'],
    ['"a \\"b\\"",n:whole,"a \\"b\\""', '"a ""b""", whole as n, "a ""b"""'],
    [named(CASTS, (cast, at) => `c${at}:${cast}`), named(CASTS, (cast, at) => `${cast} as c${at}`)],
    [named(SUMS, (sum, at) => `c${at}:${sum}()`), named(SUMS, sumOf), ''],
    ['count()::text,n:fare::text.max()', 'count(*)::text, max(fare::text) as n', ''],
    ['yes,born,meta,count()', 'yes, born, meta, count(*)', 'group by 1, 2, 3 order by 1, 2, 3'],
    ['a:born::text,whole.count()', 'born::text as a, count(whole)', 'group by born order by born'],
  ];
  for (const [select, expressions, rest] of SELECTS)
    for (const [format, accept] of Object.entries(FORMATS))
      test(`select=${select} as ${format}`, async () => {
        const path = `/kinds?select=${encodeURIComponent(select)}`;
        const { text } = await ask('GET', path, undefined, { accept });
        assert.deepEqual(read(format, text), await oracle(format, expressions, rest));
        if (rest !== undefined) return; // a write answers rows, not groups
        const headers = { accept, ...ROWS };
        const written = await ask('PATCH', `${path}&uuid=not.is.null`, { choice: 'b' }, headers);
        const inAnyOrder = (rows: unknown[]) => rows.map((row) => JSON.stringify(row)).sort();
        const stored = await oracle(format, expressions, '');
        assert.deepEqual(inAnyOrder(read(format, written.text)), inAnyOrder(stored));
      });

  test('a row by its key', async () => {
    for (const row of await oracle('JSON', '*'))
      assert.deepEqual((await ask('GET', `/kinds/${row.uuid}`)).json, row);
  });

  const SENT = TEXTS.map((text, at) => ({
    ...{ uuid: keyOf(100 + at), yes: true, whole: 1e6 + at, fare: [1e-7, 1e21, 5e-324][at % 3] },
    ...{ 'a "b"': text, choice: 'a', link: LINK, born: '2026-01-31' },
    ...{ seen: '2026-01-31T12:00:00.123456+00:00', meta: [text, { [text]: null }] },
  }));
  const ALL = '/kinds?whole=gte.1000000&whole=lte.1000099';
  const [one] = SENT as [(typeof SENT)[0]];
  const changed = SENT.map((row, at) => ({ ...row, fare: 1, yes: at % 2 === 0 }));
  const parts = SENT.map(({ uuid }, at) => ({ uuid, fare: 1, ...(at % 2 && { yes: false }) }));
  const WRITES: [method: string, path: string, body: unknown, expected: unknown, Headers][] = [
    ['POST', '/kinds', one, one, {}],
    ['PUT', `/kinds/${one.uuid}`, one, one, {}],
    ['PATCH', `/kinds/${one.uuid}`, { 'a "b"': '"\\' }, { ...one, 'a "b"': '"\\' }, {}],
    ['POST', '/kinds', SENT, SENT, { prefer: `${ROWS.prefer},resolution=merge-duplicates` }],
    ['PATCH', ALL, { fare: 2 }, SENT.map((row) => ({ ...row, fare: 2 })), ROWS],
    ['PATCH', '/kinds', SENT, SENT, ROWS],
    ['PATCH', '/kinds', parts, changed, ROWS],
    ['DELETE', ALL, undefined, changed, ROWS],
    ['POST', '/kinds', SENT, SENT, ROWS],
  ];
  for (const [at, [method, path, body, expected, headers]] of WRITES.entries())
    test(`${at}. ${method} ${path}`, async () => {
      const { json } = await ask(method, path, body, headers);
      const stored = await oracle('JSON', '*', 'where whole between 1e6 and 1000099 order by uuid');
      assert.deepEqual(stored, method === 'DELETE' ? [] : [expected].flat());
      const byKey = (a: kind.Row, b: kind.Row) => (String(a.uuid) < String(b.uuid) ? -1 : 1);
      assert.deepEqual(Array.isArray(json) ? json.sort(byKey) : json, expected);
    });
  after(() => ask('DELETE', ALL));
});

/** Each way to order by a column, as the parameter has it and as SQL. */
const ordersOf = (column: string) =>
  ['asc', 'desc'].flatMap((way) =>
    ['first', 'last'].map((nulls): [parameter: string, sql: string] => [
      `${column}.${way}.nulls${nulls}`,
      `${column} ${way} nulls ${nulls}`,
    ]),
  );

describe('Pages from link to link are the rows in order:', () => {
  const two = ['xy', 'xq', 'py', 'pq'].flatMap(([first = '', second = '']) =>
    ordersOf(first).flatMap(([parameter, order]) =>
      ordersOf(second).map((one) => ['pages', `${parameter},${one[0]}`, `${order}, ${one[1]}`]),
    ),
  );
  const columns = kinds.names.filter((name) => !name.includes('"'));
  const one = columns.flatMap((name) => ordersOf(name).map((order) => ['kinds', ...order]));
  for (const [at, [path, parameter, order]] of [...one, ...two].entries())
    test(`${path} by ${parameter}`, async () => {
      const select = at % 2 ? '*' : 'uuid'; // the cursor is of the row, or of columns beside it
      const rows = `(select ${select} from ${path} order by ${order}, uuid) t`;
      const all = await database.sql.unsafe(`select row_to_json(t)::text as json from ${rows}`);
      const expected = all.map(({ json }) => JSON.parse(json));
      const found: unknown[] = [];
      let next: string | undefined = `/${path}?select=${select}&limit=3&order=${parameter}`;
      if (select === '*') next = next.replace('select=*&', '');
      while (next && found.length <= expected.length) {
        const { json, headers } = await ask('GET', next);
        found.push(...json);
        next = /<(.*)>; rel="next"/.exec(headers.get('link') ?? '')?.[1];
      }
      assert.deepEqual(found, expected);
    });
});

describe('The plan of a page reads an index from the cursor:', () => {
  const deep = table('deep', pages.columns);
  before(async () => {
    await database.sql.unsafe(`create table deep (like pages including all);
      insert into deep select gen_random_uuid(), nullif(n % 1000, 0), n % 9, n % 1000, n % 9
        from generate_series(1, 20000) n;
      create index on deep (x); create index on deep (x nulls first); create index on deep (p);
      analyze deep`);
    for (const name of ['uuid', 'p', 'q']) deep.notNull.add(name);
  });
  for (const column of ['x', 'p'])
    for (const [order] of ordersOf(column))
      for (const more of ['', ',q.desc'])
        test(`order=${order}${more}`, async () => {
          const values = ['500', ...(more ? ['5'] : []), keyOf(0)];
          const after = Buffer.from(JSON.stringify(values)).toString('base64url');
          const query = parseQuery(deep, Object.entries({ order: order + more, after }));
          const { text, values: bound } = selectOf(deep, query, shownOf(deep).columns, [], 4);
          const lines = await database.sql.unsafe(`explain ${numbered(text)}`, bound as string[]);
          const plan = lines.map((line) => line['QUERY PLAN']).join('\n');
          assert.match(plan, new RegExp(`Index Scan.*\\n *Index Cond: \\(${column} [<>]= '500'`));
          assert.doesNotMatch(plan, /Seq Scan|Bitmap/);
        });
});

describe('On two rows', () => {
  const [a, b] = [1, 2].map((whole): kind.Row => ({ uuid: keyOf(whole), whole }));
  beforeEach(async () => {
    await database.sql`truncate stamped`;
    await ask('POST', '/stamped', [a, b]);
  });
  const ignored = 'resolution=ignore-duplicates';
  const CASES: [string, string, unknown, Headers, status: number, range?: string][] = [
    ['PATCH', '', [a, b], { ...OBJECT, ...ROWS }, 406],
    ['PATCH', '', [a, b], { prefer: 'handling=strict,max-affected=1' }, 400],
    ['PATCH', '', [a, b], { 'if-match': '"1"' }, 412],
    ['PATCH', '', [a, { ...a, whole: 7 }], {}, 400],
    ['PATCH', '?whole=eq.1', { whole: 7 }, { 'if-match': '"1"' }, 412],
    ['PATCH', '?whole=eq.1', { whole: 7 }, { 'if-none-match': '*' }, 412],
    ['DELETE', '?whole=eq.1', undefined, { 'if-match': '"1"' }, 412],
    ['DELETE', '?whole=eq.1', undefined, { 'if-none-match': '*' }, 412],
    ['PATCH', `/${a?.uuid}`, { whole: 7 }, { 'if-none-match': '*' }, 412],
    ['DELETE', `/${a?.uuid}`, undefined, { 'if-none-match': '*' }, 412],
    ['GET', `/${a?.uuid}`, undefined, { 'if-match': '"1"' }, 412],
    ['POST', '', a, { prefer: ignored }, 204, '*/*'],
    ['POST', '', a, { ...OBJECT, prefer: `${ignored},${ROWS.prefer}` }, 406],
    ['GET', '?select=count()', undefined, { prefer: 'count=exact' }, 200, '0-0/1'],
  ];
  for (const [method, query, body, headers, status, range] of CASES)
    test(`${method} ${query} ${JSON.stringify(body)} with ${JSON.stringify(headers)}`, async () => {
      const answer = await ask(method, `/stamped${query}`, body, headers);
      assert.equal(answer.status, status);
      assert.equal(answer.headers.get('content-range') ?? undefined, range);
      assert.equal(answer.text === '', status === 204);
      assert.deepEqual((await ask('GET', '/stamped?select=uuid,whole')).json, [a, b]);
    });

  test('lists at the same time keep their aliases', async () => {
    const paths = Array.from({ length: 20 }, (_, at) => `/stamped?select=n${at}:whole&limit=1`);
    const found = await Promise.all(paths.map(async (path) => (await ask('GET', path)).json));
    assert.deepEqual(
      found,
      Array.from(paths, (_, at) => [{ [`n${at}`]: 1 }]),
    );
  });

  for (const headers of [OBJECT, { accept: FORMATS.CSV, ...ROWS }, ROWS])
    test(`a repeated create is answered in the same way with ${JSON.stringify(headers)}`, async () => {
      const all = { 'idempotency-key': JSON.stringify(headers), ...headers };
      const create = () => ask('POST', '/stamped?select=n:whole', { whole: 5 }, all);
      assert.equal((await create()).text, (await create()).text);
    });

  test('PUT with If-Match sets the default of a column that the body lacks', async () => {
    const { json } = await ask('GET', `/stamped/${a?.uuid}`);
    const put = await ask('PUT', `/stamped/${a?.uuid}`, { whole: 1 }, { 'if-match': '*' });
    assert.ok(put.json.made > json.made);
  });

  test('a CSV for COPY has the defaults of the columns that it lacks, and null as JSON', async () => {
    const csv = `whole,meta\n${'5,null\n'.repeat(10_001)}`;
    assert.equal((await ask('POST', '/stamped', csv, { 'content-type': 'text/csv' })).status, 201);
    const path = '/stamped?whole=eq.5&select=meta,n:meta::text,count()&made=not.is.null';
    assert.deepEqual((await ask('GET', path)).json, [{ meta: null, n: 'null', count: 10_001 }]);
  });
});

test('No statement so far has a form that an engine of several nodes refuses', async () => {
  const [setting] = await database.sql`show data_directory`;
  const log = await readFile(join(setting?.data_directory, '../server.log'), 'utf8');
  const entries = log.split(/^(?=\d{4}-\d\d-\d\d [\d:.]+ \w+ \[\d+\] )/m);
  const statement = / LOG: {2}(?:execute|statement)[^:]*: (?!.*pg_attribute)(.*)/s;
  const sent = entries.flatMap((entry) => statement.exec(entry)?.[1] ?? []);
  const expected = [
    ...[/^insert into /, /^insert into .* do update set "/s, /do nothing/, /^copy "stamped" /],
    ...[/^update .* unnest\(/s, /^update .* where t."uuid" = \$\d/s, /^delete /, /^declare c /],
    ...[/^select .* where t."uuid" = \$1\s*$/s, /1 \/ \(case when/, / union all /, / group by /],
  ];
  const missed = expected.filter((form) => !sent.some((text) => form.test(text)));
  assert.deepEqual(missed, []);
  const forms = /lateral|json_populate_record|any\(\(select|json_agg|json_build|row_to_json/;
  const longer = /^copy .* where|^insert .* returning .*\(\s*select|set [^(]*"uuid" = excluded/s;
  const refused = sent.filter((text) => forms.test(text) || longer.test(text));
  assert.deepEqual(refused, []);
});
