/** Keys of each type and maker, unique columns, references and the hook, each served by createApp(). */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import * as kinds from '../lib/columns.ts';
import { Problem } from '../lib/problem.ts';
import type { Row } from './deployment.ts';
import { openDatabase } from './harness.ts';
import { type Served, serveHere } from './inprocess.ts';

const database = await openDatabase();
const MERGE = { prefer: 'resolution=merge-duplicates,return=representation' };
const CSV = { 'content-type': 'text/csv' };

/** A program that is served while the tests of a describe() run. */
function open(...resources: kinds.Resource[]): () => Served {
  let served: Served;
  before(async () => {
    served = await serveHere({ resources }, { DATABASE_URL: database.url });
  });
  after(() => served?.stop());
  return () => served;
}

/** Keys in the order of PostgreSQL, and texts that are no key. */
const KEYS: [kind: string, key: kinds.Column, keys: unknown[], wrong: string[]][] = [
  ['integer', kinds.integer(), [-7, 2, 10], ['x', '2147483648', '1.0']],
  ['smallint', kinds.smallint(), [1, 9, 300], ['32768']],
  ['bigint', kinds.bigint(), [1, 2 ** 31, 2 ** 53 - 1], ['9007199254740992']],
  ['text', kinds.text(), ['A/b?', 'a "b", {c}', 'é'], ['%20']],
  ['varchar', kinds.text(5), ['a', 'b', 'ccccc'], ['cccccc']],
  [
    'uuid',
    kinds.uuid(),
    ['1', '2', '3'].map((one) => `${one.repeat(8)}${'-0000'.repeat(3)}-${one.repeat(12)}`),
    ['x'],
  ],
];
for (const [kind, key, keys, wrong] of KEYS) {
  describe(`A key of type ${kind}`, () => {
    const columns = { id: key, name: kinds.text(9), n: kinds.integer({ default: 0 }) };
    const served = open(
      kinds.resource({ path: 'things', table: `by ${kind}`, key: 'id', columns }),
    );
    const send = (...request: Parameters<Served['send']>) => served().send(...request);
    const pathTo = (id: unknown) => `/things/${encodeURIComponent(String(id))}`;
    const rows = keys.map((id, at) => ({ id, name: `n${at}`, n: at }));

    test('is created, read, replaced, changed and deleted by requests that come together', async () => {
      const each = <T>(ask: (row: Row) => Promise<T>) => Promise.all(rows.map(ask));
      const made = await each((row) => send('POST', '/things', row));
      assert.deepEqual(
        made.map(({ json, status }) => [status, json]),
        rows.map((row) => [201, row]),
      );
      const places = made.map(({ headers }) => headers.get('location'));
      assert.deepEqual(places, keys.map(pathTo));
      const read = await each(({ id }) => send('GET', pathTo(id)));
      assert.deepEqual(
        read.map(({ json }) => json),
        rows,
      );
      const put = await each(({ id }) => send('PUT', pathTo(id), { name: 'x' }));
      assert.deepEqual(
        put.map(({ json }) => json),
        rows.map(({ id }) => ({ id, name: 'x', n: 0 })),
      );
      const parts = rows.map(({ id, name }) => ({ id, name }));
      const changed = await send('PATCH', '/things', parts, MERGE);
      assert.equal(changed.json.length, 3, changed.text);
      const patched = await each(({ id, n }) => send('PATCH', pathTo(id), { n }));
      assert.deepEqual(
        patched.map(({ json }) => json),
        rows,
      );
      const again = await send('POST', '/things', rows[0]);
      assert.deepEqual([again.status, again.json.code], [409, '23505']);
      const removed = await each(({ id }) => send('DELETE', pathTo(id)));
      assert.deepEqual(
        removed.map(({ status }) => status),
        [204, 204, 204],
      );
      const created = await each((row) => send('PUT', pathTo(row.id), row));
      assert.deepEqual(
        created.map(({ status }) => status),
        [201, 201, 201],
      );
    });

    test('is the last column of the order, and of the cursor', async () => {
      await send('POST', '/things', rows, MERGE);
      const { headers, json } = await send('GET', '/things?limit=2');
      assert.deepEqual(json, rows.slice(0, 2));
      const [, next = ''] = /^<(.*)>; rel="next"/.exec(headers.get('link') ?? '') ?? [];
      assert.deepEqual((await send('GET', next)).json, rows.slice(2));
    });

    test('comes back from its CSV', async () => {
      await send('POST', '/things', rows, MERGE);
      const { text } = await send('GET', '/things', undefined, { accept: 'text/csv' });
      const found = await send('POST', '/things', text, { ...CSV, ...MERGE });
      assert.deepEqual([found.status, found.json], [200, rows]);
    });

    for (const text of wrong) {
      test(`is not ${text}`, async () => {
        const { status, json } = await send('GET', `/things/${text}`);
        assert.deepEqual([status, json.code], [400, '22P02']);
      });
    }

    if (kind !== 'uuid')
      test('is required, and its maker takes no Idempotency-Key', async () => {
        for (const body of [{ name: 'x' }, [{ name: 'x' }]]) {
          const { status, json } = await send('POST', '/things', body);
          assert.deepEqual([status, json.errors.length], [422, 1]);
          assert.match(json.errors[0].pointer, /^(\/0)?\/id$/);
        }
        const { json } = await send('POST', '/things', rows[0], { 'idempotency-key': 'x' });
        assert.equal(json.hint, 'The body makes the key of a row here.');
      });
  });
}

