/** What a route accepts it obeys: preconditions on every write, and a CSV like an array of rows. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { startDatabase, startReady, type TestDatabase, type TestService } from './harness.ts';

const ROW = {
  survived: true,
  passengerClass: 1,
  name: 'Ada',
  sex: 'female',
  age: 33,
  siblingsOrSpousesAboard: 0,
  parentsOrChildrenAboard: 0,
  fare: 26.55,
};
let database: TestDatabase;
let service: TestService;

before(async () => {
  database = await startDatabase();
  service = await startReady({ DATABASE_URL: database.url });
});
after(async () => {
  await service?.stop();
  await database?.stop();
});

const rowsOf = async () =>
  (await service.get('/passengers', { range: '0-9999' })).json as { uuid: string; age: number }[];

describe('Preconditions', () => {
  // <own> is the tag of the row; a refused request is 412 and changes nothing (RFC 9110, 13).
  const cases: [method: string, header: string, value: string, allowed: boolean][] = [
    ...['PUT', 'PATCH', 'DELETE'].flatMap((method): [string, string, string, boolean][] => [
      [method, 'if-match', '"1"', false],
      [method, 'if-match', '<own>', true],
      [method, 'if-match', 'W/<own>', true],
      [method, 'if-match', '"1", W/<own>', true],
      [method, 'if-match', '*', true],
      [method, 'if-none-match', '*', false],
      [method, 'if-none-match', '<own>', false],
      [method, 'if-none-match', '"1", <own>', false],
      [method, 'if-none-match', '"1"', true],
    ]),
    ['GET', 'if-match', '"1"', false],
    ['GET', 'if-match', '<own>', true],
  ];
  const targets = {
    'by key': (uuid: string) => `/passengers/${uuid}`,
    'by filter': (uuid: string) => `/rest/v1/passengers?uuid=eq.${uuid}`,
  };
  for (const [where, target] of Object.entries(targets)) {
    for (const [method, header, value, allowed] of cases) {
      if (where === 'by filter' && /GET|PUT/.test(method)) continue; // only rows by key have a tag
      const outcome = allowed ? 'goes through' : 'is 412';
      test(`${method} ${where} with ${header}: ${value} ${outcome}`, async () => {
        const made = await service.request('POST', '/passengers', ROW);
        const { uuid } = made.json;
        const own = value.replace('<own>', made.headers.get('etag') ?? '');
        const body = { PUT: { ...ROW, age: 40 }, PATCH: { age: 40 } }[method];
        const reply = await service.request(method, target(uuid), body, { [header]: own });
        assert.equal(reply.status === 412, !allowed, reply.text);
        const after = await service.get(`/passengers/${uuid}`);
        const changed = method === 'DELETE' ? after.status === 404 : after.json?.age === 40;
        assert.equal(changed, allowed && method !== 'GET');
      });
    }
  }

  test('PATCH of two rows of which one has another version changes none', async () => {
    const first = await service.request('POST', '/passengers', { ...ROW, fare: 777 });
    await service.request('POST', '/passengers', { ...ROW, fare: 777 });
    const headers = { 'if-match': first.headers.get('etag') ?? '' };
    const reply = await service.request('PATCH', '/passengers?fare=eq.777', { age: 1 }, headers);
    assert.equal(reply.status, 412, reply.text);
    const rows = await service.get('/passengers?fare=eq.777&select=age');
    assert.deepEqual(rows.json, [{ age: 33 }, { age: 33 }]);
  });
});

describe('POST', () => {
  const key = '0192f0c1-0000-7000-8000-000000000002';
  const merge = { prefer: 'resolution=merge-duplicates' };
  const refused: [name: string, headers: Record<string, string>][] = [
    ['If-Match', { 'if-match': '"1"' }],
    ['If-Match and resolution', { 'if-match': '"1"', ...merge }],
    ['Idempotency-Key and a key in the body', { 'idempotency-key': 'a' }],
  ];
  for (const [name, headers] of refused)
    test(`with ${name} is 400 and stores nothing`, async () => {
      const reply = await service.request('POST', '/passengers', { uuid: key, ...ROW }, headers);
      assert.equal(reply.status, 400, reply.text);
      assert.equal((await service.get(`/passengers/${key}`)).status, 404);
    });

  test('of one new row has Location, and ETag where the version is read', async () => {
    const minimal = { prefer: 'return=minimal' };
    const several = await service.request('POST', '/passengers', [ROW], minimal);
    const upserted = await service.request('POST', '/passengers', ROW, merge);
    const read = await service.get(upserted.headers.get('location') ?? '');
    assert.equal(upserted.headers.get('etag'), read.headers.get('etag'));
    assert.match(several.headers.get('location') ?? '', /^\/passengers\/[\da-f-]{36}$/);
    assert.equal(several.headers.get('etag'), null);
  });
});

test('PUT, PATCH and DELETE by key with max-affected=0 are 400 and change nothing', async () => {
  const { json } = await service.request('POST', '/passengers', ROW);
  for (const [method, body] of [['PUT', { ...ROW, age: 1 }], ['PATCH', { age: 1 }], ['DELETE']]) {
    const headers = { prefer: 'handling=strict, max-affected=0' };
    const path = `/passengers/${json.uuid}`;
    const reply = await service.request(String(method), path, body, headers);
    assert.deepEqual([reply.status, reply.json.code], [400, 'PGRST124']);
  }
  assert.equal((await service.get(`/passengers/${json.uuid}`)).json.age, 33);
});

describe('A CSV', () => {
  const HEADER = Object.keys(ROW).join(',');
  const [one, two] = ['true,1,Ada,female,33,0,0,26.55', 'false,3,Bob,male,22,1,0,7.25'];
  const send = (lines: string[], headers = {}, query = '') => {
    const all = { 'content-type': 'text/csv', ...headers };
    return service.request('POST', `/passengers${query}`, [HEADER, ...lines, ''].join('\n'), all);
  };
  const key = '0192f0c1-0000-7000-8000-000000000001';
  const keyed = (line: string) => [`uuid,${HEADER}`, `${key},${line}`].join('\n');

  const cases: [name: string, lines: string[], headers: object, status: number, stored: number][] =
    [
      ['over max-affected', [one, two], { prefer: 'handling=strict, max-affected=1' }, 400, 0],
      ['with Idempotency-Key', [one], { 'idempotency-key': 'a' }, 400, 0],
      [
        'with an object Accept',
        [one, two],
        { ...object(), prefer: 'return=representation' },
        406,
        0,
      ],
      ['with a day as 01/02/2026 for a number', [one.replace('33', '01/02/2026')], {}, 422, 0],
      ['with 0x1F', [one.replace('33', '0x1F')], {}, 422, 0],
      ['with 1_000', [one.replace('26.55', '1_000')], {}, 422, 0],
      ['with an error that looks like ours', [one.replace('33', '!fare')], {}, 422, 0],
      ['with empty lines at the end', [one, '', ''], {}, 201, 1],
      ['with blanks around a text', [one.replace('Ada', '  Ada ')], {}, 201, 1],
    ];
  for (const [name, lines, headers, status, stored] of cases) {
    test(`${name} is ${status}`, async () => {
      const before = (await rowsOf()).length;
      assert.equal((await send(lines, headers)).status, status);
      assert.equal((await rowsOf()).length - before, stored);
    });
  }

  function object() {
    return { accept: 'application/vnd.pgrst.object+json' };
  }

  test('is answered as asked: select, return and Accept', async () => {
    const headers = { prefer: 'return=representation', accept: 'text/csv' };
    const { text } = await send([one, two], headers, '?select=name,survived');
    assert.equal(text, 'name,survived\nAda,true\nBob,false\n');
  });

  test('with columns= may have columns of others', async () => {
    const body = `PassengerId,Cabin,${HEADER}\n1,C85,${one}\n`;
    const headers = { 'content-type': 'text/csv' };
    const made = await service.request('POST', `/passengers?columns=${HEADER}`, body, headers);
    assert.equal(made.status, 201, made.text);
  });

  test('upserts', async () => {
    const headers = { 'content-type': 'text/csv', prefer: 'resolution=merge-duplicates' };
    const statuses = [];
    for (const line of [one, one.replace('33', '34')])
      statuses.push((await service.request('POST', '/passengers', keyed(line), headers)).status);
    const { json } = await service.get(`/passengers/${key}`);
    assert.deepEqual([...statuses, json.age], [201, 204, 34]);
  });

  test('PATCH of a value that looks like an own error is 400 for that value', async () => {
    const reply = await service.request('PATCH', '/passengers?age=eq.!5', { age: 1 });
    assert.deepEqual([reply.status, reply.json.code], [400, '22P02'], reply.text);
  });

  for (const [type, first] of [
    ['text/csv', 'name,survived\n'],
    ['application/x-ndjson', '{"name":'],
  ] as const) {
    test(`a list as ${type} has charset, count, range, 206 and 416 as JSON has`, async () => {
      const headers = { accept: type, prefer: 'count=exact' };
      const path = '/passengers?select=name,survived';
      const part = await service.get(`${path}&limit=1`, headers);
      assert.equal(part.status, 206);
      assert.match((await service.get('/metrics')).text, /route="\/passengers",status="206"/);
      assert.equal(part.headers.get('content-type'), `${type}; charset=utf-8`);
      assert.match(part.headers.get('content-range') ?? '', /^0-0\/\d+$/);
      assert.equal(part.headers.get('preference-applied'), 'count=exact');
      assert.ok(part.text.startsWith(first));
      assert.equal((await service.get(`${path}&offset=99999`, headers)).status, 416);
      const head = await service.request('HEAD', `${path}&limit=1`, undefined, headers);
      assert.deepEqual([head.status, head.text], [206, '']);
    });
  }
});
