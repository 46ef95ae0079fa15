/** Prometheus metrics; with workers, those of all of them. */
import cluster from 'node:cluster';
import { on } from 'node:events';
import prometheus from 'prom-client';
import type { Config } from './config.ts';
import { dropped } from './log.ts';
import type { Pool } from './pool.ts';
import { unavailable } from './problem.ts';

const SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5];
const SIZES = [1, 2, 4, 8, 16, 32, 64, 128];

export type Metrics = ReturnType<typeof createMetrics>;

type Build = Pick<Config, 'APP_VERSION' | 'APP_BRANCH' | 'APP_COMMIT'>;

/** `observe` counts a request, its time in ms, `failed` an SQLSTATE; `print` gives the text of all workers. */
export function createMetrics({ APP_VERSION, APP_BRANCH, APP_COMMIT }: Build, pool: Pool) {
  const register = new prometheus.Registry();
  const registers = [register];
  prometheus.collectDefaultMetrics({ register });
  const gauge = (name: string, help: string, value: () => number, aggregator?: 'min' | 'max') => {
    const collect = () => made.set(value());
    const options = { name, help, registers, collect, aggregator: aggregator ?? 'sum' } as const;
    const made: prometheus.Gauge = new prometheus.Gauge(options);
  };
  const { counts, queue, streams } = pool;
  countDropped(registers);
  gauge('db_statements_in_flight', 'Requests that wait for the database.', () => counts.inFlight);
  gauge('db_statements_waiting', 'Statements without a connection.', () => queue.size);
  gauge('db_streams', 'Lists that are streamed now.', () => streams.size);
  gauge('db_up', 'Whether a connection is open.', () => Number(pool.state === 'up'), 'min');
  gauge('db_read_only', 'Whether it refuses writes.', () => Number(pool.readOnly), 'max');
  const build = { version: APP_VERSION, branch: APP_BRANCH, commit: APP_COMMIT };
  const info = { name: 'build_info', help: 'Always 1.', labelNames: Object.keys(build), registers };
  new prometheus.Gauge({ ...info, aggregator: 'first' }).set(build, 1);
  const duration = new prometheus.Histogram({
    name: 'http_request_duration_seconds',
    help: 'From the head of a request to its answer.',
    labelNames: ['method', 'route', 'status'],
    buckets: SECONDS,
    registers,
  });
  const batch = new prometheus.Histogram({
    name: 'db_batch_size',
    help: 'Requests that one statement answered.',
    labelNames: ['work'],
    buckets: SIZES,
    registers,
  });
  pool.observe = (work, requests) => batch.observe({ work }, requests);
  new prometheus.AggregatorRegistry(); // in a worker it answers clusterMetrics() of the primary
  if (cluster.isWorker) prometheus.AggregatorRegistry.setRegistries(register);
  return {
    type: register.contentType,
    print: () => (cluster.isWorker ? askPrimary() : register.metrics()),
    failed: countErrors(registers),
    observe: (method: string, route: string, status: number, ms: number) =>
      duration.observe({ method, route, status }, ms / 1000),
  };
}

function countDropped(registers: prometheus.Registry[]): void {
  new prometheus.Counter({
    name: 'log_lines_dropped_total',
    help: 'Lines of the log that were not written.',
    registers,
    collect() {
      this.reset();
      this.inc(dropped.lines);
    },
  });
}

/** Counts an SQLSTATE by its class. */
function countErrors(registers: prometheus.Registry[]): (code: string) => void {
  const errors = new prometheus.Counter({
    name: 'db_errors_total',
    help: 'Requests that failed by an error of the database, by class of SQLSTATE.',
    labelNames: ['class'],
    registers,
  });
  errors.inc({ class: '53' }, 0); // increase() needs a first sample
  return (code) => errors.inc({ class: code.slice(0, 2) });
}

/** The metrics of all workers as one text. Throws Problem 503 when a worker hangs or died. */
async function askPrimary(): Promise<string> {
  const messages = on(process, 'message');
  process.send?.({ ask: 'metrics' });
  for await (const [{ metrics }] of messages) {
    if (metrics) return metrics;
    if (metrics === null) break;
  }
  throw unavailable('A worker does not answer.');
}
