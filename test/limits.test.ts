/**
 * Requests of the largest legal size, in every shape, on every route, under the image's flags: none
 * of them may hold the event loop, and the memory of the process stays within its limit.
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { request as httpRequest } from 'node:http';
import { describe, test } from 'node:test';
import { memoryOf, openService } from './harness.ts';

/** A gate may run on a slower processor, and coverage slows what it counts. */
const SLOWER = process.env.NODE_V8_COVERAGE ? 3 : process.env.CI ? 2 : 1;
const MAX_CPU = 50 * SLOWER; // ms of the event loop for one request
const MAX_MEMORY = 160; // MB that the process has allocated at the end
const BODY = 2 ** 20; // bytes: BODY_LIMIT
const HEAD = 128 * 1024 - 500; // bytes: MAX_HEAD, with room for the other fields

const NODE_OPTIONS = '--max-old-space-size=96 --max-semi-space-size=16';
const { service } = await openService({ NODE_OPTIONS });

/** CPU time of the main thread in ms: the first number of schedstat, in ns (proc_pid_schedstat). */
async function cpu(): Promise<number> {
  const [ns] = (await readFile(`/proc/${service.child.pid}/schedstat`, 'utf8')).split(' ');
  return Number(ns) / 1e6;
}

/** The status of the answer, whose body is read and dropped. */
function ask(method: string, path: string, body = '', headers: object = {}): Promise<number> {
  const { port } = new URL(service.url);
  const length = body === '' ? {} : { 'content-length': Buffer.byteLength(body) };
  const options = { port, method, path, headers: { ...length, ...headers } };
  return new Promise((resolve, reject) => {
    const request = httpRequest(options, (response) => {
      response.resume().on('end', () => resolve(response.statusCode ?? 0));
    });
    request.on('error', reject).end(body);
  });
}

/** Asserts that a request is cheap; the first ones may compile what they run, or share a busy core. */
async function assertCheap(request: Parameters<typeof ask>, most = MAX_CPU): Promise<void> {
  const costs: number[] = [];
  while (costs.length < 5 && costs.every((ms) => ms >= most)) {
    const start = await cpu();
    await ask(...request);
    costs.push((await cpu()) - start);
  }
  assert.ok(Math.min(...costs) < most, `${costs} ms`);
}

/** The text repeated up to so many bytes. */
function fill(text: string, bytes: number): string {
  return text.repeat(Math.floor(bytes / text.length));
}

function list(element: string, bytes = BODY): string {
  return `[${fill(`${element},`, bytes - element.length - 2)}${element}]`;
}

function members(count: number, key: (at: number) => string): string {
  return `{${Array.from({ length: count }, (_, at) => `${JSON.stringify(key(at))}:0`)}}`;
}

const HALF = BODY / 2 - 10;
const ROW =
  '{"survived":true,"passengerClass":1,"name":"x","sex":"male","age":1,' +
  '"siblingsOrSpousesAboard":0,"parentsOrChildrenAboard":0,"fare":1}';
const BODIES: Record<string, string> = {
  'empty rows': list('{}'),
  '10 000 empty rows': list('{}', 30_000),
  'valid rows': list(ROW),
  numbers: list('1'),
  '10 000 numbers': list('1', 20_000),
  nulls: list('null'),
  'empty arrays': list('[]'),
  'nested arrays': '['.repeat(HALF) + ']'.repeat(HALF),
  'nested objects': `${'{"a":'.repeat(BODY / 6 - 10)}0${'}'.repeat(BODY / 6 - 10)}`,
  'unclosed arrays': '['.repeat(BODY),
  '60 000 members': members(60_000, (at) => `k${at}`),
  '1 500 members': members(1500, (at) => `k${at}`),
  'keys of 100 kB': members(10, (at) => `${at}`.repeat(100_000)),
  'one string': JSON.stringify('x'.repeat(BODY - 2)),
  'a string of escapes': `"${fill('\\u0000', BODY - 2)}"`,
  'a long name': `{"name":"${'x'.repeat(BODY - 20)}"}`,
  'a name of blanks': `{"name":"${' '.repeat(BODY - 20)}"}`,
  'a long key': `{"uuid":"${'-'.repeat(BODY - 20)}"}`,
  blanks: ' '.repeat(BODY),
};
const KEY = '0192f0c1-2f3a-7bcd-8123-456789abcdef';
const WRITES: [string, string][] = [
  ['POST', '/passengers'],
  ['POST', '/rest/v1/passengers?columns=age,name'],
  ['PATCH', '/passengers?age=eq.-1'],
  ['PUT', `/passengers/${KEY}`],
  ['PATCH', `/passengers/${KEY}`],
];

