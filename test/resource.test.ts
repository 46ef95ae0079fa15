/**
 * Declarations with every kind of column, made at random and by hand, each served by createApp() on
 * a real database: `RUNS=50 FC_SEED=… node --import tsx --test test/resource.test.ts`
 */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { after, before, describe, test } from 'node:test';
import fc from 'fast-check';
import { z } from 'zod';
import * as kinds from '../lib/columns.ts';
import { arrayLiteral } from '../lib/sql.ts';
import { openTables, type Row } from './deployment.ts';
import { bearer, lint, openDatabase } from './harness.ts';
import { type Served, serveHere } from './inprocess.ts';

const SECRET = 'a-secret-of-32-bytes-or-of-more-than-that';
const CSV = { 'content-type': 'text/csv' };

const database = await openDatabase();

/** The resource, with its table in the test's database. */
const open = (resource: kinds.Resource, environment = {}) =>
  serveHere({ resources: [resource] }, { DATABASE_URL: database.url, ...environment });

const TEXT = fc
  .string({ unit: 'grapheme', minLength: 1, maxLength: 20 })
  .filter((text) => !text.includes('\0') && text === text.trim() && text !== '');
const MIXED = z.union([z.string(), z.number(), z.boolean(), z.array(z.array(z.string()))]);
const ITEM = z.strictObject({ id: z.int().min(0), tags: z.array(z.string()) });
const MOMENT = fc
  .date({ min: new Date('0001-01-02'), max: new Date('9999-12-30'), noInvalidDate: true })
  .map((date) => date.toISOString());

/** What a column is declared with; a kind takes what it needs of it. */
const DRAWN = fc.record({
  options: fc.record({ nullable: fc.boolean() }),
  bounds: fc.tuple(fc.integer({ min: -1e6, max: 1e6 }), fc.nat(1000)),
  length: fc.integer({ min: 20, max: 60 }),
  words: fc.uniqueArray(TEXT, { minLength: 1, maxLength: 4 }),
});
type Drawn = ReturnType<typeof DRAWN.generate>['value'];

/** A column and the values that fit; {} fits none, lib/columns.test.ts has more that do not. */
type Sample = [column: kinds.Column, good: fc.Arbitrary<unknown>];

/** Every kind, by the name of the kind. */
const KINDS: Record<string, (drawn: Drawn) => Sample> = {
  boolean: ({ options }) => [kinds.boolean(options), fc.boolean()],
  integer: ({ options, bounds: [min, range] }) => [
    kinds.integer(min, min + range, options),
    fc.integer({ min, max: min + range }),
  ],
  number: ({ options, bounds: [min, range] }) => [
    kinds.number(min, min + range, options),
    fc.double({ min, max: min + range, noNaN: true }),
  ],
  text: ({ options, length }) => [
    kinds.text(length, options),
    TEXT.filter((text) => [...text].length <= length),
  ],
  numeric: ({ options, bounds: [cents] }) => [
    kinds.numeric(10, 2, options),
    fc.constant(cents / 100),
  ],
  smallint: ({ options }) => [
    kinds.smallint(options),
    fc.integer({ min: -(2 ** 15), max: 2 ** 15 - 1 }),
  ],
  bigint: ({ options }) => [kinds.bigint(options), fc.maxSafeInteger()],
  anytext: ({ options }) => [kinds.text(options), TEXT],
  texts: ({ options }) => [kinds.arrayOf(kinds.text(60), options), fc.array(TEXT)],
  numbers: ({ options }) => [
    kinds.arrayOf(kinds.number(), options),
    fc.array(fc.double({ noNaN: true, noDefaultInfinity: true })),
  ],
  local: ({ options }) => [
    kinds.timestamp({ zone: false, ...options }),
    MOMENT.map((text) => text.slice(0, 19)),
  ],
  oneOf: ({ options, words }) => [kinds.oneOf(words, options), fc.constantFrom(...words)],
  uuid: ({ options }) => [kinds.uuid(options), fc.uuid()],
  date: ({ options }) => [
    kinds.date({ to: '9999-12-30', ...options }),
    MOMENT.map((text) => text.slice(0, 10)),
  ],
  timestamp: ({ options }) => [kinds.timestamp(options), MOMENT],
  jsonb: ({ options }) => [
    kinds.jsonb(z.array(ITEM).min(1), [{ id: 1, tags: [] }], options),
    fc.array(fc.record({ id: fc.nat(), tags: fc.array(TEXT) }), { minLength: 1 }),
  ],
  mixedjsonb: ({ options }) => [
    kinds.jsonb(MIXED, 1, options),
    fc.oneof(TEXT, fc.integer(), fc.boolean(), fc.array(fc.array(TEXT))),
  ],
};

