/** The application in the process of a test, so that its log is seen and any declaration is served. */
import { connect, createApp } from '../app.ts';
import { readConfig } from '../lib/config.ts';
import { openLog } from '../lib/log.ts';
import { serve } from '../lib/server.ts';
import { ensureTable } from '../lib/table.ts';
import { client } from './deployment.ts';
import { until } from './harness.ts';

export type Served = Awaited<ReturnType<typeof serveHere>>;

/** Serves a program on a port of its own; rejects where a table is not as declared. */
export async function serveHere(
  program: Parameters<typeof connect>[1],
  environment: Record<string, string>,
  log = openLog('silent'),
) {
  const config = readConfig({ POOL_SIZE: '2', PORT: '0', ...environment });
  const service = connect(config, program, log);
  const { life, pool, resources } = service;
  const prepare = async () => {
    for (const one of resources) await ensureTable(one, pool);
  };
  const parts = { fetch: createApp(service).fetch, life, prepare, close: () => pool.end() };
  const { url, stop } = await serve(config, parts, log);
  await until(() => life.prepared);
  const request = client(url);
  const send = (method: string, path: string, body?: unknown, headers = {}) =>
    request(method, path, { body, headers });
  const get = (path: string, headers = {}) => send('GET', path, undefined, headers);
  return { url, send, get, stop };
}
