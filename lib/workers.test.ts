import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { startDatabase, startReady, type TestDatabase, until } from '../test/harness.ts';
import { isPrimary } from './workers.ts';

let database: TestDatabase;
before(async () => {
  database = await startDatabase();
});
after(() => database?.stop());

test('isPrimary() is for more than one worker', () => {
  assert.deepEqual(
    [1, 2].map((WEB_CONCURRENCY) => isPrimary({ WEB_CONCURRENCY, SHUTDOWN_GRACE: 0 } as never)),
    [false, true],
  );
});

test('workers share a port, /metrics sums over them, and SIGTERM ends them with 0', async () => {
  const service = await startReady({ DATABASE_URL: database.url, WEB_CONCURRENCY: '2' });
  await until(() => service.log.filter(({ msg }) => msg === 'listening').length === 2);
  for (let count = 0; count < 20; count += 1) await service.get('/zero', { connection: 'close' }); // another connection may be another worker
  const { text } = await service.get('/metrics');
  const [, requests] = /_count\{method="GET",route="\/zero",status="200"\} (\d+)/.exec(text) ?? [];
  assert.equal(requests, '20');
  assert.equal(await service.stop(), 0);
});
