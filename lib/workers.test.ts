import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openService, until } from '../test/harness.ts';
import { isPrimary } from './workers.ts';

const { service } = await openService({ WEB_CONCURRENCY: '2' });

test('isPrimary() is for more than one worker', () => {
  assert.deepEqual(
    [1, 2].map((WEB_CONCURRENCY) => isPrimary({ WEB_CONCURRENCY, SHUTDOWN_GRACE: 0 } as never)),
    [false, true],
  );
});

test('workers share a port, /metrics has the sum of both, but one build, and SIGTERM ends them with 0', async () => {
  await until(() => service.log.filter(({ msg }) => msg === 'listening').length === 2);
  for (let count = 0; count < 20; count += 1) await service.get('/zero', { connection: 'close' }); // another connection may be another worker
  const { text } = await service.get('/metrics');
  const [, requests] = /_count\{method="GET",route="\/zero",status="200"\} (\d+)/.exec(text) ?? [];
  assert.equal(requests, '20');
  assert.match(text, /^db_up 1$/m);
  assert.match(text, /^build_info\{.*\} 1$/m);
  assert.equal(await service.stop(), 0);
});
