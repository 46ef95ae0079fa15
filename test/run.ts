/**
 * Runs `node --test` with one embedded PostgreSQL for all files, each of which has a database of its
 * own on it; with DATABASE_URL, on that server. Arguments are those of `node --test`.
 *
 *     node --import tsx test/run.ts --test-timeout=60000 app.test.ts
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { startEmbedded } from '../lib/embedded.ts';

const FLAGS = ['--import', 'tsx', '--test', '--test-force-exit', '--test-reporter=spec'];
const GRACE = 5000; // ms from SIGTERM to SIGKILL

const started = performance.now();
const url = process.env.DATABASE_URL || (await startServer());
const env = { ...process.env, DATABASE_URL: url };
const args = [...FLAGS, '--test-concurrency=2', ...process.argv.slice(2)];
const tests = spawn(process.execPath, args, { env, stdio: 'inherit', detached: true });

/** Signals the tests and the services that they started; 0 asks whether any is there. */
function signalAll(signal: NodeJS.Signals | 0): boolean {
  try {
    return process.kill(-(tests.pid ?? 0), signal);
  } catch {
    return false;
  }
}

async function end(): Promise<void> {
  signalAll('SIGTERM');
  for (let ms = 0; ms < GRACE && signalAll(0); ms += 50) await sleep(50);
  signalAll('SIGKILL');
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, end);
const [code] = await once(tests, 'exit');
await end();
console.log(`${((performance.now() - started) / 1000).toFixed(1)} s`);
process.exit(code ?? 1); // at which the server stops

/** A new PostgreSQL that is removed at exit. */
async function startServer(): Promise<string> {
  const directory = mkdtempSync(join(tmpdir(), 'passengers test-'));
  chmodSync(directory, 0o755); // PostgreSQL runs as another user where this one is root
  const embedded = await startEmbedded(join(directory, 'data'));
  process.on('exit', () => rmSync(directory, { recursive: true, force: true }));
  return embedded.url;
}
