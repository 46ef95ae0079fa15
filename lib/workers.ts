/** WEB_CONCURRENCY: several processes on one port. */
import cluster from 'node:cluster';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import prometheus from 'prom-client';
import { type Config, DEADLINE } from './config.ts';
import { StartError } from './problem.ts';
import { type Running, urlOf } from './server.ts';

type WorkerOptions = Pick<Config, 'WEB_CONCURRENCY' | 'DATABASE_URL' | 'SHUTDOWN_GRACE'>;

/** Whether this process starts workers instead of serving. */
export function isPrimary({ WEB_CONCURRENCY }: WorkerOptions): boolean {
  return cluster.isPrimary && WEB_CONCURRENCY > 1;
}

/** Keeps WEB_CONCURRENCY workers running, each a process that serves; replaces one that died. */
export async function supervise(options: WorkerOptions, log: Logger): Promise<Running> {
  const { WEB_CONCURRENCY, DATABASE_URL, SHUTDOWN_GRACE } = options;
  const all = new prometheus.AggregatorRegistry();
  cluster.schedulingPolicy = cluster.SCHED_NONE; // Node loses connections it passes to a dying worker
  const fork = () => cluster.fork(DATABASE_URL ? { DATABASE_URL } : {});
  let stopping = false;
  const failed = new Promise<never>((_, reject) => {
    cluster.on('exit', ({ process: { pid } }, code) => {
      if (code === 2) reject(new StartError(`worker ${pid} cannot start`));
      if (stopping || code === 2) return;
      log.error({ worker: pid, code }, 'worker died');
      fork();
    });
  });
  cluster.on('message', async (worker, { ask }: { ask?: string }) => {
    if (ask !== 'metrics') return;
    const metrics = await all.clusterMetrics().catch(() => null);
    worker.send({ metrics }, () => {});
  });
  for (let count = 0; count < WEB_CONCURRENCY; count += 1) fork();
  const listening = once(cluster, 'listening').then(([, address]) => urlOf(address));
  const stop = () => {
    stopping = true;
    return stopWorkers(DEADLINE + 2000 + SHUTDOWN_GRACE * 1000);
  };
  return { url: await Promise.race([listening, failed]), failed, stop };
}

/** Asks them again and again, since a starting worker does not listen yet; kills them after `ms`. */
async function stopWorkers(ms: number): Promise<void> {
  const end = performance.now() + ms;
  for (;;) {
    const living = Object.values(cluster.workers ?? {}).filter((one) => one?.isDead() === false);
    if (living.length === 0) return;
    for (const worker of living) {
      if (performance.now() > end) worker?.process.kill('SIGKILL');
      else worker?.send({ ask: 'stop' }, () => {});
    }
    await sleep(50);
  }
}