/** Keys by each maker, and the key of the next row, where the body has it. */
let last = 0;
const KEYS: Record<string, [key: kinds.Column | undefined, next: () => Row]> = {
  service: [undefined, () => ({})],
  identity: [kinds.identity(), () => ({})],
  integer: [kinds.integer(), () => ({ id: ++last })],
  bigint: [kinds.bigint(), () => ({ id: ++last * 2 ** 32 })],
  text: [kinds.text(), () => ({ id: `"${++last}", {é}/` })],
};

/** A declaration of all kinds in some order, with rows that fit. */
const DECLARATION = fc
  .shuffledSubarray(Object.entries(KINDS), { minLength: 10 })
  .chain((all) =>
    fc.tuple(
      ...all.map(([kind, make]) => DRAWN.map((drawn) => [`the${kind}`, ...make(drawn)] as const)),
    ),
  )
  .chain((columns) => {
    const row = fc.record(Object.fromEntries(columns.map(([name, , good]) => [name, good])));
    const print = () => columns.map(([name, { expects }]) => `${name}: ${expects}`).join('; ');
    Object.assign(columns, { [fc.toStringMethod]: print });
    const key = fc.constantFrom(...Object.keys(KEYS));
    return fc.record({ key, columns: fc.constant(columns), rows: fc.tuple(row, row, row) });
  });

/** As it comes back: a moment may be written in another way, and -0 is 0 in JSON. */
function comparable(row: Row): Row {
  const { thetimestamp } = row;
  const moment = thetimestamp && Date.parse(String(thetimestamp));
  return JSON.parse(JSON.stringify({ ...row, thetimestamp: moment }));
}

/** Asserts what every column of a declaration does with its values. */
async function tryColumn(
  send: Served['send'],
  name: string,
  nullable: boolean,
  made: Row[],
  next: () => Row,
) {
  const [{ id: _, ...row } = {}] = made;
  for (const value of [{}, null, undefined]) {
    const { status, json } = await send('POST', '/things', { ...next(), ...row, [name]: value });
    if (nullable && !value) await send('DELETE', `/things/${encodeURIComponent(json.id)}`);
    else assert.deepEqual([status, json.errors[0].pointer], [422, `/${name}`]);
  }
  const value = JSON.stringify(row[name]);
  const plain = typeof row[name] === 'string' && !/jsonb/.test(name) ? row[name] : value;
  const text = /(texts|numbers)$/.test(name) ? arrayLiteral(row[name] as unknown[]) : plain;
  const found = await send('GET', `/things?${new URLSearchParams({ [name]: `eq.${text}` })}`);
  const same = made.filter((one) => JSON.stringify(one[name]) === value);
  assert.deepEqual(found.json, same, `${name}=eq.${text}`);
  assert.deepEqual((await send('GET', `/things?${name}=is.null`)).json, []);
  const page = await send('GET', `/things?order=${name}.desc&limit=2`);
  const [, rest = ''] = /^<(.*)>; rel="next"/.exec(page.headers.get('link') ?? '') ?? [];
  assert.deepEqual([page.json.length, (await send('GET', rest)).json.length], [2, 1], name);
}

