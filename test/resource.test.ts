/**
 * A new user's exercise: declarations with every kind of column, made at random, each served by
 * createApp() on a real database. RUNS=50 FC_SEED=… node --import tsx --test test/resource.test.ts
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { getRequestListener } from '@hono/node-server';
import fc from 'fast-check';
import { SignJWT } from 'jose';
import { pino } from 'pino';
import { z } from 'zod';
import * as app from '../app.ts';
import cities from '../examples/cities.ts';
import orders from '../examples/orders.ts';
import { startDatabase, type TestDatabase } from './harness.ts';

let database: TestDatabase;
let directory: string;
before(async () => {
  database = await startDatabase();
  directory = await mkdtemp(join(tmpdir(), 'resource test-'));
});
after(async () => {
  await database?.stop();
  await rm(directory, { recursive: true });
});

const SECRET = 'a-secret-of-32-bytes-or-of-more-than-that';

/** The resource on a port of its own, in this process, with its table in the test's database. */
async function serve(resource: app.Resource, environment: Record<string, string> = {}) {
  const config = app.readConfig({ DATABASE_URL: database.url, POOL_SIZE: '2', ...environment });
  const log = pino({ level: 'silent' });
  const db = new app.Database(config, log);
  await app.ensureTable(resource, db).catch(async (error) => {
    await db.end();
    throw error;
  });
  const parts = { config, resource, log, life: { stopping: false, prepared: true } };
  const served = app.createApp({
    ...parts,
    store: new app.Store(resource, db),
    metrics: app.createMetrics(config, db),
    authorize: app.createAuth(config, log, resource),
  });
  const server = createServer(getRequestListener(served.fetch)).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  // biome-ignore lint/suspicious/noExplicitAny: tests assert on whatever came
  type Answer = { status: number; headers: Headers; text: string; json: any };
  const send = async (
    method: string,
    path: string,
    body?: unknown,
    headers: object = {},
  ): Promise<Answer> => {
    const text = typeof body === 'string' ? body : JSON.stringify(body);
    const type = { 'content-type': 'application/json', ...headers };
    const init = body === undefined ? { headers: { ...headers } } : { body: text, headers: type };
    const response = await fetch(url + path, { method, ...init });
    const answer = await response.text();
    const isJson = /json/.test(response.headers.get('content-type') ?? '') && answer !== '';
    const json = isJson ? JSON.parse(answer) : undefined;
    return { status: response.status, headers: response.headers, text: answer, json };
  };
  const stop = async () => {
    server.close();
    server.closeAllConnections();
    await db.end();
  };
  return { send, stop };
}

/** A column with values that fit and that do not; `same` is how a value that fits comes back. */
type Sample = { column: app.Column; good: fc.Arbitrary<unknown>; bad: unknown[] };

const FLAGS = fc.record({ nullable: fc.boolean() });
const bounds = fc.tuple(fc.integer({ min: -1e6, max: 1e6 }), fc.nat(1000));
const storable = fc.string({ unit: 'grapheme', minLength: 1, maxLength: 20 }).filter((text) => {
  return !text.includes('\0') && text === text.trim() && text !== '';
});
const ITEM = z.strictObject({ id: z.int().min(0), tags: z.array(z.string()) });
const item = fc.record({ id: fc.nat(), tags: fc.array(storable, { maxLength: 2 }) });
const day = fc
  .date({ min: new Date('0001-01-02'), max: new Date('9999-12-30'), noInvalidDate: true })
  .map((date) => date.toISOString());

