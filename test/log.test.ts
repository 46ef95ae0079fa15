/** The process goes on, and ends, whatever becomes of its stdout. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { openSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { freePort } from '../lib/embedded.ts';
import {
  inherited,
  leash,
  memoryOf,
  nodeArguments,
  startDatabase,
  type TestDatabase,
  until,
} from './harness.ts';

const APP = fileURLToPath(new URL('../app.ts', import.meta.url));
let database: TestDatabase;
before(async () => {
  database = await startDatabase();
});
after(() => database?.stop());

/** Starts the service with this stdout, and waits until it is ready. */
async function start(stdout: number | 'pipe', workers: string, stderrTo: number | 'pipe' = 'pipe') {
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const env = {
    ...inherited(),
    DATABASE_URL: database.url,
    PORT: String(port),
    LOG_LEVEL: 'debug',
    WEB_CONCURRENCY: workers,
  };
  const options = { env, stdio: ['ignore', stdout, stderrTo] };
  const child = leash(
    spawn(process.execPath, [...nodeArguments, APP], options as object) as ChildProcess,
  );
  let stderr = '';
  child.stderr?.on('data', (data) => {
    stderr += data;
  });
  child.stdout?.pause();
  const status = async (path: string) => (await fetch(url + path).catch(() => undefined))?.status;
  await until(async () => (await status('/readyz')) === 200);
  return { child, url, status, stderr: () => stderr };
}

async function end(child: ChildProcess): Promise<number | null> {
  child.kill('SIGTERM');
  const timer = setTimeout(() => child.kill('SIGKILL'), 8000);
  const [code] = await once(child, 'exit');
  clearTimeout(timer);
  return code;
}

for (const workers of ['1', '2']) {
  describe(`With WEB_CONCURRENCY=${workers}`, () => {
    test('a full disk drops lines, and is said once on stderr', async () => {
      const { child, url, status, stderr } = await start(openSync('/dev/full', 'w'), workers);
      assert.equal(await status('/passengers'), 200);
      const metrics = await (await fetch(`${url}/metrics`)).text();
      assert.match(metrics, /^log_lines_dropped_total [1-9]/m);
      assert.equal(await end(child), 0);
      assert.match(stderr(), /The log cannot be written; lines are dropped\.\n/);
    });

    test('a full disk for stderr too drops lines', async () => {
      const full = openSync('/dev/full', 'w');
      const { child, status } = await start(full, workers, full);
      assert.equal(await status('/passengers'), 200);
      assert.equal(await end(child), 0);
    });

    test('a pipe that nobody reads holds neither requests, nor memory, nor the end', async () => {
      const { child, url, status } = await start('pipe', workers);
      const path = `/hello?${'x'.repeat(100_000)}`; // a line of the log has the path
      for (let at = 0; at < 300; at += 1) assert.equal(await status(path), 200);
      const memory = await memoryOf(child.pid);
      assert.ok(memory && memory.own < 150, JSON.stringify(memory));
      assert.match(await (await fetch(`${url}/metrics`)).text(), /^log_lines_dropped_total [1-9]/m);
      assert.equal(await end(child), 0);
    });
  });
}
