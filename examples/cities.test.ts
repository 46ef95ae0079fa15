/**
 * Events are counted per city, below the prefix of a gateway that does not strip it.
 */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import {
  startDatabase,
  startService,
  type TestDatabase,
  type TestService,
  until,
} from '../test/harness.ts';

const RESOURCE = fileURLToPath(new URL('cities.ts', import.meta.url));
const BASE = '/ws/cities';
const EVENTS = `${BASE}/events`;
const CSV = { 'content-type': 'text/csv' };

let database: TestDatabase;
let service: TestService;
before(async () => {
  database = await startDatabase();
  const build = { APP_BRANCH: 'main', APP_COMMIT: 'abc1234' };
  service = await startService({
    ...{ RESOURCE, BASE_PATH: BASE, DATABASE_URL: database.url },
    ...build,
  });
  await until(async () => (await service.get(`${BASE}/readyz`)).status === 200);
  const rows =
    'City,Date\nBern,2026-01-01\nZürich,2026-01-01\nBern,2026-02-01\n"Bern",2026-03-01\n';
  assert.equal((await service.request('POST', EVENTS, rows, CSV)).status, 201);
});
after(async () => {
  await service?.stop();
  await database?.stop();
});

const counts: [query: string, groups: object[]][] = [
  [
    'select=city,count()',
    [
      { city: 'Bern', count: 3 },
      { city: 'Zürich', count: 1 },
    ],
  ],
  [
    'select=city,count()&order=city.desc',
    [
      { city: 'Zürich', count: 1 },
      { city: 'Bern', count: 3 },
    ],
  ],
  ['select=city,count()&date=gte.2026-02-01', [{ city: 'Bern', count: 2 }]],
  [
    'select=city,events:count(),first:date.min()&city=eq.Bern',
    [{ city: 'Bern', events: 3, first: '2026-01-01' }],
  ],
  ['select=city,count()&city=eq.Basel', []],
  ['select=date,count()&date=eq.2026-01-01', [{ date: '2026-01-01', count: 2 }]],
];
for (const [query, groups] of counts) {
  test(`GET /events?${query} counts`, async () => {
    const { status, json } = await service.get(`${EVENTS}?${query}`);
    assert.deepEqual([status, json], [200, groups]);
  });
}

test('counts are paged below the prefix, and come as CSV', async () => {
  const query = '?select=city,count()';
  const page = await service.get(`${EVENTS}${query}&limit=1`);
  const link = /^<(.*)>; rel="next"$/.exec(String(page.headers.get('link')))?.[1] ?? '';
  assert.ok(link.startsWith(`${EVENTS}?`), link);
  assert.deepEqual((await service.get(link)).json, [{ city: 'Zürich', count: 1 }]);
  const { text } = await service.get(EVENTS + query, { accept: 'text/csv' });
  assert.equal(text, 'city,count\nBern,3\nZürich,1\n');
});

test('OPTIONS tells version, branch, commit and the uri as it was asked', async () => {
  const { version } = JSON.parse(
    await readFile(new URL('../package.json', import.meta.url), 'utf8'),
  );
  for (const uri of [EVENTS, `${EVENTS}?select=city`, `${BASE}/hello`, '/', '/events']) {
    const { status, json } = await service.request('OPTIONS', uri);
    const { methods, ...told } = json;
    const about = { name: 'events', version, branch: 'main', commit: 'abc1234', uri };
    assert.deepEqual([status, told], [200, about]);
    assert.equal(methods.includes('GET'), uri.startsWith(BASE));
  }
});

test('Location, Link, the document and the page lead below the prefix', async () => {
  const body = { city: 'Genf', date: '2026-01-01' };
  for (const base of [EVENTS, `${BASE}/rest/v1/events`]) {
    const { headers } = await service.request('POST', base, body);
    const location = String(headers.get('location'));
    assert.ok(location.startsWith(`${base}/`), location);
    assert.equal((await service.get(location)).json.city, 'Genf');
    const link = (await service.get(`${base}?limit=1`)).headers.get('link') ?? '';
    assert.ok(link.startsWith(`<${base}?`), link);
    assert.equal((await service.request('DELETE', location)).status, 204);
  }
  const document = (await service.get(`${BASE}/openapi.json`)).json;
  assert.deepEqual(document.servers, [{ url: BASE }]);
  assert.ok(document.paths['/events']);
  const page = (await service.get(`${BASE}/docs`)).text;
  for (const [, at] of page.matchAll(/(?:src|href)="(docs[^"]*)"/g)) {
    const { pathname } = new URL(String(at), `${service.url}${BASE}/docs`);
    assert.equal((await service.get(pathname)).status, 200, pathname);
  }
});

test('who probes from beside the service finds it without the prefix, too', async () => {
  for (const path of ['/healthz', '/readyz', '/metrics']) {
    for (const base of ['', BASE]) assert.equal((await service.get(base + path)).status, 200, path);
  }
});

test('nothing else is served beside the prefix', async () => {
  for (const path of ['/', '/events', '/hello', '/openapi.json', '/ws', BASE, `${BASE}x/events`]) {
    assert.equal((await service.get(path)).status, 404, path);
  }
});
