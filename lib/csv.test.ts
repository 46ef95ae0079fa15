import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { z } from 'zod';
import { boolean, date, integer, jsonb, now, resource, text, timestamp } from './columns.ts';
import { readCsv } from './csv.ts';

const things = resource({
  path: 'things',
  table: 'things',
  key: 'id',
  columns: {
    name: text(20, { csv: 'Name, Full Name' }),
    size: integer(0, 9, { nullable: true }),
    good: boolean({ nullable: true }),
    day: date({ nullable: true }),
    tags: jsonb(z.array(z.string()), [], { nullable: true }),
    made: timestamp({ generated: now }),
  },
});
const UNSET = { size: null, good: null, day: null, tags: null };

/** All rows, and the columns of the header. */
async function read(given: string | Buffer[], limit = 1e6, columns?: string[]) {
  const bytes = (async function* () {
    yield* typeof given === 'string' ? [Buffer.from(given)] : given;
  })();
  const { rows, names, rest = [] } = await readCsv(things, bytes, limit, columns);
  for await (const batch of rest) rows.push(...batch);
  return { rows, names };
}

describe('The header', () => {
  const valid: [header: string, names: string[]][] = [
    ['size,name', ['size', 'name']],
    ['Full Name,good', ['name', 'good']],
    ['\ufeffName', ['name']],
    ['"name", tags ', ['name', 'tags']],
  ];
  for (const [header, names] of valid) {
    test(`${JSON.stringify(header)} names ${names}`, async () => {
      assert.deepEqual(await read(`${header}\n`), { rows: [], names });
    });
  }

  const refused: [header: string, what: string][] = [
    ['name,extra', 'has "extra", which is no column'],
    ['name,made', 'has "made", which is no column'],
    ['', 'lacks name'],
    ['name;size', 'has "name;size", which is no column'],
    ['name,Name', 'has name twice'],
    ['size', 'lacks name'],
  ];
  for (const [header, what] of refused) {
    test(`${JSON.stringify(header)} is refused: it ${what}`, async () => {
      const message = `The header of the CSV ${what}.`;
      await assert.rejects(read(`${header}\n`), { status: 400, code: 'PGRST204', message });
    });
  }

  test('may have other columns where `columns` excludes them', async () => {
    const { rows, names } = await read('extra,name,size\nx,a,1\n', 1e6, ['name']);
    assert.deepEqual([rows, names], [[{ name: 'a', ...UNSET }], ['name']]);
  });
});

describe('A field', () => {
  const valid: [column: string, field: string, value: unknown][] = [
    ['size', ' +7.0e0 ', 7],
    ['good', 'TRUE', true],
    ['good', 'f', false],
    ['tags', '"[""a,b""]"', ['a,b']],
  ];
  for (const [column, field, value] of valid) {
    test(`${column} ${JSON.stringify(field)} is ${JSON.stringify(value)}`, async () => {
      const { rows } = await read(`name,${column}\nx,${field}\n`);
      assert.deepEqual(rows, [{ name: 'x', ...UNSET, [column]: value }]);
    });
  }

  const invalid: [column: string, field: string, detail: string][] = [
    ['size', 'old', 'must be a whole number from 0 to 9'],
    ['size', '0x1', 'must be a whole number from 0 to 9'],
    ['good', 'maybe', 'must be true or false'],
    ['tags', '[', 'Invalid input: expected array, received string'],
  ];
  for (const [column, field, detail] of invalid) {
    test(`${column} ${field} is 422 with its line and pointer`, async () => {
      const text = `line 3: ${detail}`;
      const errors = [{ pointer: `/${column}`, detail: text }];
      await assert.rejects(read(`name,${column}\na,\nb,${field}\n`), {
        ...{ status: 422, message: `/${column} ${text}`, extras: { errors } },
      });
    });
  }

  test('that is empty is a missing value where null is none', async () => {
    const message = /line 2: is missing; it must be text/;
    await assert.rejects(read('name,size\n,1\n'), { status: 422, message });
  });
});

const texts: [name: string, text: string | Buffer[], status: number][] = [
  ['a field too many', 'name\na,b\n', 400],
  ['an open quote', 'name\n"a\n', 400],
  ['a quote within a field', 'name\na"b\n', 400],
  ['bytes that are not UTF-8', [Buffer.from([0x6e, 0xff])], 400],
  ['more bytes than the limit', `name\n${'a\n'.repeat(60)}`, 413],
];
for (const [name, text, status] of texts) {
  test(`CSV with ${name} is ${status}`, async () => {
    await assert.rejects(read(text, 100), { status, code: 'PGRST102' });
  });
}

const fields = fc.constantFrom('a', '"b\nc"', '"d""e,"', '🚢');
test('The rows are found in chunks of any size', async () => {
  const property = fc.asyncProperty(
    fc.array(fields),
    fc.constantFrom('\n', '\r\n'),
    fc.infiniteStream(fc.nat(7)),
    async (all, end, sizes) => {
      const bytes = Buffer.from(['name', ...all, ''].join(end));
      const chunks: Buffer[] = [];
      for (let at = 0; at < bytes.length; ) {
        const size = Number(sizes.next().value);
        chunks.push(bytes.subarray(at, at + size));
        at += size;
      }
      const { rows } = await read(chunks);
      const values = all.map((field) => field.replace(/^"|"$/g, '').replaceAll('""', '"'));
      assert.deepEqual(
        rows.map(({ name }) => name),
        values,
      );
    },
  );
  await fc.assert(property);
});
