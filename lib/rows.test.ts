import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CSV, JSON_TYPE, NDJSON, OBJECT } from './headers.ts';
import { bodyOf, csvLine, csvWriter, type Field, type Format, jsonWriter } from './rows.ts';

const values: [kind: Field['kind'], value: string | null, json: string, csv: string][] = [
  ['boolean', 't', 'true', 'true'],
  ['boolean', 'f', 'false', 'false'],
  ['number', '-1.5e+300', '-1.5e+300', '-1.5e+300'],
  ['number', 'NaN', '"NaN"', 'NaN'],
  ['number', '-Infinity', '"-Infinity"', '-Infinity'],
  ['text', '', '""', '""'],
  ['text', 'a,"b"\n', '"a,\\"b\\"\\n"', '"a,""b""\n"'],
  ['time', '"2026-01-31T12:00:00"', '"2026-01-31T12:00:00"', '2026-01-31T12:00:00'],
  ['json', '{"a": [1]}', '{"a": [1]}', '"{""a"": [1]}"'],
  ['number', null, 'null', ''],
];
for (const [kind, value, json, csv] of values) {
  test(`${kind} ${value} is ${json} in JSON, ${JSON.stringify(csv)} in CSV`, () => {
    const fields = [{ name: 'a"b', kind }];
    assert.equal(jsonWriter(fields)([value]), `{"a\\"b":${json}}`);
    assert.equal(csvWriter(fields)([value]), csv);
  });
}

test('Values after the fields are ignored', () => {
  const fields: Field[] = [{ name: 'a', kind: 'text' }];
  assert.equal(jsonWriter(fields)(['x', 'version']), '{"a":"x"}');
  assert.equal(csvWriter(fields)(['x', 'version']), 'x');
});

test('csvLine() has nothing for null', () => {
  assert.equal(csvLine(['a', null, '', 'b\r', null]), 'a,,"","b\r",');
});

const bodies: [format: Format, none: string, some: string][] = [
  [JSON_TYPE, '[]', '[{"a":1},{"a":2}]'],
  [OBJECT, '', '{"a":1}'],
  [NDJSON, '', '{"a":1}\n{"a":2}\n'],
  [CSV, 'a\n', 'a\n1\n2\n'],
];
for (const [format, none, some] of bodies) {
  test(`bodyOf() as ${format}`, () => {
    const fields: Field[] = [{ name: 'a', kind: 'number' }];
    assert.equal(bodyOf(format, fields, []), none);
    const rows = format === OBJECT ? [['1']] : [['1'], ['2']];
    assert.equal(bodyOf(format, fields, rows), some);
  });
}
