/** Rows of a result as text: one writer for JSON and NDJSON, one for CSV. */
import { CSV, JSON_TYPE, NDJSON, type OBJECT } from './headers.ts';
import type { JsonKind } from './types.ts';

/** The values of a row in the order of the statement, each as PostgreSQL printed it, or null. */
export type Values = (string | null)[];

/** A value of an answer: its name and how JSON has it. */
export type Field = { name: string; kind: JsonKind };

/** The media type of rows: an array, one object, lines of CSV, lines of JSON. */
export type Format = typeof JSON_TYPE | typeof OBJECT | typeof CSV | typeof NDJSON;

type Write = (value: string) => string;

/** Most texts need no escape, and to test that is faster than to escape them. */
const PLAIN = /^[\x20\x21\x23-\x5b\x5d-\x7e]*$/;

/** PostgreSQL's text of a value as JSON; NaN and the infinities become text, as in to_json(). */
const TO_JSON: Record<JsonKind, Write> = {
  boolean: (value) => (value === 't' ? 'true' : 'false'),
  number: (value) => (value.charCodeAt(value.length - 1) < 58 ? value : `"${value}"`),
  text: (value) => (PLAIN.test(value) ? `"${value}"` : JSON.stringify(value)),
  time: (value) => value, // the statement has to_json() around it
  array: (value) => value, // likewise
  json: (value) => value,
};

/** Makes the text of a row as a JSON object; values after the fields are ignored. */
export function jsonWriter(fields: Field[], end = ''): (values: Values) => string {
  const heads = fields.map(({ name }, at) => `${at > 0 ? ',' : ''}${JSON.stringify(name)}:`);
  const writes = fields.map(({ kind }) => TO_JSON[kind]);
  return (values) => {
    let text = '{';
    for (let at = 0; at < heads.length; at += 1) {
      const value = values[at];
      text += heads[at];
      text += value === null || value === undefined ? 'null' : (writes[at] as Write)(value);
    }
    return `${text}}${end}`;
  };
}

/** Makes the CSV line of a row (RFC 4180). */
function csvWriter(fields: Field[]): (values: Values) => string {
  const same: Write = (value) => value;
  const toCsv = { ...TO_JSON, number: same, text: same, time: JSON.parse as Write };
  const writes = fields.map(({ kind }) => toCsv[kind]);
  return (values) =>
    csvLine(writes.map((write, at) => (values[at] == null ? null : write(values[at] as string))));
}

/** One line; null is nothing, an empty text is in quotes. */
export function csvLine(values: Values): string {
  const texts = values.map((value) => {
    if (value === null) return '';
    return value === '' || /[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  });
  return `${texts.join(',')}\n`;
}

/** What writes a row, and the text before, between and after rows. */
function partsOf(format: Format, fields: Field[]) {
  const write = jsonWriter(fields, format === NDJSON ? '\n' : '');
  if (format === JSON_TYPE) return { open: '[', write, between: ',', close: ']' };
  if (format !== CSV) return { open: '', write, between: '', close: '' };
  const header = csvLine(fields.map(({ name }) => name));
  return { open: header, write: csvWriter(fields), between: '', close: '' };
}

/** Rows as a whole body; CSV has a header line. */
export function bodyOf(format: Format, fields: Field[], rows: Values[]): string {
  const { open, write, between, close } = partsOf(format, fields);
  return open + rows.map(write).join(between) + close;
}

/** The same in pieces: the first rows, then each batch. */
export async function* piecesOf(
  format: Format,
  fields: Field[],
  first: Values[],
  rest: AsyncIterable<Values[]>,
): AsyncGenerator<string> {
  const { open, write, between, close } = partsOf(format, fields);
  yield open + first.map(write).join(between);
  for await (const rows of rest) yield between + rows.map(write).join(between);
  yield close;
}
