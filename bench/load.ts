/** Load on one URL by wrk, or by autocannon where wrk is not installed. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

/** In path and body, `<key>` becomes a random row's number, `<counter:N>` a count from 0 to N-1. */
export type Request = { method: string; path: string; body?: string };

/** `rows`: the table's size, the range of `<key>`. */
export type Load = {
  url: string;
  request: Request;
  rows: number;
  connections: number;
  seconds: number;
};

/** Latencies are in ms; a stream has none. */
export type Sample = { requests: number; seconds: number; p50?: number; p99?: number };

const run = promisify(execFile);
const beside = (file: string) => fileURLToPath(new URL(file, import.meta.url));

export function succeeds(file: string, ...args: string[]): Promise<boolean> {
  return run(file, args).then(
    () => true,
    () => false,
  );
}

export const hasWrk = succeeds('sh', '-c', 'command -v wrk');

/** Rejects if any answer is an error, a timeout or a broken connection. */
export async function drive(load: Load): Promise<Sample> {
  const { url, request, rows, connections, seconds } = load;
  const shape = ['-t1', `-c${connections}`, `-d${seconds}s`, '--timeout', '10s'];
  const raw = [rawRequest(new URL(url).host, request), `${rows}`];
  const cannon = [...process.execArgv, beside('cannon.js'), JSON.stringify(load)];
  const { stdout } = (await hasWrk)
    ? await run('wrk', [...shape, '-s', beside('wrk.lua'), url, '--', ...raw])
    : await run(process.execPath, cannon);
  const { failed, how, ...sample } = JSON.parse(stdout.trim().split('\n').at(-1) ?? '');
  if (failed > 0 || sample.requests === 0) {
    const what = `${request.method} ${request.path}`;
    throw new Error(`${failed} failures and ${sample.requests} answers to ${what}: ${how}`);
  }
  return sample;
}

/** HTTP/1.1 as text; the length of the body is that of the filled template. */
export function rawRequest(host: string, { method, path, body }: Request): string {
  const length = Buffer.byteLength(fill(body ?? '', 1));
  const entity = `Content-Type: application/json\r\nContent-Length: ${length}\r\n`;
  return `${method} ${path} HTTP/1.1\r\nHost: ${host}\r\n${body ? entity : ''}\r\n${body ?? ''}`;
}

/** The template with its `n`th values; the values of one place have one length. */
export function fill(template: string, n: number, key = n): string {
  return template
    .replaceAll('<key>', key.toString(16).padStart(12, '0'))
    .replace(/<counter:(\d+)>/g, (_, size) => {
      return String(n % Number(size)).padStart(String(Number(size) - 1).length, '0');
    });
}