/** Every kind, by the name of the kind. */
const KINDS: Record<string, fc.Arbitrary<Sample>> = {
  boolean: FLAGS.map((options) => ({
    column: app.boolean(options),
    good: fc.boolean(),
    bad: ['true', 1, [], {}],
  })),
  integer: fc.tuple(bounds, FLAGS).map(([[least, range], options]) => ({
    column: app.integer(least, least + range, options),
    good: fc.integer({ min: least, max: least + range }),
    bad: [least - 1, least + range + 1, least + 0.5, '1', 2 ** 31, true],
  })),
  number: fc.tuple(bounds, FLAGS).map(([[least, range], options]) => ({
    column: app.number(least, least + range, options),
    good: fc.double({ min: least, max: least + range, noNaN: true }),
    bad: [least - 1, least + range + 1, '1', true],
  })),
  text: fc.tuple(fc.integer({ min: 20, max: 60 }), FLAGS).map(([most, options]) => ({
    column: app.text(most, options),
    good: storable.filter((text) => [...text].length <= most),
    bad: ['', ' ', 'x'.repeat(most + 1), 'a\0', '\ud800', 7, ['x']],
  })),
  oneOf: fc.tuple(fc.uniqueArray(storable, { minLength: 1, maxLength: 4 }), FLAGS).map((drawn) => ({
    column: app.oneOf(...drawn),
    good: fc.constantFrom(...drawn[0]),
    bad: [`${drawn[0].join('')}x`, '', 7],
  })),
  uuid: FLAGS.map((options) => ({
    column: app.uuid(options),
    good: fc.uuid(),
    bad: ['x', '', randomUUID().slice(1), 7],
  })),
  date: FLAGS.map((options) => ({
    column: app.date(options),
    good: day.map((text) => text.slice(0, 10)),
    bad: ['2026-02-30', '0000-01-01', 'today', 'infinity', '2026-1-1', '', 20260101],
  })),
  timestamp: FLAGS.map((options) => ({
    column: app.timestamp(options),
    good: day,
    bad: ['2026-02-30T00:00:00Z', '2026-01-01', '2026-01-01T00:00:00', 'now', '', 0].concat([
      '2026-01-01T24:00:00Z',
      '2026-01-01T00:00:00+16:00',
      '9999-12-31T23:00:00-01:00',
      `2026-01-01T00:00:00.${'0'.repeat(50)}Z`,
    ]),
  })),
  jsonb: FLAGS.map((options) => ({
    column: app.jsonb(z.array(ITEM).min(1), [{ id: 1, tags: [] }], options),
    good: fc.array(item, { minLength: 1, maxLength: 3 }),
    bad: [[], {}, 'x', [{ id: 1 }], [{ id: -1, tags: [] }], [{ id: 1, tags: ['\0'] }]],
  })),
};

/** A declaration of all kinds in some order, with rows that fit. */
const exercise = fc
  .tuple(fc.record(KINDS), fc.shuffledSubarray(Object.keys(KINDS), { minLength: 9 }))
  .chain(([samples, order]) => {
    const named = order.map((kind): [string, Sample] => {
      const sample = samples[kind] as Sample;
      const print = { [fc.toStringMethod]: () => sample.column.expects };
      return [`the${kind}`, { ...sample, ...print }];
    });
    const row = fc.record(Object.fromEntries(named.map(([name, { good }]) => [name, good])));
    return fc.record({ named: fc.constant(named), rows: fc.tuple(row, row, row) });
  });

/** As it comes back: a moment may be written in another way. */
function comparable(row: Record<string, unknown>) {
  const moment = new Date(String(row.thetimestamp)).getTime();
  return { ...row, thetimestamp: row.thetimestamp && moment };
}

async function lint(document: object): Promise<unknown> {
  const file = join(directory, 'openapi.json');
  await writeFile(file, JSON.stringify(document));
  const cli = fileURLToPath(import.meta.resolve('@redocly/cli/bin/cli.js'));
  const env = { ...process.env, REDOCLY_TELEMETRY: 'off', REDOCLY_SUPPRESS_UPDATE_NOTICE: 'true' };
  const args = [cli, 'lint', file, '--extends=recommended', '--format=json'];
  const run = promisify(execFile)(process.execPath, args, { env, cwd: directory });
  const { totals, problems } = JSON.parse((await run.catch((error) => error)).stdout);
  return { ...totals, problems: problems.map((one: object) => JSON.stringify(one)) };
}

