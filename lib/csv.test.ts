import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { z } from 'zod';
import { boolean, integer, jsonb, now, owner, resource, text, timestamp } from './columns.ts';
import { badLine, csvLine, readCsv } from './csv.ts';
import { Problem } from './problem.ts';

const things = resource({
  path: 'things',
  table: 'things',
  key: 'id',
  columns: {
    name: text(20, { csv: 'Name, Full Name' }),
    size: integer(0, 9, { nullable: true }),
    tags: jsonb(z.array(z.string()), [], { default: [] }),
    made: timestamp({ generated: now }),
  },
});
const mine = resource({ ...things, columns: { good: boolean(), user: owner(/./) } });
const KEY = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$/;

/** The columns and the text for COPY. */
async function read(chunks: Buffer[], { of = things, limit = 1e6, sub = '' } = {}) {
  const source = (async function* () {
    yield* chunks;
  })();
  const csv = await readCsv(of, source, limit, sub);
  let text = '';
  for await (const chunk of csv.lines) text += chunk;
  return { columns: csv.columns, rows: csv.rows, text };
}
const readText = (text: string, options = {}) => read([Buffer.from(text)], options);

const lines: [name: string, values: (string | null)[], line: string][] = [
  ['null is nothing, an empty text is quoted', [null, '', 'a'], ',"",a\n'],
  ['comma, quote and line break are quoted', ['a,b', 'c"d', 'e\nf'], '"a,b","c""d","e\nf"\n'],
];
for (const [name, values, line] of lines) {
  test(`csvLine(): ${name}`, () => assert.equal(csvLine(values), line));
}

describe('readCsv()', () => {
  const headers: [header: string, columns: string[]][] = [
    ['id,name,size', ['id', 'name', 'size']],
    ['id,size,Full Name', ['id', 'size', 'name']],
    ['\ufeffid,Name', ['id', 'name']],
    [' "id" , "Name"', ['id', 'name']],
  ];
  for (const [header, columns] of headers) {
    test(`reads the header ${JSON.stringify(header)}`, async () => {
      const expected = { columns, rows: 1, text: 'a,b,c\n' };
      assert.deepEqual(await readText(`${header}\na,b,c`), expected);
    });
  }

  const refused: [header: string, message: string][] = [
    ['name,extra', 'The header of the CSV has "extra", which is no column.'],
    ['name,tags', 'The header of the CSV has "tags", which is no column.'],
    ['name,made', 'The header of the CSV has "made", which is no column.'],
    ['name,Name', 'The header of the CSV has name twice.'],
    ['size', 'The header of the CSV lacks name.'],
    ['', 'The header of the CSV has "", which is no column.'],
  ];
  for (const [header, message] of refused) {
    test(`refuses the header ${JSON.stringify(header)}`, async () => {
      const hint = 'It names columns: id,name,size';
      const expected = { status: 400, code: 'PGRST204', message, hint };
      await assert.rejects(readText(`${header}\na,b\n`), expected);
    });
  }

  test('adds a UUIDv7 to each row without a key', async () => {
    const { columns, text, rows } = await readText('name\na\nb\n');
    assert.deepEqual([columns, rows], [['id', 'name'], 2]);
    const fields = text.split('\n').map((line) => line.split(','));
    assert.deepEqual(fields.map(([, name]) => name).slice(0, 2), ['a', 'b']);
    for (const [key] of fields.slice(0, 2)) assert.match(key ?? '', KEY);
  });

  test('adds the caller as owner, quoted', async () => {
    const csv = await readText('id,good\nk,true\n', { of: mine, sub: 'ünï,"x"' });
    assert.deepEqual(csv.columns, ['user', 'id', 'good']);
    assert.equal(csv.text, '"ünï,""x""",k,true\n');
  });

  const line = fc.constantFrom('k,a', 'k,"b\nc"', 'k,"d""e,"\r', 'k,🚢', '', ',');
  test('finds the records in chunks of any size', async () => {
    const property = fc.asyncProperty(
      fc.array(line),
      fc.infiniteStream(fc.nat(7)),
      async (all, sizes) => {
        const bytes = Buffer.from(['id,name', ...all, ''].join('\n'));
        const chunks: Buffer[] = [];
        for (let at = 0; at < bytes.length; ) {
          const size = Number(sizes.next().value);
          chunks.push(bytes.subarray(at, at + size));
          at += size;
        }
        const { rows, text } = await read(chunks);
        assert.equal(rows, all.length);
        assert.equal(text, all.map((one) => `${one.replace(/\r$/, '')}\n`).join(''));
      },
    );
    await fc.assert(property);
  });

  test('refuses more bytes than the limit with 413', async () => {
    await assert.rejects(readText(`id,name\n${'k,a\n'.repeat(9)}`, { limit: 30 }), {
      status: 413,
      message: 'The CSV is larger than 30 bytes.',
    });
  });
});

describe('badLine()', () => {
  const failure = (code: string, message: string, where: string) =>
    Object.assign(new Error(message), { code, where });

  test('counts the header, and says what a value of the column is', () => {
    const message = 'invalid input syntax for type integer: "!size"';
    const found = badLine(things, failure('22P02', message, 'COPY things, line 2'));
    assert.ok(found instanceof Problem);
    const detail = 'line 3, column size: size must be a whole number from 0 to 9';
    assert.deepEqual(
      [found.status, found.message, found.hint],
      [400, detail, 'Nothing was stored.'],
    );
    assert.deepEqual(found.extras.errors, [{ pointer: '/size', detail }]);
  });

  test('keeps the text of PostgreSQL for other errors', () => {
    const where = 'COPY things, line 2, column name: "x"';
    const found = badLine(things, failure('22001', 'value too long', where));
    assert.ok(found instanceof Problem);
    assert.equal(found.message, 'line 3, column name: value too long');
  });

  test('returns an error without a line as it is', () => {
    const error = failure('57P01', 'terminating', 'PL/pgSQL function');
    assert.equal(badLine(things, error), error);
  });
});
