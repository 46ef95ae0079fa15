/** Tests of reading a body: its type, its sizes, its JSON, and its rows. */
import assert from 'node:assert/strict';
import type { IncomingMessage } from 'node:http';
import { Readable } from 'node:stream';
import { describe, test } from 'node:test';
import { z } from 'zod';
import { MAX_ARRAY, mediaType, readJson, toRows } from './body.ts';
import { integer, jsonb, resource, text } from './columns.ts';

const things = resource({
  path: 'things',
  table: 'things',
  key: 'id',
  columns: {
    name: text(5),
    size: integer(1, 3),
    more: jsonb(z.record(z.string(), z.unknown()), {}, { nullable: true }),
  },
});
const THING = { name: 'a', size: 1 };

function incoming(body: string | Buffer, headers: object = {}, method = 'POST'): IncomingMessage {
  const stream = Readable.from([Buffer.from(body)]);
  const type = { 'content-type': 'application/json' };
  return Object.assign(stream, { method, headers: { ...type, ...headers } }) as never;
}

function read(body: string | Buffer, limit = 2 ** 20) {
  return readJson(incoming(body), limit);
}

describe('the media type', () => {
  const types: [object, string][] = [
    [{ 'content-type': 'Application/JSON; charset=utf-8' }, 'application/json'],
    [{ 'content-type': 'text/csv;header=present' }, 'text/csv'],
    [{ 'content-encoding': 'Identity' }, 'application/json'],
  ];
  for (const [headers, expected] of types)
    test(JSON.stringify(headers), () => assert.equal(mediaType(incoming('', headers)), expected));

  test('a compressed body is 415', () => {
    const gzip = incoming('', { 'content-encoding': 'gzip' });
    const message = 'A body in gzip cannot be read.';
    assert.throws(() => mediaType(gzip), { status: 415, message });
  });

  const [GIVEN, SEND] = [
    'A body of type text/x cannot be read.',
    'Send "Content-Type: application/json"',
  ];
  const BOTH = 'application/json, application/merge-patch+json';
  const others: [method: string, type: string, message: string, hint: string, headers: object][] = [
    [
      'POST',
      'text/x',
      GIVEN,
      `${SEND} or "text/csv".`,
      { 'Accept-Post': 'application/json, text/csv' },
    ],
    [
      'PATCH',
      'text/x',
      GIVEN,
      `${SEND} or "application/merge-patch+json".`,
      { 'Accept-Patch': BOTH },
    ],
    ['PUT', '', 'The Content-Type is missing.', `${SEND}.`, {}],
  ];
  for (const [method, type, message, hint, headers] of others)
    test(`${method} of "${type}" is 415 with what is accepted`, async () => {
      const request = incoming('{}', { 'content-type': type }, method);
      const expected = { status: 415, message, hint, extras: { headers } };
      await assert.rejects(readJson(request, 9), expected);
    });
});