test('any declaration makes a table, takes what fits, refuses what does not, filters, describes itself', async (t) => {
  let counter = 0;
  let documents = 0;
  const property = fc.asyncProperty(exercise, async ({ named, rows }) => {
    counter += 1;
    const columns = Object.fromEntries(named.map(([name, { column }]) => [name, column]));
    const table = `t"${counter}`;
    const resource = app.resource({ path: 'things', table, key: 'id', columns });
    const { send, stop } = await serve(resource);
    try {
      const made: { id: string; [name: string]: unknown }[] = [];
      for (const row of rows) {
        const { status, json, text } = await send('POST', '/things', row);
        assert.equal(status, 201, text);
        assert.deepEqual(
          comparable(json),
          comparable({ id: json.id, ...JSON.parse(JSON.stringify(row)) }),
        );
        assert.deepEqual(Object.keys(json), resource.names);
        made.push(json);
      }
      for (const [name, { column, bad }] of named) {
        const missing = { ...rows[0], [name]: undefined };
        const faults = [...bad, ...(column.nullable ? [] : [null])];
        for (const value of faults) {
          const { status, json, text } = await send('POST', '/things', {
            ...rows[0],
            [name]: value,
          });
          assert.equal(status, 422, `${name} ${JSON.stringify(value)} ${text}`);
          const pointer = json.errors[0].pointer.split('/')[1];
          assert.equal(pointer, name, text);
        }
        const without = await send('POST', '/things', missing);
        assert.equal(without.status, column.nullable ? 201 : 422, without.text);
        if (column.nullable) await send('DELETE', `/things/${without.json.id}`);
        const value = made[0]?.[name];
        const sent = typeof value === 'object' ? JSON.stringify(value) : String(value);
        const found = await send('GET', `/things?${new URLSearchParams([[name, `eq.${sent}`]])}`);
        const same = made.filter((one) => JSON.stringify(one[name]) === JSON.stringify(value));
        assert.equal(found.status, 200, found.text);
        assert.deepEqual(ids(found.json), ids(same), `${name}=eq.${sent}`);
        const none = await send('GET', `/things?${new URLSearchParams([[name, 'is.null']])}`);
        assert.deepEqual(none.json, []);
        const ordered = await send('GET', `/things?order=${name}.desc&limit=2`);
        assert.equal(ordered.json.length, 2, ordered.text);
      }
      const document = (await send('GET', '/openapi.json')).json;
      const { required } = document.components.schemas.NewRow;
      const wanted = named.filter(([, { column }]) => !column.nullable).map(([name]) => name);
      assert.deepEqual(required ?? [], wanted);
      if (documents++ === 0) {
        assert.deepEqual(await lint(document), {
          errors: 0,
          warnings: 0,
          ignored: 0,
          problems: [],
        });
      }
    } finally {
      await stop();
    }
    const again = await serve(resource); // the table is as declared: nothing to mend
    await again.stop();
    await database.sql.unsafe(`drop table "${table.replace('"', '""')}"`);
  });
  const numRuns = Number(process.env.RUNS ?? 8);
  const seed = process.env.FC_SEED ? { seed: Number(process.env.FC_SEED) } : {};
  await fc.assert(property, { numRuns, ...seed, endOnFailure: true });
  t.diagnostic(`${counter} declarations`);
});

function ids(rows: { id: string }[]): string[] {
  return rows.map(({ id }) => id).sort();
}

