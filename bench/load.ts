/**
 * Load on one URL, by wrk where it is installed (Debian's package), else by autocannon: a request
 * as a template, so many connections, so many seconds; what came of it, failures counted.
 */
import { execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

/** In path and body, `<key>` is a random row's and `<counter:N>` counts from 0 to N-1, for ever. */
export type Request = { method: string; path: string; body?: string; token?: string };

/** `rate`: requests per second altogether, at moments of chance; without it as many as there can be. */
export type Load = {
  url: string;
  request: Request;
  rows: number;
  connections: number;
  seconds: number;
  rate?: number;
};

/** Latencies are in ms; pgbench tells no p99. */
export type Sample = { perSecond: number; p50: number; p99?: number; failed: number };

const run = promisify(execFile);
const beside = (file: string) => fileURLToPath(new URL(file, import.meta.url));

/** Whether a command answers; PATH has what Debian installs. */
export function isInstalled(command: string, argument = '--version'): Promise<boolean> {
  return run(command, [argument]).then(
    () => true,
    (error) => error.code !== 'ENOENT',
  );
}

/** Rejects where answers fail: figures of errors are none. */
export async function drive(load: Load): Promise<Sample> {
  const { requests, seconds, failed, how, p50, p99 } = await ((await withWrk) ? wrk : cannon)(load);
  if (failed > 0 || requests === 0) {
    const what = `${load.request.method} ${load.url}${load.request.path}`;
    throw new Error(`${failed} of ${requests} answers to ${what} failed: ${how}`);
  }
  return { perSecond: requests / seconds, p50, p99, failed };
}

const withWrk = isInstalled('wrk', '-v');

/** Which of the two it is, for the report. */
export async function loadTool(): Promise<string> {
  return (await withWrk) ? 'wrk' : 'autocannon';
}

/** `how`: the kinds of failure, counted. */
type Outcome = Required<Omit<Sample, 'perSecond'>> & {
  requests: number;
  seconds: number;
  how: string;
};

async function wrk({ url, request, rows, connections, seconds, rate }: Load): Promise<Outcome> {
  const directory = await mkdtemp(join(tmpdir(), 'bench-'));
  const file = join(directory, 'request');
  await writeFile(file, rawRequest(new URL(url).host, request));
  const delay = rate ? (connections / rate) * 1000 : 0;
  const shape = ['-t1', `-c${connections}`, `-d${Math.ceil(seconds)}s`, '--timeout', '10s'];
  const args = [...shape, '-s', beside('wrk.lua'), url, '--', file, `${rows}`, `${delay}`];
  try {
    const { stdout } = await run('wrk', args);
    return JSON.parse(stdout.trim().split('\n').at(-1) ?? '');
  } finally {
    await rm(directory, { recursive: true });
  }
}

/** HTTP/1.1 as text; the length of the body is that of the filled template. */
export function rawRequest(host: string, { method, path, body, token }: Request): string {
  const length = Buffer.byteLength(fill(body ?? '', 1));
  const entity = ['Content-Type: application/json', `Content-Length: ${length}`];
  const headers = [
    `Host: ${host}`,
    ...(body === undefined ? [] : entity),
    ...(token === undefined ? [] : [`Authorization: Bearer ${token}`]),
  ];
  return `${method} ${path} HTTP/1.1\r\n${headers.join('\r\n')}\r\n\r\n${body ?? ''}`;
}

/** The template with its `n`th values, for one request outside of the load. */
export function fill(template: string, n: number): string {
  return template
    .replaceAll('<key>', n.toString(16).padStart(12, '0'))
    .replace(/<counter:(\d+)>/g, (_, size) => {
      return String(n % Number(size)).padStart(String(Number(size) - 1).length, '0');
    });
}

/** A process of its own, so that it has a core as wrk has. */
async function cannon(load: Load): Promise<Outcome> {
  const { stdout } = await run(process.execPath, [beside('cannon.js'), JSON.stringify(load)]);
  return JSON.parse(stdout);
}