describe('A key of the database', () => {
  const COLUMNS = { name: kinds.text(9, { unique: true }), n: kinds.integer({ default: 0 }) };
  const declare = (id: kinds.Column, table: string) =>
    kinds.resource({ path: table, table, key: 'id', columns: { id, ...COLUMNS } });
  const RANDOM = kinds.uuid({ generated: () => 'gen_random_uuid()' });
  const served = open(
    declare(kinds.identity(), 'numbered'),
    declare(kinds.identity(kinds.smallint()), 'small'),
    declare(RANDOM, 'random'),
  );
  for (const table of ['numbered', 'small', 'random']) {
    const send: Served['send'] = (method, path, ...rest) =>
      served().send(method, `/${table}${path}`, ...rest);

    test(`${table}: rows get keys, one at its Location also without an answer`, async () => {
      const minimal = await send('POST', '', { name: 'a' }, { prefer: 'return=minimal' });
      assert.deepEqual([minimal.status, minimal.text], [201, '']);
      const at = minimal.headers.get('location') ?? '';
      const { json } = await served().get(at);
      assert.deepEqual([json.name, `/${table}/${json.id}`], ['a', at]);
      const many = await send('POST', '', [{ name: 'b' }, { name: 'c' }], {
        prefer: 'return=representation',
      });
      assert.deepEqual(
        many.json.map(({ name }: Row) => name),
        ['b', 'c'],
        many.text,
      );
      const csv = await send('POST', '', 'name\nd\n', CSV);
      assert.equal(csv.status, 201, csv.text);
    });

    test(`${table}: an upsert finds a row by its key or by its unique column`, async () => {
      const { json } = await send('POST', '', { name: 'u' });
      const byKey = await send('POST', '', [{ id: json.id, name: 'v' }], MERGE);
      assert.deepEqual([byKey.status, byKey.json], [200, [{ ...json, name: 'v' }]]);
      const byName = await send(
        'POST',
        '?on_conflict=name',
        [{ name: 'v', n: 5 }, { name: 'w' }],
        MERGE,
      );
      assert.deepEqual(byName.json[0], { id: json.id, name: 'v', n: 5 });
      assert.equal(byName.json.length, 2);
      const mixed = await send('POST', '', [{ id: json.id, name: 'x' }, { name: 'y' }], MERGE);
      assert.deepEqual([mixed.status, mixed.json.errors[0].pointer], [422, '/1/id']);
    });

    test(`${table}: a create that is taken names its column`, async () => {
      await send('POST', '', { name: 'taken' });
      const { status, json } = await send('POST', '', { name: 'taken' });
      assert.deepEqual([status, json.errors], [409, [{ pointer: '/name', detail: 'is taken' }]]);
    });

    test(`${table}: more rows than an array has are copied`, async () => {
      const lines = Array.from({ length: 10_001 }, (_, at) => `c${at}\n`).join('');
      const { status, text } = await send('POST', '', `name\n${lines}`, CSV);
      assert.equal(status, 201, text);
      const { json } = await send('DELETE', '?name=like.c*&select=id', undefined, MERGE);
      assert.ok(new Set(json.map(({ id }: Row) => id)).size > 10_000);
    });
  }
});

describe('Unique columns', () => {
  const served = open(
    kinds.resource({
      ...{ path: 'seats', table: 'seats', key: 'id', unique: ['row', 'seat'] },
      columns: {
        row: kinds.integer(1, 50),
        seat: kinds.text(1),
        email: kinds.text({ unique: true, nullable: true }),
        who: kinds.text(9),
      },
    }),
  );
  const send: Served['send'] = (...request) => served().send(...request);

  test('are found by on_conflict in any order, or refused with those that there are', async () => {
    const seat = { row: 1, seat: 'a', who: 'Ann', email: 'a@b' };
    const [made] = (await send('POST', '/seats', [seat], MERGE)).json;
    for (const on of ['row,seat', 'seat, row', 'email']) {
      const { status, json } = await send(
        'POST',
        `/seats?on_conflict=${on}`,
        [{ ...seat, who: on[0] }],
        MERGE,
      );
      assert.deepEqual([status, json], [200, [{ ...made, who: on[0] }]]);
    }
    const ignored = await send('POST', '/seats?on_conflict=email', [seat], {
      prefer: 'resolution=ignore-duplicates',
    });
    assert.equal(ignored.status, 200);
    const { status, json } = await send('POST', '/seats?on_conflict=row', [seat], MERGE);
    assert.deepEqual(
      [status, json.code, json.hint],
      [400, '42P10', 'on_conflict can be id or email or row,seat.'],
    );
  });
});

