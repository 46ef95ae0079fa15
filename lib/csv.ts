/** CSV (RFC 4180) as rows, validated like JSON. */
import { CsvError, type Options, Parser } from 'csv-parse';
import { MAX_ARRAY } from './body.ts';
import { kindOf, type Resource, type Row, typeOf } from './columns.ts';
import { parseJson } from './dialect.ts';
import { type Fault, Problem, toFaults, tooLarge, unprocessable } from './problem.ts';

const MAX_RECORD = 2 ** 20; // bytes; csv-parse 7 counts no empty fields
const MAX_COLUMNS = 1600; // of a table of PostgreSQL
const MAX_FAULTS = 100;
const OPTIONS: Options = {
  bom: true,
  skip_empty_lines: true,
  info: true,
};

/** A record with the line that it ends on. */
type Record = { record: string[]; info: { lines: number } };
/** The column of each field; undefined for a field that is not read. */
type Names = (string | undefined)[];

/** The rows of a CSV and the columns of its header; `rest` has those after the first MAX_ARRAY. */
type Csv = { rows: Row[]; names: string[]; rest?: AsyncIterable<Row[]> };

/** Reads a CSV; of its columns only those in `columns`. Throws 400, 413, 422. */
export async function readCsv(
  resource: Resource,
  bytes: AsyncIterable<Buffer>,
  limit: number,
  columns?: string[],
): Promise<Csv> {
  const batches = readRecords(bytes, limit);
  const { value: first = [] } = await batches.next();
  const names = readHeader(resource, first.shift()?.record ?? [], columns);
  const rows = toRows(resource, names, first);
  const rest = mapRows(batches, resource, names);
  const known = names.filter((name) => name !== undefined);
  while (rows.length <= MAX_ARRAY) {
    const { value, done } = await rest.next();
    if (done) return { rows, names: known };
    rows.push(...value);
  }
  return { rows, names: known, rest };
}

async function* mapRows(batches: AsyncIterable<Record[]>, resource: Resource, names: Names) {
  for await (const batch of batches) yield toRows(resource, names, batch);
}

/** Throws 422 with line, column and pointer of each fault. */
function toRows(resource: Resource, names: Names, records: Record[]): Row[] {
  const faults: Fault[] = [];
  const readers = names.map((name) => name && readerOf(resource, name));
  const rows = records.map(({ record, info }) => {
    const row: Row = {};
    for (let at = 0; at < readers.length; at += 1) {
      const reader = readers[at];
      const value = reader ? reader(record[at] ?? '') : undefined;
      if (value !== undefined) row[names[at] as string] = value;
    }
    const { data, error } = resource.row.safeParse(row);
    if (error && faults.length < MAX_FAULTS) {
      const found = toFaults(error, '');
      const where = (pointer: string) => `line ${info.lines}, column ${pointer.slice(1)}: `;
      faults.push(
        ...found.map(({ pointer, detail }) => ({ pointer, detail: where(pointer) + detail })),
      );
    }
    return data ?? {};
  });
  if (faults.length > 0) throw unprocessable(faults);
  return rows;
}

/** Text of a field as JSON has the value; what is no such value stays text, which is refused. */
function readerOf(resource: Resource, name: string): (text: string) => unknown {
  const empty = resource.columns[name]?.nullable ? null : undefined;
  const read = READERS[kindOf(typeOf(resource, name))];
  return (text) => (text === '' ? empty : read(text));
}

const READERS: { [kind in ReturnType<typeof kindOf>]: (text: string) => unknown } = {
  boolean: (text) => {
    if (/^(true|t|1)$/i.test(text)) return true;
    return /^(false|f|0)$/i.test(text) ? false : text;
  },
  number: (text) => (/^ *[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)? *$/i.test(text) ? Number(text) : text),
  text: (text) => text,
  time: (text) => text,
  json: (text) => {
    const value = parseJson(text);
    return value === undefined ? text : value;
  },
};

/** The column of each title, by name or alias; undefined for one that `columns` excludes. */
function readHeader(resource: Resource, titles: string[], columns?: string[]): Names {
  const { key, settable, required, columns: declared } = resource;
  const known = [key, ...settable];
  const refuse = (what: string, hint = `Its columns are ${known.join(',')}.`) =>
    new Problem(400, 'PGRST204', `The header of the CSV ${what}.`, hint);
  if (titles.length > MAX_COLUMNS) throw refuse(`has more than ${MAX_COLUMNS} columns`);
  const names = titles.map((title) => {
    const text = title.trim();
    const isNamed = (name: string) =>
      name === text || declared[name]?.csv?.split(', ').includes(text);
    const name = known.find(isNamed);
    if (columns) return name !== undefined && columns.includes(name) ? name : undefined;
    if (name !== undefined) return name;
    const shown = `has ${JSON.stringify(text.slice(0, 50))}, which is no column`;
    if (/^sep=/i.test(text))
      throw refuse('begins with sep=', 'Send it without this line, with commas.');
    if (/[;\t]/.test(text)) throw refuse(shown, 'Separate the columns by commas.');
    if (text.includes('\0')) throw refuse('contains NUL', 'Send it as UTF-8.');
    throw refuse(shown);
  });
  const given = names.filter((name) => name !== undefined);
  const twice = given.filter((name, at) => given.indexOf(name) !== at);
  if (twice.length > 0) throw refuse(`has ${twice} twice`);
  const missing = required.filter((name) => !given.includes(name));
  if (missing.length > 0) throw refuse(`lacks ${missing.join(', ')}`);
  return names;
}

/** The records that each chunk completes. Throws 400 for what is no CSV in UTF-8, 413. */
async function* readRecords(bytes: AsyncIterable<Buffer>, limit: number): AsyncGenerator<Record[]> {
  const parser = new Parser(OPTIONS);
  const decoder = new TextDecoder('utf-8', { fatal: true });
  parser.on('error', () => {}); // `errored` has it at once
  let size = 0;
  let open = 0; // bytes since the last record
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
      if (records.length > 0) open = 0;
      if (records.length > 0) yield records;
    }
    parser.end(decoder.decode());
    yield await parser.toArray(); // also without any record, so that the header is missed
  } catch (error) {
    throw error instanceof TypeError || error instanceof CsvError ? notCsv(error) : error;
  }
}

function notCsv({ message: details }: Error): Problem {
  return new Problem(400, 'PGRST102', 'The body is not CSV in UTF-8.', undefined, { details });
}