test('any declaration makes a table, takes what fits, refuses what does not, filters, describes itself', async () => {
  let runs = 0;
  const property = fc.asyncProperty(DECLARATION, async ({ key, columns, rows }) => {
    runs += 1;
    const declared = Object.fromEntries(columns.map(([name, column]) => [name, column]));
    const table = `t"${runs}`;
    const [id, next] = KEYS[key] ?? assert.fail();
    const all = { ...declared, ...(id && { id }) };
    const resource = kinds.resource({ path: 'things', table, key: 'id', columns: all });
    const served = await open(resource);
    try {
      const made: Row[] = [];
      for (const row of rows) {
        const sent = { ...next(), ...row };
        const { json, text } = await served.send('POST', '/things', sent);
        assert.deepEqual(comparable(json), comparable({ id: json.id, ...sent }), text);
        assert.deepEqual(Object.keys(json), resource.names);
        made.push(json);
      }
      for (const [name, { nullable }] of columns)
        await tryColumn(served.send, name, Boolean(nullable), made, next);
      const [table] = await openTables(served.url);
      const wanted = columns.filter(([, { nullable }]) => !nullable).map(([name]) => name);
      assert.deepEqual(table?.required, [...Object.keys(next()), ...wanted]);
      const { json } = await served.send('GET', '/openapi.json');
      if (runs === 1) assert.deepEqual(await lint(json), []);
    } finally {
      await served.stop();
    }
    await (await open(resource)).stop(); // the table is as declared
    await database.sql.unsafe(`drop table "t""${runs}"`);
  });
  const seed = process.env.FC_SEED ? { seed: Number(process.env.FC_SEED) } : {};
  const numRuns = Number(process.env.RUNS ?? 8);
  await fc.assert(property, { numRuns, ...seed, endOnFailure: true });
});