describe('bodies', () => {
  for (const [method, path] of WRITES)
    for (const [name, body] of Object.entries(BODIES))
      test(`${method} ${path} with ${name}`, async () => {
        const stored = method === 'POST' && name === 'valid rows'; // in several turns of the loop
        const most = stored ? 4 * MAX_CPU : MAX_CPU;
        await assertCheap([method, path, body, { 'content-type': 'application/json' }], most);
      });
});

/** Values of the query string; what stands between two | is repeated up to HEAD. */
const QUERIES = [
  'or=(age.eq.1|,age.eq.1|)',
  'or=(and(|and(|',
  'or=(name.eq."\\",|name.eq."\\",|',
  '|age=eq.1&|age=eq.1',
  'order=age|,age|',
  'order=age|%20|x',
  'order=age|,age|&after=WyIxIiwiYSJd',
  'select=age|,age|',
  'select=|a|:age',
  'select=age|::text|',
  'columns=age|,age|',
  'on_conflict=uuid|,uuid|',
  'age=in.(1|,1|)',
  'name=in.("|\\"|',
  'age=eq(any).{1|,1|}',
  'name=like.|*|',
  'name=match.|(|',
  'name=wfts.|a%20|',
  '|x|=1',
  'name|[1]|=eq.1',
  'limit=|9|',
  'after=|A|',
];

describe('parameters', () => {
  for (const method of ['GET', 'POST', 'DELETE'])
    for (const query of QUERIES)
      test(`${method} ?${query}`, async () => {
        const [start = '', repeated = '', end = ''] = query.split('|');
        const target = `/passengers?${start}${fill(repeated, HEAD)}${end}`.replaceAll('"', '%22');
        await assertCheap([method, target.slice(0, HEAD)]);
      });
});

const FIELDS: Record<string, string[]> = {
  accept: [',', 'a/b,', 'a/b;', 'text/csv;q=0.1,'],
  prefer: [',', 'a,', 'handling=strict,', '"\\"'],
  'if-match': ['"1",', 'W/', '"'],
  'if-none-match': ['"1",'],
  range: ['1'],
  authorization: ['Bearer '],
  'idempotency-key': ['a'],
  'content-type': [';'],
  'content-encoding': ['a,'],
  'accept-profile': ['a'],
};

describe('header fields', () => {
  const requests: [string, string, string][] = [
    ['GET', '/passengers?limit=1', ''],
    ['GET', `/passengers/${KEY}`, ''],
    ['PUT', `/passengers/${KEY}`, ROW],
    ['DELETE', '/passengers?age=eq.-1', ''],
  ];
  for (const [method, path, body] of requests)
    for (const [name, texts] of Object.entries(FIELDS))
      test(`${method} ${path} with ${name}: ${texts}`, async () => {
        for (const text of texts) {
          const headers = { 'content-type': 'application/json', [name]: fill(text, HEAD) };
          await assertCheap([method, path, body, headers]);
        }
      });
});

describe('paths', () => {
  for (const text of ['/', 'a', '%61', '/a', '%2f'])
    for (const path of ['/passengers/', '/', '/docs/'])
      test(`${path} and many ${text}`, () => assertCheap(['GET', path + fill(text, HEAD - 20)]));
});

describe('CSV of 63 MiB', () => {
  const HEADER = `${Object.keys(JSON.parse(ROW)).join(',')}\n`;
  const shapes: [name: string, start: string, repeated: string, status: number][] = [
    ['commas', '', ',', 413],
    ['one line', '', 'x', 413],
    ['an open quote', `${HEADER}"`, 'a', 413],
    ['empty lines', HEADER, '\n', 413],
    ['names in the header', '', 'name,', 413],
    ['invalid rows', HEADER, 'x,1,a,male,1,0,0,1\n', 422],
  ];
  for (const [name, start, repeated, status] of shapes)
    test(`${name}: refused while it arrives`, async () => {
      const body = start + fill(repeated, 63 * BODY);
      const { port } = new URL(service.url);
      const options = { port, method: 'POST', path: '/passengers', agent: false };
      const request = httpRequest({ ...options, headers: { 'content-type': 'text/csv' } });
      request.on('error', () => {}); // the rest of the body is not read
      request.end(body);
      const [{ statusCode }] = await once(request, 'response');
      request.destroy();
      assert.equal(statusCode, status);
    });
});

test('the process goes on, and its memory stays within the limit', async () => {
  for (let at = 0; at < 300; at += 1) {
    const tree = list('siblingsOrSpousesAboard.eq.1', 490 * 29).slice(1, -1);
    assert.equal(await ask('GET', `/passengers?limit=0&or=(${tree},age.eq.${at})&order=age`), 200);
  }
  assert.equal(await ask('GET', '/readyz'), 200);
  const memory = await memoryOf(service.child.pid);
  assert.ok(memory && memory.own < MAX_MEMORY, JSON.stringify(memory));
});