describe('JSON', () => {
  test('any value is read', async () => {
    for (const value of [1, 'é', null, true, [], {}, [{ a: ['\\"', '"', '[{,}]'] }]])
      assert.deepEqual(await read(JSON.stringify(value)), value);
  });

  test('a byte order mark before it is ignored (RFC 8259, 8.1)', async () => {
    assert.deepEqual(await read('\ufeff{}'), {});
  });

  const refused: [string, string | Buffer, number, RegExp][] = [
    ['nothing', '', 400, /not JSON/],
    ['an open text', '"abc\\"', 400, /not JSON/],
    ['invalid UTF-8', Buffer.from([0x22, 0xff, 0x22]), 400, /not JSON in UTF-8/],
    ['101 levels', `${'['.repeat(101)}${']'.repeat(101)}`, 400, /more than 100 levels/],
    ['10 001 rows', `[${Array(10_001).fill('{}')}]`, 413, /more than 10000 rows/],
    ['1 601 members in a row', `[{}, {${Array(1601).fill('"a":0')}}]`, 413, /1600 members/],
  ];
  for (const [name, body, status, message] of refused)
    test(`${name} is ${status}`, () => assert.rejects(read(body), { status, message }));

  const accepted: [string, string][] = [
    ['100 levels', `${'['.repeat(100)}${']'.repeat(100)}`],
    ['10 000 rows', `[${Array(MAX_ARRAY).fill('{"a":[1,2]}')}]`],
    [
      '1 600 members in each row',
      `[{${Array(1600).fill('"a":0')}},{${Array(1600).fill('"a":0')}}]`,
    ],
    ['commas in texts', `{"a":"${','.repeat(20_000)}","b":"${'['.repeat(200)}"}`],
    ['a long array in a member', `{"a":[${Array(20_000).fill(0)}]}`],
  ];
  for (const [name, body] of accepted)
    test(`${name} are read`, async () => assert.deepEqual(await read(body), JSON.parse(body)));

  test('over the limit is 413, by its length or by its bytes', async () => {
    const long = incoming('{}', { 'content-length': '10' });
    await assert.rejects(readJson(long, 9), { status: 413 });
    await assert.rejects(read('"12345678"', 9), { status: 413 });
    assert.equal(await read('"1234567"', 9), '1234567');
  });
});

describe('rows', () => {
  /** The pointers of the faults of a body. */
  function faults(body: unknown, columns?: string[]): { code: string; pointers: string[] } {
    try {
      toRows(body, things.row, columns);
    } catch (error) {
      const { code, extras } = error as { code: string; extras: { errors: { pointer: string }[] } };
      return { code, pointers: extras.errors.map(({ pointer }) => pointer) };
    }
    return { code: '', pointers: [] };
  }

  test('an object and an array', () => {
    const row = { ...THING, more: null };
    const rows = [row, { ...row, more: {} }];
    const names = ['name', 'size'];
    assert.deepEqual(toRows(THING, things.row), { rows: [row], many: false, names });
    const many = { rows, many: true, names: [...names, 'more'] };
    assert.deepEqual(toRows([THING, { ...THING, more: {} }], things.row), many);
  });

  const invalid: [string, unknown, string[], string][] = [
    ['nothing', {}, ['/name', '/size'], '22023'],
    ['an unknown member', { ...THING, extra: 1 }, ['/extra'], 'PGRST204'],
    ['__proto__', JSON.parse('{"name":"a","size":1,"__proto__":1}'), ['/__proto__'], 'PGRST204'],
    ['a slash in a name', { ...THING, 'a/b~c': 1 }, ['/a~1b~0c'], 'PGRST204'],
    ['two faults of one member, alike', { ...THING, size: -1.5 }, ['/size'], '22023'],
    ['an array of arrays', [[], THING, 1], ['/0', '/2'], '22023'],
    ['the second row', [THING, { ...THING, size: 9 }], ['/1/size'], '22023'],
  ];
  for (const [name, body, pointers, code] of invalid)
    test(`${name} is 422 at ${pointers}`, () => assert.deepEqual(faults(body), { code, pointers }));

  test('validation stops at 100 faults', () => {
    const { pointers } = faults(Array(1000).fill({}));
    assert.deepEqual([pointers.length, pointers.at(-1)], [100, '/49/size']);
    const keys = Object.fromEntries(Array.from({ length: 200 }, (_, at) => [`k${at}`, 1]));
    assert.equal(faults({ ...THING, ...keys }).pointers.length, 100);
  });

  test('columns= chooses the members', () => {
    const columns = ['size', 'name'];
    assert.deepEqual(faults({ ...THING, extra: 1 }, columns).pointers, []);
    assert.deepEqual(toRows([{ ...THING, extra: 1 }], things.row, columns).names, columns);
    assert.deepEqual(faults([1, []], columns).pointers, ['/0', '/1']);
  });
});