describe('A column', () => {
  const resource = kinds.resource({
    ...{ path: 'things', table: 'things', key: 'id' },
    columns: {
      slug: kinds.text(20, { unique: true }),
      'a/"B': kinds.integer(0, 9, { unique: true, nullable: true, csv: 'AB' }),
      at: kinds.timestamp({ default: kinds.now, csv: 'At' }),
      day: kinds.date({ from: '2020-01-01', to: '2020-12-31', default: '2020-06-01' }),
      tags: kinds.jsonb(z.array(z.string()), ['x'], { default: ["it's"] }),
      made: kinds.timestamp({ generated: kinds.now }),
      token: kinds.uuid({ generated: () => 'gen_random_uuid()', unique: true }),
    },
  });
  let send: Served['send'];
  let stop: Served['stop'] | undefined;
  before(async () => {
    ({ send, stop } = await open(resource));
  });
  after(() => stop?.());
  let count = 0;
  const thing = (values: Row = {}): Row => ({ slug: `s${++count}`, ...values });
  const create = (values?: Row) => send('POST', '/things', thing(values));

  test('with a default is filled, also by an expression of the database', async () => {
    const { json } = await create();
    assert.deepEqual([json.day, json.tags, json.at], ['2020-06-01', ["it's"], json.made]);
    assert.ok(Math.abs(Date.parse(json.at) - Date.now()) < 60_000);
    const { at } = (await create({ at: '2001-02-03T04:05:06+02:00' })).json;
    assert.equal(Date.parse(at), Date.parse('2001-02-03T02:05:06Z'));
  });

  test('that is generated is set by no body and kept by PUT', async () => {
    const { made, token, id } = (await create()).json;
    for (const [method, path] of Object.entries({ POST: '', PATCH: `/${id}` })) {
      const { json } = await send(method, `/things${path}`, thing({ made, token }));
      const pointers = json.errors.map(({ pointer }: { pointer: string }) => pointer);
      assert.deepEqual(pointers, ['/made', '/token']);
    }
    const { json } = await send('PUT', `/things/${id}`, thing());
    assert.deepEqual([json.made, json.token], [made, token]);
  });

  const TAKEN: [method: string, body: Row | Row[], pointer: string][] = [
    ['POST', { slug: 'taken' }, '/slug'],
    ['POST', [thing(), { slug: 'taken' }], '/slug'],
    ['POST', thing({ 'a/"B': 7 }), '/a~1"B'],
    ['PATCH', { slug: 'taken' }, '/slug'],
    ['PUT', { slug: 'taken' }, '/slug'],
  ];
  for (const [at, [method, body, pointer]] of TAKEN.entries()) {
    test(`that is unique is 409 where it is taken: ${at} ${method} ${pointer}`, async () => {
      await create({ slug: 'taken', 'a/"B': 7 }); // the first row creates it
      const path = method === 'POST' ? '' : `/${(await create()).json.id}`;
      const reply = await send(method, `/things${path}`, body);
      assert.deepEqual([reply.status, reply.json.code], [409, '23505'], reply.text);
      assert.deepEqual(reply.json.errors, [{ pointer, detail: 'is taken' }]);
    });
  }

  test('with SQL for a default lets an Idempotency-Key be repeated', async () => {
    const [key, body] = [{ 'idempotency-key': randomUUID() }, thing()];
    const first = await send('POST', '/things', body, key);
    const again = await send('POST', '/things', body, key);
    assert.deepEqual([again.status, again.json], [201, first.json], again.text);
    assert.equal(again.headers.get('idempotent-replayed'), 'true');
    const other = { ...body, at: '2001-01-01T00:00:00Z' };
    assert.equal((await send('POST', '/things', other, key)).status, 409);
  });

  test('that rows of an array lack is filled in, or kept where the row exists', async () => {
    const [one, two] = [thing({ day: '2020-01-02' }), thing()];
    const missing = { prefer: 'missing=default,return=representation' };
    const made = await send('POST', '/things?columns=slug,day', [one, two], missing);
    assert.deepEqual(
      made.json.map(({ day, tags }: Row) => ({ day, tags })),
      [
        { day: '2020-01-02', tags: ["it's"] },
        { day: '2020-06-01', tags: ["it's"] },
      ],
    );
    const merge = { prefer: 'resolution=merge-duplicates,return=representation' };
    const changed = { id: made.json[0].id, slug: 'changed' };
    const merged = await send('POST', '/things', [changed], merge);
    assert.deepEqual(merged.json, [{ ...made.json[0], ...changed }]);
  });

  test('is read from CSV by its alias', async () => {
    const at = '2001-02-03T04:05:06+00:00';
    const text = `slug,AB,At,day\ncsv,9,${at},2020-02-29\n`;
    assert.equal((await send('POST', '/things', text, CSV)).status, 201);
    const [row] = (await send('GET', '/things?slug=eq.csv')).json;
    assert.deepEqual([row['a/"B'], row.day, row.tags], [9, '2020-02-29', ["it's"]]);
    assert.equal(Date.parse(row.at), Date.parse(at));
  });

  const NOTES = kinds.resource({
    ...{ path: 'notes', table: 'notes', key: 'id' },
    columns: { note: kinds.text(50), by: kinds.owner(/^[\s\S]+$/) },
  });
  const ODD = ['a', '日本', 'a,b', '"a"', 'a\nb', 'a\r\n', "a'b", 'a\\b', ' a', '\\.', 'NULL'];
  for (const by of ODD) {
    test(`that is the owner is the caller ${JSON.stringify(by)} for rows of CSV`, async (t) => {
      const { send, stop } = await open(NOTES, { JWT_SECRET: SECRET });
      t.after(stop);
      const own = await bearer(SECRET, by);
      const text = 'note\n"one, ""two"""\nthrée\n';
      assert.equal((await send('POST', '/notes', text, { ...CSV, ...own })).status, 201);
      const { json } = await send('GET', '/notes?order=note', undefined, own);
      const rows = json.map((row: Row) => `${row.note} ${row.by}`);
      assert.deepEqual(rows, [`one, "two" ${by}`, `thrée ${by}`]);
      const foreign = `id,note\n${json[0].id},theirs\n`;
      const other = await bearer(SECRET, `${by}x`);
      const reply = await send('POST', '/notes', foreign, { ...CSV, ...other });
      assert.deepEqual([reply.status, /one|two/.test(reply.text)], [409, false]);
      const owned = await send('POST', '/notes', 'note,by\na,b\n', { ...CSV, ...own });
      assert.deepEqual([owned.status, owned.json.code], [400, 'PGRST204']);
    });
  }
});