describe('A column', () => {
  const TOKEN = { sub: 'user:0192f0c1-2f3a-7bcd-8123-456789abcdef', exp: 4102444800 };
  const sign = (claims: object) =>
    new SignJWT({ ...TOKEN, ...claims })
      .setProtectedHeader({ alg: 'HS256' })
      .sign(Buffer.from(SECRET));
  const bearer = async (claims = {}) => ({ authorization: `Bearer ${await sign(claims)}` });
  const resource = app.resource({
    path: 'things',
    table: 'things',
    key: 'id',
    columns: {
      slug: app.text(20, { unique: true }),
      'a/"B': app.integer(0, 9, { unique: true, nullable: true, csv: 'AB' }),
      at: app.timestamp({ default: app.now, csv: 'At' }),
      day: app.date({ from: '2020-01-01', to: '2020-12-31', default: '2020-06-01' }),
      tags: app.jsonb(z.array(z.string()), ['x'], { default: ["it's"] }),
      made: app.timestamp({ generated: app.now }),
      token: app.uuid({ generated: () => 'gen_random_uuid()', unique: true }),
    },
  });
  let things: Awaited<ReturnType<typeof serve>>;
  before(async () => {
    things = await serve(resource);
  });
  after(() => things?.stop());
  let counter = 0;
  const slug = () => {
    counter += 1;
    return `s${counter}`;
  };

  test('with a default is filled, also by an expression of the database', async () => {
    const { json } = await things.send('POST', '/things', { slug: slug() });
    assert.deepEqual([json.day, json.tags], ['2020-06-01', ["it's"]]);
    assert.ok(Math.abs(Date.parse(json.at) - Date.now()) < 60_000);
    assert.equal(json.at, json.made);
    const given = { slug: slug(), at: '2001-02-03T04:05:06+02:00' };
    const other = await things.send('POST', '/things', given);
    assert.equal(Date.parse(other.json.at), Date.parse(given.at));
  });

  test('that is generated is never told by a body, and stays', async () => {
    const { json } = await things.send('POST', '/things', { slug: slug() });
    for (const name of ['made', 'token']) {
      const path = `/things/${json.id}`;
      for (const method of ['POST', 'PATCH']) {
        const body = { slug: slug(), [name]: json[name] };
        const reply = await things.send(method, method === 'POST' ? '/things' : path, body);
        assert.equal(reply.status, 422);
        assert.equal(reply.json.errors[0].pointer, `/${name}`);
      }
      const put = await things.send('PUT', path, { slug: slug() });
      assert.deepEqual([put.status, put.json[name]], [200, json[name]]);
    }
  });

  test('that is unique is 409 where it is taken, and named', async () => {
    const [one, two] = [slug(), slug()];
    await things.send('POST', '/things', { slug: one, 'a/"B': 7 });
    const { json } = await things.send('POST', '/things', { slug: two });
    const refused: [string, string, unknown, string][] = [
      ['POST', '/things', { slug: one }, '/slug'],
      ['POST', '/things', [{ slug: slug() }, { slug: one }], '/slug'],
      ['POST', '/things', { slug: slug(), 'a/"B': 7 }, '/a~1"B'],
      ['PATCH', `/things/${json.id}`, { slug: one }, '/slug'],
      ['PUT', `/things/${json.id}`, { slug: one }, '/slug'],
    ];
    for (const [method, path, body, pointer] of refused) {
      const reply = await things.send(method, path, body);
      assert.deepEqual([reply.status, reply.json.code], [409, '23505'], reply.text);
      assert.deepEqual(reply.json.errors, [{ pointer, detail: 'is taken' }]);
    }
    const csv = { 'content-type': 'text/csv' };
    const reply = await things.send('POST', '/things', `slug\n${slug()}\n${one}\n`, csv);
    assert.equal(reply.status, 409);
    assert.match(reply.json.errors[0].detail, /^line 3: /);
  });

  const names = ['', 'select', 'order', 'limit', 'columns', 'on_conflict', 'or', 'not', 'id'];
  for (const name of names) {
    test(`cannot be called "${name}", which a filter or the key could not be told from`, () => {
      const plain = { path: 'plain', table: 'plain', key: 'id' };
      const declare = () => app.resource({ ...plain, columns: { [name]: app.boolean() } });
      assert.throws(declare, { message: /cannot be the name of a column/ });
    });
  }

  test('that is unique needs its index in a table that is there', async () => {
    const columns = { a: app.integer(0, 9) };
    const plain = { path: 'plain', table: 'plain', key: 'id' };
    await (await serve(app.resource({ ...plain, columns }))).stop();
    const unique = { a: app.integer(0, 9, { unique: true }) };
    const message = /a has no unique index/;
    await assert.rejects(serve(app.resource({ ...plain, columns: unique })), { message });
  });

  test('with SQL for a default lets an Idempotency-Key be repeated', async () => {
    const key = { 'idempotency-key': slug() };
    const body = { slug: slug() };
    const first = await things.send('POST', '/things', body, key);
    const again = await things.send('POST', '/things', body, key);
    assert.deepEqual([again.status, again.json], [201, first.json], again.text);
    assert.equal(again.headers.get('idempotent-replayed'), 'true');
    const other = await things.send(
      'POST',
      '/things',
      { ...body, at: '2001-01-01T00:00:00Z' },
      key,
    );
    assert.equal(other.status, 409);
  });

  test('with bounds refuses what is outside of them', async () => {
    for (const day of ['2019-12-31', '2021-01-01']) {
      const { status, json } = await things.send('POST', '/things', { slug: slug(), day });
      assert.deepEqual([status, json.errors[0].pointer], [422, '/day']);
    }
  });

  test('comes by CSV under its alias, but for JSON and what the database makes', async () => {
    const csv = { 'content-type': 'text/csv' };
    const at = '2001-02-03T04:05:06+00:00';
    const name = slug();
    const text = `slug,AB,At,day\n${name},9,${at},2020-02-29\n`;
    assert.equal((await things.send('POST', '/things', text, csv)).status, 201);
    const [row] = (await things.send('GET', `/things?slug=eq.${name}`)).json;
    assert.deepEqual([row['a/"B'], row.day, row.tags], [9, '2020-02-29', ["it's"]]);
    assert.equal(Date.parse(row.at), Date.parse(at));
    for (const other of ['tags', 'made', '']) {
      const reply = await things.send('POST', '/things', `slug,${other}\na,b\n`, csv);
      assert.deepEqual([reply.status, reply.json.code], [400, 'PGRST204']);
    }
    const late = await things.send('POST', '/things', `slug,day\n${slug()},2021-01-01\n`, csv);
    assert.match(late.json.message, /^line 2, column day: day must be a day/);
  });

  test('deep and odd JSON is 422, not an error of the database', async () => {
    const any = app.resource({
      ...{ path: 'any', table: 'anything', key: 'id' },
      columns: { value: app.jsonb(z.unknown(), 1) },
    });
    const { send, stop } = await serve(any);
    const refused = [
      '[1e999]',
      '{"\\u0000":1}',
      '["\\ud800"]',
      '['.repeat(5000) + ']'.repeat(5000),
    ];
    for (const value of refused) {
      const { status, json } = await send('POST', '/any', `{"value":${value}}`);
      assert.deepEqual([status, json.errors?.[0].pointer], [422, '/value'], value.slice(0, 20));
    }
    for (const value of [1, 'x', true, { a: [null] }, [[]]]) {
      const { status, json, text } = await send('POST', '/any', { value });
      assert.deepEqual([status, json.value], [201, value], text);
      const eq = new URLSearchParams({ value: `eq.${JSON.stringify(value)}` });
      assert.equal((await send('GET', `/any?${eq}`)).json.length, 1);
    }
    assert.equal((await send('GET', '/any?value=like.x')).json.code, '42883');
    await stop();
  });

  test('that is the owner wants a token of its form, and comes from no body', async () => {
    assert.throws(() => app.createAuth(app.readConfig({}), pino(), orders), {
      message: /AUTH=all/,
    });
    const { send, stop } = await serve(orders, { JWT_SECRET: SECRET });
    const products = [{ uuid: randomUUID(), quantity: 1 }];
    assert.equal((await send('GET', '/orders')).status, 401);
    for (const sub of ['me', 'user:', `x${TOKEN.sub}`, `${TOKEN.sub}x`, TOKEN.sub.toUpperCase()]) {
      const reply = await send('GET', '/orders', undefined, await bearer({ sub }));
      assert.deepEqual([reply.status, reply.json.code], [403, '42501']);
    }
    const mine = await bearer();
    assert.equal((await send('GET', '/orders', undefined, mine)).status, 200);
    for (const method of ['POST', 'PUT', 'PATCH']) {
      const path = method === 'POST' ? '/orders' : `/orders/${randomUUID()}`;
      const reply = await send(method, path, { products, user: TOKEN.sub }, mine);
      assert.deepEqual([reply.status, reply.json.errors[0].pointer], [422, '/user']);
    }
    for (const [body, pointer] of [
      [{}, '/products'],
      [{ products: [] }, '/products'],
      [{ products: [{ ...products[0], quantity: 0 }] }, '/products/0/quantity'],
    ] as const) {
      const { status, json } = await send('POST', '/orders', body, mine);
      assert.deepEqual([status, json.errors[0].pointer], [422, pointer]);
    }
    await stop();
  });
});

for (const [name, resource] of Object.entries({ passengers: app.passengers, orders, cities })) {
  test(`the example of ${name} is a row of its declaration`, () => {
    const { key, settable, example, names } = resource;
    const told = Object.fromEntries([key, ...settable].map((one) => [one, example[one]]));
    assert.deepEqual(resource.row.parse(told), told);
    assert.deepEqual(Object.keys(example), names);
  });
}
