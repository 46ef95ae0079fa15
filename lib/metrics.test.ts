import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createMetrics } from './metrics.ts';
import type { Pool } from './pool.ts';

const counts = { inFlight: 3 };
const pool = {
  counts,
  streams: new Set([1, 2]),
  queue: new Set([1]),
  state: 'up',
  readOnly: true,
  observe: () => {},
};
const about = { APP_VERSION: '1.2.3', APP_BRANCH: 'main', APP_COMMIT: 'abc' };
const metrics = createMetrics(about, pool as unknown as Pool);
metrics.observe('GET', '/things/:key', 200, 3);
(pool.observe as Pool['observe'])('read', 5);

const expected = [
  '# TYPE log_lines_dropped_total counter',
  'db_statements_in_flight 3',
  'db_statements_waiting 1',
  'db_streams 2',
  'db_up 1',
  'db_read_only 1',
  'build_info{version="1.2.3",branch="main",commit="abc"} 1',
  'http_request_duration_seconds_count{method="GET",route="/things/:key",status="200"} 1',
  'http_request_duration_seconds_sum{method="GET",route="/things/:key",status="200"} 0.003',
  'http_request_duration_seconds_bucket{le="0.005",method="GET",route="/things/:key",status="200"} 1',
  'db_batch_size_sum{work="read"} 5',
];
for (const line of [...expected, '# TYPE process_cpu_seconds_total counter']) {
  test(`print() has ${line}`, async () => {
    assert.ok(`\n${await metrics.print()}`.includes(`\n${line}\n`));
  });
}
