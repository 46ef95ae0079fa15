/** A table that exists, served as it is by examples/products.ts, over HTTP and by postgrest-js. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { PostgrestClient } from '@supabase/postgrest-js';
import { openService } from './harness.ts';

const RESOURCE = fileURLToPath(new URL('../examples/products.ts', import.meta.url));
const DDL = `create table products (id bigint generated always as identity primary key,
    sku text unique not null, price numeric(10,2), tags text[], attributes jsonb,
    created timestamp default now());
  insert into products (sku, price, tags, attributes, created) values
    ('tea', 4.50, '{green,"a, b"}', '{"color": "green", "size": {"g": 100}}', '2026-01-31 12:00:00'),
    ('salt', 1.25, '{}', '{"color": "white", "size": {"g": 500}}', '2026-02-01 08:30:00.5'),
    ('rock', null, null, null, null)`;
const { service } = await openService({ RESOURCE }, DDL);
const { get, request } = service;
const rest = new PostgrestClient(`${service.url}/rest/v1`);

const TEA = {
  ...{ id: 1, sku: 'tea', price: 4.5, tags: ['green', 'a, b'] },
  attributes: { color: 'green', size: { g: 100 } },
  created: '2026-01-31T12:00:00',
};

test('every row is answered with its values as JSON', async () => {
  const { status, json, text } = await get('/products');
  assert.deepEqual([status, json[0], json.length], [200, TEA, 3]);
  assert.match(text, /"price":4\.50,/);
  assert.deepEqual((await get('/products/1')).json, TEA);
});

const LISTS: [query: string, skus: string][] = [
  ['id=eq.2', 'salt'],
  ['id=in.(1,3)', 'tea rock'],
  ['sku=like.*a*', 'tea salt'],
  ['price=gt.1.25', 'tea'],
  ['price=is.null', 'rock'],
  ['tags=cs.{green}', 'tea'],
  ['tags=cd.{green,"a, b",c}', 'tea salt'],
  ['tags=ov.{green,red}', 'tea'],
  ['tags=eq.{}', 'salt'],
  ['or=(tags.ov.{green,red},price.eq.1.25)', 'tea salt'],
  ['attributes->>color=eq.white', 'salt'],
  ['attributes->size->>g=gte.2', 'salt'],
  ['attributes->>content-type=is.null', 'tea salt rock'],
  ['attributes->size->g=gte.100', 'tea salt'],
  ['attributes=cs.{"color":"green"}', 'tea'],
  ['or=(attributes->>color.like.w*,sku.eq.rock)', 'salt rock'],
  ['created=lt.2026-02-01T00:00:00', 'tea'],
  ['order=sku', 'rock salt tea'],
  ['order=price.desc.nullslast', 'tea salt rock'],
  ['order=tags', 'salt tea rock'],
  ['order=attributes->>color.desc.nullslast', 'salt tea rock'],
  ['order=attributes->size->g.desc.nullslast,id', 'salt tea rock'],
  ['order=created.desc.nullslast', 'salt tea rock'],
];
for (const [query, skus] of LISTS) {
  test(`GET ?${query} lists ${skus}`, async () => {
    const { json } = await get(`/products?${encodeURI(query)}`);
    assert.equal(
      json.map?.(({ sku }: { sku: string }) => sku).join(' '),
      skus,
      JSON.stringify(json),
    );
  });
}

for (const order of [
  'id',
  'tags',
  'attributes->>color',
  'created.desc',
  'attributes->size',
  'price',
]) {
  for (const select of ['', '&select=sku']) {
    test(`pages of one row in the order of ${order}${select} are the whole list`, async () => {
      const path = `/products?order=${encodeURIComponent(order)}${select}`;
      const all = (await get(path)).json;
      const found: unknown[] = [];
      for (let next: string | undefined = `${path}&limit=1`; next; ) {
        const { json, headers } = await get(next);
        found.push(...json);
        next = /^<(.*)>; rel="next"/.exec(headers.get('link') ?? '')?.[1];
      }
      assert.deepEqual(found, all);
    });
  }
}

test('select takes JSON paths, with the name of the last key, an alias or a cast', async () => {
  const select = 'sku,attributes->>color,attributes->size,g:attributes->size->>g::int';
  const { json } = await get(`/products?select=${encodeURIComponent(select)}&id=eq.1`);
  assert.deepEqual(json, [{ sku: 'tea', color: 'green', size: { g: 100 }, g: 100 }]);
  const grouped = await get('/products?select=attributes->>color,count()&order=attributes->>color');
  assert.deepEqual(grouped.json[0], { color: 'green', count: 1 });
});

test('a row is created with the next number, read at its Location, replaced, changed, deleted', async () => {
  const made = await request('POST', '/products', { sku: 'new', price: 0.1, tags: ['x'] });
  const { id, created } = made.json;
  assert.deepEqual([made.status, made.headers.get('location')], [201, `/products/${id}`]);
  assert.match(created, /^\d{4}-\d\d-\d\dT[\d:.]+$/);
  const path = `/products/${id}`;
  const etag = made.headers.get('etag') ?? '';
  assert.equal((await get(path, { 'if-none-match': etag })).status, 304);
  const put = await request('PUT', path, { sku: 'newer', created: '2026-03-29T02:30:00' });
  assert.deepEqual(
    [put.status, put.json.price, put.json.created],
    [200, null, '2026-03-29T02:30:00'],
  );
  const patched = await request('PATCH', path, {
    attributes: { a: [1] },
    tags: ['"', '\\', 'NULL'],
  });
  assert.deepEqual([patched.json.attributes, patched.json.tags], [{ a: [1] }, ['"', '\\', 'NULL']]);
  assert.equal((await request('DELETE', path)).status, 204);
  assert.equal((await request('PUT', path, { sku: 'none' })).status, 404);
});

const REFUSED: [what: string, body: unknown, headers: HeadersInit, expected: unknown[]][] = [
  ['a key that the database makes', { id: 9, sku: 'a' }, {}, [422, '/id']],
  ['more decimals than stored', { sku: 'a', price: 1.005 }, {}, [422, '/price']],
  ['a number that is too large', { sku: 'a', price: 1e8 }, {}, [422, '/price']],
  ['a tag that is no text', { sku: 'a', tags: [1] }, {}, [422, '/tags/0']],
  ['a moment with an offset', { sku: 'a', created: '2026-01-31T12:00:00Z' }, {}, [422, '/created']],
  ['a value that is taken', { sku: 'tea' }, {}, [409, '/sku']],
  ['an Idempotency-Key', { sku: 'a' }, { 'idempotency-key': 'x' }, [400, undefined]],
];
for (const [what, body, headers, expected] of REFUSED) {
  test(`POST of ${what} is refused`, async () => {
    const { status, json } = await request('POST', '/products', body, headers);
    assert.deepEqual([status, json.errors?.[0].pointer], expected, JSON.stringify(json));
  });
}

for (const key of ['x', '1.5', '9007199254740993', '1e3']) {
  test(`GET /products/${key} is 400`, async () => {
    assert.deepEqual([(await get(`/products/${key}`)).status], [400]);
  });
}

test('its CSV is taken in again: by key, by sku, and into the empty table', async () => {
  const before = (await get('/products')).json;
  const { text } = await get('/products', { accept: 'text/csv' });
  const csv = { 'content-type': 'text/csv', prefer: 'resolution=merge-duplicates' };
  const send = async (path: string, body = text, headers = csv) => {
    const { status, text } = await request('POST', path, body, headers);
    assert.equal(status < 300, true, text);
    assert.deepEqual((await get('/products')).json, before);
  };
  await send('/products');
  await send('/products?on_conflict=sku&columns=sku,price,tags,attributes,created');
  await request('DELETE', '/products?id=gte.0');
  await send('/products');
});

test('postgrest-js reads and writes it', async () => {
  const table = () => rest.from('products');
  const found = await table().select('sku,attributes->>color').contains('tags', ['green']);
  assert.deepEqual(found.data, [{ sku: 'tea', color: 'green' }]);
  const overlapping = await table().select('sku').overlaps('tags', ['green', 'red']);
  assert.deepEqual(overlapping.data, [{ sku: 'tea' }]);
  const json = await table().select('sku').contains('attributes', { color: 'white' });
  assert.deepEqual(json.data, [{ sku: 'salt' }]);
  const ordered = await table().select('sku').order('attributes->>color').limit(1);
  assert.deepEqual(ordered.data, [{ sku: 'tea' }]);
  const made = await table()
    .insert({ sku: 'js', tags: ['a'], price: 2 })
    .select()
    .single();
  assert.deepEqual([made.error, made.data?.tags], [null, ['a']]);
  const merged = await table()
    .upsert({ sku: 'js', price: 3 }, { onConflict: 'sku' })
    .select()
    .single();
  assert.deepEqual(
    [merged.data?.id, merged.data?.price, merged.data?.tags],
    [made.data?.id, 3, ['a']],
  );
  const many = await table()
    .insert([{ sku: 'j1' }, { sku: 'j2' }])
    .select('sku');
  assert.deepEqual(many.data, [{ sku: 'j1' }, { sku: 'j2' }]);
  const updated = await table().update({ price: 4 }).eq('id', made.data?.id).select('price');
  assert.deepEqual(updated.data, [{ price: 4 }]);
  assert.equal((await table().delete().in('sku', ['js', 'j1', 'j2'])).status, 204);
});
