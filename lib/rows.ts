/** Rows of a result as text: one writer for JSON and NDJSON, one for CSV. */
import type { JsonKind } from './columns.ts';
import { CSV, JSON_TYPE, NDJSON, OBJECT } from './headers.ts';

/** The values of a row in the order of the statement, each as PostgreSQL printed it, or null. */
export type Values = (string | null)[];

/** A value of an answer: its name and how JSON has it. */
export type Field = { name: string; kind: JsonKind };

type Write = (value: string) => string;

/** Most texts need no escape, and to test that is faster than to escape them. */
const PLAIN = /^[\x20\x21\x23-\x5b\x5d-\x7e]*$/;

/** PostgreSQL's text of a value as JSON; NaN and the infinities become text, as in to_json(). */
const TO_JSON: Record<JsonKind, Write> = {
  boolean: (value) => (value === 't' ? 'true' : 'false'),
  number: (value) => (value.charCodeAt(value.length - 1) < 58 ? value : `"${value}"`),
  text: (value) => (PLAIN.test(value) ? `"${value}"` : JSON.stringify(value)),
  time: (value) => value, // the statement has to_json() around it
  json: (value) => value,
};

/** Makes the text of a row as a JSON object; values after the fields are ignored. */
export function jsonWriter(fields: Field[]): (values: Values) => string {
  const heads = fields.map(({ name }, at) => `${at > 0 ? ',' : ''}${JSON.stringify(name)}:`);
  const writes = fields.map(({ kind }) => TO_JSON[kind]);
  return (values) => {
    let text = '{';
    for (let at = 0; at < heads.length; at += 1) {
      const value = values[at];
      text += heads[at];
      text += value === null || value === undefined ? 'null' : (writes[at] as Write)(value);
    }
    return `${text}}`;
  };
}

const TO_CSV: Partial<Record<JsonKind, Write>> = {
  boolean: TO_JSON.boolean,
  time: (value) => JSON.parse(value),
};

/** Makes the CSV line of a row (RFC 4180), without its end. */
export function csvWriter(fields: Field[]): (values: Values) => string {
  const writes = fields.map(({ kind }) => TO_CSV[kind] ?? ((value: string) => value));
  return (values) =>
    csvLine(writes.map((write, at) => (values[at] == null ? null : write(values[at] as string))));
}

/** One line; null is nothing, an empty text is in quotes. */
export function csvLine(values: Values): string {
  let line = '';
  for (let at = 0; at < values.length; at += 1) {
    const value = values[at] ?? null;
    if (at > 0) line += ',';
    if (value === null) continue;
    line += value === '' || /[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  }
  return line;
}

/** The media type of rows: an array, one object, lines of CSV, lines of JSON. */
export type Format = typeof JSON_TYPE | typeof OBJECT | typeof CSV | typeof NDJSON;

/** Text before, between and after rows. */
export const AROUND: Record<Format, [string, string, string]> = {
  [JSON_TYPE]: ['[', ',', ']'],
  [OBJECT]: ['', '', ''],
  [NDJSON]: ['', '\n', '\n'],
  [CSV]: ['', '\n', '\n'],
};

export function rowWriter(format: Format, fields: Field[]): (values: Values) => string {
  return format === CSV ? csvWriter(fields) : jsonWriter(fields);
}

/** Rows as a whole body; CSV has a header line. */
export function bodyOf(format: Format, fields: Field[], rows: Values[]): string {
  const [open, separator, close] = AROUND[format];
  const texts = rows.map(rowWriter(format, fields));
  if (format === CSV) texts.unshift(headerOf(fields));
  return texts.length > 0 || open ? open + texts.join(separator) + close : '';
}

/** The header line of CSV. */
export function headerOf(fields: Field[]): string {
  return csvLine(fields.map(({ name }) => name));
}
