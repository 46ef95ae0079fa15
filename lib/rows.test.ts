import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CSV, JSON_TYPE, NDJSON, OBJECT } from './headers.ts';
import { bodyOf, csvLine, type Field, type Format, piecesOf } from './rows.ts';

const values: [kind: Field['kind'], value: string | null, json: string, csv: string][] = [
  ['boolean', 't', 'true', 'true'],
  ['number', '-1.5e+300', '-1.5e+300', '-1.5e+300'],
  ['number', 'NaN', '"NaN"', 'NaN'],
  ['text', '', '""', '""'],
  ['text', 'a,"b"\n', '"a,\\"b\\"\\n"', '"a,""b""\n"'],
  ['time', '"2026-01-31T12:00:00"', '"2026-01-31T12:00:00"', '2026-01-31T12:00:00'],
  ['json', '{"a": [1]}', '{"a": [1]}', '"{""a"": [1]}"'],
  ['number', null, 'null', ''],
];
for (const [kind, value, json, csv] of values) {
  test(`${kind} ${value} is ${json} in JSON, ${JSON.stringify(csv)} in CSV`, () => {
    const fields = [{ name: 'a"b', kind }];
    assert.equal(bodyOf(OBJECT, fields, [[value]]), `{"a\\"b":${json}}`);
    assert.equal(bodyOf(CSV, fields, [[value]]), `"a""b"\n${csv}\n`);
  });
}

test('csvLine() has nothing for null', () => {
  assert.equal(csvLine(['a', null, '', 'b\r', null]), 'a,,"","b\r",\n');
});

const bodies: [format: Format, none: string, some: string][] = [
  [JSON_TYPE, '[]', '[{"a":1},{"a":2}]'],
  [OBJECT, '', '{"a":1}'],
  [NDJSON, '', '{"a":1}\n{"a":2}\n'],
  [CSV, 'a\n', 'a\n1\n2\n'],
];
for (const [format, none, some] of bodies) {
  test(`bodyOf() and piecesOf() as ${format}`, async () => {
    const fields: Field[] = [{ name: 'a', kind: 'number' }];
    assert.equal(bodyOf(format, fields, []), none);
    const rows = ['1', '2'].map((value) => [value, 'ignored']);
    if (format === OBJECT) rows.pop();
    assert.equal(bodyOf(format, fields, rows), some);
    const rest = (async function* () {
      if (format !== OBJECT) yield rows.slice(1);
    })();
    const pieces: string[] = [];
    for await (const piece of piecesOf(format, fields, rows.slice(0, 1), rest)) pieces.push(piece);
    assert.equal(pieces.join(''), some);
  });
}
