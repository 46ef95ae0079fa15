/** Two tables of one program, and its own endpoint: what their contract does not say. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { bearer, openService } from '../test/harness.ts';

const JWT_SECRET = 'a-secret-of-32-bytes-or-of-more-than-that';

const RESOURCE = fileURLToPath(new URL('shop.ts', import.meta.url));
const { service } = await openService({ RESOURCE, JWT_SECRET });
const own = await bearer(JWT_SECRET, 'shop');

const get = (path: string) => service.get(path, own);
const create = async (path: string, body: object) =>
  (await service.request('POST', path, body, own)).json;

test('GET /orders/open counts the open orders of each product', async () => {
  assert.deepEqual((await get('/orders/open')).json, []);
  const [tea, salt] = await create('/products', [
    { name: 'Tea', price: 4.5 },
    { name: 'Salt', price: 1 },
  ]);
  await create('/orders', [
    { product: tea.uuid, quantity: 2 },
    { product: tea.uuid, quantity: 3 },
    { product: salt.uuid, quantity: 1 },
    { product: salt.uuid, quantity: 9, fulfilled: true },
  ]);
  const { status, json } = await get('/orders/open');
  const expected = [
    { product: 'Tea', quantity: 5 },
    { product: 'Salt', quantity: 1 },
  ];
  assert.deepEqual([status, json], [200, expected]);
});

test('GET /orders/open needs a token, and is in the document and in the metrics', async () => {
  const { status, json } = await service.get('/orders/open');
  assert.deepEqual([status, json.code], [401, 'PGRST302']);
  const { paths } = (await get('/openapi.json')).json;
  assert.equal(paths['/orders/open'].get.summary, 'Count open orders');
  assert.match((await get('/metrics')).text, /route="\/orders\/open"/);
});

test('DELETE /orders/open is 405, and GET of another word a key that is not a UUID', async () => {
  assert.equal((await service.request('POST', '/orders/open', {}, own)).status, 405);
  assert.equal((await get('/orders/closed')).json.code, '22P02');
});
