/** CSV (RFC 4180) as rows, validated like JSON. */
import { CsvError, Parser } from 'csv-parse';
import { MAX_ARRAY, type Rows } from './body.ts';
import type { Resource, Row } from './columns.ts';
import { parseJson } from './dialect.ts';
import { type Fault, Problem, toFaults, tooLarge, unprocessable } from './problem.ts';
import { type JsonKind, kindOf, typeOf } from './types.ts';

const MAX_RECORD = 2 ** 20; // bytes; csv-parse 7 counts no empty fields
const MAX_COLUMNS = 1600; // of a table of PostgreSQL

/** A record with the line that it ends on. */
type Record = { record: string[]; info: { lines: number } };

/** The rows of a CSV and the columns of its header; `rest` has those after the first MAX_ARRAY. */
type Csv = Rows & { rest?: AsyncIterable<Row[]> };

/** Reads a CSV; of its columns only those in `columns`. `adopt` changes valid rows. Throws 400, 413, 422. */
export async function readCsv(
  resource: Resource,
  bytes: AsyncIterable<Buffer>,
  limit: number,
  columns?: string[],
  adopt = async (rows: Rows) => rows,
): Promise<Csv> {
  const records = readRecords(bytes, limit);
  const { value: first = [] } = await records.next();
  const fields = readHeader(resource, first.shift()?.record ?? [], columns);
  const read = (batch: Record[]) => {
    const names = fields.map(({ name }) => name);
    return adopt({ rows: toRows(resource, fields, batch), many: true, names });
  };
  const body = await read(first);
  const rest = (async function* () {
    for await (const batch of records) yield (await read(batch)).rows;
  })();
  while (body.rows.length <= MAX_ARRAY) {
    const { value, done } = await rest.next();
    if (done) return body;
    body.rows.push(...value);
  }
  return { ...body, rest };
}

/** The columns of a header, each with its place, its reader, and the value of an empty field. */
type Fields = ReturnType<typeof readHeader>;

/** Throws 422 with line, column and pointer of each fault. */
function toRows(resource: Resource, fields: Fields, records: Record[]): Row[] {
  const faults: Fault[] = [];
  const rows = records.map(({ record, info }) => {
    const row: Row = {};
    for (const { name, at, empty, read } of fields) {
      const value = record[at] ? read(record[at]) : empty;
      if (value !== undefined) row[name] = value;
    }
    const { data, error } = resource.row.safeParse(row);
    for (const { pointer, detail } of error ? toFaults(error, '') : [])
      faults.push({ pointer, detail: `line ${info.lines}: ${detail}` });
    return data ?? {};
  });
  if (faults.length > 0) throw unprocessable(faults);
  return rows;
}

/** A field as JSON has the value; what is no such value stays text, which is refused. */
const READERS: { [kind in JsonKind]: (text: string) => unknown } = {
  boolean: (text) => /^(true|t|1)$/i.test(text) || (/^(false|f|0)$/i.test(text) ? false : text),
  number: (text) => (/^ *[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)? *$/i.test(text) ? Number(text) : text),
  text: (text) => text,
  time: (text) => text,
  array: (text) => parseJson(text) ?? text,
  json: (text) => {
    const value = parseJson(text);
    return value === undefined ? text : value;
  },
};

/** The columns of the titles, by name or alias, without those that `columns` excludes. */
function readHeader(resource: Resource, titles: string[], columns?: string[]) {
  const known = [resource.key, ...resource.settable];
  const refuse = (what: string, hint = `Its columns are ${known.join(',')}.`) =>
    new Problem(400, 'PGRST204', `The header of the CSV ${what}.`, hint);
  if (titles.length > MAX_COLUMNS) throw refuse(`has more than ${MAX_COLUMNS} columns`);
  const fields = titles.flatMap((title, at) => {
    const text = title.trim();
    const aliases = (name: string) => resource.columns[name]?.csv?.split(', ') ?? [];
    const name = known.find((one) => one === text || aliases(one).includes(text));
    if (columns && !columns.includes(name ?? '')) return [];
    const hint = /[;\t]|^sep=/i.test(text) ? 'Separate the columns by commas alone.' : undefined;
    const shown = JSON.stringify(text.slice(0, 50));
    if (name === undefined) throw refuse(`has ${shown}, which is no column`, hint);
    const empty = resource.columns[name]?.nullable ? null : undefined;
    return { name, at, empty, read: READERS[kindOf(typeOf(resource, name))] };
  });
  const names = fields.map(({ name }) => name);
  const twice = names.filter((name, at) => names.indexOf(name) !== at);
  if (twice.length > 0) throw refuse(`has ${twice} twice`);
  const missing = resource.required.filter((name) => !names.includes(name));
  if (missing.length > 0) throw refuse(`lacks ${missing.join(', ')}`);
  return fields;
}

/** The records that each chunk completes. Throws 400 for what is no CSV in UTF-8, 413. */
async function* readRecords(bytes: AsyncIterable<Buffer>, limit: number): AsyncGenerator<Record[]> {
  const parser = new Parser({ bom: true, skip_empty_lines: true, info: true });
  const decoder = new TextDecoder('utf-8', { fatal: true });
  parser.on('error', () => {}); // `errored` has it at once
  let [size, open] = [0, 0]; // bytes: of all, and since the last record
  try {
    for await (const chunk of bytes) {
      size += chunk.length;
      if (size > limit) throw tooLarge(limit, 'CSV');
      parser.write(decoder.decode(chunk, { stream: true }));
      if (parser.errored) throw parser.errored;
      open += chunk.length;
      if (open > MAX_RECORD) throw tooLarge(MAX_RECORD, 'record of the CSV');
      const records: Record[] = [];
      for (let one = parser.read(); one !== null; one = parser.read()) records.push(one);
      if (records.length === 0) continue;
      open = 0;
      yield records;
    }
    parser.end(decoder.decode());
    yield await parser.toArray(); // also without any record, so that the header is missed
  } catch (error) {
    if (!(error instanceof TypeError || error instanceof CsvError)) throw error;
    const details = error.message;
    throw new Problem(400, 'PGRST102', 'The body is not CSV in UTF-8.', undefined, { details });
  }
}
