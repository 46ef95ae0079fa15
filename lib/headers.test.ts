/** Tests of the header fields as data. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  CSV,
  JSON_TYPE,
  NDJSON,
  negotiate,
  OBJECT,
  parsePrefer,
  parseRange,
  parseTags,
} from './headers.ts';

const OFFERED = [JSON_TYPE, CSV, NDJSON, OBJECT];

describe('Accept', () => {
  const accepts: [string | undefined, string | undefined][] = [
    [undefined, JSON_TYPE],
    ['*/*', JSON_TYPE],
    ['application/*', JSON_TYPE],
    ['text/*', CSV],
    ['Text/CSV', CSV],
    ['text/csv; header=present', CSV],
    ['application/json;odata=verbose', JSON_TYPE],
    ['application/vnd.pgrst.object', OBJECT],
    ['application/vnd.pgrst.array+json', JSON_TYPE],
    ['text/html, application/json;q=0.5', JSON_TYPE],
    ['application/json;q=0, */*', CSV],
    ['application/json; Q=0, */*', CSV],
    ['application/json;q=0.1, text/csv;q=0.9', CSV],
    ['text/csv;q=0.4, application/*;q=0.5', JSON_TYPE],
    ['application/*;q=0.5, application/json;q=0.1, application/x-ndjson;q=0.4', OBJECT],
    ['text/csv, application/json', CSV],
    ['*/*, text/csv', CSV],
    ['text/html', undefined],
    ['*/*;q=0', undefined],
    ['application/vnd.pgrst.object+json;nulls=stripped', undefined],
    ['text/csv;header=absent', undefined],
  ];
  for (const [accept, expected] of accepts)
    test(`${accept} is ${expected ?? '406'}`, () => {
      if (expected) return assert.equal(negotiate(accept, OFFERED), expected);
      assert.throws(() => negotiate(accept, OFFERED), { status: 406, code: 'PGRST107' });
    });
});

describe('Prefer', () => {
  const preferences: [string, object][] = [
    ['Return = minimal; wait=10', { return: 'minimal' }],
    ['return="representation"', { return: 'representation' }],
    ['return="min\\imal"', { return: 'minimal' }],
    ['return=minimal, return=representation', { return: 'minimal' }],
    ['count=exact,handling=strict', { count: 'exact', handling: 'strict' }],
    ['max-affected=-1', {}],
    ['missing=null', {}],
    ['__proto__=x, respond-async', {}],
  ];
  for (const [header, expected] of preferences)
    test(header, () => assert.deepEqual({ ...parsePrefer(header) }, expected));

  for (const header of ['handling=strict, nope', 'nope=1,handling=strict', 'handling=strict,tx=x'])
    test(`${header} is refused`, () => {
      assert.throws(() => parsePrefer(header), { status: 400, code: 'PGRST122' });
    });

  test('of 100 kB is read in linear time', () => {
    const { user } = process.cpuUsage();
    for (const header of [`a${' '.repeat(1e5)}b`, `"${'\\"'.repeat(6e4)}\\`])
      assert.deepEqual(parsePrefer(header), {});
    assert.ok(process.cpuUsage().user - user < 200_000); // μs; a quadratic time is 10 s
  });
});

describe('entity tags', () => {
  const lists: [string | undefined, string[] | string | undefined][] = [
    [undefined, undefined],
    ['*', '*'],
    ['"7", "8"', ['7', '8']],
    ['W/"7",W/"8"', ['7', '8']],
    ['"7a", "8"', ['8']],
    ['7', []],
    ['"*"', []],
  ];
  for (const [header, expected] of lists)
    test(`${header}`, () => assert.deepEqual(parseTags(header), expected));

  test('a list of 1 000 is 400', () => {
    assert.throws(() => parseTags('"7",'.repeat(1000) + '"8",'.repeat(100)), { status: 400 });
  });
});

describe('Range', () => {
  const ranges: [string | undefined, object | undefined][] = [
    ['0-9', { from: 0, to: 9 }],
    ['Items = 5-6', { from: 5, to: 6 }],
    ['5-', { from: 5, to: Infinity }],
    ['bytes=0-9', undefined],
    ['-5', undefined],
    [undefined, undefined],
  ];
  for (const [header, expected] of ranges)
    test(`${header}`, () => assert.deepEqual(parseRange(header), expected));

  test('5-2 is 416 that says why', () => {
    const extras = { details: 'The range 5-2 ends before it begins.', headers: {} };
    assert.throws(() => parseRange('5-2'), { status: 416, code: 'PGRST103', extras });
  });
});