describe('references()', () => {
  const books = kinds.resource({
    path: 'books',
    table: 'books',
    key: 'id',
    columns: { title: kinds.text(50) },
  });
  const loans = kinds.resource({
    ...{ path: 'loans', table: 'loans', key: 'id' },
    columns: { book: kinds.references('books', 'id'), by: kinds.text(9, { default: 'Ann' }) },
  });
  const served = open(books, loans);
  const send: Served['send'] = (...request) => served().send(...request);

  test('answers 409 that says which row is missing, or still referenced', async () => {
    const { id } = (await send('POST', '/books', { title: 'Emma' })).json;
    assert.equal((await send('POST', '/loans', { book: id })).status, 201);
    const absent = id.replace(/.$/, (last: string) => (last === '0' ? '1' : '0'));
    const missing = await send('POST', '/loans', { book: absent });
    assert.deepEqual([missing.status, missing.json.code], [409, '23503']);
    assert.equal(missing.json.detail, `Key (book)=(${absent}) is not present in table "books".`);
    const used = await send('DELETE', `/books/${id}`);
    assert.equal(used.json.detail, `Key (id)=(${id}) is still referenced from table "loans".`);
  });

  test('is named by the hint where rows of the other table are asked for', async () => {
    const { json } = await send('GET', '/loans?select=*,books(title)');
    assert.match(json.hint, /GET \/books\?id=in\.\(…\)/);
  });

  test('is refused where the other table or its column cannot be referred to', async () => {
    for (const [table, column, message] of [
      ['none', 'id', /"none" does not exist/],
      ['books', 'title', /no unique constraint/],
    ] as const) {
      const bad = kinds.resource({
        path: 'bad',
        table: 'bad',
        key: 'id',
        columns: { book: kinds.references(table, column, kinds.text(50)) },
      });
      await assert.rejects(
        serveHere({ resources: [bad] }, { DATABASE_URL: database.url }),
        message,
      );
    }
  });
});

describe('before()', () => {
  const toSlug = (title: unknown) => String(title).toLowerCase().replaceAll(/\W+/g, '-');
  const served = open(
    kinds.resource({
      ...{ path: 'posts', table: 'posts', key: 'id' },
      columns: {
        title: kinds.text(50),
        slug: kinds.text(50, { nullable: true }),
        n: kinds.integer({ default: 0 }),
      },
      async before(row, { sub }) {
        if (row.title === 'Spam')
          throw new Problem(422, '22023', `No spam of ${sub || 'anybody'}.`);
        return 'title' in row ? { ...row, slug: toSlug(row.title) } : row;
      },
    }),
  );
  const send: Served['send'] = (...request) => served().send(...request);
  const title = 'Hello, World';

  test('changes what each kind of write stores', async () => {
    const one = (await send('POST', '/posts', { title })).json;
    assert.equal(one.slug, 'hello-world');
    const answers = [
      await send('POST', '/posts', [{ title: 'A b' }], { prefer: 'return=representation' }),
      await send('PUT', `/posts/${one.id}`, { title: 'A b' }),
      await send('PATCH', `/posts/${one.id}`, { title: 'A b' }),
      await send('PATCH', `/posts?id=eq.${one.id}`, { title: 'A b' }, MERGE),
      await send('PATCH', '/posts', [{ id: one.id, title: 'A b' }], MERGE),
      await send('POST', '/posts?columns=id,title', [{ id: one.id, title: 'A b' }], MERGE),
      await send('POST', '/posts', 'title\nA b\n', { ...CSV, ...MERGE }),
    ];
    assert.deepEqual(
      answers.map(({ json }) => [json].flat()[0].slug),
      Array(7).fill('a-b'),
    );
    assert.equal((await send('PATCH', `/posts/${one.id}`, { n: 1 })).json.slug, 'a-b');
  });

  test('changes the rows of a CSV that is copied', async () => {
    const { status } = await send('POST', '/posts', `title,n\n${'C d,7\n'.repeat(10_050)}`, CSV);
    const { json } = await send('GET', '/posts?n=eq.7&select=slug,count()');
    assert.deepEqual([status, json], [201, [{ slug: 'c-d', count: 10_050 }]]);
  });

  test('refuses by a Problem, and nothing is stored', async () => {
    for (const [method, body] of [
      ['POST', { title: 'Spam' }],
      ['POST', [{ title }, { title: 'Spam' }]],
    ] as const) {
      const { status, json } = await send(method, '/posts', body);
      assert.deepEqual([status, json.detail], [422, 'No spam of anybody.']);
    }
    assert.deepEqual((await send('GET', '/posts?title=eq.Spam')).json, []);
  });
});
