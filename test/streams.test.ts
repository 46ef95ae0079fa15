/** A million rows in and out, while others are answered, at little more memory. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { Readable } from 'node:stream';
import { test } from 'node:test';
import { memoryOf, openService } from './harness.ts';

const ROWS = 1_000_000;
const MOST = 170; // MB more than before; as JSON the rows are 210 MB

const { service } = await openService({ CSV_LIMIT: String(2 ** 28) });
for (let count = 0; count < 200; count += 1) await service.get('/passengers?limit=1');
const idle = (await memoryOf(service.child.pid))?.own;

/** Asks for pages until it has ended; its answer, and the most memory in between in MB. */
async function watch<T>(running: Promise<T>): Promise<[answer: T, more: number | undefined]> {
  let isRunning = true;
  const ended = running.finally(() => {
    isRunning = false;
  });
  let peak = idle;
  while (isRunning) {
    assert.equal((await service.get('/passengers?limit=1')).status, 200);
    const now = (await memoryOf(service.child.pid))?.own;
    if (peak && now) peak = Math.max(peak, now);
  }
  return [await ended, idle && peak && peak - idle];
}

function assertLittle(more: number | undefined): void {
  assert.ok((more ?? 0) < MOST, `${more} MB more than ${idle} MB`); // undefined without /proc
}

test(`${ROWS} rows of CSV are stored`, async () => {
  const sample = readFileSync(new URL('../examples/passengers.csv', import.meta.url), 'utf8');
  const [header = '', ...lines] = sample.trim().split('\n');
  const thousand = `${Array.from({ length: 25 }, () => lines.join('\n')).join('\n')}\n`;
  async function* text() {
    yield `${header}\n`;
    for (let rows = 0; rows < ROWS; rows += 1000) yield thousand;
  }
  const body = Readable.toWeb(Readable.from(text())) as ReadableStream;
  const headers = { 'content-type': 'text/csv' };
  const init = { method: 'POST', headers, body, duplex: 'half' } as RequestInit;
  const [answer, more] = await watch(fetch(`${service.url}/passengers`, init));
  assert.equal(answer.headers.get('content-range'), `*/${ROWS}`);
  assertLittle(more);
});

const lists: [accept: string, path: string, mark: string, marks: number][] = [
  ['application/json', '/passengerlist', '{', ROWS],
  ['text/csv', '/passengers', '\n', ROWS + 1], // with its header
  ['application/x-ndjson', '/passengers', '\n', ROWS],
];
for (const [accept, path, mark, marks] of lists) {
  test(`${ROWS} rows are answered as ${accept}`, async () => {
    const read = async () => {
      const { body } = await fetch(service.url + path, { headers: { accept } });
      let count = 0;
      for await (const chunk of body ?? [])
        for (const byte of chunk) if (byte === mark.charCodeAt(0)) count += 1;
      return count;
    };
    const [count, more] = await watch(read());
    assert.equal(count, marks);
    assertLittle(more);
  });
}
