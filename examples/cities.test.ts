/** Events are counted per city, below the path prefix of a gateway that does not strip it. */
import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { openService } from '../test/harness.ts';

const EVENTS = '/ws/cities/events';

const RESOURCE = fileURLToPath(new URL('cities.ts', import.meta.url));
const { service } = await openService({ RESOURCE, BASE_PATH: '/ws/cities' });
before(async () => {
  const rows = 'Bern,2026-01-01\nZürich,2026-01-01\nBern,2026-02-01\n"Bern",2026-03-01';
  const csv = { 'content-type': 'text/csv' };
  const { status } = await service.request('POST', EVENTS, `City,Date\n${rows}\n`, csv);
  assert.equal(status, 201);
});

const COUNTS: [query: string, csv: string][] = [
  ['select=city,count()', 'city,count\nBern,3\nZürich,1\n'],
  ['select=city,count()&order=city.desc', 'city,count\nZürich,1\nBern,3\n'],
  ['select=city,count()&date=gte.2026-02-01', 'city,count\nBern,2\n'],
  ['select=city,n:count(),first:date.min()&city=eq.Bern', 'city,n,first\nBern,3,2026-01-01\n'],
  ['select=city,count()&city=eq.Basel', 'city,count\n'],
  ['select=date,count()&date=eq.2026-01-01', 'date,count\n2026-01-01,2\n'],
];
for (const [query, csv] of COUNTS) {
  test(`GET /events?${query} counts`, async () => {
    const reply = await service.get(`${EVENTS}?${query}`, { accept: 'text/csv' });
    assert.deepEqual([reply.status, reply.text], [200, csv]);
  });
}

test('counts are paged', async () => {
  const page = await service.get(`${EVENTS}?select=city,count()&limit=1`);
  assert.deepEqual(page.json, [{ city: 'Bern', count: 3 }]);
  const [, next = ''] = /^<(.*)>; rel="next"$/.exec(String(page.headers.get('link'))) ?? [];
  assert.deepEqual((await service.get(next)).json, [{ city: 'Zürich', count: 1 }]);
});

for (const path of ['', '/healthz', '/readyz']) {
  test(`"${path}" answers with and without the prefix`, async () => {
    for (const base of ['', '/ws/cities'])
      assert.equal((await service.get(base + path)).status, 200);
  });
}

for (const path of ['/events', '/hello', '/openapi.json', '/docs', '/ws', '/ws/citiesx/events']) {
  test(`${path} outside the prefix is 404`, async () => {
    const { status, json } = await service.get(path);
    assert.deepEqual([status, json.code], [404, 'PGRST125']);
    assert.deepEqual((await service.request('OPTIONS', path)).json.methods, []);
  });
}
